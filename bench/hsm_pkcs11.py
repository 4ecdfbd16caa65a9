"""Signatures a second through PKCS#11: SoftHSM2 in the program's own process, p11-kit's C server over SoftHSM2, and the simulator's door.

All are asked by the same program, python-pkcs11, one process or several that sign at once, C_SignInit and C_Sign each time; beside them the
library call alone. ``simulator`` keeps its home, and so its audit log, in the temporary folder, where every signature waits for the disk;
``simulator_in_memory`` in /dev/shm, which shows what it is without the disk: neither SoftHSM2 nor the C server writes anything. Every
round measures all of them one after the other; ratios are the medians over the rounds. With ``--cores 1`` all processes share one core.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from bench.plant import finish
from hsm_sim import initialise
from hsm_sim.client import Client
from pkix.algorithms import KeyKind
from pkix.privatekey import generate

SOFTHSM = "/usr/lib/softhsm/libsofthsm2.so"
P11_KIT = next(map(str, Path("/usr/lib").glob("*/pkcs11/p11-kit-client.so")), "")
PIN = "12345678"
KINDS = (KeyKind.P_256, KeyKind.SM2)
PEERS = {KeyKind.P_256: ("softhsm2", "c_server"), KeyKind.SM2: ()}  # SoftHSM2 has no SM2


class Way(NamedTuple):
    """A way to a key: PKCS#11 module ("" for the library call), token label, PIN, environment."""

    module: str
    token: str = ""
    pin: str = ""
    environment: dict[str, str] = {}  # noqa: RUF012 - never changed


