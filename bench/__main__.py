"""Runs one benchmark by name."""

from __future__ import annotations

import importlib
import sys

NAMES = ("issue", "ocsp", "hsm", "hsm-pkcs11", "sm2", "crl", "validate", "validator")


def main() -> None:
    """``python -m bench NAME [options]``."""
    if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
        print(f"usage: scripts/bench {'|'.join(NAMES)} [options]", file=sys.stderr)
        sys.exit(2)
    name = sys.argv.pop(1)
    importlib.import_module(f"bench.{name.replace('-', '_')}").main()


if __name__ == "__main__":
    main()
