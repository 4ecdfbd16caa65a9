"""A client of the PKCS#11 door that speaks p11-kit's RPC protocol by hand, in the form of old clients or of newer ones.

client = P11(home / "pkcs11.sock")
session = client.session(writable=True, pin="…")
client.call("SignInit", session, (CKM_ECDSA, None), key)
(signature,) = client.call("Sign", session, b"…", 64)      # or raises Refused with the CKR
"""

from __future__ import annotations

import socket
import struct
from pathlib import Path
from typing import Any, Self

import pytest

from hsm_sim import cka
from hsm_sim.mechanisms import TABLE, Ecdh1, Eddsa, Gcm, Oaep, Pss
from hsm_sim.pkcs11.table import CALLS

HANDSHAKE = b"PRIVATE-GNOME-KEYRING-PKCS11-PROTOCOL-V-1"
BY_NAME = {call.name: call for call in CALLS.values()}
NOTHING = b"\xff\xff\xff\xff"
NULL = object()
"""For a mechanism: the NULL pointer, which cancels."""


class Refused(Exception):
    """The answer was a CKR."""

    def __init__(self, ckr: int) -> None:
        super().__init__(f"0x{ckr:X}")
        self.ckr = ckr


def u32(value: int) -> bytes:
    return struct.pack(">I", value)


def u64(value: int) -> bytes:
    return struct.pack(">Q", value)


def text(value: bytes | None) -> bytes:
    return NOTHING if value is None else u32(len(value)) + value


def attribute(name: int, value: Any) -> bytes:
    head = u32(name) + b"\1"
    if isinstance(value, dict):
        return head + u32(24 * len(value)) + template(value)
    if isinstance(value, tuple):
        return head + u32(8 * len(value)) + u32(len(value)) + b"".join(map(u64, value))
    if isinstance(value, bool):
        return head + u32(1) + (bytes((value,)) if name != cka.CKA_DESTROYABLE else text(bytes((value,))))
    return head + (u32(8) + u64(value) if isinstance(value, int) else u32(len(value)) + text(value))


def template(values: dict[int, Any]) -> bytes:
    return u32(len(values)) + b"".join(attribute(name, value) for name, value in values.items())


def parameter(params: Any) -> bytes:
    match params:
        case bytes():
            return text(params)
        case Pss():
            return u64(params.hash) + u64(params.mgf) + u64(params.salt)
        case Oaep():
            return u64(params.hash) + u64(params.mgf) + u64(1 if params.source else 0) + text(params.source or None)
        case Gcm():
            return text(params.iv) + u64(8 * len(params.iv)) + text(params.aad or None) + u64(params.tag_bits)
        case Ecdh1():
            return u64(params.kdf) + text(params.shared or None) + text(params.public)
        case Eddsa():
            return bytes((params.prehash,)) + text(params.context or None)
    raise TypeError(params)


def mechanism(asked: Any, *, new: bool) -> bytes:
    if asked is NULL:
        return NOTHING
    number, params = asked
    if params is not None:
        return u32(number) + (b"\1" if new else b"") + parameter(params)
    takes = number in TABLE and TABLE[number].params is not type(None)
    return u32(number) + ((b"\0" if takes else b"") if new else NOTHING)


def request(name: str, *arguments: Any, new: bool = False) -> bytes:
    """The body of a request."""
    call = BY_NAME[name]
    body = call.opening
    for kind, value in zip(call.request, arguments, strict=True):
        match kind:
            case "u":
                body += u64(value)
            case "y":
                body += bytes((value,))
            case "z" | "s":
                body += text(value)
            case "ay":
                body += b"\0" + u32(value) if isinstance(value, int) else b"\1" + text(value)
            case "fy" | "fu":
                body += u32(value)
            case "aA":
                body += template(value)
            case "fA":
                body += u32(len(value)) + b"".join(u32(attribute) + u32(room) for attribute, room in value)
            case "M":
                body += mechanism(value, new=new)
    return body


class _Reader:
    def __init__(self, body: bytes) -> None:
        self.body = body

    def take(self, count: int) -> bytes:
        assert len(self.body) >= count
        taken, self.body = self.body[:count], self.body[count:]
        return taken

    def u32(self) -> int:
        return int.from_bytes(self.take(4))

    def u64(self) -> int:
        return int.from_bytes(self.take(8))

    def text(self) -> bytes:
        return self.take(self.u32())

    def value(self, kind: str) -> Any:
        match kind:
            case "u":
                return self.u64()
            case "v":
                return tuple(self.take(2))
            case "s":
                return self.text()
            case "ay":
                return self.text() if self.take(1) == b"\1" else self.u32()
            case "au":
                valid, count = self.take(1), self.u32()
                return [self.u64() for _ in range(count)] if valid == b"\1" else count
            case "aA":
                return [self.attribute() for _ in range(self.u32())]
        raise ValueError(kind)

    def attribute(self) -> tuple[int, Any]:
        name = self.u32()
        if self.take(1) == b"\0":
            return name, None
        length = self.u32()
        if name == cka.CKA_ALLOWED_MECHANISMS:
            return name, tuple(self.u64() for _ in range(self.u32()))
        if name in cka.BOOLEANS and name != cka.CKA_DESTROYABLE:
            return name, self.take(1) == b"\1"
        if name in cka.NUMBERS and name != cka.CKA_NAME_HASH_ALGORITHM:
            return name, self.u64()
        value = self.text()
        assert len(value) == length
        return name, value