def main() -> None:
    """``scripts/bench hsm-pkcs11 [--seconds N] [--rounds N] [--clients N …] [--cores N]``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--cores", type=int, default=0, help="all by default")
    parser.add_argument("--ask", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ask:
        _ask(*options.ask)
        return
    if options.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    figures: dict[str, object] = {"cores": len(os.sched_getaffinity(0))}
    with ExitStack() as stack:
        ways = {"in_process": Way("")}
        ways |= stack.enter_context(_softhsm())
        ways["simulator"] = stack.enter_context(_simulator(None))
        if Path("/dev/shm").is_dir():
            ways["simulator_in_memory"] = stack.enter_context(_simulator(Path("/dev/shm")))
        for kind in KINDS:
            for clients in options.clients:
                figures |= _compare(ways, kind, clients, options.seconds, options.rounds)
    finish("hsm-pkcs11", figures)


def _compare(ways: dict[str, Way], kind: KeyKind, clients: int, seconds: float, rounds: int) -> dict[str, object]:
    asked = [name for name in ways if name in (*PEERS[kind], "in_process") or name.startswith("simulator")]
    speeds: dict[str, list[float]] = {name: [] for name in asked}
    for _ in range(rounds):
        for name in asked:
            speeds[name].append(_speed(ways[name], kind, clients, seconds))
    figures: dict[str, object] = {}
    for name in asked:
        figures[f"{kind}.{clients}_clients.{name}.per_second"] = round(statistics.median(speeds[name]))
        for peer in asked:
            if name.startswith("simulator") and not peer.startswith("simulator"):
                ratios = [ours / theirs for ours, theirs in zip(speeds[name], speeds[peer], strict=True)]
                figures[f"{kind}.{clients}_clients.{name}.ratio_to_{peer}"] = round(statistics.median(ratios), 3)
    for name, value in figures.items():
        print(f"{name:60} {value}", file=sys.stderr)
    return figures


def _speed(way: Way, kind: KeyKind, clients: int, seconds: float) -> float:
    """All clients together: they are made ready one by one, and begin at once."""
    command = [sys.executable, "-m", "bench.hsm_pkcs11", "--ask", way.module, way.token, str(kind), str(seconds)]
    pipe = subprocess.PIPE
    asking: list[subprocess.Popen[str]] = []
    try:
        for _ in range(clients):
            asking.append(subprocess.Popen(command, env=os.environ | way.environment, stdin=pipe, stdout=pipe, text=True))
            _say(asking[-1], way.pin)
            assert _line(asking[-1]) == "ready\n"
        for process in asking:
            _say(process, "")
        return sum(float(_line(process)) for process in asking)
    finally:
        for process in asking:
            process.communicate(timeout=30)


def _say(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def _ask(module: str, token: str, kind: str, seconds: str) -> None:
    """One client: takes the PIN, says "ready", waits for a line, signs for so long, and says how many it got in a second."""
    pin = sys.stdin.readline().strip()
    with ExitStack() as stack:
        sign = stack.enter_context(_program(module, token, pin, kind)) if module else _library(kind)
        digest = secrets.token_bytes(32)
        for _ in range(20):
            sign(digest)
        print("ready", flush=True)
        sys.stdin.readline()
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < float(seconds):
            for _ in range(10):
                sign(digest)
            count += 10
        print(count / (time.perf_counter() - began), flush=True)


def _library(kind: str) -> Callable[[bytes], object]:
    return generate(KeyKind(kind)).sign_input


@contextmanager
def _program(module: str, token: str, pin: str, kind: str) -> Iterator[Callable[[bytes], object]]:
    import pkcs11

    with pkcs11.lib(module).get_token(token_label=token).open(user_pin=pin) as session:
        key: Any = session.get_key(object_class=pkcs11.ObjectClass.PRIVATE_KEY, label=f"bench {kind}")
        yield lambda digest: key.sign(digest, mechanism=pkcs11.Mechanism.ECDSA)


@contextmanager
def _softhsm() -> Iterator[dict[str, Way]]:
    """A token in SoftHSM2, and p11-kit's server over it. What is not installed is left out."""
    if not Path(SOFTHSM).exists() or not shutil.which("softhsm2-util") or not shutil.which("pkcs11-tool"):
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="irp11") as name:
        folder = Path(name)
        (folder / "tokens").mkdir()
        (folder / "conf").write_text(f"directories.tokendir = {folder}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n")
        environment = {"SOFTHSM2_CONF": str(folder / "conf")}
        quiet = {"env": os.environ | environment, "check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run(["softhsm2-util", "--init-token", "--free", "--label", "soft", "--pin", PIN, "--so-pin", PIN], **quiet)
        make = ["--keypairgen", "--key-type", "EC:prime256v1", "--label", f"bench {KeyKind.P_256}", "--id", "01"]
        subprocess.run(["pkcs11-tool", "--module", SOFTHSM, "--login", "--pin", PIN, *make], **quiet)
        ways = {"softhsm2": Way(SOFTHSM, "soft", PIN, environment)}
        if not shutil.which("p11-kit") or not P11_KIT:
            yield ways
            return
        command = ["p11-kit", "server", "-f", "--provider", SOFTHSM, "-n", str(folder / "socket"), "pkcs11:"]
        with subprocess.Popen(
            command, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as server:
            try:
                assert "P11_KIT_SERVER_ADDRESS" in _line(server)
                yield ways | {"c_server": Way(P11_KIT, "soft", PIN, {"P11_KIT_SERVER_ADDRESS": f"unix:path={folder}/socket"})}
            finally:
                server.terminate()


@contextmanager
def _simulator(parent: Path | None) -> Iterator[Way]:
    """The simulator, its home in ``parent`` or the temporary folder, with a key of each kind."""
    with tempfile.TemporaryDirectory(prefix="irp11", dir=parent) as name:
        home = Path(name) / "hsm"
        initialise(home, datetime.now(UTC))
        with subprocess.Popen(
            [sys.executable, "-m", "hsm_sim", "serve", "--home", str(home)], stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                assert _line(process) == "ready\n"
                pin = (home / "pin").read_text().strip()
                with Client(home / "native.sock") as client:
                    client.call("login", pin=pin)
                    for kind in KINDS:
                        client.call("generate", key=f"bench {kind}", kind=str(kind))
                yield Way(P11_KIT, "ironroot", pin, {"P11_KIT_SERVER_ADDRESS": f"unix:path={home}/pkcs11.sock"})
            finally:
                process.terminate()


if __name__ == "__main__":
    main()
