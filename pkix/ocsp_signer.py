"""Who may sign an OCSP response: the issuer, or whom it certified for just that (RFC 6960 4.2.2.2).

signer = authorized_signer(response.responder, response.certificates, issuer, now)
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from pkix.certificate import Certificate, verify_signed
from pkix.errors import BadSignature
from pkix.extensions import EXTENDED_KEY_USAGES, KEY_USAGE
from pkix.name import Name


def authorized_signer(responder: Name | bytes, certificates: Sequence[Certificate], issuer: Certificate, now: datetime) -> Certificate:
    """The certificate of a response's signer: ``issuer`` itself, or one of ``certificates`` to whom it delegated.

    Args:
        responder: how the response names its signer: by name, or by SHA-1 of its key.
        certificates: those that came with the response.
    Raises:
        BadSignature: nobody of that name or key is there, or it has no such authority from ``issuer`` at ``now``.
        Unsupported: a certificate signed by an algorithm that we do not take.
    """
    if _is_responder(responder, issuer):
        return issuer
    named = [candidate for candidate in certificates if _is_responder(responder, candidate)]
    if not named:
        raise BadSignature("OCSP: the response's signer is not its issuer, and no certificate of that signer is included")
    refusal = ""
    for candidate in named:
        refusal = _refusal(candidate, issuer, now)
        if not refusal:
            verify_signed(candidate.der, issuer.public_key)
            return candidate
    raise BadSignature(f"OCSP: the response's signer {refusal}")


def _is_responder(responder: Name | bytes, certificate: Certificate) -> bool:
    if isinstance(responder, Name):
        return responder.der == certificate.subject.der
    return responder == certificate.public_key.key_identifier


def _refusal(signer: Certificate, issuer: Certificate, now: datetime) -> str:
    if signer.issuer.der != issuer.subject.der:
        return "was certified by somebody else than the issuer of the certificate in question"
    if EXTENDED_KEY_USAGES["OCSPSigning"] not in signer.extended_key_usage:
        return "lacks the extended key usage OCSPSigning"
    if KEY_USAGE in signer.extensions and "digitalSignature" not in signer.key_usage:
        return "may not make digital signatures"
    if not signer.not_before <= now <= signer.not_after:
        return "has a certificate that is not valid now"
    return ""
