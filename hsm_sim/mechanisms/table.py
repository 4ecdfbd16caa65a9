"""The one table of mechanisms, their parameters, and the check whether a key may be used with one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType, NoneType

from hsm_sim import cka
from hsm_sim.cka import (
    CKF_DECRYPT,
    CKF_DERIVE,
    CKF_DIGEST,
    CKF_ENCRYPT,
    CKF_GENERATE,
    CKF_GENERATE_KEY_PAIR,
    CKF_SIGN,
    CKF_UNWRAP,
    CKF_VERIFY,
    CKF_WRAP,
)
from hsm_sim.errors import Code, Rejected
from hsm_sim.objects import Template


@dataclass(frozen=True, slots=True)
class Pss:
    """CK_RSA_PKCS_PSS_PARAMS: CKM_ of the hash, CKG_ of the mask, octets of salt."""

    hash: int
    mgf: int
    salt: int


@dataclass(frozen=True, slots=True)
class Oaep:
    """CK_RSA_PKCS_OAEP_PARAMS: CKM_ of the hash, CKG_ of the mask, label."""

    hash: int
    mgf: int
    source: bytes = b""


@dataclass(frozen=True, slots=True)
class Gcm:
    """CK_GCM_PARAMS: initialisation vector, additional data, bits of tag."""

    iv: bytes
    aad: bytes = b""
    tag_bits: int = 128


@dataclass(frozen=True, slots=True)
class Ecdh1:
    """CK_ECDH1_DERIVE_PARAMS: CKD_ of the derivation, shared data, the other side's point (bare, or in an OCTET STRING)."""

    kdf: int
    shared: bytes
    public: bytes


@dataclass(frozen=True, slots=True)
class Eddsa:
    """CK_EDDSA_PARAMS: Ed25519ph or not, and the context. Only the plain form (False, empty) is signed here."""

    prehash: bool = False
    context: bytes = b""


@dataclass(frozen=True, slots=True)
class MlDsa:
    """CK_SIGN_ADDITIONAL_CONTEXT: which kind of randomness, and the context. Only the empty context is signed here."""

    hedge: int = 0
    context: bytes = b""


Params = None | bytes | Pss | Oaep | Gcm | Ecdh1 | Eddsa | MlDsa
"""A mechanism's parameter: nothing, an initialisation vector, or one of the structures."""


@dataclass(frozen=True, slots=True)
class Mechanism:
    """One mechanism as C_GetMechanismInfo describes it, and what it takes.

    Attributes:
        number, name: CKM_….
        flags: CKF_… of the functions that it serves.
        key_type: CKK_… of the keys it works with; -1 for digests.
        minimum, maximum: key sizes; bits, but octets for AES (PKCS#11 v3.1, 2.9).
        hash: name of the hash that it puts before ``base``; "" if its input is taken as it is.
        base: the mechanism that works on the digest.
        params: class of its parameter; NoneType for none.
        optional: whether the parameter may be left out.
        single: it signs in one part only (PKCS#11 v3.1, tables of 2.1 and 2.3).
    """

    number: int
    name: str
    flags: int
    key_type: int = -1
    minimum: int = 0
    maximum: int = 0
    hash: str = ""
    base: int = -1
    params: type = NoneType
    optional: bool = False
    single: bool = False


_SIGN, _CIPHER, _WRAP = CKF_SIGN | CKF_VERIFY, CKF_ENCRYPT | CKF_DECRYPT, CKF_WRAP | CKF_UNWRAP
_EC = cka.CKF_EC_F_P | cka.CKF_EC_NAMEDCURVE | cka.CKF_EC_UNCOMPRESS


