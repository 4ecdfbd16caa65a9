"""SM2 against the answers of the standard, forgeries, the openssl program and gmssl's pure Python."""

from __future__ import annotations

import ctypes
import json
import secrets
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gmssl.sm2
import gmssl.sm3
import pytest

from pkix import der, digest, sm2
from pkix.algorithms import KeyKind, load_public_key, signature_algorithm
from pkix.errors import Malformed, Unavailable, Unsupported, WeakKey
from pkix.privatekey import generate

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors/sm2.json").read_text())
KNOWN = VECTORS["signatures"][0]
POINT, SIGNATURE, E = (bytes.fromhex(KNOWN[key]) for key in ("point", "signature", "e"))
R, S = (int.from_bytes(SIGNATURE[at : at + 33]) for at in (4, 39))


def named(cases: list[dict[str, Any]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=[case.get("name", "") for case in cases])


def signature(r: int, s: int) -> bytes:
    return der.sequence(der.integer(r), der.integer(s))


# --- known answers -------------------------------------------------------------------------------------------------


def test_the_curve_is_the_one_of_the_standard() -> None:
    curve = VECTORS["curve"]
    assert tuple(int(curve[key], 16) for key in "pabn") == (sm2.P, sm2.A, sm2.B, sm2.N)
    assert bytes.fromhex(curve["g"]) == sm2.G
    assert sm2.public_point(1) == sm2.G


@pytest.mark.parametrize("case", VECTORS["digests"])
def test_sm3(case: dict[str, Any]) -> None:
    assert digest.compute("sm3", bytes.fromhex(case["message"]) * case["repeat"]).hex() == case["sm3"]


@named(VECTORS["signatures"])
def test_published_signatures_verify_under_their_own_id_and_no_other(case: dict[str, Any]) -> None:
    point, signed, message, id = (bytes.fromhex(case[key]) for key in ("point", "signature", "message", "id"))
    assert sm2.public_point(int(case["private"], 16)) == point
    assert sm2.za(point, id).hex() == case["z"]
    if "e" in case:
        assert sm2.digest(point, message, id).hex() == sm2.Key(point).digest(message, id).hex() == case["e"]
    assert sm2.verify(point, signed, message, id=id)
    assert not sm2.verify(point, signed, message + b".", id=id)
    for other in (b"1234567812345678", b"", b"TLSv1.3+GM+Cipher+Suite", b"\0" * 16):
        assert sm2.verify(point, signed, message, id=other) is (other == id)


@pytest.mark.parametrize("case", VECTORS["over_digest"]["cases"])
def test_published_signatures_over_a_digest(case: dict[str, str]) -> None:
    point = bytes.fromhex(VECTORS["over_digest"]["point"])
    assert sm2.public_point(int(VECTORS["over_digest"]["private"], 16)) == point
    e, signed = bytes.fromhex(case["e"]), bytes.fromhex(case["signature"])
    assert sm2.verify_digest(point, signed, e)
    assert not sm2.verify_digest(point, signed, e[::-1])


@pytest.mark.parametrize("case", VECTORS["key_pairs"])
def test_published_key_pairs(case: dict[str, str]) -> None:
    assert sm2.public_point(int(case["private"], 16)).hex() == case["point"]


@named(VECTORS["objects"])
def test_signatures_of_deployed_authorities_are_under_the_default_id(case: dict[str, str]) -> None:
    point, e, signed = (bytes.fromhex(case[key]) for key in ("point", "e", "signature"))
    assert sm2.za(point, sm2.DEFAULT_ID).hex() == case["z"]
    assert sm2.verify_digest(point, signed, e) is (case["id"] == "default")
    # What is signed is SM3(Z || message), never SM3(message): only the object made without Z verifies so, and nothing here does that.
    assert sm2.verify_digest(point, signed, bytes.fromhex(case["tbs_sm3"])) is (case["id"] == "noZA")
    assert signature_algorithm(bytes.fromhex(case["algorithm"])).name == "sm2sign-with-sm3"


def test_identifiers_of_the_standard() -> None:
    for dotted, encoded in VECTORS["oids"].items():
        assert der.oid(dotted).hex() == encoded
    absent, null = (bytes.fromhex(VECTORS["algorithm_identifiers"][key]) for key in ("absent", "null"))
    assert signature_algorithm(absent) == signature_algorithm(null)
    assert signature_algorithm(null).der == absent


def test_the_curve_as_key_algorithm_is_read_and_normalised() -> None:
    frames = VECTORS["spki_frames"]
    usual = bytes.fromhex(frames["id_ec_public_key"]) + POINT
    other = der.sequence(bytes.fromhex(frames["key_algorithm_sm2_oid"]), der.bit_string(POINT))
    assert load_public_key(other).spki == load_public_key(usual).spki == usual
    assert load_public_key(other) == load_public_key(usual)
    assert load_public_key(usual).kind is KeyKind.SM2


def test_the_self_test_passes() -> None:
    sm2.self_test()


# --- what must be refused ------------------------------------------------------------------------------------------


@named(VECTORS["forged"])
def test_forged_signatures_fail(case: dict[str, str]) -> None:
    assert not sm2.verify_digest(POINT, bytes.fromhex(case["signature"]), E)


@pytest.mark.parametrize(
    ("r", "s"),
    [
        (0, S),
        (R, 0),
        (sm2.N, S),
        (R, sm2.N),
        (-1, S),
        (R, -1),
        (R + sm2.N, S),
        (R, S + sm2.N),
        (R, S + (sm2.N << 256)),
        (R, sm2.N - S),
        (R, sm2.N - R),
    ],
)
def test_numbers_outside_of_their_range_fail(r: int, s: int) -> None:
    assert sm2.verify_digest(POINT, signature(R, S), E)
    assert not sm2.verify_digest(POINT, signature(r, s), E)


def test_signatures_that_are_not_strict_der_in_range_never_reach_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    key = sm2.Key(POINT)
    well_formed = {"r+s=n (t=0)", "swapped r,s", "ECDSA-style high-s is NOT malleable in SM2: n-s must fail"}
    malformed = [bytes.fromhex(case["signature"]) for case in VECTORS["forged"] if case["name"] not in well_formed]
    malformed += [signature(r, s) for r, s in ((0, S), (R, 0), (sm2.N, S), (R, sm2.N), (-1, S), (R, -1), (R, S + (sm2.N << 256)))]
    small = der.integer(1)
    malformed += [
        der.sequence(small, small, small),
        der.sequence(small, b"\x02\x02\x00\x01"),
        der.sequence(small, b"\x02\x00"),
        der.sequence(small, b"\x02\x01\x80"),
        der.sequence(small, b"\x04\x01\x01"),
        der.sequence(small, small + b"\0"),
        der.sequence(small, b"\x02\x02\x01"),
    ]
    monkeypatch.setattr(sm2, "_libcrypto", lambda: pytest.fail("libcrypto was given a malformed signature"))
    for each in malformed:
        assert not key.verify_digest(each, E)


def test_every_changed_octet_of_a_signature_makes_it_fail() -> None:
    key = sm2.Key(POINT)
    for at in range(len(SIGNATURE)):
        for flip in (0x01, 0x80):
            assert not key.verify_digest(SIGNATURE[:at] + bytes((SIGNATURE[at] ^ flip,)) + SIGNATURE[at + 1 :], E)
        assert not key.verify_digest(SIGNATURE[:at], E)


@pytest.mark.parametrize("e", [b"", E[:31], E + b"\0"])
def test_only_digests_of_32_octets_are_verified_and_signed(e: bytes) -> None:
    assert not sm2.verify_digest(POINT, SIGNATURE, e)
    with pytest.raises(Malformed, match="32 octets"):
        sm2.Key(sm2.G, 1).sign_digest(e)


def _square_root(value: int) -> int | None:
    root = pow(value, (sm2.P + 1) // 4, sm2.P)
    return root if root * root % sm2.P == value % sm2.P else None


def _small_x() -> tuple[int, int]:
    """A point of the curve whose x fits 32 octets even when p is added to it."""
    return next((x, y) for x in range(1, 100) if (y := _square_root(x**3 + sm2.A * x + sm2.B)) is not None)


def _bad_points() -> dict[str, bytes]:
    x, y = POINT[1:33], POINT[33:]
    small_x, small_y = _small_x()
    sm2.check_point(b"\x04" + small_x.to_bytes(32) + small_y.to_bytes(32))
    bad = {case["name"]: bytes.fromhex(case["point"]) for case in VECTORS["not_points"]}
    return bad | {
        "empty": b"",
        # Invalid-curve attacks use points whose curve differs in b alone; (0, 0) has order 2 on the one with b = 0.
        "zero, of order two on another curve": b"\x04" + bytes(64),
        "infinity as 04": b"\x04" + bytes(63),
        "compressed": bytes((2 + y[-1] % 2,)) + x,
        "compressed, of full length": b"\x02" + x + y,
        "hybrid": bytes((6 + y[-1] % 2,)) + x + y,
        "one octet short": POINT[:-1],
        "one octet long": POINT + b"\0",
        "x not reduced": b"\x04" + (small_x + sm2.P).to_bytes(32) + small_y.to_bytes(32),
        "on the twist": b"\x04" + x + ((int.from_bytes(y) + 1) % sm2.P).to_bytes(32),
        # The node of a singular curve of the form y² = x³ - 3x + 2.
        "node of a singular curve": b"\x04" + (1).to_bytes(32) + bytes(32),
    }


@pytest.mark.parametrize(("name", "point"), _bad_points().items())
def test_what_is_no_point_is_refused_before_any_library_sees_it(name: str, point: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sm2, "_libcrypto", lambda: pytest.fail("libcrypto was given a bad point"))
    with pytest.raises(Malformed) as refused:
        sm2.Key(point)
    if "compressed" in name or name == "hybrid":
        assert isinstance(refused.value, Unsupported)
    frame = der.sequence(bytes.fromhex(VECTORS["spki_frames"]["key_algorithm"]), der.bit_string(point))
    with pytest.raises(Malformed):
        load_public_key(frame)


@pytest.mark.parametrize("scalar", VECTORS["private_range"]["refused"])
def test_private_keys_end_at_n_minus_2(scalar: str) -> None:
    with pytest.raises(WeakKey, match="between 1 and n-2"):
        sm2.public_point(int(scalar, 16))
    largest = int(VECTORS["private_range"]["largest"], 16)
    key = sm2.Key(sm2.public_point(largest), largest)
    assert key.verify_digest(key.sign_digest(E), E)


def test_a_scalar_that_belongs_to_another_point_is_refused() -> None:
    with pytest.raises(Malformed, match="does not belong"):
        sm2.Key(sm2.G, 2)


def test_an_identifier_of_64_kilobits_has_no_length_field() -> None:
    assert len(sm2.za(POINT, b"x" * 8191)) == 32
    with pytest.raises(Malformed, match="8191"):
        sm2.za(POINT, b"x" * 8192)


# --- other people's programs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("id", [b"1234567812345678", b"ALICE123@YAHOO.COM", b""])
def test_openssl_verifies_ours_and_we_verify_openssls(id: bytes, tmp_path: Path) -> None:
    key, message = generate(KeyKind.SM2), secrets.token_bytes(333)
    (tmp_path / "key.pem").write_bytes(key.to_pem())
    (tmp_path / "message").write_bytes(message)
    option = ["-pkeyopt", f"distid:{id.decode()}"] if id else []

    def pkeyutl(*arguments: str) -> None:
        command = ["openssl", "pkeyutl", "-inkey", "key.pem", "-rawin", "-in", "message", "-digest", "sm3", *option, *arguments]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=30)

    pkeyutl("-sign", "-out", "theirs")
    assert sm2.verify(key.public_key.key_bits, (tmp_path / "theirs").read_bytes(), message, id=id)
    pair = sm2.Key(key.public_key.key_bits, int.from_bytes(key.to_der()[key.to_der().index(b"\x04\x20") + 2 :][:32]))
    (tmp_path / "ours").write_bytes(pair.sign_digest(pair.digest(message, id)))
    pkeyutl("-verify", "-sigfile", "ours")


def test_gmssl_agrees() -> None:
    scalar, point = sm2.generate()
    key, message = sm2.Key(point, scalar), secrets.token_bytes(100)
    theirs = gmssl.sm2.CryptSM2(private_key=f"{scalar:064x}", public_key="")
    theirs.public_key = point[1:].hex()  # set here: its constructor strips a leading 04
    e = key.digest(message, sm2.DEFAULT_ID)
    assert theirs._sm3_z(message) == e.hex()
    assert gmssl.sm3.sm3_hash(list(message)) == digest.compute("sm3", message).hex()
    raw = theirs.sign_with_sm3(message, f"{secrets.randbelow(sm2.N - 1) + 1:064x}")
    assert key.verify_digest(signature(int(raw[:64], 16), int(raw[64:], 16)), e)
    ours = key.sign_digest(e)
    values = [int.from_bytes(ours[part.body : part.end]) for part in der.children(ours, der.read(ours))]
    assert theirs.verify_with_sm3("".join(f"{value:064x}" for value in values), message)


# --- the library beneath -------------------------------------------------------------------------------------------


def test_one_key_signs_and_verifies_in_many_threads() -> None:
    scalar, point = sm2.generate()
    key = sm2.Key(point, scalar)

    def work(number: int) -> bool:
        e, wrong = (key.digest(b"%d" % value, sm2.DEFAULT_ID) for value in (number, -1 - number))
        signed = key.sign_digest(e)
        return key.verify_digest(signed, e) and not key.verify_digest(signed, wrong)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(200)))


