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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache

from pkix import der, extensions, pem
from pkix.algorithms import PublicKey, SignatureAlgorithm, load_public_key, signature_algorithm
from pkix.errors import Malformed
from pkix.extensions import Extension
from pkix.name import Name, parse_name

MAX_SIZE = 65536
_VERSION_3 = der.context(0, der.integer(2))

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
    root = der.prescan(raw, max_size=MAX_SIZE)
    tbs, algorithm, signature = _signed_parts(raw, root)
    fields = _tbs_fields(raw, tbs)
    version, serial, inner, issuer, validity, subject, spki = fields[:7]
    found = _extensions(raw, version, fields[7:])
    outer = raw[algorithm.start : algorithm.end]
    if raw[inner.start : inner.end] != outer:
        raise Malformed("certificate: the signature algorithm inside differs from the one outside (RFC 5280 4.1.1.2)")
    times = der.children(raw, validity)
    if len(times) != 2:
        raise Malformed("certificate: its validity is not two times")
    number = der.expect(raw, serial, der.INTEGER, "the serial number")
    if len(number) > 20:
        raise Malformed("certificate: a serial number of more than 20 octets (RFC 5280 4.1.2.2)")

    def value(oid: str) -> bytes | None:
        extension = found.get(oid)
        return None if extension is None else extension.value

    ski, aki = value(extensions.SUBJECT_KEY_IDENTIFIER), value(extensions.AUTHORITY_KEY_IDENTIFIER)
    constraints, usage = value(extensions.BASIC_CONSTRAINTS), value(extensions.KEY_USAGE)
    purposes, alternatives = value(extensions.EXTENDED_KEY_USAGE), value(extensions.SUBJECT_ALT_NAME)
    points, access = value(extensions.CRL_DISTRIBUTION_POINTS), value(extensions.AUTHORITY_INFO_ACCESS)
    is_ca, path_length = extensions.read_basic_constraints(constraints) if constraints is not None else (False, None)
    ocsp_urls, issuer_urls = extensions.read_information_access(access) if access is not None else ((), ())
    return Certificate(
        der=raw,
        tbs=raw[tbs.start : tbs.end],
        serial=int.from_bytes(number, signed=True),
        issuer=_issuer_name(raw[issuer.start : issuer.end]),
        subject=parse_name(raw[subject.start : subject.end]),
        not_before=der.decode_time(raw, times[0]),
        not_after=der.decode_time(raw, times[1]),
        spki=raw[spki.start : spki.end],
        algorithm=outer,
        signature=_signature_octets(raw, signature),
        extensions=found,
        ski=extensions.read_key_identifier(ski) if ski is not None else None,
        aki=extensions.read_authority_key_identifier(aki) if aki is not None else None,
        is_ca=is_ca,
        path_length=path_length,
        key_usage=extensions.read_key_usage(usage) if usage is not None else frozenset(),
        extended_key_usage=extensions.read_extended_key_usage(purposes) if purposes is not None else (),
        names=extensions.read_general_names(alternatives) if alternatives is not None else (),
        ocsp_urls=ocsp_urls,
        crl_urls=extensions.read_distribution_points(points) if points is not None else (),
        issuer_urls=issuer_urls,
    )


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


def _extensions(raw: bytes, version: der.Tlv, rest: Sequence[der.Tlv]) -> dict[str, Extension]:
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
        return {}
    inner = der.children(raw, rest[-1])
    if len(inner) != 1:
        raise Malformed("certificate: its extensions are not one SEQUENCE")
    return extensions.read_extensions(raw, inner[0])


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
        # SubjectKeyIdentifier written out: SEQUENCE { 2.5.29.14, OCTET STRING { OCTET STRING of 20 octets } }.
        listed = self._static + b"\x30\x1d\x06\x03\x55\x1d\x0e\x04\x16\x04\x14" + public_key.key_identifier
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
