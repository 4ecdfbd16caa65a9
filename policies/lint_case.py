"""What ``policies.lint`` judges: a TBSCertificate as read by ``cryptography``, beside what profile, issuer and identity demand of it.

    Case(...).alternatives      # its names in canonical text
    plan_of(profile).critical   # the extensions that should be there

Tables are written down here again rather than taken from ``pkix``: what judges must not share the mistakes of what is judged.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from pkix import der
from pkix.algorithms import KeyKind, SignatureAlgorithm
from pkix.certificate import Certificate
from policies.model import Profile

BASIC_CONSTRAINTS, KEY_USAGE, EXTENDED_KEY_USAGE, POLICIES = "2.5.29.19", "2.5.29.15", "2.5.29.37", "2.5.29.32"
SAN, SKI, AKI, CRL_POINTS, ACCESS = "2.5.29.17", "2.5.29.14", "2.5.29.35", "2.5.29.31", "1.3.6.1.5.5.7.1.1"
NOCHECK = "1.3.6.1.5.5.7.48.1.5"

# RFC 5280 appendix A.1 and X.520: OID, most characters, whether PrintableString.
_ATTRIBUTES = {
    "CN": ("2.5.4.3", 64, False),
    "serialNumber": ("2.5.4.5", 64, True),
    "C": ("2.5.4.6", 2, True),
    "L": ("2.5.4.7", 128, False),
    "ST": ("2.5.4.8", 128, False),
    "O": ("2.5.4.10", 64, False),
    "OU": ("2.5.4.11", 64, False),
}
BOUNDS = {oid: (short, bound, printable) for short, (oid, bound, printable) in _ATTRIBUTES.items()}

_KEYS = {
    bytes.fromhex("301306072a8648ce3d020106082a8648ce3d030107"): (KeyKind.P_256, 65),
    bytes.fromhex("301006072a8648ce3d020106052b81040022"): (KeyKind.P_384, 97),
    bytes.fromhex("301306072a8648ce3d020106082a811ccf5501822d"): (KeyKind.SM2, 65),
    bytes.fromhex("300506032b6570"): (KeyKind.ED25519, 32),
    bytes.fromhex("300b0609608648016503040312"): (KeyKind.ML_DSA_65, 1952),
}
_RSA = bytes.fromhex("300d06092a864886f70d0101010500")

_IDENTITY = re.compile(r"uri:urn:ironroot:device:([a-z0-9-]+):([A-Za-z0-9.-]+)")

_Value = TypeVar("_Value", bound=x509.ExtensionType)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a profile demands of every certificate: extensions with their criticality, and subject templates by OID."""

    critical: Mapping[str, bool]
    key_usage: frozenset[str]
    subject: Sequence[tuple[str, str]]


@dataclass(slots=True)
class Case:
    """A TBSCertificate as read, and what it is held against. ``kind`` is None for a key of a kind or form that we do not certify."""

    profile: Profile
    plan: Plan
    issuer: Certificate | None
    signature: SignatureAlgorithm
    fleet: str | None
    device: str | None
    names: Collection[str] | None
    keys: Collection[KeyKind] | None
    algorithm: bytes
    issuer_name: bytes
    time_tags: Sequence[int]
    not_before: datetime
    not_after: datetime
    subject_name: bytes
    subject: Sequence[tuple[str, str | bytes]]
    spki: bytes
    kind: KeyKind | None
    key_bits: bytes
    extensions: Mapping[str, x509.Extension[x509.ExtensionType]]

    # Filled in from the above: names of the subjectAltName in canonical text, bits of the key usage, purposes as OIDs.
    alternatives: Sequence[str] = ()
    usages: frozenset[str] = frozenset()
    purposes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (san := self.value(SAN, x509.SubjectAlternativeName)) is not None:
            self.alternatives = [text_of(name) for name in san]
        if (usage := self.value(KEY_USAGE, x509.KeyUsage)) is not None:
            self.usages = _usages(usage)
        if (purposes := self.value(EXTENDED_KEY_USAGE, x509.ExtendedKeyUsage)) is not None:
            self.purposes = tuple([purpose.dotted_string for purpose in purposes])
        if self.device is None:
            claims = [match for name in self.alternatives if (match := _IDENTITY.fullmatch(name))]
            if claims:
                self.fleet, self.device = claims[0][1], claims[0][2]

    def value(self, oid: str, kind: type[_Value]) -> _Value | None:
        """What an extension says, None if it is absent."""
        extension = self.extensions.get(oid)
        return extension.value if extension is not None and isinstance(extension.value, kind) else None


