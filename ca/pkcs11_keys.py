"""Between PKCS#11 and X.509: how a kind of key is made and used on a token, and what its attributes and signatures say. No I/O.

    how = plan("sm2", token_mechanisms, vendor("Sansec"))
    spki = subject_public_key_info(attributes, vendor)     # DER, from CKA_EC_POINT or CKA_MODULUS
    encoded = x509_signature("p-256", raw, vendor)         # r || s  →  SEQUENCE { r, s }

SM2 is carried as an elliptic curve key on curve 1.2.156.10197.1.301 that signs e = SM3(Z || M) by CKM_ECDSA, or by the numbers that a
vendor gave its own mechanisms. Whether a token that knows the curve also signs as SM2 does is another matter: SoftHSM makes ECDSA
signatures on it. ``ca.signer_pkcs11`` has one made and looks.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from pkix import der
from pkix.errors import Unsupported

CKK_RSA, CKK_EC, CKK_EC_EDWARDS = 0x00, 0x03, 0x40
CKM_RSA_PKCS_KEY_PAIR_GEN, CKM_RSA_PKCS = 0x0000, 0x0001
CKM_EC_KEY_PAIR_GEN, CKM_ECDSA = 0x1040, 0x1041
CKM_EC_EDWARDS_KEY_PAIR_GEN, CKM_EDDSA = 0x1055, 0x1057

_EC_PUBLIC_KEY, _ED25519, _RSA = "1.2.840.10045.2.1", "1.3.101.112", "1.2.840.113549.1.1.1"
_CURVES = {"p-256": ("1.2.840.10045.3.1.7", 65), "p-384": ("1.3.132.0.34", 97), "sm2": ("1.2.156.10197.1.301", 65)}
_EDWARDS = (der.printable_string("edwards25519"), der.oid(_ED25519))  # PKCS#11 3.0 2.3.5: the curve's name, or its OID
_SHA256_INFO = der.sequence(der.oid("2.16.840.1.101.3.4.2.1"), der.null())


@dataclass(frozen=True, slots=True)
class Vendor:
    """What a maker does in its own way: its numbers for SM2, and whether its ECDSA and SM2 signatures are DER already."""

    sm2_key_type: int | None = None
    sm2_generate: int | None = None
    sm2_sign: int | None = None
    der_signatures: bool = False


STANDARD = Vendor()
_VENDORS = {
    "sansec": Vendor(0x80000004, 0x80008001, 0x80008104),
    "tass": Vendor(0x80000004, 0x80008001, 0x80008000, der_signatures=True),
    "xihsm": Vendor(0xFFFF0001, 0xFFFF0001, 0xFFFF0002),
}


def vendor(manufacturer: str) -> Vendor:
    """The ways of the maker that a token names as its ``manufacturerID``; those of the standard where we know none."""
    return next((ways for name, ways in _VENDORS.items() if name in manufacturer.lower()), STANDARD)


@dataclass(frozen=True, slots=True)
class Plan:
    """How a token makes and uses keys of a kind: numbers of CKK and CKM; ``parameters`` are CKA_EC_PARAMS to try in turn; RSA has bits."""

    key_type: int
    generate: int
    sign: int
    parameters: tuple[bytes, ...] = ()
    bits: int | None = None


def plan(kind: str, mechanisms: Collection[int], ways: Vendor) -> Plan:
    """The plan for keys of a ``KeyKind`` on a token with these mechanisms. Raises Unsupported where it has none for them."""
    if kind == "sm2" and ways.sm2_sign in mechanisms and ways.sm2_key_type and ways.sm2_generate and ways.sm2_sign:
        found = Plan(ways.sm2_key_type, ways.sm2_generate, ways.sm2_sign, (der.oid(_CURVES["sm2"][0]),))
    elif kind in _CURVES:
        found = Plan(CKK_EC, CKM_EC_KEY_PAIR_GEN, CKM_ECDSA, (der.oid(_CURVES[kind][0]),))
    elif kind == "ed25519":
        found = Plan(CKK_EC_EDWARDS, CKM_EC_EDWARDS_KEY_PAIR_GEN, CKM_EDDSA, _EDWARDS)
    elif kind.startswith("rsa-"):
        found = Plan(CKK_RSA, CKM_RSA_PKCS_KEY_PAIR_GEN, CKM_RSA_PKCS, bits=int(kind[4:]))
    else:
        raise Unsupported(f"keys of kind {kind} are not used over PKCS#11")
    if not {found.generate, found.sign} <= set(mechanisms):
        raise Unsupported(f"the token has no mechanism for keys of kind {kind}")
    return found


def subject_public_key_info(attributes: Mapping[str, object], ways: Vendor) -> bytes:
    """The SubjectPublicKeyInfo (DER) of a public key as a token shows it.

    Args:
        attributes: ``key_type`` and, as far as the token has them, ``ec_params``, ``ec_point``, ``modulus``, ``public_exponent``.
    Raises:
        Unsupported: another kind of key, another curve, or not enough attributes.
    """
    key_type, point = attributes.get("key_type"), attributes.get("ec_point")
    if key_type == CKK_RSA:
        numbers = (attributes.get("modulus"), attributes.get("public_exponent"))
        if all(isinstance(number, bytes) for number in numbers):
            encoded = (der.integer(int.from_bytes(number)) for number in numbers if isinstance(number, bytes))
            return der.sequence(der.sequence(der.oid(_RSA), der.null()), der.bit_string(der.sequence(*encoded)))
    elif isinstance(point, bytes) and key_type == CKK_EC_EDWARDS:
        if attributes.get("ec_params") in _EDWARDS:
            return der.sequence(der.sequence(der.oid(_ED25519)), der.bit_string(_unwrapped(point, 32)))
    elif isinstance(point, bytes) and key_type in (CKK_EC, ways.sm2_key_type):
        parameters = der.oid(_CURVES["sm2"][0]) if key_type != CKK_EC else attributes.get("ec_params")
        for curve, size in _CURVES.values():
            if parameters == der.oid(curve):
                algorithm = der.sequence(der.oid(_EC_PUBLIC_KEY), der.oid(curve))
                return der.sequence(algorithm, der.bit_string(_unwrapped(point, size)))
    raise Unsupported("the token shows no public key of a kind, curve and form that we use; was the public half of the key left behind?")


def _unwrapped(value: bytes, size: int) -> bytes:
    """A point of ``size`` octets: raw, or in the OCTET STRING that PKCS#11 asks for, or in a BIT STRING as some write Edwards points."""
    if value in (der.octet_string(value[-size:]), der.bit_string(value[-size:])):
        return value[-size:]
    if len(value) == size:
        return value
    raise Unsupported(f"CKA_EC_POINT has {len(value)} octets, which is no uncompressed point of this curve")


