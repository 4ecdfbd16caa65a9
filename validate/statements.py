"""What one OCSP response or one CRL says of one certificate, if it may be believed (RFC 6960 3.2, RFC 5280 6.3.3). Pure.

    answer = judge_response(read_response(raw), certificate, issuer, Asked(policy, now), "staple", "")
    # StatusEvidence, or the Text of why it is none

A statement has to be about the certificate, authentic, current, and (a CRL) in scope.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from pkix import extensions
from pkix.certificate import Certificate, verify_signed
from pkix.crl import Crl, parse_crl
from pkix.errors import BadSignature, Malformed
from pkix.name import Name
from pkix.ocsp import OcspResponse, Single, cert_id, parse_response, verify_response
from validate.crl_scope import out_of_scope
from validate.model import Policy, StatusEvidence
from validate.names import canonical, subject
from validate.text import Text, say, title

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


Source = Literal["ocsp", "crl", "staple", "supplied-crl"]
Answer = StatusEvidence | Text
"""A usable statement, or why it is none."""

_WITHOUT_NEXT_UPDATE = timedelta(hours=1)
_NEVER_ISSUED = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a statement is held against. ``nonce``: what a fetched OCSP response has to repeat, if one was sent (RFC 9654)."""

    policy: Policy
    now: datetime
    nonce: bytes | None = None


def read_response(raw: bytes) -> OcspResponse | Text:
    """The response, or why it cannot be read."""
    try:
        return parse_response(raw)
    except Malformed as error:
        return say("unusable_detail", why=error)


def read_crl(raw: bytes) -> Crl | Text:
    """The CRL, or why it cannot be read."""
    try:
        return parse_crl(raw)
    except Malformed as error:
        return say("unusable_detail", why=error)


# --- OCSP ----------------------------------------------------------------------------------------------------------


def judge_response(
    response: OcspResponse | Text, certificate: Certificate, issuer: Certificate, asked: Asked, source: Source, url: str
) -> Answer:
    """RFC 6960 3.2, in the order: is it about this certificate, whose word is it, is it current."""
    if isinstance(response, Text):
        return response
    single = _about(response, certificate, issuer)
    if single is None and response.singles:
        return say("not_about_it")
    try:
        verify_response(response, issuer, asked.now)
    except Malformed as error:
        return say("unusable_detail", why=error)
    if single is None or response.produced_at is None:
        return say("not_about_it")
    if source == "ocsp" and asked.nonce is not None and response.nonce != asked.nonce:
        return say("wrong_nonce")
    next_update = single.next_update or single.this_update + _WITHOUT_NEXT_UPDATE
    problem = _outdated(single.this_update, next_update, asked)
    if problem is not None:
        return problem
    # RFC 6960 4.4.8: "revoked" as on hold since 1970 is how a responder says that it never issued this one.
    never = single.status == "revoked" and single.revoked_at == _NEVER_ISSUED and single.reason == 6
    status: Literal["good", "revoked", "unknown"] = "good" if single.status == "good" else "revoked"
    if never or single.status == "unknown":
        status = "unknown"
    return StatusEvidence(
        subject=title(certificate),
        serial=certificate.serial,
        source=source,
        url=url,
        status=status,
        produced_at=response.produced_at,
        this_update=single.this_update,
        next_update=single.next_update,
        revoked_at=single.revoked_at if status == "revoked" else None,
        reason=REASONS.get(single.reason or 0) if status == "revoked" else None,
    )


def _about(response: OcspResponse, certificate: Certificate, issuer: Certificate) -> Single | None:
    """The answer about ``certificate``, by whatever digest it is named: who staples chooses."""
    for single in response.singles:
        found = single.cert_id
        if found.serial == certificate.serial and found == cert_id(found.hash, issuer, certificate.serial):
            return single
    return None


def delegates(response: OcspResponse, issuer: Certificate) -> list[Certificate]:
    """Certificates in the response that can be its signer's; none if ``issuer`` signs for itself."""

    def named(certificate: Certificate) -> bool:
        if isinstance(response.responder, Name):
            return response.responder == certificate.subject
        return response.responder == certificate.public_key.key_identifier

    if named(issuer):
        return []
    return [certificate for certificate in response.certificates if certificate.issuer == issuer.subject and named(certificate)]


def _outdated(this_update: datetime, next_update: datetime, asked: Asked) -> Text | None:
    now, skew, max_age = asked.now, asked.policy.skew, asked.policy.max_age
    if this_update > now + skew:
        return say("from_future", at=this_update)
    if now - skew > next_update:
        return say("stale", at=next_update)
    if max_age is not None and now - skew > this_update + max_age:
        return say("too_old", at=this_update)
    return None


# --- CRLs ----------------------------------------------------------------------------------------------------------


def judge_crl(crl: Crl | Text, certificate: Certificate, issuer: Certificate, asked: Asked, source: Source, url: str) -> Answer:
    """RFC 5280 6.3.3 for a complete CRL of the certificate's own issuer."""
    if isinstance(crl, Text):
        return crl
    if canonical(crl.issuer.der) != subject(issuer):
        return say("not_about_it")
    problem = _bad_crl(crl, issuer)
    if problem is None and crl.next_update is not None:
        problem = _outdated(crl.this_update, crl.next_update, asked)
    entry = crl.entries.get(certificate.serial)
    problem = problem or out_of_scope(crl, certificate, listed=entry is not None)
    if problem is not None:
        return problem
    return StatusEvidence(
        subject=title(certificate),
        serial=certificate.serial,
        source=source,
        url=url,
        status="good" if entry is None else "revoked",
        produced_at=crl.this_update,
        this_update=crl.this_update,
        next_update=crl.next_update,
        revoked_at=None if entry is None else entry.revoked_at,
        reason=None if entry is None else REASONS.get(entry.reason),
    )


def _bad_crl(crl: Crl, issuer: Certificate) -> Text | None:
    """What is wrong with the list itself: RFC 5280 5.1.2.5, 5.2.3, 6.3.3 (f), (g)."""
    number = crl.extensions.get(extensions.CRL_NUMBER)
    if crl.next_update is None:
        return say("no_next_update")
    if number is None or number.critical:
        return say("bad_crl_number")
    if extensions.KEY_USAGE in issuer.extensions and "cRLSign" not in issuer.key_usage:
        return say("no_crl_sign", issuer=issuer)
    try:
        verify_signed(crl.der, issuer.public_key)
    except BadSignature:
        return say("bad_crl_signature", issuer=issuer)
    except Malformed as error:
        return say("unusable_detail", why=error)
    return None
