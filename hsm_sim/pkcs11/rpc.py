"""p11-kit's RPC protocol without a socket: octets to frames, bodies to arguments, results to octets.

    framer = Framer(limit=1 << 20)
    for number, body in framer.feed(chunk):       # raises Malformed, after which the connection is not to be trusted
        call, arguments = decode(body)            # raises Rejected, which is answered; body None: too long
    transport.write(frame(number, encode(call, results)))

A frame is ``u32 number | u32 length of options | u32 length of body | options | body``, big-endian throughout; the answer repeats the
number, which the client has chosen. The first octet of a connection is the version.

Clients up to p11-kit 0.25.2, and later ones that have agreed on version 0, write a mechanism without parameter as its number and an empty
array (ffffffff), one with a parameter as number and parameter; those between write nothing for none, and one octet before each parameter
that says whether it is there. What is meant follows from what fits the message to its last octet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from struct import Struct
from struct import error as StructError
from typing import Any

from hsm_sim import cka
from hsm_sim.errors import Code, Rejected
from hsm_sim.mechanisms import TABLE, Ecdh1, Eddsa, Gcm, MlDsa, Oaep, Params, Pss
from hsm_sim.objects import Template, Value
from hsm_sim.pkcs11.table import CALLS, ERROR, Call, opening
from pkix.errors import Malformed

VERSION = 0
"""The protocol version spoken. Clients that know others fall back to it."""
HEADER = 12
MAX_OPTIONS = 4096
MAX_ATTRIBUTES = 256  # in one array
MAX_DEPTH = 8  # of arrays of attributes inside attributes
LENGTH_ONLY = -1
"""The room of a caller who asks how much he needs."""
NO_MECHANISM = 0xFFFFFFFF

_HEAD, _U32, _U64, _ATTRIBUTE = Struct(">III"), Struct(">I"), Struct(">Q"), Struct(">IB")
_NOTHING = 0xFFFFFFFF  # length of an array that is NULL

OCTET = cka.BOOLEANS - {cka.CKA_DESTROYABLE}
"""Attributes that go over the wire as one octet; p11-kit takes CKA_DESTROYABLE for octets of unknown meaning."""
ULONG = cka.NUMBERS - {cka.CKA_NAME_HASH_ALGORITHM}

Mechanism = tuple[int, Params]
"""Number (NO_MECHANISM for NULL) and parameter."""


class Framer:
    """Cuts a stream into frames. Holds at most one unfinished frame, so at most ``limit`` octets and one read."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._needed = HEADER  # octets in the buffer before looking at it again makes sense
        self._skip = 0  # octets to come of a frame that is over the limit

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes | None]]:
        """Number and body of each frame that ``data`` completes; None for the body of one over the limit, which is not kept.

        Raises Malformed for options that no client sends.
        """
        if self._skip:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            data = data[skipped:]
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < self._needed:
                return
            data = bytes(self._buffer)
        start, self._needed = 0, HEADER
        try:
            while len(data) - start >= HEADER:
                number, options, length = _HEAD.unpack_from(data, start)
                if options > MAX_OPTIONS:
                    raise Malformed(f"{options} octets of options; at most {MAX_OPTIONS} are taken")
                body = start + HEADER + options
                end = body + length
                if length > self._limit:
                    self._skip, start = max(0, end - len(data)), min(end, len(data))
                    yield number, None
                elif len(data) < end:
                    self._needed = end - start
                    break
                else:
                    start = end
                    yield number, data[body:end]
        finally:
            self._buffer[:] = data[start:]


def decode(body: bytes) -> tuple[Call, list[Any]]:
    """The call and its arguments.

    Raises Rejected: BAD_REQUEST (not what the call takes, or too much of it), FUNCTION_NOT_SUPPORTED, MECHANISM_INVALID,
    ATTRIBUTE_VALUE_INVALID, TEMPLATE_INCONSISTENT.
    """
    call = CALLS.get(int.from_bytes(body[:4]))
    if call is None:
        raise Rejected(Code.FUNCTION_NOT_SUPPORTED, "this token does not have this function")
    if not body.startswith(call.opening):
        raise Rejected(Code.BAD_REQUEST, f"C_{call.name} takes other arguments")
    try:
        return call, _arguments(call, body, flagged=False)
    except (IndexError, StructError, Malformed):
        if "M" not in call.request:
            raise Rejected(Code.BAD_REQUEST, f"the arguments of C_{call.name} are cut off or malformed") from None
    try:
        return call, _arguments(call, body, flagged=True)
    except (IndexError, StructError, Malformed):
        raise Rejected(Code.BAD_REQUEST, f"the arguments of C_{call.name} are cut off or malformed") from None


