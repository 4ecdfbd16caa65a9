"""The algorithms of the house: kinds of key, signature algorithms, and public keys that have passed the key policy.

    key = load_public_key(spki)                       # DER SubjectPublicKeyInfo; Malformed, Unsupported or WeakKey
    key.verify(signature, message)                    # BadSignature unless it is this key's
    hsm.sign(key.signing_input(message))              # what a signer needs: a digest, or the message where the algorithm hashes itself

Every encoding is matched octet for octet: an AlgorithmIdentifier or a SubjectPublicKeyInfo that is not exactly what the RFC writes is
refused. The two liberties are SM2's (GM/T 0015, reality): NULL parameters beside absent ones, and the curve's own OID as key algorithm.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, padding, rsa

from pkix import der, sm2, weakkeys
from pkix.errors import BadSignature, Malformed, Unsupported, WeakKey


class KeyKind(StrEnum):
    """Kinds of key. An RSA modulus between the named lengths counts as the shorter."""

    RSA_2048 = "rsa-2048"
    RSA_3072 = "rsa-3072"
    RSA_4096 = "rsa-4096"
    P_256 = "p-256"
    P_384 = "p-384"
    ED25519 = "ed25519"
    SM2 = "sm2"
    ML_DSA_65 = "ml-dsa-65"


@dataclass(frozen=True, slots=True)
class SignatureAlgorithm:
    """A signature algorithm: its usual name, dotted OID, and the AlgorithmIdentifier as we write it."""

    name: str
    oid: str
    der: bytes


_RSA = frozenset((KeyKind.RSA_2048, KeyKind.RSA_3072, KeyKind.RSA_4096))
_NIST = frozenset((KeyKind.P_256, KeyKind.P_384))

_Verifier = Callable[[Any, bytes, bytes], Any]
_SCHEMES: dict[str, tuple[frozenset[KeyKind], _Verifier]] = {}
_BY_DER: dict[bytes, SignatureAlgorithm] = {}


def _register(name: str, oid: str, parameters: tuple[bytes, ...], kinds: frozenset[KeyKind], verifier: _Verifier) -> SignatureAlgorithm:
    """Parameters: the encodings that are read; the first is the one that is written."""
    algorithm = SignatureAlgorithm(name, oid, der.sequence(der.oid(oid), parameters[0]))
    _SCHEMES[name] = kinds, verifier
    for encoding in parameters:
        _BY_DER[der.sequence(der.oid(oid), encoding)] = algorithm
    return algorithm


def _pkcs1(algorithm: hashes.HashAlgorithm) -> _Verifier:
    scheme = padding.PKCS1v15()
    return lambda key, signature, message: key.verify(signature, message, scheme, algorithm)


def _pss(algorithm: hashes.HashAlgorithm) -> _Verifier:
    scheme = padding.PSS(mgf=padding.MGF1(algorithm), salt_length=algorithm.digest_size)
    return lambda key, signature, message: key.verify(signature, message, scheme, algorithm)


def _ecdsa(algorithm: hashes.HashAlgorithm) -> _Verifier:
    scheme = ec.ECDSA(algorithm)
    return lambda key, signature, message: key.verify(signature, message, scheme)


def _itself(key: Any, signature: bytes, message: bytes) -> Any:
    return key.verify(signature, message)


def _sm2(key: sm2.Key, signature: bytes, message: bytes) -> None:
    if not key.verify_digest(signature, key.digest(message, sm2.DEFAULT_ID)):
        raise InvalidSignature


def _pss_parameters(hash_oid: str, salt: int) -> bytes:
    """RSASSA-PSS-params with MGF1 over the same hash, salt of the hash's length, default trailer (RFC 4055 3.1)."""
    digest = der.sequence(der.oid(hash_oid), der.null())
    mask = der.sequence(der.oid("1.2.840.113549.1.1.8"), digest)
    return der.sequence(der.context(0, digest), der.context(1, mask), der.context(2, der.integer(salt)))


_ABSENT = (b"",)
_RSA_PARAMETERS = (der.null(), b"")  # RFC 4055 5: NULL is written, absent is read too
_SHA = (("256", "1", hashes.SHA256()), ("384", "2", hashes.SHA384()), ("512", "3", hashes.SHA512()))

