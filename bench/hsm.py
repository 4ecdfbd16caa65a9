"""Signatures a second through the simulated HSM's native socket, at batches of 1, 8 and 64, against the same keys in this process.

Purpose ``certificate`` is logged and synced before its signature is released, ``ocsp`` in summaries.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from bench.plant import finish
from bench.sm2 import per_second
from ca.model import Signable
from ca.signer_native import NativeSigner
from pkix.algorithms import KeyKind
from pkix.privatekey import generate


def main() -> None:
    """``scripts/bench hsm [--seconds N]``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=3.0)
    seconds = parser.parse_args().seconds
    home = Path(tempfile.mkdtemp(prefix="irhsm"))
    figures: dict[str, object] = {}
    try:
        subprocess.run([sys.executable, "-m", "hsm_sim", "init", "--home", str(home)], check=True, stdout=subprocess.DEVNULL)
        process = subprocess.Popen([sys.executable, "-m", "hsm_sim", "--home", str(home)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        try:
            for kind in (KeyKind.P_256, KeyKind.SM2):
                key = generate(kind)
                alone = per_second(lambda key=key: key.sign(b"m" * 300))
                figures[f"{kind}.in_process_per_second"] = round(alone)
                for purpose, batch in itertools.product(("certificate", "ocsp"), (1, 8, 64)):
                    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                        speed = runner.run(_through(home, kind, purpose, batch, seconds))
                    figures[f"{kind}.{purpose}.batch{batch}.per_second"] = round(speed)
                    figures[f"{kind}.{purpose}.batch{batch}.ratio_to_in_process"] = round(speed / alone, 3)
        finally:
            process.terminate()
            process.wait(10)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    finish("hsm", figures)


async def _through(home: Path, kind: KeyKind, purpose: str, batch: int, seconds: float) -> float:
    signer = NativeSigner(home / "native.sock", home / "pin")
    try:
        key = f"bench-{kind}-{purpose}-{batch}"
        public = await signer.generate(key, kind)
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            await asyncio.gather(*(signer.sign(Signable(key, public, purpose, b"m" * 300)) for _ in range(batch)))
            count += batch
        return count / (time.perf_counter() - began)
    finally:
        await signer.close()
