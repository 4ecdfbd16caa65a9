"""Usable key material: one class for private, public and secret keys, and the ways to come by one.

    key = generate("p-256")
    again = load("p-256", key.secret())            # what the store seals and opens
    public = load_public(key.spki)
    key.attributes()                               # what PKCS#11 says about the material; nothing secret

What may be done with a key is written in its object's attributes; what can be done, in ``hsm_sim.mechanisms``.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from hsm_sim.cka import (
    CKA_COEFFICIENT,
    CKA_EC_PARAMS,
    CKA_EC_POINT,
    CKA_EXPONENT_1,
    CKA_EXPONENT_2,
    CKA_KEY_TYPE,
    CKA_MODULUS,
    CKA_MODULUS_BITS,
    CKA_PARAMETER_SET,
    CKA_PRIME_1,
    CKA_PRIME_2,
    CKA_PRIVATE_EXPONENT,
    CKA_PUBLIC_EXPONENT,
    CKA_PUBLIC_KEY_INFO,
    CKA_VALUE,
    CKA_VALUE_LEN,
    CKK_AES,
    CKK_EC,
    CKK_EC_EDWARDS,
    CKK_GENERIC_SECRET,
    CKK_ML_DSA,
    CKK_RSA,
    CKK_SM4,
    CKO_PRIVATE_KEY,
    CKO_PUBLIC_KEY,
    CKO_SECRET_KEY,
    CKP_ML_DSA_65,
)
from hsm_sim.errors import Code, Rejected
from hsm_sim.objects import Template
from pkix import der, privatekey
from pkix.algorithms import KeyKind, PublicKey, load_public_key
from pkix.errors import IronrootError

GENERIC = "generic"
SECRET_LENGTHS = {"aes-128": 16, "aes-192": 24, "aes-256": 32, "sm4": 16}
MAX_GENERIC = 512  # octets of a generic secret
RSA_BITS = (2048, 4096)

P_256_PARAMS, P_384_PARAMS = der.oid("1.2.840.10045.3.1.7"), der.oid("1.3.132.0.34")
SM2_PARAMS = der.oid("1.2.156.10197.1.301")
ED25519_PARAMS = der.oid("1.3.101.112")
CURVES: dict[bytes, KeyKind] = {
    P_256_PARAMS: KeyKind.P_256,
    P_384_PARAMS: KeyKind.P_384,
    SM2_PARAMS: KeyKind.SM2,
    ED25519_PARAMS: KeyKind.ED25519,
    b"\x13\x0cedwards25519": KeyKind.ED25519,  # PrintableString, as PKCS#11 v3.0 2.3.5 has it
}
"""CKA_EC_PARAMS to kind."""
_PARAMS = {KeyKind.P_256: P_256_PARAMS, KeyKind.P_384: P_384_PARAMS, KeyKind.SM2: SM2_PARAMS, KeyKind.ED25519: ED25519_PARAMS}
_EC_OID, _ED_OID = der.oid("1.2.840.10045.2.1"), der.oid("1.3.101.112")
_TYPES = {
    KeyKind.ED25519: CKK_EC_EDWARDS,
    KeyKind.ML_DSA_65: CKK_ML_DSA,
    **dict.fromkeys((KeyKind.P_256, KeyKind.P_384, KeyKind.SM2), CKK_EC),
}
_SECRET_TYPES = {"aes-128": CKK_AES, "aes-192": CKK_AES, "aes-256": CKK_AES, "sm4": CKK_SM4, GENERIC: CKK_GENERIC_SECRET}


@dataclass(frozen=True, slots=True, eq=False)
class Key:
    """Material that can be used. ``repr`` shows nothing of it.

    Attributes:
        kind: a ``KeyKind`` ("p-256", "rsa-2048", …), or "aes-128", "aes-192", "aes-256", "sm4", "generic".
        cls: CKO_PRIVATE_KEY, CKO_PUBLIC_KEY or CKO_SECRET_KEY.
        key_type: CKK_….
        spki: SubjectPublicKeyInfo (DER) of the pair; empty for a secret key.
        handle: a key of ``cryptography``'s, an ``sm2.Key``, or the octets of a secret key.
    """

    kind: str
    cls: int
    key_type: int
    spki: bytes
    handle: Any = field(repr=False)

    def secret(self) -> bytes:
        """PKCS#8 (DER) of a private key, the octets of a secret key, nothing of a public one. For sealing and wrapping only."""
        if self.cls == CKO_PRIVATE_KEY:
            return privatekey.PrivateKey(load_public_key(self.spki), self.handle).to_der()
        return self.handle if self.cls == CKO_SECRET_KEY else b""

    def public(self) -> Key:
        """The public half of a pair, which cannot sign."""
        return load_public(self.spki)

    def bits(self) -> int:
        """CKA_MODULUS_BITS of RSA, the size of the curve, or 8 times the octets of a secret key."""
        if self.cls == CKO_SECRET_KEY:
            return 8 * len(self.handle)
        return int(self.handle.key_size) if self.key_type == CKK_RSA else 384 if self.kind == KeyKind.P_384 else 256

    def point(self) -> bytes:
        """CKA_EC_POINT of an elliptic curve key: DER OCTET STRING of 04 || X || Y, or of the 32 octets of Ed25519."""
        return der.octet_string(load_public_key(self.spki).key_bits)

    def attributes(self) -> Template:
        """What the material itself says (PKCS#11 v3.1 2.1, 2.3, 2.6): key type, public numbers, sizes, CKA_PUBLIC_KEY_INFO. Nothing secret.

        A private key's has no CKA_EC_POINT, which the standard gives to public keys alone; see ``point``.
        """
        said: Template = {CKA_KEY_TYPE: self.key_type}
        if self.cls == CKO_SECRET_KEY:
            return said | {CKA_VALUE_LEN: len(self.handle)}
        said[CKA_PUBLIC_KEY_INFO] = self.spki
        public = self.cls == CKO_PUBLIC_KEY
        if self.key_type == CKK_RSA:
            numbers = (self.handle if public else self.handle.public_key()).public_numbers()
            said |= {CKA_MODULUS: _unsigned(numbers.n), CKA_PUBLIC_EXPONENT: _unsigned(numbers.e)}
            return said | {CKA_MODULUS_BITS: numbers.n.bit_length()} if public else said
        if self.key_type == CKK_ML_DSA:
            said[CKA_PARAMETER_SET] = CKP_ML_DSA_65
            return said | {CKA_VALUE: load_public_key(self.spki).key_bits} if public else said
        said[CKA_EC_PARAMS] = _PARAMS[KeyKind(self.kind)]
        return said | {CKA_EC_POINT: self.point()} if public else said

    def revealed(self) -> Template:
        """The secret numbers, as attributes. Whoever asks has made sure that the object is neither sensitive nor unextractable."""
        if self.cls == CKO_SECRET_KEY:
            return {CKA_VALUE: self.handle}
        if self.cls == CKO_PUBLIC_KEY or self.key_type == CKK_ML_DSA:
            return {}
        if self.key_type == CKK_RSA:
            n = self.handle.private_numbers()
            values = (n.d, n.p, n.q, n.dmp1, n.dmq1, n.iqmp)
            names = (CKA_PRIVATE_EXPONENT, CKA_PRIME_1, CKA_PRIME_2, CKA_EXPONENT_1, CKA_EXPONENT_2, CKA_COEFFICIENT)
            return {name: _unsigned(value) for name, value in zip(names, values, strict=True)}
        if self.kind == KeyKind.ED25519:
            return {CKA_VALUE: self.handle.private_bytes_raw()}
        scalar = self.handle.scalar if self.kind == KeyKind.SM2 else self.handle.private_numbers().private_value
        return {CKA_VALUE: scalar.to_bytes(self.bits() // 8)}


def generate(kind: str, length: int = 32) -> Key:
    """A new key. ``kind`` is one of ``Key.kind``, or "rsa-N" with any N from 2048 to 4096 in steps of 8. ``length``: octets of "generic".

    Raises Rejected: MECHANISM_INVALID (no such kind), ATTRIBUTE_VALUE_INVALID (no such length).
    """
    if kind in SECRET_LENGTHS:
        return secret_key(kind, secrets.token_bytes(SECRET_LENGTHS[kind]))
    if kind == GENERIC:
        return secret_key(kind, secrets.token_bytes(max(0, min(length, MAX_GENERIC + 1))))
    if kind.startswith("rsa-"):
        bits = int(kind[4:]) if kind[4:].isdecimal() and len(kind) < 10 else 0
        if not RSA_BITS[0] <= bits <= RSA_BITS[1] or bits % 8:
            raise Rejected(Code.ATTRIBUTE_VALUE_INVALID, f"RSA keys here have {RSA_BITS[0]} to {RSA_BITS[1]} bits, in steps of 8")
        return _from_rsa(rsa.generate_private_key(65537, bits))
    try:
        made = privatekey.generate(KeyKind(kind))
    except ValueError:
        raise Rejected(Code.MECHANISM_INVALID, f"there are no keys of kind {kind[:40]!r}") from None
    except IronrootError as error:
        raise Rejected(Code.MECHANISM_INVALID, str(error)) from error
    return _private(made)


def load(kind: str, octets: bytes) -> Key:
    """A private or secret key from what ``Key.secret`` gave. Raises Rejected WRAPPED_KEY_INVALID: the octets are no key of this kind."""
    if kind in _SECRET_TYPES:
        return secret_key(kind, octets)
    key = load_private(octets)
    if key.kind != kind:
        raise Rejected(Code.WRAPPED_KEY_INVALID, f"these octets are a key of kind {key.kind}, not {kind[:40]}")
    return key


def load_private(pkcs8: bytes) -> Key:
    """The private key in a PKCS#8 PrivateKeyInfo (DER). Raises Rejected WRAPPED_KEY_INVALID."""
    try:
        return _private(privatekey.load_private_key(pkcs8))
    except IronrootError as error:
        raise Rejected(Code.WRAPPED_KEY_INVALID, str(error)) from error


def secret_key(kind: str, octets: bytes) -> Key:
    """A secret key of ``kind``: "aes-…" and "sm4" have their length, "generic" 1 to 512 octets. Raises Rejected ATTRIBUTE_VALUE_INVALID."""
    right = len(octets) == SECRET_LENGTHS[kind] if kind in SECRET_LENGTHS else 1 <= len(octets) <= MAX_GENERIC
    if not right:
        raise Rejected(Code.ATTRIBUTE_VALUE_INVALID, f"{len(octets)} octets are no key of kind {kind}")
    return Key(kind, CKO_SECRET_KEY, _SECRET_TYPES[kind], b"", bytes(octets))


def secret_kind(key_type: int, length: int) -> str:
    """The kind of a secret key of type CKK_… and ``length`` octets. Raises Rejected ATTRIBUTE_VALUE_INVALID, TEMPLATE_INCONSISTENT."""
    if key_type == CKK_GENERIC_SECRET:
        return GENERIC
    if key_type == CKK_SM4:
        return "sm4"
    if key_type != CKK_AES:
        raise Rejected(Code.TEMPLATE_INCONSISTENT, "secret keys here are of type AES, SM4 or generic secret")
    if length not in (16, 24, 32):
        raise Rejected(Code.ATTRIBUTE_VALUE_INVALID, f"an AES key has 16, 24 or 32 octets, not {length}")
    return f"aes-{8 * length}"


def load_public(spki: bytes) -> Key:
    """The public key in a SubjectPublicKeyInfo. Raises Rejected ATTRIBUTE_VALUE_INVALID with the reason."""
    try:
        public = load_public_key(spki)
    except IronrootError as error:
        raise Rejected(Code.ATTRIBUTE_VALUE_INVALID, str(error)) from error
    return _of(public, CKO_PUBLIC_KEY, public.handle)


def public_from(template: Template) -> Key:
    """The public key that a C_CreateObject template gives in numbers: RSA modulus and exponent, or EC parameters and point.

    Raises Rejected: TEMPLATE_INCOMPLETE, TEMPLATE_INCONSISTENT, CURVE_NOT_SUPPORTED, ATTRIBUTE_VALUE_INVALID.
    """
    key_type = template.get(CKA_KEY_TYPE)
    if key_type == CKK_RSA:
        n, e = (int.from_bytes(_octets(template, name)) for name in (CKA_MODULUS, CKA_PUBLIC_EXPONENT))
        if not RSA_BITS[0] <= n.bit_length() <= RSA_BITS[1]:
            raise Rejected(Code.ATTRIBUTE_VALUE_INVALID, f"RSA keys here have {RSA_BITS[0]} to {RSA_BITS[1]} bits")
        key = der.sequence(der.integer(n), der.integer(e))
        return load_public(der.sequence(der.sequence(der.oid("1.2.840.113549.1.1.1"), der.null()), der.bit_string(key)))
    if key_type in (CKK_EC, CKK_EC_EDWARDS):
        kind = curve(template)
        if _TYPES[kind] != key_type:
            raise Rejected(Code.TEMPLATE_INCONSISTENT, f"{kind} keys have another CKA_KEY_TYPE")
        point = bare_point(_octets(template, CKA_EC_POINT))
        algorithm = _ED_OID if kind is KeyKind.ED25519 else _EC_OID + _PARAMS[kind]
        return load_public(der.sequence(der.sequence(algorithm), der.bit_string(point)))
    raise Rejected(Code.TEMPLATE_INCONSISTENT, "public keys here are of type RSA, EC or EC_EDWARDS")


def curve(template: Template) -> KeyKind:
    """The kind that CKA_EC_PARAMS names. Raises Rejected: TEMPLATE_INCOMPLETE, CURVE_NOT_SUPPORTED."""
    params = _octets(template, CKA_EC_PARAMS)
    if params not in CURVES:
        raise Rejected(Code.CURVE_NOT_SUPPORTED, "CKA_EC_PARAMS names a curve other than P-256, P-384, SM2 and Ed25519")
    return CURVES[params]


def bare_point(octets: bytes) -> bytes:
    """A point without the DER OCTET STRING around it, if there is one: callers differ."""
    for head in (b"\x04\x41", b"\x04\x61", b"\x04\x20"):  # of 65, 97 and 32 octets
        if octets.startswith(head) and len(octets) == head[1] + 2:
            return octets[2:]
    return octets


def _octets(template: Template, name: int) -> bytes:
    value = template.get(name)
    if not isinstance(value, bytes) or not value:
        raise Rejected(Code.TEMPLATE_INCOMPLETE, f"the template lacks attribute 0x{name:X}")
    return value


def _private(made: privatekey.PrivateKey) -> Key:
    return _of(made.public_key, CKO_PRIVATE_KEY, made._secret)


def _of(public: PublicKey, cls: int, handle: Any) -> Key:
    return Key(str(public.kind), cls, _TYPES.get(public.kind, CKK_RSA), public.spki, handle)


def _from_rsa(made: rsa.RSAPrivateKey) -> Key:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return _of(load_public_key(made.public_key().public_bytes(serialization.Encoding.DER, form)), CKO_PRIVATE_KEY, made)


def _unsigned(value: int) -> bytes:
    """A Big integer of PKCS#11: unsigned, most significant octet first, no leading zero."""
    return value.to_bytes((value.bit_length() + 7) // 8 or 1)