def ec_attributes(spki: bytes) -> tuple[int, bytes, bytes]:
    """CKA_KEY_TYPE, CKA_EC_PARAMS and CKA_EC_POINT of a public key, for a token that does not have its public half. Raises Unsupported."""
    for curve, size in _CURVES.values():
        if spki == der.sequence(der.sequence(der.oid(_EC_PUBLIC_KEY), der.oid(curve)), der.bit_string(spki[-size:])):
            return CKK_EC, der.oid(curve), der.octet_string(spki[-size:])
    if spki == der.sequence(der.sequence(der.oid(_ED25519)), der.bit_string(spki[-32:])):
        return CKK_EC_EDWARDS, _EDWARDS[0], der.octet_string(spki[-32:])
    raise Unsupported("no elliptic curve key")


def token_input(kind: str, data: bytes) -> bytes:
    """What the mechanism of ``plan`` is given for a ``PublicKey.signing_input``: for RSA a DigestInfo (RFC 8017 9.2), else itself."""
    return der.sequence(_SHA256_INFO, der.octet_string(data)) if kind.startswith("rsa-") else data


def x509_signature(kind: str, signature: bytes, ways: Vendor) -> bytes:
    """A token's signature as X.509 has it: r || s (PKCS#11 2.3.1) becomes Ecdsa-Sig-Value, others stay as they are.

    Raises:
        Unsupported: its length is none that r || s can have.
    """
    if kind not in _CURVES or ways.der_signatures:
        return signature
    half = _CURVES[kind][1] // 2
    if len(signature) != 2 * half:
        raise Unsupported(f"the token answered {len(signature)} octets, which is no {kind} signature")
    r, s = signature[:half], signature[half:]
    return der.sequence(der.integer(int.from_bytes(r)), der.integer(int.from_bytes(s)))
