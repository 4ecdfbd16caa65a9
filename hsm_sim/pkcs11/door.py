"""The socket of the PKCS#11 door.

    door = Door(device)
    server = await door.listen(home / "pkcs11.sock")
    …
    await door.drain()

A call that can be answered at once is answered in the order in which it came, without a task of its own. What has to wait, for the disk or
for a slow key, is answered when it is ready: p11-kit's client puts answers to calls by number, so one slow call holds up no other thread
of it, and no other client. Who may connect is decided by the kernel (SO_PEERCRED): the HSM's own user, or root.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from hsm_sim.device import Device
from hsm_sim.errors import Code, Rejected
from hsm_sim.lab.lab import SessionLost
from hsm_sim.native import bind, is_ours
from hsm_sim.pkcs11 import calls_crypto, calls_key, calls_object, calls_token
from hsm_sim.pkcs11.rpc import VERSION, Framer, decode, encode, frame, refusal
from hsm_sim.pkcs11.state import Application
from hsm_sim.pkcs11.table import CALLS, Call
from pkix.errors import Malformed

MAX_CONNECTIONS = 256
OVERHEAD = 1024  # octets of a message besides the data that it carries
TURN = 0.005  # seconds that the calls of one connection may take before others have theirs
MAX_OPEN = 64  # calls of one connection that wait; then it is not read until half are answered

Handler = Callable[..., Any]
_HANDLERS = {**calls_token.HANDLERS, **calls_object.HANDLERS, **calls_crypto.HANDLERS, **calls_key.HANDLERS}
HANDLERS: dict[int, Handler] = {number: _HANDLERS[call.name] for number, call in CALLS.items() if call.name in _HANDLERS}
"""Number of the call to what it does. Those that are missing are answered with CKR_FUNCTION_NOT_SUPPORTED."""
_INITIALIZE = next(number for number, call in CALLS.items() if call.name == "Initialize")


class Door:
    """What the connections of the PKCS#11 socket share."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.connections: set[Connection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.handles = itertools.count(1)
        self.numbers = itertools.count(1)
        self.stopping = False

    async def listen(self, path: Path) -> asyncio.Server:
        """Serves ``path``, mode 0600. What lies there is of a dead process: the caller holds the home's lock. Raises OSError, Malformed."""
        return await asyncio.get_running_loop().create_unix_server(lambda: Connection(self), sock=bind(path))

    async def drain(self) -> None:
        """From here on calls are refused. Returns when all running ones are answered and the connections are closed."""
        self.stopping = True
        if self.tasks:
            await asyncio.wait(self.tasks)
        gone = [connection.close() for connection in self.connections]
        with suppress(TimeoutError):  # a client that takes no answers does not keep us here
            await asyncio.wait_for(asyncio.gather(*gone), 1)


class Connection(asyncio.Protocol):
    """One client."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._application = Application(door.device, next(door.numbers), door.handles)
        self._framer = Framer(door.device.personality.frame + OVERHEAD)
        self._frames: Iterator[tuple[int, bytes | None]] = iter(())
        self._transport: asyncio.Transport | None = None
        self._greeted = self._blocked = self._unread = False
        self._open = 0
        self._gone = asyncio.Event()

    # The socket

    def connection_made(self, made: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", made)  # what a stream socket has
        if not is_ours(transport) or len(self._door.connections) >= MAX_CONNECTIONS or self._door.stopping:
            transport.abort()
            return
        self._transport = transport
        self._door.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._transport = None
        self._door.connections.discard(self)
        self._application.close_all()
        self._gone.set()

    def close(self) -> Awaitable[object]:
        """Closes it once the answers are out; the result is when that is."""
        if self._transport is not None:
            self._transport.close()
        return self._gone.wait()

    def data_received(self, data: bytes) -> None:
        if not self._greeted:
            self._greeted = True
            self._write(bytes((min(data[0], VERSION),)))
            data = data[1:]
        self._frames = itertools.chain(self._frames, self._framer.feed(data))
        self._serve()

    def _serve(self) -> None:
        """Takes up what has come, until the client has to catch up (small questions may have large answers), or it is others' turn."""
        loop = asyncio.get_running_loop()
        until = loop.time() + TURN
        try:
            while not self._unread and (came := next(self._frames, None)) is not None:
                self._begin(*came)
                if loop.time() > until and not self._unread and self._transport is not None and not self._transport.is_closing():
                    self._unread = True
                    self._transport.pause_reading()
                    loop.call_soon(self._flow)
        except Malformed:
            self._drop()

    def _drop(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _write(self, octets: bytes) -> None:
        if self._transport is not None:
            self._transport.write(octets)

    def pause_writing(self) -> None:
        self._blocked = True
        self._flow()

    def resume_writing(self) -> None:
        self._blocked = False
        self._flow()

    def _flow(self) -> None:
        """Who does not take its answers, or has too much open, is not read, and what has come of him waits."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if not self._unread and (self._blocked or self._open > MAX_OPEN):
            self._unread = True
            transport.pause_reading()
        elif self._unread and not self._blocked and self._open <= MAX_OPEN // 2:
            self._unread = False
            self._serve()
            if not self._unread:
                transport.resume_reading()

    # Calls

    def _begin(self, number: int, body: bytes | None) -> None:
        """Answers a call, or starts what will; it will be answered, whatever happens."""
        try:
            if body is None:
                raise Rejected(Code.DEVICE_MEMORY, f"a message has at most {self._door.device.personality.frame} octets")
            call, arguments = decode(body)
            if self._door.stopping:
                raise Rejected(Code.STOPPING, "the HSM is stopping")
            handler = HANDLERS.get(call.number)
            if handler is None:
                raise Rejected(Code.FUNCTION_NOT_SUPPORTED, f"this token does not have C_{call.name}")
            if not self._application.initialised and call.number != _INITIALIZE:
                raise Rejected(Code.CRYPTOKI_NOT_INITIALIZED, "C_Initialize comes first")
            result = handler(self._application, *arguments)
        except Rejected as error:
            self._write(frame(number, refusal(self._application.ckr(error))))
            return
        if isinstance(result, tuple):
            self._write(frame(number, encode(call, result)))
        else:
            self._later(number, call, result)

    def _later(self, number: int, call: Call, work: Coroutine[Any, Any, tuple[Any, ...]]) -> None:
        self._open += 1
        self._flow()
        task = asyncio.get_running_loop().create_task(self._run(number, call, work))
        self._door.tasks.add(task)
        task.add_done_callback(self._door.tasks.discard)

    async def _run(self, number: int, call: Call, work: Coroutine[Any, Any, tuple[Any, ...]]) -> None:
        try:
            body = encode(call, await work)
        except Rejected as error:
            body = refusal(self._application.ckr(error))
        except OSError as error:
            body = refusal(Rejected(Code.STORAGE, os.strerror(error.errno or 0)).code.ckr)
        except SessionLost:
            self._drop()
            return
        finally:
            self._open -= 1
        self._write(frame(number, body))
        self._flow()
