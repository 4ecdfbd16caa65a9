"""Keys and mechanisms: known answers, other libraries, and what does not fit."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, padding, utils
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.kdf.x963kdf import X963KDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from hypothesis import given
from hypothesis import strategies as st

from hsm_sim import cka, keys, mechanisms
from hsm_sim.errors import Code, Rejected
from hsm_sim.keys import Key, generate, load, load_public, public_from, secret_key
from hsm_sim.mechanisms import TABLE, Digested, Ecdh1, Eddsa, Gcm, MlDsa, Oaep, Pss
from pkix import der, sm2

KINDS = ("rsa-2048", "p-256", "p-384", "ed25519", "sm2", "ml-dsa-65")
MADE = {kind: generate(kind) for kind in (*KINDS, "aes-256", "sm4", "generic")}
SIGNING = {"rsa-2048": cka.CKM_SHA256_RSA_PKCS, "p-256": cka.CKM_ECDSA, "p-384": cka.CKM_ECDSA, "sm2": cka.CKM_ECDSA}
SIGNING |= {"ed25519": cka.CKM_EDDSA, "ml-dsa-65": cka.CKM_ML_DSA, "generic": cka.CKM_SHA256_HMAC}
DIGEST = hashlib.sha256(b"message").digest()
PSS = Pss(cka.CKM_SHA256, cka.CKG_MGF1_SHA256, 32)


def code(function: Any, *arguments: Any) -> Code:
    """The code with which this is refused."""
    with pytest.raises(Rejected) as caught:
        function(*arguments)
    return caught.value.code


# --- keys ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MADE)
def test_a_key_is_what_its_secret_octets_were(kind: str) -> None:
    key = MADE[kind]
    again = load(kind, key.secret())
    assert (again.kind, again.cls, again.key_type, again.spki) == (key.kind, key.cls, key.key_type, key.spki)
    assert again.secret() == key.secret()


@pytest.mark.parametrize("kind", MADE)
def test_repr_shows_nothing_secret(kind: str) -> None:
    key = MADE[kind]
    assert all(value.hex() not in repr(key).lower() for value in key.revealed().values() if isinstance(value, bytes))


@pytest.mark.parametrize("kind", KINDS)
def test_a_public_half_has_no_secret(kind: str) -> None:
    public = MADE[kind].public()
    assert public.secret() == b""
    assert public.revealed() == {}
    if kind != "ml-dsa-65":
        assert public_from(public.attributes()).spki == public.spki


@pytest.mark.parametrize(
    ("kind", "length"),
    [("rsa-1024", 0), ("rsa-4104", 0), ("rsa-2049", 0), ("rsa-", 0), ("rsa-99999999999", 0), ("dsa", 0), ("generic", 0), ("generic", 513)],
)
def test_keys_that_are_not_made(kind: str, length: int) -> None:
    assert code(generate, kind, length) in (Code.ATTRIBUTE_VALUE_INVALID, Code.MECHANISM_INVALID)


def test_octets_of_another_kind() -> None:
    assert code(load, "p-256", MADE["p-384"].secret()) is Code.WRAPPED_KEY_INVALID
    assert code(load, "p-256", b"nothing") is Code.WRAPPED_KEY_INVALID
    assert code(load, "aes-256", bytes(16)) is Code.ATTRIBUTE_VALUE_INVALID


def test_public_keys_in_numbers() -> None:
    p256 = MADE["p-256"].public().attributes()
    bare = {**p256, cka.CKA_EC_POINT: keys.bare_point(p256[cka.CKA_EC_POINT])}  # type: ignore[arg-type]
    assert public_from(bare).spki == MADE["p-256"].spki
    assert code(public_from, {**p256, cka.CKA_EC_POINT: b"\x04\x41\x04" + bytes(64)}) is Code.ATTRIBUTE_VALUE_INVALID
    assert code(public_from, {**p256, cka.CKA_EC_PARAMS: keys.ED25519_PARAMS}) is Code.TEMPLATE_INCONSISTENT
    assert code(public_from, {cka.CKA_KEY_TYPE: cka.CKK_RSA, cka.CKA_MODULUS: b"\xff"}) is Code.TEMPLATE_INCOMPLETE
    assert code(public_from, {cka.CKA_KEY_TYPE: 0x1234}) is Code.TEMPLATE_INCONSISTENT


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=64))
def test_the_octet_string_around_a_point_comes_off_and_nothing_else(x: bytes, y: bytes) -> None:
    raw = b"\x04" + x + y
    assert keys.bare_point(raw) == raw or len(raw) in (67, 99, 34)
    for point in (b"\x04" + x + bytes(32), x, b"\x04" + bytes(96)):
        assert keys.bare_point(der.octet_string(point)) == point


# --- signatures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SIGNING)
def test_signatures_verify_and_changed_ones_do_not(kind: str) -> None:
    key = MADE[kind]
    public = key if kind == "generic" else key.public()
    number = SIGNING[kind]
    signature = mechanisms.sign(key, number, None, DIGEST)
    assert len(signature) == mechanisms.signature_length(key, TABLE[number])
    mechanisms.verify(public, number, None, DIGEST, signature)
    assert code(mechanisms.verify, public, number, None, DIGEST, bytes((signature[0] ^ 1,)) + signature[1:]) is Code.SIGNATURE_INVALID
    assert code(mechanisms.verify, public, number, None, bytes(32), signature) is Code.SIGNATURE_INVALID
    assert code(mechanisms.verify, public, number, None, DIGEST, bytes(len(signature))) is Code.SIGNATURE_INVALID
    assert code(mechanisms.verify, public, number, None, DIGEST, signature[1:]) is Code.SIGNATURE_LEN_RANGE


def test_another_library_verifies() -> None:
    for kind, algorithm in (("p-256", hashes.SHA256()), ("p-384", hashes.SHA384())):
        number = cka.CKM_ECDSA_SHA256 if kind == "p-256" else cka.CKM_ECDSA_SHA384
        public = load_der_public_key(MADE[kind].spki)
        assert isinstance(public, ec.EllipticCurvePublicKey)
        public.verify(mechanisms.x962(mechanisms.sign(MADE[kind], number, None, b"m")), b"m", ec.ECDSA(algorithm))
        public.verify(mechanisms.signer(MADE[kind], number, der=True)(b"m"), b"m", ec.ECDSA(algorithm))
    edwards, lattice = load_der_public_key(MADE["ed25519"].spki), load_der_public_key(MADE["ml-dsa-65"].spki)
    assert isinstance(edwards, ed25519.Ed25519PublicKey)
    assert isinstance(lattice, mldsa.MLDSA65PublicKey)
    edwards.verify(mechanisms.sign(MADE["ed25519"], cka.CKM_EDDSA, Eddsa(), b"m"), b"m")
    lattice.verify(mechanisms.sign(MADE["ml-dsa-65"], cka.CKM_ML_DSA, MlDsa(), b"m"), b"m")
    public = load_der_public_key(MADE["rsa-2048"].spki)
    assert isinstance(public, RSAPublicKey)
    info = bytes.fromhex("3031300d060960864801650304020105000420") + DIGEST
    public.verify(mechanisms.sign(MADE["rsa-2048"], cka.CKM_RSA_PKCS, None, info), b"message", padding.PKCS1v15(), hashes.SHA256())


def test_a_digest_stands_for_its_message() -> None:
    signature = mechanisms.sign(MADE["p-256"], cka.CKM_ECDSA_SHA256, None, Digested(DIGEST))
    mechanisms.verify(MADE["p-256"].public(), cka.CKM_ECDSA_SHA256, None, b"message", signature)
    mechanisms.verify(MADE["p-256"].public(), cka.CKM_ECDSA, None, DIGEST, signature)


@pytest.mark.parametrize("length", [1, 20, 28, 32, 48, 64])
@pytest.mark.parametrize("kind", ["p-256", "p-384"])
def test_ecdsa_takes_digests_of_any_length(kind: str, length: int) -> None:
    """Its leftmost bits count (FIPS 186-5 6.4.1): a longer one signs as its beginning, a shorter one as the same number."""
    digest = bytes(range(1, length + 1))
    signature = mechanisms.x962(mechanisms.sign(MADE[kind], cka.CKM_ECDSA, None, digest))
    public = MADE[kind].public().handle
    algorithm = {28: hashes.SHA224(), 32: hashes.SHA256(), 48: hashes.SHA384(), 64: hashes.SHA512()}.get(length)
    if algorithm is not None:
        public.verify(signature, digest, ec.ECDSA(utils.Prehashed(algorithm)))
    for wrong in (b"", bytes(65)):
        assert code(mechanisms.sign, MADE[kind], cka.CKM_ECDSA, None, wrong) is Code.DATA_LEN_RANGE


@given(st.integers(1, 2**256 - 1), st.integers(1, 2**256 - 1))
def test_the_two_forms_of_a_signature(r: int, s: int) -> None:
    raw = r.to_bytes(32) + s.to_bytes(32)
    assert mechanisms.x962(raw) == utils.encode_dss_signature(r, s)
    assert mechanisms.signatures.raw(mechanisms.x962(raw), 32) == raw


def test_hmac_known_answer() -> None:
    """RFC 4231, 4.3."""
    key = secret_key("generic", b"Jefe")
    mac = mechanisms.sign(key, cka.CKM_SHA256_HMAC, None, b"what do ya want for nothing?")
    assert mac.hex() == "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"


@pytest.mark.parametrize(
    ("kind", "number", "params", "data", "expected"),
    [
        ("sm2", cka.CKM_ECDSA_SHA256, None, b"m", Code.KEY_TYPE_INCONSISTENT),
        ("sm2", cka.CKM_ECDSA, None, bytes(48), Code.DATA_LEN_RANGE),
        ("p-256", cka.CKM_EDDSA, None, b"m", Code.KEY_TYPE_INCONSISTENT),
        ("p-256", cka.CKM_SHA256, None, b"m", Code.MECHANISM_INVALID),
        ("p-256", 0x99999, None, b"m", Code.MECHANISM_INVALID),
        ("rsa-2048", cka.CKM_RSA_PKCS, None, bytes(246), Code.DATA_LEN_RANGE),
        ("rsa-2048", cka.CKM_RSA_PKCS_PSS, None, bytes(32), Code.MECHANISM_PARAM_INVALID),
        ("rsa-2048", cka.CKM_RSA_PKCS_PSS, PSS, bytes(20), Code.DATA_LEN_RANGE),
        ("rsa-2048", cka.CKM_RSA_PKCS_PSS, Pss(cka.CKM_SHA256, cka.CKG_MGF1_SHA256, 1 << 40), bytes(32), Code.MECHANISM_PARAM_INVALID),
        ("rsa-2048", cka.CKM_RSA_PKCS_PSS, Pss(cka.CKM_SHA256, 99, 32), bytes(32), Code.MECHANISM_PARAM_INVALID),
        ("rsa-2048", cka.CKM_SHA384_RSA_PKCS_PSS, PSS, b"m", Code.MECHANISM_PARAM_INVALID),
        ("ed25519", cka.CKM_EDDSA, Eddsa(True), b"m", Code.MECHANISM_PARAM_INVALID),
        ("ml-dsa-65", cka.CKM_ML_DSA, MlDsa(0, b"context"), b"m", Code.MECHANISM_PARAM_INVALID),
    ],
)  # fmt: skip
def test_what_is_not_signed(kind: str, number: int, params: Any, data: bytes, expected: Code) -> None:
    assert code(mechanisms.sign, MADE[kind], number, params, data) is expected


# --- ciphers, wrapping, agreement ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number", [cka.CKM_AES_CBC_PAD, cka.CKM_AES_GCM, cka.CKM_AES_CBC, cka.CKM_AES_ECB, cka.CKM_SM4_CBC, cka.CKM_SM4_ECB]
)
@given(blocks=st.integers(0, 5), rest=st.integers(0, 15))
def test_what_is_encrypted_decrypts(number: int, blocks: int, rest: int) -> None:
    key = MADE["sm4" if "SM4" in TABLE[number].name else "aes-256"]
    params = {cka.CKM_AES_GCM: Gcm(b"\1" * 12, b"aad", 96)}.get(number, None if "ECB" in TABLE[number].name else b"\2" * 16)
    data = bytes(16 * blocks + (rest if number in (cka.CKM_AES_CBC_PAD, cka.CKM_AES_GCM) else 0))
    hidden = mechanisms.encrypt(key, number, params, data)
    assert len(hidden) == mechanisms.output_length(cka.CKF_ENCRYPT, key, number, params, len(data))
    assert mechanisms.decrypt(key, number, params, hidden) == data
    assert len(data) <= mechanisms.output_length(cka.CKF_DECRYPT, key, number, params, len(hidden))


def test_gcm_known_answer() -> None:
    """NIST's test case 16 with a tag of 128 bits (McGrew and Viega, appendix B)."""
    key = secret_key("aes-256", bytes.fromhex("feffe9928665731c6d6a8f9467308308" * 2))
    plain = "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
    params = Gcm(bytes.fromhex("cafebabefacedbaddecaf888"), bytes.fromhex("feedfacedeadbeeffeedfacedeadbeefabaddad2"), 128)
    assert mechanisms.encrypt(key, cka.CKM_AES_GCM, params, bytes.fromhex(plain)).hex().endswith("76fc6ece0f4e1768cddf8853bb2d551b")


