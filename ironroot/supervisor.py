"""``ironroot serve``: starts the HSM, the web workers and the scheduler, and starts again whichever of them dies.

Order: the HSM first, then what must exist before anybody is served (OCSP signers, CRLs, the TLS certificate), then the rest. SIGTERM and
SIGINT stop it in the other order: workers finish what they are at, the HSM goes last.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import structlog

from ironroot.settings import Settings
from pkix.errors import Conflict, Unavailable

log = structlog.get_logger("supervisor")

_READY = 20.0  # seconds that the HSM may take to listen
_STOP = 8.0  # seconds that a child may take to finish
_BACKOFF_LEAST, _BACKOFF_MOST = 0.1, 5.0
_STEADY = 10.0  # seconds after which a child counts as having started well


class Child:
    """One process that is kept alive until ``stop``."""

    def __init__(self, role: str, name: str, home: Path) -> None:
        self._role, self.name, self._home = role, name, home
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts it; for the HSM returns once it listens. Raises Unavailable where it does not come up."""
        await self._spawn()
        self._task = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL where it does not end in time."""
        self._stopping = True
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), _STOP)
            except TimeoutError:
                log.warning("killed", child=self.name)
                process.kill()
                await process.wait()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _spawn(self) -> None:
        says_ready = self._role == "hsm"
        ours = ("ironroot.child", self._role, "--home", str(self._home), "--parent", str(os.getpid()))
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", *(("hsm_sim", "--home", str(self._home), "--with-parent") if says_ready else ours)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE if says_ready else None,
            start_new_session=True,  # Ctrl-C reaches the supervisor alone, which then stops the children in order
        )
        if says_ready:
            stdout = self._process.stdout
            assert stdout is not None  # noqa: S101 - a pipe was asked for
            try:
                line = await asyncio.wait_for(stdout.readline(), _READY)
            except TimeoutError:
                line = b""
            if line.strip() != b"ready":
                raise Unavailable(f"The {self.name} process did not start; what it said is above.")
        log.info("started", child=self.name, pid=self._process.pid)

    async def _keep(self) -> None:
        backoff = _BACKOFF_LEAST
        loop = asyncio.get_running_loop()
        while True:
            assert self._process is not None  # noqa: S101 - set by _spawn
            began = loop.time()
            code = await self._process.wait()
            if self._stopping:
                return
            log.error("died", child=self.name, code=code)
            backoff = _BACKOFF_LEAST if loop.time() - began > _STEADY else min(backoff * 2, _BACKOFF_MOST)
            await asyncio.sleep(backoff)
            try:
                await self._spawn()
            except (Unavailable, OSError) as error:  # OSError: no process or file to be had just now
                log.error("not_started", child=self.name, error=str(error))


async def serve(settings: Settings, workers: int) -> None:
    """Runs until SIGTERM or SIGINT.

    Raises:
        Conflict: a port is taken, or this installation is served or initialised by another process.
        Unavailable: the HSM does not start.
    """
    with home_lock(settings.home) as ours:
        if not ours:
            raise Conflict(f"Another ironroot serve, or init, runs on {settings.home}. Stop it first.")
        await _serve(settings, workers)


async def _serve(settings: Settings, workers: int) -> None:
    from ca.migrate import upgrade
    from ironroot.setup import prepare
    from ironroot.wire import installation

    for listener in (settings.http, settings.https):
        _check_free(listener.host, listener.port)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    await asyncio.to_thread(upgrade, settings.database_url)
    async with hsm(settings):
        async with installation(settings) as here:
            await prepare(here)
        others = [Child("worker", f"worker-{n + 1}", settings.home) for n in range(workers)]
        others.append(Child("scheduler", "scheduler", settings.home))
        try:
            for child in others:
                await child.start()
            await stopped.wait()
            log.info("stopping")
        finally:
            await asyncio.gather(*(child.stop() for child in others))


@contextmanager
def home_lock(home: Path) -> Iterator[bool]:
    """Held by whoever runs the HSM of an installation: ``serve``, or ``init`` while nobody serves. True if it is ours for the block."""
    with (home / ".lock").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


@asynccontextmanager
async def hsm(settings: Settings) -> AsyncIterator[None]:
    """The simulated HSM, running for as long as the block does, unless the keys are on a PKCS#11 token. The caller holds ``home_lock``."""
    if settings.hsm_uri is not None:
        yield
        return
    child = Child("hsm", "hsm", settings.hsm_home)
    try:
        await child.start()
        yield
    finally:
        await child.stop()


def _check_free(host: str, port: int) -> None:
    """The workers share their ports (SO_REUSEPORT), so the kernel would let a second installation in; we do not."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise Conflict(f"Cannot listen on {host} port {port}: {error.strerror}. Stop what uses it, or change ironroot.toml.") from None