for _size, _arc, _hash in _SHA:
    _pkcs1_arc = str(int(_arc) + 10)
    _register(f"sha{_size}WithRSAEncryption", f"1.2.840.113549.1.1.{_pkcs1_arc}", _RSA_PARAMETERS, _RSA, _pkcs1(_hash))
    _pss_encoding = (_pss_parameters(f"2.16.840.1.101.3.4.2.{_arc}", int(_size) // 8),)
    _register(f"rsassa-pss-sha{_size}", "1.2.840.113549.1.1.10", _pss_encoding, _RSA, _pss(_hash))
    _register(f"ecdsa-with-SHA{_size}", f"1.2.840.10045.4.3.{int(_arc) + 1}", _ABSENT, _NIST, _ecdsa(_hash))

_ED25519 = _register("ed25519", "1.3.101.112", _ABSENT, frozenset((KeyKind.ED25519,)), _itself)
_ML_DSA_65 = _register("ml-dsa-65", "2.16.840.1.101.3.4.3.18", _ABSENT, frozenset((KeyKind.ML_DSA_65,)), _itself)
_SM2 = _register("sm2sign-with-sm3", "1.2.156.10197.1.501", (b"", der.null()), frozenset((KeyKind.SM2,)), _sm2)

_by_name = {algorithm.name: algorithm for algorithm in _BY_DER.values()}
SIGNATURES: Mapping[KeyKind, SignatureAlgorithm] = MappingProxyType(
    dict.fromkeys(sorted(_RSA), _by_name["sha256WithRSAEncryption"])
    | {
        KeyKind.P_256: _by_name["ecdsa-with-SHA256"],
        KeyKind.P_384: _by_name["ecdsa-with-SHA384"],
        KeyKind.ED25519: _ED25519,
        KeyKind.SM2: _SM2,
        KeyKind.ML_DSA_65: _ML_DSA_65,
    }
)
"""The algorithm that a key of each kind signs with."""

_KNOWN_BAD = {
    "1.2.840.113549.1.1.4": "md5WithRSAEncryption",
    "1.2.840.113549.1.1.5": "sha1WithRSAEncryption",
    "1.2.840.10045.4.1": "ecdsa-with-SHA1",
    "1.2.156.10197.1.502": "sm2sign-with-sha1",
    "1.2.156.10197.1.503": "sm2sign-with-sha256",
}


def signature_algorithm(encoded: bytes) -> SignatureAlgorithm:
    """The algorithm that an AlgorithmIdentifier (DER) names, if we can verify it.

    Raises:
        Unsupported: another algorithm, or other parameters than RFC 4055, 5758, 8410, 9881 or GM/T 0015 give it.  Malformed: no DER.
    """
    if (algorithm := _BY_DER.get(encoded)) is not None:
        return algorithm
    dotted = _algorithm_oid(encoded)
    if known := next((a for a in _BY_DER.values() if a.oid == dotted), None):
        raise Unsupported(f"signature algorithm {known.name} with parameters that its standard does not give it")
    raise Unsupported(f"signature algorithm {_KNOWN_BAD.get(dotted, dotted)} is not taken; sign with one of {', '.join(sorted(_SCHEMES))}")


def _algorithm_oid(encoded: bytes) -> str:
    root = der.prescan(encoded, max_size=1024)
    parts = der.children(encoded, root)
    if root.tag != der.SEQUENCE or not parts:
        raise Malformed("an AlgorithmIdentifier is a SEQUENCE that begins with an OBJECT IDENTIFIER")
    return der.decode_oid(der.expect(encoded, parts[0], der.OID, "the algorithm"))


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A public key that has passed the key policy. Equal and hashable by ``spki``; any number of threads may verify with it.

    Attributes:
        kind: what it is.
        spki: SubjectPublicKeyInfo, DER; an SM2 key always as id-ecPublicKey with the curve as parameter.
        key_bits: value of the subjectPublicKey BIT STRING, without the octet of unused bits.
        handle: the key as the library that verifies with it holds it (``sm2.Key`` or one of ``cryptography``'s).
    """

    kind: KeyKind = field(compare=False)
    spki: bytes
    key_bits: bytes = field(compare=False, repr=False)
    handle: Any = field(compare=False, repr=False)

    @property
    def sha256(self) -> bytes:
        """SHA-256 of ``spki``."""
        return hashlib.sha256(self.spki).digest()

    @property
    def key_identifier(self) -> bytes:
        """SHA-1 of ``key_bits`` (RFC 5280 4.2.1.2 (1)): a name, not a protection."""
        return hashlib.sha1(self.key_bits, usedforsecurity=False).digest()

    def verify(self, signature: bytes, message: bytes, algorithm: SignatureAlgorithm | None = None) -> None:
        """Returns if ``signature`` over ``message`` is this key's; SM2 under the default id.

        Args:
            algorithm: what the signature says it is; by default what keys of this kind sign with.
        Raises:
            BadSignature: it is not.  Unsupported: an algorithm that does not fit the key.
        """
        algorithm = algorithm or SIGNATURES[self.kind]
        kinds, verifier = _SCHEMES[algorithm.name]
        if self.kind not in kinds:
            fitting = SIGNATURES[self.kind].name
            raise Unsupported(f"signature algorithm {algorithm.name} does not fit a key of kind {self.kind}; sign with {fitting}")
        try:
            verifier(self.handle, signature, message)
        except InvalidSignature:
            raise BadSignature(f"the {algorithm.name} signature does not verify: it was made with another key or over other data") from None

    def signing_input(self, message: bytes) -> bytes:
        """What a signer with this key's private half is given: SHA-256 or SHA-384 digest, SM2's e, or the message itself."""
        match self.kind:
            case KeyKind.SM2:
                return bytes(self.handle.digest(message, sm2.DEFAULT_ID))
            case KeyKind.ED25519 | KeyKind.ML_DSA_65:
                return message
            case KeyKind.P_384:
                return hashlib.sha384(message).digest()
            case _:
                return hashlib.sha256(message).digest()


# --- SubjectPublicKeyInfo ------------------------------------------------------------------------------------------

_EC_PUBLIC_KEY, _P256_OID, _P384_OID, _SM2_OID = "1.2.840.10045.2.1", "1.2.840.10045.3.1.7", "1.3.132.0.34", "1.2.156.10197.1.301"
_RSA_OID = "1.2.840.113549.1.1.1"


def _frame(size: int, *algorithm: str) -> bytes:
    """The octets of an SPKI before a key of ``size`` octets."""
    identifier = der.sequence(*(der.oid(dotted) for dotted in algorithm))
    return der.sequence(identifier, der.bit_string(bytes(size)))[:-size]


_P256 = 2**256 - 2**224 + 2**192 + 2**96 - 1
_P256_B = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B  # SEC 2 2.4.2

SM2_FRAME = _frame(65, _EC_PUBLIC_KEY, _SM2_OID)
"""What precedes 04 || X || Y in the SubjectPublicKeyInfo of an SM2 key."""
_FRAMES: dict[tuple[int, bytes], KeyKind] = {
    (65, _frame(65, _EC_PUBLIC_KEY, _P256_OID)): KeyKind.P_256,
    (97, _frame(97, _EC_PUBLIC_KEY, _P384_OID)): KeyKind.P_384,
    (32, _frame(32, "1.3.101.112")): KeyKind.ED25519,
    (1952, _frame(1952, "2.16.840.1.101.3.4.3.18")): KeyKind.ML_DSA_65,
    (65, SM2_FRAME): KeyKind.SM2,
    (65, _frame(65, _SM2_OID, _SM2_OID)): KeyKind.SM2,
    (65, _frame(65, _SM2_OID)): KeyKind.SM2,
}
_BY_SIZE: dict[int, list[tuple[int, bytes, KeyKind]]] = {}
for (_length, _octets), _kind in _FRAMES.items():
    _BY_SIZE.setdefault(_length + len(_octets), []).append((_length, _octets, _kind))
_FRAMES_BY_SIZE = {size: tuple(frame for _, frame, _ in found) for size, found in _BY_SIZE.items()}


def is_framed(spki: bytes) -> bool:
    """Whether ``spki`` is, octet for octet, what its algorithm's standard puts around a key of that length: well-formed DER, that is."""
    return spki.startswith(_FRAMES_BY_SIZE.get(len(spki), ()))


def check_public_key(spki: bytes) -> KeyKind | None:
    """What ``load_public_key`` checks of a point, without making a key of it; None: another kind of key, to be loaded.

    Raises as ``load_public_key``.
    """
    for size, frame, kind in _BY_SIZE.get(len(spki), ()):
        if spki.startswith(frame):
            if kind is KeyKind.SM2:
                sm2.check_point(spki[-size:])
                return kind
            if kind is KeyKind.P_256 and spki[-65] == 4 and _is_on_p256(spki[-64:]):
                return kind
    return None


def _is_on_p256(coordinates: bytes) -> bool:
    x, y = int.from_bytes(coordinates[:32]), int.from_bytes(coordinates[32:])
    return x < _P256 and y < _P256 and (y * y - (x * x - 3) * x - _P256_B) % _P256 == 0


def load_public_key(spki: bytes) -> PublicKey:
    """The key in a SubjectPublicKeyInfo (DER), if it may be certified.

    RSA of 2048 to 4096 bits, P-256, P-384 and SM2 as named curve and uncompressed point, Ed25519, ML-DSA-65. What is looked for in weak
    keys is in ``pkix.weakkeys``; points are checked to lie on their curve.

    Raises:
        WeakKey: must never be certified.  Unsupported: another algorithm, curve or form.  Malformed: no SubjectPublicKeyInfo.
        Unavailable: an SM2 key, and no libcrypto to hold it.
    """
    for size, frame, kind in _BY_SIZE.get(len(spki), ()):
        if spki.startswith(frame):
            bits = spki[-size:]
            if kind is KeyKind.SM2:
                return PublicKey(kind, SM2_FRAME + bits, bits, sm2.Key(bits))
            return PublicKey(kind, spki, bits, _fixed_size_key(kind, bits))
    return _other(spki)


def _fixed_size_key(kind: KeyKind, bits: bytes) -> Any:
    try:
        match kind:
            case KeyKind.ED25519:
                weakkeys.check_ed25519(bits)
                return ed25519.Ed25519PublicKey.from_public_bytes(bits)
            case KeyKind.ML_DSA_65:
                return mldsa.MLDSA65PublicKey.from_public_bytes(bits)
            case _:
                if bits[0] != 4:
                    raise Unsupported("a hybrid or unknown form of point; write the public key uncompressed, as 04 || X || Y")
                curve = ec.SECP256R1() if kind is KeyKind.P_256 else ec.SECP384R1()
                return ec.EllipticCurvePublicKey.from_encoded_point(curve, bits)
    except ValueError:
        raise WeakKey(f"the public key is no valid {kind} key: its point is not on the curve, or its encoding is wrong") from None
    except UnsupportedAlgorithm:
        raise Unsupported(f"keys of kind {kind} are not supported by the cryptography library installed here") from None


def _other(spki: bytes) -> PublicKey:
    """RSA, whose length varies, and a reason for everything else."""
    root = der.prescan(spki, max_size=8192, max_depth=8)
    parts = der.children(spki, root)
    if root.tag != der.SEQUENCE or len(parts) != 2:
        raise Malformed("a SubjectPublicKeyInfo is a SEQUENCE of an algorithm and a BIT STRING")
    dotted = _algorithm_oid(spki[parts[0].start : parts[0].end])
    bits = der.expect(spki, parts[1], der.BIT_STRING, "the public key")
    if bits[0]:
        raise Malformed("the BIT STRING of a public key is a whole number of octets")
    if dotted == _RSA_OID:
        return _rsa_key(spki, spki[parts[0].start : parts[0].end], bits[1:])
    if dotted in (_EC_PUBLIC_KEY, _SM2_OID):
        raise _ec_refusal(spki, parts[0], bits[1:])
    if dotted in ("1.3.101.112", "2.16.840.1.101.3.4.3.18"):
        raise Malformed("a public key of the wrong length, or with parameters that its algorithm does not have (RFC 8410, 9881)")
    raise Unsupported(f"public key algorithm {dotted} is not taken; use one of {', '.join(KeyKind)}")


def _ec_refusal(spki: bytes, algorithm: der.Tlv, bits: bytes) -> Malformed:
    parts = der.children(spki, algorithm)
    if len(parts) > 1 and parts[1].tag == der.SEQUENCE:
        return Unsupported("explicit curve parameters; write the curve by its name (namedCurve, RFC 5480 2.1.1)")
    if len(parts) != 2 or parts[1].tag != der.OID:
        return Malformed("an elliptic curve key without the name of its curve")
    curve = der.decode_oid(spki[parts[1].body : parts[1].end])
    if curve not in (_P256_OID, _P384_OID, _SM2_OID):
        return Unsupported(f"elliptic curve {curve} is not taken; use P-256, P-384 or SM2")
    if bits == b"\x00":
        return WeakKey("the public key is the point at infinity")
    if bits[:1] in (b"\x02", b"\x03"):
        return Unsupported("a compressed point; write the public key uncompressed, as 04 || X || Y")
    return Malformed("a point that is not as long as its curve's")


def _rsa_key(spki: bytes, algorithm: bytes, bits: bytes) -> PublicKey:
    if algorithm != der.sequence(der.oid(_RSA_OID), der.null()):
        raise Malformed("the algorithm of an RSA key has NULL parameters (RFC 3279 2.3.1)")
    root = der.prescan(bits, max_size=8192)
    numbers = der.children(bits, root)
    if root.tag != der.SEQUENCE or len(numbers) != 2:
        raise Malformed("an RSA public key is a SEQUENCE of modulus and exponent")
    modulus, exponent = (int.from_bytes(der.expect(bits, number, der.INTEGER, "a number of an RSA key"), signed=True) for number in numbers)
    weakkeys.check_rsa(modulus, exponent)
    size = modulus.bit_length()
    kind = KeyKind.RSA_4096 if size == 4096 else KeyKind.RSA_3072 if size >= 3072 else KeyKind.RSA_2048
    try:
        key = rsa.RSAPublicNumbers(exponent, modulus).public_key()
    except ValueError:
        raise WeakKey("the RSA public key is not one that the cryptography library takes") from None
    return PublicKey(kind, spki, bits, key)
