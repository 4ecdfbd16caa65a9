"""Signatures a second with keys in an HSM, by every way there is, against the library call in this process."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from bench import hsm_native
from bench.plant import finish
from hsm_sim import initialise


def main() -> None:
    """``scripts/bench hsm [--seconds N] [--rounds N]``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=1.0, help="for each measurement in each round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="ir", dir="/tmp"))
    try:
        initialise(home / "hsm", datetime.now(UTC))
        finish("hsm", hsm_native.measure(home / "hsm", options.seconds, options.rounds))
    finally:
        shutil.rmtree(home, ignore_errors=True)
