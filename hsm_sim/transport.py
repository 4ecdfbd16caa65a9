"""A key wrapped to a device's transport key: ECDH on P-256, or SM2 encryption.

wrapped = wrap(key, parse_certificate(theirs).public_key)
unwrap(wrapped, identity.transport) == key

P-256: 01 ‖ ephemeral point (65) ‖ AES-256-GCM under HKDF-SHA256(shared x; both public keys), as NIST SP 800-56A C(1e, 1s)
SM2:   02 ‖ DER of SM2Cipher (GB/T 32918.4)
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hsm_sim.seal import derive, seal, unseal
from pkix import sm2_cipher
from pkix.algorithms import KeyKind, PublicKey
from pkix.errors import Malformed
from pkix.privatekey import PrivateKey

_EPHEMERAL = 65


def wrap(key: bytes, recipient: PublicKey) -> bytes:
    """``key`` for the holder of ``recipient`` (P-256 or SM2). Raises Malformed for another kind of key."""
    if recipient.kind is KeyKind.SM2:
        return b"\x02" + sm2_cipher.encrypt(recipient.handle, key)
    if recipient.kind is not KeyKind.P_256:
        raise Malformed(f"a transport key is of kind p-256 or sm2, not {recipient.kind}")
    ephemeral = ec.generate_private_key(ec.SECP256R1())
    point = ephemeral.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return b"\x01" + point + seal(_agreed(ephemeral, recipient.handle, point, recipient.key_bits), key, b"transport")


def unwrap(wrapped: bytes, key: PrivateKey) -> bytes:
    """What ``wrap`` was given. Raises Malformed, WeakKey: for another key, or changed."""
    secret = key._secret  # the one place beside hsm_sim.keys that needs the handle
    if wrapped[:1] == b"\x02" and key.kind is KeyKind.SM2:
        return sm2_cipher.decrypt(secret, wrapped[1:])
    if wrapped[:1] != b"\x01" or key.kind is not KeyKind.P_256:
        raise Malformed("it was wrapped to another kind of key")
    point = wrapped[1 : 1 + _EPHEMERAL]
    try:
        ephemeral = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    except ValueError:
        raise Malformed("its ephemeral key is no point of P-256") from None
    return unseal(_agreed(secret, ephemeral, point, key.public_key.key_bits), wrapped[1 + _EPHEMERAL :], b"transport")


def _agreed(ours: ec.EllipticCurvePrivateKey, theirs: ec.EllipticCurvePublicKey, ephemeral: bytes, static: bytes) -> bytes:
    return derive(ours.exchange(ec.ECDH(), theirs), b"transport" + ephemeral + static)
