"""A process of ``ironroot serve``: ``python -m ironroot.child worker|scheduler --home HOME``.

It ends when its supervisor does, however that ends: nothing is left listening behind a supervisor that was killed.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def die_with(parent: int) -> None:
    """Asks the kernel for SIGTERM when the process ``parent``, which must be ours, ends (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before we asked
        sys.exit(0)


def main() -> None:
    """Reads the role and becomes it."""
    parser = argparse.ArgumentParser(prog="ironroot.child")
    parser.add_argument("role", choices=["worker", "scheduler"])
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--parent", type=int, required=True)
    arguments = parser.parse_args()
    die_with(arguments.parent)
    if arguments.role == "worker":
        from ironroot.worker import run

        run(arguments.home)
    else:
        from ironroot.scheduler import run as run_scheduler

        run_scheduler(arguments.home)


if __name__ == "__main__":
    main()
