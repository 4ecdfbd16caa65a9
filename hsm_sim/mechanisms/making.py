"""How keys come to be: generated, unwrapped, derived; and how they leave: wrapped."""

from __future__ import annotations

import hashlib
from typing import Any

from cryptography.hazmat.primitives import keywrap
from cryptography.hazmat.primitives.asymmetric import ec

from hsm_sim import cka
from hsm_sim.cka import CKA_CLASS, CKA_KEY_TYPE, CKA_VALUE_LEN, CKF_DERIVE, CKF_GENERATE, CKF_GENERATE_KEY_PAIR, CKF_UNWRAP, CKF_WRAP
from hsm_sim.errors import Code, Rejected
from hsm_sim.keys import Key, bare_point, curve, generate, load_private, secret_key, secret_kind
from hsm_sim.mechanisms.ciphers import decrypt, encrypt, output_length
from hsm_sim.mechanisms.table import Ecdh1, Params, mechanism
from hsm_sim.objects import Template
from pkix.algorithms import KeyKind

_WRAP_IV = bytes.fromhex("A6A6A6A6A6A6A6A6"), bytes.fromhex("A65959A6")  # RFC 3394 2.2.3.1, RFC 5649 3


def generate_pair(number: int, params: Params, public: Template, private: Template) -> Key:
    """The private key of a new pair, as the templates ask for it. Takes up to a second for RSA: call it in a thread.

    Raises Rejected: MECHANISM_INVALID, MECHANISM_PARAM_INVALID, TEMPLATE_INCOMPLETE, TEMPLATE_INCONSISTENT, CURVE_NOT_SUPPORTED,
    ATTRIBUTE_VALUE_INVALID.
    """
    entry = mechanism(number, CKF_GENERATE_KEY_PAIR)
    _no_parameter(params)
    for template, cls in ((public, cka.CKO_PUBLIC_KEY), (private, cka.CKO_PRIVATE_KEY)):
        if template.get(CKA_CLASS, cls) != cls or template.get(CKA_KEY_TYPE, entry.key_type) != entry.key_type:
            raise Rejected(Code.TEMPLATE_INCONSISTENT, f"{entry.name} makes keys of another class or type than the template says")
    if number == cka.CKM_RSA_PKCS_KEY_PAIR_GEN:
        bits, exponent = public.get(cka.CKA_MODULUS_BITS), public.get(cka.CKA_PUBLIC_EXPONENT, b"\x01\x00\x01")
        if not isinstance(bits, int):
            raise Rejected(Code.TEMPLATE_INCOMPLETE, "the template of the public key lacks CKA_MODULUS_BITS")
        if not isinstance(exponent, bytes) or int.from_bytes(exponent) != 65537:
            raise Rejected(Code.ATTRIBUTE_VALUE_INVALID, "the public exponent of RSA keys made here is 65537")
        return generate(f"rsa-{bits}")
    if number == cka.CKM_ML_DSA_KEY_PAIR_GEN:
        if public.get(cka.CKA_PARAMETER_SET, cka.CKP_ML_DSA_65) != cka.CKP_ML_DSA_65:
            raise Rejected(Code.ATTRIBUTE_VALUE_INVALID, "of ML-DSA there is the parameter set ML-DSA-65")
        return generate(KeyKind.ML_DSA_65)
    if number == cka.CKM_EC_EDWARDS_KEY_PAIR_GEN and cka.CKA_EC_PARAMS not in public:
        return generate(KeyKind.ED25519)
    kind = curve(public)
    if (kind is KeyKind.ED25519) is not (number == cka.CKM_EC_EDWARDS_KEY_PAIR_GEN):
        raise Rejected(Code.CURVE_NOT_SUPPORTED, f"{entry.name} does not make keys on this curve")
    return generate(kind)


def generate_secret(number: int, params: Params, template: Template) -> Key:
    """A new secret key. Raises Rejected as ``generate_pair``."""
    entry = mechanism(number, CKF_GENERATE)
    _no_parameter(params)
    key_type = template.get(CKA_KEY_TYPE, entry.key_type)
    if template.get(CKA_CLASS, cka.CKO_SECRET_KEY) != cka.CKO_SECRET_KEY or key_type != entry.key_type:
        raise Rejected(Code.TEMPLATE_INCONSISTENT, f"{entry.name} makes keys of another class or type than the template says")
    length = template.get(CKA_VALUE_LEN, 16 if entry.key_type == cka.CKK_SM4 else None)
    if not isinstance(length, int):
        raise Rejected(Code.TEMPLATE_INCOMPLETE, "the template lacks CKA_VALUE_LEN, the octets of the key")
    return generate(secret_kind(entry.key_type, length), length)


