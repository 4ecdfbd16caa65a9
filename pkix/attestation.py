"""Key attestation: an HSM's word on a key, as an X.509 certificate over the key's public half (the way of YubiHSM 2, on our own arc).

    manufacturer ── signs ──> device attestation certificate ── signs ──> key attestation certificate

    attestation = verify_attestation(chain, manufacturer, spki)      # chain: DER, the key's first
    attestation.made_here                                            # generated in this device, and never able to leave it

The arc is 2.25.<UUID> (ITU-T X.667), which needs no registration. All extensions are non-critical. Nobody logs in with such a certificate,
since its issuer is trusted for nothing but this. docs/hsm-trust.md has the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from pkix import der
from pkix.algorithms import load_public_key
from pkix.certificate import Certificate, parse_certificate, verify_signed
from pkix.errors import BadSignature, Malformed, NotValid
from pkix.extensions import Extension

ARC = "2.25.264451319523957075181632611121583075099"
"""UUID c6f378b4-e7ab-42ad-bc1c-8538c67faf1b, drawn for ironroot's HSM simulator."""

FIRMWARE, SERIAL, ORIGIN, PARTITION, CAPABILITIES, OBJECT_ID, LABEL, PROTECTION, HISTORY = (
    f"{ARC}.{number}" for number in (1, 2, 3, 4, 5, 6, 9, 10, 11)
)
ORIGINS = ("generated", "imported", "unwrapped", "derived")
CAPABILITY_BITS = ("sign", "verify", "encrypt", "decrypt", "wrap", "unwrap", "derive")
PROTECTION_BITS = ("local", "sensitive", "alwaysSensitive", "extractable", "neverExtractable")
FOREVER = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
"""notAfter of what has no expiry (RFC 5280 4.1.2.5)."""


@dataclass(frozen=True, slots=True)
class Attestation:
    """What the device says about a key.

    Attributes:
        spki: SubjectPublicKeyInfo of the key, DER.
        firmware, serial: of the device; ``serial`` is also in its own certificate, under the manufacturer's signature.
        partition, label, object_id: where it is, and as what (16 octets).
        origin: one of ``ORIGINS``: how it came into the device in which it began.
        capabilities: what it may be used for (``CAPABILITY_BITS``).
        protection: its protecting attributes (``PROTECTION_BITS``), as PKCS#11 means them.
        history: the devices that it was restored from, by serial number, oldest first; empty for a key that never was in another one.
        at: when the device said so.
    """

    spki: bytes
    firmware: str
    serial: str
    partition: str
    label: str
    object_id: bytes
    origin: str
    capabilities: frozenset[str]
    protection: frozenset[str]
    history: tuple[str, ...]
    at: datetime

    @property
    def made_here(self) -> bool:
        """Generated in this very device, and at no time able to leave it, wrapped or not."""
        wanted = {"local", "sensitive", "alwaysSensitive", "neverExtractable"}
        return self.origin == "generated" and not self.history and wanted <= self.protection and "extractable" not in self.protection

    def extensions(self) -> list[Extension]:
        """What goes into the key's attestation certificate."""
        values = {
            FIRMWARE: der.utf8_string(self.firmware),
            SERIAL: der.utf8_string(self.serial),
            ORIGIN: der.enumerated(ORIGINS.index(self.origin)),
            PARTITION: der.utf8_string(self.partition),
            CAPABILITIES: der.named_bits(CAPABILITY_BITS.index(name) for name in self.capabilities),
            OBJECT_ID: der.octet_string(self.object_id),
            LABEL: der.utf8_string(self.label),
            PROTECTION: der.named_bits(PROTECTION_BITS.index(name) for name in self.protection),
            HISTORY: der.sequence(*map(der.utf8_string, self.history)),
        }
        return [Extension(oid, False, value) for oid, value in values.items()]


def device_extensions(firmware: str, serial: str) -> list[Extension]:
    """What a device's own certificate says of it."""
    return [Extension(FIRMWARE, False, der.utf8_string(firmware)), Extension(SERIAL, False, der.utf8_string(serial))]


