"""What one OCSP response says of one certificate, if it may be believed (RFC 6960 3.2, 4.2.2.2; RFC 5019; RFC 9654). Pure.

    ruling = judge_response(read_response(raw), certificate, issuer, question, source="staple")
    ruling.basis        # Basis, or the Text of why there is none
    ruling.signer       # a delegated signer, whose own status is still to be looked at, or None

A response has to be about the certificate, authentic, and current.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple

from pkix.algorithms import signature_algorithm
from pkix.certificate import Certificate
from pkix.errors import Malformed, Unavailable
from pkix.name import Name
from pkix.ocsp import MALFORMED_REQUEST, SUCCESSFUL, TRY_LATER, UNAUTHORIZED, OcspResponse, Single, cert_id, parse_response
from pkix.ocsp_signer import authorized_signer
from validate.model import Basis, Policy, Question, Standing
from validate.profile import unknown_critical
from validate.rules import STRENGTHS, family_of
from validate.text import Text, say

REASONS = {
    0: "unspecified",
    1: "keyCompromise",
    2: "cACompromise",
    3: "affiliationChanged",
    4: "superseded",
    5: "cessationOfOperation",
    6: "certificateHold",
    8: "removeFromCRL",
    9: "privilegeWithdrawn",
    10: "aACompromise",
}
"""CRLReason by number (RFC 5280 5.3.1)."""

ASK_OTHERWISE = (MALFORMED_REQUEST, UNAUTHORIZED)
"""What responders answer that do not know the digest of the CertID."""

_NEVER_ISSUED = datetime(1970, 1, 1, tzinfo=UTC)
_WITHOUT_NEXT_UPDATE = timedelta(hours=1)
_GRAVITY = {"good": 0, "unknown": 1, "revoked": 2}
_ERRORS = {1: "malformedRequest", 2: "internalError", TRY_LATER: "tryLater", 5: "sigRequired", UNAUTHORIZED: "unauthorized"}


class Ruling(NamedTuple):
    """What a response comes to: a basis, or why it is no use; and who signed it, if the issuer delegated that."""

    basis: Basis | Text
    signer: Certificate | None = None


def digests(issuer: Certificate) -> tuple[str, ...]:
    """The digests to ask with, the first one first: SM3 below SM2 issuers; SHA-1 is what every responder knows (RFC 5019 2.1.1)."""
    return ("sm3", "sha1") if family_of(issuer) == "sm2" else ("sha1", "sha256")


def read_response(raw: bytes) -> OcspResponse | Text:
    """The response, or why it cannot be read."""
    try:
        return parse_response(raw)
    except Malformed as error:
        return say("unusable_detail", why=error)


def judge_response(
    response: OcspResponse | Text,
    certificate: Certificate,
    issuer: Certificate,
    question: Question,
    *,
    source: Literal["staple", "ocsp"],
    url: str = "",
    responders: Sequence[Certificate] = (),
) -> Ruling:
    """RFC 6960 3.2, in the order: is it about this certificate, whose word is it, is it current.

    Args:
        source: a response that was fetched has to repeat the nonce of the question, if it has one; a staple cannot.
        responders: signers that are trusted here by local configuration (RFC 6960 4.2.2.2 (1)).
    """
    if isinstance(response, Text):
        return Ruling(response)
    if response.status != SUCCESSFUL:
        return Ruling(say("ocsp_error", name=_ERRORS.get(response.status, str(response.status))))
    single = _about(response, certificate, issuer)
    if single is None or response.produced_at is None:
        return Ruling(say("not_about_it"))
    try:
        signer = _signer(response, issuer, question.now, responders)
    except (Malformed, Unavailable) as error:
        return Ruling(say("unusable_detail", why=error))
    own = signer.public_key == issuer.public_key
    unfit = None if own else _unfit(signer, issuer, question.policy)
    if unfit is not None:
        return Ruling(unfit)
    if source == "ocsp" and question.nonce is not None and response.nonce != question.nonce:
        return Ruling(say("wrong_nonce"))
    # One from the future is refused below, and may be too near the end of time to add anything to it.
    until = single.next_update or min(single.this_update, question.latest) + _WITHOUT_NEXT_UPDATE
    problem = outdated(single.this_update, until, question)
    if problem is None and response.produced_at > question.latest:
        problem = say("from_future", at=response.produced_at)
    if problem is not None:
        return Ruling(problem)
    return Ruling(_basis(single, response.produced_at, until, source, url), None if own or signer in responders else signer)


def outdated(this_update: datetime, until: datetime, question: Question) -> Text | None:
    """Why a statement of ``this_update`` that lapses at ``until`` is not current, or None if it is."""
    max_age = question.policy.max_age
    if this_update > question.latest:
        return say("from_future", at=this_update)
    if question.earliest > until or until < this_update:
        return say("stale", at=until)
    if max_age is not None and question.earliest > this_update + max_age:
        return say("too_old", at=this_update)
    return None


def standing_of(reason: str | None) -> Standing:
    """What an entry on a list, or "revoked", with this reason means."""
    return "held" if reason == "certificateHold" else "revoked"


def _about(response: OcspResponse, certificate: Certificate, issuer: Certificate) -> Single | None:
    """The answer about ``certificate``, by whatever digest it is named: who staples chooses. Of several the gravest."""
    answers = [
        single
        for single in response.singles
        if single.cert_id.serial == certificate.serial and single.cert_id == cert_id(single.cert_id.hash, issuer, certificate.serial)
    ]
    return max(answers, key=lambda single: _GRAVITY[single.status], default=None)


def _signer(response: OcspResponse, issuer: Certificate, now: datetime, responders: Sequence[Certificate]) -> Certificate:
    """Who signed the response and may. Raises Malformed."""
    local = [responder for responder in responders if _names(response, responder) and responder.not_before <= now <= responder.not_after]
    signer = local[0] if local else authorized_signer(response.responder, response.certificates, issuer, now)
    signer.public_key.verify(response.signature, response.tbs, signature_algorithm(response.algorithm))
    return signer


def _unfit(signer: Certificate, issuer: Certificate, policy: Policy) -> Text | None:
    """Why the policy does not take the word of a signer other than the issuer, or None: as it would be for a certificate of the path."""
    family, strength = family_of(signer), STRENGTHS[signer.key_kind]
    if family != family_of(issuer) and not policy.mixed_families:
        return say("mixed_families", families=f"{family_of(issuer)}, {family}")
    if family not in policy.families:
        return say("family_not_taken", who=signer, family=family)
    if strength < policy.minimum_strength:
        return say("too_weak", who=signer, strength=strength, minimum=policy.minimum_strength)
    return unknown_critical(signer)


def _names(response: OcspResponse, certificate: Certificate) -> bool:
    if isinstance(response.responder, Name):
        return response.responder == certificate.subject
    return response.responder == certificate.public_key.key_identifier


def _basis(single: Single, produced_at: datetime, until: datetime, source: Literal["staple", "ocsp"], url: str) -> Basis:
    reason = REASONS.get(single.reason or 0) if single.status == "revoked" else None
    standing: Standing = "good" if single.status == "good" else "unknown"
    # RFC 6960 4.4.8: "revoked" as on hold since 1970 is how a responder says that it never issued this one.
    if single.status == "revoked" and not (single.revoked_at == _NEVER_ISSUED and reason == "certificateHold"):
        standing = standing_of(reason)
    known = standing in ("revoked", "held")
    return Basis(
        standing=standing,
        source=source,
        url=url,
        produced_at=produced_at,
        this_update=single.this_update,
        until=until,
        revoked_at=single.revoked_at if known else None,
        reason=reason if known else None,
    )
