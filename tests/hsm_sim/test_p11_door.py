"""The socket of the PKCS#11 door: who is not well behaved harms nobody else; vendors and faults as they look from there."""

from __future__ import annotations

import os
import random
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress

import pytest
from p11_client import BY_NAME, P11, Refused, request, u32, u64
from p11_token import Token, serving

from hsm_sim import cka
from hsm_sim.keys import P_256_PARAMS, P_384_PARAMS, SM2_PARAMS
from hsm_sim.pkcs11.table import CALLS
from pkix import sm2

DIGEST = b"\x07" * 32
ECDSA = (cka.CKM_ECDSA, None)
MEMORY = 64 << 20
"""Octets by which the process may grow in a test; what is sent would be thousands of times as much."""


@pytest.fixture(scope="module")
def shared() -> Iterator[Token]:
    """One process for all tests of this file."""
    with serving() as token:
        yield token


class Neighbour:
    """Another program at the same token: it signs, and its answers are right."""

    def __init__(self, token: Token) -> None:
        self.client = P11(token.socket)
        self.session = self.client.session(pin=token.pin())
        self.public, self.key = self.client.pair(self.session, P_256_PARAMS)

    def works(self) -> None:
        self.client.call("SignInit", self.session, ECDSA, self.key)
        (signature,) = self.client.call("Sign", self.session, DIGEST, 64)
        self.client.call("VerifyInit", self.session, ECDSA, self.public)
        self.client.call("Verify", self.session, DIGEST, signature)


@pytest.fixture
def neighbour(shared: Token) -> Iterator[Neighbour]:
    """Signs before and after; the process does not grow beyond ``MEMORY`` in between."""
    there = Neighbour(shared)
    there.works()
    before = shared.memory()
    yield there
    there.works()
    assert shared.memory() - before < MEMORY
    there.client.close()


def _raw(token: Token) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    made.connect(str(token.socket))  # before the timeout is set: a full queue is waited for, not an error
    made.settimeout(60)
    return made


def test_octets_without_sense(shared: Token, neighbour: Neighbour) -> None:
    source = random.Random(7)
    for _ in range(200):
        with _raw(shared) as made, suppress(BrokenPipeError, ConnectionResetError):
            made.sendall(source.randbytes(source.randrange(1, 4000)))
            if source.randrange(2):
                made.recv(10)
        if source.randrange(50) == 0:
            neighbour.works()


def test_messages_without_sense_are_answered(shared: Token, neighbour: Neighbour) -> None:
    """Well-framed calls with arguments by chance, logged in: each one is answered, and the connection goes on."""
    source = random.Random(8)
    client = P11(shared.socket)
    session = client.session(writable=True, pin=shared.pin())
    _, key = client.pair(session, P_256_PARAMS)
    harmless = [call for call in CALLS.values() if call.name not in ("Finalize", "CloseSession", "Logout", "CloseAllSessions", "SetPIN")]
    for _ in range(1500):
        call = source.choice(harmless)
        rest = source.choice((b"", u64(session), u64(session) + u64(key))) + source.randbytes(source.randrange(80))
        number = client.send_raw(call.opening + rest)
        assert client.receive()[0] == number
    assert client.call("GetSessionInfo", session)[0] == 0
    client.close()


@pytest.mark.parametrize(
    "body",
    [
        BY_NAME["FindObjectsInit"].opening + u64(1) + u32(0x80000000),
        BY_NAME["GenerateRandom"].opening + u64(1) + u32(0x80000000),
        BY_NAME["GetSlotList"].opening + b"\0" + u32(0x80000000),
        BY_NAME["SignUpdate"].opening + u64(1) + b"\1" + u32(0x80000000),
        BY_NAME["CreateObject"].opening + u64(1) + (u32(1) + u32(cka.CKA_WRAP_TEMPLATE) + b"\1" + u32(24)) * 10_000 + u32(0),
    ],
    ids=["attributes", "randomness", "slots", "octets", "nesting"],
)
def test_large_numbers_take_no_memory(shared: Token, neighbour: Neighbour, body: bytes) -> None:
    client = P11(shared.socket)
    for _ in range(100):
        client.send_raw(body)
        client.receive()
    client.close()


def test_a_message_over_the_limit_is_answered_and_forgotten(shared: Token, neighbour: Neighbour) -> None:
    client = P11(shared.socket)
    client.socket.sendall(struct.pack(">III", 99, 0, 200 << 20))
    assert client.receive()[0] == 99
    for _ in range(200):
        client.socket.sendall(bytes(1 << 20))
    assert client.call("GetSlotList", 1, 8) == ([0],)
    client.close()


def test_ten_thousand_sessions(shared: Token, neighbour: Neighbour) -> None:
    clients = [P11(shared.socket) for _ in range(10)]
    for client in clients:
        opened = 0
        with suppress(Refused):
            for _ in range(1100):
                client.session()
                opened += 1
        assert opened == 1024
    for client in clients:
        client.close()


def test_more_connections_than_there_may_be(shared: Token, neighbour: Neighbour) -> None:
    made = [_raw(shared) for _ in range(300)]
    refused = 0
    for connection in made:
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(b"\0")
            refused += connection.recv(1) == b""
            continue
        refused += 1
    assert 300 - 256 <= refused < 300
    neighbour.works()
    for connection in made:
        connection.close()


def test_who_takes_no_answers_is_not_read(shared: Token, neighbour: Neighbour) -> None:
    with _raw(shared) as made:
        made.sendall(b"\0")
        made.setblocking(False)
        ask = request("GetTokenInfo", 0)
        message = struct.pack(">III", 1, 0, len(ask)) + ask
        sent = 0
        with suppress(BlockingIOError):
            while sent < 256 << 20:
                sent += made.send(message * 1000)
        assert sent < 256 << 20


