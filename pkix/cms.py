"""Cryptographic Message Syntax: bundles of certificates, and messages signed by one device (RFC 5652).

    certs_only([certificate.der, issuer.der])         # what EST answers with (RFC 7030 4.1.3)
    parse_certs_only(raw)

    raw = sign_data(csr, key, certificate, now=now)   # content inside, signed attributes, one signer
    signed = parse_signed_data(raw)                   # the signature held; whether to trust signed.certificate is the caller's question

``parse_signed_data`` takes exactly the shape that ``sign_data`` makes, and ``openssl cms -sign -nodetach -binary`` too: id-data inside, one
signer named by issuer and serial number and with its certificate included, contentType and messageDigest signed. SM2 signs with SM3
and the id 1234567812345678 under RFC 5652's own object identifiers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from hmac import compare_digest

from pkix import der, digest
from pkix.algorithms import SIGNATURES, KeyKind, SignatureAlgorithm, signature_algorithm
from pkix.certificate import Certificate, parse_certificate
from pkix.errors import BadSignature, Malformed, Unsupported
from pkix.privatekey import PrivateKey

ID_DATA, ID_SIGNED_DATA = "1.2.840.113549.1.7.1", "1.2.840.113549.1.7.2"
_CONTENT_TYPE, _MESSAGE_DIGEST, _SIGNING_TIME = "1.2.840.113549.1.9.3", "1.2.840.113549.1.9.4", "1.2.840.113549.1.9.5"
_MAX_BUNDLE = 1 << 20

_DIGEST_OF = {KeyKind.P_384: "sha384", KeyKind.ED25519: "sha512", KeyKind.ML_DSA_65: "sha512", KeyKind.SM2: "sm3"}
"""Digest that goes with a key's signature (RFC 5754, 8419 3.1, 9882 3.3); SHA-256 for all others."""

_RSA_ENCRYPTION = der.oid("1.2.840.113549.1.1.1")
_RSA_WITH = {"sha256": "1.2.840.113549.1.1.11", "sha384": "1.2.840.113549.1.1.12", "sha512": "1.2.840.113549.1.1.13"}


@dataclass(frozen=True, slots=True)
class SignedData:
    """A message whose signature by ``certificate`` held; nothing is said about the certificate itself.

    ``certificates`` are all that came along, the signer's among them. ``signing_time`` is the signer's claim, None if it made none.
    """

    content: bytes
    certificate: Certificate
    certificates: tuple[Certificate, ...]
    signing_time: datetime | None


# --- bundles of certificates ---------------------------------------------------------------------------------------


def certs_only(certificates: Sequence[bytes]) -> bytes:
    """SignedData without content and signers around DER certificates (the degenerate form of RFC 5652 5.2).

    They form a SET, so that DER decides their order: readers find the way from leaf to root by issuer names.
    """
    return _signed_data([], der.sequence(der.oid(ID_DATA)), certificates, [])


def parse_certs_only(raw: bytes) -> list[bytes]:
    """The certificates of such a bundle, at most 1 MiB in all, as they stand there: not parsed yet.

    Raises:
        Malformed: another structure, or one with signers (that would be a signed message).
        Unsupported: attribute certificates and other things that are no certificate.
    """
    parts = _read_signed_data(raw, _MAX_BUNDLE)
    if parts.signers or len(parts.content) != 1:
        raise Malformed("CMS: a signed message where a bundle of certificates is expected")
    return parts.certificates


# --- signed messages -----------------------------------------------------------------------------------------------


