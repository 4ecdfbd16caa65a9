"""X.509 certificates: read strictly, written from templates (RFC 5280 4.1).

    certificate = parse_certificate(raw)          # any bytes: a Certificate, or Malformed
    certificate.names, certificate.public_key     # a key that policy refuses shows when it is asked for
    verify_signed(raw, issuer.public_key)         # certificates, CRLs and CSRs alike

    template = TbsTemplate(issuer.subject, SIGNATURES[kind], static_extensions)
    tbs = template.fill(serial, not_before, not_after, subject, public_key)
    assemble(tbs, SIGNATURES[kind], signature)

Signatures of any object of the shape SEQUENCE { tbs, AlgorithmIdentifier, BIT STRING } are split, assembled and checked here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache
from typing import Any

from pkix import der, extensions, pem
from pkix.algorithms import KeyKind, PublicKey, SignatureAlgorithm, check_public_key, is_framed, load_public_key, signature_algorithm
from pkix.errors import Malformed
from pkix.extensions import Extension
from pkix.name import Name, parse_name

MAX_SIZE = 65536
_VERSION_3 = der.context(0, der.integer(2))
_KEY_IDENTIFIER_FRAME = b"\x30\x1d\x06\x03\x55\x1d\x0e\x04\x16\x04\x14"
"""SubjectKeyIdentifier up to its 20 octets: SEQUENCE { 2.5.29.14, OCTET STRING { OCTET STRING } }."""

_load_public_key = lru_cache(maxsize=256)(load_public_key)
_issuer_name = lru_cache(maxsize=256)(parse_name)
_signature_algorithm = lru_cache(maxsize=64)(signature_algorithm)


@dataclass(frozen=True, eq=False, repr=False)
class Certificate:
    """A certificate that parsed. Two are equal if their octets are.

    What the issuer wrote is here as read; ``public_key`` and ``signature_algorithm`` are judged only when asked for, so that
    certificates of others can be looked at whatever they hold. Times are aware, UTC, inclusive at both ends.

    Attributes:
        der, tbs, spki: the whole, the signed part, and the SubjectPublicKeyInfo as it stands there.
        serial, issuer, subject, not_before, not_after: as in RFC 5280 4.1.2.
        algorithm: DER of the signature AlgorithmIdentifier; the same inside and outside.
        signature: contents of the signature BIT STRING.
        extensions: all of them by dotted OID, in order.
        ski, aki: key identifiers, None where absent.
        is_ca, path_length: BasicConstraints; ``is_ca`` is False where absent.
        key_usage: names; empty where absent. extended_key_usage: dotted OIDs; empty where absent.
        names: SubjectAltName in canonical text (``pkix.extensions``).
        ocsp_urls, crl_urls, issuer_urls: where status and issuer are found.
    """

    der: bytes
    tbs: bytes
    serial: int
    issuer: Name
    subject: Name
    not_before: datetime
    not_after: datetime
    spki: bytes
    algorithm: bytes
    signature: bytes
    extensions: Mapping[str, Extension]
    ski: bytes | None
    aki: bytes | None
    is_ca: bool
    path_length: int | None
    key_usage: frozenset[str]
    extended_key_usage: tuple[str, ...]
    names: tuple[str, ...]
    ocsp_urls: tuple[str, ...]
    crl_urls: tuple[str, ...]
    issuer_urls: tuple[str, ...]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Certificate) and self.der == other.der

    def __hash__(self) -> int:
        return hash(self.der)

    def __repr__(self) -> str:
        return f"<Certificate {self.subject.text!r}, serial {self.serial:x}>"

    @property
    def public_key(self) -> PublicKey:
        """The subject's key. Raises WeakKey, Unsupported or Malformed if key policy refuses it."""
        return _load_public_key(self.spki)

    @property
    def key_kind(self) -> KeyKind:
        """The kind of the subject's key. Raises as ``public_key``, and costs less: nothing is made ready to verify with it."""
        return check_public_key(self.spki) or self.public_key.kind

    @property
    def signature_algorithm(self) -> SignatureAlgorithm:
        """What the issuer signed with. Raises Unsupported if we do not verify that (SHA-1, MD5, …)."""
        return _signature_algorithm(self.algorithm)

    @cached_property
    def sha256(self) -> bytes:
        """SHA-256 of the whole certificate: its fingerprint."""
        return hashlib.sha256(self.der).digest()

    @property
    def pem(self) -> str:
        """The certificate in PEM (RFC 7468)."""
        return pem.encode("CERTIFICATE", self.der)


