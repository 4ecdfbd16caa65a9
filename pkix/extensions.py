"""Extensions of certificates, CRLs and OCSP messages: encoders, and the decoders of those that we look into (RFC 5280 4.2, 5.2).

    key_usage("digitalSignature").der                      # SEQUENCE, ready for a TBSCertificate
    subject_alternative_name("dns:plc-7.plant", "ip:::1")  # names in their canonical text
    read_extensions(raw, element)["2.5.29.15"].value

Names in text: ``dns:<host, lower case, A-labels>``, ``ip:<address>``, ``uri:…``, ``email:…``; read only: ``dirname:<RFC 4514>``, and
``other:<hex>`` for the rest. Encoders write what they are asked to write: what a certificate should contain is decided in the profiles.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pkix import der
from pkix.errors import Malformed
from pkix.name import parse_name

if TYPE_CHECKING:
    from pkix.algorithms import PublicKey
    from pkix.certificate import Certificate

SUBJECT_KEY_IDENTIFIER, KEY_USAGE, SUBJECT_ALT_NAME = "2.5.29.14", "2.5.29.15", "2.5.29.17"
BASIC_CONSTRAINTS, CRL_NUMBER, CRL_REASON = "2.5.29.19", "2.5.29.20", "2.5.29.21"
INVALIDITY_DATE, DELTA_CRL_INDICATOR, ISSUING_DISTRIBUTION_POINT = "2.5.29.24", "2.5.29.27", "2.5.29.28"
CRL_DISTRIBUTION_POINTS, CERTIFICATE_POLICIES, AUTHORITY_KEY_IDENTIFIER = "2.5.29.31", "2.5.29.32", "2.5.29.35"
EXTENDED_KEY_USAGE, AUTHORITY_INFO_ACCESS = "2.5.29.37", "1.3.6.1.5.5.7.1.1"
OCSP_NONCE, OCSP_NOCHECK = "1.3.6.1.5.5.7.48.1.2", "1.3.6.1.5.5.7.48.1.5"
_AD_OCSP, _AD_CA_ISSUERS = "1.3.6.1.5.5.7.48.1", "1.3.6.1.5.5.7.48.2"

KEY_USAGES = (
    "digitalSignature",
    "nonRepudiation",
    "keyEncipherment",
    "dataEncipherment",
    "keyAgreement",
    "keyCertSign",
    "cRLSign",
    "encipherOnly",
    "decipherOnly",
)
"""Names of the key usage bits in bit order (RFC 5280 4.2.1.3)."""

EXTENDED_KEY_USAGES = {
    "serverAuth": "1.3.6.1.5.5.7.3.1",
    "clientAuth": "1.3.6.1.5.5.7.3.2",
    "codeSigning": "1.3.6.1.5.5.7.3.3",
    "emailProtection": "1.3.6.1.5.5.7.3.4",
    "timeStamping": "1.3.6.1.5.5.7.3.8",
    "OCSPSigning": "1.3.6.1.5.5.7.3.9",
    "cmcRA": "1.3.6.1.5.5.7.3.28",
    "anyExtendedKeyUsage": "2.5.29.37.0",
}
"""Extended key usages by the names of RFC 5280 4.2.1.12 (cmcRA: RFC 6402)."""

_HOST = re.compile(r"(\*\.)?([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[\x21-\x7e]+")
_EMAIL = re.compile(r"[\x21-\x3f\x41-\x7e]+@[A-Za-z0-9.-]+")


@dataclass(frozen=True, slots=True)
class Extension:
    """One extension: dotted OID, criticality, and the DER that goes inside its OCTET STRING.

    ``content`` is what the value says, in an extension that was read and that is looked into here; else None.
    """

    oid: str
    critical: bool
    value: bytes
    content: Any = field(default=None, compare=False, repr=False)

    @property
    def der(self) -> bytes:
        """The Extension SEQUENCE; ``critical`` is left out when FALSE, its default."""
        return der.sequence(der.oid(self.oid), b"\x01\x01\xff" if self.critical else b"", der.octet_string(self.value))


# --- encoders ----------------------------------------------------------------------------------------------------


def basic_constraints(ca: bool, path_length: int | None = None) -> Extension:
    """BasicConstraints, critical (RFC 5280 4.2.1.9). Raises Malformed on a path length without ``ca``."""
    if path_length is not None and (not ca or path_length < 0):
        raise Malformed("a path length constraint is for CA certificates and not negative")
    parts = (der.boolean(True) if ca else b"", b"" if path_length is None else der.integer(path_length))
    return Extension(BASIC_CONSTRAINTS, True, der.sequence(*parts))


def key_usage(*names: str) -> Extension:
    """KeyUsage, critical, from the names of ``KEY_USAGES``. Raises Malformed on any other name, or none."""
    unknown = sorted(set(names) - set(KEY_USAGES))
    if unknown or not names:
        raise Malformed(f"key usage {', '.join(unknown) or '(none)'}: use one or more of {', '.join(KEY_USAGES)}")
    return Extension(KEY_USAGE, True, der.named_bits(KEY_USAGES.index(name) for name in names))


def extended_key_usage(*purposes: str, critical: bool = False) -> Extension:
    """ExtKeyUsageSyntax from names of ``EXTENDED_KEY_USAGES`` or dotted OIDs. Raises Malformed on anything else, or none."""
    if not purposes:
        raise Malformed("an extended key usage extension needs at least one purpose")
    return Extension(EXTENDED_KEY_USAGE, critical, der.sequence(*(der.oid(EXTENDED_KEY_USAGES.get(p, p)) for p in purposes)))


def subject_alternative_name(*names: str, critical: bool = False) -> Extension:
    """SubjectAltName from names in canonical text (``dns:``, ``ip:``, ``uri:``, ``email:``); critical if the subject is empty.

    Raises:
        Malformed: another prefix, a name that its kind does not allow, or no name at all. An underscore in a ``dns:`` name, which requests
            may have, is not written: it is no character of host names (RFC 1034 3.5, RFC 5280 4.2.1.6).
    """
    if not names:
        raise Malformed("a subject alternative name extension needs at least one name")
    for name in names:
        if name.startswith("dns:") and "_" in name:
            raise Malformed(f"{name!r} has an underscore, which host names have not; write letters, digits and hyphens")
    return Extension(SUBJECT_ALT_NAME, critical, der.sequence(*map(general_name, names)))


def subject_key_identifier(public_key: PublicKey) -> Extension:
    """SubjectKeyIdentifier: SHA-1 of the key bits (RFC 5280 4.2.1.2 (1); GM/T 0015 uses the same)."""
    return Extension(SUBJECT_KEY_IDENTIFIER, False, der.octet_string(public_key.key_identifier))


def authority_key_identifier(issuer: Certificate) -> Extension:
    """AuthorityKeyIdentifier with the issuer's own SKI, copied: issuers compute theirs in different ways.

    Raises:
        Malformed: the issuer's certificate has no SKI (RFC 5280 4.2.1.2 demands one of every CA).
    """
    if issuer.ski is None:
        raise Malformed("the issuer's certificate has no subject key identifier to copy; reissue it with one")
    return Extension(AUTHORITY_KEY_IDENTIFIER, False, der.sequence(der.context(0, issuer.ski, constructed=False)))


def crl_distribution_points(*urls: str) -> Extension:
    """CRLDistributionPoints: one point with fullName for each URL (RFC 5280 4.2.1.13). Raises Malformed if there is none."""
    if not urls:
        raise Malformed("a CRL distribution points extension needs at least one URL")
    points = (der.sequence(der.context(0, der.context(0, general_name(f"uri:{url}")))) for url in urls)
    return Extension(CRL_DISTRIBUTION_POINTS, False, der.sequence(*points))


def authority_information_access(ocsp: Sequence[str] = (), issuers: Sequence[str] = ()) -> Extension:
    """AuthorityInfoAccess: where the OCSP responder and the issuer's certificate are (RFC 5280 4.2.2.1). Raises Malformed if nowhere."""
    access = [(_AD_OCSP, url) for url in ocsp] + [(_AD_CA_ISSUERS, url) for url in issuers]
    if not access:
        raise Malformed("an authority information access extension needs at least one URL")
    descriptions = (der.sequence(der.oid(method), general_name(f"uri:{url}")) for method, url in access)
    return Extension(AUTHORITY_INFO_ACCESS, False, der.sequence(*descriptions))


