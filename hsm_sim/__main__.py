"""``python -m hsm_sim [init|serve] --home DIR``: makes a device, or serves it until SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import os
import resource
import signal
import sys
from collections.abc import Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hsm_sim import files, personality
from hsm_sim.audit import SyncFailed
from hsm_sim.device import Device
from hsm_sim.factory import DEFAULT_PARTITION, HASHES, check_home, initialise
from hsm_sim.native import Door as NativeDoor
from hsm_sim.pkcs11.door import Door as Pkcs11Door
from hsm_sim.seal import CIPHERS
from pkix.errors import Fatal, IronrootError

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38


def _harden(*, with_parent: bool) -> None:
    """No core dumps, no ptrace or /proc/PID/mem for others of this user, no new privileges (prctl(2)). Raises OSError."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o077)
    libc = ctypes.CDLL(None, use_errno=True)
    wanted = [(_PR_SET_DUMPABLE, 0), (_PR_SET_NO_NEW_PRIVS, 1)]
    if with_parent:
        wanted.append((_PR_SET_PDEATHSIG, signal.SIGTERM))
    for option, value in wanted:
        if libc.prctl(option, value, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


def _lock(home: Path) -> None:
    """Takes the home for this process, for as long as it lives. Raises NotFound, Fatal, Conflict."""
    check_home(home)
    files.lock(home)


def _now() -> datetime:
    return datetime.now(UTC)


async def _serve(home: Path, *, lab: bool) -> None:
    """Serves until SIGTERM or SIGINT, then answers what is running. Raises Fatal when the audit log cannot be trusted any more."""
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[Exception | None] = loop.create_future()

    def end(failure: Exception | None = None) -> None:
        if not stop.done():
            stop.set_result(failure)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    device = await Device.open(home, _now, on_failure=end, lab=lab)
    doors: dict[Path, NativeDoor | Pkcs11Door] = {home / "native.sock": NativeDoor(device), home / "pkcs11.sock": Pkcs11Door(device)}
    servers = []
    failure: Exception | None = None
    try:
        for path, door in doors.items():
            servers.append(await door.listen(path))
        print("ready", flush=True)
        failure = await stop
    finally:
        for server in servers:
            server.close()
        await asyncio.gather(*(door.drain() for door in doors.values()))
        try:
            await device.close()
        except SyncFailed as error:
            failure = failure or error
        for path in doors:
            path.unlink(missing_ok=True)
    if failure is not None:
        raise Fatal(f"the audit log could not be written for certain ({failure}); restart to read it afresh")


def main() -> int:
    """Exit codes are ironroot's: 0 ended as asked, 2 usage, 3 no device, 5 served by another process, 1 anything else."""
    options = _options()
    home = options.home.absolute()
    try:
        _harden(with_parent=options.with_parent)
        if options.command == "init":
            names = options.partition or [DEFAULT_PARTITION]
            initialise(home, _now(), names=names, personality=options.personality, cipher=options.cipher, digest=options.hash)
            return 0
        _lock(home)
        sys.setswitchinterval(0.0005)
        _run(_serve(home, lab=options.lab))
    except IronrootError as error:
        print(f"hsm_sim: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"hsm_sim: {error}", file=sys.stderr)
        return 1
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="hsm_sim", description="The simulated HSM.")
    parser.add_argument("command", nargs="?", choices=("init", "serve"), default="serve")
    parser.add_argument("--home", type=Path, required=True, help="where keys, log and sockets live")
    parser.add_argument("--with-parent", action="store_true", help="end when the process that started this one ends")
    parser.add_argument("--lab", action="store_true", help="take scenarios of faults (never where keys matter)")
    making = parser.add_argument_group("init")
    making.add_argument("--partition", action="append", metavar="NAME", help=f"repeat for several (default {DEFAULT_PARTITION})")
    making.add_argument("--personality", default=personality.DEFAULT, choices=personality.NAMES, help="whose manners it has")
    making.add_argument("--cipher", default=CIPHERS[0], choices=CIPHERS, help="what keys are sealed with")
    making.add_argument("--hash", default=HASHES[0], choices=HASHES, help="what the audit log is chained with")
    return parser.parse_args()


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Runs it on uvloop where there is one."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(work)
    else:
        uvloop.run(work)


if __name__ == "__main__":
    sys.exit(main())
