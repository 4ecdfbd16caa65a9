"""Judges a TBSCertificate before it is signed, with other eyes than those that made it.

    findings = lint(built.der, profile, issuer, signature, fleet="ecc-devices", device="press-7", names=(), keys=fleet.keys)
    if findings: ...                  # nothing is signed

The octets are read by the parser of ``cryptography`` (with a dummy signature around them), not by ``pkix``'s; only the outermost fields,
whose exact octets count, are cut out by hand. What should be there is worked out anew from profile, issuer and identity. Nothing is taken
as clean because it was clean before: every certificate is linted in full.

``RULES`` has the rules, each with its source; ``policies.lint_rules`` is where they are.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from pkix import der
from pkix.algorithms import KeyKind, SignatureAlgorithm
from pkix.certificate import Certificate
from pkix.errors import Malformed
from policies.lint_case import Case, key_of, plan_of
from policies.lint_rules import READING_RULES, RULES
from policies.model import Profile

__all__ = ["READING_RULES", "RULES", "Finding", "lint"]

_FIELDS = [0xA0, der.INTEGER, der.SEQUENCE, der.SEQUENCE, der.SEQUENCE, der.SEQUENCE, der.SEQUENCE, 0xA3]
_VERSION_3 = b"\xa0\x03\x02\x01\x02"
_DUMMY = b"\x03\x02\x00\x00"  # a signature BIT STRING; what is in it is not looked at


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing wrong with a TBSCertificate: the rule of ``RULES`` or ``READING_RULES`` that it breaks, and how."""

    rule: str
    text: str


def lint(
    tbs: bytes,
    profile: Profile,
    issuer: Certificate | None,
    signature: SignatureAlgorithm,
    *,
    fleet: str | None = None,
    device: str | None = None,
    names: Collection[str] | None = None,
    keys: Collection[KeyKind] | None = None,
) -> list[Finding]:
    """Everything wrong with ``tbs``; an empty list lets it be signed.

    Args:
        tbs: DER of the TBSCertificate.
        profile: what it must look like.  issuer: who will sign it, None for a root.  signature: with what.
        fleet, device, names: of the authenticated identity; with them, the certificate must be this device's. Without, it must agree with
            itself, and names of the profile's kinds are taken.
        keys: kinds of key that the fleet takes; None for any of the issuer's family.
    """
    try:
        fields = _fields(tbs)
        certificate, extensions = _foreign_eyes(tbs, fields[2])
        subject = [(attribute.oid.dotted_string, attribute.value) for attribute in certificate.subject]
        kind, key_bits = key_of(tbs, fields[6], certificate)
        case = Case(
            profile=profile,
            plan=plan_of(profile),
            issuer=issuer,
            signature=signature,
            fleet=fleet,
            device=device,
            names=names,
            keys=keys,
            algorithm=_octets(tbs, fields[2]),
            issuer_name=_octets(tbs, fields[3]),
            time_tags=[time.tag for time in der.children(tbs, fields[4])],
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
            subject_name=_octets(tbs, fields[5]),
            subject=subject,
            spki=_octets(tbs, fields[6]),
            kind=kind,
            key_bits=key_bits,
            extensions=extensions,
        )
    except _Stop as stop:
        return [stop.finding]
    except (ValueError, TypeError, UnsupportedAlgorithm, Malformed, UserWarning) as error:
        # TypeError is how cryptography refuses a name whose value has an impossible string type.
        # cryptography warns of a C or CN of the wrong length; under -W error that is an exception, else subject.length finds it.
        return [Finding("tbs.form", f"it does not parse: {error}")]
    return [Finding(rule.id, text) for rule in RULES.values() for text in rule.check(case)]


class _Stop(Exception):
    """A finding after which the rest cannot be read."""

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(text)
        self.finding = Finding(rule, text)


def _fields(tbs: bytes) -> list[der.Tlv]:
    """version, serial, signature, issuer, validity, subject, spki, extensions; the first two judged here, before others parse them."""
    root = der.read(tbs)
    fields = der.children(tbs, root)
    if root.tag != der.SEQUENCE or root.end != len(tbs) or [field.tag for field in fields] != _FIELDS:
        raise _Stop("tbs.form", "its fields are not those of RFC 5280 4.1.2, or something follows")
    if _octets(tbs, fields[0]) != _VERSION_3:
        raise _Stop("tbs.version", "it is not version 3")
    serial = tbs[fields[1].body : fields[1].end]
    if len(serial) != 16 or not 0x40 <= serial[0] <= 0x7F:
        raise _Stop("serial.form", "the serial number is not the 16 octets from 40… to 7f… that are drawn here")
    return fields


def _foreign_eyes(tbs: bytes, algorithm: der.Tlv) -> tuple[x509.Certificate, dict[str, x509.Extension[x509.ExtensionType]]]:
    certificate = x509.load_der_x509_certificate(der.sequence(tbs, _octets(tbs, algorithm), _DUMMY))
    try:
        listed: Sequence[x509.Extension[x509.ExtensionType]] = list(certificate.extensions)
    except x509.DuplicateExtension as error:
        raise _Stop("extensions.duplicate", f"extension {error.oid.dotted_string} occurs twice") from None
    return certificate, {extension.oid.dotted_string: extension for extension in listed}


def _octets(tbs: bytes, field: der.Tlv) -> bytes:
    return tbs[field.start : field.end]