def certificate_policies(*oids: str) -> Extension:
    """CertificatePolicies: policy OIDs without qualifiers (RFC 5280 4.2.1.4). Raises Malformed if there is none."""
    if not oids:
        raise Malformed("a certificate policies extension needs at least one policy")
    return Extension(CERTIFICATE_POLICIES, False, der.sequence(*(der.sequence(der.oid(policy)) for policy in oids)))


def ocsp_nocheck() -> Extension:
    """id-pkix-ocsp-nocheck: relying parties need not check this OCSP signer's own revocation (RFC 6960 4.2.2.2.1)."""
    return Extension(OCSP_NOCHECK, False, der.null())


def general_name(text: str) -> bytes:
    """GeneralName from canonical text. Raises Malformed on another prefix, or a name that its kind does not allow."""
    kind, _, value = text.partition(":")
    if kind == "dns" and len(value) <= 253 and _HOST.fullmatch(value):
        return der.context(2, value.encode("ascii"), constructed=False)
    if kind == "ip" and "%" not in value:
        try:
            return der.context(7, ipaddress.ip_address(value).packed, constructed=False)
        except ValueError:
            raise Malformed(f"{text!r} is no IP address; write it like ip:192.0.2.7 or ip:2001:db8::7") from None
    if kind == "uri" and _URI.fullmatch(value):
        return der.context(6, value.encode("ascii"), constructed=False)
    if kind == "email" and _EMAIL.fullmatch(value):
        return der.context(1, value.encode("ascii"), constructed=False)
    raise Malformed(f"{text!r} is no name that a certificate can carry; write dns:<lower-case host>, ip:…, uri:… or email:…, in ASCII")