_plans: dict[bytes, Plan] = {}


def plan_of(profile: Profile) -> Plan:
    """The plan of a profile; worked out once for each."""
    if (plan := _plans.get(profile.hash)) is not None:
        return plan
    wanted = {
        BASIC_CONSTRAINTS: ("basicConstraints", profile.is_ca),
        KEY_USAGE: ("keyUsage", bool(profile.key_usage)),
        EXTENDED_KEY_USAGE: ("extendedKeyUsage", bool(profile.extended_key_usage)),
        POLICIES: ("certificatePolicies", bool(profile.policies)),
        SAN: ("subjectAltName", bool(profile.san)),
        SKI: ("", True),
        AKI: ("", profile.kind != "root"),
        CRL_POINTS: ("", profile.crl),
        ACCESS: ("", profile.ocsp or profile.issuers),
        NOCHECK: ("", profile.kind == "ocsp-signer"),
    }
    plan = Plan(
        critical={oid: name in profile.critical for oid, (name, present) in wanted.items() if present},
        key_usage=frozenset(profile.key_usage),
        subject=[(_ATTRIBUTES[short][0], text) for short, text in profile.subject if short in _ATTRIBUTES],
    )
    if len(_plans) >= 256:
        _plans.clear()
    _plans[profile.hash] = plan
    return plan


def key_of(tbs: bytes, spki: der.Tlv, certificate: x509.Certificate) -> tuple[KeyKind | None, bytes]:
    """(kind, contents of the BIT STRING) of the subject's key. Raises Malformed or ValueError if it does not parse."""
    algorithm, bits = der.children(tbs, spki)
    identifier, octets = tbs[algorithm.start : algorithm.end], tbs[bits.body : bits.end]
    if bits.tag != der.BIT_STRING or octets[:1] != b"\x00":
        return None, b""
    key = octets[1:]
    if identifier == _RSA:
        public = certificate.public_key()
        size = public.key_size if isinstance(public, rsa.RSAPublicKey) else 0
        named = {2048: KeyKind.RSA_2048, 3072: KeyKind.RSA_3072, 4096: KeyKind.RSA_4096}
        return next((kind for least, kind in reversed(named.items()) if least <= size <= 4096), None), key
    kind, length = _KEYS.get(identifier, (None, 0))
    if len(key) != length or (length in (65, 97) and key[0] != 4):
        return None, key
    return kind, key


_USAGES = (
    ("digitalSignature", "digital_signature"),
    ("nonRepudiation", "content_commitment"),
    ("keyEncipherment", "key_encipherment"),
    ("dataEncipherment", "data_encipherment"),
    ("keyAgreement", "key_agreement"),
    ("keyCertSign", "key_cert_sign"),
    ("cRLSign", "crl_sign"),
)


def _usages(value: x509.KeyUsage) -> frozenset[str]:
    found = [name for name, attribute in _USAGES if getattr(value, attribute)]
    if value.key_agreement:  # the only case in which the parser answers these
        found += [name for name, there in (("encipherOnly", value.encipher_only), ("decipherOnly", value.decipher_only)) if there]
    return frozenset(found)


def text_of(name: x509.GeneralName) -> str:
    """A general name in the canonical text of ``pkix.extensions``; kinds that are never ours under ``other:``."""
    match name:
        case x509.UniformResourceIdentifier():
            return f"uri:{name.value}"
        case x509.DNSName():
            return f"dns:{name.value}"
        case x509.IPAddress():
            return f"ip:{name.value}"
        case x509.RFC822Name():
            return f"email:{name.value}"
        case _:
            return f"other:{name!r}"


def filled(template: str, case: Case) -> str | None:
    """The template with the identity's values; None where it needs a value that is not known here."""
    if case.device is not None:
        template = template.replace("{device}", case.device)
    if case.fleet is not None:
        template = template.replace("{fleet}", case.fleet)
    if "{" in template:
        return None
    return template.removesuffix("?").lower() if template.startswith("dns:") else template
