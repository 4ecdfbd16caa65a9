"""A process of ``ca.pkcs11_worker`` as its parent sees it, and the jobs that are sent to it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess  # our own ca.pkcs11_worker
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ca.hsm_link import Link
from ca.pkcs11_uri import Pkcs11Uri

READS = frozenset(
    ("open", "ready", "public_key", "trial", "extractable", "transport", "wrap")
)  # what changes nothing, however often it is done
_END = 2.0  # seconds that a process has to notice that its parent is done with it


@dataclass(eq=False, slots=True)
class Job:
    """Something asked of a token. ``arguments`` as ``ca.pkcs11_worker`` takes them; ``limit``: seconds.

    ``out``: a process has it now. ``doubt``: an earlier try may have been carried out. ``again``: it may be tried once more.
    """

    arguments: dict[str, Any]
    limit: float
    future: asyncio.Future[Any] = None  # type: ignore[assignment]
    out: bool = False
    doubt: bool = False
    again: bool = True

    def __post_init__(self) -> None:
        # A pair that was perhaps made must not be made twice; whoever asked finds out.
        self.again = self.arguments["op"] == "sign" or self.arguments["op"] in READS

    @property
    def in_doubt(self) -> bool:
        """Whether it may have been carried out, and that matters."""
        return (self.out or self.doubt) and self.arguments["op"] not in READS

    @property
    def size(self) -> int:
        """Octets of its data."""
        return len(self.arguments.get("data", b""))


class Process:
    """One process; ``busy`` while it works on a frame."""

    def __init__(self, process: subprocess.Popen[bytes], link: Link) -> None:
        self._process, self._link = process, link
        self.busy = False

    @classmethod
    async def start(cls, uri: Pkcs11Uri, home: Path) -> Process:
        """Starts it; it has not opened the token yet. Raises OSError.

        It is a fresh interpreter, not a fork of this one: PKCS#11 libraries do not survive a fork. What it or the library prints is none of
        our data, and goes to stderr.
        """
        environment = dict(os.environ)
        if uri.server_address is not None:
            kind, equals, path = uri.server_address.partition("=")
            environment["P11_KIT_SERVER_ADDRESS"] = f"{kind}={home / path}" if (kind, equals) == ("unix:path", "=") else uri.server_address
        ours, theirs = socket.socketpair()
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "ca.pkcs11_worker"], stdin=theirs.fileno(), stdout=2, env=environment, start_new_session=True
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        started = cls(process, Link())
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: started._link, sock=ours)
        except BaseException:
            ours.close()
            process.kill()
            process.wait()
            raise
        return started

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def usable(self) -> bool:
        """Whether it takes a frame."""
        return self._link.usable

    async def do(self, jobs: Sequence[Job], limit: float) -> list[Any]:
        """The outcomes of a frame. Raises TimeoutError after ``limit`` seconds, OutcomeUnknown where the process ended."""
        async with asyncio.timeout(limit):
            outcomes: list[Any] = await self._link.ask("do", jobs=[job.arguments for job in jobs])
            return outcomes

    async def end(self, *, kill: bool) -> None:
        """Ends it: at once, or after it had a moment to end by itself. It is gone when this returns."""
        self._link.abort()
        if not kill:
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(self._process.wait, _END)
        self._process.kill()
        await asyncio.to_thread(self._process.wait)


def stamp(file: Path) -> list[int]:
    """What changes when a file does; [] where it cannot be looked at."""
    try:
        stat = file.stat()
    except OSError:
        return []
    return [stat.st_mtime_ns, stat.st_ino, stat.st_size, stat.st_ctime_ns]
