"""SM2 encryption against the answers of the standard, changed ciphertexts, the openssl program and gmssl's pure Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gmssl.sm2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from programs import need, openssl

from pkix import der, digest, pem, sm2, sm2_cipher
from pkix.algorithms import SM2_FRAME, KeyKind
from pkix.errors import Malformed, Unsupported, WeakKey
from pkix.privatekey import PrivateKey, generate, load_private_key

VECTORS: list[dict[str, Any]] = json.loads((Path(__file__).parents[1] / "vectors/sm2_cipher.json").read_text())["ciphertexts"]
KNOWN = VECTORS[0]


def pair(case: dict[str, str]) -> sm2.Key:
    scalar = int(case["private"], 16)
    return sm2.Key(sm2.public_point(scalar), scalar)


PAIR = pair(KNOWN)
PUBLIC = sm2.Key(PAIR.point)


@pytest.mark.parametrize("case", VECTORS, ids=[case["name"] for case in VECTORS])
def test_published_ciphertexts_decrypt(case: dict[str, str]) -> None:
    cipher = bytes.fromhex(case["der"])
    assert sm2_cipher.decrypt(pair(case), cipher) == case["plaintext"].encode()
    assert sm2_cipher.parse(cipher).to_der() == cipher
    assert sm2_cipher.from_raw(sm2_cipher.to_raw(cipher)) == cipher


def test_the_raw_form_is_the_one_of_the_standard() -> None:
    assert sm2_cipher.to_raw(bytes.fromhex(KNOWN["der"])).hex() == KNOWN["raw"]


@given(st.binary(min_size=1, max_size=300))
def test_what_was_encrypted_comes_back(plaintext: bytes) -> None:
    cipher = sm2_cipher.encrypt(PUBLIC, plaintext)
    assert sm2_cipher.decrypt(PAIR, cipher) == plaintext
    assert cipher != sm2_cipher.encrypt(PUBLIC, plaintext)


def test_one_octet_is_never_left_in_clear() -> None:
    """One key stream in 256 is a single zero octet; 2,000 ciphertexts had about eight of them if none was thrown away."""
    assert all(sm2_cipher.parse(sm2_cipher.encrypt(PUBLIC, b"\x5a")).text != b"\x5a" for _ in range(2000))


def test_a_key_stream_of_zeros_is_refused() -> None:
    streams = {scalar: _handmade(scalar) for scalar in range(1, 1500)}
    assert all(sm2_cipher.decrypt(PAIR, cipher) == b"m" for cipher, stream in [streams[1], streams[2]] if stream)
    empty = [cipher for cipher, stream in streams.values() if stream == 0]
    assert empty
    for cipher in empty:
        with pytest.raises(Malformed, match="another key, or was changed"):
            sm2_cipher.decrypt(PAIR, cipher)


@given(st.data())
def test_a_changed_octet_is_found(data: st.DataObject) -> None:
    cipher = bytearray.fromhex(KNOWN["der"])
    at = data.draw(st.integers(0, len(cipher) - 1))
    cipher[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(Malformed):
        sm2_cipher.decrypt(PAIR, bytes(cipher))


@given(st.binary(max_size=200))
def test_any_octets_are_refused_in_words(raw: bytes) -> None:
    for reader in (sm2_cipher.parse, sm2_cipher.from_raw):
        with pytest.raises(Malformed):
            reader(raw)


def test_points_off_the_curve_never_reach_the_library() -> None:
    parts = sm2_cipher.parse(bytes.fromhex(KNOWN["der"]))
    off = parts.point[:64] + bytes((parts.point[64] ^ 1,))
    big = der.sequence(der.integer(sm2.P), der.integer(1), der.octet_string(parts.hash), der.octet_string(parts.text))
    negative = der.sequence(b"\x02\x01\x80", der.integer(1), der.octet_string(parts.hash), der.octet_string(parts.text))
    with pytest.raises(WeakKey):
        sm2_cipher.decrypt(PAIR, parts._replace(point=off).to_der())
    for cipher in (big, negative):
        with pytest.raises(Malformed, match="outside the field"):
            sm2_cipher.decrypt(PAIR, cipher)
    with pytest.raises(Unsupported):
        sm2_cipher.from_raw(b"\x02" + parts.to_raw()[1:])
    with pytest.raises(Malformed, match="hash of 32"):
        sm2_cipher.parse(parts._replace(hash=parts.hash[:31]).to_der())


def test_lengths_and_foreign_keys() -> None:
    for plaintext in (b"", b"x" * (sm2_cipher.MAX_PLAINTEXT + 1)):
        with pytest.raises(Malformed, match="1 to 4096 octets"):
            sm2_cipher.encrypt(PUBLIC, plaintext)
    longest = b"x" * sm2_cipher.MAX_PLAINTEXT
    cipher = sm2_cipher.encrypt(PUBLIC, longest)
    assert sm2_cipher.decrypt(PAIR, cipher) == longest
    scalar, point = sm2.generate()
    for key in (sm2.Key(point, scalar), PUBLIC):
        with pytest.raises(Malformed, match="another key"):
            sm2_cipher.decrypt(key, cipher)


def test_openssl_and_we_decrypt_each_other(tmp_path: Path) -> None:
    need("openssl")
    key = generate(KeyKind.SM2)
    (tmp_path / "key.pem").write_bytes(key.to_pem())
    (tmp_path / "pub.pem").write_text(pem.encode("PUBLIC KEY", key.public_key.spki))
    (tmp_path / "plain").write_bytes(b"between programs")
    openssl("pkeyutl", "-encrypt", "-pubin", "-inkey", "pub.pem", "-in", "plain", "-out", "theirs", folder=tmp_path)
    assert sm2_cipher.decrypt(_handle(key), (tmp_path / "theirs").read_bytes()) == b"between programs"
    (tmp_path / "ours").write_bytes(sm2_cipher.encrypt(key.public_key.handle, b"and back"))
    openssl("pkeyutl", "-decrypt", "-inkey", "key.pem", "-in", "ours", "-out", "back", folder=tmp_path)
    assert (tmp_path / "back").read_bytes() == b"and back"


def test_gmssl_and_we_decrypt_each_other() -> None:
    crypt = gmssl.sm2.CryptSM2(private_key=f"{PAIR.scalar:064x}", public_key="", mode=1)
    crypt.public_key = PAIR.point[1:].hex()  # set here: its constructor strips a leading 04
    assert sm2_cipher.decrypt(PAIR, sm2_cipher.from_raw(b"\x04" + crypt.encrypt(b"from gmssl"))) == b"from gmssl"
    assert crypt.decrypt(sm2_cipher.to_raw(sm2_cipher.encrypt(PUBLIC, b"to gmssl"))[1:]) == b"to gmssl"


def _handle(key: PrivateKey) -> sm2.Key:
    loaded = load_private_key(key.to_der())
    assert loaded.public_key.spki == SM2_FRAME + loaded.public_key.key_bits
    return loaded._secret  # type: ignore[no-any-return]


def _handmade(scalar: int) -> tuple[bytes, int]:
    """The letter m under the ephemeral key ``scalar``, and the octet of key stream that it was hidden with."""
    shared = _multiply(PAIR.point, scalar)
    stream = digest.compute("sm3", shared[1:] + b"\0\0\0\1")[0]
    hash = digest.compute("sm3", shared[1:33] + b"m" + shared[33:])
    return sm2_cipher.Sm2Cipher(sm2.public_point(scalar), hash, bytes((b"m"[0] ^ stream,))).to_der(), stream


def _multiply(point: bytes, scalar: int) -> bytes:
    """scalar · point, by schoolbook arithmetic."""
    p = sm2.P

    def add(a: tuple[int, int] | None, b: tuple[int, int]) -> tuple[int, int]:
        if a is None:
            return b
        slope = (3 * a[0] * a[0] + sm2.A) * pow(2 * a[1], -1, p) if a == b else (b[1] - a[1]) * pow(b[0] - a[0], -1, p)
        x = (slope * slope - a[0] - b[0]) % p
        return x, (slope * (a[0] - x) - a[1]) % p

    addend, total = (int.from_bytes(point[1:33]), int.from_bytes(point[33:])), None
    while scalar:
        if scalar & 1:
            total = add(total, addend)
        addend, scalar = add(addend, addend), scalar >> 1
    assert total is not None
    return b"\x04" + total[0].to_bytes(32) + total[1].to_bytes(32)
