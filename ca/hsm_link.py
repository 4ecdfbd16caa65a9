"""One connection to the HSM's native socket: frames out and in, and what its error codes mean to us (docs/hsm.md).

    _, link = await loop.create_unix_connection(Link, path)
    status = await link.ask("status")                # the answer's "ok"; raises Answered for an error answer

Frames are ``u32 big-endian length | CBOR map``; requests are pipelined and their answers may come in any order.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

import cbor2

from pkix.errors import Conflict, Fatal, IronrootError, NotFound, OutcomeUnknown, TooLarge, Unavailable, Unsupported

MAX_FRAME = 8 << 20
RETRY_AFTER = 5
_LOST = "the HSM was asked and its connection broke before it answered"


class Answered(Exception):
    """An error answer: the HSM's code and sentence."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code, self.text = code, text

    def error(self) -> IronrootError:
        """What it means to the callers of a ``Signer``."""
        match self.code:
            case "key_not_found":
                return NotFound(f"the HSM has no such key: {self.text}")
            case "key_exists":
                return Conflict(f"the HSM refuses: {self.text}")
            case "mechanism_invalid":
                return Unsupported(f"the HSM refuses: {self.text}")
            case "bad_request" | "data_len_range":
                return Fatal(f"the HSM does not understand this service: {self.text}; both have to be of the same version")
            case "locked":
                return Unavailable(
                    "the HSM was locked on purpose; restart `ironroot serve`, which logs in with the PIN file", retry_after=RETRY_AFTER
                )
            case "user_not_logged_in":
                return Unavailable("the HSM ended our login; try again", retry_after=RETRY_AFTER)
            case _:
                return Unavailable(f"the HSM cannot do this now: {self.text}", retry_after=RETRY_AFTER)


class Link(asyncio.Protocol):
    """One connection: frames (``u32 length | CBOR map``) out and in, each answer to the future that waits for it."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._next = 0
        self._retired = False

    @property
    def usable(self) -> bool:
        """Whether a request could be sent."""
        return not self._retired and self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._retired = True
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(OutcomeUnknown(_LOST, retry_after=RETRY_AFTER))
        self._waiting.clear()

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        start = 0
        while len(buffer) - start >= 4:
            end = start + 4 + int.from_bytes(buffer[start : start + 4])
            if end - start > 4 + MAX_FRAME:
                self.abort()
                return
            if len(buffer) < end:
                break
            self._deliver(bytes(buffer[start + 4 : end]))
            start = end
        del buffer[:start]

    def _deliver(self, payload: bytes) -> None:
        try:
            message = cbor2.loads(payload)
            future = self._waiting.pop(message["id"], None)
            result: Any = message["ok"] if "ok" in message else Answered(str(message["error"]), str(message["text"]))
        except (cbor2.CBORDecodeError, KeyError, TypeError):
            self.abort()  # not our HSM's language: nothing that is open can be trusted to be answered
            return
        if future is None or future.done():
            return
        if isinstance(result, Answered):
            future.set_exception(result)
        else:
            future.set_result(result)

    async def ask(self, op: str, **arguments: object) -> Any:
        """The answer's ``ok``. Raises Answered, OutcomeUnknown (connection lost after sending), Unavailable (before)."""
        if not self.usable or self._transport is None:
            raise Unavailable("the HSM's connection is lost; try again", retry_after=RETRY_AFTER)
        body = cbor2.dumps({"id": (number := self._next), "op": op, **arguments})
        if len(body) > MAX_FRAME:
            raise TooLarge(f"{len(body)} octets are more than the HSM takes at once ({MAX_FRAME})")
        self._next += 1
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._transport.write(len(body).to_bytes(4) + body)
        try:
            return await future
        finally:
            self._waiting.pop(number, None)
            if self._retired and not self._waiting:
                self.abort()

    def retire(self) -> None:
        """Takes nothing new and closes when everything that is open has been answered."""
        self._retired = True
        if not self._waiting:
            self.abort()

    def abort(self) -> None:
        """Drops the connection; everything that waits gets OutcomeUnknown."""
        self._retired = True
        if self._transport is not None:
            self._transport.abort()
