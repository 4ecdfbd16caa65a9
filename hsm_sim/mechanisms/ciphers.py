"""Encryption and decryption: RSA with PKCS#1 v1.5 and OAEP (PKCS#11 v3.1, 2.1.6 and 2.1.8), AES (2.9 to 2.13), SM4."""

from __future__ import annotations

from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import padding as blocks
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from hsm_sim.cka import (
    CKF_DECRYPT,
    CKF_ENCRYPT,
    CKK_RSA,
    CKK_SM4,
    CKM_AES_CBC_PAD,
    CKM_AES_ECB,
    CKM_AES_GCM,
    CKM_RSA_PKCS,
    CKM_SM4_ECB,
)
from hsm_sim.errors import Code, Rejected
from hsm_sim.keys import Key
from hsm_sim.mechanisms.signatures import ALGORITHMS
from hsm_sim.mechanisms.table import HASHES, MASKS, Gcm, Oaep, Params, mechanism

BLOCK = 16
TAG_BITS = frozenset((96, 104, 112, 120, 128))


def encrypt(key: Key, number: int, params: Params, data: bytes) -> bytes:
    """``data`` encrypted; with CKM_AES_GCM the tag comes last. RSA: ``key`` is the public one.

    Raises Rejected: MECHANISM_INVALID, MECHANISM_PARAM_INVALID, KEY_TYPE_INCONSISTENT, DATA_LEN_RANGE.
    """
    _fitting(key, number, CKF_ENCRYPT)
    if key.key_type == CKK_RSA:
        scheme = rsa_scheme(number, params)
        try:
            return bytes(key.handle.encrypt(data, scheme))
        except ValueError:
            raise Rejected(Code.DATA_LEN_RANGE, f"{len(data)} octets are too long for this key and padding") from None
    if number == CKM_AES_GCM:
        mode, tag = _gcm(params)
        encryptor = Cipher(algorithms.AES(key.handle), mode).encryptor()
        encryptor.authenticate_additional_data(params.aad if isinstance(params, Gcm) else b"")
        return encryptor.update(data) + encryptor.finalize() + encryptor.tag[:tag]
    if number == CKM_AES_CBC_PAD:
        padder = blocks.PKCS7(8 * BLOCK).padder()
        data = padder.update(data) + padder.finalize()
    if len(data) % BLOCK:
        raise Rejected(Code.DATA_LEN_RANGE, f"this mechanism takes whole blocks of {BLOCK} octets, not {len(data)} octets")
    encryptor = _block_cipher(key, number, params).encryptor()
    return bytes(encryptor.update(data) + encryptor.finalize())


def decrypt(key: Key, number: int, params: Params, data: bytes) -> bytes:
    """The reverse of ``encrypt``. RSA: ``key`` is the private one.

    Raises Rejected: ENCRYPTED_DATA_INVALID, ENCRYPTED_DATA_LEN_RANGE, and as ``encrypt``. A wrong PKCS#1 v1.5 padding gives octets without
    meaning instead of an error (implicit rejection), as the library does it against Bleichenbacher's attack.
    """
    _fitting(key, number, CKF_DECRYPT)
    if key.key_type == CKK_RSA:
        scheme = rsa_scheme(number, params)
        if len(data) != key.bits() // 8:
            raise Rejected(Code.ENCRYPTED_DATA_LEN_RANGE, f"this key decrypts {key.bits() // 8} octets, not {len(data)}")
        try:
            return bytes(key.handle.decrypt(data, scheme))
        except ValueError:
            raise _undecipherable() from None
    if number == CKM_AES_GCM:
        return _open_gcm(key, params, data)
    if len(data) % BLOCK or (number == CKM_AES_CBC_PAD and not data):
        raise Rejected(Code.ENCRYPTED_DATA_LEN_RANGE, f"this mechanism takes whole blocks of {BLOCK} octets, not {len(data)} octets")
    decryptor = _block_cipher(key, number, params).decryptor()
    plain = bytes(decryptor.update(data) + decryptor.finalize())
    if number != CKM_AES_CBC_PAD:
        return plain
    unpadder = blocks.PKCS7(8 * BLOCK).unpadder()
    try:
        return unpadder.update(plain) + unpadder.finalize()
    except ValueError:
        raise _undecipherable() from None