def test_key_wrap_known_answers() -> None:
    """RFC 3394, 4.6; RFC 5649, 6."""
    wrapping = secret_key("aes-256", bytes(range(32)))
    target = secret_key("aes-256", bytes.fromhex("00112233445566778899aabbccddeeff000102030405060708090a0b0c0d0e0f"))
    wrapped = mechanisms.wrap(wrapping, cka.CKM_AES_KEY_WRAP, None, target)
    assert wrapped.hex() == "28c9f404c4b810f4cbccb35cfb87f8263f5786e2d80ed326cbc7f0e71a99f43bfb988b9b7a02dd21"
    wrapping = secret_key("aes-192", bytes.fromhex("5840df6e29b02af1ab493b705bf16ea1ae8338f4dcc176a8"))
    target = secret_key("generic", bytes.fromhex("c37b7e6492584340bed12207808941155068f738"))
    for number in (cka.CKM_AES_KEY_WRAP_KWP, cka.CKM_AES_KEY_WRAP_PAD):
        wrapped = mechanisms.wrap(wrapping, number, bytes.fromhex("A65959A6"), target)
        assert wrapped.hex() == "138bdeaa9b8fa7fc61f97742e72248ee5ae6ae5360d1ae6a5f54f373fa543b6a"


@pytest.mark.parametrize("kind", ["rsa-2048", "p-256", "ed25519", "sm2", "aes-256", "generic"])
@pytest.mark.parametrize(
    "number", [cka.CKM_AES_KEY_WRAP_KWP, cka.CKM_AES_CBC_PAD, cka.CKM_RSA_PKCS_OAEP, cka.CKM_RSA_PKCS, cka.CKM_AES_KEY_WRAP]
)
def test_what_is_wrapped_unwraps_or_does_not_fit(kind: str, number: int) -> None:
    rsa = TABLE[number].key_type == cka.CKK_RSA
    wrapping, unwrapping = (MADE["rsa-2048"].public(), MADE["rsa-2048"]) if rsa else (MADE["aes-256"],) * 2
    params: Any = {cka.CKM_AES_CBC_PAD: bytes(16), cka.CKM_RSA_PKCS_OAEP: Oaep(cka.CKM_SHA256, cka.CKG_MGF1_SHA256)}.get(number)
    target = MADE[kind]
    length = len(target.secret())
    most = {cka.CKM_RSA_PKCS_OAEP: 256 - 2 * 32 - 2, cka.CKM_RSA_PKCS: 256 - 11}.get(number, 1 << 20)
    fits = length <= most and (number != cka.CKM_AES_KEY_WRAP or length % 8 == 0)
    if not fits:
        assert code(mechanisms.wrap, wrapping, number, params, target) is Code.KEY_NOT_WRAPPABLE
        return
    wrapped = mechanisms.wrap(wrapping, number, params, target)
    assert len(wrapped) == mechanisms.wrapped_length(wrapping, number, target)
    template = {cka.CKA_CLASS: target.cls, cka.CKA_KEY_TYPE: target.key_type}
    assert mechanisms.unwrap(unwrapping, number, params, wrapped, template).secret() == target.secret()
    assert code(mechanisms.unwrap, unwrapping, number, params, wrapped[:-8], template) is Code.WRAPPED_KEY_INVALID
    other = {**template, cka.CKA_KEY_TYPE: cka.CKK_ML_DSA}
    assert code(mechanisms.unwrap, unwrapping, number, params, wrapped, other) in (Code.TEMPLATE_INCONSISTENT, Code.WRAPPED_KEY_INVALID)


