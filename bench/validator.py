"""The validation service beside a platform: `ironroot validator serve`, one process on one core, asked over its Unix socket and over HTTP.

The devices of an installation that runs beside it, in random order, all of them seen before; OCSP answers of the installation are asked for
again every 10 s, as in production. The baseline is the plainest handler of aiohttp, over TLS, on the same machine.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvloop

from bench.issue import FLEETS, _requests
from bench.plant import Load, bare_aiohttp, finish, free_ports, home, load, median, post, run, serving, wait
from ironroot.settings import Settings
from ironroot.wire import installation
from pkix.algorithms import KeyKind

_DEPTH = 64


def main() -> None:
    """``python -m bench validator [--certificates N] [--requests N] [--rounds N]``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--certificates", type=int, default=200)
    parser.add_argument("--requests", type=int, default=20000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    figures: dict[str, object] = {"certificates": options.certificates}
    for kind in FLEETS:
        with home() as (folder, http, https):
            with serving(folder, http, 1):
                load(_requests(folder, kind, options.certificates), https, connections=16, tls=True)
                asked = asyncio.run(_questions(folder, kind, options.certificates))
                with _validator(folder, http) as (beside, port):
                    figures |= _measure(kind, asked, beside / "validator.sock", port, options)
            with bare_aiohttp(folder, 1) as bare_port:
                bare = load([post("/x", b"x" * 900, {})] * options.requests, bare_port, connections=8, tls=True)
                figures["bare_aiohttp.per_second"] = round(bare.per_second)
    finish("validator", figures)


def _measure(kind: KeyKind, asked: list[bytes], socket: Path, port: int, options: argparse.Namespace) -> dict[str, object]:
    chosen = random.Random(1).choices(asked, k=options.requests)
    lines, requests = (
        [one + b"\n" for one in chosen],
        [post("/api/v1/validate", one, {"Content-Type": "application/json"}) for one in chosen],
    )
    uvloop.run(_pipelined(socket, [one + b"\n" for one in asked]))  # now they have been seen
    over_socket = [uvloop.run(_pipelined(socket, lines)) for _ in range(options.rounds)]
    over_http: list[Load] = [load(requests, port, connections=8, tls=False) for _ in range(options.rounds)]
    result: dict[str, object] = {
        f"{kind}.socket.per_second": round(median(over_socket)),
        f"{kind}.http.per_second": round(median([one.per_second for one in over_http])),
        f"{kind}.http.p99_ms": round(median([one.p99 for one in over_http]), 2),
    }
    print(result, file=sys.stderr)
    return result


async def _questions(folder: Path, kind: KeyKind, count: int) -> list[bytes]:
    """For every certificate a request."""
    async with installation(Settings.load(folder)) as here:
        records = await here.store.page(limit=count, fleet=FLEETS[kind])
        ders = [record.der for record in records if record.der is not None]
        return [json.dumps({"certificate": base64.b64encode(der).decode(), "purpose": "tls-client"}).encode() for der in ders]


@contextmanager
def _validator(installed: Path, http: int) -> Iterator[tuple[Path, int]]:
    """A validator that follows the installation's list, on the first core; we go to the second. Its folder and its port."""
    pin = json.loads(run("ironroot.cli.main", "trust", "publish", "--home", str(installed), "-o", "json"))["pin"]
    (port,) = free_ports(1)
    cores = os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory(prefix="irbench") as name:
        folder = Path(name)
        run("ironroot.cli.main", "trust", "follow", f"http://127.0.0.1:{http}/trust/list.p7m", "--pin", pin, "--home", name)
        settings = folder / "validator.toml"
        settings.write_text(settings.read_text().replace('["plant"]', '["loopback"]').replace("127.0.0.1:8480", f"127.0.0.1:{port}"))
        command = [sys.executable, "-m", "ironroot.cli.main", "validator", "serve", "--home", name]
        with (folder / "log").open("wb") as log:
            service = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            wait(f"http://127.0.0.1:{port}/livez", service)
            if len(cores) > 1:
                os.sched_setaffinity(service.pid, {min(cores)})
                os.sched_setaffinity(0, cores - {min(cores)})
            yield folder, port
        finally:
            os.sched_setaffinity(0, cores)
            service.send_signal(signal.SIGTERM)
            service.wait(20)


async def _pipelined(socket: Path, lines: list[bytes]) -> float:
    """Answers a second over one connection with ``_DEPTH`` requests under way. Ends the benchmark where one is not good."""
    reader, writer = await asyncio.open_unix_connection(socket, limit=1 << 20)
    began, sent = time.perf_counter(), 0
    for answered in range(len(lines)):
        if sent - answered <= _DEPTH // 2:
            batch = lines[sent : sent + _DEPTH // 2]
            writer.write(b"".join(batch))
            sent += len(batch)
        if b'"good":true' not in await reader.readline():
            raise SystemExit("a device of ours is not good")
    taken = time.perf_counter() - began
    writer.close()
    return len(lines) / taken


if __name__ == "__main__":
    main()
