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
from functools import lru_cache
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
_ISSUER_KEY_IDENTIFIER_FRAME = b"\x30\x1f\x06\x03\x55\x1d\x23\x04\x18\x30\x16\x80\x14"
"""The same of AuthorityKeyIdentifier: SEQUENCE { 2.5.29.35, OCTET STRING { SEQUENCE { [0] } } }."""

_NOTHING: frozenset[str] = frozenset()

_load_public_key = lru_cache(maxsize=256)(load_public_key)
_name_of_ca = lru_cache(maxsize=256)(parse_name)
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
        critical: which of them are critical.
        sha256: of the whole: its fingerprint.
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
    critical: tuple[str, ...]
    sha256: bytes

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

    @property
    def is_ca(self) -> bool:
        """cA of BasicConstraints; False where absent."""
        found = self.extensions.get(extensions.BASIC_CONSTRAINTS)
        return found is not None and found.content[0] is True

    @property
    def path_length(self) -> int | None:
        """pathLenConstraint of BasicConstraints."""
        found = self.extensions.get(extensions.BASIC_CONSTRAINTS)
        length: int | None = None if found is None else found.content[1]
        return length

    @property
    def key_usage(self) -> frozenset[str]:
        """Names of ``pkix.extensions.KEY_USAGES``; empty where absent."""
        found = self.extensions.get(extensions.KEY_USAGE)
        return _NOTHING if found is None else found.content

    @property
    def extended_key_usage(self) -> tuple[str, ...]:
        """Dotted OIDs; empty where absent."""
        found = self.extensions.get(extensions.EXTENDED_KEY_USAGE)
        return () if found is None else found.content

    @property
    def names(self) -> tuple[str, ...]:
        """SubjectAltName in canonical text (``pkix.extensions``); empty where absent."""
        found = self.extensions.get(extensions.SUBJECT_ALT_NAME)
        return () if found is None else found.content

    @property
    def ski(self) -> bytes | None:
        """Identifier of the subject's key."""
        found = self.extensions.get(extensions.SUBJECT_KEY_IDENTIFIER)
        return None if found is None else found.content

    @property
    def aki(self) -> bytes | None:
        """Identifier of the issuer's key."""
        found = self.extensions.get(extensions.AUTHORITY_KEY_IDENTIFIER)
        return None if found is None else found.content

    @property
    def ocsp_urls(self) -> tuple[str, ...]:
        """Where OCSP responders are."""
        found = self.extensions.get(extensions.AUTHORITY_INFO_ACCESS)
        return () if found is None else found.content[0]

    @property
    def issuer_urls(self) -> tuple[str, ...]:
        """Where certificates of the issuer are."""
        found = self.extensions.get(extensions.AUTHORITY_INFO_ACCESS)
        return () if found is None else found.content[1]

    @property
    def crl_urls(self) -> tuple[str, ...]:
        """Where complete CRLs of the issuer are."""
        found = self.extensions.get(extensions.CRL_DISTRIBUTION_POINTS)
        return () if found is None else found.content

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
    tbs, outer, signature = _signed_parts(raw)
    version, serial, inner, issuer, validity, subject, spki, *rest = _tbs_fields(tbs)
    # What follows is der.prescan in pieces: every element is scanned, but what many certificates have in common only once.
    if inner != _scan(outer):
        raise Malformed("certificate: the signature algorithm inside differs from the one outside (RFC 5280 4.1.1.2)")
    der.check_primitive(serial)
    if len(serial) > 22:
        raise Malformed("certificate: a serial number of more than 20 octets (RFC 5280 4.1.2.2)")
    times = der.parts(validity)
    if len(times) != 2:
        raise Malformed("certificate: its validity is not two times")
    if not is_framed(spki):
        der.prescan(spki)
    found, critical = _extensions(version, rest)
    return Certificate(
        der=raw,
        tbs=tbs,
        serial=int.from_bytes(serial[2:], signed=True),
        issuer=_name_of_ca(issuer),
        subject=_name_of_ca(subject) if extensions.BASIC_CONSTRAINTS in found else parse_name(subject),
        not_before=der.moment(times[0]),
        not_after=der.moment(times[1]),
        spki=spki,
        algorithm=outer,
        signature=_signature_octets(signature),
        extensions=found,
        critical=tuple(critical),
        sha256=hashlib.sha256(raw).digest(),
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
    tbs, algorithm, signature = _signed_parts(raw)
    return tbs, algorithm, _signature_octets(signature)


def verify_signed(raw: bytes, issuer_key: PublicKey) -> None:
    """Checks the signature on a certificate, CRL or CSR with ``issuer_key``; SM2 always with the default id.

    Raises:
        BadSignature: it does not verify.
        Unsupported: its algorithm is none that we take, or does not go with the key.
        Malformed: not a signed object.
    """
    tbs, algorithm, signature = split(raw)
    issuer_key.verify(signature, tbs, _signature_algorithm(algorithm))


def _signed_parts(raw: bytes) -> list[bytes]:
    parts = der.parts_of(raw, der.SEQUENCE, "a signed object")
    if [part[0] for part in parts] != [der.SEQUENCE, der.SEQUENCE, der.BIT_STRING]:
        raise Malformed("not a certificate or other signed object: a SEQUENCE of content, algorithm and signature is expected")
    return parts


def _signature_octets(signature: bytes) -> bytes:
    octets = der.contents(signature)
    if not octets or octets[0]:
        raise Malformed("a signature that is not whole octets")
    return octets[1:]


_FIELD_TAGS = [der.INTEGER, der.SEQUENCE, der.SEQUENCE, der.SEQUENCE, der.SEQUENCE, der.SEQUENCE]


def _tbs_fields(tbs: bytes) -> list[bytes]:
    """version (no octets if absent), serial, signature, issuer, validity, subject, spki, and what follows."""
    fields = der.parts(tbs)
    if not fields or fields[0][0] != 0xA0:
        fields.insert(0, b"")
    if [field[0] for field in fields[1:7]] != _FIELD_TAGS:
        raise Malformed("not a certificate: its fields are not those of RFC 5280 4.1")
    return fields


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


def _extension(octets: bytes) -> Extension:
    """One Extension of bytes from outside, looked into if we know how. Raises Malformed."""
    if len(octets) == 31 and octets.startswith(_KEY_IDENTIFIER_FRAME):
        return Extension(extensions.SUBJECT_KEY_IDENTIFIER, False, octets[9:], octets[11:])
    if len(octets) == 33 and octets.startswith(_ISSUER_KEY_IDENTIFIER_FRAME):
        return Extension(extensions.AUTHORITY_KEY_IDENTIFIER, False, octets[9:], octets[13:])
    return extensions.extension_of(octets, _READERS)


_shared_extension = lru_cache(maxsize=2048)(_extension)
"""Usages, places of status and the issuer's identifier are the same in all certificates of an authority."""
_OWN = frozenset(der.oid(oid)[2:] for oid in (extensions.SUBJECT_KEY_IDENTIFIER, extensions.SUBJECT_ALT_NAME))
"""The key's identifier and names are not."""
_VERSIONS = {b"": 1, der.context(0, der.integer(1)): 2, _VERSION_3: 3}
# issuerUniqueID [1] and subjectUniqueID [2], from version 2; extensions [3], in version 3; in this order.
_UNIQUE = (b"", b"\x81", b"\x82", b"\x81\x82")
_LATER_FIELDS = {1: frozenset(_UNIQUE[:1]), 2: frozenset(_UNIQUE), 3: frozenset(_UNIQUE).union(tags + b"\xa3" for tags in _UNIQUE)}


def _extensions(version: bytes, rest: Sequence[bytes]) -> tuple[dict[str, Extension], list[str]]:
    """All extensions, and which of them are critical."""
    number = _VERSIONS.get(version)
    if number is None:
        raise Malformed("certificate: a version that is none of 1, 2 and 3")
    tags = bytes([field[0] for field in rest])
    if tags not in _LATER_FIELDS[number]:
        raise Malformed("certificate: fields after the public key that its version does not have")
    if tags[-1:] != b"\xa3":
        return {}, []
    inner = der.parts(rest[-1])
    if len(inner) != 1 or inner[0][0] != der.SEQUENCE:
        raise Malformed("certificate: its extensions are not one SEQUENCE")
    found: dict[str, Extension] = {}
    critical = []
    listed = der.parts(inner[0])
    for octets in listed:
        # The octets of an identifier of id-ce stand here; of others, something else does.
        own = octets[4:7] in _OWN or len(octets) > der.SHARED
        extension = _extension(octets) if own else _shared_extension(octets)
        found[extension.oid] = extension
        if extension.critical:
            critical.append(extension.oid)
    if len(found) != len(listed):
        raise Malformed("certificate: an extension that occurs twice; RFC 5280 4.2 allows each once")
    if not found:
        raise Malformed("an Extensions SEQUENCE with nothing in it; leave it out")
    return found, critical


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