# --- reading -----------------------------------------------------------------------------------------------------


def parse_certificate(raw: bytes) -> Certificate:
    """Reads one DER certificate of at most 64 KiB.

    Unknown extensions are kept raw, whatever their criticality: path validation decides about them. Versions 1 and 2 are read too
    (old roots).

    Raises:
        Malformed: no certificate, BER instead of DER, inner signature algorithm unlike the outer, a broken extension.
    """
    if len(raw) > MAX_SIZE:
        raise Malformed(f"DER: {len(raw)} octets, at most {MAX_SIZE} are taken here")
    root = der.read(raw)
    if root.end != len(raw):
        raise Malformed(f"DER: {len(raw) - root.end} octets behind the end of the object")
    tbs, algorithm, signature = _signed_parts(raw, root)
    fields = _tbs_fields(raw, tbs)
    version, serial, inner, issuer, validity, subject, spki = fields[:7]
    # What follows is der.prescan in pieces: every element is scanned, but what many certificates have in common only once.
    outer = _scan(raw[algorithm.start : algorithm.end])
    if raw[inner.start : inner.end] != outer:
        raise Malformed("certificate: the signature algorithm inside differs from the one outside (RFC 5280 4.1.1.2)")
    number = der.expect(raw, serial, der.INTEGER, "the serial number")
    der.check_primitive(raw, serial)
    if len(number) > 20:
        raise Malformed("certificate: a serial number of more than 20 octets (RFC 5280 4.1.2.2)")
    times = der.children(raw, validity)
    if len(times) != 2:
        raise Malformed("certificate: its validity is not two times")
    key = raw[spki.start : spki.end]
    if not is_framed(key):
        der.prescan(key)
    found, values = _extensions(raw, version, fields[7:])
    is_ca, path_length = values.get(extensions.BASIC_CONSTRAINTS, (False, None))
    ocsp_urls, issuer_urls = values.get(extensions.AUTHORITY_INFO_ACCESS, ((), ()))
    return Certificate(
        der=raw,
        tbs=raw[tbs.start : tbs.end],
        serial=int.from_bytes(number, signed=True),
        issuer=_issuer_name(raw[issuer.start : issuer.end]),
        subject=parse_name(raw[subject.start : subject.end]),
        not_before=der.decode_time(raw, times[0]),
        not_after=der.decode_time(raw, times[1]),
        spki=key,
        algorithm=outer,
        signature=_signature_octets(raw, signature),
        extensions=found,
        ski=values.get(extensions.SUBJECT_KEY_IDENTIFIER),
        aki=values.get(extensions.AUTHORITY_KEY_IDENTIFIER),
        is_ca=is_ca,
        path_length=path_length,
        key_usage=values.get(extensions.KEY_USAGE, _NOTHING),
        extended_key_usage=values.get(extensions.EXTENDED_KEY_USAGE, ()),
        names=values.get(extensions.SUBJECT_ALT_NAME, ()),
        ocsp_urls=ocsp_urls,
        crl_urls=values.get(extensions.CRL_DISTRIBUTION_POINTS, ()),
        issuer_urls=issuer_urls,
    )


def _scan(octets: bytes) -> bytes:
    if len(octets) <= der.SHARED:
        _scanned(octets)
    else:
        der.prescan(octets)
    return octets


_scanned = lru_cache(maxsize=256)(der.prescan)