def test_signatures_differ_and_do_not_exceed_72_octets() -> None:
    scalar, point = sm2.generate()
    key = sm2.Key(point, scalar)
    made = {key.sign_digest(E) for _ in range(50)}
    assert len(made) == 50
    assert all(len(signed) <= 72 and key.verify_digest(signed, E) for signed in made)


def test_a_failed_verification_leaves_no_error_for_the_ssl_module_to_report_as_its_own() -> None:
    libcrypto = ctypes.PyDLL(next(sm2._candidates()))
    libcrypto.ERR_clear_error()
    assert not sm2.verify_digest(POINT, signature(R, sm2.N - R), E)  # libcrypto notes an error for r + s = n
    assert libcrypto.ERR_peek_error() == 0


def test_a_public_key_does_not_sign() -> None:
    with pytest.raises(Exception, match="no private part"):
        sm2.Key(POINT).sign_digest(E)
    assert generate(KeyKind.SM2).public_key.handle.scalar is None


def test_without_libcrypto_only_sm2_is_unavailable_and_the_text_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sm2, "_candidates", lambda: iter(("libcrypto-that-is-not-there.so",)))
    sm2._libcrypto.cache_clear()
    try:
        with pytest.raises(Unavailable, match="libssl3"):
            sm2.Key(POINT)
        assert generate(KeyKind.P_256).kind is KeyKind.P_256
    finally:
        sm2._libcrypto.cache_clear()


def test_a_library_that_is_not_libcrypto_is_passed_over() -> None:
    assert not sm2._usable(ctypes.__file__)
    assert sm2._usable(next(sm2._candidates()))


def test_importing_does_not_open_the_library() -> None:
    program = "import pkix.algorithms, pkix.sm2; assert pkix.sm2._libcrypto.cache_info().currsize == 0"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