def test_who_goes_away_in_the_middle(shared: Token, neighbour: Neighbour) -> None:
    for _ in range(5):
        client = P11(shared.socket)
        session = client.session(writable=True, pin=shared.pin())
        client.send("GenerateKeyPair", session, (cka.CKM_RSA_PKCS_KEY_PAIR_GEN, None), {cka.CKA_MODULUS_BITS: 2048}, {})
        client.close()


def test_only_the_owner_may_connect(shared: Token) -> None:
    assert shared.socket.stat().st_mode & 0o777 == 0o600
    assert shared.socket.stat().st_uid == os.getuid()


def test_private_numbers_never_come_out(shared: Token) -> None:
    """All attributes of all keys, asked for one by one, and what a call that failed says."""
    client = P11(shared.socket)
    session = client.session(writable=True, pin=shared.pin())
    keys = [client.pair(session, params)[1] for params in (P_256_PARAMS, P_384_PARAMS, SM2_PARAMS)]
    keys.append(client.secret(session, sensitive=False))  # not extractable
    keys.append(client.secret(session, extractable=True))  # sensitive
    for key in keys:
        for name in sorted(cka.SECRETS | set(range(0x400))):
            values, ckr = client.call("GetAttributeValue", session, key, [(name, 1 << 16)])
            assert values[0][1] is None or name not in cka.SECRETS, hex(name)
            assert ckr == 0x11 or name != cka.CKA_VALUE
    client.close()


def test_a_vendor_with_der_signatures() -> None:
    """TASS: X9.62 where PKCS#11 has r and s, a point on the private key, PINs of 8 to 16 characters, messages of 8 KiB."""
    with serving(personality="tass") as token:
        client = P11(token.socket)
        session = client.session(writable=True, pin=token.pin())
        public, key = client.pair(session, SM2_PARAMS)
        point = client.get(session, key, cka.CKA_EC_POINT)[2:]
        e = sm2.digest(point, b"message", sm2.DEFAULT_ID)
        client.call("SignInit", session, ECDSA, key)
        assert client.call("Sign", session, e, 0) == (72,)
        (signature,) = client.call("Sign", session, e, 72)
        assert sm2.verify(point, signature, b"message", id=sm2.DEFAULT_ID)
        client.call("VerifyInit", session, ECDSA, public)
        client.call("Verify", session, e, signature)
        client.call("VerifyInit", session, ECDSA, public)
        assert client.ckr("Verify", session, e, bytes(64)) == 0xC0
        assert client.call("GetTokenInfo", 0)[1] == b"TASS".ljust(32)
        client.call("DigestInit", session, (cka.CKM_SHA256, None))
        assert client.ckr("DigestUpdate", session, bytes(1 << 16)) == 0x31
        client.close()


def test_a_vendor_with_few_sessions_and_mechanisms() -> None:
    with serving(personality="yubihsm") as token:
        client = P11(token.socket)
        opened = [client.session() for _ in range(16)]
        assert client.ckr("OpenSession", 0, cka.CKF_SERIAL_SESSION) == 0xB1
        listed = client.call("GetMechanismList", 0, 100)[0]
        assert cka.CKM_ECDSA in listed
        missing = [number for number in (cka.CKM_AES_KEY_WRAP, cka.CKM_AES_KEY_WRAP_KWP) if number not in listed]
        for number in missing:
            assert client.ckr("GetMechanismInfo", 0, number) == 0x70
        client.call("Login", opened[0], cka.CKU_USER, token.pin().encode())
        client.close()


def test_faults_on_purpose_as_a_program_sees_them() -> None:
    with serving(options=("--lab",)) as token, token.native() as native:
        client = P11(token.socket)
        session = client.session(writable=True, pin=token.pin())
        _, key = client.pair(session, P_256_PARAMS, b"k", token=True)

        def sign() -> bytes:
            client.call("SignInit", session, ECDSA, key)
            return bytes(client.call("Sign", session, DIGEST, 64)[0])

        def stage(**fault: object) -> None:
            lines = [f"{name} = {value!r}" for name, value in {"door": "pkcs11", **fault}.items()]
            native.call("lab", scenario="\n".join(["[[fault]]", *lines]))

        stage(kind="error", op="sign", code="device_memory", count=1)
        client.call("SignInit", session, ECDSA, key)
        assert client.ckr("Sign", session, DIGEST, 64) == 0x31
        assert len(sign()) == 64
        stage(kind="device-removed", op="sign", seconds=3600.0)
        client.call("SignInit", session, ECDSA, key)
        assert client.ckr("Sign", session, DIGEST, 64) == 0x32
        assert client.call("GetSlotList", 1, 8) == (0,) or client.call("GetSlotList", 1, 8) == ([],)
        assert client.call("GetSlotInfo", 0)[2] & cka.CKF_TOKEN_PRESENT == 0
        assert client.ckr("GetTokenInfo", 0) == 0xE0
        native.call("lab", clear=True)
        assert client.ckr("GetSessionInfo", session) == 0xB3
        session = client.session(writable=True, pin=token.pin())
        key = client.find(session, {cka.CKA_LABEL: b"k", cka.CKA_CLASS: cka.CKO_PRIVATE_KEY})[0]
        assert len(sign()) == 64
        stage(kind="session-lost", op="sign")
        client.call("SignInit", session, ECDSA, key)
        with pytest.raises(ConnectionResetError):
            client.call("Sign", session, DIGEST, 64)
        client.close()