def split(raw: bytes) -> tuple[bytes, bytes, bytes]:
    """A signed object as (DER of what is signed, DER of the AlgorithmIdentifier, signature octets).

    For certificates, CRLs and CSRs alike; looks no deeper than that. Raises Malformed.
    """
    root = der.read(raw)
    if root.end != len(raw):
        raise Malformed(f"DER: {len(raw) - root.end} octets behind the end of the object")
    tbs, algorithm, signature = _signed_parts(raw, root)
    return raw[tbs.start : tbs.end], raw[algorithm.start : algorithm.end], _signature_octets(raw, signature)


def verify_signed(raw: bytes, issuer_key: PublicKey) -> None:
    """Checks the signature on a certificate, CRL or CSR with ``issuer_key``; SM2 always with the default id.

    Raises:
        BadSignature: it does not verify.
        Unsupported: its algorithm is none that we take, or does not go with the key.
        Malformed: not a signed object.
    """
    tbs, algorithm, signature = split(raw)
    issuer_key.verify(signature, tbs, _signature_algorithm(algorithm))


def _signed_parts(raw: bytes, root: der.Tlv) -> list[der.Tlv]:
    parts = der.children(raw, root)
    if root.tag != der.SEQUENCE or [part.tag for part in parts] != [der.SEQUENCE, der.SEQUENCE, der.BIT_STRING]:
        raise Malformed("not a certificate or other signed object: a SEQUENCE of content, algorithm and signature is expected")
    return parts


def _signature_octets(raw: bytes, signature: der.Tlv) -> bytes:
    octets = raw[signature.body : signature.end]
    if not octets or octets[0]:
        raise Malformed("a signature that is not whole octets")
    return octets[1:]


_FIELD_TAGS = [der.INTEGER, der.SEQUENCE, der.SEQUENCE, der.SEQUENCE, der.SEQUENCE, der.SEQUENCE]


def _tbs_fields(raw: bytes, tbs: der.Tlv) -> list[der.Tlv]:
    """version (the tbs itself if absent), serial, signature, issuer, validity, subject, spki, and what follows."""
    fields = der.children(raw, tbs)
    if not fields or fields[0].tag != 0xA0:
        fields.insert(0, tbs)
    if [field.tag for field in fields[1:7]] != _FIELD_TAGS:
        raise Malformed("not a certificate: its fields are not those of RFC 5280 4.1")
    return fields


_NOTHING: frozenset[str] = frozenset()
_READERS: Mapping[str, Callable[[bytes], Any]] = {
    extensions.BASIC_CONSTRAINTS: extensions.read_basic_constraints,
    extensions.KEY_USAGE: extensions.read_key_usage,
    extensions.EXTENDED_KEY_USAGE: extensions.read_extended_key_usage,
    extensions.SUBJECT_ALT_NAME: extensions.read_general_names,
    extensions.SUBJECT_KEY_IDENTIFIER: extensions.read_key_identifier,
    extensions.AUTHORITY_KEY_IDENTIFIER: extensions.read_authority_key_identifier,
    extensions.CRL_DISTRIBUTION_POINTS: extensions.read_distribution_points,
    extensions.AUTHORITY_INFO_ACCESS: extensions.read_information_access,
}


def _extension(octets: bytes) -> tuple[Extension, Any]:
    """One Extension of bytes from outside, and what its value says if that is looked into. Raises Malformed."""
    root = der.read(octets)
    if root.tag != der.SEQUENCE:
        raise Malformed("certificate: an extension that is no SEQUENCE (RFC 5280 4.1)")
    parts = der.children(octets, root)
    for part in parts:
        der.check_primitive(octets, part)
    extension = extensions.extension_of(octets, parts)
    reader = _READERS.get(extension.oid)
    return extension, None if reader is None else reader(extension.value)


_ALTERNATIVES = der.oid(extensions.SUBJECT_ALT_NAME)
_shared_extension = lru_cache(maxsize=2048)(_extension)
"""Usages, places of status and the issuer's identifier are the same in all certificates of an authority; names are not."""