def output_length(function: int, key: Key, number: int, params: Params, length: int) -> int:
    """Octets that come out of ``length``: exactly for ``encrypt`` (CKF_ENCRYPT), at most for ``decrypt``."""
    if key.key_type == CKK_RSA:
        return key.bits() // 8
    if function == CKF_DECRYPT:
        return length
    if number == CKM_AES_CBC_PAD:
        return (length // BLOCK + 1) * BLOCK
    return length + (params.tag_bits // 8 if isinstance(params, Gcm) else 0)


def rsa_scheme(number: int, params: Params) -> Any:
    """The padding of an RSA encryption. Raises Rejected MECHANISM_PARAM_INVALID."""
    if number == CKM_RSA_PKCS:
        return padding.PKCS1v15()
    if not isinstance(params, Oaep):
        raise Rejected(Code.MECHANISM_PARAM_INVALID, "OAEP needs its parameters")
    algorithm, mask = ALGORITHMS.get(HASHES.get(params.hash, "")), ALGORITHMS.get(MASKS.get(params.mgf, ""))
    if algorithm is None or mask is None:
        raise Rejected(Code.MECHANISM_PARAM_INVALID, "an OAEP hash or mask that is not taken here")
    return padding.OAEP(padding.MGF1(mask), algorithm, params.source or None)


def _open_gcm(key: Key, params: Params, data: bytes) -> bytes:
    mode, tag = _gcm(params)
    if len(data) < tag:
        raise Rejected(Code.ENCRYPTED_DATA_LEN_RANGE, "the data is shorter than its tag")
    decryptor = Cipher(algorithms.AES(key.handle), mode).decryptor()
    decryptor.authenticate_additional_data(params.aad if isinstance(params, Gcm) else b"")
    plain = decryptor.update(data[: len(data) - tag])
    try:
        return plain + decryptor.finalize_with_tag(data[len(data) - tag :])
    except InvalidTag:
        raise _undecipherable() from None


def _gcm(params: Params) -> tuple[modes.GCM, int]:
    """Mode, and octets of tag (NIST SP 800-38D 5.2.1.2 without the short ones)."""
    if not isinstance(params, Gcm) or params.tag_bits not in TAG_BITS or not 8 <= len(params.iv) <= 128:
        raise Rejected(
            Code.MECHANISM_PARAM_INVALID, "AES-GCM takes an initialisation vector of 8 to 128 octets and a tag of 96 to 128 bits"
        )
    tag = params.tag_bits // 8
    return modes.GCM(params.iv, min_tag_length=tag), tag


def _block_cipher(key: Key, number: int, params: Params) -> Cipher[Any]:
    algorithm = algorithms.SM4(key.handle) if key.key_type == CKK_SM4 else algorithms.AES(key.handle)
    if number in (CKM_AES_ECB, CKM_SM4_ECB):
        return Cipher(algorithm, modes.ECB())  # noqa: S305 - PKCS#11 programs ask for single blocks this way
    if not isinstance(params, bytes) or len(params) != BLOCK:
        raise Rejected(Code.MECHANISM_PARAM_INVALID, f"the initialisation vector has {BLOCK} octets")
    return Cipher(algorithm, modes.CBC(params))


def _fitting(key: Key, number: int, function: int) -> None:
    entry = mechanism(number, function)
    if entry.key_type != key.key_type:
        raise Rejected(Code.KEY_TYPE_INCONSISTENT, f"{entry.name} is not for keys of kind {key.kind}")


def _undecipherable() -> Rejected:
    return Rejected(Code.ENCRYPTED_DATA_INVALID, "the data does not decrypt: another key or parameter, or it was changed")