# --- decoders ----------------------------------------------------------------------------------------------------


def read_extensions(data: bytes, element: der.Tlv) -> dict[str, Extension]:
    """The Extensions SEQUENCE at ``element`` by OID, in order of appearance; values stay raw.

    Raises:
        Malformed: not that structure, none in it, or one extension twice (RFC 5280 4.2).
    """
    found: dict[str, Extension] = {}
    for item in _elements(data, element, der.SEQUENCE, "Extensions"):
        extension = read_extension(data, item)
        if extension.oid in found:
            raise Malformed(f"extension {extension.oid} occurs twice; RFC 5280 4.2 allows each once")
        found[extension.oid] = extension
    if not found:
        raise Malformed("an Extensions SEQUENCE with nothing in it; leave it out")
    return found


def read_extension(data: bytes, element: der.Tlv) -> Extension:
    """The Extension SEQUENCE at ``element``; its value stays raw. Raises Malformed."""
    return extension_of(data[element.start : element.end])


def extension_of(octets: bytes, readers: Mapping[str, Callable[[bytes], Any]] = MappingProxyType({})) -> Extension:
    """One whole Extension of bytes that nobody has scanned, looked into by the reader of its OID if there is one. Raises Malformed."""
    parts = der.parts(octets)
    if octets[0] != der.SEQUENCE or not 2 <= len(parts) <= 3:
        raise Malformed("an extension is a SEQUENCE of an identifier, perhaps a BOOLEAN, and a value (RFC 5280 4.1)")
    oid = _identifier(parts[0])
    # critical is DEFAULT FALSE and DER leaves it out; old foreign certificates write it, and it means the same.
    critical = len(parts) == 3 and parts[1] == b"\x01\x01\xff"
    if len(parts) == 3 and not critical and parts[1] != b"\x01\x01\x00":
        raise Malformed(f"extension {oid}: its criticality is no BOOLEAN of 00 or FF")
    if parts[-1][0] != der.OCTET_STRING:
        raise Malformed(f"extension {oid}: its value is no OCTET STRING")
    value = der.contents(parts[-1])
    reader = readers.get(oid)
    return Extension(oid, critical, value, None if reader is None else reader(value))


