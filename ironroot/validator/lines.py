"""The Unix socket of validation: one request in JSON on each line, one answer on each line, any number under way at once.

    → {"id": 7, "certificate": "MII…", "purpose": "tls-client"}
    ← {"id": 7, "verdict": {"good": true, "code": "good", …}}
    ← {"id": 8, "problem": {"status": 400, "detail": "…", …}}

Requests are those of ``POST /api/v1/validate``, one at a time, with an ``id`` (a number or a text) that the answer repeats: answers come as
they are ready. Who may open the socket is the file system's business.
"""

from __future__ import annotations

import asyncio
import re
from typing import cast

import structlog
from pydantic import TypeAdapter, ValidationError

from ironroot.validator.api import Problem, Request, dumps, problem_of
from ironroot.validator.judge import Judge
from pkix.errors import IronrootError, TooLarge

MAX_LINE = 256 * 1024
"""Octets of one request."""
MAX_UNDER_WAY = 256
"""Requests of one connection that are being worked on before the next is read."""

log = structlog.get_logger("validator.lines")


class NumberedRequest(Request):
    """A request with the number that its answer repeats."""

    id: int | str | None = None


_REQUEST = TypeAdapter(NumberedRequest)
_ID = re.compile(rb'"id"\s*:\s*(-?\d{1,19}|"[^"\\]{0,100}")')


class Lines(asyncio.Protocol):
    """One connection; in ``connections`` for as long as it lasts."""

    def __init__(self, judge: Judge, connections: set[Lines]) -> None:
        self._judge, self._connections = judge, connections
        self._buffer = bytearray()
        self._tasks: set[asyncio.Task[None]] = set()
        self._transport: asyncio.Transport | None = None
        self._full = False  # the peer does not read its answers
        self._ending = False  # nothing more is read

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are not of that class
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._work()

    def eof_received(self) -> bool:
        """The peer has asked all; what it asked is still answered."""
        self._ending = True
        self._work()
        return True

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._work()

    def connection_lost(self, _error: Exception | None) -> None:
        self._transport = None
        self._connections.discard(self)
        for task in self._tasks:
            task.cancel()

    async def finish(self, seconds: float) -> None:
        """Reads nothing more; returns when all that was asked is answered, or after ``seconds``."""
        self._ending = True
        self._work()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        if self._transport is not None:
            self._transport.close()

    def _work(self) -> None:
        """Begins what is asked, as long as the peer reads and not too much is under way; then reads on, or ends."""
        if self._transport is None:
            return
        loop, start = asyncio.get_running_loop(), 0
        while not self._full and len(self._tasks) < MAX_UNDER_WAY and (end := self._buffer.find(b"\n", start)) >= 0:
            if end > start:
                task = loop.create_task(self._answer(bytes(self._buffer[start:end])))
                self._tasks.add(task)
                task.add_done_callback(self._done)
            start = end + 1
        del self._buffer[:start]
        left = len(self._buffer)
        if left > MAX_LINE and b"\n" not in self._buffer[: MAX_LINE + 1]:
            self._transport.write(b'{"id":null,"problem":' + dumps(_too_long().as_dict()) + b"}\n")
            self._transport.close()
        elif self._ending and not self._tasks and b"\n" not in self._buffer:
            self._transport.close()
        elif not self._ending and left > MAX_LINE:
            self._transport.pause_reading()
        elif not self._ending:
            self._transport.resume_reading()

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._buffer or self._ending:
            self._work()

    async def _answer(self, line: bytes) -> None:
        number, said = await answer(self._judge, line)
        if self._transport is not None:
            self._transport.write(b'{"id":' + number + b"," + said + b"}\n")


async def answer(judge: Judge, line: bytes) -> tuple[bytes, bytes]:
    """The number of a request, and the rest of its answer. Never raises for what is in the line."""
    number = b"null"
    try:
        if len(line) > MAX_LINE:
            raise _too_long()
        try:
            request = _REQUEST.validate_json(line)
        except ValidationError as error:
            number = _number(line)
            raise problem_of(error) from None
        number = dumps(request.id)
        return number, b'"verdict":' + await judge.of(request)
    except Problem as problem:
        return number, b'"problem":' + dumps(problem.as_dict())
    except IronrootError as error:
        return number, b'"problem":' + dumps(Problem(error).as_dict())
    except Exception:
        log.exception("bug")
        return number, b'"problem":' + dumps(Problem(IronrootError("An error of ours; it is in the log.")).as_dict())


def _too_long() -> Problem:
    return Problem(TooLarge(f"A line has more than {MAX_LINE} octets."))


def _number(line: bytes) -> bytes:
    """The id of a request that does not parse as a whole, for the answer; as well as can be."""
    found = _ID.search(line)
    return found[1] if found is not None and found[1].isascii() else b"null"
