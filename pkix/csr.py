"""Certificate requests, PKCS#10 (RFC 2986, GM/T 0092): read with everything checked that can be checked without knowing the sender; written.

    csr = parse_csr(raw)                 # strict DER, acceptable key, proof of possession: or an error of the Malformed family
    csr.public_key.kind, csr.names

    raw = build_csr(key, name(("CN", "press-7")), ["dns:press-7.plant"])

The subject and names of a ``Csr`` are what its sender wishes for. What the certificate says is decided elsewhere.
"""

from __future__ import annotations

import encodings.punycode
import ipaddress
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pkix import der, extensions, sm2
from pkix.algorithms import SIGNATURES, KeyKind, PublicKey, load_public_key, signature_algorithm
from pkix.errors import BadSignature, Malformed, Unsupported
from pkix.name import Name, parse_name
from pkix.privatekey import PrivateKey

_CHALLENGE_PASSWORD, _EXTENSION_REQUEST = "1.2.840.113549.1.9.7", "1.2.840.113549.1.9.14"
_MICROSOFT_EXTENSION_REQUEST = "1.3.6.1.4.1.311.2.1.14"
_MAX_NAMES = 100
_MAX_CHALLENGE = 255  # characters, RFC 2985 5.4.1
_VERSION = b"\x02\x01\x00"


@dataclass(frozen=True, slots=True)
class Csr:
    """A request whose sender holds the private key of ``public_key``.

    Attributes:
        der: as received.
        subject: the name it proposes.
        names: the alternative names it proposes, canonical (``dns:``, ``ip:``, ``uri:``, ``email:``; ``dirname:`` and ``other:`` as
            ``pkix.extensions`` reads them).
        requests_ca: it asks for a CA certificate (basicConstraints cA, or keyUsage keyCertSign or cRLSign).
        challenge_password: attribute of RFC 2985 5.4.1; a secret in some protocols, hence not shown by ``repr``.
        signature_id: SM2 identifier of the proof of possession: ``default``, ``empty`` (OpenSSL before 4 left to itself), ``-`` for other keys.
    """

    der: bytes
    subject: Name
    public_key: PublicKey
    names: tuple[str, ...]
    requests_ca: bool
    challenge_password: str | None
    signature_id: str

    def __repr__(self) -> str:
        return f"Csr(subject={self.subject.text!r}, kind={self.public_key.kind.value}, names={self.names}, sha256={self.public_key.sha256.hex()})"


def parse_csr(raw: bytes, *, max_size: int = 16384) -> Csr:
    """The request in ``raw`` (DER), its proof of possession verified.

    Raises:
        Malformed: not DER of a CertificationRequest, or a name in it that is none; larger than ``max_size`` octets.
        Unsupported: an algorithm that is not taken.  WeakKey: a key that must not be certified.  BadSignature: no proof of possession.
    """
    der.prescan(raw, max_size=max_size, max_elements=2000)
    info, algorithm, bits = _parts(raw, der.read(raw), (der.SEQUENCE, der.SEQUENCE, der.BIT_STRING), "a certification request")
    version, subject, spki, attributes = _parts(
        raw, info, (der.INTEGER, der.SEQUENCE, der.SEQUENCE, 0xA0), "the body of a certification request"
    )
    if raw[version.start : version.end] != _VERSION:
        raise Unsupported("a certification request of another version than 1 (written 0)")
    public_key = load_public_key(raw[spki.start : spki.end])
    if raw[bits.body]:
        raise Malformed("the signature of a certification request is a whole number of octets")
    signature = raw[bits.body + 1 : bits.end]
    signature_id = _prove(public_key, raw[info.start : info.end], raw[algorithm.start : algorithm.end], signature)
    wishes = _attributes(raw, attributes)
    requested = wishes.get(_EXTENSION_REQUEST, {})
    assert isinstance(requested, dict)
    return Csr(
        der=raw,
        subject=parse_name(raw[subject.start : subject.end], strict=True),
        public_key=public_key,
        names=(),
        requests_ca=False,
        challenge_password=None,
        signature_id=signature_id,
    )