def _extensions(raw: bytes, version: der.Tlv, rest: Sequence[der.Tlv]) -> tuple[dict[str, Extension], dict[str, Any]]:
    """All extensions, and the values of those that are looked into."""
    number = 0
    if version.tag == 0xA0:
        number = int.from_bytes(raw[version.body : version.end]) - 0x020100  # INTEGER of one octet: 02 01 NN
        if number not in (1, 2):
            raise Malformed("certificate: a version that is none of 1, 2 and 3")
    # issuerUniqueID [1] and subjectUniqueID [2], from version 2; extensions [3], in version 3; in this order.
    tags = [field.tag for field in rest]
    allowed = [tag for tag in (0x81, 0x82, 0xA3) if tag in tags and number >= (2 if tag == 0xA3 else 1)]
    if tags != allowed:
        raise Malformed("certificate: fields after the public key that its version does not have")
    if not tags or tags[-1] != 0xA3:
        return {}, {}
    inner = der.children(raw, rest[-1])
    if len(inner) != 1 or inner[0].tag != der.SEQUENCE:
        raise Malformed("certificate: its extensions are not one SEQUENCE")
    found: dict[str, Extension] = {}
    values: dict[str, Any] = {}
    elements = der.children(raw, inner[0])
    for _, start, _, end in elements:
        octets = raw[start:end]
        if len(octets) == 31 and octets.startswith(_KEY_IDENTIFIER_FRAME):
            extension, value = Extension(extensions.SUBJECT_KEY_IDENTIFIER, False, octets[9:]), octets[11:]
        elif len(octets) > der.SHARED or octets[2:7] == _ALTERNATIVES:
            extension, value = _extension(octets)
        else:
            extension, value = _shared_extension(octets)
        oid = extension.oid
        found[oid] = extension
        if value is not None:
            values[oid] = value
    if len(found) != len(elements):
        raise Malformed("certificate: an extension that occurs twice; RFC 5280 4.2 allows each once")
    if not found:
        raise Malformed("an Extensions SEQUENCE with nothing in it; leave it out")
    return found, values


# --- writing -----------------------------------------------------------------------------------------------------


class TbsTemplate:
    """TBSCertificates of one issuer and one shape: what never changes is encoded once, here.

    Args:
        issuer: the issuer's subject.
        signature: what it signs with.
        static: extensions of every certificate; the subject key identifier is added to them for each key.
    """

    def __init__(self, issuer: Name, signature: SignatureAlgorithm, static: Sequence[Extension] = ()) -> None:
        self._issuer = signature.der + issuer.der
        self._static = b"".join(extension.der for extension in static)

    def fill(
        self,
        serial: int,
        not_before: datetime,
        not_after: datetime,
        subject: Name,
        public_key: PublicKey,
        extensions: Sequence[Extension] = (),
    ) -> bytes:
        """DER of the TBSCertificate: static extensions, then the subject key identifier, then ``extensions``."""
        listed = self._static + _KEY_IDENTIFIER_FRAME + public_key.key_identifier
        for extension in extensions:
            listed += extension.der
        return _tbs(serial, self._issuer, not_before, not_after, subject, public_key, listed)


def build_tbs(
    *,
    serial: int,
    issuer: Name,
    subject: Name,
    not_before: datetime,
    not_after: datetime,
    public_key: PublicKey,
    signature: SignatureAlgorithm,
    extensions: Sequence[Extension],
) -> bytes:
    """DER of a TBSCertificate with exactly ``extensions`` in their order; for what is issued once (roots, tests)."""
    listed = b"".join(extension.der for extension in extensions)
    return _tbs(serial, signature.der + issuer.der, not_before, not_after, subject, public_key, listed)


def assemble(tbs: bytes, algorithm: SignatureAlgorithm, signature: bytes) -> bytes:
    """SEQUENCE { tbs, AlgorithmIdentifier, BIT STRING }: the certificate, CRL or CSR."""
    return der.sequence(tbs, algorithm.der, der.bit_string(signature))


def _tbs(
    serial: int, issuer: bytes, not_before: datetime, not_after: datetime, subject: Name, public_key: PublicKey, listed: bytes
) -> bytes:
    return der.sequence(
        _VERSION_3,
        der.integer(serial),
        issuer,
        der.sequence(der.time(not_before), der.time(not_after)),
        subject.der,
        public_key.spki,
        der.context(3, der.sequence(listed)) if listed else b"",
    )