def wrap(wrapping: Key, number: int, params: Params, target: Key) -> bytes:
    """``target`` under ``wrapping``: a private key as PKCS#8 (PKCS#11 v3.1, 6.7 and 2.9), a secret key as its octets.

    Raises Rejected: MECHANISM_INVALID, MECHANISM_PARAM_INVALID, WRAPPING_KEY_TYPE_INCONSISTENT,
    KEY_NOT_WRAPPABLE (its length does not fit).
    """
    entry = mechanism(number, CKF_WRAP)
    if entry.key_type != wrapping.key_type:
        raise Rejected(Code.WRAPPING_KEY_TYPE_INCONSISTENT, f"{entry.name} needs a wrapping key of another type")
    if target.cls == cka.CKO_PUBLIC_KEY:
        raise Rejected(Code.KEY_NOT_WRAPPABLE, "a public key is read, not wrapped")
    plain = target.secret()
    if number in _KEY_WRAPS:
        wrapper, _ = _KEY_WRAPS[number]
        _default_iv(number, params)
        if number == cka.CKM_AES_KEY_WRAP and (len(plain) < 16 or len(plain) % 8):
            raise Rejected(Code.KEY_NOT_WRAPPABLE, "CKM_AES_KEY_WRAP takes keys of whole 8 octets; wrap this one with CKM_AES_KEY_WRAP_KWP")
        return bytes(wrapper(wrapping.handle, plain))
    try:
        return encrypt(wrapping, number, params, plain)
    except Rejected as error:
        if error.code is Code.DATA_LEN_RANGE:
            raise Rejected(Code.KEY_NOT_WRAPPABLE, f"this key is too long for {entry.name}") from error
        raise


