"""The native door: a Unix socket for the CA, with pipelined requests and batched signatures.

Who may connect is decided by the kernel's word on the peer (SO_PEERCRED): the HSM's own user, or root. What it may do is decided by the
PIN: before ``login`` a connection has what is open to everybody, and frames of at most 4 KiB. ``native_sign`` is what has to be quick;
every other operation is a line of ``native_ops.OPS``.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import struct
from collections.abc import Awaitable, Coroutine, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from hsm_sim.device import Device
from hsm_sim.errors import Code, Rejected
from hsm_sim.lab.lab import SessionLost
from hsm_sim.native_admin import role_of
from hsm_sim.native_ops import OPS
from hsm_sim.native_sign import failure, sign_many
from hsm_sim.roles import Caller, Role
from hsm_sim.wire import MAX_FRAME, Framer, Request, frame
from pkix.errors import Malformed

GREETING_FRAME = 4096
MAX_OPEN = 2048  # signatures and other requests of one connection that are not answered yet; then it is not read until half are
MAX_GREETING = 64  # the same before the login: a small question may have an answer of 64 KiB
MAX_CONNECTIONS = 512


class Door:
    """What the connections of the native socket share."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.connections: set[Connection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.numbers = itertools.count(1)
        self.stopping = False

    async def listen(self, path: Path) -> asyncio.Server:
        """Serves ``path``, mode 0600. What lies there is of a dead process: the caller holds the home's lock. Raises OSError, Malformed."""
        listener = bind(path)
        return await asyncio.get_running_loop().create_unix_server(lambda: Connection(self), sock=listener)

    def has_room(self) -> bool:
        """Whether one more may connect. When all places are taken, one who has not logged in and waits for nothing loses his."""
        if len(self.connections) < MAX_CONNECTIONS:
            return True
        stranger = next((other for other in self.connections if other.caller.role is Role.PUBLIC and other.idle.is_set()), None)
        if stranger is not None:
            self.connections.discard(stranger)
            stranger.drop()
        return stranger is not None

    async def drain(self) -> None:
        """From here on new requests are refused. Returns when all running ones are answered and the connections are closed."""
        self.stopping = True
        while busy := [connection.idle.wait() for connection in self.connections if not connection.idle.is_set()]:
            await asyncio.gather(*busy)
        await asyncio.gather(*self.tasks)
        gone = [connection.close() for connection in self.connections]
        with suppress(TimeoutError):  # a client that takes no answers does not keep us here
            await asyncio.wait_for(asyncio.gather(*gone), 1)


def bind(path: Path) -> socket.socket:
    """A Unix socket at ``path``, mode 0600, in place of whatever lies there. Raises OSError, Malformed (too long)."""
    if len(os.fsencode(path)) > 107:
        raise Malformed(f"{path} is too long for a Unix socket (107 octets): choose a shorter home")
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    old = os.umask(0o177)
    try:
        listener.bind(os.fspath(path))
    finally:
        os.umask(old)
    return listener


