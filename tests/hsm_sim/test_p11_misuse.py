"""Misuse and attack at the PKCS#11 door: PKCS#11's code for it or a closed connection, bounded memory, and no other client notices.

What each single call refuses is in test_p11_calls.py, what comes of numbers and numbers of things in test_p11_door.py.
"""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import closing, suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from p11_client import BY_NAME, HANDSHAKE, P11, Refused, request, u32
from p11_token import Token, serving

from hsm_sim import cka
from hsm_sim.keys import P_256_PARAMS, SM2_PARAMS
from hsm_sim.mechanisms import Pss
from hsm_sim.pkcs11.rpc import MAX_OPTIONS

ECDSA, DIGEST, ROOM = (cka.CKM_ECDSA, None), b"\x07" * 32, 4096
MIB = 1 << 20
GROWTH = 48 * MIB
"""What the process may grow by while somebody does his worst. One connection is given 8 MiB, and the allocator keeps what it had."""


@pytest.fixture(scope="module")
def hsm() -> Iterator[Token]:
    with serving() as served:
        yield served


class Bystander:
    """A client that goes on signing with the session that it had before."""

    def __init__(self, hsm: Token) -> None:
        self.client = P11(hsm.socket)
        self.session = self.client.session(writable=True, pin=hsm.pin())
        self.public, self.key = self.client.pair(self.session, P_256_PARAMS)

    def undisturbed(self) -> None:
        self.client.call("SignInit", self.session, ECDSA, self.key)
        (signature,) = self.client.call("Sign", self.session, DIGEST, ROOM)
        self.client.call("VerifyInit", self.session, ECDSA, self.public)
        self.client.call("Verify", self.session, DIGEST, signature)

    def close(self) -> None:
        self.client.close()


@pytest.fixture(scope="module")
def other(hsm: Token) -> Iterator[Bystander]:
    with closing(Bystander(hsm)) as bystander:
        yield bystander


@pytest.fixture
def client(hsm: Token, other: Bystander) -> Iterator[P11]:
    """A connection of the test's; whatever it does, the other one is undisturbed."""
    connection = P11(hsm.socket)
    yield connection
    connection.close()
    other.undisturbed()


# --- states and limits


def _officer(client: P11, hsm: Token) -> int:
    return client.session(writable=True, pin=hsm.pin())


def _no_login(client: P11, hsm: Token) -> int:
    session = client.session(writable=True)
    return client.ckr("GenerateKeyPair", session, (cka.CKM_EC_KEY_PAIR_GEN, None), {cka.CKA_EC_PARAMS: P_256_PARAMS}, {cka.CKA_TOKEN: True})


def _so_makes_keys(client: P11, hsm: Token) -> int:
    session = client.session(writable=True, pin=hsm.pin("so-pin"), user=cka.CKU_SO)
    return client.ckr("GenerateKey", session, (cka.CKM_AES_KEY_GEN, None), {cka.CKA_VALUE_LEN: 16})


def _closed_session(client: P11, hsm: Token) -> int:
    session = _officer(client, hsm)
    client.call("CloseSession", session)
    return client.ckr("Sign", session, DIGEST, ROOM)


def _signed_after_logout(client: P11, hsm: Token) -> int:
    session = _officer(client, hsm)
    client.call("SignInit", session, ECDSA, client.pair(session, P_256_PARAMS)[1])
    client.call("Logout", session)
    return client.ckr("Sign", session, DIGEST, ROOM)


def _undestroyable(client: P11, hsm: Token) -> int:
    session = _officer(client, hsm)
    return client.ckr("DestroyObject", session, client.pair(session, P_256_PARAMS, destroyable=False)[1])


def _not_modifiable(client: P11, hsm: Token) -> int:
    session = _officer(client, hsm)
    return client.ckr("SetAttributeValue", session, client.pair(session, P_256_PARAMS, modifiable=False)[1], {cka.CKA_LABEL: b"x"})


def _another_mechanism_than_allowed(client: P11, hsm: Token) -> int:
    session = _officer(client, hsm)
    return client.ckr(
        "SignInit", session, (cka.CKM_ECDSA_SHA256, None), client.pair(session, P_256_PARAMS, allowed_mechanisms=(0x1041,))[1]
    )


def _sm2_with_sha256(client: P11, hsm: Token) -> int:
    session = _officer(client, hsm)
    return client.ckr("SignInit", session, (cka.CKM_ECDSA_SHA256, None), client.pair(session, SM2_PARAMS)[1])


def _sm2_over_31_octets(client: P11, hsm: Token) -> int:
    session = _officer(client, hsm)
    client.call("SignInit", session, ECDSA, client.pair(session, SM2_PARAMS)[1])
    return client.ckr("Sign", session, DIGEST[:31], ROOM)


def _pss_salt_that_does_not_fit(client: P11, hsm: Token) -> int:
    session = _officer(client, hsm)
    _, key = client.call("GenerateKeyPair", session, (cka.CKM_RSA_PKCS_KEY_PAIR_GEN, None), {cka.CKA_MODULUS_BITS: 2048}, {})
    client.call("SignInit", session, (cka.CKM_RSA_PKCS_PSS, Pss(cka.CKM_SHA256, cka.CKG_MGF1_SHA256, 1 << 63)), key)
    return client.ckr("Sign", session, DIGEST, ROOM)


