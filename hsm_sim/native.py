"""The native door: a Unix socket for the CA, with pipelined requests and batched signatures.

Who may connect is decided by the kernel's word on the peer (SO_PEERCRED): the HSM's own user, or root. What it may do is decided by the
PIN: before ``login`` a connection has hello, status and login, and frames of at most 4 KiB.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from hsm_sim.signing import Batch, Job, Outcome, Signing, failure
from hsm_sim.signlog import Entry, SignLog
from hsm_sim.token import TRIES, Token
from hsm_sim.vault import Vault
from hsm_sim.wire import MAX_FRAME, Code, Framer, Rejected, Request, frame, printable
from pkix.algorithms import KeyKind
from pkix.errors import Malformed

PROTOCOL = 1
GREETING_FRAME = 4096
MAX_ITEMS = 1024  # in one sign_many
MAX_OPEN = 2048  # signatures and other requests of one connection that are not answered yet; then it is not read until half are
MAX_CONNECTIONS = 512


@dataclass
class Door:
    """What the connections of the native socket share."""

    token: Token
    signing: Signing
    log: SignLog
    clock: Callable[[], datetime]
    connections: set[Connection] = field(default_factory=set)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    stopping: bool = False

    async def listen(self, path: Path) -> asyncio.Server:
        """Serves ``path``, mode 0600. What lies there is of a dead process: the caller holds the home's lock. Raises OSError, Malformed."""
        if len(os.fsencode(path)) > 107:
            raise Malformed(f"{path} is too long for a Unix socket (107 octets): choose a shorter home")
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        old = os.umask(0o177)
        try:
            listener.bind(os.fspath(path))
        finally:
            os.umask(old)
        return await asyncio.get_running_loop().create_unix_server(lambda: Connection(self), sock=listener)

    async def drain(self) -> None:
        """From here on new requests are refused. Returns when all running ones are answered and the connections are closed."""
        self.stopping = True
        while busy := [connection.idle.wait() for connection in self.connections if not connection.idle.is_set()]:
            await asyncio.gather(*busy)
        await asyncio.gather(*self.tasks)
        gone = [connection.close() for connection in self.connections]
        with suppress(TimeoutError):  # a client that takes no answers does not keep us here
            await asyncio.wait_for(asyncio.gather(*gone), 1)


