"""A whole installation: initialised once, served by real processes, used through its real commands and doors.

``tests/conftest.py`` makes the two fixtures known to all rooms.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ironroot.invite import invite
from ironroot.settings import Settings
from ironroot.wire import installation


@dataclass
class Plant:
    """One installation: its folder, its ports, its commands."""

    home: Path
    http: int
    https: int
    service: subprocess.Popen[bytes] | None = None
    devices: Path = field(init=False)

    def __post_init__(self) -> None:
        self.devices = self.home / "devices"
        self.devices.mkdir(exist_ok=True)

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self.http}"

    @property
    def https_url(self) -> str:
        return f"https://127.0.0.1:{self.https}"

    def run(self, *arguments: str, expect: int = 0, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """``ironroot … --home HOME``; its exit code must be ``expect`` and it never shows a traceback."""
        command = [sys.executable, "-m", "ironroot.cli.main", *arguments, "--home", str(self.home)]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=os.environ | (env or {}), timeout=120
        )
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == expect, (done.returncode, done.stdout, done.stderr)
        return done

    def json(self, *arguments: str, expect: int = 0) -> Any:
        """What a command prints with ``-o json``."""
        return json.loads(self.run(*arguments, "-o", "json", expect=expect).stdout)

    def device(self, *arguments: str, expect: int = 0, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """``ironroot-device …``."""
        command = [sys.executable, "-m", "enroll.device", *arguments]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=os.environ | (env or {}), timeout=120
        )
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == expect, (done.returncode, done.stdout, done.stderr)
        return done

    def invite(self, fleet: str, serial: str, *more: str) -> dict[str, str]:
        """A one-time token and what comes with it."""
        made: dict[str, str] = self.json("device", "invite", "--fleet", fleet, "--serial", serial, *more)
        return made

    def tokens(self, fleet: str, *serials: str, names: tuple[str, ...] = ()) -> dict[str, str]:
        """One-time tokens for many devices, by serial: what ``device invite`` does, without a process for each."""

        async def make() -> dict[str, str]:
            async with installation(Settings.load(self.home)) as here:
                now = here.clock.now()
                made = await asyncio.gather(*(invite(here, fleet, serial, names=names, now=now, actor="tests") for serial in serials))
                return {serial: one.token for serial, one in zip(serials, made, strict=True)}

        return asyncio.run(make())

    def enrolled(self, fleet: str, serial: str, *more: str) -> Path:
        """The state folder of a device that enrolled with a token."""
        invited = self.invite(fleet, serial, *more)
        token = self.devices / f"{serial}.token"
        token.write_text(invited["token"])
        state = self.devices / serial
        self.device(
            *("up", "--url", invited["url"], "--fleet", fleet, "--serial", serial, "--token-file", str(token), "--state", str(state))
        )
        return state

    def start(self, *arguments: str, env: dict[str, str] | None = None) -> None:
        """Serves, ready."""
        command = [sys.executable, "-m", "ironroot.cli.main", "serve", "--home", str(self.home), *arguments]
        with (self.home / "serve.log").open("ab") as log:
            self.service = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=os.environ | (env or {})
            )
        self.wait_ready()

    def wait_ready(self) -> None:
        """Until /readyz says 200."""
        self.until(lambda: self.status("/readyz") == 200, "the service to become ready")

    def until(self, condition: Any, what: str, seconds: float = 30.0) -> None:
        """Polls a condition that must come true."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.service is None or self.service.poll() is None, (self.home / "serve.log").read_text()[-3000:]
            if condition():
                return
            time.sleep(0.05)
        raise AssertionError(f"waited in vain for {what}: {(self.home / 'serve.log').read_text()[-3000:]}")

    def status(self, path: str) -> int | None:
        """HTTP status of a GET on the plain door; None while nobody answers."""
        try:
            with urllib.request.urlopen(self.http_url + path, timeout=5) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return int(error.code)
        except OSError:
            return None

    def get(self, path: str, *, timeout: float = 5) -> bytes:
        """Body of a GET on the plain door."""
        with urllib.request.urlopen(self.http_url + path, timeout=timeout) as answer:
            return bytes(answer.read())

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self.service is not None
        self.service.send_signal(signal.SIGTERM)
        code = self.service.wait(15)
        self.service = None
        return code

    def kill(self) -> None:
        """Whatever still runs."""
        if self.service is not None:
            self.service.kill()
            self.service.wait()
            self.service = None

    def children(self, role: str) -> list[int]:
        """Process ids of our children of one role."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            ours = b"hsm_sim" in words if role == "hsm" else b"ironroot.child" in words and role.encode() in words
            if ours and any(word.startswith(bytes(self.home)) for word in words):
                found.append(int(entry.name))
        return found


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


def new_plant() -> Plant:
    """An initialised installation in a short temporary path (Unix sockets have short names)."""
    home = Path(tempfile.mkdtemp(prefix="ir", dir="/tmp"))
    plant = Plant(home, *free_ports(2))
    plant.run("init", "--http-port", str(plant.http), "--https-port", str(plant.https))
    return plant


@pytest.fixture(scope="session")
def plant() -> Iterator[Plant]:
    """A served installation, shared: tests use device serials of their own and leave the service as they found it."""
    made = new_plant()
    try:
        made.start("--workers", "2")
        yield made
        assert made.stop() == 0
    finally:
        made.kill()
        shutil.rmtree(made.home, ignore_errors=True)


@pytest.fixture
def own_plant() -> Iterator[Plant]:
    """An initialised installation that a test starts, breaks and stops as it likes."""
    made = new_plant()
    try:
        yield made
    finally:
        made.kill()
        shutil.rmtree(made.home, ignore_errors=True)