def wrapped_length(wrapping: Key, number: int, target: Key) -> int:
    """Octets of what ``wrap`` returns, before it is done."""
    length = len(target.secret())
    if number in _KEY_WRAPS:
        return -(-length // 8) * 8 + 8
    return output_length(cka.CKF_ENCRYPT, wrapping, number, None, length)


def unwrap(unwrapping: Key, number: int, params: Params, wrapped: bytes, template: Template) -> Key:
    """The private or secret key in ``wrapped``; ``template`` says which: CKA_CLASS and CKA_KEY_TYPE, perhaps CKA_VALUE_LEN.

    Raises Rejected: MECHANISM_INVALID, MECHANISM_PARAM_INVALID, UNWRAPPING_KEY_TYPE_INCONSISTENT, WRAPPED_KEY_INVALID,
    WRAPPED_KEY_LEN_RANGE, TEMPLATE_INCOMPLETE, TEMPLATE_INCONSISTENT.
    """
    entry = mechanism(number, CKF_UNWRAP)
    if entry.key_type != unwrapping.key_type:
        raise Rejected(Code.UNWRAPPING_KEY_TYPE_INCONSISTENT, f"{entry.name} needs an unwrapping key of another type")
    cls, key_type = template.get(CKA_CLASS), template.get(CKA_KEY_TYPE)
    if not isinstance(cls, int) or not isinstance(key_type, int):
        raise Rejected(Code.TEMPLATE_INCOMPLETE, "the template of an unwrapped key says CKA_CLASS and CKA_KEY_TYPE")
    if cls not in (cka.CKO_PRIVATE_KEY, cka.CKO_SECRET_KEY):
        raise Rejected(Code.TEMPLATE_INCONSISTENT, "private and secret keys are unwrapped, nothing else")
    plain = _unwrapped(unwrapping, number, params, wrapped)
    if cls == cka.CKO_PRIVATE_KEY:
        key = load_private(plain)
        if key.key_type != key_type:
            raise Rejected(Code.TEMPLATE_INCONSISTENT, f"the wrapped key is of kind {key.kind}; the template says another CKA_KEY_TYPE")
        return key
    return _secret(key_type, plain, Code.WRAPPED_KEY_INVALID)


def derive(base: Key, number: int, params: Params, template: Template) -> Key:
    """ECDH (PKCS#11 v3.1, 2.3.21): a secret key from our private key and the other side's point. The rightmost octets are taken.

    Raises Rejected: MECHANISM_INVALID, MECHANISM_PARAM_INVALID (also a point that is not on the curve), KEY_TYPE_INCONSISTENT,
    TEMPLATE_INCONSISTENT, ATTRIBUTE_VALUE_INVALID.
    """
    entry = mechanism(number, CKF_DERIVE)
    if base.key_type != entry.key_type or base.kind == KeyKind.SM2:
        raise Rejected(Code.KEY_TYPE_INCONSISTENT, f"{entry.name} is not for keys of kind {base.kind}")
    if not isinstance(params, Ecdh1) or params.kdf not in (cka.CKD_NULL, cka.CKD_SHA256_KDF):
        raise Rejected(Code.MECHANISM_PARAM_INVALID, "ECDH takes the other side's point, and CKD_NULL or CKD_SHA256_KDF")
    try:
        point = ec.EllipticCurvePublicKey.from_encoded_point(base.handle.curve, bare_point(params.public))
    except ValueError:
        raise Rejected(Code.MECHANISM_PARAM_INVALID, "the other side's public key is not a point of this curve") from None
    shared = base.handle.exchange(ec.ECDH(), point)
    key_type = template.get(CKA_KEY_TYPE, cka.CKK_GENERIC_SECRET)
    length = template.get(CKA_VALUE_LEN, len(shared))
    if template.get(CKA_CLASS, cka.CKO_SECRET_KEY) != cka.CKO_SECRET_KEY or not isinstance(key_type, int):
        raise Rejected(Code.TEMPLATE_INCONSISTENT, "what is derived here is a secret key")
    if not isinstance(length, int) or not 1 <= length <= (len(shared) if params.kdf == cka.CKD_NULL else 512):
        raise Rejected(Code.ATTRIBUTE_VALUE_INVALID, "CKA_VALUE_LEN is more than this derivation gives")
    octets = shared[-length:] if params.kdf == cka.CKD_NULL else _x963(shared, params.shared, length)
    return _secret(key_type, octets, Code.ATTRIBUTE_VALUE_INVALID)


def _unwrapped(key: Key, number: int, params: Params, wrapped: bytes) -> bytes:
    if number in _KEY_WRAPS:
        _, unwrapper = _KEY_WRAPS[number]
        _default_iv(number, params)
        try:
            return bytes(unwrapper(key.handle, wrapped))
        except (keywrap.InvalidUnwrap, ValueError):
            raise _not_ours() from None
    try:
        return decrypt(key, number, params, wrapped)
    except Rejected as error:
        if error.code in (Code.ENCRYPTED_DATA_INVALID, Code.ENCRYPTED_DATA_LEN_RANGE):
            raise _not_ours() from error
        raise


def _secret(key_type: int, octets: bytes, otherwise: Code) -> Key:
    try:
        kind = secret_kind(key_type, len(octets))
        return secret_key(kind, octets)
    except Rejected as error:
        if error.code is Code.ATTRIBUTE_VALUE_INVALID:
            raise Rejected(otherwise, f"{len(octets)} octets are no key of this type") from error
        raise


def _x963(shared: bytes, info: bytes, length: int) -> bytes:
    """ANSI X9.63 key derivation with SHA-256 (SEC 1, 3.6.1)."""
    blocks = (hashlib.sha256(shared + counter.to_bytes(4) + info).digest() for counter in range(1, -(-length // 32) + 1))
    return b"".join(blocks)[:length]


def _default_iv(number: int, params: Params) -> None:
    """The standard's initial value may be given; another one is not taken."""
    if params not in (None, b"", _WRAP_IV[number != cka.CKM_AES_KEY_WRAP]):
        raise Rejected(Code.MECHANISM_PARAM_INVALID, "AES key wrap is done here with the initial value of its RFC")


def _no_parameter(params: Params) -> None:
    if params not in (None, b""):
        raise Rejected(Code.MECHANISM_PARAM_INVALID, "this mechanism has no parameter")


def _not_ours() -> Rejected:
    return Rejected(Code.WRAPPED_KEY_INVALID, "the wrapped key does not open: another wrapping key or mechanism, or it was changed")


_PADDED: tuple[Any, Any] = keywrap.aes_key_wrap_with_padding, keywrap.aes_key_unwrap_with_padding
_KEY_WRAPS: dict[int, tuple[Any, Any]] = {
    cka.CKM_AES_KEY_WRAP: (keywrap.aes_key_wrap, keywrap.aes_key_unwrap),
    cka.CKM_AES_KEY_WRAP_PAD: _PADDED,
    cka.CKM_AES_KEY_WRAP_KWP: _PADDED,
}
