"""The HSM as a process of its own, for the tests of its PKCS#11 door and of programs that use it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hsm_inside import NOW

from hsm_sim import initialise
from hsm_sim.client import Client

ROOT = Path(__file__).parents[2]
MODULE = next(map(str, Path("/usr/lib").glob("*/pkcs11/p11-kit-client.so")), "")
"""p11-kit's client, "" where it is not installed (Debian: p11-kit-modules)."""


class Token:
    """A running HSM over a home of its own."""

    def __init__(self, home: Path, process: subprocess.Popen[str]) -> None:
        self.home, self.process = home, process

    @property
    def socket(self) -> Path:
        return self.home / "pkcs11.sock"

    def pin(self, name: str = "pin") -> str:
        """The PIN in a file of the home: pin, so-pin, pin.PARTITION …"""
        return (self.home / name).read_text().strip()

    def native(self, role: str = "officer") -> Client:
        """Somebody on the other door."""
        client = Client(self.home / "native.sock")
        client.call("login", pin=self.pin("so-pin" if role == "so" else "pin"), role=role)
        return client

    def memory(self) -> int:
        """Resident octets of the process."""
        pages = int((Path("/proc") / str(self.process.pid) / "statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def environment(self) -> dict[str, str]:
        """What makes p11-kit's client find this token, and nothing of the caller's that would get in the way."""
        return {"PATH": os.environ["PATH"], "HOME": str(self.home), "P11_KIT_SERVER_ADDRESS": f"unix:path={self.socket}"}


@contextmanager
def serving(*names: str, personality: str = "ironroot", options: tuple[str, ...] = ()) -> Iterator[Token]:
    """An HSM with these partitions (one called "ironroot" if there are none), served until the block ends; it has to end well."""
    folder = Path(tempfile.mkdtemp(prefix="ir", dir="/tmp"))
    try:
        initialise(folder / "hsm", NOW, names=names or ("ironroot",), personality=personality)
        command = [sys.executable, "-m", "hsm_sim", "serve", "--home", str(folder / "hsm"), *options]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
                yield Token(folder / "hsm", process)
                process.send_signal(signal.SIGTERM)
                said = process.communicate(timeout=30)
                assert (process.returncode, *said) == (0, "", "")
            finally:
                process.kill()
    finally:
        shutil.rmtree(folder)
