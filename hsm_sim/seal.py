"""Keys of the vault: from a PIN to the key of one object's record.

    PIN key    = HKDF-SHA256(Argon2id(PIN, salt, 64 MiB, 3 passes) ‖ device secret)
    KEK        = 32 random octets for each partition; wrapped with AES-256-GCM once under each role's PIN key
    object key = HKDF-SHA256(KEK, "obj" ‖ id ‖ version)             (objects without CKA_PRIVATE: from the device secret, see ``Ring``)
    record     = AEAD(object key, secret octets; associated data: everything else that is known of the object)

Pure functions but for the nonces. A stolen database without ``device.key`` cannot even be guessed at; with it each guess costs 64 MiB and
0.15 s.
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from pkix.errors import Malformed

AES, SM4 = "aes-256-gcm", "sm4-gcm"
CIPHERS = (AES, SM4)
"""What a device can seal its records with: NIST SP 800-38D over AES-256, or over SM4 (GM/T 0002)."""
_NONCE, _TAG = 12, 16


def pin_key(pin: str, salt: bytes, device_secret: bytes) -> bytes:
    """The key that a role's PIN opens (Argon2id, RFC 9106). Takes 0.15 s and 64 MiB: call it in a thread."""
    stretched = Argon2id(salt=salt, length=32, iterations=3, lanes=1, memory_cost=64 << 10).derive(pin.encode())
    return derive(stretched + device_secret, b"pin")


def derive(secret: bytes, purpose: bytes, length: int = 32) -> bytes:
    """HKDF-SHA256 (RFC 5869) without salt."""
    return HKDF(SHA256(), length=length, salt=None, info=b"ironroot hsm 2 " + purpose).derive(secret)


def seal(key: bytes, data: bytes, context: bytes, cipher: str = AES) -> bytes:
    """``data`` under ``key`` (32 octets): nonce ‖ ciphertext ‖ tag. ``context`` is what it belongs to, and needed again."""
    nonce = secrets.token_bytes(_NONCE)
    if cipher == AES:
        return nonce + AESGCM(key).encrypt(nonce, data, context)
    sm4 = Cipher(algorithms.SM4(key[:16]), modes.GCM(nonce)).encryptor()
    sm4.authenticate_additional_data(context)
    return nonce + sm4.update(data) + sm4.finalize() + sm4.tag


def unseal(key: bytes, sealed: bytes, context: bytes, cipher: str = AES) -> bytes:
    """What ``seal`` was given. Raises Malformed: another key, another context, or not what was written."""
    nonce, body, tag = sealed[:_NONCE], sealed[_NONCE:-_TAG], sealed[-_TAG:]
    try:
        if cipher == AES:
            return AESGCM(key).decrypt(nonce, body + tag, context)
        sm4 = Cipher(algorithms.SM4(key[:16]), modes.GCM(nonce, tag)).decryptor()
        sm4.authenticate_additional_data(context)
        return sm4.update(body) + sm4.finalize()
    except (InvalidTag, ValueError) as error:  # ValueError: too short to be sealed at all
        raise Malformed("it was changed, or belongs to another device") from error


@dataclass(frozen=True, slots=True)
class Ring:
    """What opens the records of one partition, and vouches for which of them there are.

    Attributes:
        kek: the partition's key-encrypting key. For objects that everybody may see, which have to be legible before the first login, the
            one that the device secret alone gives (``public``).
        cipher: what records are sealed with.
    """

    kek: bytes = field(repr=False)
    cipher: str

    @classmethod
    def public(cls, device_secret: bytes, partition: bytes, cipher: str) -> Ring:
        """The ring of a partition's public objects."""
        return cls(derive(device_secret, b"public" + partition), cipher)

    def seal(self, id: bytes, version: int, secret: bytes, described: bytes) -> bytes:
        """An object's record. ``described``: everything else about the object, as stored beside it."""
        return seal(self._object_key(id, version), secret, described, self.cipher)

    def unseal(self, id: bytes, version: int, record: bytes, described: bytes) -> bytes:
        """Raises Malformed."""
        return unseal(self._object_key(id, version), record, described, self.cipher)

    def _object_key(self, id: bytes, version: int) -> bytes:
        return derive(self.kek, b"obj" + id + version.to_bytes(8))

    def mark(self, id: bytes, version: int) -> int:
        """What this version of this object adds to the partition's set digest: the sum of the marks, modulo 2^256.

        Nobody without the KEK can make up a mark, so rows that were taken away, put in or exchanged for older ones change the sum. What is
        in the record need not go in: its own tag binds it to id and version. So a damaged record is that object's trouble alone.
        """
        return int.from_bytes(hmac.digest(derive(self.kek, b"set"), id + version.to_bytes(8), "sha256"))
