"""The native socket's frames: ``u32 big-endian length | CBOR map``. No I/O here.

    framer = Framer(limit=4096)
    for message in framer.feed(chunk):       # dicts; raises Malformed, after which the connection is not to be trusted
        request = Request.of(message)
    socket.sendall(frame({"id": 1, "ok": {}}))

A request is ``{"id": uint, "op": text, ...}``; its answer ``{"id", "ok": ...}`` or ``{"id", "error": code, "text": sentence}``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any, TypeVar

import cbor2

from hsm_sim.errors import Code, Rejected
from pkix.errors import Malformed

T = TypeVar("T")
MAX_FRAME = 8 << 20
MAX_DEPTH = 4  # request map, list of items, item map, and one to spare


@dataclass(frozen=True, slots=True)
class Request:
    """One request: its number on this connection, the operation, and the whole map for the arguments."""

    id: int
    op: str
    args: dict[str, Any]

    @classmethod
    def of(cls, message: dict[str, Any]) -> Request:
        """Raises Malformed when there is no usable ``id`` or ``op``: without them it cannot even be answered."""
        number, op = message.get("id"), message.get("op")
        if type(number) is not int or not 0 <= number < 1 << 63 or type(op) is not str:
            raise Malformed('a request needs "id" (an unsigned number) and "op" (a text)')
        return cls(number, op, message)

    @classmethod
    def over(cls, args: Mapping[str, Any]) -> Request:
        """For a handler, which has the arguments alone."""
        return cls(0, "", dict(args))

    def text(self, name: str, longest: int = 128) -> str:
        """The argument ``name``, a printable text of 1 to ``longest`` characters. Raises Rejected, as all of these."""
        return printable(self.args.get(name), name, longest)

    def text_or(self, name: str, otherwise: str) -> str:
        """The same, or ``otherwise`` when it is left out."""
        return self.text(name) if self.args.get(name) is not None else otherwise

    def octets(self, name: str, shortest: int = 1, longest: int = MAX_FRAME) -> bytes:
        """The argument ``name``, a byte string; empty when it is left out and that is long enough."""
        value = self.args.get(name, b"")
        if type(value) is not bytes or not shortest <= len(value) <= longest:
            raise Rejected(Code.BAD_REQUEST, f'"{name}" has to be {shortest} to {longest} octets')
        return value

    def number(self, name: str, low: int, high: int, otherwise: int | None = None) -> int:
        """The argument ``name``, a number from ``low`` to ``high``; ``otherwise`` when it is left out, if there is one."""
        value = self.args.get(name, otherwise)
        if type(value) is not int or not low <= value <= high:
            raise Rejected(Code.BAD_REQUEST, f'"{name}" has to be a number from {low} to {high}')
        return value

    def many(self, name: str, kind: type[T], most: int = 64) -> list[T]:
        """The argument ``name``, a list of at most ``most`` values of type ``kind``; empty when it is left out."""
        value = self.args.get(name, [])
        if type(value) is not list or len(value) > most or any(type(one) is not kind for one in value):
            raise Rejected(Code.BAD_REQUEST, f'"{name}" has to be a list of at most {most} values of type {kind.__name__}')
        return value

    def mapping(self, name: str) -> dict[str, Any]:
        """The argument ``name``, a map with text keys; empty when it is left out."""
        value = self.args.get(name, {})
        if type(value) is not dict or any(type(key) is not str for key in value):
            raise Rejected(Code.BAD_REQUEST, f'"{name}" has to be a map with text keys')
        return value


def printable(value: object, name: str, longest: int = 128) -> str:
    """``value`` if it is a printable text of 1 to ``longest`` characters. Raises Rejected naming the argument."""
    if type(value) is not str or not 0 < len(value) <= longest or not value.isprintable():
        raise Rejected(Code.BAD_REQUEST, f'"{name}" has to be a printable text of 1 to {longest} characters')
    return value


def _no_tags(*_: object) -> None:
    raise Malformed("CBOR tags have no place in a request")


class _NoTags(dict[int, Callable[..., None]]):
    """Every CBOR tag is refused: some of them build regular expressions, fractions or shared references out of the peer's bytes."""

    def __getitem__(self, tag: int) -> Callable[..., None]:
        return _no_tags


_NO_TAGS = _NoTags()


def decode(payload: bytes) -> dict[str, Any]:
    """One frame's CBOR map. Bounded: no tags, no indefinite lengths, no duplicate keys, ``MAX_DEPTH`` deep. Raises Malformed."""
    stream = BytesIO(payload)
    try:
        message = cbor2.CBORDecoder(
            stream,
            max_depth=MAX_DEPTH,
            allow_indefinite=False,
            allow_duplicate_keys=False,
            strict_hashable_types=True,
            semantic_decoders=_NO_TAGS,
        ).decode()
    except cbor2.CBORDecodeError as error:
        raise Malformed("the frame is not one well-formed CBOR map") from error
    if type(message) is not dict or stream.tell() != len(payload):
        raise Malformed("the frame is not one CBOR map and nothing else")
    return message


def frame(message: dict[str, Any]) -> bytes:
    """The octets of one frame."""
    body: bytes = cbor2.dumps(message)
    return len(body).to_bytes(4) + body


class Framer:
    """Cuts a stream into messages. Holds at most one unfinished frame, so at most ``limit`` octets and one read."""

    def __init__(self, limit: int = MAX_FRAME) -> None:
        self.limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        """The messages that ``data`` completes. Raises Malformed for a frame that is over the limit or does not decode."""
        buffer = self._buffer
        buffer += data
        start = 0
        try:
            while len(buffer) - start >= 4:
                length = int.from_bytes(buffer[start : start + 4])
                if length > self.limit:
                    raise Malformed(f"a frame of {length} octets; at most {self.limit} are taken here")
                end = start + 4 + length
                if len(buffer) < end:
                    break
                payload = bytes(buffer[start + 4 : end])
                start = end
                yield decode(payload)
        finally:
            del buffer[:start]
