"""SM2 public-key encryption (GB/T 32918.4-2016), in the two forms that are met: DER SM2Cipher (GM/T 0009 7.2) and C1 || C3 || C2.

    cipher = encrypt(public_key.handle, b"a session key")      # DER
    decrypt(private, cipher)                                   # sm2.Key with its scalar; Malformed if anything was changed
    from_raw(to_raw(cipher)) == cipher                         # 04 || X || Y || C3 || C2

The curve point is checked before a library sees it, C3 by the library, and a key stream of zeros, which would be a ciphertext that shows
its plaintext, is neither made nor accepted (GB/T 32918.4 6.1 A5, 7.1 B4). The old order C1 || C2 || C3 cannot be told apart and is not
taken.
"""

from __future__ import annotations

from typing import NamedTuple

from pkix import der, sm2
from pkix.errors import Malformed

MAX_PLAINTEXT = 4096
"""Octets; what is longer belongs under a symmetric key. GmSSL takes 255."""

_REFUSED = "SM2: the ciphertext was made for another key, or was changed"


class Sm2Cipher(NamedTuple):
    """The parts of a ciphertext: C1 as 04 || X || Y (on the curve), C3 (32 octets), C2 (as long as the plaintext)."""

    point: bytes
    hash: bytes
    text: bytes

    def to_der(self) -> bytes:
        """SEQUENCE { XCoordinate INTEGER, YCoordinate INTEGER, HASH OCTET STRING, CipherText OCTET STRING } (GM/T 0009 7.2)."""
        x, y = int.from_bytes(self.point[1:33]), int.from_bytes(self.point[33:])
        return der.sequence(der.integer(x), der.integer(y), der.octet_string(self.hash), der.octet_string(self.text))

    def to_raw(self) -> bytes:
        """C1 || C3 || C2 (GB/T 32918.4)."""
        return self.point + self.hash + self.text


def parse(cipher: bytes) -> Sm2Cipher:
    """The parts of a DER SM2Cipher. Raises Malformed; WeakKey for a point that is not on the curve."""
    root = der.prescan(cipher, max_size=MAX_PLAINTEXT + 256, max_depth=2)
    parts = der.children(cipher, root)
    if root.tag != der.SEQUENCE or len(parts) != 4:
        raise Malformed("an SM2Cipher is a SEQUENCE of two coordinates, a hash and the encrypted octets (GM/T 0009 7.2)")
    x, y = (int.from_bytes(der.expect(cipher, part, der.INTEGER, "a coordinate"), signed=True) for part in parts[:2])
    if not (0 <= x < sm2.P and 0 <= y < sm2.P):
        raise Malformed("SM2: a coordinate of the ciphertext lies outside the field")
    octets = [der.expect(cipher, part, der.OCTET_STRING, "a part of an SM2Cipher") for part in parts[2:]]
    return _checked(b"\x04" + x.to_bytes(32) + y.to_bytes(32), *octets)


def from_raw(cipher: bytes) -> bytes:
    """DER of a ciphertext that was written as 04 || X || Y || C3 || C2. Raises Malformed, WeakKey."""
    if len(cipher) < 98:
        raise Malformed("SM2: a ciphertext C1 || C3 || C2 is longer than 97 octets and begins with 04")
    return _checked(cipher[:65], cipher[65:97], cipher[97:]).to_der()


def to_raw(cipher: bytes) -> bytes:
    """04 || X || Y || C3 || C2 of a DER SM2Cipher. Raises Malformed, WeakKey."""
    return parse(cipher).to_raw()


def encrypt(key: sm2.Key, plaintext: bytes) -> bytes:
    """``plaintext`` (1 to 4096 octets) for the holder of ``key``'s private half: DER of SM2Cipher. Raises Malformed for another length."""
    if not 1 <= len(plaintext) <= MAX_PLAINTEXT:
        raise Malformed(f"SM2 encrypts 1 to {MAX_PLAINTEXT} octets, not {len(plaintext)}; put a symmetric key under it")
    while True:
        cipher = key.encrypt(plaintext)
        if parse(cipher).text != plaintext:
            return cipher


def decrypt(key: sm2.Key, cipher: bytes) -> bytes:
    """The plaintext of a DER SM2Cipher. Raises Malformed, in the same words whatever was wrong inside; WeakKey as ``parse``."""
    parts = parse(cipher)
    plaintext = key.decrypt(cipher)
    if plaintext is None or plaintext == parts.text:
        raise Malformed(_REFUSED)
    return plaintext


def _checked(point: bytes, hash: bytes, text: bytes) -> Sm2Cipher:
    sm2.check_point(point)
    if len(hash) != 32 or not 1 <= len(text) <= MAX_PLAINTEXT:
        raise Malformed(f"SM2: a ciphertext has a hash of 32 octets, and 1 to {MAX_PLAINTEXT} encrypted ones")
    return Sm2Cipher(point, hash, text)
