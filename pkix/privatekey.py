"""Private keys in software: for devices, the simulator and tests. The keys of an authority are never in one of these outside of an HSM.

    key = generate(KeyKind.SM2)
    key.public_key.verify(key.sign(b"message"), b"message")
    load_private_key(key.to_pem())                    # PKCS#8, as `openssl pkey` reads and writes it

Keys are written without a passphrase: keep them in files of mode 0600.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, padding, rsa, utils

from pkix import der, pem, sm2
from pkix.algorithms import SM2_FRAME, KeyKind, PublicKey, load_public_key
from pkix.errors import Malformed, Unsupported

_EC, _SM2 = der.oid("1.2.840.10045.2.1"), der.oid("1.2.156.10197.1.301")
_LABELS = ("PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY", "SM2 PRIVATE KEY")


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """A key pair that can sign. ``repr`` shows the public half only.

    Attributes:
        public_key: its other half, which has passed the key policy.
    """

    public_key: PublicKey
    _secret: Any = field(repr=False, compare=False)  # a private key of cryptography's, or an sm2.Key with its scalar

    @property
    def kind(self) -> KeyKind:
        """What kind of key this is."""
        return self.public_key.kind

    def sign(self, message: bytes) -> bytes:
        """Signature over ``message`` with the algorithm of this kind (``SIGNATURES``); SM2 under the default id."""
        return self.sign_input(self.public_key.signing_input(message))

    def sign_input(self, data: bytes) -> bytes:
        """Signature over what ``public_key.signing_input(message)`` returned: a digest, or the message of Ed25519 and ML-DSA-65.

        Raises:
            Malformed: a digest of the wrong length.
        """
        try:
            match self.kind:
                case KeyKind.SM2:
                    return bytes(self._secret.sign_digest(data))
                case KeyKind.ED25519 | KeyKind.ML_DSA_65:
                    return bytes(self._secret.sign(data))
                case KeyKind.P_256:
                    return bytes(self._secret.sign(data, _ECDSA_256))
                case KeyKind.P_384:
                    return bytes(self._secret.sign(data, _ECDSA_384))
                case _:
                    return bytes(self._secret.sign(data, _PKCS1, _SHA256))
        except ValueError:
            raise Malformed(f"{len(data)} octets are no digest that a key of kind {self.kind} signs") from None

    def to_der(self) -> bytes:
        """PKCS#8 PrivateKeyInfo (RFC 5958), not encrypted."""
        if self.kind is not KeyKind.SM2:
            encoding, form = serialization.Encoding.DER, serialization.PrivateFormat.PKCS8
            return bytes(self._secret.private_bytes(encoding, form, serialization.NoEncryption()))
        public = der.context(1, der.bit_string(self.public_key.key_bits))
        key = der.sequence(der.integer(1), der.octet_string(self._secret.scalar.to_bytes(32)), public)
        return der.sequence(der.integer(0), der.sequence(_EC, _SM2), der.octet_string(key))

    def to_pem(self) -> bytes:
        """``to_der`` in PEM."""
        return pem.encode("PRIVATE KEY", self.to_der()).encode()


_PKCS1, _SHA256 = padding.PKCS1v15(), utils.Prehashed(hashes.SHA256())
_ECDSA_256, _ECDSA_384 = ec.ECDSA(utils.Prehashed(hashes.SHA256())), ec.ECDSA(utils.Prehashed(hashes.SHA384()))
_RSA_BITS = {KeyKind.RSA_2048: 2048, KeyKind.RSA_3072: 3072, KeyKind.RSA_4096: 4096}


def generate(kind: KeyKind) -> PrivateKey:
    """A new key pair of ``kind`` from the operating system's randomness."""
    match kind:
        case KeyKind.SM2:
            return _sm2_key(*sm2.generate())
        case KeyKind.P_256:
            return _wrap(ec.generate_private_key(ec.SECP256R1()))
        case KeyKind.P_384:
            return _wrap(ec.generate_private_key(ec.SECP384R1()))
        case KeyKind.ED25519:
            return _wrap(ed25519.Ed25519PrivateKey.generate())
        case KeyKind.ML_DSA_65:
            return _wrap(mldsa.MLDSA65PrivateKey.generate())
        case _:
            return _wrap(rsa.generate_private_key(65537, _RSA_BITS[kind]))


def load_private_key(data: bytes) -> PrivateKey:
    """The key in ``data``: PKCS#8, SEC 1 (``EC PRIVATE KEY``) or PKCS#1 (``RSA PRIVATE KEY``), PEM or DER, not encrypted.

    Raises:
        Malformed: no private key, or one whose public half does not belong to it.  Unsupported: encrypted, or an algorithm that is not
            taken.  WeakKey: a key that must not be certified.
    """
    if data[:1] == b"\x30":
        return _load(data)
    for label, contents in pem.decode(data):
        if label in _LABELS:
            return _load(contents)
        if label == "ENCRYPTED PRIVATE KEY":
            raise Unsupported("the private key is encrypted; write it without a passphrase (openssl pkey), into a file of mode 0600")
    raise Malformed("there is no private key in this file; it has a line '-----BEGIN PRIVATE KEY-----'")


def _load(data: bytes) -> PrivateKey:
    scalar = _sm2_scalar(data)
    if scalar is not None:
        return _sm2_key(*scalar)
    try:
        return _wrap(serialization.load_der_private_key(data, None))
    except TypeError:
        raise Unsupported("the private key is encrypted; write it without a passphrase") from None
    except UnsupportedAlgorithm:
        raise Unsupported(f"a private key of an algorithm that is not taken; use one of {', '.join(KeyKind)}") from None
    except ValueError:
        raise Malformed("these octets are no private key (PKCS#8, SEC 1 or PKCS#1), or its two halves do not belong together") from None


def _wrap(secret: Any) -> PrivateKey:
    spki = secret.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return PrivateKey(load_public_key(spki), secret)


def _sm2_key(scalar: int, point: bytes) -> PrivateKey:
    # Two handles: whoever is given the public key cannot sign with it.
    return PrivateKey(load_public_key(SM2_FRAME + point), sm2.Key(point, scalar))


def _sm2_scalar(data: bytes) -> tuple[int, bytes] | None:
    """Scalar and point of an SM2 key in PKCS#8 or SEC 1; None if it is a key of another kind."""
    root = der.prescan(data, max_size=16384)
    parts = der.children(data, root)
    if len(parts) >= 3 and parts[1].tag == der.SEQUENCE and data[parts[1].body : parts[1].end] in (_EC + _SM2, _SM2 + _SM2, _SM2):
        inner = der.expect(data, parts[2], der.OCTET_STRING, "the private key")
        der.prescan(inner)
        return _sec1(inner)
    if any(part.tag == 0xA0 and data[part.body : part.end] == _SM2 for part in parts):
        return _sec1(data)
    return None


def _sec1(data: bytes) -> tuple[int, bytes]:
    """ECPrivateKey (RFC 5915): version 1, the scalar, and the point in [1], which is computed if it is left out."""
    parts = der.children(data, der.read(data))
    if len(parts) < 2 or der.expect(data, parts[0], der.INTEGER, "the version") != b"\x01":
        raise Malformed("an ECPrivateKey (RFC 5915) has version 1 and the key after it")
    octets = der.expect(data, parts[1], der.OCTET_STRING, "the private key")
    if len(octets) != 32:
        raise Malformed("the private key of an SM2 key is 32 octets")
    scalar = int.from_bytes(octets)
    point = next((data[part.body + 3 : part.end] for part in parts[2:] if part.tag == 0xA1), None)
    return scalar, sm2.public_point(scalar) if point is None else point
