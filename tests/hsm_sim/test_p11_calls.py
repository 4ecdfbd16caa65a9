"""What a PKCS#11 program is told: states, handles, lengths, attributes, and the code for each misuse (PKCS#11 v3.0, sections 5 and 4)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from p11_client import HANDSHAKE, NULL, P11, Refused
from p11_token import Token, serving

from hsm_sim import cka
from hsm_sim.keys import ED25519_PARAMS, P_256_PARAMS, P_384_PARAMS, SM2_PARAMS, load_public
from hsm_sim.mechanisms import Ecdh1, Gcm, Oaep, Pss, verify
from hsm_sim.pkcs11.table import CALLS
from pkix import der, sm2

DIGEST = b"\x07" * 32
ECDSA = (cka.CKM_ECDSA, None)
AES_GEN, EC_GEN, RSA_GEN = (cka.CKM_AES_KEY_GEN, None), (cka.CKM_EC_KEY_PAIR_GEN, None), (cka.CKM_RSA_PKCS_KEY_PAIR_GEN, None)
ECB, KWP = (cka.CKM_AES_ECB, None), (cka.CKM_AES_KEY_WRAP_KWP, None)
SECRET_KEY = {cka.CKA_CLASS: cka.CKO_SECRET_KEY, cka.CKA_KEY_TYPE: cka.CKK_AES}
PRIVATE_KEY = {cka.CKA_CLASS: cka.CKO_PRIVATE_KEY, cka.CKA_KEY_TYPE: cka.CKK_EC}
NOWHERE = Ecdh1(cka.CKD_NULL, b"", b"\4" + bytes(64))
ROOM = 4096


@pytest.fixture(scope="module")
def shared() -> Iterator[Token]:
    """One process for all tests: partitions "ironroot", "other", "spare" (of the PINs), "fresh" (initialised again)."""
    with serving("ironroot", "other", "spare", "to be initialised") as token:
        yield token


@pytest.fixture(params=[False, True], ids=["old", "new"])
def client(shared: Token, request: pytest.FixtureRequest) -> Iterator[P11]:
    """A connection, in both forms of the protocol."""
    connection = P11(shared.socket, new=request.param)
    yield connection
    connection.close()


@pytest.fixture
def old(shared: Token) -> Iterator[P11]:
    """A connection in one form, where the form does not matter."""
    connection = P11(shared.socket)
    yield connection
    connection.close()


@pytest.fixture
def officer(client: P11, shared: Token) -> int:
    """A read-write session of the officer."""
    return client.session(writable=True, pin=shared.pin())


# --- misuse --------------------------------------------------------------------------------------------------------

Misuse = Callable[[P11, "Scene"], int]


class Scene:
    """Sessions and objects that most misuses start from: of the officer, read-write and read-only."""

    def __init__(self, client: P11, hsm: Token) -> None:
        self.rw = client.session(writable=True, pin=hsm.pin())
        self.ro = client.session()
        self.public, self.key = client.pair(self.rw, P_256_PARAMS)
        self.aes = client.secret(self.rw)
        self.kept_public, self.kept = client.pair(self.rw, P_256_PARAMS, b"kept", token=True)


MISUSES: dict[str, tuple[int, Misuse]] = {
    "slot": (0x03, lambda c, _: c.ckr("GetTokenInfo", 99)),
    "session in no slot": (0x03, lambda c, _: c.ckr("OpenSession", 99, cka.CKF_SERIAL_SESSION)),
    "parallel session": (0xB4, lambda c, _: c.ckr("OpenSession", 0, 0)),
    "session handle": (0xB3, lambda c, _: c.ckr("GetSessionInfo", 1 << 60)),
    "login twice": (0x100, lambda c, s: c.ckr("Login", s.rw, cka.CKU_USER, b"whatever")),
    "login as another": (0x104, lambda c, s: c.ckr("Login", s.rw, cka.CKU_SO, b"whatever")),
    "login as nobody known": (0x103, lambda c, s: c.ckr("Login", s.rw, 77, b"whatever")),
    "login for one key": (0x91, lambda c, s: c.ckr("Login", s.rw, cka.CKU_CONTEXT_SPECIFIC, b"whatever")),
    "login without PIN": (0x07, lambda c, _: c.ckr("Login", c.session(slot=1), cka.CKU_USER, None)),
    "logout of nobody": (0x101, lambda c, _: c.ckr("Logout", c.session(slot=1))),
    "PIN by another than the SO": (0x101, lambda c, s: c.ckr("InitPIN", s.rw, b"12345678")),
    "PIN in a read-only session": (0xB5, lambda c, s: c.ckr("SetPIN", s.ro, b"old-one", b"new-one")),
    "PIN too short": (0xA2, lambda c, s: c.ckr("SetPIN", s.rw, b"old-one", b"new")),
    "initialise a token in use": (0xB6, lambda c, _: c.ckr("InitToken", 0, b"12345678", b"x".ljust(32))),
    "object handle": (0x82, lambda c, s: c.ckr("GetAttributeValue", s.rw, 1 << 60, [(cka.CKA_LABEL, 10)])),
    "destroyed object": (0x82, lambda c, s: (c.call("DestroyObject", s.rw, s.aes), c.ckr("DestroyObject", s.rw, s.aes))[1]),
    "key handle": (0x60, lambda c, s: c.ckr("SignInit", s.rw, ECDSA, 1 << 60)),
    "private object, logged out": (0x82, lambda c, s: (c.call("Logout", s.rw), c.ckr("GetObjectSize", s.rw, s.kept))[1]),
    "private key, logged out": (0x60, lambda c, s: (c.call("Logout", s.rw), c.ckr("SignInit", s.rw, ECDSA, s.kept))[1]),
    "token object, reading": (0xB5, lambda c, s: c.ckr("GenerateKey", s.ro, AES_GEN, {cka.CKA_VALUE_LEN: 16, cka.CKA_TOKEN: True})),
    "token object destroyed, reading": (0xB5, lambda c, s: c.ckr("DestroyObject", s.ro, s.kept)),
    "token object changed, reading": (0xB5, lambda c, s: c.ckr("SetAttributeValue", s.ro, s.kept, {cka.CKA_LABEL: b"x"})),
    "token object copied, reading": (0xB5, lambda c, s: c.ckr("CopyObject", s.ro, s.kept_public, {})),
    "secret value": (0x11, lambda c, s: c.call("GetAttributeValue", s.rw, s.aes, [(cka.CKA_VALUE, 64)])[1]),
    "private value": (0x11, lambda c, s: c.call("GetAttributeValue", s.rw, s.key, [(cka.CKA_VALUE, 64)])[1]),
    "attribute that it has not": (0x12, lambda c, s: c.call("GetAttributeValue", s.rw, s.key, [(cka.CKA_MODULUS, 64)])[1]),
    "secret number that it has not": (0x12, lambda c, s: c.call("GetAttributeValue", s.rw, s.key, [(cka.CKA_PRIME_1, 64)])[1]),
    "too little room for an attribute": (0x150, lambda c, s: c.call("GetAttributeValue", s.rw, s.key, [(cka.CKA_EC_PARAMS, 3)])[1]),
    "read-only attribute": (0x10, lambda c, s: c.ckr("SetAttributeValue", s.rw, s.key, {cka.CKA_LOCAL: True})),
    "not sensitive any more": (0x10, lambda c, s: c.ckr("SetAttributeValue", s.rw, s.key, {cka.CKA_SENSITIVE: False})),
    "extractable from now on": (0x10, lambda c, s: c.ckr("SetAttributeValue", s.rw, s.key, {cka.CKA_EXTRACTABLE: True})),
    "private key in the clear": (0xD1, lambda c, s: c.ckr("CreateObject", s.rw, {**PRIVATE_KEY, cka.CKA_VALUE: DIGEST})),
    "object without class": (0xD0, lambda c, s: c.ckr("CreateObject", s.rw, {cka.CKA_LABEL: b"x"})),
    "search in a search": (0x90, lambda c, s: (c.call("FindObjectsInit", s.rw, {}), c.ckr("FindObjectsInit", s.rw, {}))[1]),
    "search that was not begun": (0x91, lambda c, s: c.ckr("FindObjects", s.rw, 10)),
    "end of no search": (0x91, lambda c, s: c.ckr("FindObjectsFinal", s.rw)),
    "sign in a signature": (0x90, lambda c, s: (c.call("SignInit", s.rw, ECDSA, s.key), c.ckr("SignInit", s.rw, ECDSA, s.key))[1]),
    "sign without begin": (0x91, lambda c, s: c.ckr("Sign", s.rw, DIGEST, ROOM)),
    "update without begin": (0x91, lambda c, s: c.ckr("SignUpdate", s.rw, DIGEST)),
    "verify without begin": (0x91, lambda c, s: c.ckr("Verify", s.rw, DIGEST, bytes(64))),
    "decrypt without begin": (0x91, lambda c, s: c.ckr("Decrypt", s.rw, DIGEST, ROOM)),
    "digest without begin": (0x91, lambda c, s: c.ckr("DigestFinal", s.rw, ROOM)),
    "one part after another": (0x90, lambda c, s: (_parts(c, s), c.ckr("Sign", s.rw, DIGEST, ROOM))[1]),
    "parts where there is one": (0x91, lambda c, s: (c.call("SignInit", s.rw, ECDSA, s.key), c.ckr("SignUpdate", s.rw, DIGEST))[1]),
    "sign with the public key": (0x68, lambda c, s: c.ckr("SignInit", s.rw, ECDSA, s.public)),
    "verify with the private key": (0x68, lambda c, s: c.ckr("VerifyInit", s.rw, ECDSA, s.key)),
    "mechanism for another type": (0x63, lambda c, s: c.ckr("SignInit", s.rw, (cka.CKM_RSA_PKCS, None), s.key)),
    "mechanism for another function": (0x70, lambda c, s: c.ckr("SignInit", s.rw, (cka.CKM_SHA256, None), s.key)),
    "mechanism of a vendor": (0x70, lambda c, s: c.ckr("SignInit", s.rw, (0x80008104, None), s.key)),
    "mechanism info of none": (0x70, lambda c, _: c.ckr("GetMechanismInfo", 0, 0x1234)),
    "no parameter": (0x71, lambda c, s: c.ckr("EncryptInit", s.rw, (cka.CKM_AES_CBC, None), s.aes)),
    "vector too short": (0x71, lambda c, s: _begun(c, s.rw, "Encrypt", (cka.CKM_AES_CBC, b"\1" * 8), s.aes, bytes(16), ROOM)),
    "half a block": (0x21, lambda c, s: _begun(c, s.rw, "Encrypt", ECB, s.aes, bytes(15), ROOM)),
    "half a ciphertext": (0x41, lambda c, s: _begun(c, s.rw, "Decrypt", ECB, s.aes, bytes(15), ROOM)),
    "ciphertext of others": (0x40, lambda c, s: _begun(c, s.rw, "Decrypt", (cka.CKM_AES_GCM, Gcm(b"\1" * 12)), s.aes, bytes(40), ROOM)),
    "digest too long": (0x21, lambda c, s: _begun(c, s.rw, "Sign", ECDSA, s.key, bytes(65), ROOM)),
    "wrong signature": (0xC0, lambda c, s: _begun(c, s.rw, "Verify", ECDSA, s.public, DIGEST, b"\1" * 64)),
    "short signature": (0xC1, lambda c, s: _begun(c, s.rw, "Verify", ECDSA, s.public, DIGEST, b"\1" * 63)),
    "curve": (0x140, lambda c, s: c.ckr("GenerateKeyPair", s.rw, EC_GEN, {cka.CKA_EC_PARAMS: der.oid("1.3.132.0.35")}, {})),
    "no curve": (0xD0, lambda c, s: c.ckr("GenerateKeyPair", s.rw, EC_GEN, {}, {})),
    "RSA too short": (0x13, lambda c, s: c.ckr("GenerateKeyPair", s.rw, RSA_GEN, {cka.CKA_MODULUS_BITS: 1024}, {})),
    "AES too short": (0x13, lambda c, s: c.ckr("GenerateKey", s.rw, AES_GEN, {cka.CKA_VALUE_LEN: 8})),
    "AES of no length": (0xD0, lambda c, s: c.ckr("GenerateKey", s.rw, AES_GEN, {})),
    "wrong class": (0xD1, lambda c, s: c.ckr("GenerateKey", s.rw, AES_GEN, {cka.CKA_VALUE_LEN: 16, cka.CKA_CLASS: 3})),
    "wrapping key handle": (0x113, lambda c, s: c.ckr("WrapKey", s.rw, KWP, 1 << 60, s.key, ROOM)),
    "wrapping key of another type": (0x115, lambda c, s: c.ckr("WrapKey", s.rw, KWP, s.public, s.key, ROOM)),
    "wrapping of what stays": (0x6A, lambda c, s: c.ckr("WrapKey", s.rw, KWP, c.secret(s.rw, wrap=True), s.key, ROOM)),
    "unwrapping key handle": (0xF0, lambda c, s: c.ckr("UnwrapKey", s.rw, KWP, 1 << 60, bytes(24), {})),
    "unwrapping of others": (0x110, lambda c, s: c.ckr("UnwrapKey", s.rw, KWP, c.secret(s.rw, unwrap=True), bytes(24), SECRET_KEY)),
    "point off the curve": (0x71, lambda c, s: c.ckr("DeriveKey", s.rw, (cka.CKM_ECDH1_DERIVE, NOWHERE), _deriving(c, s), {})),
    "seed": (0x120, lambda c, s: c.ckr("SeedRandom", s.rw, b"1234")),
    "too much randomness": (0x07, lambda c, s: c.ckr("GenerateRandom", s.rw, 1 << 31)),
    "slot event": (0x08, lambda c, _: c.ckr("WaitForSlotEvent", cka.CKF_DONT_BLOCK)),
    "digest of a secret": (0x68, lambda c, s: (c.call("DigestInit", s.rw, (cka.CKM_SHA256, None)), c.ckr("DigestKey", s.rw, s.aes))[1]),
    "named user": (0x07, lambda c, _: c.ckr("LoginUser", c.session(slot=1), cka.CKU_USER, b"12345678", b"somebody")),
}  # fmt: skip


def _begun(client: P11, session: int, name: str, mechanism: Any, key: int, *arguments: Any) -> int:
    """The code of a call after its C_…Init."""
    client.call(f"{name}Init", session, mechanism, key)
    return client.ckr(name, session, *arguments)


def _deriving(client: P11, scene: Scene) -> int:
    return client.pair(scene.rw, P_256_PARAMS, derive=True)[1]


def _parts(client: P11, scene: Scene) -> None:
    client.call("SignInit", scene.rw, (cka.CKM_ECDSA_SHA256, None), scene.key)
    client.call("SignUpdate", scene.rw, b"part")


@pytest.mark.parametrize("name", MISUSES)
def test_each_misuse_has_its_code(old: P11, shared: Token, name: str) -> None:
    ckr, misuse = MISUSES[name]
    said = misuse(old, Scene(old, shared))
    assert said == ckr, f"0x{said:X}"


@pytest.mark.parametrize("call", [c for c in CALLS.values() if c.number not in (1, 2)], ids=lambda call: call.name)
def test_before_initialize_there_is_nothing(shared: Token, call: Any) -> None:
    client = P11(shared.socket, initialise=False)
    values = {"u": 0, "y": 0, "z": b"", "s": b"", "ay": b"", "fy": 0, "fu": 0, "aA": {}, "fA": [], "M": ECDSA}
    assert client.ckr(call.name, *(values[kind] for kind in call.request)) in (0x190, 0x54)
    client.close()


def test_somebody_who_is_not_p11_kit(shared: Token) -> None:
    client = P11(shared.socket, initialise=False)
    assert client.ckr("Initialize", b"hello", 0, None) == 5
    client.close()


@pytest.mark.parametrize("name", ["SignRecoverInit", "VerifyRecoverInit", "GetOperationState", "DigestEncryptUpdate"])
def test_what_is_not_supported_is_said_to_be_so(old: P11, shared: Token, name: str) -> None:
    scene = Scene(old, shared)
    arguments = {"SignRecoverInit": (ECDSA, scene.key), "VerifyRecoverInit": (ECDSA, scene.key), "GetOperationState": (9,)}
    assert old.ckr(name, scene.rw, *arguments.get(name, (b"data", ROOM))) == 0x54


@pytest.mark.parametrize("number", [0, 68, 200, 1 << 31])
def test_unknown_calls_are_answered(old: P11, number: int) -> None:
    old.send_raw(number.to_bytes(4) + bytes(4))
    _, body = old.receive()
    assert body[-8:] == (0x54).to_bytes(8)


def test_a_newer_client_is_told_the_version_that_is_spoken(shared: Token) -> None:
    for offered in (0, 1, 2, 255):
        client = P11(shared.socket, version=offered)
        assert client.version == 0
        client.close()


# --- slots, sessions, logins ---------------------------------------------------------------------------------------


def test_each_partition_is_a_slot(client: P11) -> None:
    assert client.call("GetSlotList", 1, 0) == (4,)
    assert client.call("GetSlotList", 1, 2) == (4,)
    assert client.call("GetSlotList", 1, 8) == ([0, 1, 2, 3],)
    labels = [client.call("GetTokenInfo", slot)[0] for slot in range(3)]
    assert labels == [name.ljust(32) for name in (b"ironroot", b"other", b"spare")]
    description, maker, flags, *_ = client.call("GetSlotInfo", 0)
    assert (len(description), len(maker), flags & cka.CKF_TOKEN_PRESENT) == (64, 32, cka.CKF_TOKEN_PRESENT)
    info = client.call("GetTokenInfo", 0)
    assert info[4] & (cka.CKF_LOGIN_REQUIRED | cka.CKF_TOKEN_INITIALIZED | cka.CKF_USER_PIN_INITIALIZED | cka.CKF_RNG) == 0x40D
    assert (info[5], info[6]) == (1024, 0)


def test_mechanisms_that_are_listed_are_described(client: P11) -> None:
    (count,) = client.call("GetMechanismList", 0, 0)
    (numbers,) = client.call("GetMechanismList", 0, 100)
    assert len(numbers) == count
    for number in numbers:
        least, most, flags = client.call("GetMechanismInfo", 0, number)
        assert least <= most
        assert flags
    assert client.call("GetMechanismInfo", 0, cka.CKM_RSA_PKCS_KEY_PAIR_GEN) == (2048, 4096, cka.CKF_GENERATE_KEY_PAIR)


def test_states_of_a_session(client: P11, shared: Token) -> None:
    so = shared.pin("so-pin").encode()
    reading, writing = client.session(), client.session(writable=True)

    def states() -> tuple[int, int]:
        return client.call("GetSessionInfo", reading)[1], client.call("GetSessionInfo", writing)[1]

    assert states() == (cka.CKS_RO_PUBLIC_SESSION, cka.CKS_RW_PUBLIC_SESSION)
    client.call("Login", reading, cka.CKU_USER, shared.pin().encode())
    assert states() == (cka.CKS_RO_USER_FUNCTIONS, cka.CKS_RW_USER_FUNCTIONS)
    client.call("Logout", writing)
    assert states() == (cka.CKS_RO_PUBLIC_SESSION, cka.CKS_RW_PUBLIC_SESSION)
    assert client.ckr("Login", writing, cka.CKU_SO, so) == 0xB7  # a read-only session is there
    client.call("CloseSession", reading)
    client.call("Login", writing, cka.CKU_SO, so)
    assert client.call("GetSessionInfo", writing) == (0, cka.CKS_RW_SO_FUNCTIONS, 6, 0)
    assert client.ckr("OpenSession", 0, cka.CKF_SERIAL_SESSION) == 0xB8


def test_the_last_session_logs_out(client: P11, shared: Token) -> None:
    client.call("CloseSession", client.session(pin=shared.pin()))
    assert client.call("GetSessionInfo", client.session())[1] == cka.CKS_RO_PUBLIC_SESSION
    client.session(slot=1)
    client.call("CloseAllSessions", 0)
    assert client.call("GetSessionInfo", client.session())[1] == cka.CKS_RO_PUBLIC_SESSION


def test_tokens_have_logins_of_their_own(client: P11, shared: Token) -> None:
    here, there = client.session(writable=True, pin=shared.pin()), client.session(writable=True, slot=1)
    assert client.call("GetSessionInfo", there)[1] == cka.CKS_RW_PUBLIC_SESSION
    client.call("Login", there, cka.CKU_USER, shared.pin("pin.other").encode())
    _, key = client.pair(here, P_256_PARAMS, b"mine", token=True)
    assert client.find(there, {cka.CKA_LABEL: b"mine"}) == []
    assert client.ckr("SignInit", there, ECDSA, key) == 0x60


def test_handles_of_another_connection_mean_nothing(old: P11, shared: Token) -> None:
    scene = Scene(old, shared)
    other = P11(shared.socket)
    own = other.session(writable=True, pin=shared.pin())
    assert other.ckr("GetSessionInfo", scene.rw) == 0xB3
    assert other.ckr("CloseSession", scene.rw) == 0xB3
    for handle in (scene.key, scene.kept, scene.aes):
        assert other.ckr("SignInit", own, ECDSA, handle) == 0x60
        assert other.ckr("DestroyObject", own, handle) == 0x82
    assert len(other.find(own, {cka.CKA_LABEL: b"k"})) == 0  # session objects of the first
    other.close()
    assert old.call("GetSessionInfo", scene.rw)[1] == cka.CKS_RW_USER_FUNCTIONS


def test_there_are_as_many_sessions_as_the_personality_has(old: P11) -> None:
    opened = [old.session() for _ in range(1024)]
    assert old.ckr("OpenSession", 0, cka.CKF_SERIAL_SESSION) == 0xB1
    old.call("CloseSession", opened[0])
    old.session()


def test_the_crypto_user_uses_keys_and_makes_none(client: P11, shared: Token) -> None:
    officer = client.session(writable=True, pin=shared.pin())
    client.pair(officer, P_256_PARAMS, b"for the user", token=True)
    with shared.native("so") as native:
        native.call("set_pin", role="user", new="user-pin")
    client.call("Logout", officer)
    client.call("Login", officer, cka.CKU_CRYPTO_USER, b"user-pin")
    assert client.call("GetSessionInfo", officer)[1] == cka.CKS_RW_USER_FUNCTIONS
    (key, *_) = client.find(officer, {cka.CKA_LABEL: b"for the user", cka.CKA_CLASS: cka.CKO_PRIVATE_KEY})
    client.call("SignInit", officer, ECDSA, key)
    assert len(client.call("Sign", officer, DIGEST, 64)[0]) == 64
    assert client.ckr("GenerateKey", officer, (cka.CKM_AES_KEY_GEN, None), {cka.CKA_VALUE_LEN: 16}) == 0x1B
    assert client.ckr("DestroyObject", officer, key) == 0x1B


def test_a_lock_ends_all_logins(client: P11, shared: Token) -> None:
    session = client.session(writable=True, pin=shared.pin())
    label = b"locked" + bytes((client.new,))
    _, key = client.pair(session, P_256_PARAMS, label, token=True)
    with shared.native() as native:
        native.call("lock")
    assert client.ckr("SignInit", session, ECDSA, key) == 0x60
    assert client.call("GetSessionInfo", session)[1] == cka.CKS_RW_PUBLIC_SESSION
    client.call("Login", session, cka.CKU_USER, shared.pin().encode())
    assert len(client.find(session, {cka.CKA_LABEL: label})) == 2


def test_wrong_pins_are_counted_and_lock(old: P11, shared: Token) -> None:
    """On the partition "spare", which nobody else uses."""
    session = old.session(writable=True, slot=2)
    flags = [old.call("GetTokenInfo", 2)[4] & 0x70000]
    for _ in range(10):
        assert old.ckr("Login", session, cka.CKU_USER, b"not-the-pin") == 0xA0
        flags.append(old.call("GetTokenInfo", 2)[4] & 0x70000)
    low, final, locked = cka.CKF_USER_PIN_COUNT_LOW, cka.CKF_USER_PIN_FINAL_TRY, cka.CKF_USER_PIN_LOCKED
    assert flags == [0, *[low] * 8, low | final, locked]
    right = shared.pin("pin.spare").encode()
    assert old.ckr("Login", session, cka.CKU_USER, right) == 0xA4
    so = shared.pin("so-pin.spare").encode()
    old.call("Login", session, cka.CKU_SO, so)
    old.call("InitPIN", session, b"a new one")
    old.call("Logout", session)
    old.call("Login", session, cka.CKU_USER, b"a new one")
    old.call("SetPIN", session, b"a new one", b"another one")
    old.call("Logout", session)
    assert old.ckr("SetPIN", session, b"a new one", b"a third one") == 0xA0
    old.call("SetPIN", session, b"another one", b"a third one")
    old.call("LoginUser", session, cka.CKU_USER, b"a third one", None)


def test_a_token_is_initialised(old: P11, shared: Token) -> None:
    pin, so = shared.pin("pin.to be initialised"), shared.pin("so-pin.to be initialised").encode()
    old.pair(old.session(writable=True, pin=pin, slot=3), P_256_PARAMS, token=True)
    old.call("CloseAllSessions", 3)
    assert old.ckr("InitToken", 3, b"not-the-pin", b"fresh".ljust(32)) == 0xA0
    old.call("InitToken", 3, so, b"fresh".ljust(32) + b"what old clients send after it")
    info = old.call("GetTokenInfo", 3)
    assert info[0] == b"fresh".ljust(32)
    assert not info[4] & cka.CKF_USER_PIN_INITIALIZED
    session = old.session(writable=True, slot=3)
    assert old.ckr("Login", session, cka.CKU_USER, pin.encode()) == 0x102
    old.call("Login", session, cka.CKU_SO, so)
    old.call("InitPIN", session, b"new-officer")
    old.call("Logout", session)
    old.call("Login", session, cka.CKU_USER, b"new-officer")
    assert old.find(session, {}) == []


# --- objects -------------------------------------------------------------------------------------------------------


def test_attributes_of_a_pair(client: P11, officer: int) -> None:
    public, key = client.pair(officer, P_256_PARAMS, b"attributes")
    assert client.get(officer, key, cka.CKA_CLASS) == cka.CKO_PRIVATE_KEY
    assert [client.get(officer, key, name) for name in (cka.CKA_SENSITIVE, cka.CKA_ALWAYS_SENSITIVE)] == [True, True]
    assert [client.get(officer, key, name) for name in (cka.CKA_EXTRACTABLE, cka.CKA_NEVER_EXTRACTABLE)] == [False, True]
    assert client.get(officer, key, cka.CKA_KEY_GEN_MECHANISM) == cka.CKM_EC_KEY_PAIR_GEN
    assert client.get(officer, public, cka.CKA_EC_POINT)[:3] == b"\x04\x41\x04"
    assert client.get(officer, public, cka.CKA_DESTROYABLE) == b"\1"
    wanted = [(cka.CKA_LABEL, 0), (cka.CKA_VALUE, 64), (cka.CKA_ID, 2), (cka.CKA_CLASS, 8)]
    values, ckr = client.call("GetAttributeValue", officer, key, wanted)
    assert values == [(cka.CKA_LABEL, b"attributes"), (cka.CKA_VALUE, None), (cka.CKA_ID, None), (cka.CKA_CLASS, cka.CKO_PRIVATE_KEY)]
    assert ckr == 0x11  # the first of them


def test_what_may_be_read_is_read(client: P11, officer: int) -> None:
    key = client.secret(officer, sensitive=False, extractable=True)
    value = client.get(officer, key, cka.CKA_VALUE)
    assert len(value) == 32
    client.call("DigestInit", officer, (cka.CKM_SHA256, None))
    client.call("DigestKey", officer, key)
    assert client.call("DigestFinal", officer, 32) == (hashlib.sha256(value).digest(),)
    client.call("SetAttributeValue", officer, key, {cka.CKA_SENSITIVE: True})
    with pytest.raises(Refused):
        client.get(officer, key, cka.CKA_VALUE)


def test_search_by_attributes(client: P11, officer: int) -> None:
    public, key = client.pair(officer, P_384_PARAMS, b"search")
    assert set(client.find(officer, {cka.CKA_LABEL: b"search"})) == {public, key}
    assert client.find(officer, {cka.CKA_LABEL: b"search", cka.CKA_SIGN: True}) == [key]
    assert client.find(officer, {cka.CKA_LABEL: b"search", cka.CKA_EC_PARAMS: P_256_PARAMS}) == []
    client.call("FindObjectsInit", officer, {cka.CKA_LABEL: b"search"})
    assert [client.call("FindObjects", officer, 1)[0] for _ in range(3)] == [[public], [key], []]
    client.call("FindObjectsFinal", officer)


def test_session_objects_go_with_their_session(client: P11, shared: Token, officer: int) -> None:
    second = client.session()
    _, key = client.pair(second, P_256_PARAMS, b"fleeting")
    client.call("SignInit", officer, ECDSA, key)  # all sessions of the application see it
    client.call("SessionCancel", officer, cka.CKF_SIGN)
    client.call("CloseSession", second)
    assert client.ckr("SignInit", officer, ECDSA, key) == 0x60
    third = client.secret(officer)
    client.call("Logout", officer)
    client.call("Login", officer, cka.CKU_USER, shared.pin().encode())
    assert client.ckr("EncryptInit", officer, (cka.CKM_AES_ECB, None), third) == 0x60


def test_certificates_and_data_are_kept(client: P11, officer: int) -> None:
    name = b"data" + bytes((client.new,))
    template = {cka.CKA_CLASS: cka.CKO_DATA, cka.CKA_TOKEN: True, cka.CKA_LABEL: name, cka.CKA_VALUE: b"contents"}
    (handle,) = client.call("CreateObject", officer, template)
    assert client.get(officer, handle, cka.CKA_VALUE) == b"contents"
    client.call("Logout", officer)
    assert client.find(officer, {cka.CKA_LABEL: name}) == [handle]


def test_a_copy(client: P11, officer: int) -> None:
    public, _ = client.pair(officer, P_256_PARAMS, b"original")
    (copy,) = client.call("CopyObject", officer, public, {cka.CKA_LABEL: b"copy"})
    assert client.get(officer, copy, cka.CKA_EC_POINT) == client.get(officer, public, cka.CKA_EC_POINT)
    assert client.find(officer, {cka.CKA_LABEL: b"copy"}) == [copy]


def test_what_a_connection_may_have_kept_is_limited(old: P11) -> None:
    """Without login, too: session objects, and parts of a message."""
    session = old.session()
    template = {cka.CKA_CLASS: cka.CKO_DATA, cka.CKA_VALUE: bytes(60_000)}
    for _ in range(8 << 20 >> 16):
        old.call("CreateObject", session, template)
    with suppress(Refused):
        for _ in range(16):
            old.call("CreateObject", session, template)
    assert old.ckr("CreateObject", session, template) == 0x31
    old.call("CloseSession", session)
    old.call("CreateObject", old.session(), template)


# --- lengths, parts ------------------------------------------------------------------------------------------------


def test_a_signature_waits_for_room(client: P11, officer: int) -> None:
    public, key = client.pair(officer, P_256_PARAMS)
    client.call("SignInit", officer, ECDSA, key)
    assert client.call("Sign", officer, DIGEST, 0) == (64,)
    assert client.call("Sign", officer, DIGEST, 63) == (64,)
    (signature,) = client.call("Sign", officer, DIGEST, 64)
    assert client.ckr("Sign", officer, DIGEST, 64) == 0x91
    client.call("VerifyInit", officer, ECDSA, public)
    client.call("Verify", officer, DIGEST, signature)
    assert client.ckr("Verify", officer, DIGEST, signature) == 0x91


def test_a_decryption_waits_for_room_and_is_done_once(client: P11, officer: int) -> None:
    key = client.secret(officer)
    mechanism = (cka.CKM_AES_CBC_PAD, bytes(16))
    client.call("EncryptInit", officer, mechanism, key)
    assert client.call("Encrypt", officer, b"twenty octets of text", 0) == (32,)
    (hidden,) = client.call("Encrypt", officer, b"twenty octets of text", 32)
    client.call("DecryptInit", officer, mechanism, key)
    assert client.call("Decrypt", officer, hidden, 0) == (32,)  # at most
    assert client.call("Decrypt", officer, hidden, 20) == (21,)
    assert client.call("Decrypt", officer, hidden, 21) == (b"twenty octets of text",)
    assert client.ckr("Decrypt", officer, hidden, 21) == 0x91


def test_a_digest_waits_for_room(client: P11, officer: int) -> None:
    client.call("DigestInit", officer, (cka.CKM_SHA256, None))
    assert client.call("Digest", officer, b"message", 0) == (32,)
    assert client.call("Digest", officer, b"message", 31) == (32,)
    assert client.call("Digest", officer, b"message", 32) == (hashlib.sha256(b"message").digest(),)
    client.call("DigestInit", officer, (cka.CKM_SHA_1, None))
    client.call("DigestUpdate", officer, b"mes")
    client.call("DigestUpdate", officer, b"sage")
    assert client.call("DigestFinal", officer, 64) == (hashlib.sha1(b"message", usedforsecurity=False).digest(),)


def test_an_operation_is_cancelled(client: P11, officer: int) -> None:
    _, key = client.pair(officer, P_256_PARAMS)
    client.call("SignInit", officer, ECDSA, key)
    client.call("SignInit", officer, NULL, key)
    assert client.ckr("Sign", officer, DIGEST, 64) == 0x91
    client.call("SignInit", officer, ECDSA, key)


def test_an_error_ends_the_operation(client: P11, officer: int) -> None:
    _, key = client.pair(officer, P_256_PARAMS)
    client.call("SignInit", officer, ECDSA, key)
    assert client.ckr("Sign", officer, b"", 64) == 0x21
    client.call("SignInit", officer, ECDSA, key)


@pytest.mark.parametrize(
    ("params", "mechanism"),
    [
        (P_256_PARAMS, cka.CKM_ECDSA_SHA256),
        (P_384_PARAMS, cka.CKM_ECDSA_SHA384),
        (P_384_PARAMS, cka.CKM_ECDSA_SHA512),
        (ED25519_PARAMS, cka.CKM_EDDSA),
        (b"\x13\x0cedwards25519", cka.CKM_EDDSA),
    ],
)
def test_parts_make_the_message(client: P11, officer: int, params: bytes, mechanism: int) -> None:
    public, key = client.pair(officer, params)
    client.call("SignInit", officer, (mechanism, None), key)
    for part in (b"the ", b"whole ", b"", b"message"):
        client.call("SignUpdate", officer, part)
    (signature,) = client.call("SignFinal", officer, ROOM)
    spki = client.get(officer, public, cka.CKA_PUBLIC_KEY_INFO)
    verify(load_public(spki), mechanism, None, b"the whole message", signature)
    client.call("VerifyInit", officer, (mechanism, None), public)
    client.call("VerifyUpdate", officer, b"the whole ")
    client.call("VerifyUpdate", officer, b"message")
    client.call("VerifyFinal", officer, signature)
    client.call("VerifyInit", officer, (mechanism, None), public)
    client.call("Verify", officer, b"the whole message", signature)


def test_rsa_in_all_paddings(client: P11, officer: int) -> None:
    generate = (cka.CKM_RSA_PKCS_KEY_PAIR_GEN, None)
    template = {cka.CKA_MODULUS_BITS: 2048, cka.CKA_PUBLIC_EXPONENT: b"\1\0\1"}
    public, key = client.call("GenerateKeyPair", officer, generate, template, {})
    handle = load_public(client.get(officer, public, cka.CKA_PUBLIC_KEY_INFO)).handle
    assert isinstance(handle, rsa.RSAPublicKey)
    pss = Pss(cka.CKM_SHA384, cka.CKG_MGF1_SHA384, 48)
    cases = [
        ((cka.CKM_SHA512_RSA_PKCS, None), padding.PKCS1v15(), hashes.SHA512()),
        ((cka.CKM_SHA384_RSA_PKCS_PSS, pss), padding.PSS(padding.MGF1(hashes.SHA384()), 48), hashes.SHA384()),
    ]
    for mechanism, scheme, algorithm in cases:
        client.call("SignInit", officer, mechanism, key)
        handle.verify(client.call("Sign", officer, b"message", 256)[0], b"message", scheme, algorithm)
    client.call("SignInit", officer, (cka.CKM_RSA_PKCS_PSS, pss), key)
    (signature,) = client.call("Sign", officer, hashlib.sha384(b"message").digest(), 256)
    handle.verify(signature, b"message", cases[1][1], cases[1][2])
    assert client.ckr("SignInit", officer, (cka.CKM_SHA256_RSA_PKCS_PSS, None), key) == 0x71
    oaep = (cka.CKM_RSA_PKCS_OAEP, Oaep(cka.CKM_SHA256, cka.CKG_MGF1_SHA1, b"label"))
    for mechanism in (oaep, (cka.CKM_RSA_PKCS, None)):
        client.call("EncryptInit", officer, mechanism, public)
        (hidden,) = client.call("Encrypt", officer, b"secret", 256)
        client.call("DecryptInit", officer, mechanism, key)
        assert client.call("Decrypt", officer, hidden, 256) == (b"secret",)


def test_sm2_is_an_elliptic_curve_that_signs_e(client: P11, officer: int) -> None:
    public, key = client.pair(officer, SM2_PARAMS)
    assert client.get(officer, public, cka.CKA_KEY_TYPE) == cka.CKK_EC
    assert client.get(officer, public, cka.CKA_EC_PARAMS) == SM2_PARAMS
    point = client.get(officer, public, cka.CKA_EC_POINT)[2:]
    e = sm2.digest(point, b"message", sm2.DEFAULT_ID)
    client.call("SignInit", officer, ECDSA, key)
    (signature,) = client.call("Sign", officer, e, 64)
    r, s = (der.integer(int.from_bytes(half)) for half in (signature[:32], signature[32:]))
    assert sm2.verify(point, der.sequence(r, s), b"message", id=sm2.DEFAULT_ID)
    client.call("VerifyInit", officer, ECDSA, public)
    client.call("Verify", officer, e, signature)
    client.call("SignInit", officer, ECDSA, key)
    assert client.ckr("Sign", officer, bytes(31), 64) == 0x21
    assert client.ckr("SignInit", officer, (cka.CKM_ECDSA_SHA256, None), key) == 0x63


def test_a_key_goes_and_comes_wrapped(client: P11, officer: int) -> None:
    wrapping = client.secret(officer, wrap=True, unwrap=True)
    public, key = client.pair(officer, SM2_PARAMS, extractable=True)
    for mechanism in ((cka.CKM_AES_KEY_WRAP_KWP, None), (cka.CKM_AES_CBC_PAD, bytes(16))):
        (length,) = client.call("WrapKey", officer, mechanism, wrapping, key, 0)
        assert client.call("WrapKey", officer, mechanism, wrapping, key, length - 1) == (length,)
        (wrapped,) = client.call("WrapKey", officer, mechanism, wrapping, key, length)
        assert len(wrapped) == length
        template = {cka.CKA_CLASS: cka.CKO_PRIVATE_KEY, cka.CKA_KEY_TYPE: cka.CKK_EC, cka.CKA_SIGN: True}
        (again,) = client.call("UnwrapKey", officer, mechanism, wrapping, wrapped, template)
        client.call("SignInit", officer, ECDSA, again)
        (signature,) = client.call("Sign", officer, DIGEST, 64)
        client.call("VerifyInit", officer, ECDSA, public)
        client.call("Verify", officer, DIGEST, signature)
        assert client.get(officer, again, cka.CKA_LOCAL) is False
        assert client.get(officer, again, cka.CKA_ALWAYS_SENSITIVE) is False


def test_two_sides_agree_on_a_key(client: P11, officer: int) -> None:
    public, key = client.pair(officer, P_256_PARAMS, derive=True)
    theirs = ec.generate_private_key(ec.SECP256R1())
    numbers = theirs.public_key().public_numbers()
    point = b"\4" + numbers.x.to_bytes(32) + numbers.y.to_bytes(32)
    ours = load_public(client.get(officer, public, cka.CKA_PUBLIC_KEY_INFO)).handle
    template = {cka.CKA_KEY_TYPE: cka.CKK_AES, cka.CKA_VALUE_LEN: 16, cka.CKA_SENSITIVE: False, cka.CKA_EXTRACTABLE: True}
    for given in (point, der.octet_string(point)):
        (derived,) = client.call("DeriveKey", officer, (cka.CKM_ECDH1_DERIVE, Ecdh1(cka.CKD_NULL, b"", given)), key, template)
        assert client.get(officer, derived, cka.CKA_VALUE) == theirs.exchange(ec.ECDH(), ours)[-16:]


def test_a_slow_call_holds_up_nobody(old: P11, shared: Token) -> None:
    """RSA takes its time; what comes after it on the same connection, and on others, is answered meanwhile, by number."""
    session = old.session(writable=True, pin=shared.pin())
    slow = old.send("GenerateKeyPair", session, (cka.CKM_RSA_PKCS_KEY_PAIR_GEN, None), {cka.CKA_MODULUS_BITS: 4096}, {})
    quick = [old.send("GetSessionInfo", session) for _ in range(20)]
    answered = [old.receive()[0] for _ in range(21)]
    assert sorted(answered) == [slow, *quick]
    assert answered[0] == quick[0]


def test_finalize_closes_all(old: P11, shared: Token) -> None:
    session = old.session(pin=shared.pin())
    old.call("Finalize")
    assert old.ckr("GetSessionInfo", session) == 0x190
    old.call("Initialize", HANDSHAKE, 0, None)
    assert old.ckr("GetSessionInfo", session) == 0xB3
    assert old.call("GetSessionInfo", old.session())[1] == cka.CKS_RO_PUBLIC_SESSION
