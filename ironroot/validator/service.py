"""``ironroot validator serve``: the process. It needs no CA, no database and no HSM.

SIGTERM and SIGINT: no new connections, requests in flight finish, then it ends. SIGHUP: settings' files and lists are read again at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import structlog
import uvloop
from aiohttp import web

from ironroot.clock import SystemClock
from ironroot.log import configure
from ironroot.validator.follow import Followed, followed, refresh
from ironroot.validator.http import NginxDoor, application
from ironroot.validator.judge import Judge
from ironroot.validator.kept import KeptFetch
from ironroot.validator.lines import Lines
from ironroot.validator.settings import ValidatorSettings
from ironroot.validator.trust import Trust, allowed_hosts, fetcher, policy, trusted
from pkix.errors import Conflict, IronrootError, NotFound
from validate.status import Revocation

log = structlog.get_logger("validator")

_STOP = 5.0  # seconds that requests in flight may take when we are told to stop
_LOOK = 60.0  # seconds between looks at whether a list is over
_GARBAGE = (50_000, 20, 50)  # requests make few cycles


@dataclass
class Validator:
    """One validator, open: what it trusts, and who judges by it."""

    settings: ValidatorSettings
    lists: list[Followed]
    trust: Trust
    fetch: KeptFetch
    judge: Judge
    clock: SystemClock

    def reload(self) -> None:
        """Reads files and lists again and judges by them from now on. Raises NotFound, Malformed: a file is missing or damaged."""
        held = {(one.folder, one.terms): one for one in self.lists}
        self.lists = [held.get((one.folder, one.terms), one) for one in followed(self.settings.lists)]
        self._use(trusted(self.settings, self.lists, self.clock.now()))

    async def refresh(self) -> None:
        """Asks for newer lists, and judges by what is there then."""
        now = self.clock.now()
        await asyncio.gather(*(refresh(one, now) for one in self.lists))
        for one in self.lists:
            if one.problem:
                log.warning("list_not_refreshed", list=one.name, problem=one.problem)
            if one.held is not None and one.held.list.expires <= now:
                log.error("list_is_over", list=one.name, expired=one.held.list.expires.isoformat())
        self._use(trusted(self.settings, self.lists, now))

    def _use(self, trust: Trust) -> None:
        if trust == self.trust:
            return
        if allowed_hosts(self.settings, trust) != allowed_hosts(self.settings, self.trust):
            self.fetch.ask_through(fetcher(self.settings, trust))
        self.trust = trust
        self.judge.trust(policy(self.settings, trust))
        log.info("trust", anchors=len(trust.anchors), intermediates=len(trust.intermediates), lists=len(self.lists))


@asynccontextmanager
async def validator(settings: ValidatorSettings) -> AsyncIterator[Validator]:
    """Opens a validator, and closes it at the end. Raises NotFound, Malformed: a file is missing or damaged."""
    clock, lists = SystemClock(), followed(settings.lists)
    trust = trusted(settings, lists, clock.now())
    settings.kept_status.mkdir(mode=0o700, exist_ok=True)
    opened: list[Validator] = []
    kept = KeptFetch(
        fetcher(settings, trust),
        settings.kept_status,
        authorities=lambda: opened[0].trust.authorities,
        recheck=settings.status.recheck_seconds,
    )
    kept.forget()
    status = Revocation(kept)
    judge = Judge(policy(settings, trust), status=status, clock=clock, allow_now=settings.test.allow_now)
    opened.append(Validator(settings, lists, trust, kept, judge, clock))
    try:
        yield opened[0]
    finally:
        await status.close()


def run(settings: ValidatorSettings) -> None:
    """The process: until SIGTERM. Raises as ``serve``."""
    configure()
    gc.set_threshold(*_GARBAGE)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(settings))


async def serve(settings: ValidatorSettings) -> None:
    """Serves until SIGTERM or SIGINT.

    Raises:
        NotFound, Malformed: a file of the settings is missing or damaged; nothing at all is trusted.
        Conflict: another validator serves this folder; an address is taken.
    """
    stopped, again = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number, event in ((signal.SIGTERM, stopped), (signal.SIGINT, stopped), (signal.SIGHUP, again)):
        loop.add_signal_handler(number, event.set)
    with _alone(settings.home):
        async with validator(settings) as here:
            await here.refresh()
            if not here.trust.anchors:
                raise NotFound(
                    "Nothing is trusted here. Follow a list (ironroot trust follow), or name anchors in validator.toml. "
                    "A list that is over counts for nothing."
                )
            async with _listening(settings, here.judge):
                log.info("ready", socket=str(settings.socket), http=settings.listen.http, anchors=len(here.trust.anchors))
                following = asyncio.create_task(_follow(here, again))
                ending = asyncio.create_task(stopped.wait())
                await asyncio.wait((ending, following), return_when=asyncio.FIRST_COMPLETED)
                for task in (ending, following):
                    task.cancel()
                if following.done() and not following.cancelled():
                    following.result()


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Two validators of one folder would take each other's socket away."""
    with (home / ".validator.lock").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(f"Another validator serves {home}. Stop it first.") from None
        yield