@pytest.mark.parametrize("kind", ["p-256", "p-384"])
def test_agreement_as_another_library_has_it(kind: str) -> None:
    theirs = ec.generate_private_key(ec.SECP256R1() if kind == "p-256" else ec.SECP384R1())
    point = theirs.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    shared = theirs.exchange(ec.ECDH(), MADE[kind].public().handle)
    template = {cka.CKA_KEY_TYPE: cka.CKK_GENERIC_SECRET}

    def derived(params: Any, length: int | None = None) -> Key:
        wanted = template if length is None else {**template, cka.CKA_VALUE_LEN: length}
        return mechanisms.derive(MADE[kind], cka.CKM_ECDH1_DERIVE, params, wanted)

    assert derived(Ecdh1(cka.CKD_NULL, b"", point)).secret() == shared
    assert derived(Ecdh1(cka.CKD_NULL, b"", point), length=10).secret() == shared[-10:]
    kdf = Ecdh1(cka.CKD_SHA256_KDF, b"info", point)
    assert derived(kdf, length=100).secret() == X963KDF(hashes.SHA256(), 100, b"info").derive(shared)
    with pytest.raises(Rejected):
        derived(Ecdh1(cka.CKD_NULL, b"", point), length=len(shared) + 1)
    assert code(derived, Ecdh1(cka.CKD_NULL, b"", b"\4" + bytes(64))) is Code.MECHANISM_PARAM_INVALID
    assert code(derived, Ecdh1(99, b"", point)) is Code.MECHANISM_PARAM_INVALID


