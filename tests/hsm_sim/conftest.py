"""The HSM inside the test, the HSM as a process of its own, and a client that keeps every octet that it was sent."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cbor2
import pytest
from hsm_inside import NOW, pin_of

from hsm_sim import initialise
from hsm_sim.roles import Role

ROOT = Path(__file__).parents[2]


class Client:
    """A blocking client. ``call`` returns ``ok`` or raises RuntimeError(code); ``send`` and ``receive`` are its halves."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(60)
        self.socket.connect(str(path))
        self.received = bytearray()
        self._number = 0

    def send(self, op: str, **arguments: object) -> int:
        self._number += 1
        self.send_raw(cbor2.dumps({"id": self._number, "op": op, **arguments}))
        return self._number

    def send_raw(self, payload: bytes) -> None:
        self.socket.sendall(len(payload).to_bytes(4) + payload)

    def receive(self) -> dict[str, Any]:
        return cbor2.loads(self._read(int.from_bytes(self._read(4))))

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            if not (chunk := self.socket.recv(count - len(data))):
                raise ConnectionResetError
            data += chunk
        self.received += data
        return data

    def call(self, op: str, **arguments: object) -> Any:
        number = self.send(op, **arguments)
        answer = self.receive()
        assert answer["id"] == number
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["ok"]

    def code(self, op: str, **arguments: object) -> str:
        """The error code that a call that has to fail is answered with."""
        with pytest.raises(RuntimeError) as caught:
            self.call(op, **arguments)
        return str(caught.value)

    def sign(self, key: str, data: bytes = b"\x07" * 32, purpose: str = "certificate") -> Any:
        return self.call("sign_many", items=[{"key": key, "data": data, "purpose": purpose}])[0]

    def close(self) -> None:
        self.socket.close()


class Hsm:
    """The process over one home."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.process: subprocess.Popen[str] | None = None
        self.clients: list[Client] = []

    def start(self, *options: str, env: dict[str, str] | None = None) -> Hsm:
        command = [sys.executable, "-m", "hsm_sim", "serve", "--home", str(self.home), *options]
        self.process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n", self.process.communicate()
        return self

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        self.process.communicate()
        return self.process.returncode

    def kill(self) -> None:
        self.stop(signal.SIGKILL)

    def restart(self) -> Client:
        self.stop()
        return self.start().login()

    def connect(self) -> Client:
        client = Client(self.home / "native.sock")
        self.clients.append(client)
        return client

    @property
    def pin(self) -> str:
        return pin_of(self.home, Role.OFFICER)

    def login(self, role: Role = Role.OFFICER) -> Client:
        client = self.connect()
        client.call("login", pin=pin_of(self.home, role), role=str(role))
        return client


@pytest.fixture(scope="session")
def made_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home as ``initialise`` makes it; not to be changed."""
    folder = tmp_path_factory.mktemp("made") / "hsm"
    initialise(folder, NOW)
    return folder


@pytest.fixture
def home(made_home: Path) -> Iterator[Path]:
    """A home of one's own with a device and no process; a short path, for its sockets."""
    folder = Path(tempfile.mkdtemp(prefix="ir", dir="/tmp"))
    shutil.copytree(made_home, folder / "hsm")
    yield folder / "hsm"
    shutil.rmtree(folder)


@pytest.fixture
def hsm(home: Path) -> Iterator[Hsm]:
    """The process, started."""
    device = Hsm(home)
    device.start()
    yield device
    for client in device.clients:
        client.close()
    assert device.process is not None
    if device.process.poll() is None:
        device.kill()
    for stream in (device.process.stdout, device.process.stderr):
        if stream is not None:
            stream.close()


@pytest.fixture
def run_hsm() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command to its end."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "hsm_sim", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)

    return run
