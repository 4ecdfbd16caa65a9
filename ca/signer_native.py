"""``Signer`` over the simulated HSM's native socket (docs/hsm.md).

    signer = NativeSigner(home / "hsm" / "native.sock", home / "hsm" / "pin")
    signature = await signer.sign(Signable("ecc-issuing", public_key, "certificate", tbs))

One connection, many requests on it at once; what is asked for in the same turn of the loop, of one key for one purpose, travels in one
``sign_many``. The connection is made when it is needed and again after it was lost, so an HSM that comes back is used again without a
restart.

What the caller may conclude: ``Unavailable`` means that nothing was signed, ``OutcomeUnknown`` that the request had left and no answer
came. A public key that differs from the one this process saw before under the same reference is ``Fatal``.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import structlog

from ca.hsm_link import RETRY_AFTER, Answered, Link
from ca.model import Signable
from ca.ports import Signer
from pkix.algorithms import KeyKind, PublicKey, load_public_key
from pkix.errors import Fatal, IronrootError, OutcomeUnknown, Unavailable

MAX_ITEMS, MAX_DATA = 256, 4 << 20  # of one sign_many: items, and octets of their signing inputs
GENERATE_DEADLINE = 60.0  # seconds; an RSA key takes its time
_NO_ANSWER = "the HSM was asked and did not answer in time"
_HANGS = "the HSM does not answer; it is asked again in a moment"
log = structlog.get_logger("ca.signer")


class _Item(NamedTuple):
    data: bytes
    future: asyncio.Future[bytes]


class NativeSigner(Signer):
    """See the module. Belongs to the event loop in which it is used.

    Args:
        socket: path of the HSM's native socket.
        pin_file: file with the PIN; read at each login, kept nowhere.
        deadline: seconds for each call.
    """

    def __init__(self, socket: Path, pin_file: Path, *, deadline: float = 5.0) -> None:
        self._socket, self._pin_file, self._deadline = socket, pin_file, deadline
        self._link: Link | None = None
        self._opening: asyncio.Task[Link] | None = None
        self._seen: dict[str, PublicKey] = {}
        self._batches: dict[tuple[str, str], list[_Item]] = {}  # what this turn of the loop asks for, by key and purpose
        self._sending: set[asyncio.Task[None]] = set()
        self._refused_pin: tuple[int, ...] | None = None
        self._pause = self._quiet_until = 0.0

    # The port

    async def generate(self, key: str, kind: KeyKind) -> PublicKey:
        made = load_public_key(
            (await self._call("generate", max(self._deadline, GENERATE_DEADLINE), key=key, kind=str(kind)))["public_key"]
        )
        self._seen[key] = made
        return made

    async def public_key(self, key: str) -> PublicKey:
        found = load_public_key((await self._call("public_key", self._deadline, key=key))["public_key"])
        return self._compare(key, found)

    async def sign(self, item: Signable) -> bytes:
        future: asyncio.Future[bytes] | None = None
        try:
            async with asyncio.timeout(self._deadline):
                if item.key not in self._seen:
                    await self.public_key(item.key)
                self._compare(item.key, item.public_key)
                await self._connected()
                future = self._enqueue(item)
                return await future
        except TimeoutError as error:
            if future is None:
                raise Unavailable(_HANGS, retry_after=RETRY_AFTER) from error
            raise OutcomeUnknown(_NO_ANSWER, retry_after=RETRY_AFTER) from error

    async def destroy(self, key: str) -> None:
        await self._call("destroy", self._deadline, key=key)
        self._seen.pop(key, None)

    async def ready(self) -> None:
        if (await self._call("status", self._deadline))["state"] != "operational":
            raise Answered("locked", "").error()

    async def close(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
        if self._link is not None:
            self._link.abort()
        if self._sending:
            await asyncio.wait(self._sending)

    # One batch

    def _enqueue(self, item: Signable) -> asyncio.Future[bytes]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bytes] = loop.create_future()
        if not self._batches:
            loop.call_soon(self._flush)
        batch = self._batches.setdefault((item.key, item.purpose), [])
        batch.append(_Item(item.public_key.signing_input(item.take()), future))
        return future

    def _flush(self) -> None:
        """Sends what this turn of the loop asked for, in frames that the HSM takes."""
        batches, self._batches = self._batches, {}
        for (key, purpose), batch in batches.items():
            for part in _parts(batch):
                task = asyncio.get_running_loop().create_task(self._send(key, purpose, part))
                self._sending.add(task)
                task.add_done_callback(self._sending.discard)

    async def _send(self, key: str, purpose: str, batch: list[_Item]) -> None:
        try:
            data = [item.data for item in batch]
            outcomes: list[Any] = await self._call("sign_many", self._deadline, key=key, purpose=purpose, data=data)
        except IronrootError as error:
            outcomes = [error] * len(batch)
        for item, outcome in zip(batch, outcomes, strict=True):
            if item.future.done():
                continue  # its caller has gone
            if isinstance(outcome, IronrootError):
                item.future.set_exception(type(outcome)(str(outcome), retry_after=outcome.retry_after))
            elif type(outcome) is bytes:
                item.future.set_result(outcome)
            else:
                item.future.set_exception(Answered(outcome["error"], outcome["text"]).error())

    async def _call(self, op: str, deadline: float, **arguments: object) -> Any:
        """One request with its answer, within ``deadline`` seconds."""
        link: Link | None = None
        try:
            async with asyncio.timeout(deadline):
                link = await self._connected()
                return await link.ask(op, **arguments)
        except TimeoutError as error:
            if link is None:
                raise Unavailable(_HANGS, retry_after=RETRY_AFTER) from error
            self._be_quiet()
            link.abort()
            raise OutcomeUnknown(_NO_ANSWER, retry_after=RETRY_AFTER) from error
        except Answered as answer:
            if link is not None and answer.code in ("locked", "user_not_logged_in"):
                link.retire()  # the next call logs in again, on a connection of its own
            raise answer.error() from None

    def _compare(self, key: str, found: PublicKey) -> PublicKey:
        """Raises Fatal unless ``found`` is the key that was seen under this reference before."""
        if self._seen.setdefault(key, found) != found:
            raise Fatal(f"the HSM holds another key under {key!r} than this service knows; find out who changed it before signing goes on")
        return found

    # The connection

    async def _connected(self) -> Link:
        """A connection that is logged in. Raises Unavailable at once while the HSM is known to hang."""
        if self._link is not None and self._link.usable:
            return self._link
        if self._opening is None:
            self._opening = asyncio.get_running_loop().create_task(self._open())
            self._opening.add_done_callback(self._opened)
        return await asyncio.shield(self._opening)

    def _opened(self, opening: asyncio.Task[Link]) -> None:
        self._opening = None
        if not opening.cancelled() and opening.exception() is None:
            self._link = opening.result()

    async def _open(self) -> Link:
        """Connects, logs in, and compares all keys seen so far with what the HSM says now."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._quiet_until:
            raise Unavailable(_HANGS, retry_after=RETRY_AFTER)
        link: Link | None = None
        try:
            async with asyncio.timeout(self._deadline):
                _, link = await loop.create_unix_connection(Link, os.fspath(self._socket))
                await self._log_in(link)
                for key, seen in list(self._seen.items()):
                    await self._recheck(link, key, seen)
        except OutcomeUnknown as error:
            raise Unavailable("the HSM closed the connection before we could log in; try again", retry_after=RETRY_AFTER) from error
        except TimeoutError as error:
            self._be_quiet()
            raise Unavailable(_HANGS, retry_after=RETRY_AFTER) from error
        except OSError as error:
            raise Unavailable(
                "the HSM is not running, or its socket is closed to us; start it and try again", retry_after=RETRY_AFTER
            ) from error
        except Answered as answer:
            raise answer.error() from None
        else:
            self._pause = self._quiet_until = 0.0
            opened, link = link, None
            return opened
        finally:
            if link is not None:
                link.abort()

    async def _log_in(self, link: Link) -> None:
        """One try per content of the PIN file: a wrong PIN is not sent again, since the tenth locks the token."""
        hello = await link.ask("hello")
        if hello.get("locked_on_request"):
            raise Answered("locked", "")
        try:
            stat = self._pin_file.stat()
            pin = self._pin_file.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise Unavailable("the HSM PIN file cannot be read; put the PIN there, readable to this service alone") from error
        version = (stat.st_mtime_ns, stat.st_ino, stat.st_size, stat.st_ctime_ns)
        if version == self._refused_pin:
            raise Unavailable("the HSM PIN is wrong and is not tried again; put the right one into the PIN file")
        try:
            await link.ask("login", pin=pin)
        except Answered as answer:
            if answer.code == "pin_incorrect":
                self._refused_pin = version
                log.warning("hsm.pin_wrong", file=str(self._pin_file), answer=answer.text)
                raise Unavailable("the HSM PIN is wrong; put the right one into the PIN file") from None
            raise
        self._refused_pin = None

    async def _recheck(self, link: Link, key: str, seen: PublicKey) -> None:
        try:
            now = await link.ask("public_key", key=key)
        except Answered as answer:
            if answer.code != "key_not_found":
                raise
            return  # whoever uses it is told
        self._compare(key, seen if now["public_key"] == seen.spki else load_public_key(now["public_key"]))

    def _be_quiet(self) -> None:
        """After a hang nobody waits again for a while: 1, 2, 4, then 5 seconds, in which calls fail at once."""
        self._pause = min(2 * self._pause or 1.0, 5.0)
        self._quiet_until = asyncio.get_running_loop().time() + self._pause


def _parts(batch: list[_Item]) -> Iterator[list[_Item]]:
    """The batch in pieces of at most ``MAX_ITEMS`` and, but for a single longer one, ``MAX_DATA``."""
    start, size = 0, 0
    for end, item in enumerate(batch):
        if end > start and (end - start == MAX_ITEMS or size + len(item.data) > MAX_DATA):
            yield batch[start:end]
            start, size = end, 0
        size += len(item.data)
    yield batch[start:]