def _table() -> dict[int, Mechanism]:
    made: dict[int, Mechanism] = {}

    def add(name: str, flags: int, key_type: int = -1, sizes: tuple[int, int] = (0, 0), params: type = NoneType, **more: object) -> None:
        number = getattr(cka, name)
        made[number] = Mechanism(number, name, flags, key_type, *sizes, params=params, **more)  # type: ignore[arg-type]

    rsa, ec, ed, aes, generic, sm4 = cka.CKK_RSA, cka.CKK_EC, cka.CKK_EC_EDWARDS, cka.CKK_AES, cka.CKK_GENERIC_SECRET, cka.CKK_SM4
    rsa_bits, ec_bits, octets, any_bits = (2048, 4096), (256, 384), (16, 32), (8, 4096)
    for name in ("CKM_SHA_1", "CKM_SHA256", "CKM_SHA384", "CKM_SHA512", "CKM_SM3"):
        add(name, CKF_DIGEST, hash=HASHES[getattr(cka, name)])
    add("CKM_RSA_PKCS_KEY_PAIR_GEN", CKF_GENERATE_KEY_PAIR, rsa, rsa_bits)
    add("CKM_RSA_PKCS", _SIGN | _CIPHER | _WRAP, rsa, rsa_bits, single=True)
    add("CKM_RSA_PKCS_PSS", _SIGN, rsa, rsa_bits, Pss, single=True)
    add("CKM_RSA_PKCS_OAEP", _CIPHER | _WRAP, rsa, rsa_bits, Oaep)
    add("CKM_EC_KEY_PAIR_GEN", CKF_GENERATE_KEY_PAIR | _EC, ec, ec_bits)
    add("CKM_ECDSA", _SIGN | _EC, ec, ec_bits, single=True)
    add("CKM_ECDH1_DERIVE", CKF_DERIVE | _EC, ec, ec_bits, Ecdh1)
    add("CKM_EC_EDWARDS_KEY_PAIR_GEN", CKF_GENERATE_KEY_PAIR | _EC, ed, (255, 255))
    add("CKM_EDDSA", _SIGN | _EC, ed, (255, 255), Eddsa, optional=True)
    add("CKM_ML_DSA_KEY_PAIR_GEN", CKF_GENERATE_KEY_PAIR, cka.CKK_ML_DSA)
    add("CKM_ML_DSA", _SIGN, cka.CKK_ML_DSA, params=MlDsa, optional=True)
    for size in (256, 384, 512):
        add(f"CKM_SHA{size}_RSA_PKCS", _SIGN, rsa, rsa_bits, hash=f"sha{size}", base=cka.CKM_RSA_PKCS)
        add(f"CKM_SHA{size}_RSA_PKCS_PSS", _SIGN, rsa, rsa_bits, Pss, hash=f"sha{size}", base=cka.CKM_RSA_PKCS_PSS)
        add(f"CKM_ECDSA_SHA{size}", _SIGN | _EC, ec, ec_bits, hash=f"sha{size}", base=cka.CKM_ECDSA)
        add(f"CKM_SHA{size}_HMAC", _SIGN, generic, any_bits)
    add("CKM_GENERIC_SECRET_KEY_GEN", CKF_GENERATE, generic, any_bits)
    add("CKM_AES_KEY_GEN", CKF_GENERATE, aes, octets)
    add("CKM_AES_ECB", _CIPHER, aes, octets)
    add("CKM_AES_CBC", _CIPHER, aes, octets, bytes)
    add("CKM_AES_CBC_PAD", _CIPHER | _WRAP, aes, octets, bytes)
    add("CKM_AES_GCM", _CIPHER, aes, octets, Gcm)
    for name in ("CKM_AES_KEY_WRAP", "CKM_AES_KEY_WRAP_PAD", "CKM_AES_KEY_WRAP_KWP"):
        add(name, _WRAP, aes, octets, bytes, optional=True)
    add("CKM_SM4_KEY_GEN", CKF_GENERATE, sm4, (16, 16))
    add("CKM_SM4_ECB", _CIPHER, sm4, (16, 16))
    add("CKM_SM4_CBC", _CIPHER, sm4, (16, 16), bytes)
    return made