def verify_attestation(chain: Sequence[bytes], manufacturer: bytes, spki: bytes) -> Attestation:
    """What a device of this manufacturer says about the key ``spki``.

    Args:
        chain: DER of the key's attestation certificate and the device's; the manufacturer's may follow.
        manufacturer: DER of the manufacturer's certificate, which the caller trusts.
        spki: SubjectPublicKeyInfo of the key that the caller means, DER.
    Raises:
        NotValid: about another key, from a device of another manufacturer, or a chain that does not hold.
        Malformed: no certificates, or without what an attestation says.
    """
    if len(chain) not in (2, 3):
        raise Malformed("an attestation is the key's certificate, the device's, and possibly the manufacturer's, in this order")
    anchor = parse_certificate(manufacturer)
    key, device, *rest = (parse_certificate(raw) for raw in chain)
    if rest and rest[0].der != anchor.der:
        raise NotValid("the attestation comes from a device of another manufacturer than the one that is trusted")
    found = _read(key)
    check_device(device, found.serial, anchor)
    _signed(key, device, "the key's attestation certificate")
    if load_public_key(key.spki).spki != load_public_key(spki).spki:
        raise NotValid("the attestation is about another key")
    return found


def check_device(certificate: Certificate, serial: str, manufacturer: Certificate) -> None:
    """Whether ``certificate`` is one that this manufacturer gave the device ``serial``. Raises NotValid; Malformed: no device's at all."""
    _signed(certificate, manufacturer, "the device's certificate")
    if _text(certificate, SERIAL) != serial:
        raise NotValid("the device's certificate was given to another device than the one that is named")


def device_serial(certificate: Certificate) -> str:
    """The serial number in a device's certificate. Raises Malformed: it is none."""
    return _text(certificate, SERIAL)


def _signed(certificate: Certificate, issuer: Certificate, what: str) -> None:
    if certificate.issuer != issuer.subject or not issuer.is_ca or "keyCertSign" not in issuer.key_usage:
        raise NotValid(f"{what} was not issued by the certificate that should have issued it")
    try:
        verify_signed(certificate.der, issuer.public_key)
    except BadSignature as error:
        raise NotValid(f"{what} was not signed with its issuer's key, or was changed") from error


def _read(certificate: Certificate) -> Attestation:
    if certificate.is_ca:
        raise NotValid("the first certificate of the chain is no key's, but a device's or a manufacturer's")
    origin = _value(certificate, ORIGIN, der.ENUMERATED)
    if len(origin) != 1 or origin[0] >= len(ORIGINS):
        raise Malformed("an attestation with an origin that this program does not know")
    history = certificate.extensions[HISTORY].value if HISTORY in certificate.extensions else b"\x30\x00"
    root = der.prescan(history, max_depth=2)
    der.expect(history, root, der.SEQUENCE, "the history of an attestation")
    return Attestation(
        spki=certificate.spki,
        firmware=_text(certificate, FIRMWARE),
        serial=_text(certificate, SERIAL),
        partition=_text(certificate, PARTITION),
        label=_text(certificate, LABEL),
        object_id=_value(certificate, OBJECT_ID, der.OCTET_STRING),
        origin=ORIGINS[origin[0]],
        capabilities=_bits(certificate, CAPABILITIES, CAPABILITY_BITS),
        protection=_bits(certificate, PROTECTION, PROTECTION_BITS),
        history=tuple(der.decode_string(history, part, "the history of an attestation") for part in der.children(history, root)),
        at=certificate.not_before,
    )


def _value(certificate: Certificate, oid: str, tag: int) -> bytes:
    if oid not in certificate.extensions:
        raise Malformed(f"a certificate without the extension {oid}: it is no attestation, or one of another version")
    value = certificate.extensions[oid].value
    return der.expect(value, der.prescan(value, max_depth=1), tag, f"the extension {oid}")


def _text(certificate: Certificate, oid: str) -> str:
    _value(certificate, oid, der.UTF8_STRING)
    value = certificate.extensions[oid].value
    return der.decode_string(value, der.read(value), f"the extension {oid}")


def _bits(certificate: Certificate, oid: str, names: Sequence[str]) -> frozenset[str]:
    octets = _value(certificate, oid, der.BIT_STRING)[1:]
    return frozenset(name for at, name in enumerate(names) if at // 8 < len(octets) and octets[at // 8] & 0x80 >> at % 8)
