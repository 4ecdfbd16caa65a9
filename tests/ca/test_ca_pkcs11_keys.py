"""What tokens say of keys and signatures, in all the ways in which they say it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa, utils
from cryptography.hazmat.primitives.hashes import SHA256

from ca import pkcs11_keys as keys
from pkix import der
from pkix.algorithms import KeyKind, load_public_key
from pkix.errors import Unsupported
from pkix.privatekey import generate

P256, P384, SM2 = (der.oid(dotted) for dotted in ("1.2.840.10045.3.1.7", "1.3.132.0.34", "1.2.156.10197.1.301"))
CURVES = {KeyKind.P_256: P256, KeyKind.P_384: P384, KeyKind.SM2: SM2}
STANDARD = frozenset({0x0000, 0x0001, 0x1040, 0x1041, 0x1055, 0x1057})
SANSEC, TASS = keys.vendor("Sansec Technology"), keys.vendor("TASS")


def read(**attributes: object) -> bytes:
    return keys.subject_public_key_info(attributes, keys.STANDARD)


@pytest.mark.parametrize("kind", [*CURVES, KeyKind.ED25519])
def test_points_raw_and_wrapped(kind: KeyKind) -> None:
    key = generate(kind).public_key
    number = 0x40 if kind is KeyKind.ED25519 else 0x03
    curves = (der.printable_string("edwards25519"), der.oid("1.3.101.112")) if kind is KeyKind.ED25519 else (CURVES[kind],)
    for curve in curves:
        for point in (key.key_bits, der.octet_string(key.key_bits), der.bit_string(key.key_bits)):
            assert read(key_type=number, ec_params=curve, ec_point=point) == key.spki
    key_type, curve, point = keys.ec_attributes(key.spki)
    assert (key_type, point) == (number, der.octet_string(key.key_bits))
    assert curve in curves


def test_rsa_numbers() -> None:
    key = generate(KeyKind.RSA_2048).public_key
    numbers = key.handle.public_numbers()
    assert isinstance(key.handle, rsa.RSAPublicKey)
    modulus = numbers.n.to_bytes(257)  # some write a leading zero octet
    assert read(key_type=0, modulus=modulus, public_exponent=b"\1\0\1") == key.spki
    with pytest.raises(Unsupported):
        keys.ec_attributes(key.spki)


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"key_type": 0x03},
        {"key_type": 0x03, "ec_params": P256, "ec_point": b""},
        {"key_type": 0x03, "ec_params": P256, "ec_point": bytes(64)},
        {"key_type": 0x03, "ec_params": P384, "ec_point": bytes(65)},
        {"key_type": 0x03, "ec_params": der.oid("1.3.132.0.10"), "ec_point": bytes(65)},
        {"key_type": 0x40, "ec_params": der.printable_string("edwards448"), "ec_point": bytes(57)},
        {"key_type": 0x00, "modulus": b"\xff" * 256},
        {"key_type": 0x13, "modulus": b"\xff" * 256, "public_exponent": b"\3"},
        {"key_type": 0x80000004, "ec_point": bytes(65)},
    ],
)
def test_what_is_no_key_of_ours_is_refused(attributes: Mapping[str, object]) -> None:
    with pytest.raises(Unsupported):
        keys.subject_public_key_info(attributes, keys.STANDARD)


def test_vendors_have_their_own_numbers_for_sm2() -> None:
    assert keys.plan("sm2", STANDARD, keys.STANDARD) == keys.Plan(0x03, 0x1040, 0x1041, (SM2,))
    assert keys.plan("sm2", STANDARD | {0x80008001, 0x80008104}, SANSEC) == keys.Plan(0x80000004, 0x80008001, 0x80008104, (SM2,))
    assert keys.plan("sm2", STANDARD | {0x80008001, 0x80008000}, TASS) == keys.Plan(0x80000004, 0x80008001, 0x80008000, (SM2,))
    # The same maker's token behind something that lets no vendor's mechanisms through.
    assert keys.plan("sm2", STANDARD, SANSEC) == keys.Plan(0x03, 0x1040, 0x1041, (SM2,))
    key = generate(KeyKind.SM2).public_key
    shown = {"key_type": 0x80000004, "ec_point": der.octet_string(key.key_bits)}
    assert keys.subject_public_key_info(shown, SANSEC) == key.spki


def test_a_token_without_the_mechanism_cannot() -> None:
    for kind in KeyKind:
        with pytest.raises(Unsupported):
            keys.plan(kind, frozenset({0x1041}), keys.STANDARD)
    with pytest.raises(Unsupported):
        keys.plan(KeyKind.ML_DSA_65, STANDARD, keys.STANDARD)
    assert keys.plan(KeyKind.RSA_3072, STANDARD, keys.STANDARD).bits == 3072


def test_signatures_become_those_of_x509() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    public_key = load_public_key(
        der.sequence(
            der.sequence(der.oid("1.2.840.10045.2.1"), P256),
            der.bit_string(b"\4" + key.public_key().public_numbers().x.to_bytes(32) + key.public_key().public_numbers().y.to_bytes(32)),
        )
    )
    data = public_key.signing_input(b"message")
    for _ in range(20):
        encoded = key.sign(data, ec.ECDSA(utils.Prehashed(SHA256())))
        r, s = utils.decode_dss_signature(encoded)
        assert keys.x509_signature("p-256", r.to_bytes(32) + s.to_bytes(32), keys.STANDARD) == encoded
        assert keys.x509_signature("p-256", encoded, TASS) == encoded  # TASS has DER already
        public_key.verify(encoded, b"message")
    for length in (0, 63, 65, 96):
        with pytest.raises(Unsupported):
            keys.x509_signature("p-256", bytes(length), keys.STANDARD)
    assert keys.x509_signature("ed25519", bytes(64), TASS) == bytes(64)
    assert keys.token_input("p-256", data) == data
    # RFC 8017 9.2, note 1
    assert keys.token_input("rsa-2048", data) == bytes.fromhex("3031300d060960864801650304020105000420") + data
