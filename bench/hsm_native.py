"""Signatures a second through the simulated HSM's native socket, against the same library call in this process, on the same core.

The HSM's process is pinned to one core and the client to another, so that "one core" is what it says; this process moves to the HSM's core
for the library call. Every round measures both, and the ratios are the medians over the rounds, since other load comes and goes. Purpose
``certificate`` is durable in the audit log before its signature leaves, ``ocsp`` is summed up there.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import uvloop

from ca.model import Signable
from ca.signer_native import NativeSigner
from hsm_sim.client import Client
from hsm_sim.wire import Framer, frame
from pkix.algorithms import KeyKind, PublicKey, load_public_key
from pkix.privatekey import generate

KINDS = (KeyKind.P_256, KeyKind.SM2)
SAMPLE = 97  # every so many batches one signature is verified


class Load(NamedTuple):
    """How the HSM is asked: signatures in a request, requests in flight, what for."""

    batch: int
    flight: int
    purpose: str = "certificate"

    @property
    def name(self) -> str:
        return f"{self.purpose}.batch{self.batch}" + (f".{self.flight}_in_flight" if self.flight > 1 else "")


LOADS = (
    *(Load(1, 1), Load(1, 64), Load(8, 2), Load(8, 8)),
    *(Load(64, 1), Load(64, 2), Load(64, 4), Load(64, 8)),
    *(Load(1, 1, "ocsp"), Load(64, 2, "ocsp")),
)


def measure(home: Path, seconds: float, rounds: int) -> dict[str, object]:
    """Figures and ratios over an HSM home that ``initialise`` made. ``seconds`` for each load in each round."""
    ours, its = _cores()
    command = [sys.executable, "-m", "hsm_sim", "serve", "--home", str(home)]
    pin = [] if its is None else ["taskset", "-c", str(its)]
    process = subprocess.Popen([*pin, *command], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        if ours is not None:
            os.sched_setaffinity(0, {ours})
        with Client(home / "native.sock", timeout=120) as client:
            client.call("login", pin=(home / "pin").read_text().strip())
            figures: dict[str, object] = {"hsm_core": its}
            for kind in KINDS:
                figures |= _kind(client, home, kind, seconds, rounds, its)
            return figures
    finally:
        process.terminate()
        process.wait(10)


def _cores() -> tuple[int | None, int | None]:
    """A core for us and one for the HSM; none to pin to if there is only one."""
    cores = sorted(os.sched_getaffinity(0))
    return (cores[0], cores[-1]) if len(cores) > 1 else (None, None)


def _kind(client: Client, home: Path, kind: KeyKind, seconds: float, rounds: int, core: int | None) -> dict[str, object]:
    label = f"bench {kind}"
    public = load_public_key(client.call("generate", key=label, kind=str(kind))["public_key"])
    own, digest = generate(kind), secrets.token_bytes(32)
    alone: list[float] = []
    speeds: dict[str, list[float]] = {}
    for _ in range(rounds):
        alone.append(_on(core, lambda: _calls(lambda: own.sign_input(digest), seconds)))
        for load in LOADS:
            speeds.setdefault(load.name, []).append(_through(client, label, public, load, seconds))
        speeds.setdefault("signer.batch64", []).append(_signer(home, label, public, seconds))
    figures: dict[str, object] = {f"{kind}.in_process.per_second": round(statistics.median(alone))}
    for name, measured in speeds.items():
        figures[f"{kind}.{name}.per_second"] = round(statistics.median(measured))
        ratios = [speed / one for speed, one in zip(measured, alone, strict=True)]
        figures[f"{kind}.{name}.ratio_to_in_process"] = round(statistics.median(ratios), 3)
    return figures


def _on(core: int | None, work: Callable[[], float]) -> float:
    """Does it on that core."""
    before = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {core})
    try:
        return work()
    finally:
        os.sched_setaffinity(0, before)


def _calls(work: Callable[[], object], seconds: float) -> float:
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        for _ in range(20):
            work()
        count += 20
    return count / (time.perf_counter() - began)


def _through(client: Client, label: str, public: PublicKey, load: Load, seconds: float) -> float:
    """Keeps ``flight`` requests under way; what comes in goes out again at once."""
    wire, framer = client.socket, Framer()
    messages = [secrets.token_bytes(8) for _ in range(load.batch)]
    data = [public.signing_input(message) for message in messages]
    request = frame({"id": 1, "op": "sign_many", "key": label, "purpose": load.purpose, "data": data})
    wire.sendall(request * load.flight)
    sent, answered, count = load.flight, 0, 0
    began = time.perf_counter()
    end = began + seconds
    while answered < sent:
        for answer in framer.feed(wire.recv(1 << 18)):
            if time.perf_counter() < end:
                wire.sendall(request)
                sent += 1
            answered += 1
            count += len(answer["ok"])
            if answered % SAMPLE == 1:
                public.verify(answer["ok"][-1], messages[-1])
    return count / (time.perf_counter() - began)


def _signer(home: Path, label: str, public: PublicKey, seconds: float) -> float:
    """As the CA does it, hashing and verification of the sample included: two turns of 64 at a time."""

    async def turns() -> float:
        signer = NativeSigner(home / "native.sock", home / "pin")
        count, began = 0, time.perf_counter()

        async def turn() -> None:
            nonlocal count
            while time.perf_counter() - began < seconds:
                items = [Signable(label, public, "certificate", b"%d" % number) for number in range(64)]
                signatures = await asyncio.gather(*(signer.sign(item) for item in items))
                public.verify(signatures[0], b"0")
                count += 64

        try:
            await asyncio.gather(turn(), turn())
            return count / (time.perf_counter() - began)
        finally:
            await signer.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(turns())