class Connection(asyncio.Protocol):
    """One client. Answers come when they are ready, in any order."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._framer = Framer(GREETING_FRAME)
        self._transport: asyncio.Transport | None = None
        self._epoch = -1
        self._open = 0
        self._blocked = self._unread = False
        self._gone = asyncio.Event()
        self.idle = asyncio.Event()
        self.idle.set()

    def connection_made(self, made: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", made)  # what a stream socket has
        if not _is_ours(transport) or len(self._door.connections) >= MAX_CONNECTIONS or self._door.stopping:
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
        try:
            for message in self._framer.feed(data):
                self._begin(Request.of(message))
        except Malformed:
            if self._transport is not None:
                self._transport.abort()

    def pause_writing(self) -> None:
        self._blocked = True
        self._flow()

    def resume_writing(self) -> None:
        self._blocked = False
        self._flow()

    def _flow(self) -> None:
        """Who does not take its answers, or has too much open, is not read."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if not self._unread and (self._blocked or self._open > MAX_OPEN):
            self._unread = True
            transport.pause_reading()
        elif self._unread and not self._blocked and self._open <= MAX_OPEN // 2:
            self._unread = False
            transport.resume_reading()

    def _begin(self, request: Request) -> None:
        """Starts one request; it will be answered, whatever happens."""
        try:
            if self._door.stopping:
                raise Rejected(Code.STOPPING, "the HSM is stopping")
            match request.op:
                case "hello":
                    self._answer(request, {"protocol": PROTOCOL, "product": "ironroot hsm_sim", **self._status()})
                case "status":
                    self._answer(request, self._status())
                case "login":
                    self._later(request, self._login(request.text("pin")))
                case "keys":
                    self._answer(request, [key.attributes() for key in self._vault().all_keys()])
                case "public_key":
                    self._answer(request, self._vault().get(request.text("key")).attributes())
                case "sign_many":
                    self._sign_many(request)
                case "generate":
                    self._later(request, self._generate(self._vault(), request.text("key"), request.text("kind")))
                case "destroy":
                    self._later(request, self._destroy(self._vault(), request.text("key")))
                case "log_head":
                    self._vault()
                    self._answer(request, {"seq": self._door.log.head.seq, "sha256": self._door.log.head.sha256})
                case "lock":
                    self._vault()
                    self._door.token.lock()
                    self._answer(request, {})
                case _:
                    raise Rejected(Code.BAD_REQUEST, f"there is no operation {request.op[:40]!r}")
        except Rejected as error:
            self._refuse(request, error)

    def _vault(self) -> Vault:
        """The open vault, for a connection that has logged in since the last lock. Raises Rejected."""
        token = self._door.token
        if token.vault is None:
            raise Rejected(Code.LOCKED, "the HSM is locked: log in with its PIN")
        if self._epoch != token.epoch:
            raise Rejected(Code.USER_NOT_LOGGED_IN, "log in with the PIN first")
        return token.vault

    def _status(self) -> dict[str, Any]:
        token = self._door.token
        status = {
            "serial": token.serial,
            "state": token.state,
            "locked_on_request": token.locked_on_request,
            "tries_left": max(0, TRIES - token.tries().wrong),
        }
        if token.vault is not None and self._epoch == token.epoch:
            status |= {"keys": len(token.vault.all_keys()), "damaged": token.vault.damaged, "log_lines": self._door.log.head.seq}
        return status

    async def _login(self, pin: str) -> dict[str, Any]:
        await self._door.token.login(pin)
        self._epoch = self._door.token.epoch
        self._framer.limit = MAX_FRAME
        return {}

    async def _generate(self, vault: Vault, label: str, kind: str) -> dict[str, Any]:
        try:
            known = KeyKind(kind)
        except ValueError as error:
            raise Rejected(Code.MECHANISM_INVALID, f"keys of kind {kind[:40]!r} cannot be made here") from error
        return (await vault.generate(label, known, self._door.clock())).attributes()

    async def _destroy(self, vault: Vault, label: str) -> dict[str, Any]:
        await vault.destroy(label)
        return {}

    def _sign_many(self, request: Request) -> None:
        vault = self._vault()
        items = request.args.get("items")
        if type(items) is not list or not 0 < len(items) <= MAX_ITEMS:
            raise Rejected(Code.BAD_REQUEST, f'"items" has to be a list of 1 to {MAX_ITEMS}')

        def done(outcomes: list[Outcome]) -> None:
            self._answer(request, outcomes, len(items))

        batch = Batch(len(items), done)
        self._opened(len(items))
        jobs = []
        for index, item in enumerate(items):
            try:
                jobs.append(Job(batch, index, *_item(vault, item)))
            except Rejected as error:
                batch.settle(index, failure(error))
        self._door.signing.submit(jobs)

    def _later(self, request: Request, work: Awaitable[Any]) -> None:
        async def run() -> None:
            try:
                result = await work
            except Rejected as error:
                self._refuse(request, error, 1)
            except OSError as error:
                self._refuse(request, Rejected(Code.STORAGE, f"the HSM's storage failed: {os.strerror(error.errno or 0)}"), 1)
            else:
                self._answer(request, result, 1)

        self._opened(1)
        task = asyncio.get_running_loop().create_task(run())
        self._door.tasks.add(task)
        task.add_done_callback(self._door.tasks.discard)

    def _opened(self, count: int) -> None:
        self._open += count
        self.idle.clear()
        self._flow()

    def _answer(self, request: Request, result: object, closes: int = 0) -> None:
        self._send({"id": request.id, "ok": result}, closes)

    def _refuse(self, request: Request, error: Rejected, closes: int = 0) -> None:
        self._send({"id": request.id, **failure(error)}, closes)

    def _send(self, message: dict[str, Any], closes: int) -> None:
        if self._transport is not None:
            self._transport.write(frame(message))
        if closes:
            self._open -= closes
            if not self._open:
                self.idle.set()
            self._flow()


def _item(vault: Vault, item: object) -> tuple[Any, Entry]:
    """One thing to sign: the key and the log entry. Raises Rejected."""
    if type(item) is not dict:
        raise Rejected(Code.BAD_REQUEST, 'an item is a map of "key", "data" and "purpose"')
    label, data = printable(item.get("key"), "key"), item.get("data")
    if type(data) is not bytes or not data:
        raise Rejected(Code.BAD_REQUEST, '"data" has to be octets')
    return vault.get(label), Entry(label, printable(item.get("purpose"), "purpose", 32), data)


def _is_ours(transport: asyncio.Transport) -> bool:
    """Whether the peer process runs as our user or as root (unix(7), SO_PEERCRED: pid, uid, gid)."""
    credentials = transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return struct.unpack("3i", credentials)[1] in (os.geteuid(), 0)