async def _follow(here: Validator, again: asyncio.Event) -> None:
    """Lists are asked for every ``refresh_minutes``; one that is over stops counting within the minute."""
    every = timedelta(minutes=here.settings.trust.refresh_minutes)
    due = here.clock.now() + every
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LOOK):
                await again.wait()
        try:
            if again.is_set() or here.clock.now() >= due:
                again.clear()
                due = here.clock.now() + every
                here.reload()
                await here.refresh()
            else:
                here.reload()
        except (IronrootError, OSError) as error:
            log.error("not_reloaded", error=str(error))


@asynccontextmanager
async def _listening(settings: ValidatorSettings, judge: Judge) -> AsyncIterator[None]:
    """All doors, open. Raises Conflict."""
    loop = asyncio.get_running_loop()
    connections: set[Lines] = set()
    runner = web.AppRunner(
        application(judge, NginxDoor(judge, settings.nginx.header, settings.nginx.proxies)),
        access_log=None,
        handle_signals=False,
        auto_decompress=False,
        shutdown_timeout=_STOP,
        keepalive_timeout=75,
        max_line_size=16 * 1024,
        max_field_size=64 * 1024,  # a certificate in a header, percent-encoded
    )
    await runner.setup()
    server: asyncio.Server | None = None
    try:
        try:
            with _masked(settings):
                if settings.socket is not None:
                    server = await loop.create_unix_server(lambda: Lines(judge, connections), os.fspath(settings.socket))
                for listener in settings.listen.http:
                    await _site(runner, settings, listener).start()
        except OSError as error:
            raise Conflict(f"Cannot listen: {error.strerror or error}. Stop what uses the address, or change validator.toml.") from None
        yield
    finally:
        if server is not None and settings.socket is not None:
            server.close()
            settings.socket.unlink(missing_ok=True)  # who asks now hears that nobody is there, instead of nothing
        await asyncio.gather(*(connection.finish(_STOP) for connection in list(connections)))
        await runner.cleanup()


def _site(runner: web.AppRunner, settings: ValidatorSettings, listener: str) -> web.BaseSite:
    if listener.startswith("unix:"):
        return web.UnixSite(runner, os.fspath(settings.home / listener.removeprefix("unix:")))
    host, _, port = listener.rpartition(":")
    return web.TCPSite(runner, host.strip("[]"), int(port), backlog=1024)


@contextmanager
def _masked(settings: ValidatorSettings) -> Iterator[None]:
    """Unix sockets are born with the mode that they are to have."""
    before = os.umask(0o777 & ~int(settings.listen.socket_mode, 8))
    try:
        yield
    finally:
        os.umask(before)
