"""Public keys and the policy on them; signature algorithms, against cryptography and the openssl program."""

from __future__ import annotations

import hashlib
import math
import random
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, padding, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from pkix import der, weakkeys
from pkix.algorithms import SIGNATURES, KeyKind, SignatureAlgorithm, load_public_key, signature_algorithm
from pkix.errors import BadSignature, Malformed, Unsupported, WeakKey
from pkix.privatekey import PrivateKey, generate

KEYS = {kind: generate(kind) for kind in KeyKind}
EC, P256, P384, SM2 = "1.2.840.10045.2.1", "1.2.840.10045.3.1.7", "1.3.132.0.34", "1.2.156.10197.1.301"


def spki(bits: bytes, *algorithm: bytes) -> bytes:
    return der.sequence(der.sequence(*algorithm), der.bit_string(bits))


def rsa_spki(modulus: int, exponent: int = 65537) -> bytes:
    return spki(der.sequence(der.integer(modulus), der.integer(exponent)), der.oid("1.2.840.113549.1.1.1"), der.null())


# --- good keys -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS.keys())
def test_a_key_loads_as_what_it_is(key: PrivateKey) -> None:
    public = key.public_key
    again = load_public_key(public.spki)
    assert again == public
    assert hash(again) == hash(public)
    assert again.kind is key.kind
    assert public.spki.endswith(public.key_bits)
    assert public.sha256 == hashlib.sha256(public.spki).digest()
    assert public != load_public_key(generate(KeyKind.ED25519).public_key.spki)
    if key.kind is not KeyKind.SM2:
        library = serialization.load_der_public_key(public.spki)
        assert x509.SubjectKeyIdentifier.from_public_key(library).digest == public.key_identifier  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", [2048, 2056, 3064, 3072, 3080, 4088, 4096])
def test_an_rsa_key_between_two_lengths_counts_as_the_shorter(bits: int) -> None:
    modulus = _composite(bits)
    expected = KeyKind.RSA_2048 if bits < 3072 else KeyKind.RSA_3072 if bits < 4096 else KeyKind.RSA_4096
    assert load_public_key(rsa_spki(modulus)).kind is expected


# --- signatures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS.keys())
def test_a_signature_is_of_its_message_and_key(key: PrivateKey) -> None:
    signature = key.sign(b"message")
    key.public_key.verify(signature, b"message")
    key.public_key.verify(key.sign_input(key.public_key.signing_input(b"message")), b"message", SIGNATURES[key.kind])
    with pytest.raises(BadSignature):
        key.public_key.verify(signature, b"massage")
    with pytest.raises(BadSignature):
        generate(key.kind if not key.kind.startswith("rsa") else KeyKind.RSA_2048).public_key.verify(signature, b"message")
    for broken in (b"", signature[:-1], signature + b"\0", signature[:-1] + bytes((signature[-1] ^ 1,)), b"\x30\x80" + signature):
        with pytest.raises(BadSignature):
            key.public_key.verify(broken, b"message")


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS.keys())
def test_an_algorithm_of_another_family_is_refused(key: PrivateKey) -> None:
    family = SIGNATURES[key.kind].name[:5]
    for algorithm in set(SIGNATURES.values()):
        if algorithm.name[:5] != family:
            with pytest.raises(Unsupported, match="does not fit"):
                key.public_key.verify(key.sign(b"x"), b"x", algorithm)


def test_ecdsa_over_an_sm2_key_is_refused_by_name() -> None:
    with pytest.raises(Unsupported, match="ecdsa-with-SHA256 does not fit a key of kind sm2; sign with sm2sign-with-sm3"):
        KEYS[KeyKind.SM2].public_key.verify(b"", b"", SIGNATURES[KeyKind.P_256])