HASHES: Mapping[int, str] = MappingProxyType(
    {cka.CKM_SHA_1: "sha1", cka.CKM_SHA256: "sha256", cka.CKM_SHA384: "sha384", cka.CKM_SHA512: "sha512", cka.CKM_SM3: "sm3"}
)
"""Digest mechanism to the name that ``hashlib`` knows."""
MASKS: Mapping[int, str] = MappingProxyType(
    {cka.CKG_MGF1_SHA1: "sha1", cka.CKG_MGF1_SHA256: "sha256", cka.CKG_MGF1_SHA384: "sha384", cka.CKG_MGF1_SHA512: "sha512"}
)
TABLE: Mapping[int, Mechanism] = MappingProxyType(_table())
"""Every mechanism of the device, by number."""
BY_NAME: Mapping[str, Mechanism] = MappingProxyType({entry.name: entry for entry in TABLE.values()})

USAGE: Mapping[int, int] = MappingProxyType(
    {
        CKF_SIGN: cka.CKA_SIGN,
        CKF_VERIFY: cka.CKA_VERIFY,
        CKF_ENCRYPT: cka.CKA_ENCRYPT,
        CKF_DECRYPT: cka.CKA_DECRYPT,
        CKF_WRAP: cka.CKA_WRAP,
        CKF_UNWRAP: cka.CKA_UNWRAP,
        CKF_DERIVE: cka.CKA_DERIVE,
    }
)
"""Function to the attribute that permits it."""


def mechanism(number: int, function: int) -> Mechanism:
    """The mechanism, if it serves this function (CKF_…). Raises Rejected MECHANISM_INVALID."""
    entry = TABLE.get(number)
    if entry is None or not entry.flags & function:
        raise Rejected(Code.MECHANISM_INVALID, f"mechanism 0x{number:X} is not there, or not for this function")
    return entry


def check(function: int, number: int, params: Params, attributes: Template) -> Mechanism:
    """Whether an object with these attributes may be used for ``function`` (CKF_SIGN …) with this mechanism. The mechanism, if so.

    Raises Rejected: MECHANISM_INVALID (unknown, not for this function, not among CKA_ALLOWED_MECHANISMS), MECHANISM_PARAM_INVALID,
    KEY_TYPE_INCONSISTENT, KEY_FUNCTION_NOT_PERMITTED (the attribute for this use is not true).
    """
    entry = mechanism(number, function)
    if not (isinstance(params, entry.params) or (params is None and entry.optional)):
        raise Rejected(Code.MECHANISM_PARAM_INVALID, f"{entry.name} does not take this parameter")
    key_type = attributes.get(cka.CKA_KEY_TYPE)
    if entry.key_type not in (key_type, -1):
        raise Rejected(Code.KEY_TYPE_INCONSISTENT, f"{entry.name} needs a key of another type")
    if entry.hash and entry.key_type == cka.CKK_EC and attributes.get(cka.CKA_EC_PARAMS) == SM2_PARAMS:
        raise Rejected(Code.KEY_TYPE_INCONSISTENT, "an SM2 key signs e = SM3(Z || message) with CKM_ECDSA; SHA-2 is not for it")
    if attributes.get(USAGE[function]) is not True:
        raise Rejected(Code.KEY_FUNCTION_NOT_PERMITTED, f"the key's attributes do not permit {entry.name} this way")
    allowed = attributes.get(cka.CKA_ALLOWED_MECHANISMS)
    if isinstance(allowed, tuple) and allowed and number not in allowed:
        raise Rejected(Code.MECHANISM_INVALID, f"{entry.name} is not among the key's CKA_ALLOWED_MECHANISMS")
    return entry


SM2_PARAMS = bytes.fromhex("06082A811CCF5501822D")
"""CKA_EC_PARAMS of an SM2 key: OID 1.2.156.10197.1.301."""
