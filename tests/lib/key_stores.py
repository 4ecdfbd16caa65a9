"""Key stores as tests use them: SoftHSM2 tokens in a folder of ours, and the simulator through its socket or as a PKCS#11 token.

Each ``Stand`` is one way to hold keys; what a ``Signer`` has to do is the same on all of them (tests/ca/test_ca_signer_conformance.py).
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from programs import missing, need

from ca.pkcs11_uri import Pkcs11Uri, parse
from ca.ports import Signer
from ca.signer_native import NativeSigner
from ca.signer_pkcs11 import Pkcs11Signer
from pkix.algorithms import KeyKind
from pkix.errors import Unavailable

ROOT = Path(__file__).parents[2]
SOFTHSM = "/usr/lib/softhsm/libsofthsm2.so"
P11_KIT_CLIENT = next(map(str, Path("/usr/lib").glob("*/pkcs11/p11-kit-client.so")), "")
PROBE = 0.5
CURVES = (KeyKind.P_256, KeyKind.P_384, KeyKind.ED25519)


class Stand:
    """A key store under test. ``locks``: whether it counts wrong PINs and locks after ten of them."""

    kinds: tuple[KeyKind, ...] = (*CURVES, KeyKind.RSA_2048, KeyKind.SM2)
    locks = True

    def __init__(self, folder: Path) -> None:
        self.folder, self.pin_file = folder, folder / "pin"

    def signer(self, deadline: float = 30.0) -> Signer:
        raise NotImplementedError

    def start(self) -> None:
        """It can be used; also after ``stop``."""

    def stop(self) -> None:
        """It is gone, and keeps its keys."""

    def freeze(self) -> None:
        """What serves it hangs."""

    def thaw(self) -> None:
        """It goes on, if it is still there."""

    async def lock(self) -> None:
        """Somebody else tries wrong PINs until it locks."""
        raise NotImplementedError


class SoftHsm(Stand):
    """SoftHSM2: what serves it are our own worker processes. The fixture points SOFTHSM2_CONF at ``configuration``."""

    kinds = (*CURVES, KeyKind.RSA_2048)
    locks = False
    pin = "1234567"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        need("softhsm2-util")
        self.configuration, self._tokens = folder / "softhsm2.conf", folder / "tokens"
        self._tokens.mkdir()
        self.configuration.write_text(f"directories.tokendir = {self._tokens}\nobjectstore.backend = file\nlog.level = ERROR\n")
        self.pin_file.write_text(self.pin + "\n")
        self.add_token("ironroot")

    def add_token(self, label: str) -> None:
        command = ["softhsm2-util", "--init-token", "--free", "--label", label, "--pin", self.pin, "--so-pin", "7654321"]
        subprocess.run(command, check=True, capture_output=True, env=os.environ | {"SOFTHSM2_CONF": str(self.configuration)})

    def uri(self, label: str = "ironroot") -> Pkcs11Uri:
        return parse(f"pkcs11:token={label}?module-path={SOFTHSM}&pin-source=file:{self.pin_file}")

    def signer(self, deadline: float = 30.0, *, processes: int = 1, label: str = "ironroot") -> Pkcs11Signer:
        return Pkcs11Signer(self.uri(label), self.folder, processes=processes, deadline=deadline, probe=PROBE)

    def start(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._tokens.with_name("away").rename(self._tokens)

    def stop(self) -> None:
        self._tokens.rename(self._tokens.with_name("away"))
        self._tokens.mkdir()
        _signal(workers(), signal.SIGKILL)

    def freeze(self) -> None:
        _signal(workers(), signal.SIGSTOP)

    def thaw(self) -> None:
        _signal(workers(), signal.SIGCONT)


class Simulator(Stand):
    """The simulator's process over a home of its own; used through its native socket."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.home = folder / "hsm"
        self.pin_file = self.home / "pin"
        self._process: subprocess.Popen[str] | None = None
        shutil.copytree(_initialised(), self.home)

    def signer(self, deadline: float = 30.0) -> Signer:
        return NativeSigner(self.home / "native.sock", self.pin_file, deadline=deadline)

    def start(self, *options: str) -> None:
        command = [sys.executable, "-m", "hsm_sim", "--home", str(self.home), *options]
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
            self._process.communicate()
            self._process = None

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    async def lock(self) -> None:
        wrong = self.folder / "wrong"
        for number in range(10):
            wrong.write_text(f"wrong {number}\n")
            somebody = NativeSigner(self.home / "native.sock", wrong, deadline=30)
            with contextlib.suppress(Unavailable):
                await somebody.ready()
            await somebody.close()


class SimulatorToken(Simulator):
    """The simulator as a PKCS#11 token, through p11-kit's client."""

    kinds = (KeyKind.P_256, KeyKind.P_384, KeyKind.RSA_2048, KeyKind.SM2)  # the client lets no EdDSA through (p11-kit 0.24)

    def __init__(self, folder: Path) -> None:
        if not P11_KIT_CLIENT:
            missing("p11-kit-client.so (p11-kit-modules)")
        super().__init__(folder)

    def uri(self) -> Pkcs11Uri:
        address = f"x-server-address=unix:path={self.home}/pkcs11.sock"
        return parse(f"pkcs11:token=ironroot?module-path={P11_KIT_CLIENT}&pin-source=file:{self.pin_file}&{address}")

    def signer(self, deadline: float = 30.0, *, processes: int = 1) -> Pkcs11Signer:
        return Pkcs11Signer(self.uri(), self.folder, processes=processes, deadline=deadline, probe=PROBE)


STANDS = {"softhsm2": SoftHsm, "native": Simulator, "p11-kit": SimulatorToken}


@contextmanager
def standing(name: str) -> Iterator[Stand]:
    """A stand of that name, started; gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="ir", dir="/tmp"))
    before = os.environ.get("SOFTHSM2_CONF")
    if name == "softhsm2":
        os.environ["SOFTHSM2_CONF"] = str(folder / "softhsm2.conf")
    stand: Stand | None = None
    try:
        stand = STANDS[name](folder)
        stand.start()
        yield stand
    finally:
        if isinstance(stand, Simulator):
            stand.stop()
        if name == "softhsm2":
            os.environ.pop("SOFTHSM2_CONF")
        if before is not None:
            os.environ["SOFTHSM2_CONF"] = before
        shutil.rmtree(folder, ignore_errors=True)


@cache
def _initialised() -> Path:
    """A simulator's home that was never served: making one takes a second, copying it none."""
    folder = Path(tempfile.mkdtemp(prefix="ir", dir="/tmp"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "hsm_sim", "init", "--home", str(folder / "hsm")], cwd=ROOT, check=True, capture_output=True)
    return folder / "hsm"


def workers() -> list[int]:
    """Process ids of the PKCS#11 workers that this process started."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and b"ca.pkcs11_worker" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def _signal(processes: list[int], number: int) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)
