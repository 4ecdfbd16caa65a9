"""Is a manufacturer's device certificate (IDevID, IEEE 802.1AR) certified by a manufacturer that a fleet trusts? (RFC 5280 section 6)

    verify_path(idevid, presented, trusted, now)      # returns nothing, or raises Unauthenticated saying what failed

Signatures, validity, CA flag, path length, key usage and critical extensions are checked. Revocation is not: manufacturers rarely publish
any for certificates that never expire. What a fleet trusts are keys, so validity and signature of the trusted certificates themselves
do not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from pkix import extensions
from pkix.certificate import Certificate, verify_signed
from pkix.errors import Malformed, Unauthenticated

MAX_PATH = 4
"""Certificates in a path, the device's own and the trusted one included."""
MAX_PRESENTED = 8

_CLIENT_AUTH = extensions.EXTENDED_KEY_USAGES["clientAuth"]
_ANY_PURPOSE = extensions.EXTENDED_KEY_USAGES["anyExtendedKeyUsage"]
# Critical extensions that are honoured below, or that say nothing about who the device is (certificatePolicies).
_UNDERSTOOD = frozenset(
    (
        extensions.BASIC_CONSTRAINTS,
        extensions.KEY_USAGE,
        extensions.EXTENDED_KEY_USAGE,
        extensions.SUBJECT_ALT_NAME,
        extensions.CERTIFICATE_POLICIES,
    )
)


def verify_path(leaf: Certificate, presented: Sequence[Certificate], trusted: Sequence[Certificate], now: datetime) -> None:
    """Finds a path of at most ``MAX_PATH`` certificates from ``leaf`` over ``presented`` to one of ``trusted``.

    Raises:
        Unauthenticated: there is none, or the leaf is not what may stand at its end.
    """
    _check_leaf(leaf, now)
    if len(presented) > MAX_PRESENTED:
        raise Unauthenticated(f"More than {MAX_PRESENTED} certificates came with the device certificate; send only its own chain.")
    if not _climb(leaf, presented, trusted, now, below=0):
        raise Unauthenticated(
            f"The device certificate (issuer {leaf.issuer.text}) does not lead to a manufacturer that this fleet trusts. Send the "
            "intermediate certificates too, or have the administrator add the manufacturer's CA to the fleet."
        )


def _check_leaf(leaf: Certificate, now: datetime) -> None:
    if leaf.is_ca:
        raise Unauthenticated("The certificate presented is a CA's; a device certificate is expected.")
    if not leaf.not_before <= now <= leaf.not_after:
        raise Unauthenticated(f"The device certificate is valid from {leaf.not_before:%F} to {leaf.not_after:%F}, which is not now.")
    if leaf.key_usage and "digitalSignature" not in leaf.key_usage:
        raise Unauthenticated("The key usage of the device certificate does not allow digital signatures.")
    if leaf.extended_key_usage and not {_CLIENT_AUTH, _ANY_PURPOSE} & set(leaf.extended_key_usage):
        raise Unauthenticated("The extended key usage of the device certificate does not allow client authentication.")
    if unknown := _unknown_critical(leaf):
        raise Unauthenticated(f"The device certificate has a critical extension ({unknown}) that is not understood here.")


def _climb(child: Certificate, presented: Sequence[Certificate], trusted: Sequence[Certificate], now: datetime, below: int) -> bool:
    """Whether ``child``, with ``below`` intermediates under it, is signed by a trusted CA or by a presented one that climbs on."""
    if any(_certified_by(child, anchor, below) for anchor in trusted):
        return True
    if below + 3 > MAX_PATH:  # child, one more presented above it, and the trusted one
        return False
    return any(
        candidate.not_before <= now <= candidate.not_after
        and _certified_by(child, candidate, below)
        and _climb(candidate, presented, trusted, now, below + 1)
        for candidate in presented
        if candidate != child
    )


def _certified_by(child: Certificate, issuer: Certificate, below: int) -> bool:
    if child.issuer != issuer.subject or not issuer.is_ca or _unknown_critical(issuer):
        return False
    if issuer.path_length is not None and below > issuer.path_length:
        return False
    if issuer.key_usage and "keyCertSign" not in issuer.key_usage:
        return False
    try:
        verify_signed(child.der, issuer.public_key)
    except Malformed:  # the signature, its algorithm, or the issuer's key is not acceptable
        return False
    return True


def _unknown_critical(certificate: Certificate) -> str | None:
    return next((oid for oid, extension in certificate.extensions.items() if extension.critical and oid not in _UNDERSTOOD), None)
