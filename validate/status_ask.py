"""Asking OCSP responders, one URL after the other (RFC 6960; RFC 5019; nonce RFC 9654).

basis = await by_ocsp(inquiry, responders)      # None: no responder was of use; ``inquiry.notes`` say why
"""

from __future__ import annotations

from collections.abc import Sequence

from pkix import extensions
from pkix.certificate import Certificate
from pkix.errors import IronrootError
from pkix.ocsp import OcspResponse, build_request, cert_id
from validate.fetched import Fetch, Fetched
from validate.model import Basis
from validate.rules import STRENGTHS, family_of
from validate.status_inquiry import MAX_URLS, Inquiry, MustWait
from validate.status_lists import by_crl
from validate.status_ocsp import ASK_OTHERWISE, Ruling, digests, judge_response, read_response
from validate.status_store import Kept
from validate.text import Text, say


async def by_ocsp(inquiry: Inquiry, responders: Sequence[Certificate], *, last: bool) -> Basis | None:
    """The first usable answer. ``last``: nothing else will be tried, so that the last URL may take all the time there is."""
    urls = inquiry.certificate.ocsp_urls[:MAX_URLS]
    for at, url in enumerate(urls):
        answer: Basis | Text | None = inquiry.refusal(url, inquiry.certificate.sha256)
        if answer is None:
            if inquiry.fetch is None:
                return None
            if not inquiry.waits:
                raise MustWait
            answer = await _answer(inquiry, inquiry.fetch, url, responders, others=at + 1 < len(urls) or not last)
        if isinstance(answer, Basis):
            return answer
        inquiry.notes.append(answer)
    return None


async def _answer(inquiry: Inquiry, fetch: Fetch, url: str, responders: Sequence[Certificate], *, others: bool) -> Basis | Text:
    about = inquiry.certificate.sha256
    # It is judged by this question's policy, so nobody else shares it; the request itself is shared by the fetcher.
    flight = f"ocsp {url} {about.hex()} {inquiry.key.hex()} {id(inquiry.question)}"
    try:
        return await inquiry.in_time(flight, lambda: _flight(inquiry, fetch, url, responders), others=others)
    except TimeoutError:
        return inquiry.refuse(url, say("unreachable", url=url, why=say("out_of_patience")), about)


async def _flight(inquiry: Inquiry, fetch: Fetch, url: str, responders: Sequence[Certificate]) -> Basis | Text:
    """Asks, judges and keeps the answer, or remembers that there is none."""
    about = inquiry.certificate.sha256
    try:
        fetched, response = await _asked(inquiry, fetch, url)
    except IronrootError as error:
        return inquiry.refuse(url, say("unreachable", url=url, why=error), about)
    ruling = judge_response(response, inquiry.certificate, inquiry.issuer, inquiry.question, source="ocsp", url=url, responders=responders)
    basis = await signer_checked(ruling, inquiry)
    if isinstance(basis, Text):
        return inquiry.refuse(url, say("unusable", source=say("the_responder", url=url), why=basis), about)
    signer = None if ruling.signer is None else ruling.signer.serial
    if ruling.signer is not None and _lesser(ruling.signer, inquiry.issuer):
        inquiry.chosen.append(ruling.signer)
    if basis.until is not None:
        fresh_until = fetched.until(basis.until, inquiry.now)
        inquiry.store.keep_answer(inquiry.link, Kept(basis, fresh_until, inquiry.store.lists, signer, inquiry.under))
    return basis


def _lesser(signer: Certificate, issuer: Certificate) -> bool:
    """Whether a policy that takes the issuer's key may refuse the signer's."""
    return family_of(signer) != family_of(issuer) or STRENGTHS[signer.key_kind] < STRENGTHS[issuer.key_kind]


async def _asked(inquiry: Inquiry, fetch: Fetch, url: str) -> tuple[Fetched, OcspResponse | Text]:
    """The response by POST: to the first digest of the CertID that the responder knows. Raises IronrootError."""
    for digest in digests(inquiry.issuer):
        request = build_request([cert_id(digest, inquiry.issuer, inquiry.certificate.serial)], inquiry.question.nonce)
        fetched = await fetch.fetch(url, request, "application/ocsp-request")
        response = read_response(fetched.body)
        if isinstance(response, Text) or response.status not in ASK_OTHERWISE:
            break
    return fetched, response


async def signer_checked(ruling: Ruling, inquiry: Inquiry) -> Basis | Text:
    """The basis, if nothing is wrong with the delegated signer itself: asked of CRLs, since asking OCSP about its signer goes in a circle.

    A pushed revocation counts also against a signer that nobody need check (id-pkix-ocsp-nocheck).
    """
    signer = ruling.signer
    if isinstance(ruling.basis, Text) or signer is None:
        return ruling.basis
    pushed = inquiry.store.overlay(None, inquiry.key, signer.serial)
    if pushed is None and extensions.OCSP_NOCHECK in signer.extensions:
        return ruling.basis
    about = inquiry.about(signer)
    basis = pushed or inquiry.store.overlay(await by_crl(about, last=True), inquiry.key, signer.serial)
    return ruling.basis if basis is not None and basis.standing == "good" else say("signer_unchecked", who=signer)
