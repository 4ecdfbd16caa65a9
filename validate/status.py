"""Revocation: what staples, OCSP responders and CRLs say of every certificate of a path below the anchor (RFC 6960, RFC 5280 6.3).

    checks, evidence = await revocation(path, Inquiry(Asked(policy, now), fetch=fetcher))

What was handed in comes first; then OCSP; then CRLs. Whoever says "revoked" and may say so is believed; "good" counts only from a source
that is authentic, current and covers the certificate. Everything that was tried and was no use is named in the answer.
Only URLs of certificates whose path is verified up to an anchor are ever asked.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

from pkix import extensions
from pkix.certificate import Certificate
from pkix.crl import Crl
from pkix.errors import IronrootError
from pkix.ocsp import OcspResponse, build_request, cert_id
from validate.model import Check, Fetcher, StatusEvidence
from validate.path import Path
from validate.rules import family_of
from validate.statements import Answer, Asked, Source, delegates, judge_crl, judge_response, read_crl, read_response
from validate.text import Text, joined, say

NO_REVOCATION_AVAILABLE = "2.5.29.56"
_MAX_URLS = 3


@dataclass(frozen=True)
class Inquiry:
    """What every link is asked with, and what was answered already (by certificate and issuer key): paths share links."""

    asked: Asked
    fetch: Fetcher | None = None
    staples: tuple[bytes, ...] = ()
    crls: tuple[bytes, ...] = ()
    known: dict[tuple[bytes, bytes], Answer] = field(default_factory=dict)

    @cached_property
    def online(self) -> Fetcher | None:
        """The fetcher, if it may be used."""
        return self.fetch if self.asked.policy.status in ("hard-fail", "soft-fail") else None

    @cached_property
    def responses(self) -> list[OcspResponse | Text]:
        return [read_response(raw) for raw in self.staples]

    @cached_property
    def lists(self) -> list[Crl | Text]:
        return [read_crl(raw) for raw in self.crls]


async def revocation(path: Path, inquiry: Inquiry) -> tuple[tuple[Check, ...], tuple[StatusEvidence, ...]]:
    """One check for each link of ``path``, end entity first, and the statements that they rest on."""
    if inquiry.asked.policy.status == "none":
        return (Check("status", "skipped", say("status_skipped"), "local policy"),), ()
    if len(path) == 1:
        return (Check("status", "skipped", say("is_anchor", who=path[0]), "RFC 5280 6.1"),), ()
    answers = await asyncio.gather(*(_link(*link, inquiry) for link in pairwise(path)))
    checks = tuple(_check(certificate, answer, inquiry) for certificate, answer in zip(path, answers, strict=False))
    return checks, tuple(answer for answer in answers if isinstance(answer, StatusEvidence))


def _check(certificate: Certificate, answer: Answer, inquiry: Inquiry) -> Check:
    if isinstance(answer, Text):
        if answer.code == "status_exempt":
            return Check("status", "skipped", answer, "RFC 6960 4.2.2.2.1; RFC 9608")
        if inquiry.asked.policy.status == "soft-fail":
            return Check("status", "skipped", say("status_partial", who=certificate, why=answer), "local policy")
        return Check("status", "fail", say("no_status", who=certificate, why=answer), "RFC 5280 6.1.3 (a)(3)")
    clause = "RFC 6960 3.2" if answer.source in ("ocsp", "staple") else "RFC 5280 6.3.3"
    shown = source_text(answer)
    if answer.status == "good":
        return Check("status", "pass", say("not_revoked", who=certificate, source=shown), clause)
    if answer.status == "unknown":
        return Check("status", "fail", say("unknown_serial", who=certificate, source=shown), "RFC 6960 2.2")
    code = "on_hold" if answer.reason == "certificateHold" else "revoked"
    return Check("status", "fail", say(code, who=certificate, at=answer.revoked_at, reason=answer.reason, source=shown), clause)


def source_text(evidence: StatusEvidence) -> Text:
    """Where a statement came from, for a person."""
    return say(f"from_{evidence.source}", url=evidence.url, at=evidence.produced_at)


# --- one link ------------------------------------------------------------------------------------------------------


async def _link(certificate: Certificate, issuer: Certificate, inquiry: Inquiry) -> Answer:
    key = certificate.sha256, issuer.spki
    if key not in inquiry.known:
        inquiry.known[key] = say("status_exempt") if _exempt(certificate) else await _statement(certificate, issuer, inquiry)
    return inquiry.known[key]


def _exempt(certificate: Certificate) -> bool:
    # nocheck means something in an OCSP signer only (RFC 6960 4.2.2.2.1), noRevAvail in an end entity only (RFC 9608 3).
    signer = extensions.EXTENDED_KEY_USAGES["OCSPSigning"] in certificate.extended_key_usage
    nocheck = signer and extensions.OCSP_NOCHECK in certificate.extensions
    return not certificate.is_ca and (nocheck or NO_REVOCATION_AVAILABLE in certificate.extensions)


async def _statement(certificate: Certificate, issuer: Certificate, inquiry: Inquiry) -> Answer:
    """The best statement about ``certificate``, or all that stood in the way of one."""
    notes: list[Text] = []
    try:
        async with asyncio.timeout(inquiry.asked.policy.fetch_time.total_seconds()):
            supplied = await _supplied(certificate, issuer, inquiry, notes)
            if supplied is not None:
                return supplied
            if inquiry.online is None:
                return joined([*notes, say("not_fetched")])
            fetched = await _fetched(certificate, issuer, inquiry, inquiry.online, notes)
            return fetched if fetched is not None else joined(notes or [say("nowhere")])
    except TimeoutError:
        return joined([*notes, say("too_slow", seconds=f"{inquiry.asked.policy.fetch_time.total_seconds():g}")])


async def _supplied(certificate: Certificate, issuer: Certificate, inquiry: Inquiry, notes: list[Text]) -> StatusEvidence | None:
    """The gravest usable statement that was handed in, of equals the newest."""
    answers = [(await _weighed(r, certificate, issuer, inquiry, "staple", ""), "the_staple") for r in inquiry.responses]
    answers += [(judge_crl(c, certificate, issuer, inquiry.asked, "supplied-crl", ""), "the_list") for c in inquiry.lists]
    found = []
    for answer, what in answers:
        if isinstance(answer, StatusEvidence):
            found.append(answer)
        elif answer.code != "not_about_it":
            notes.append(say("unusable", source=say(what), why=answer))
    gravity = ("revoked", "unknown", "good")
    return min(found, key=lambda answer: (gravity.index(answer.status), inquiry.asked.now - answer.this_update), default=None)


async def _fetched(
    certificate: Certificate, issuer: Certificate, inquiry: Inquiry, fetch: Fetcher, notes: list[Text]
) -> StatusEvidence | None:
    """The first usable statement of OCSP, then of CRLs."""
    for url in certificate.ocsp_urls[:_MAX_URLS]:
        answer = await _ask(url, certificate, issuer, inquiry, fetch)
        if isinstance(answer, StatusEvidence):
            return answer
        notes.append(answer)
    for url in certificate.crl_urls[:_MAX_URLS]:
        answer = await _download(url, certificate, issuer, inquiry, fetch)
        if isinstance(answer, StatusEvidence):
            return answer
        notes.append(answer)
    return None


async def _ask(url: str, certificate: Certificate, issuer: Certificate, inquiry: Inquiry, fetch: Fetcher) -> Answer:
    """OCSP by POST. CertIDs in SM3 for SM2 issuers, else in SHA-1: the one digest that every responder indexes by (RFC 5019 2.1.1)."""
    digest = "sm3" if family_of(issuer) == "sm2" else "sha1"
    request = build_request([cert_id(digest, issuer, certificate.serial)], inquiry.asked.nonce)
    try:
        raw = await fetch.post(url, request, "application/ocsp-request")
    except IronrootError as error:
        return say("unreachable", url=url, why=error)
    answer = await _weighed(read_response(raw), certificate, issuer, inquiry, "ocsp", url)
    return answer if isinstance(answer, StatusEvidence) else say("unusable", source=say("the_responder", url=url), why=answer)


async def _download(url: str, certificate: Certificate, issuer: Certificate, inquiry: Inquiry, fetch: Fetcher) -> Answer:
    try:
        raw = await fetch.get(url)
    except IronrootError as error:
        return say("unreachable", url=url, why=error)
    answer = judge_crl(read_crl(raw), certificate, issuer, inquiry.asked, "crl", url)
    return answer if isinstance(answer, StatusEvidence) else say("unusable", source=say("the_point", url=url), why=answer)


async def _weighed(
    response: OcspResponse | Text, certificate: Certificate, issuer: Certificate, inquiry: Inquiry, source: Source, url: str
) -> Answer:
    """``judge_response``, then the delegated signer: its algorithm family, and its own revocation unless its certificate says nocheck."""
    answer = judge_response(response, certificate, issuer, inquiry.asked, source, url)
    if isinstance(answer, Text) or isinstance(response, Text):
        return answer
    for signer in delegates(response, issuer):
        if family_of(signer) != family_of(issuer) and not inquiry.asked.policy.mixed_families:
            return say("mixed_families", families=f"{family_of(issuer)}, {family_of(signer)}")
        if extensions.OCSP_NOCHECK not in signer.extensions and not await _signer_is_good(signer, issuer, inquiry):
            return say("signer_unchecked", who=signer)
    return answer


async def _signer_is_good(signer: Certificate, issuer: Certificate, inquiry: Inquiry) -> bool:
    """By CRL: asking OCSP about an OCSP signer goes in a circle."""
    answers = [judge_crl(crl, signer, issuer, inquiry.asked, "supplied-crl", "") for crl in inquiry.lists]
    if inquiry.online is not None:
        answers += [await _download(url, signer, issuer, inquiry, inquiry.online) for url in signer.crl_urls[:_MAX_URLS]]
    return {answer.status for answer in answers if isinstance(answer, StatusEvidence)} == {"good"}