@pytest.mark.parametrize("size", [256, 384, 512])
def test_the_other_digests_are_verified_too(size: int) -> None:
    algorithm: hashes.HashAlgorithm = {256: hashes.SHA256(), 384: hashes.SHA384(), 512: hashes.SHA512()}[size]
    rsa_key, p256 = (serialization.load_der_private_key(KEYS[kind].to_der(), None) for kind in (KeyKind.RSA_2048, KeyKind.P_256))
    assert isinstance(rsa_key, rsa.RSAPrivateKey)
    assert isinstance(p256, ec.EllipticCurvePrivateKey)
    known = [signature_algorithm(encoded) for encoded in _identifiers()]
    by_name = {algorithm.name: algorithm for algorithm in known}
    pss = padding.PSS(padding.MGF1(algorithm), size // 8)
    verify = KEYS[KeyKind.RSA_2048].public_key.verify
    verify(rsa_key.sign(b"m", padding.PKCS1v15(), algorithm), b"m", by_name[f"sha{size}WithRSAEncryption"])
    verify(rsa_key.sign(b"m", pss, algorithm), b"m", by_name[f"rsassa-pss-sha{size}"])
    with pytest.raises(BadSignature):
        verify(rsa_key.sign(b"m", pss, algorithm), b"m", by_name[f"sha{size}WithRSAEncryption"])
    KEYS[KeyKind.P_256].public_key.verify(p256.sign(b"m", ec.ECDSA(algorithm)), b"m", by_name[f"ecdsa-with-SHA{size}"])


def _identifiers() -> list[bytes]:
    """The AlgorithmIdentifiers that openssl and RFC 4055, 5758, 8410, 9881 and GM/T 0015 write."""
    sha = {size: der.sequence(der.oid(f"2.16.840.1.101.3.4.2.{arc}"), der.null()) for size, arc in ((256, 1), (384, 2), (512, 3))}
    pss = [
        der.sequence(
            der.context(0, digest),
            der.context(1, der.sequence(der.oid("1.2.840.113549.1.1.8"), digest)),
            der.context(2, der.integer(size // 8)),
        )
        for size, digest in sha.items()
    ]
    return [
        *(der.sequence(der.oid(f"1.2.840.113549.1.1.{arc}"), null) for arc in (11, 12, 13) for null in (der.null(), b"")),
        *(der.sequence(der.oid("1.2.840.113549.1.1.10"), parameters) for parameters in pss),
        *(der.sequence(der.oid(f"1.2.840.10045.4.3.{arc}")) for arc in (2, 3, 4)),
        *(der.sequence(der.oid(dotted)) for dotted in ("1.3.101.112", "2.16.840.1.101.3.4.3.18", "1.2.156.10197.1.501")),
        der.sequence(der.oid("1.2.156.10197.1.501"), der.null()),
    ]


def test_what_we_write_is_what_we_read() -> None:
    for algorithm in SIGNATURES.values():
        assert signature_algorithm(algorithm.der) == algorithm
        assert der.oid(algorithm.oid) in algorithm.der
    assert SIGNATURES[KeyKind.RSA_3072].der.endswith(b"\x05\x00")
    assert not SIGNATURES[KeyKind.SM2].der.endswith(b"\x05\x00")


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ((der.oid("1.2.840.113549.1.1.5"), der.null()), "sha1WithRSAEncryption is not taken"),
        ((der.oid("1.2.840.10045.4.1"),), "ecdsa-with-SHA1 is not taken"),
        ((der.oid("1.2.840.113549.1.1.4"), der.null()), "md5WithRSAEncryption is not taken"),
        ((der.oid("1.2.156.10197.1.504"),), "1.2.156.10197.1.504 is not taken"),
        ((der.oid("1.2.840.10045.4.3.2"), der.null()), "ecdsa-with-SHA256 with parameters"),
        ((der.oid("1.3.101.112"), der.null()), "ed25519 with parameters"),
        ((der.oid("1.2.156.10197.1.501"), der.oid(SM2)), "sm2sign-with-sm3 with parameters"),
        ((der.oid("1.2.840.113549.1.1.10"), der.sequence()), "rsassa-pss"),
    ],
)
def test_other_signature_algorithms_are_named_and_refused(parts: tuple[bytes, ...], text: str) -> None:
    with pytest.raises(Unsupported, match=text):
        signature_algorithm(der.sequence(*parts))


@settings(deadline=None)
@given(encoded=st.binary(max_size=60) | st.binary(max_size=20).map(der.sequence))
def test_any_octets_are_an_algorithm_or_malformed(encoded: bytes) -> None:
    try:
        assert isinstance(signature_algorithm(encoded), SignatureAlgorithm)
    except Malformed:
        return
    assert encoded in _identifiers()


# --- weak and foreign keys -----------------------------------------------------------------------------------------


def _coprime(bits: int, random: random.Random) -> int:
    """An odd number of ``bits`` with no small factor. Not a prime: nothing here looks for that, and it takes no time."""
    while True:
        number = random.getrandbits(bits) | 1 | 3 << bits - 2
        if math.gcd(number, weakkeys._small_primes()[1]) == 1:
            return number


def _from(number: int) -> int:
    """The first number from ``number`` on with no small factor."""
    while math.gcd(number, 2 * weakkeys._small_primes()[1]) != 1:
        number += 1
    return number


def _composite(bits: int) -> int:
    source = random.Random(bits)
    return _coprime(bits // 2, source) * _coprime(bits - bits // 2, source)


def _roca(bits: int) -> int:
    """A modulus of the flawed form: p = k·M + 65537^a mod M, M the product of the primes to 701 (CVE-2017-15361)."""
    source = random.Random(bits)
    primorial = math.prod(prime for prime in [2, *weakkeys._small_primes()[0]] if prime <= 701)

    def prime() -> int:
        while True:
            k = source.getrandbits(bits // 2 - primorial.bit_length())
            candidate = k * primorial + pow(65537, source.getrandbits(200), primorial)
            if candidate.bit_length() == bits // 2 and math.gcd(candidate, weakkeys._small_primes()[1]) == 1:
                return candidate

    while (modulus := prime() * prime()).bit_length() != bits:
        pass
    return modulus


GOOD = _composite(2048)
_TWIN = _coprime(1024, random.Random(7))


@pytest.mark.parametrize(
    ("modulus", "exponent", "text"),
    [
        (GOOD, 1, "exponent"),
        (GOOD, 3, "exponent"),
        (GOOD, 65536, "exponent"),
        (GOOD, 65538, "exponent"),
        (GOOD, (1 << 33) + 1, "exponent"),
        (GOOD, -65537, "exponent"),
        (-GOOD, 65537, "0 bits"),
        (0, 65537, "0 bits"),
        (_composite(512), 65537, "512 bits"),
        (_composite(1024), 65537, "1024 bits"),
        (GOOD >> 1 | 1, 65537, "2047 bits"),
        (GOOD + 1, 65537, "small factor"),
        (3 * _coprime(2046, random.Random(1)), 65537, "small factor"),
        (16381 * _coprime(2034, random.Random(2)), 65537, "small factor"),
        (_roca(2048), 65537, "ROCA"),
        (_roca(4096), 65537, "ROCA"),
        (_TWIN * _TWIN, 65537, "too close"),
        (_TWIN * _from(_TWIN + 2), 65537, "too close"),
        (_TWIN * _from(_TWIN + (1 << 515)), 65537, "too close"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_weak_rsa_keys_are_refused(modulus: int, exponent: int, text: str) -> None:
    with pytest.raises(WeakKey, match=text):
        load_public_key(rsa_spki(modulus, exponent))


@pytest.mark.parametrize("bits", [2049, 4097, 4104, 8192, 16385])
def test_rsa_lengths_that_are_not_taken(bits: int) -> None:
    with pytest.raises(Malformed):
        load_public_key(rsa_spki(_composite(bits) | 1 << bits - 1))


def test_ordinary_rsa_keys_do_not_look_weak() -> None:
    for bits in range(2048, 4097, 64):
        weakkeys.check_rsa(_composite(bits), 65537)


def _edwards_small_order() -> list[bytes]:
    """Every encoding of a point of order 1, 2, 4 or 8, with either sign, reduced or not (RFC 8032; order 8 found by multiplication)."""
    p = 2**255 - 19
    d = -121665 * pow(121666, -1, p) % p

    def add(one: tuple[int, int], two: tuple[int, int]) -> tuple[int, int]:
        (a, b), (x, y) = one, two
        both = d * a * b * x * y
        return (a * y + x * b) * pow(1 + both, -1, p) % p, (b * y + a * x) * pow(1 - both, -1, p) % p

    order = 2**252 + 27742317777372353535851937790883648493
    points: set[tuple[int, int]] = set()
    y = 2
    while len(points) < 8:
        square = (y * y - 1) * pow(d * y * y + 1, -1, p) % p
        x = pow(square, (p + 3) // 8, p)
        x = x if x * x % p == square else x * pow(2, (p - 1) // 4, p) % p
        if x * x % p == square:
            torsion, power, factor = (0, 1), (x, y), order
            while factor:
                torsion = add(torsion, power) if factor & 1 else torsion
                power, factor = add(power, power), factor >> 1
            multiple = torsion
            for _ in range(8):
                points.add(multiple)
                multiple = add(multiple, torsion)
        y += 1
    encodings = {(y + extra).to_bytes(32, "little") for _, y in points for extra in (0, p) if y + extra < 1 << 255}
    return sorted(octets[:31] + bytes((octets[31] | sign,)) for octets in encodings for sign in (0, 0x80))


def test_ed25519_points_of_small_order_are_refused() -> None:
    small = _edwards_small_order()
    assert len(small) >= 14
    for encoded in small:
        with pytest.raises(WeakKey):
            load_public_key(spki(encoded, der.oid("1.3.101.112")))


def test_ed25519_keys_are_on_the_curve_and_reduced() -> None:
    accepted = 0
    for y in range(2, 200):
        try:
            load_public_key(spki(y.to_bytes(32, "little"), der.oid("1.3.101.112")))
            accepted += 1
        except WeakKey:
            pass
    assert 60 < accepted < 140, "about half of all coordinates belong to a point"
    with pytest.raises(WeakKey, match="not reduced"):
        load_public_key(spki((2**255 - 19 + 3).to_bytes(32, "little"), der.oid("1.3.101.112")))


@pytest.mark.parametrize(("curve", "size"), [(P256, 32), (P384, 48), (SM2, 32)])
def test_points_that_are_none_are_refused_on_every_curve(curve: str, size: int) -> None:
    good = {P256: KEYS[KeyKind.P_256], P384: KEYS[KeyKind.P_384], SM2: KEYS[KeyKind.SM2]}[curve].public_key.key_bits
    x, y = good[1 : size + 1], good[size + 1 :]
    algorithm = der.oid(EC), der.oid(curve)
    assert load_public_key(spki(good, *algorithm)).key_bits == good
    bad = {
        "off the curve": b"\x04" + x + (int.from_bytes(y) ^ 1).to_bytes(size),
        "zero": b"\x04" + bytes(2 * size),
        "x above p": b"\x04" + b"\xff" * size + y,
        "infinity": b"\x00",
        "compressed": bytes((2 + y[-1] % 2,)) + x,
        "hybrid": bytes((6 + y[-1] % 2,)) + x + y,
        "short": good[:-1],
        "empty": b"",
    }
    for bits in bad.values():
        with pytest.raises(Malformed):
            load_public_key(spki(bits, *algorithm))
    for case, kind in (("off the curve", WeakKey), ("infinity", WeakKey), ("compressed", Unsupported), ("hybrid", Unsupported)):
        with pytest.raises(kind):
            load_public_key(spki(bad[case], *algorithm))


def test_a_point_of_one_curve_under_the_name_of_another_is_refused() -> None:
    for kind, curve in ((KeyKind.P_256, SM2), (KeyKind.SM2, P256)):
        with pytest.raises(WeakKey):
            load_public_key(spki(KEYS[kind].public_key.key_bits, der.oid(EC), der.oid(curve)))


def test_explicit_curve_parameters_are_refused(tmp_path: Path) -> None:
    for curve in ("prime256v1", "SM2"):
        command = ["openssl", "ecparam", "-name", curve, "-param_enc", "explicit", "-genkey", "-noout", "-out", "key.pem"]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=30)
        command = ["openssl", "pkey", "-in", "key.pem", "-pubout", "-outform", "DER"]
        raw = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=30).stdout
        with pytest.raises(Unsupported, match="explicit curve parameters"):
            load_public_key(raw)


def test_other_algorithms_are_named_and_refused() -> None:
    for key, text in (
        (ec.generate_private_key(ec.SECP521R1()), "1.3.132.0.35 is not taken"),
        (ec.generate_private_key(ec.SECP256K1()), "1.3.132.0.10 is not taken"),
        (ed448.Ed448PrivateKey.generate(), "1.3.101.113 is not taken"),
    ):
        form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        with pytest.raises(Unsupported, match=text):
            load_public_key(key.public_key().public_bytes(*form))


def _frayed() -> dict[str, bytes]:
    p256, modern = KEYS[KeyKind.P_256].public_key, KEYS[KeyKind.ED25519].public_key
    numbers = der.sequence(der.integer(GOOD), der.integer(65537))
    rsa_oid = der.oid("1.2.840.113549.1.1.1")
    return {
        "curve left out": spki(p256.key_bits, der.oid(EC)),
        "NULL for a curve": spki(p256.key_bits, der.oid(EC), der.null()),
        "something behind the curve": spki(p256.key_bits, der.oid(EC), der.oid(P256), der.null()),
        "Ed25519 with NULL": spki(modern.key_bits, der.oid("1.3.101.112"), der.null()),
        "Ed25519 of 31 octets": spki(modern.key_bits[:-1], der.oid("1.3.101.112")),
        "RSA without NULL": spki(numbers, rsa_oid),
        "RSA with something behind the exponent": spki(numbers + b"\0", rsa_oid, der.null()),
        "RSA with three numbers": spki(der.sequence(der.integer(GOOD), der.integer(65537), der.integer(1)), rsa_oid, der.null()),
        "unused bits": der.sequence(der.sequence(der.oid("1.3.101.112")), der.bit_string(modern.key_bits[:-1] + b"\x80", 7)),
        "trailing octet": p256.spki + b"\0",
        "long length": b"\x30\x81" + p256.spki[1:],
        "not a SEQUENCE": b"\x31" + p256.spki[1:],
        "empty": b"",
    }


@pytest.mark.parametrize("raw", _frayed().values(), ids=_frayed().keys())
def test_keys_that_are_almost_well_formed_are_refused(raw: bytes) -> None:
    with pytest.raises(Malformed):
        load_public_key(raw)


@settings(deadline=None)
@given(data=st.data())
def test_any_octets_are_a_key_or_malformed(data: st.DataObject) -> None:
    raw = data.draw(st.binary(max_size=100) | st.sampled_from([key.public_key.spki for key in KEYS.values()]))
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, max(0, min(len(raw), 60) - 1)))
        raw = raw[:at] + data.draw(st.binary(max_size=2)) + raw[at + data.draw(st.integers(0, 2)) :]
    try:
        key = load_public_key(raw)
    except Malformed:
        return
    assert key.spki == raw or key.kind is KeyKind.SM2
