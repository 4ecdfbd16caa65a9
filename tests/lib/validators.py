"""A validator as a real process, in a folder of its own."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plant import free_ports

from ironroot.clock import SystemClock
from ironroot.validator.follow import Followed, follow, terms
from ironroot.validator.service import validator as validator_of
from ironroot.validator.settings import ValidatorSettings, initialise
from ironroot.validator.sync import Report, sync
from validate.client import Verdict, ask


@dataclass
class RunningValidator:
    """Its folder, its port for HTTP, its process."""

    home: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def socket(self) -> Path:
        return self.home / "validator.sock"

    @property
    def log(self) -> str:
        return (self.home / "log").read_text()

    def run(self, *arguments: str | Path, expect: int = 0, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """``ironroot … --home HOME``."""
        command = [sys.executable, "-m", "ironroot.cli.main", *map(str, arguments), "--home", str(self.home)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=os.environ | (env or {}))
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == expect, (done.returncode, done.stdout, done.stderr)
        return done

    def configure(self, **changes: str) -> None:
        """Sets lines of validator.toml; loopback may be asked and HTTP is on our port."""
        file = initialise(self.home).home / "validator.toml"
        settings = {"networks": '["plant", "loopback"]', "http": f'["127.0.0.1:{self.port}"]'} | changes
        lines = file.read_text().splitlines()
        keys = [line.partition(" =")[0] for line in lines]
        file.write_text("".join(f"{k} = {settings[k]}\n" if k in settings else f"{line}\n" for k, line in zip(keys, lines, strict=True)))

    def follow(self, url: str, pin: str, name: str | None = None, **limits: Any) -> Followed:
        """What ``ironroot trust follow`` does, without a process for it."""
        return asyncio.run(follow(self.home / "lists", name, terms(url=url, pin=pin, **limits), now=SystemClock().now()))

    def sync(self, to: Path) -> Report:
        """What ``ironroot validator sync`` does, without a process for it."""

        async def work() -> Report:
            async with validator_of(ValidatorSettings.load(self.home)) as here:
                return await sync(here.settings, here.trust, to, here.fetch, here.clock.now())

        return asyncio.run(work())

    def start(self) -> None:
        """Serves, ready."""
        with (self.home / "log").open("wb") as log:
            command = [sys.executable, "-m", "ironroot.cli.main", "validator", "serve", "--home", str(self.home)]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.until(lambda: '"ready"' in self.log)

    def until(self, condition: Any, seconds: float = 20.0) -> None:
        """Polls a condition that must come true."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process is None or self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(15)
        self.process = None
        return code

    def ask(self, chain: Sequence[bytes], **asked: Any) -> Verdict:
        """Over the Unix socket."""
        return ask(self.socket, chain, **asked)


@contextmanager
def validator() -> Iterator[RunningValidator]:
    """A folder for one; nothing is in it yet."""
    made = RunningValidator(Path(tempfile.mkdtemp(prefix="ir", dir="/tmp")), free_ports(1)[0])
    try:
        yield made
    finally:
        if made.process is not None:
            made.process.kill()
            made.process.wait()
        shutil.rmtree(made.home, ignore_errors=True)