def answer(name: str, body: bytes) -> tuple[Any, ...]:
    """What an answer's body says. Raises Refused."""
    reader = _Reader(body)
    number, signature = reader.u32(), reader.text()
    if number == 0:
        assert signature == b"u"
        raise Refused(reader.u64())
    call = BY_NAME[name]
    assert (number, signature) == (call.number, "".join(call.response).encode())
    values = tuple(reader.value(kind) for kind in call.response)
    assert not reader.body
    return values


class P11:
    """A connection, initialised. ``new``: in the form of p11-kit 0.25.3 and later."""

    def __init__(self, path: Path, *, new: bool = False, version: int = 0, initialise: bool = True) -> None:
        self.new = new
        self._number = 0x10
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(str(path))  # before the timeout is set: a full queue is waited for, not an error
        self.socket.settimeout(60)
        self.socket.sendall(bytes((version,)))
        self.version = self._read(1)[0]
        if initialise:
            self.call("Initialize", HANDSHAKE, 0, None)

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            if not (chunk := self.socket.recv(count - len(data))):
                raise ConnectionResetError
            data += chunk
        return data

    def send(self, name: str, *arguments: Any) -> int:
        """Sends a request and returns its number."""
        return self.send_raw(request(name, *arguments, new=self.new))

    def send_raw(self, body: bytes) -> int:
        self._number += 1
        self.socket.sendall(struct.pack(">III", self._number, 6, len(body)) + b"client" + body)
        return self._number

    def receive(self) -> tuple[int, bytes]:
        """Number and body of the next answer."""
        number, options, length = struct.unpack(">III", self._read(12))
        assert options == 0
        return number, self._read(length)

    def call(self, name: str, *arguments: Any) -> tuple[Any, ...]:
        """One call. Raises Refused."""
        number = self.send(name, *arguments)
        answered, body = self.receive()
        assert answered == number
        return answer(name, body)

    def ckr(self, name: str, *arguments: Any) -> int:
        """The code with which this call is refused; it must be."""
        with pytest.raises(Refused) as caught:
            self.call(name, *arguments)
        return caught.value.ckr

    def session(self, *, writable: bool = False, pin: str = "", user: int = cka.CKU_USER, slot: int = 0) -> int:
        """A new session; logged in if there is a PIN."""
        (handle,) = self.call("OpenSession", slot, cka.CKF_SERIAL_SESSION | (cka.CKF_RW_SESSION if writable else 0))
        if pin:
            self.call("Login", handle, user, pin.encode())
        return int(handle)

    def find(self, session: int, wanted: dict[int, Any]) -> list[int]:
        """Handles of what there is."""
        self.call("FindObjectsInit", session, wanted)
        (found,) = self.call("FindObjects", session, 1000)
        self.call("FindObjectsFinal", session)
        return list(found)

    def get(self, session: int, obj: int, name: int) -> Any:
        """One attribute."""
        ((_, value),), ckr = self.call("GetAttributeValue", session, obj, [(name, 1 << 16)])
        if ckr:
            raise Refused(ckr)
        return value

    def pair(self, session: int, params: bytes, label: bytes = b"k", *, token: bool = False, **private: Any) -> tuple[int, int]:
        """A key pair on a curve: handles of public and private key."""
        named = {cka.CKA_TOKEN: token, cka.CKA_LABEL: label, cka.CKA_ID: label}
        more = {getattr(cka, f"CKA_{name.upper()}"): value for name, value in private.items()}
        edwards = params in (b"\x06\x03\x2b\x65\x70", b"\x13\x0cedwards25519")
        number = cka.CKM_EC_EDWARDS_KEY_PAIR_GEN if edwards else cka.CKM_EC_KEY_PAIR_GEN
        public, hidden = self.call("GenerateKeyPair", session, (number, None), {**named, cka.CKA_EC_PARAMS: params}, {**named, **more})
        return public, hidden

    def secret(self, session: int, number: int = cka.CKM_AES_KEY_GEN, length: int = 32, **attributes: Any) -> int:
        """A secret session key."""
        more = {getattr(cka, f"CKA_{name.upper()}"): value for name, value in attributes.items()}
        (handle,) = self.call("GenerateKey", session, (number, None), {cka.CKA_VALUE_LEN: length, **more})
        return int(handle)

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