def sign_data(content: bytes, key: PrivateKey, certificate: Certificate, *, now: datetime, chain: Sequence[Certificate] = ()) -> bytes:
    """ContentInfo with SignedData around ``content``, signed by ``key`` at ``now``; the signer's certificate and ``chain`` included.

    Raises:
        Malformed: ``key`` is not the key of ``certificate``.
    """
    if key.public_key.spki != certificate.public_key.spki:
        raise Malformed("the key to sign with is not the key of the certificate")
    name = _DIGEST_OF.get(key.kind, "sha256")
    attributes = der.set_of(
        (
            _attribute(_CONTENT_TYPE, der.oid(ID_DATA)),
            _attribute(_MESSAGE_DIGEST, der.octet_string(digest.compute(name, content))),
            _attribute(_SIGNING_TIME, der.time(now)),
        )
    )
    signer = der.sequence(
        der.integer(1),
        der.sequence(certificate.issuer.der, der.integer(certificate.serial)),
        digest.algorithm(name),
        b"\xa0" + attributes[1:],  # [0] IMPLICIT in the message, SET OF under the signature (RFC 5652 5.4)
        SIGNATURES[key.kind].der,
        der.octet_string(key.sign(attributes)),
    )
    inside = der.sequence(der.oid(ID_DATA), der.context(0, der.octet_string(content)))
    return _signed_data([digest.algorithm(name)], inside, [certificate.der, *(issuer.der for issuer in chain)], [signer])


def parse_signed_data(raw: bytes, *, max_size: int = 32768) -> SignedData:
    """Reads a signed message and checks its signature against the certificate it carries; that certificate's path is not looked at.

    Raises:
        Malformed: not this structure; not exactly one signer; signed attributes missing, doubled or not those of the content.
        Unsupported: content other than id-data, signers named by key identifier, algorithms that we do not take.
        BadSignature: digest or signature do not fit content and certificate.
    """
    parts = _read_signed_data(raw, max_size)
    if len(parts.content) != 2:
        raise Malformed("CMS: a detached signature or a bundle of certificates; send the content inside (openssl cms: -nodetach)")
    inner = der.children(raw, parts.content[1])
    if parts.content[1].tag != 0xA0 or len(inner) != 1:
        raise Malformed("CMS: its content is not one OCTET STRING")
    content = der.expect(raw, inner[0], der.OCTET_STRING, "the content")
    if len(parts.signers) != 1:
        raise Malformed(f"CMS: {len(parts.signers)} signers, and exactly one is taken here")
    certificates = tuple(parse_certificate(item) for item in parts.certificates)

    fields = der.children(raw, parts.signers[0])
    if len(fields) > 1 and fields[1].tag == 0x80:
        raise Unsupported("CMS: the signer is named by its key identifier; name it by issuer and serial number")
    if parts.signers[0].tag != der.SEQUENCE or [field.tag for field in fields] != _SIGNER_TAGS:
        raise Malformed("CMS: the signer's fields are not those of RFC 5652 5.3 with signed and without unsigned attributes")
    version, named, digest_algorithm, attributes, algorithm, signature = fields
    if raw[version.body : version.end] != b"\x01":
        raise Malformed("CMS: a signer named by issuer and serial number is of version 1")
    certificate = _signer(raw[named.start : named.end], certificates)
    hashed = digest.read_algorithm(raw[digest_algorithm.start : digest_algorithm.end])
    if hashed == "sha1" or (hashed == "sm3") != (certificate.public_key.kind == KeyKind.SM2):
        raise Unsupported(f"CMS: a digest by {hashed} with a key of kind {certificate.public_key.kind}")
    # What is signed is the attributes as SET OF in DER, in whatever order they were sent (RFC 5652 5.4).
    listed = der.children(raw, attributes)
    signed = der.set_of(raw[item.start : item.end] for item in listed)
    certificate.public_key.verify(raw[signature.body : signature.end], signed, _algorithm(raw[algorithm.start : algorithm.end], hashed))
    signing_time = _check_attributes(raw, listed, digest.compute(hashed, content))
    return SignedData(content, certificate, certificates, signing_time)


_SIGNER_TAGS = [der.INTEGER, der.SEQUENCE, der.SEQUENCE, 0xA0, der.SEQUENCE, der.OCTET_STRING]


def _signer(named: bytes, certificates: Sequence[Certificate]) -> Certificate:
    for certificate in certificates:
        if der.sequence(certificate.issuer.der, der.integer(certificate.serial)) == named:
            return certificate
    raise Malformed("CMS: the signer's certificate is not included; include it")


@lru_cache(maxsize=64)
def _algorithm(raw: bytes, hashed: str) -> SignatureAlgorithm:
    """The signature algorithm; bare rsaEncryption means PKCS #1 v1.5 with the message's digest (RFC 5754 3.2)."""
    if raw[2:].removesuffix(b"\x05\x00") == _RSA_ENCRYPTION and hashed in _RSA_WITH:
        raw = der.sequence(der.oid(_RSA_WITH[hashed]), der.null())
    return signature_algorithm(raw)