class Connection(asyncio.Protocol):
    """One client. Answers come when they are ready, in any order."""

    def __init__(self, door: Door) -> None:
        self.device = door.device
        self.caller = Caller("native", next(door.numbers), next(iter(door.device.partitions)))
        self._door = door
        self._framer = Framer(GREETING_FRAME)
        self._messages: Iterator[dict[str, Any]] = iter(())
        self._transport: asyncio.Transport | None = None
        self._open = 0
        self._blocked = self._unread = False
        self._gone = asyncio.Event()
        self.idle = asyncio.Event()
        self.idle.set()

    # The socket

    def connection_made(self, made: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", made)  # what a stream socket has
        if not is_ours(transport) or self._door.stopping or not self._door.has_room():
            transport.abort()
            return
        self._transport = transport
        self._door.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._transport = None
        self._door.connections.discard(self)
        self._gone.set()
        self.idle.set()

    def close(self) -> Awaitable[object]:
        """Closes it once the answers are out; the result is when that is."""
        if self._transport is not None:
            self._transport.close()
        return self._gone.wait()

    def data_received(self, data: bytes) -> None:
        self._messages = itertools.chain(self._messages, self._framer.feed(data))
        self._serve()

    def _serve(self) -> None:
        """Takes up what has come, until the client has to catch up."""
        try:
            while not self._unread and (message := next(self._messages, None)) is not None:
                self._begin(Request.of(message))
        except Malformed:
            self.drop()

    def drop(self) -> None:
        """Closes it at once."""
        if self._transport is not None:
            self._transport.abort()

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
        most = MAX_GREETING if self._framer.limit == GREETING_FRAME else MAX_OPEN
        if not self._unread and (self._blocked or self._open > most):
            self._unread = True
            transport.pause_reading()
        elif self._unread and not self._blocked and self._open <= most // 2:
            self._unread = False
            self._serve()
            if not self._unread:
                transport.resume_reading()

    # Requests

    def _begin(self, request: Request) -> None:
        """Starts one request; it will be answered, whatever happens."""
        try:
            if self._door.stopping:
                raise Rejected(Code.STOPPING, "the HSM is stopping")
            if request.op == "sign_many":
                self._sign_many(request)
                return
            work = self._login(request) if request.op == "login" else self._operation(request)
        except Rejected as error:
            self._send(request, failure(error))
        else:
            self._opened(1)
            self._run(request, self._answered(request, work), 1)

    def _operation(self, request: Request) -> Awaitable[object]:
        """One line of the table. Raises Rejected."""
        operation = OPS.get(request.op)
        if operation is None:
            raise Rejected(Code.BAD_REQUEST, f"there is no operation {request.op[:40]!r}")
        if operation.verb is not None:
            self.device.partition(self.caller.partition).check(self.caller, operation.verb)
        return operation.run(self.device, self.caller, request.args)

    def _sign_many(self, request: Request) -> None:
        """The one operation that may be answered without a task of its own."""

        def answer(result: list[Any]) -> None:
            self._send(request, {"ok": result}, len(result))

        def later(work: Coroutine[Any, Any, None], count: int) -> None:
            self._run(request, work, count)

        self._opened(sign_many(self.caller, self.device, request, answer, later))

    async def _answered(self, request: Request, work: Awaitable[object]) -> None:
        self._send(request, {"ok": await work}, 1)

    def _run(self, request: Request, work: Coroutine[Any, Any, None], count: int) -> None:
        """Runs what answers by itself; if it fails, the error is the answer."""

        async def run() -> None:
            try:
                await work
            except Rejected as error:
                self._send(request, failure(error), count)
            except OSError as error:
                self._send(request, failure(Rejected(Code.STORAGE, f"the HSM's storage failed: {os.strerror(error.errno or 0)}")), count)
            except SessionLost:
                self.drop()
                self._closed(count)

        task = asyncio.get_running_loop().create_task(run())
        self._door.tasks.add(task)
        task.add_done_callback(self._door.tasks.discard)

    def _opened(self, count: int) -> None:
        self._open += count
        self.idle.clear()
        self._flow()

    def _closed(self, count: int) -> None:
        self._open -= count
        if not self._open:
            self.idle.set()
        self._flow()

    def _send(self, request: Request, answer: Mapping[str, object], closes: int = 0) -> None:
        if self._transport is not None:
            self._transport.write(frame({"id": request.id, **answer}))
        if closes:
            self._closed(closes)

    def _login(self, request: Request) -> Awaitable[object]:
        """Checks the arguments. Raises Rejected."""
        role, pin = role_of(request), request.text("pin", 255)
        return self._enter(role, pin, self.device.partition(request.text_or("partition", self.caller.partition)).name)

    async def _enter(self, role: Role, pin: str, partition: str) -> dict[str, Any]:
        """Makes this connection's caller one who has logged in. What runs for the one before goes on with his rights. Raises Rejected."""
        caller = Caller("native", self.caller.connection, partition)
        await self.device.partition(partition).login(caller, role, pin)
        self.caller = caller
        self._framer.limit = MAX_FRAME
        return {}


def is_ours(transport: asyncio.Transport) -> bool:
    """Whether the peer process runs as our user or as root (unix(7), SO_PEERCRED: pid, uid, gid)."""
    credentials = transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return struct.unpack("3i", credentials)[1] in (os.geteuid(), 0)
