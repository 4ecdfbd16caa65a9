"""What the benchmarks share: a real installation in a temporary folder, a lean load client, and the baselines."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import uvloop


@dataclass(frozen=True)
class Load:
    """What one run of the load client saw. Latencies in milliseconds."""

    per_second: float
    p50: float
    p99: float
    requests: int
    refused: int


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


@contextmanager
def home() -> Iterator[tuple[Path, int, int]]:
    """A new installation: its folder, its HTTP and HTTPS ports. Removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="irbench"))
    http, https = free_ports(2)
    try:
        run("ironroot.cli.main", "init", "--home", str(folder), "--http-port", str(http), "--https-port", str(https))
        yield folder, http, https
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def serving(folder: Path, http: int, workers: int) -> Iterator[None]:
    """``ironroot serve`` with so many workers, ready."""
    command = [sys.executable, "-m", "ironroot.cli.main", "serve", "--home", str(folder), "--workers", str(workers)]
    with (folder / "serve.log").open("ab") as log:
        service = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    try:
        wait(f"http://127.0.0.1:{http}/readyz", service)
        yield
    finally:
        service.send_signal(signal.SIGTERM)
        service.wait(20)


def wait(url: str, service: subprocess.Popen[bytes]) -> None:
    """Until ``url`` answers 200."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and service.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise SystemExit("the service did not come up")


def run(module: str, *arguments: str) -> str:
    """One of our programs; its stdout. Ends the benchmark where it fails."""
    done = subprocess.run([sys.executable, "-m", module, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr or done.stdout)
    return done.stdout


class _Connection(asyncio.Protocol):
    """Sends the next request as soon as the answer to the last one is whole; parses no more of HTTP than Content-Length."""

    def __init__(self, pull: Callable[[], bytes | None], done: asyncio.Future[None], times: list[float], codes: dict[int, int]) -> None:
        self._pull, self._done, self._times, self._codes = pull, done, times, codes
        self._buffer = b""
        self._sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def start(self) -> None:
        """Begins, once all connections stand: handshakes are not what is measured."""
        self._next()

    def _next(self) -> None:
        request = self._pull()
        if request is None:
            self._transport.close()
            return
        self._sent = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head = self._buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        at = self._buffer.lower().find(b"content-length:", 0, head)
        length = int(self._buffer[at + 15 : self._buffer.index(b"\r\n", at)]) if at >= 0 else 0
        if len(self._buffer) < head + 4 + length:
            return
        self._times.append(time.perf_counter() - self._sent)
        code = int(self._buffer[9:12])
        self._codes[code] = self._codes.get(code, 0) + 1
        self._buffer = self._buffer[head + 4 + length :]
        self._next()

    def connection_lost(self, _exc: Exception | None) -> None:
        if not self._done.done():
            self._done.set_result(None)


def load(requests: Sequence[bytes], port: int, *, connections: int, tls: bool, rate: float | None = None) -> Load:
    """Sends every request once over so many keep-alive connections; ``rate`` a second at most, if given."""

    async def work() -> Load:
        context = None
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        loop = asyncio.get_running_loop()
        times: list[float] = []
        codes: dict[int, int] = {}
        source = iter(requests)
        pacer = _Pacer(source, rate)
        gates = [loop.create_future() for _ in range(connections)]
        made = [
            await loop.create_connection(
                lambda gate=gate: (
                    _Paced(pacer, gate, times, codes) if rate else _Connection(lambda: next(source, None), gate, times, codes)
                ),
                "127.0.0.1",
                port,
                ssl=context,
            )
            for gate in gates
        ]
        began = time.perf_counter()
        for _, connection in made:
            connection.start()
        if rate:
            await pacer.run(loop)
        await asyncio.gather(*gates)
        elapsed = time.perf_counter() - began
        times.sort()
        bad = sum(count for code, count in codes.items() if code >= 300)
        if not times:
            raise SystemExit("no answer came")
        return Load(len(times) / elapsed, times[len(times) // 2] * 1000, times[int(len(times) * 0.99)] * 1000, len(times), bad)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work())


class _Pacer:
    """Hands requests to idle connections at a steady rate."""

    def __init__(self, source: Iterator[bytes], rate: float | None) -> None:
        self._source, self._rate = source, rate
        self.idle: list[_Paced] = []
        self.over = False

    async def run(self, loop: asyncio.AbstractEventLoop) -> None:
        assert self._rate
        began, sent = loop.time(), 0
        while not self.over:
            due = int((loop.time() - began) * self._rate)
            while sent < due and self.idle and not self.over:
                request = next(self._source, None)
                if request is None:
                    self.over = True
                    break
                self.idle.pop().send(request)
                sent += 1
            await asyncio.sleep(0.001)
        for connection in self.idle:
            connection.close()


class _Paced(_Connection):
    def __init__(self, pacer: _Pacer, done: asyncio.Future[None], times: list[float], codes: dict[int, int]) -> None:
        super().__init__(lambda: None, done, times, codes)
        self._pacer = pacer

    def _next(self) -> None:
        if self._pacer.over:
            self._transport.close()
        else:
            self._pacer.idle.append(self)

    def send(self, request: bytes) -> None:
        self._sent = time.perf_counter()
        self._transport.write(request)

    def close(self) -> None:
        self._transport.close()


def openssl_speed(algorithm: str, seconds: int = 2) -> tuple[float, float]:
    """Signatures and verifications a second of one core, as ``openssl speed`` says."""
    done = subprocess.run(["openssl", "speed", "-seconds", str(seconds), algorithm], capture_output=True, text=True, check=True)
    figures = re.findall(r"([0-9.]+)\s+([0-9.]+)\s*$", done.stdout.strip().splitlines()[-1])
    return float(figures[0][0]), float(figures[0][1])


@contextmanager
def bare_aiohttp(folder: Path, workers: int) -> Iterator[int]:
    """The plainest aiohttp POST handler over TLS with our certificate: the ceiling of this stack. Yields its port."""
    (port,) = free_ports(1)
    code = (
        "import asyncio,ssl,sys,uvloop\nfrom aiohttp import web\n"
        "async def h(r):\n    await r.read()\n    return web.Response(body=b'x'*900)\n"
        "async def main():\n    a=web.Application(); a.add_routes([web.post('/{p:.*}',h),web.get('/{p:.*}',h)])\n"
        "    c=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER); c.load_cert_chain(sys.argv[2])\n"
        "    r=web.AppRunner(a,access_log=None); await r.setup()\n"
        "    await web.TCPSite(r,'127.0.0.1',int(sys.argv[1]),ssl_context=c,reuse_port=True).start()\n"
        "    await asyncio.Event().wait()\n"
        "uvloop.run(main())\n"
    )
    command = [sys.executable, "-c", code, str(port), str(folder / "tls" / "service.pem")]
    processes = [subprocess.Popen(command, stdin=subprocess.DEVNULL) for _ in range(workers)]
    try:
        _wait_listening(port)
        yield port
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(10)


def _wait_listening(port: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                time.sleep(0.5)  # the second process may still be on its way; this is a benchmark, not a test
                return
        time.sleep(0.05)


def post(path: str, body: bytes, headers: dict[str, str]) -> bytes:
    """One HTTP/1.1 request, ready to send."""
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def get(path: str) -> bytes:
    """One HTTP/1.1 GET, ready to send."""
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()


def median(values: Sequence[float]) -> float:
    """The middle one."""
    return statistics.median(values)


def finish(name: str, figures: dict[str, object]) -> None:
    """The last line: everything as JSON, with what the machine was."""
    machine = {"cores": os.cpu_count(), "load": os.getloadavg()[0], "python": sys.version.split()[0]}
    print(json.dumps({"bench": name, **figures, "machine": machine}))


def digest(text: str) -> bytes:
    """SHA-256, as tokens are stored."""
    return hashlib.sha256(text.encode()).digest()
