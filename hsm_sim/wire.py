"""The native socket's frames: ``u32 big-endian length | CBOR map``. No I/O here.

    framer = Framer(limit=4096)
    for message in framer.feed(chunk):       # dicts; raises Malformed, after which the connection is not to be trusted
        request = Request.of(message)
    socket.sendall(frame({"id": 1, "ok": {}}))

A request is ``{"id": uint, "op": text, ...}``; its answer ``{"id", "ok": ...}`` or ``{"id", "error": code, "text": sentence}``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from io import BytesIO
from typing import Any

import cbor2

from pkix.errors import Malformed

MAX_FRAME = 8 << 20
MAX_DEPTH = 4  # request map, list of items, item map, and one to spare


class Code(StrEnum):
    """Error codes on the wire; stable."""

    BAD_REQUEST = "bad_request"
    PIN_INCORRECT = "pin_incorrect"
    PIN_LOCKED = "pin_locked"
    LOCKED = "locked"
    USER_NOT_LOGGED_IN = "user_not_logged_in"
    KEY_NOT_FOUND = "key_not_found"
    KEY_EXISTS = "key_exists"
    KEY_DAMAGED = "key_damaged"
    MECHANISM_INVALID = "mechanism_invalid"
    DATA_LEN_RANGE = "data_len_range"
    STORAGE = "storage"
    STOPPING = "stopping"
    GENERAL_ERROR = "general_error"


class Rejected(Exception):
    """A request that is answered with an error: ``code``, and a sentence that names no secret."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.code, self.text = code, text


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

    def text(self, name: str, longest: int = 128) -> str:
        """The argument ``name``, a printable text of 1 to ``longest`` characters. Raises Rejected."""
        return printable(self.args.get(name), name, longest)


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