def _arguments(call: Call, body: bytes, *, flagged: bool) -> list[Any]:
    reader = Reader(body, len(call.opening), flagged=flagged)
    arguments = [READERS[kind](reader) for kind in call.request]
    if reader.position != len(body):
        raise Malformed("more than the call takes")
    return arguments


class Reader:
    """Reads values one after the other. Raises IndexError, struct.error or Malformed where the body ends or makes no sense."""

    __slots__ = ("_body", "_flagged", "position")

    def __init__(self, body: bytes, position: int, *, flagged: bool) -> None:
        self._body, self.position, self._flagged = body, position, flagged

    def octet(self) -> int:
        self.position += 1
        return self._body[self.position - 1]

    def u32(self) -> int:
        (value,) = _U32.unpack_from(self._body, self.position)
        self.position += 4
        return int(value)

    def ulong(self) -> int:
        (value,) = _U64.unpack_from(self._body, self.position)
        self.position += 8
        return int(value)

    def text(self) -> bytes | None:
        """Octets behind their length; None for NULL."""
        length = self.u32()
        if length == _NOTHING:
            return None
        end = self.position + length
        if end > len(self._body):
            raise Malformed("an array runs past the end of the message")
        value = self._body[self.position : end]
        self.position = end
        return value

    def octets(self) -> bytes | None:
        """An array with an octet before it that says whether there is one; None if not: then only its length follows."""
        if self.octet():
            return self.text()
        self.position += 4
        return None

    def room(self) -> int:
        """Room for octets: LENGTH_ONLY, or how many."""
        room = self.u32()
        return 0 if room == _NOTHING else room or LENGTH_ONLY

    def attributes(self, depth: int = 1) -> Template:
        count = self.u32()
        if count > MAX_ATTRIBUTES or depth > MAX_DEPTH:
            raise Malformed("too many attributes, or too deep")
        template: Template = {}
        for _ in range(count):
            name, value = self._attribute(depth)
            if name in template:
                raise Rejected(Code.TEMPLATE_INCONSISTENT, f"attribute 0x{name:X} is there twice")
            template[name] = value
        return template

    def _attribute(self, depth: int) -> tuple[int, Value]:
        name, valid = _ATTRIBUTE.unpack_from(self._body, self.position)
        self.position += 5
        if not valid:
            raise Rejected(Code.ATTRIBUTE_VALUE_INVALID, f"attribute 0x{name:X} has no value")
        length = self.u32()
        if name in cka.TEMPLATES:
            if self.attributes(depth + 1):
                raise Rejected(Code.ATTRIBUTE_TYPE_INVALID, "templates inside of templates are not supported by this token")
            return name, b""
        if name == cka.CKA_ALLOWED_MECHANISMS:
            return name, self._numbers()
        if name in OCTET:
            return name, _one(name, length, 1, self.octet()) != 0
        if name in ULONG and not (name == cka.CKA_PARAMETER_SET and self._ahead() == length):
            return name, _one(name, length, 8, self.ulong())
        value = self.text() or b""
        if length != len(value):
            raise Malformed("an attribute with two lengths")
        if name in cka.NUMBERS:  # of which the client does not know that it is a number: as its own machine has it in memory
            return name, int.from_bytes(value, "little")
        return name, _one(name, length, 1, value[:1] != b"\0") != 0 if name in cka.BOOLEANS else value

    def _ahead(self) -> int:
        return int(_U32.unpack_from(self._body, self.position)[0])

    def _numbers(self) -> tuple[int, ...]:
        count = self.u32()
        if count > MAX_ATTRIBUTES:
            raise Malformed("too many numbers")
        return tuple(self.ulong() for _ in range(count))

    def rooms(self) -> list[tuple[int, int]]:
        """Attributes that are asked for, each with the room that there is for it (LENGTH_ONLY: none, the length will do)."""
        count = self.u32()
        if count > MAX_ATTRIBUTES:
            raise Malformed("too many attributes")
        wanted = []
        for _ in range(count):
            name, room = self.u32(), self.u32()
            if name in cka.TEMPLATES and room:
                raise Malformed("room for attributes inside of attributes")
            wanted.append((name, room or LENGTH_ONLY))
        return wanted

    def mechanism(self) -> Mechanism:
        number = self.u32()
        if number == NO_MECHANISM:
            return number, None
        entry = TABLE.get(number)
        if entry is None:
            raise Rejected(Code.MECHANISM_INVALID, f"mechanism 0x{number:X} is not there")
        if self._body[self.position : self.position + 4] == b"\xff\xff\xff\xff":
            self.position += 4  # no handle and no count begins like this, so it is the old form of "no parameter"
            return number, None
        parse = PARAMETERS.get(entry.params)
        if parse is None or (self._flagged and not self.octet()):
            return number, None
        return number, parse(self)


