"""Signatures, authentication codes and digests (PKCS#11 v3.1: 2.1 RSA, 2.3 elliptic curves, 2.20 SHA); SM2 as CKM_ECDSA over e."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.asymmetric.utils import NoDigestInfo, Prehashed

from hsm_sim.cka import CKF_DIGEST, CKF_SIGN, CKF_VERIFY, CKK_EC, CKK_GENERIC_SECRET, CKK_RSA, CKM_RSA_PKCS
from hsm_sim.errors import Code, Rejected
from hsm_sim.keys import Key
from hsm_sim.mechanisms.table import HASHES, MASKS, Eddsa, Mechanism, MlDsa, Params, Pss, mechanism
from pkix.algorithms import KeyKind
from pkix.errors import IronrootError

Signer = Callable[[bytes], bytes]
ALGORITHMS: dict[str, hashes.HashAlgorithm] = {
    "sha1": hashes.SHA1(),  # noqa: S303 - OAEP and MGF1 by default; never for signatures over messages
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}
_PKCS1, _PLAIN = padding.PKCS1v15(), NoDigestInfo()
_ECDSA = {32: ec.ECDSA(Prehashed(hashes.SHA256())), 48: ec.ECDSA(Prehashed(hashes.SHA384()))}
_LONGEST_DIGEST = 64


class Digested(bytes):
    """A digest in place of the message, for a mechanism that hashes first: the door has hashed already, part by part."""


def hasher(number: int) -> Any:
    """A ``hashlib`` object for a digest mechanism. Raises Rejected MECHANISM_INVALID."""
    return hashlib.new(mechanism(number, CKF_DIGEST).hash, usedforsecurity=False)


def digest(number: int, data: bytes) -> bytes:
    """The digest of ``data``. Raises Rejected MECHANISM_INVALID."""
    state = hasher(number)
    state.update(data)
    return bytes(state.digest())


def sign(key: Key, number: int, params: Params, data: bytes) -> bytes:
    """The signature over ``data`` as PKCS#11 writes it: r || s for ECDSA and SM2. For its errors see ``signer``."""
    return signer(key, number, params)(data)


def signer(key: Key, number: int, params: Params = None, *, der: bool = False) -> Signer:
    """What signs with this key and mechanism: checked and set up once, for any number of inputs, in any thread.

    Args:
        der: ECDSA and SM2 signatures as X9.62 DER instead of r || s.
    Raises:
        Rejected: MECHANISM_INVALID, KEY_TYPE_INCONSISTENT, MECHANISM_PARAM_INVALID; the signer itself DATA_LEN_RANGE, GENERAL_ERROR.
    """
    entry = _fitting(key, number, CKF_SIGN)
    make = _plain(key, entry, params, der=der)
    if not entry.hash:
        return make
    name = entry.hash

    def hash_and_sign(data: bytes) -> bytes:
        return make(data if isinstance(data, Digested) else hashlib.new(name, data).digest())

    return hash_and_sign


def verify(key: Key, number: int, params: Params, data: bytes, signature: bytes) -> None:
    """Returns if ``signature`` over ``data`` is right; ECDSA and SM2 as r || s.

    Raises Rejected: SIGNATURE_INVALID, SIGNATURE_LEN_RANGE, DATA_LEN_RANGE, and as ``signer``.
    """
    entry = _fitting(key, number, CKF_VERIFY)
    if entry.hash and not isinstance(data, Digested):
        data = hashlib.new(entry.hash, data).digest()
    length = signature_length(key, entry)
    if len(signature) != length:
        raise Rejected(Code.SIGNATURE_LEN_RANGE, f"a signature of this key has {length} octets, not {len(signature)}")
    try:
        right = _verifies(key, entry, params, data, signature)
    except InvalidSignature:
        right = False
    if not right:
        raise Rejected(Code.SIGNATURE_INVALID, "the signature is not of this key over this data")


def signature_length(key: Key, entry: Mechanism) -> int:
    """Octets of a raw signature (PKCS#11: what "just the length" is answered with)."""
    if key.key_type == CKK_RSA:
        return key.bits() // 8
    if key.key_type == CKK_GENERIC_SECRET:
        return int(hashlib.new(_hmac_hash(entry)).digest_size)
    return 3309 if key.kind == KeyKind.ML_DSA_65 else key.bits() // 4


def _fitting(key: Key, number: int, function: int) -> Mechanism:
    entry = mechanism(number, function)
    if entry.key_type != key.key_type or (entry.hash and key.kind == KeyKind.SM2):
        raise Rejected(Code.KEY_TYPE_INCONSISTENT, f"{entry.name} is not for keys of kind {key.kind}")
    return entry


