"""Software keys: written and read, by us and by the openssl program."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448
from hypothesis import given, settings
from hypothesis import strategies as st

from pkix import der, pem, sm2
from pkix.algorithms import KeyKind
from pkix.errors import Malformed, Unsupported, WeakKey
from pkix.privatekey import PrivateKey, generate, load_private_key

KINDS: list[KeyKind] = [
    kind for kind in KeyKind if kind not in (KeyKind.RSA_3072, KeyKind.RSA_4096)
]  # RSA-2048 stands for them; they take seconds to make
KEYS: dict[KeyKind, PrivateKey] = {kind: generate(kind) for kind in KINDS}
OpenSsl = Callable[..., bytes]


@pytest.fixture
def run(tmp_path: Path) -> OpenSsl:
    """``run("pkey", "-in", "x.pem")`` in ``tmp_path``: what it printed."""

    def start(*arguments: str) -> bytes:
        return subprocess.run(["openssl", *arguments], cwd=tmp_path, check=True, capture_output=True, timeout=60).stdout

    return start


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS.keys())
def test_a_key_survives_being_written_and_read(key: PrivateKey) -> None:
    for written in (key.to_pem(), key.to_der(), b"text before\n" + key.to_pem() + b"text behind\n"):
        again = load_private_key(written)
        assert again.public_key == key.public_key
        assert again.to_der() == key.to_der()
        key.public_key.verify(again.sign(b"message"), b"message")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not KeyKind.ML_DSA_65])  # OpenSSL reads ML-DSA from 3.5 on
def test_openssl_reads_our_keys(kind: KeyKind, run: OpenSsl, tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_bytes(KEYS[kind].to_pem())
    run("pkey", "-in", "key.pem", "-check", "-noout")
    assert run("pkey", "-in", "key.pem", "-pubout", "-outform", "DER") == KEYS[kind].public_key.spki


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (KeyKind.RSA_2048, ["RSA", "-pkeyopt", "rsa_keygen_bits:2048"]),
        (KeyKind.P_256, ["EC", "-pkeyopt", "ec_paramgen_curve:P-256"]),
        (KeyKind.P_384, ["EC", "-pkeyopt", "ec_paramgen_curve:P-384"]),
        (KeyKind.ED25519, ["ED25519"]),
        (KeyKind.SM2, ["SM2"]),
        (KeyKind.SM2, ["EC", "-pkeyopt", "ec_paramgen_curve:SM2"]),
    ],
)
def test_we_read_openssls_keys(kind: KeyKind, arguments: list[str], run: OpenSsl, tmp_path: Path) -> None:
    run("genpkey", "-algorithm", *arguments, "-out", "key.pem")
    public = run("pkey", "-in", "key.pem", "-pubout", "-outform", "DER")
    forms = [(tmp_path / "key.pem").read_bytes(), run("pkey", "-in", "key.pem", "-outform", "DER")]
    if kind.startswith("rsa"):
        forms.append(run("pkey", "-in", "key.pem", "-traditional"))
    elif kind is not KeyKind.ED25519:
        forms += [run("ec", "-in", "key.pem"), run("ec", "-in", "key.pem", "-no_public")]
    for form in forms:
        key = load_private_key(form)
        assert (key.kind, key.public_key.spki) == (kind, public)
        key.public_key.verify(key.sign(b"message"), b"message")


def test_parameters_before_the_key_are_passed_over(run: OpenSsl) -> None:
    assert load_private_key(run("ecparam", "-name", "SM2", "-genkey")).kind is KeyKind.SM2
    assert load_private_key(run("ecparam", "-name", "prime256v1", "-genkey")).kind is KeyKind.P_256


def test_an_encrypted_key_is_refused_with_what_to_do(run: OpenSsl) -> None:
    locked = run("genpkey", "-algorithm", "SM2", "-aes128", "-pass", "pass:secret")
    for form in (locked, pem.decode(locked)[0][1]):
        with pytest.raises(Unsupported, match="without a passphrase"):
            load_private_key(form)
    library = serialization.load_pem_private_key(KEYS[KeyKind.P_256].to_pem(), None)
    old = library.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.BestAvailableEncryption(b"secret")
    )
    with pytest.raises(Malformed, match="passphrase"):
        load_private_key(old)


def _sm2(scalar: int, point: bytes, *, octets: int = 32) -> bytes:
    public = der.context(1, der.bit_string(point)) if point else b""
    key = der.sequence(der.integer(1), der.octet_string(scalar.to_bytes(octets)), public)
    algorithm = der.sequence(der.oid("1.2.840.10045.2.1"), der.oid("1.2.156.10197.1.301"))
    return der.sequence(der.integer(0), algorithm, der.octet_string(key))


def test_sm2_keys_whose_halves_do_not_belong_together_or_lie_outside() -> None:
    scalar, point = sm2.generate()
    assert load_private_key(_sm2(scalar, point)).public_key.key_bits == point
    assert load_private_key(_sm2(scalar, b"")).public_key.key_bits == point
    with pytest.raises(Malformed, match="does not belong"):
        load_private_key(_sm2(scalar, sm2.G))
    with pytest.raises(Malformed, match="32 octets"):
        load_private_key(_sm2(scalar, point, octets=33))
    for outside in (0, sm2.N - 1, sm2.N, (1 << 256) - 1):
        with pytest.raises(WeakKey, match="between 1 and n-2"):
            load_private_key(_sm2(outside, b""))
    with pytest.raises(WeakKey):
        load_private_key(_sm2(scalar, b"\x04" + bytes(64)))


def test_keys_that_are_not_taken() -> None:
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    for key in (ec.generate_private_key(ec.SECP521R1()), ed448.Ed448PrivateKey.generate()):
        with pytest.raises(Unsupported):
            load_private_key(key.private_bytes(*form))
    with pytest.raises(Malformed, match="no private key"):
        load_private_key(pem.encode("CERTIFICATE", b"\x30\x00").encode())
    with pytest.raises(Malformed):
        load_private_key(b"")


def test_nothing_that_prints_a_key_shows_its_secret() -> None:
    sm2_key, p256, modern = KEYS[KeyKind.SM2], KEYS[KeyKind.P_256], KEYS[KeyKind.ED25519]
    secrets = {p256.to_der()[36:68]: p256, sm2_key._secret.scalar.to_bytes(32): sm2_key, modern.to_der()[-32:]: modern}
    for secret, key in secrets.items():
        assert secret in key.to_der()
        for text in (repr(key), str(key), repr(key.public_key)):
            for shown in (secret.hex(), str(int.from_bytes(secret)), repr(secret)[2:-1]):
                assert shown not in text


@pytest.mark.parametrize("kind", [KeyKind.RSA_2048, KeyKind.P_256, KeyKind.P_384, KeyKind.SM2])
def test_only_a_digest_of_the_right_length_is_signed(kind: KeyKind) -> None:
    with pytest.raises(Malformed):
        KEYS[kind].sign_input(b"not a digest")


# RSA is left out: its primes are tested on loading, a good part of a second.
@settings(deadline=None)
@given(
    raw=st.binary(max_size=200) | st.sampled_from([key.to_der() for key in KEYS.values() if not key.kind.startswith("rsa")]),
    at=st.integers(0, 60),
    octet=st.integers(0, 255),
)
def test_any_octets_are_a_key_or_malformed(raw: bytes, at: int, octet: int) -> None:
    for damaged in (raw[:at] + bytes((octet,)) + raw[at + 1 :], raw[:at], raw + b"\0"):
        try:
            key = load_private_key(damaged)
        except Malformed:
            continue
        key.public_key.verify(key.sign(b"message"), b"message")
