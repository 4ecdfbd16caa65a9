"""Online Certificate Status Protocol messages (RFC 6960; nonce RFC 9654).

    request = parse_request(body)                                   # the responder: cert_ids, nonce
    tbs = build_response_data(responder_key=key, produced_at=now, singles=[single], nonce=request.nonce)
    assemble_response(tbs, algorithm, signature, [signer.der])      # or error_response(TRY_LATER)

    wanted = cert_id("sha256", issuer, serial)                      # the relying party
    response = parse_response(answer_to(build_request([wanted])))
    verify_response(response, issuer, now)
    single = response.find(wanted)

A CertID is echoed octet for octet as it was asked: SM3 and SHA-2 come with NULL parameters and without, and clients compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache

from pkix import der, digest
from pkix.algorithms import PublicKey, SignatureAlgorithm, signature_algorithm
from pkix.certificate import Certificate, parse_certificate
from pkix.errors import Malformed, Unsupported
from pkix.extensions import OCSP_NONCE, Extension, read_extensions, read_reason
from pkix.name import Name, parse_name
from pkix.ocsp_signer import authorized_signer

SUCCESSFUL, MALFORMED_REQUEST, INTERNAL_ERROR, TRY_LATER, SIG_REQUIRED, UNAUTHORIZED = 0, 1, 2, 3, 5, 6
HASHES = {"sha1": 20, "sha256": 32, "sha384": 48, "sm3": 32}
"""Digests that a CertID may use, with their length in octets."""

_STATUS_NAMES = {1: "malformedRequest", 2: "internalError", 3: "tryLater", 5: "sigRequired", 6: "unauthorized"}
_BASIC = der.oid("1.3.6.1.5.5.7.48.1.1")
_GOOD, _UNKNOWN = b"\x80\x00", b"\x82\x00"
_MAX_NONCE = 128


@dataclass(frozen=True, slots=True)
class CertId:
    """Which certificate is meant. Equal if the four values are; ``der`` are the exact octets, to be echoed.

    ``hash`` is one of ``HASHES``; ``name_hash`` that of the issuer's DER name, ``key_hash`` that of the issuer's key bits.
    """

    hash: str
    name_hash: bytes
    key_hash: bytes
    serial: int
    der: bytes = field(compare=False)


@dataclass(frozen=True, slots=True)
class OcspRequest:
    """What is asked, at least one CertID, and the nonce to repeat, if there is one."""

    cert_ids: tuple[CertId, ...]
    nonce: bytes | None


@dataclass(frozen=True, slots=True)
class Single:
    """The status of one certificate: ``good``, ``revoked`` or ``unknown``, as known at ``this_update``.

    ``revoked_at`` goes with ``revoked`` alone; ``reason`` (CRLReason) may be left out then. ``next_update`` None: newer information
    is always there.
    """

    cert_id: CertId
    status: str
    revoked_at: datetime | None
    reason: int | None
    this_update: datetime
    next_update: datetime | None = None

    def covers(self, now: datetime, skew: timedelta = timedelta(minutes=5)) -> bool:
        """Whether ``now`` lies between this update and the next, clocks differing by ``skew`` at most (RFC 6960 4.2.2.1)."""
        return self.this_update <= now + skew and (self.next_update is None or now - skew <= self.next_update)


@dataclass(frozen=True, slots=True)
class OcspResponse:
    """A response that parsed; nothing is known of its signature before ``verify_response``.

    With a ``status`` other than ``SUCCESSFUL`` everything else is empty. ``responder`` is the name of the signer, or SHA-1 of its key.
    """

    status: int
    tbs: bytes = b""
    algorithm: bytes = b""
    signature: bytes = b""
    responder: Name | bytes = b""
    produced_at: datetime | None = None
    singles: tuple[Single, ...] = ()
    nonce: bytes | None = None
    certificates: tuple[Certificate, ...] = ()

    def find(self, wanted: CertId) -> Single | None:
        """The answer about ``wanted``, parameters of its hash algorithm not compared; None if it is not there."""
        return next((single for single in self.singles if single.cert_id == wanted), None)


# --- CertID ------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def issuer_hashes(hash: str, issuer: Certificate) -> tuple[bytes, bytes]:
    """(hash of the issuer's DER name, hash of its key bits) by one of ``HASHES`` (RFC 6960 4.1.1)."""
    return digest.compute(hash, issuer.subject.der), digest.compute(hash, issuer.public_key.key_bits)


def cert_id(hash: str, issuer: Certificate, serial: int) -> CertId:
    """The CertID of ``issuer``'s certificate ``serial``. Writes NULL parameters, which every responder knows."""
    name_hash, key_hash = issuer_hashes(hash, issuer)
    algorithm = der.sequence(der.oid(digest.OIDS[hash]), der.null())
    encoded = der.sequence(algorithm, der.octet_string(name_hash), der.octet_string(key_hash), der.integer(serial))
    return CertId(hash, name_hash, key_hash, serial, encoded)


def _read_cert_id(raw: bytes, element: der.Tlv) -> CertId:
    parts = der.children(raw, element)
    if element.tag != der.SEQUENCE or [part.tag for part in parts] != [der.SEQUENCE, der.OCTET_STRING, der.OCTET_STRING, der.INTEGER]:
        raise Malformed("OCSP: a CertID whose fields are not those of RFC 6960 4.1.1")
    name = _hash_name(raw[parts[0].start : parts[0].end])
    name_hash, key_hash, number = (raw[part.body : part.end] for part in parts[1:])
    if not len(name_hash) == len(key_hash) == HASHES[name]:
        raise Malformed(f"OCSP: a CertID whose hashes are not as long as {name} makes them")
    if len(number) > 20:
        raise Malformed("OCSP: a serial number of more than 20 octets")
    return CertId(name, name_hash, key_hash, int.from_bytes(number, signed=True), raw[element.start : element.end])


@lru_cache(maxsize=64)
def _hash_name(algorithm: bytes) -> str:
    name = digest.read_algorithm(algorithm)
    if name not in HASHES:
        raise Unsupported(f"OCSP: a CertID by {name}; use one of {', '.join(HASHES)}")
    return name


# --- requests ------------------------------------------------------------------------------------------------------


def parse_request(raw: bytes, *, max_size: int = 8192, max_requests: int = 64) -> OcspRequest:
    """Reads an OCSPRequest. Its signature, if it has one, is not looked at: status is public here.

    Raises:
        Malformed: not this structure, nothing asked or more than ``max_requests``, a nonce of no octets or of more than 128, a critical
            extension that we do not know.
        Unsupported: a CertID by a digest outside of ``HASHES``.
    """
    root = der.prescan(raw, max_size=max_size)
    outer = der.children(raw, root)
    if root.tag != der.SEQUENCE or [part.tag for part in outer] not in ([der.SEQUENCE], [der.SEQUENCE, 0xA0]):
        raise Malformed("not an OCSP request (RFC 6960 4.1.1)")
    fields = der.children(raw, outer[0])
    if fields and fields[0].tag == 0xA0:
        _check_version(raw, fields.pop(0))
    if fields and fields[0].tag == 0xA1:
        del fields[0]  # requestorName: only means something when signed
    if [part.tag for part in fields] not in ([der.SEQUENCE], [der.SEQUENCE, 0xA2]):
        raise Malformed("OCSP: the fields of the request are not those of RFC 6960 4.1.1")
    asked = der.children(raw, fields[0])
    if not 0 < len(asked) <= max_requests:
        raise Malformed(f"OCSP: {len(asked)} certificates asked about; between 1 and {max_requests} are taken at once")
    cert_ids = tuple(_read_request(raw, item) for item in asked)
    return OcspRequest(cert_ids, _nonce(_read_extensions(raw, fields[1])) if len(fields) == 2 else None)


def build_request(cert_ids: Sequence[CertId], nonce: bytes | None = None) -> bytes:
    """DER of an unsigned OCSPRequest; ``nonce`` 1 to 128 octets (RFC 9654 asks for 32)."""
    asked = der.sequence(*(der.sequence(item.der) for item in cert_ids))
    return der.sequence(der.sequence(asked, der.context(2, _nonce_extension(nonce)) if nonce is not None else b""))


def _read_request(raw: bytes, element: der.Tlv) -> CertId:
    parts = der.children(raw, element)
    if element.tag != der.SEQUENCE or [part.tag for part in parts] not in ([der.SEQUENCE], [der.SEQUENCE, 0xA0]):
        raise Malformed("OCSP: a request whose fields are not those of RFC 6960 4.1.1")
    if len(parts) == 2:
        _read_extensions(raw, parts[1])
    return _read_cert_id(raw, parts[0])


def _check_version(raw: bytes, element: der.Tlv) -> None:
    if raw[element.body : element.end] != b"\x02\x01\x00":
        raise Unsupported("OCSP: a version other than 1")


def _read_extensions(raw: bytes, element: der.Tlv) -> dict[str, Extension]:
    inner = der.children(raw, element)
    if len(inner) != 1:
        raise Malformed("OCSP: its extensions are not one SEQUENCE")
    found = read_extensions(raw, inner[0])
    for extension in found.values():
        if extension.critical and extension.oid != OCSP_NONCE:
            raise Malformed(f"OCSP: extension {extension.oid} is critical and not known here")
    return found


def _nonce(found: dict[str, Extension]) -> bytes | None:
    extension = found.get(OCSP_NONCE)
    if extension is None:
        return None
    nonce = der.expect(extension.value, der.prescan(extension.value), der.OCTET_STRING, "the nonce")
    if not 0 < len(nonce) <= _MAX_NONCE:
        raise Malformed(f"OCSP: a nonce of {len(nonce)} octets; RFC 9654 allows 1 to {_MAX_NONCE}")
    return nonce


def _nonce_extension(nonce: bytes) -> bytes:
    if not 0 < len(nonce) <= _MAX_NONCE:
        raise Malformed(f"OCSP: a nonce of {len(nonce)} octets; RFC 9654 allows 1 to {_MAX_NONCE}")
    return der.sequence(Extension(OCSP_NONCE, False, der.octet_string(nonce)).der)


# --- responses -----------------------------------------------------------------------------------------------------


def build_response_data(
    *,
    produced_at: datetime,
    singles: Sequence[Single],
    responder_key: PublicKey | None = None,
    responder_name: Name | None = None,
    nonce: bytes | None = None,
) -> bytes:
    """DER of the ResponseData that the responder signs; its ID is byKey (SHA-1 of the key bits), or byName if a name is given."""
    if responder_name is not None:
        responder = der.context(1, responder_name.der)
    elif responder_key is not None:
        responder = b"\xa2\x16\x04\x14" + responder_key.key_identifier
    else:
        raise Malformed("OCSP: a response needs the key or the name of its responder")
    return der.sequence(
        responder,
        der.generalized_time(produced_at),
        der.sequence(*map(_single, singles)),
        der.context(1, _nonce_extension(nonce)) if nonce is not None else b"",
    )


def _single(single: Single) -> bytes:
    if single.status == "good":
        status = _GOOD
    elif single.status == "unknown":
        status = _UNKNOWN
    elif single.status == "revoked" and single.revoked_at is not None:
        reason = b"" if single.reason is None else der.context(0, der.enumerated(single.reason))
        status = der.context(1, der.generalized_time(single.revoked_at), reason)
    else:
        raise Malformed(f"OCSP: no status {single.status!r}; good, unknown, or revoked with its time")
    following = b"" if single.next_update is None else der.context(0, der.generalized_time(single.next_update))
    return der.sequence(single.cert_id.der, status, der.generalized_time(single.this_update), following)


def assemble_response(tbs: bytes, algorithm: SignatureAlgorithm, signature: bytes, certificates: Sequence[bytes] = ()) -> bytes:
    """OCSPResponse, successful, around signed ResponseData; ``certificates`` are the delegated signer's, in DER."""
    bundle = der.context(0, der.sequence(*certificates)) if certificates else b""
    basic = der.sequence(tbs, algorithm.der, der.bit_string(signature), bundle)
    return der.sequence(b"\x0a\x01\x00", der.context(0, der.sequence(_BASIC, der.octet_string(basic))))


def error_response(status: int) -> bytes:
    """OCSPResponse that says only why there is no answer: one of the constants above but ``SUCCESSFUL``. Raises Malformed on others."""
    if status not in _STATUS_NAMES:
        raise Malformed(f"OCSP: no response status {status}; one of {', '.join(map(str, _STATUS_NAMES))}")
    return der.sequence(der.enumerated(status))


def parse_response(raw: bytes, *, max_size: int = 65536) -> OcspResponse:
    """Reads an OCSPResponse; its signature is not checked here.

    Raises:
        Malformed: not this structure, or a critical extension that we do not know.
        Unsupported: another response type than basic, a CertID by a digest outside of ``HASHES``.
    """
    root = der.prescan(raw, max_size=max_size)
    outer = der.children(raw, root)
    if root.tag != der.SEQUENCE or not outer or len(outer) > 2:
        raise Malformed("not an OCSP response (RFC 6960 4.2.1)")
    status = int.from_bytes(der.expect(raw, outer[0], der.ENUMERATED, "the response status"))
    if status in _STATUS_NAMES and len(outer) == 1:
        return OcspResponse(status)
    if status != SUCCESSFUL or len(outer) != 2 or outer[1].tag != 0xA0:
        raise Malformed("OCSP: a response whose status and contents do not go together")
    inside = der.children(raw, outer[1])
    typed = der.children(raw, inside[0]) if len(inside) == 1 and inside[0].tag == der.SEQUENCE else []
    if [part.tag for part in typed] != [der.OID, der.OCTET_STRING]:
        raise Malformed("OCSP: its contents are not a response type and octets")
    if raw[typed[0].start : typed[0].end] != _BASIC:
        raise Unsupported("OCSP: a response type other than id-pkix-ocsp-basic")
    return _read_basic(raw[typed[1].body : typed[1].end], max_size)


def _read_basic(raw: bytes, max_size: int) -> OcspResponse:
    root = der.prescan(raw, max_size=max_size)
    parts = der.children(raw, root)
    tags = [part.tag for part in parts]
    if root.tag != der.SEQUENCE or tags[:3] != [der.SEQUENCE, der.SEQUENCE, der.BIT_STRING] or tags[3:] not in ([], [0xA0]):
        raise Malformed("OCSP: the fields of BasicOCSPResponse are not those of RFC 6960 4.2.1")
    octets = raw[parts[2].body : parts[2].end]
    if octets[0]:
        raise Malformed("a signature that is not whole octets")
    bundled = der.children(raw, parts[3]) if len(parts) == 4 else []
    if len(bundled) > 1 or (bundled and bundled[0].tag != der.SEQUENCE):
        raise Malformed("OCSP: its certificates are not one SEQUENCE")
    listed = der.children(raw, bundled[0]) if bundled else []

    fields = der.children(raw, parts[0])
    if fields and fields[0].tag == 0xA0:
        _check_version(raw, fields.pop(0))
    tags = [part.tag for part in fields]
    if tags[:1] not in ([0xA1], [0xA2]) or tags[1:3] != [der.GENERALIZED_TIME, der.SEQUENCE] or tags[3:] not in ([], [0xA1]):
        raise Malformed("OCSP: the fields of ResponseData are not those of RFC 6960 4.2.1")
    return OcspResponse(
        SUCCESSFUL,
        tbs=raw[parts[0].start : parts[0].end],
        algorithm=raw[parts[1].start : parts[1].end],
        signature=octets[1:],
        responder=_read_responder(raw, fields[0]),
        produced_at=der.decode_time(raw, fields[1]),
        singles=tuple(_read_single(raw, item) for item in der.children(raw, fields[2])),
        nonce=_nonce(_read_extensions(raw, fields[3])) if len(fields) == 4 else None,
        certificates=tuple(parse_certificate(raw[item.start : item.end]) for item in listed),
    )


def _read_responder(raw: bytes, element: der.Tlv) -> Name | bytes:
    if element.tag == 0xA1:
        return parse_name(raw[element.body : element.end])
    inner = der.children(raw, element)
    if len(inner) != 1 or inner[0].end - inner[0].body != 20:
        raise Malformed("OCSP: a responder's key hash that is not one of SHA-1")
    return der.expect(raw, inner[0], der.OCTET_STRING, "the responder's key hash")


def _read_single(raw: bytes, element: der.Tlv) -> Single:
    parts = der.children(raw, element)
    tags = [part.tag for part in parts]
    optional = tags[3:]
    if element.tag != der.SEQUENCE or tags[2:3] != [der.GENERALIZED_TIME] or optional not in ([], [0xA0], [0xA1], [0xA0, 0xA1]):
        raise Malformed("OCSP: a status whose fields are not those of RFC 6960 4.2.1")
    if 0xA1 in optional:
        _read_extensions(raw, parts[-1])
    status, revoked_at, reason = _read_status(raw, parts[1])
    return Single(
        cert_id=_read_cert_id(raw, parts[0]),
        status=status,
        this_update=der.decode_time(raw, parts[2]),
        next_update=_explicit_time(raw, parts[3]) if 0xA0 in optional else None,
        revoked_at=revoked_at,
        reason=reason,
    )


def _read_status(raw: bytes, element: der.Tlv) -> tuple[str, datetime | None, int | None]:
    encoded = raw[element.start : element.end]
    if encoded in (_GOOD, _UNKNOWN):
        return ("good" if encoded == _GOOD else "unknown"), None, None
    parts = der.children(raw, element) if element.tag == 0xA1 else []
    if [part.tag for part in parts] not in ([der.GENERALIZED_TIME], [der.GENERALIZED_TIME, 0xA0]):
        raise Malformed("OCSP: a status that is none of good, revoked and unknown")
    reason = None
    if len(parts) == 2:
        reason = read_reason(raw[parts[1].body : parts[1].end])
    return "revoked", der.decode_time(raw, parts[0]), reason


def _explicit_time(raw: bytes, element: der.Tlv) -> datetime:
    inner = der.children(raw, element)
    if len(inner) != 1 or inner[0].tag != der.GENERALIZED_TIME:
        raise Malformed("OCSP: a next update that is no GeneralizedTime")
    return der.decode_time(raw, inner[0])


# --- whose word it is ----------------------------------------------------------------------------------------------


def verify_response(response: OcspResponse, issuer: Certificate, now: datetime) -> None:
    """Checks that ``response`` was signed by ``issuer`` itself or by a signer to whom it delegated (RFC 6960 4.2.2.2).

    A delegated signer comes with a certificate that the same issuer key signed, with the purpose OCSPSigning, valid at ``now``. What is
    answered is not judged here: look up the CertID with ``find`` (made from the same ``issuer``) and ask ``covers`` whether it is current.

    Raises:
        Malformed: an error response: there is nothing signed.
        BadSignature: the signer has no such authority, or the signature does not verify.
        Unsupported: an algorithm or key that we do not take.
    """
    if response.status != SUCCESSFUL:
        raise Malformed(f"OCSP: the responder gave no answer but {_STATUS_NAMES[response.status]}")
    signer = authorized_signer(response.responder, response.certificates, issuer, now)
    signer.public_key.verify(response.signature, response.tbs, signature_algorithm(response.algorithm))