@lru_cache(maxsize=1024)
def _identifier(element: bytes) -> str:
    if element[0] != der.OID:
        raise Malformed("an extension that does not begin with an OBJECT IDENTIFIER")
    der.check_primitive(element)
    return der.decode_oid(der.contents(element))


def read_basic_constraints(value: bytes) -> tuple[bool, int | None]:
    """(cA, pathLenConstraint). Raises Malformed."""
    parts = _elements(value, _whole(value), der.SEQUENCE, "BasicConstraints")
    ca = False
    if parts and parts[0].tag == der.BOOLEAN:
        ca = der.expect(value, parts.pop(0), der.BOOLEAN, "cA") == b"\xff"
    path_length = None
    if parts:
        path_length = int.from_bytes(_contents(value, parts, 0, der.INTEGER, "pathLenConstraint"), signed=True)
    if len(parts) > 1 or (path_length is not None and path_length < 0):
        raise Malformed("BasicConstraints with more in it than cA and a path length, or a negative one")
    return ca, path_length


def read_key_usage(value: bytes) -> frozenset[str]:
    """Names of the bits that are set. Raises Malformed; bits that RFC 5280 does not name are ignored."""
    bits = der.expect(value, _whole(value), der.BIT_STRING, "KeyUsage")[1:]
    return frozenset(name for at, name in enumerate(KEY_USAGES) if at // 8 < len(bits) and bits[at // 8] & 0x80 >> at % 8)


def read_extended_key_usage(value: bytes) -> tuple[str, ...]:
    """Dotted OIDs in order. Raises Malformed, also when there is none."""
    purposes = _elements(value, _whole(value), der.SEQUENCE, "ExtKeyUsageSyntax")
    if not purposes:
        raise Malformed("an extended key usage extension with no purpose in it")
    return tuple(der.decode_oid(der.expect(value, item, der.OID, "a key purpose")) for item in purposes)


def read_general_names(value: bytes) -> tuple[str, ...]:
    """The names of a SubjectAltName in canonical text. Raises Malformed, also when there is none."""
    names = tuple([_general_name(item) for item in der.parts_of(value, der.SEQUENCE, "GeneralNames")])
    if not names:
        raise Malformed("a list of general names with no name in it")
    return names


def read_general_name(data: bytes, element: der.Tlv) -> str:
    """One GeneralName in canonical text. Raises Malformed on controls, non-ASCII text and odd address lengths."""
    return _general_name(data[element.start : element.end])


def _general_name(octets: bytes) -> str:
    tag, body = octets[0], der.contents(octets)
    if tag in (0x86, 0x82, 0x81):
        text = body.decode("ascii", "replace")
        if not (text and text.isascii() and text.isprintable()):
            raise Malformed("a general name that is empty or has characters outside printable ASCII")
        return f"uri:{text}" if tag == 0x86 else f"dns:{text.lower()}" if tag == 0x82 else f"email:{text}"
    if tag == 0x87:
        try:
            return f"ip:{ipaddress.ip_address(body)}"
        except ValueError:
            raise Malformed(f"an iPAddress of {len(body)} octets, not 4 or 16") from None
    if tag & 0x20:
        der.prescan(octets, max_depth=19)
    if tag == 0xA4:
        return f"dirname:{parse_name(body).text}"
    if tag in (0xA0, 0xA3, 0xA5, 0x88):
        return f"other:{octets.hex()}"
    raise Malformed(f"a general name with tag 0x{tag:02x}, which RFC 5280 4.2.1.6 does not know")


def read_key_identifier(value: bytes) -> bytes:
    """The identifier of a SubjectKeyIdentifier. Raises Malformed."""
    return der.expect(value, _whole(value), der.OCTET_STRING, "SubjectKeyIdentifier")


def read_authority_key_identifier(value: bytes) -> bytes | None:
    """keyIdentifier of an AuthorityKeyIdentifier, None if it names its issuer only by name and serial. Raises Malformed."""
    parts = _elements(value, _whole(value), der.SEQUENCE, "AuthorityKeyIdentifier")
    return next((value[part.body : part.end] for part in parts if part.tag == 0x80), None)


def read_integer(value: bytes) -> int:
    """The non-negative INTEGER of a CRLNumber. Raises Malformed, also when it has more than 20 octets (RFC 5280 5.2.3)."""
    octets = der.expect(value, _whole(value), der.INTEGER, "CRLNumber")
    if len(octets) > 20 or octets[0] >= 0x80:
        raise Malformed("a CRL number that is negative or has more than 20 octets")
    return int.from_bytes(octets)


def read_reason(value: bytes) -> int:
    """CRLReason (RFC 5280 5.3.1). Raises Malformed on codes that it does not know."""
    octets = der.expect(value, _whole(value), der.ENUMERATED, "CRLReason")
    if len(octets) != 1 or octets[0] > 10 or octets[0] == 7:
        raise Malformed("a revocation reason that RFC 5280 5.3.1 does not know")
    return octets[0]


def read_distribution_points(value: bytes) -> tuple[str, ...]:
    """URLs of all points that have a fullName for a complete CRL of the issuer's own (no reasons, no cRLIssuer). Raises Malformed."""
    urls: list[str] = []
    for point in _elements(value, _whole(value), der.SEQUENCE, "CRLDistributionPoints"):
        parts = _elements(value, point, der.SEQUENCE, "a distribution point")
        if len(parts) != 1 or parts[0].tag != 0xA0:
            continue
        for name in der.children(value, parts[0]):
            if name.tag == 0xA0:
                urls += _urls(value, der.children(value, name))
    return tuple(urls)


def read_information_access(value: bytes) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(OCSP URLs, URLs of the issuer's certificate). Raises Malformed."""
    found: dict[str, list[str]] = {_AD_OCSP: [], _AD_CA_ISSUERS: []}
    for item in _elements(value, _whole(value), der.SEQUENCE, "AuthorityInfoAccess"):
        parts = _elements(value, item, der.SEQUENCE, "an access description")
        method = der.decode_oid(_contents(value, parts, 0, der.OID, "an access method"))
        if len(parts) != 2:
            raise Malformed("an access description that is not a method and a location")
        if method in found:
            found[method] += _urls(value, parts[1:])
    return tuple(found[_AD_OCSP]), tuple(found[_AD_CA_ISSUERS])


def _urls(data: bytes, names: Iterable[der.Tlv]) -> Iterator[str]:
    for name in names:
        text = read_general_name(data, name)
        if text.startswith("uri:"):
            yield text[4:]


def _whole(value: bytes) -> der.Tlv:
    # Values sit in OCTET STRINGs, where the scan of the outer object did not look.
    return der.prescan(value)


def _elements(data: bytes, element: der.Tlv, tag: int, what: str) -> list[der.Tlv]:
    if element.tag != tag:
        raise Malformed(f"DER: {what} has tag 0x{element.tag:02x}, not 0x{tag:02x}")
    return der.children(data, element)


def _contents(data: bytes, parts: Sequence[der.Tlv], at: int, tag: int, what: str) -> bytes:
    if not parts:
        raise Malformed(f"DER: {what} is missing")
    return der.expect(data, parts[at], tag, what)