def _plain(key: Key, entry: Mechanism, params: Params, *, der: bool) -> Signer:
    """The signer over what is signed: a digest, or the message where the algorithm hashes itself."""
    private = key.handle
    if key.key_type == CKK_RSA:
        scheme, prehash, allowed = _rsa(key, entry, params)
        return lambda data: bytes(private.sign(_of_length(data, allowed), scheme, prehash))
    if key.kind == KeyKind.SM2:
        return (lambda data: _sm2(private, data)) if der else (lambda data: raw(_sm2(private, data), 32))
    if key.key_type == CKK_EC:
        size = key.bits() // 8
        ecdsa = _ECDSA[size]
        if der:
            return lambda data: bytes(private.sign(data if len(data) == size else _fit(data, size), ecdsa))
        return lambda data: raw(private.sign(data if len(data) == size else _fit(data, size), ecdsa), size)
    if key.key_type == CKK_GENERIC_SECRET:
        name = _hmac_hash(entry)
        return lambda data: hmac.digest(private, data, name)
    _without_context(params)
    return lambda data: bytes(private.sign(data))


def _verifies(key: Key, entry: Mechanism, params: Params, data: bytes, signature: bytes) -> bool:
    """False or InvalidSignature for a wrong one."""
    public = key.handle
    if key.key_type == CKK_RSA:
        scheme, prehash, allowed = _rsa(key, entry, params)
        public.verify(signature, _of_length(data, allowed), scheme, prehash)
    elif key.kind == KeyKind.SM2:
        return bool(public.verify_digest(x962(signature), _of_length(data, range(32, 33))))
    elif key.key_type == CKK_EC:
        size = key.bits() // 8
        public.verify(x962(signature), _fit(data, size), _ECDSA[size])
    elif key.key_type == CKK_GENERIC_SECRET:
        return hmac.compare_digest(hmac.digest(public, data, _hmac_hash(entry)), signature)
    else:
        _without_context(params)
        public.verify(signature, data)
    return True


def _sm2(private: Any, data: bytes) -> bytes:
    try:
        return bytes(private.sign_digest(data))
    except IronrootError as error:
        raise Rejected(Code.DATA_LEN_RANGE, str(error)) from error


def _rsa(key: Key, entry: Mechanism, params: Params) -> tuple[Any, Any, range]:
    """Padding, hash and lengths of input."""
    if (entry.base if entry.hash else entry.number) == CKM_RSA_PKCS:
        prehash = Prehashed(ALGORITHMS[entry.hash]) if entry.hash else _PLAIN
        return _PKCS1, prehash, range(1, key.bits() // 8 - 10)
    if not isinstance(params, Pss):
        raise Rejected(Code.MECHANISM_PARAM_INVALID, f"{entry.name} needs its parameters")
    name = HASHES.get(params.hash, "")
    mask = MASKS.get(params.mgf, "")
    algorithm = ALGORITHMS.get(name)
    if algorithm is None or not mask or (entry.hash and entry.hash != name):
        raise Rejected(Code.MECHANISM_PARAM_INVALID, "a PSS hash or mask that is not taken here, or not the mechanism's")
    size = algorithm.digest_size
    if params.salt > key.bits() // 8 - size - 2:
        raise Rejected(Code.MECHANISM_PARAM_INVALID, f"a PSS salt of {params.salt} octets is longer than this key allows")
    return padding.PSS(padding.MGF1(ALGORITHMS[mask]), params.salt), Prehashed(algorithm), range(size, size + 1)


def _of_length(data: bytes, allowed: range) -> bytes:
    if len(data) not in allowed:
        raise Rejected(Code.DATA_LEN_RANGE, f"{len(data)} octets cannot be signed this way; {allowed[0]} to {allowed[-1]} can")
    return data


def _fit(data: bytes, size: int) -> bytes:
    """A digest of any length as ECDSA takes it: its leftmost octets, as many as the order of the curve has (FIPS 186-5 6.4.1)."""
    if not 1 <= len(data) <= _LONGEST_DIGEST:
        raise Rejected(Code.DATA_LEN_RANGE, f"ECDSA signs a digest of 1 to {_LONGEST_DIGEST} octets, not {len(data)}")
    return data[:size].rjust(size, b"\0")


def _without_context(params: Params) -> None:
    if isinstance(params, Eddsa | MlDsa) and (params.context or (isinstance(params, Eddsa) and params.prehash)):
        raise Rejected(Code.MECHANISM_PARAM_INVALID, "Ed25519 and ML-DSA sign here without context and without prehash")


def _hmac_hash(entry: Mechanism) -> str:
    return entry.name.removeprefix("CKM_").removesuffix("_HMAC").lower()


def raw(der: bytes, size: int) -> bytes:
    """r || s, ``size`` octets each, of a well-formed X9.62 signature of less than 128 octets of contents."""
    middle = 4 + der[3]
    return der[4:middle].lstrip(b"\0").rjust(size, b"\0") + der[middle + 2 :].lstrip(b"\0").rjust(size, b"\0")


def x962(signature: bytes) -> bytes:
    """DER SEQUENCE of two INTEGERs of r || s."""
    half = len(signature) // 2
    parts = b""
    for number in (signature[:half], signature[half:]):
        value = number.lstrip(b"\0") or b"\0"
        value = b"\0" + value if value[0] & 0x80 else value
        parts += b"\x02" + bytes((len(value),)) + value
    return b"\x30" + bytes((len(parts),)) + parts
