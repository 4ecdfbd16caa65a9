"""``python -m hsm_sim [init] --home DIR``: makes a token, or serves it until SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import os
import resource
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path

from hsm_sim import files
from hsm_sim.native import Door
from hsm_sim.signing import Signing
from hsm_sim.signlog import SignLog, SyncFailed
from hsm_sim.token import Token, initialise
from pkix.errors import Fatal, IronrootError, NotFound

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
    """Takes the home for this process, for as long as it lives. Raises NotFound, Conflict."""
    if not (home / "token").exists():
        raise NotFound(f"no token in {home}: run `python -m hsm_sim init --home {home}` first")
    files.lock(home)


def _now() -> datetime:
    return datetime.now(UTC)


async def _serve(home: Path) -> None:
    """Serves until SIGTERM or SIGINT, then answers what is running. Raises Fatal when the signature log cannot be trusted any more."""
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[SyncFailed | None] = loop.create_future()

    def end(failure: SyncFailed | None = None) -> None:
        if not stop.done():
            stop.set_result(failure)

    token, log = Token(home), SignLog(home / "sign.log")
    signing = Signing(log, _now, end)
    door = Door(token, signing, log, _now)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    server = await door.listen(home / "native.sock")
    print("ready", flush=True)
    failure = await stop
    server.close()
    await door.drain()
    try:
        await signing.close()
    except SyncFailed as error:
        failure = failure or error
    finally:
        log.close()
        (home / "native.sock").unlink(missing_ok=True)
    if failure is not None:
        raise Fatal(f"the signature log could not be written for certain ({failure}); restart to read it afresh")


def main() -> int:
    """Exit codes are ironroot's: 0 ended as asked, 2 usage, 3 no token, 5 served by another process, 1 anything else."""
    parser = argparse.ArgumentParser(prog="hsm_sim", description="The simulated HSM.")
    parser.add_argument("command", nargs="?", choices=("init", "serve"), default="serve")
    parser.add_argument("--home", type=Path, required=True, help="where token, keys and socket live")
    parser.add_argument("--with-parent", action="store_true", help="end when the process that started this one ends")
    options = parser.parse_args()
    home = options.home.absolute()
    try:
        _harden(with_parent=options.with_parent)
        if options.command == "init":
            initialise(home, _now())
            return 0
        _lock(home)
        sys.setswitchinterval(0.0005)
        _run(home)
    except IronrootError as error:
        print(f"hsm_sim: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"hsm_sim: {error}", file=sys.stderr)
        return 1
    return 0


def _run(home: Path) -> None:
    """``_serve`` on uvloop where there is one."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(_serve(home))
    else:
        uvloop.run(_serve(home))


if __name__ == "__main__":
    sys.exit(main())
