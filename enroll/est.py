"""EST messages: what devices send, and the bodies that we answer with (RFC 7030, RFC 8951, RFC 9908). No I/O.

    message = decode(body, signed=False)      # base64 in any layout, PEM or DER → Message(pkcs10, None)
    message = decode(body, signed=True)       # CMS SignedData around a PKCS#10: the signature is checked, not yet who the signer is
    encode_certificates([der], wrap=False)    # body of cacerts, simpleenroll, simplereenroll
    encode_csrattrs(KeyKind.P_256)            # body of csrattrs

The Content-Transfer-Encoding that a request claims is ignored (RFC 8951 3.2): what the bytes are is seen from the bytes.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from pkix import cms, der, pem
from pkix.algorithms import SIGNATURES, KeyKind
from pkix.certificate import Certificate
from pkix.errors import Malformed

MAX_REQUEST = 16384
"""Octets of a request body that is a PKCS#10, in whatever encoding."""
MAX_SIGNED_REQUEST = 49152
"""Octets of a request body that is CMS: it carries the signer's certificates, which post-quantum keys make long."""

CERTIFICATES_TYPE = "application/pkcs7-mime; smime-type=certs-only"
CSRATTRS_TYPE = "application/csrattrs"

_CSR_LABELS = ("CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST")
_CMS_LABELS = ("CMS", "PKCS7")
_WHITESPACE = b" \t\r\n"
_LIBEST_LINE = 76

_EC_PUBLIC_KEY, _RSA = "1.2.840.10045.2.1", "1.2.840.113549.1.1.1"
_CURVES = {KeyKind.P_256: "1.2.840.10045.3.1.7", KeyKind.P_384: "1.3.132.0.34", KeyKind.SM2: "1.2.156.10197.1.301"}
_RSA_BITS = {KeyKind.RSA_2048: 2048, KeyKind.RSA_3072: 3072, KeyKind.RSA_4096: 4096}


@dataclass(frozen=True, slots=True)
class Message:
    """A request for a certificate, unpacked.

    ``pkcs10`` is what should be the DER of a PKCS#10: nobody has looked into it yet. ``signer`` is the certificate whose key signed the
    message around it, None without one; ``presented`` are the other certificates that came along. ``digest`` (32 octets) is the same for
    the same request, in whatever encoding: of what was signed, so that nobody makes another one of it by changing what was not.
    """

    pkcs10: bytes
    signer: Certificate | None = None
    presented: tuple[Certificate, ...] = ()
    signing_time: datetime | None = None

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(self.pkcs10 + (b"" if self.signing_time is None else self.signing_time.isoformat().encode())).digest()


def is_signed(content_type: str) -> bool:
    """Whether a Content-Type announces CMS SignedData around the request rather than a bare PKCS#10.

    Everything else, the absent one included, is taken for ``application/pkcs10``.
    """
    return content_type.partition(";")[0].strip().lower() in ("application/pkcs7-mime", "application/cms")


def decode(body: bytes, *, signed: bool) -> Message:
    """The request in an HTTP body.

    Args:
        body: base64 with or without line breaks, PEM, or DER.
        signed: it is CMS SignedData (``is_signed``), whose content is again any of these.
    Raises:
        Malformed: it is none of these, or BadSignature: the CMS signature does not verify.
    """
    if not signed:
        return Message(_der(body, _CSR_LABELS, "a PKCS#10 certificate request"))
    data = cms.parse_signed_data(_der(body, _CMS_LABELS, "a CMS SignedData"))
    presented = tuple(certificate for certificate in data.certificates if certificate != data.certificate)
    pkcs10 = _der(data.content, _CSR_LABELS, "a PKCS#10 certificate request inside the CMS message")
    return Message(pkcs10, data.certificate, presented, data.signing_time)


def encode_certificates(certificates: Sequence[bytes], *, wrap: bool) -> bytes:
    """Body of a certs-only answer: base64 of a PKCS#7 without signers, on one line, or in lines of 76 characters if ``wrap``.

    strongSwan before 5.9.11 reads only the first, libest only the second.
    """
    return _base64(cms.certs_only(certificates), wrap=wrap)


def encode_csrattrs(kind: KeyKind, *, wrap: bool = False) -> bytes:
    """Body of csrattrs: base64 of the CsrAttrs that ask for a key of ``kind``, signed as we would (RFC 7030 4.5.2, RFC 9908 3).

    Written as plain OIDs and attributes, which every client reads: for elliptic curves id-ecPublicKey with the curve, for RSA
    rsaEncryption with the size in bits, then the OID of the signature algorithm. For Ed25519 and ML-DSA that one OID says both.
    """
    parts = []
    if kind in _CURVES:
        parts.append(_attribute(_EC_PUBLIC_KEY, der.oid(_CURVES[kind])))
    elif kind in _RSA_BITS:
        parts.append(_attribute(_RSA, der.integer(_RSA_BITS[kind])))
    parts.append(der.oid(SIGNATURES[kind].oid))
    return _base64(der.sequence(*parts), wrap=wrap)


def wants_lines(user_agent: str) -> bool:
    """Whether a client is one (libest) that cannot read base64 on a single line."""
    return "libest" in user_agent.lower()


def _attribute(oid: str, value: bytes) -> bytes:
    return der.sequence(der.oid(oid), der.set_of([value]))


def _base64(data: bytes, *, wrap: bool) -> bytes:
    text = base64.b64encode(data)
    if not wrap:
        return text
    return b"".join(text[start : start + _LIBEST_LINE] + b"\n" for start in range(0, len(text), _LIBEST_LINE))


def _der(body: bytes, labels: tuple[str, ...], what: str) -> bytes:
    if body[:1] == b"\x30":
        return body  # a DER SEQUENCE; in base64 that begins with M, never with the character 0x30
    body = body.strip(_WHITESPACE)
    if not body:
        raise Malformed(f"The request has no body. Send {what} in base64.")
    if b"-----BEGIN " in body:
        found = [octets for label, octets in pem.decode(body) if label in labels]
        if len(found) != 1:
            raise Malformed(f"The PEM text is not {what}: expected one block labelled {labels[0]}.")
        return found[0]
    try:
        return base64.b64decode(body.translate(None, _WHITESPACE), validate=True)
    except binascii.Error:
        raise Malformed(f"The body is not {what} in base64, PEM or DER. Send the DER in base64.") from None