def _value_over_the_limit(client: P11, hsm: Token) -> int:
    return client.ckr("CreateObject", _officer(client, hsm), {cka.CKA_CLASS: cka.CKO_DATA, cka.CKA_VALUE: bytes(MIB - 100)})


def _so_wrong_pin(client: P11, hsm: Token) -> int:
    said = client.ckr("Login", client.session(writable=True), cka.CKU_SO, b"not-the-pin")
    client.session(writable=True, pin=hsm.pin("so-pin"), user=cka.CKU_SO)  # a right one makes good for it
    return said


@pytest.mark.parametrize(
    ("ckr", "misuse"),
    [
        (0x101, _no_login),
        (0x101, _so_makes_keys),
        (0xA0, _so_wrong_pin),
        (0xB3, _closed_session),
        (0x91, _signed_after_logout),
        (0x1B, _undestroyable),
        (0x1B, _not_modifiable),
        (0x70, _another_mechanism_than_allowed),
        (0x63, _sm2_with_sha256),
        (0x21, _sm2_over_31_octets),
        (0x71, _pss_salt_that_does_not_fit),
        (0x31, _value_over_the_limit),
    ],
)
def test_the_code_for(client: P11, hsm: Token, ckr: int, misuse: Callable[[P11, Token], int]) -> None:
    said = misuse(client, hsm)
    assert said == ckr, f"0x{said:X}"
    assert client.call("GetInfo"), "the connection lives"


# --- much of everything


def test_small_questions_with_large_answers_wait_for_who_takes_them(hsm: Token, client: P11) -> None:
    before, session = hsm.memory(), client.session()
    body = request("GenerateRandom", session, 1 << 16)
    frame = struct.pack(">III", 99, 0, len(body)) + body
    client.socket.settimeout(1)
    client.socket.setblocking(False)
    sent = 0
    while select.select([], [client.socket], [], 0.5)[1] and sent < 64 * MIB:
        sent += client.socket.send(frame * 1000)
    assert sent < 64 * MIB, "it was listened to all the time"
    assert hsm.memory() - before < GROWTH


def test_parts_of_a_message_are_limited(hsm: Token, client: P11) -> None:
    before, session = hsm.memory(), _officer(client, hsm)
    client.call("EncryptInit", session, (cka.CKM_AES_ECB, None), client.secret(session))
    codes = []
    while not codes:
        with suppress(Refused):
            client.call("EncryptUpdate", session, bytes(MIB // 2), ROOM)
            continue
        codes.append(client.ckr("EncryptFinal", session, ROOM))
    assert codes == [0x91], "the operation has ended with its error"
    assert hsm.memory() - before < GROWTH


# --- octets without sense


@pytest.mark.parametrize("options", [MAX_OPTIONS + 1, 0xFFFFFFFF])
def test_options_that_no_client_sends_close_the_connection(client: P11, options: int) -> None:
    client.socket.sendall(struct.pack(">III", 5, options, 0))
    assert _end(client.socket) == b""


def _end(one: socket.socket) -> bytes:
    """All that still comes."""
    one.settimeout(30)
    said = b""
    with suppress(ConnectionResetError):
        while part := one.recv(1 << 16):
            said += part
    return said


FRAMES = st.lists(
    st.one_of(
        st.binary(max_size=80),
        st.builds(lambda body: struct.pack(">III", 7, 0, len(body)) + body, st.binary(max_size=60)),
        st.builds(
            lambda call, rest: struct.pack(">III", 8, 0, len(call.opening + rest)) + call.opening + rest,
            st.sampled_from(list(BY_NAME.values())),
            st.binary(max_size=60),
        ),
    ),
    max_size=6,
)


@settings(max_examples=150, deadline=None)
@given(first=st.integers(0, 255), stream=FRAMES, greeted=st.booleans())
def test_a_stream_without_sense(hsm: Token, other: Bystander, first: int, stream: list[bytes], greeted: bool) -> None:
    """Each answer that comes is one; then the end. The others go on, and the process has not grown."""
    before = hsm.memory()
    hello = request("Initialize", HANDSHAKE, 0, None)
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(str(hsm.socket))
        with suppress(BrokenPipeError, ConnectionResetError):
            one.sendall(bytes((first,)) + (struct.pack(">III", 1, 0, len(hello)) + hello if greeted else b"") + b"".join(stream))
            one.shutdown(socket.SHUT_WR)
        said = _end(one)
    assert said[:1] in (b"\0", b"")
    said = said[1:]
    while len(said) >= 12:
        _, options, length = struct.unpack(">III", said[:12])
        assert options == 0
        body, said = said[12 : 12 + length], said[12 + length :]
        number = int.from_bytes(body[:4])
        assert number == 0 or body.startswith(u32(number) + u32(len("".join(_response(number))))), body
    other.undisturbed()
    assert hsm.memory() - before < GROWTH


def _response(number: int) -> tuple[str, ...]:
    return next(call.response for call in BY_NAME.values() if call.number == number)