def _one(name: int, length: int, right: int, value: int) -> int:
    if length != right:
        raise Rejected(Code.ATTRIBUTE_VALUE_INVALID, f"attribute 0x{name:X} has {right} octets, not {length}")
    return value


def _ecdh1(reader: Reader) -> Ecdh1:
    return Ecdh1(reader.ulong(), reader.text() or b"", reader.text() or b"")


def _gcm(reader: Reader) -> Gcm:
    iv, _bits, aad, tag = reader.text(), reader.ulong(), reader.text(), reader.ulong()
    return Gcm(iv or b"", aad or b"", tag)


PARAMETERS: dict[type, Callable[[Reader], Params]] = {
    bytes: lambda reader: reader.text() or b"",
    Pss: lambda reader: Pss(reader.ulong(), reader.ulong(), reader.ulong()),
    Oaep: lambda reader: Oaep(reader.ulong(), reader.ulong(), _source(reader)),
    Gcm: _gcm,
    Ecdh1: _ecdh1,
    Eddsa: lambda reader: Eddsa(reader.octet() != 0, reader.text() or b""),
    MlDsa: lambda reader: MlDsa(reader.ulong(), reader.text() or b""),
}


def _source(reader: Reader) -> bytes:
    reader.ulong()  # CKZ_DATA_SPECIFIED, or 0 where there is no label
    return reader.text() or b""


READERS: dict[str, Callable[[Reader], Any]] = {
    "u": Reader.ulong,
    "y": Reader.octet,
    "z": Reader.text,
    "s": Reader.text,
    "ay": Reader.octets,
    "fy": Reader.room,
    "fu": Reader.u32,
    "aA": Reader.attributes,
    "fA": Reader.rooms,
    "M": Reader.mechanism,
}


def frame(number: int, body: bytes) -> bytes:
    """The octets of one answer."""
    return _HEAD.pack(number, 0, len(body)) + body


_REFUSAL = opening(ERROR, "u")


def refusal(ckr: int) -> bytes:
    """The body of an answer that says "no"."""
    return _REFUSAL + _U64.pack(ckr)


def encode(call: Call, results: Sequence[Any]) -> bytes:
    """The body of an answer. An ``ay`` or ``au`` that is a number says only how long it would be."""
    return call.answer + b"".join([WRITERS[kind](value) for kind, value in zip(call.response, results, strict=True)])


def _text(value: bytes) -> bytes:
    return _U32.pack(len(value)) + value


def _octets(value: bytes | int) -> bytes:
    return b"\0" + _U32.pack(value) if isinstance(value, int) else b"\1" + _text(value)


def _ulongs(value: Sequence[int] | int) -> bytes:
    if isinstance(value, int):
        return b"\0" + _U32.pack(value)
    return b"\1" + _U32.pack(len(value)) + b"".join(map(_U64.pack, value))


def attribute(name: int, value: Value | None) -> bytes:
    """One attribute; None: it is not there, or not shown."""
    if value is None:
        return _ATTRIBUTE.pack(name, 0)
    head = _ATTRIBUTE.pack(name, 1) + _U32.pack(width(value))
    if isinstance(value, tuple):
        return head + _U32.pack(len(value)) + b"".join(map(_U64.pack, value))
    if isinstance(value, bytes):
        return head + _text(value)
    if isinstance(value, bool):
        return head + (bytes((value,)) if name in OCTET else _text(bytes((value,))))
    return head + (_U64.pack(value) if name in ULONG else _text(value.to_bytes(8, "little")))


def width(value: Value) -> int:
    """Octets of a value in the caller's memory."""
    return 1 if isinstance(value, bool) else 8 if isinstance(value, int) else 8 * len(value) if isinstance(value, tuple) else len(value)


def _attributes(values: Sequence[tuple[int, Value | None]]) -> bytes:
    return _U32.pack(len(values)) + b"".join([attribute(name, value) for name, value in values])


WRITERS: dict[str, Callable[[Any], bytes]] = {
    "u": _U64.pack,
    "v": bytes,
    "s": _text,
    "ay": _octets,
    "au": _ulongs,
    "aA": _attributes,
}
