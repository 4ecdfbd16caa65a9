"""What a device is born with, and its word on its keys.

    identity = manufacture(serial, firmware, now)          # at init
    identity.manufacturer_certificate                      # HSMHOME/manufacturer.pem: what others trust
    attest(identity, obj, now)                             # [key's certificate, device's, manufacturer's], DER

The simulated manufacturer makes three keys for the device and certifies them: one that attests keys, one that signs the checkpoints of the
audit log, and one that backups for this device are wrapped to. Then its own key is dropped: nobody makes a second device under its name.
The device's keys are sealed under the device secret alone, since they have to work while all partitions are locked. The certificates'
form: ``pkix.attestation``.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

import cbor2

from hsm_sim import cka
from hsm_sim.errors import Code, Rejected
from pkix.algorithms import SIGNATURES, KeyKind, PublicKey, load_public_key
from pkix.attestation import FOREVER, Attestation, device_extensions
from pkix.certificate import assemble, build_tbs, parse_certificate
from pkix.errors import IronrootError, Malformed
from pkix.extensions import Extension, authority_key_identifier, basic_constraints, key_usage, subject_key_identifier
from pkix.name import Name, name
from pkix.privatekey import PrivateKey, generate, load_private_key

if TYPE_CHECKING:
    from hsm_sim.objects import Object

HISTORY = 0xC9520001
"""CKA_ number (vendor range) of the attribute that restored objects carry: the serial numbers of the devices before, comma separated."""

_CAPABILITIES = {
    "sign": cka.CKA_SIGN,
    "verify": cka.CKA_VERIFY,
    "encrypt": cka.CKA_ENCRYPT,
    "decrypt": cka.CKA_DECRYPT,
    "wrap": cka.CKA_WRAP,
    "unwrap": cka.CKA_UNWRAP,
    "derive": cka.CKA_DERIVE,
}
_PROTECTION = {
    "local": cka.CKA_LOCAL,
    "sensitive": cka.CKA_SENSITIVE,
    "alwaysSensitive": cka.CKA_ALWAYS_SENSITIVE,
    "extractable": cka.CKA_EXTRACTABLE,
    "neverExtractable": cka.CKA_NEVER_EXTRACTABLE,
}


@dataclass(frozen=True, slots=True)
class Identity:
    """A device's own keys and certificates. ``repr`` shows no key.

    Attributes:
        serial, firmware: as its certificates say them.
        manufacturer_certificate, device_certificate, audit_certificate, transport_certificate: DER.
        device: signs attestations.  audit: signs checkpoints.  transport: what backups for this device are wrapped to (P-256 or SM2).
    """

    serial: str
    firmware: str
    manufacturer_certificate: bytes
    device_certificate: bytes
    audit_certificate: bytes
    transport_certificate: bytes
    device: PrivateKey = field(repr=False)
    audit: PrivateKey = field(repr=False)
    transport: PrivateKey = field(repr=False)

    def to_bytes(self) -> bytes:
        """CBOR with the private keys in it: to be sealed at once."""
        certificates = [self.manufacturer_certificate, self.device_certificate, self.audit_certificate, self.transport_certificate]
        keys = [self.device.to_der(), self.audit.to_der(), self.transport.to_der()]
        return cbor2.dumps([1, self.serial, self.firmware, certificates, keys])

    @classmethod
    def from_bytes(cls, octets: bytes) -> Identity:
        """Raises Malformed."""
        try:
            version, serial, firmware, certificates, keys = cbor2.loads(octets)
        except (cbor2.CBORDecodeError, ValueError, TypeError) as error:
            raise Malformed("the device's own keys cannot be read; restore hsm.db from a backup") from error
        if version != 1 or len(certificates) != 4 or len(keys) != 3:
            raise Malformed("the device's own keys are of another version")
        return cls(serial, firmware, *certificates, *map(load_private_key, keys))


def manufacture(serial: str, firmware: str, now: datetime, *, sm: bool = False) -> Identity:
    """New keys and certificates for the device ``serial``; ``sm``: SM2 throughout, else P-256 and, for the audit log, Ed25519."""
    kind = KeyKind.SM2 if sm else KeyKind.P_256
    manufacturer, device, transport = generate(kind), generate(kind), generate(kind)
    audit = generate(KeyKind.SM2 if sm else KeyKind.ED25519)
    maker = name(("O", "ironroot hsm_sim"), ("CN", f"Simulated manufacturer of {serial}"))
    about = device_extensions(firmware, serial)
    root = _certificate(maker, manufacturer.public_key, None, maker, manufacturer, now, [basic_constraints(True, 1), _CA_USAGE])

    def certified(key: PrivateKey, role: str, extensions: list[Extension]) -> bytes:
        subject = name(("O", "ironroot hsm_sim"), ("CN", role), ("serialNumber", serial))
        return _certificate(subject, key.public_key, root, maker, manufacturer, now, extensions + about)

    return Identity(
        serial,
        firmware,
        root,
        certified(device, "HSM attestation", [basic_constraints(True, 0), _CA_USAGE]),
        certified(audit, "HSM audit log", [basic_constraints(False), key_usage("digitalSignature")]),
        certified(transport, "HSM transport", [basic_constraints(False), key_usage("keyEncipherment" if sm else "keyAgreement")]),
        device,
        audit,
        transport,
    )


def attest(identity: Identity, obj: Object, now: datetime) -> list[bytes]:
    """The attestation of a private key: its certificate, the device's and the manufacturer's, DER.

    Raises Rejected: KEY_TYPE_INCONSISTENT (no private key, or one that no certificate can hold).
    """
    if obj.cls != cka.CKO_PRIVATE_KEY or obj.key is None:
        raise Rejected(Code.KEY_TYPE_INCONSISTENT, "attestations are for private keys: a secret key has no public half to name it by")
    try:
        public = load_public_key(obj.key.spki)
    except IronrootError as error:
        raise Rejected(Code.KEY_TYPE_INCONSISTENT, f"this key cannot be put into a certificate: {error}") from error
    device = parse_certificate(identity.device_certificate)
    subject = name(("O", "ironroot hsm_sim"), ("CN", f"key {obj.id.hex()}"), ("serialNumber", identity.serial))
    said = attestation(identity, obj, now).extensions()
    extensions = [basic_constraints(False), key_usage("digitalSignature"), *said]
    certificate = _certificate(subject, public, device.der, device.subject, identity.device, now, extensions)
    return [certificate, identity.device_certificate, identity.manufacturer_certificate]


def attestation(identity: Identity, obj: Object, now: datetime) -> Attestation:
    """What is said about ``obj``, from its attributes; only what they hold as true."""
    return Attestation(
        spki=b"" if obj.key is None else obj.key.spki,
        firmware=identity.firmware,
        serial=identity.serial,
        partition=obj.partition,
        label=obj.label,
        object_id=obj.id,
        origin=obj.origin,
        capabilities=frozenset(name for name, number in _CAPABILITIES.items() if obj.attributes.get(number) is True),
        protection=frozenset(name for name, number in _PROTECTION.items() if obj.attributes.get(number) is True),
        history=history(obj),
        at=now,
    )


def history(obj: Object) -> tuple[str, ...]:
    """Serial numbers of the devices that ``obj`` was restored from, oldest first."""
    before = obj.attributes.get(HISTORY, b"")
    return tuple(before.decode().split(",")) if isinstance(before, bytes) and before else ()


_CA_USAGE = key_usage("keyCertSign")


def _certificate(
    subject: Name, public: PublicKey, issuer: bytes | None, issuer_name: Name, key: PrivateKey, now: datetime, extensions: list[Extension]
) -> bytes:
    """DER. ``issuer``: the issuer's certificate; None for a self-signed one."""
    identifiers = [subject_key_identifier(public)]
    if issuer is not None:
        identifiers.append(authority_key_identifier(parse_certificate(issuer)))
    tbs = build_tbs(
        serial=secrets.randbits(126) | 1 << 126,
        issuer=issuer_name,
        subject=subject,
        not_before=now,
        not_after=FOREVER,
        public_key=public,
        signature=SIGNATURES[key.kind],
        extensions=[*extensions, *identifiers],
    )
    return assemble(tbs, SIGNATURES[key.kind], key.sign(tbs))