def test_digests() -> None:
    for number, name in ((cka.CKM_SHA_1, "sha1"), (cka.CKM_SHA512, "sha512"), (cka.CKM_SM3, "sm3")):
        assert mechanisms.digest(number, b"m") == hashlib.new(name, b"m", usedforsecurity=False).digest()
    assert code(mechanisms.digest, cka.CKM_ECDSA, b"m") is Code.MECHANISM_INVALID


def test_sm2_signs_what_pkix_verifies() -> None:
    key = MADE["sm2"]
    point = key.point()[2:]
    e = sm2.digest(point, b"message", sm2.DEFAULT_ID)
    assert sm2.verify(point, mechanisms.signer(key, cka.CKM_ECDSA, der=True)(e), b"message", id=sm2.DEFAULT_ID)
    assert mechanisms.signer(load_public(key.spki).public(), cka.CKM_ECDSA) is not None


# --- the check -----------------------------------------------------------------------------------------------------


def test_a_key_is_used_as_its_attributes_say() -> None:
    attributes = {cka.CKA_KEY_TYPE: cka.CKK_EC, cka.CKA_EC_PARAMS: keys.P_256_PARAMS, cka.CKA_SIGN: True, cka.CKA_DERIVE: False}
    check = mechanisms.check
    assert check(cka.CKF_SIGN, cka.CKM_ECDSA, None, attributes).name == "CKM_ECDSA"
    assert code(check, cka.CKF_DERIVE, cka.CKM_ECDH1_DERIVE, Ecdh1(1, b"", b""), attributes) is Code.KEY_FUNCTION_NOT_PERMITTED
    assert code(check, cka.CKF_VERIFY, cka.CKM_ECDSA, None, attributes) is Code.KEY_FUNCTION_NOT_PERMITTED
    assert code(check, cka.CKF_SIGN, cka.CKM_ECDSA, b"parameter", attributes) is Code.MECHANISM_PARAM_INVALID
    only = {**attributes, cka.CKA_ALLOWED_MECHANISMS: (cka.CKM_ECDSA_SHA256,)}
    assert code(check, cka.CKF_SIGN, cka.CKM_ECDSA, None, only) is Code.MECHANISM_INVALID
    assert check(cka.CKF_SIGN, cka.CKM_ECDSA_SHA256, None, only).hash == "sha256"
    curve = {**attributes, cka.CKA_EC_PARAMS: keys.SM2_PARAMS}
    assert code(check, cka.CKF_SIGN, cka.CKM_ECDSA_SHA256, None, curve) is Code.KEY_TYPE_INCONSISTENT