def _check_attributes(raw: bytes, listed: Sequence[der.Tlv], content_digest: bytes) -> datetime | None:
    values: dict[str, der.Tlv] = {}
    for item in listed:
        parts = der.children(raw, item)
        if item.tag != der.SEQUENCE or [part.tag for part in parts] != [der.OID, der.SET]:
            raise Malformed("CMS: a signed attribute that is not a type and a set of values")
        oid = der.decode_oid(raw[parts[0].body : parts[0].end])
        found = der.children(raw, parts[1])
        if oid in values or len(found) != 1:
            raise Malformed(f"CMS: signed attribute {oid} occurs twice or has not exactly one value")
        values[oid] = found[0]
    kind, expected = values.get(_CONTENT_TYPE), values.get(_MESSAGE_DIGEST)
    if kind is None or expected is None:
        raise Malformed("CMS: the signed attributes lack contentType or messageDigest (RFC 5652 11)")
    if raw[kind.start : kind.end] != der.oid(ID_DATA):
        raise Malformed("CMS: the signed content type is not that of the content")
    if not compare_digest(der.expect(raw, expected, der.OCTET_STRING, "messageDigest"), content_digest):
        raise BadSignature("CMS: the content is not what was signed; its digest differs")
    moment = values.get(_SIGNING_TIME)
    return None if moment is None else der.decode_time(raw, moment)


def _attribute(oid: str, value: bytes) -> bytes:
    return der.sequence(der.oid(oid), der.set_of([value]))


# --- the structure both share ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Parts:
    """SignedData taken apart: fields of encapContentInfo, certificates as DER, signerInfos."""

    content: list[der.Tlv]
    certificates: list[bytes]
    signers: list[der.Tlv]


def _signed_data(digests: Sequence[bytes], content: bytes, certificates: Sequence[bytes], signers: Sequence[bytes]) -> bytes:
    bundle = b"\xa0" + der.set_of(certificates)[1:] if certificates else b""
    body = der.sequence(der.integer(1), der.set_of(digests), content, bundle, der.set_of(signers))
    return der.sequence(der.oid(ID_SIGNED_DATA), der.context(0, body))


def _read_signed_data(raw: bytes, max_size: int) -> _Parts:
    root = der.prescan(raw, max_size=max_size)
    outer = der.children(raw, root)
    if root.tag != der.SEQUENCE or [part.tag for part in outer] != [der.OID, 0xA0]:
        raise Malformed("not a CMS message: a SEQUENCE of content type and content is expected")
    if raw[outer[0].start : outer[0].end] != der.oid(ID_SIGNED_DATA):
        raise Unsupported("CMS: a content type other than signedData")
    inside = der.children(raw, outer[1])
    if len(inside) != 1 or inside[0].tag != der.SEQUENCE:
        raise Malformed("CMS: its content is not one SignedData")
    fields = der.children(raw, inside[0])
    # certificates [0] and crls [1] may stand between encapContentInfo and signerInfos; CRLs that come along are not used.
    between = [field.tag for field in fields[3:-1]]
    around = [field.tag for field in (*fields[:3], *fields[-1:])]
    if len(fields) < 4 or around != [der.INTEGER, der.SET, der.SEQUENCE, der.SET] or between not in ([], [0xA0], [0xA1], [0xA0, 0xA1]):
        raise Malformed("CMS: the fields of SignedData are not those of RFC 5652 5.1")
    if raw[fields[0].body : fields[0].end] not in (b"\x01", b"\x03"):
        raise Unsupported("CMS: a version of SignedData other than 1 and 3")
    content = der.children(raw, fields[2])
    if not content or raw[content[0].start : content[0].end] != der.oid(ID_DATA):
        raise Unsupported("CMS: content of another type than id-data")
    certificates = der.children(raw, fields[3]) if between[:1] == [0xA0] else []
    if any(item.tag != der.SEQUENCE for item in certificates):
        raise Unsupported("CMS: something other than an X.509 certificate among its certificates")
    return _Parts(content, [raw[item.start : item.end] for item in certificates], der.children(raw, fields[-1]))
