"""``ironroot hsm``: init, serve, status, lock, bench."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ironroot.cli.common import DEFAULT_HOME, Format, Home, Output, emit, examples, fail, say, sub_app
from ironroot.cli.hsm.link import Partition, PinFile, hsm_home, logged_in
from ironroot.i18n import _
from pkix.errors import IronrootError, NotFound, Unavailable

app = sub_app(_("The simulated HSM: keys, roles, audit, attestation, approvals, backup, faults."))


class Cipher(StrEnum):
    """What the HSM seals its records with."""

    AES = "aes-256-gcm"
    SM4 = "sm4-gcm"


class Hash(StrEnum):
    """What the HSM chains its audit log with."""

    SHA256 = "sha256"
    SM3 = "sm3"


@app.command(
    help=_("Make a simulated HSM in HOME/hsm. May be run again; what is there stays."),
    epilog=examples("ironroot hsm init --home ./plant", "ironroot hsm init --home ./kmc --partition ca --partition kmc --hash sm3"),
)
def init(
    home: Home = DEFAULT_HOME,
    partition: Annotated[list[str] | None, typer.Option(help=_("A partition to make; may be repeated."))] = None,
    personality: Annotated[str, typer.Option(help=_("The vendor whose manners it takes on; docs/hsm-lab.md."))] = "ironroot",
    cipher: Annotated[Cipher, typer.Option(help=_("What it seals its records with."))] = Cipher.AES,
    hash: Annotated[Hash, typer.Option(help=_("What it chains its audit log with."))] = Hash.SHA256,
    output: Format = Output.TABLE,
) -> None:
    from datetime import UTC, datetime

    from hsm_sim.factory import DEFAULT_PARTITION, initialise

    place = hsm_home(home)
    os.umask(0o077)
    try:
        initialise(
            place,
            datetime.now(UTC),
            names=partition or [DEFAULT_PARTITION],
            personality=personality,
            cipher=cipher.value,
            digest=hash.value,
        )
    except IronrootError as error:
        fail(error)
    except OSError as error:
        fail(Unavailable(f"{place} cannot be written: {error.strerror}"))
    emit(_places(place), output)
    say(_("Keep so-pin and auditor-pin elsewhere: whoever reads them has these roles."))


@app.command(
    help=_("Serve the HSM of HOME alone, until SIGTERM or Ctrl-C; prints ready when it listens."),
    epilog=examples("ironroot hsm serve --home ./plant", "ironroot hsm serve --home ./plant --lab"),
)
def serve(
    home: Home = DEFAULT_HOME,
    lab: Annotated[bool, typer.Option("--lab", help=_("Let faults be shown on purpose (docs/hsm-lab.md)."))] = False,
) -> None:
    place = hsm_home(home)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "hsm_sim", "serve", "--home", str(place), *(["--lab"] if lab else [])])  # noqa: S606


def _places(place: Path) -> dict[str, Any]:
    """The files and sockets of an HSM that others need to know."""
    found = {"home": str(place), "native_socket": str(place / "native.sock"), "pkcs11_socket": str(place / "pkcs11.sock")}
    pins = {name: str(place / file) for name, file in _PIN_FILES.items() if (place / file).exists()}
    return found | {"pin_file": pins.get("pin_file"), **pins, "manufacturer": str(place / "manufacturer.pem")}


_PIN_FILES = {"pin_file": "pin", "so_pin_file": "so-pin", "auditor_pin_file": "auditor-pin"}


@app.command(
    help=_("Say where the HSM listens, what state it is in, and where its PINs are kept. Exit code 7 if it does not run."),
    epilog=examples("ironroot hsm status --home ./plant", "ironroot hsm status --home ./plant -o json"),
)
def status(home: Home = DEFAULT_HOME, output: Format = Output.TABLE) -> None:
    from hsm_sim.client import Client
    from hsm_sim.errors import Rejected

    place = hsm_home(home)
    if not (place / "hsm.db").exists():
        fail(NotFound(f"there is no HSM in {place}: make one with `ironroot hsm init --home {home}`"))
    shown: dict[str, Any] = {"state": "stopped"}
    try:
        with Client(place / "native.sock", timeout=5) as hsm:
            shown = hsm.call("status")
    except (Unavailable, Rejected) as error:
        say(_("Error: ") + str(error))
    emit({"state": shown.pop("state"), **_places(place), **shown}, output)
    if "serial" not in shown:
        raise typer.Exit(Unavailable.exit_code)


@app.command(
    help=_("Close a partition: all logins end; services stay out until it is unlocked."),
    epilog=examples("ironroot hsm lock --home ./plant"),
)
def lock(home: Home = DEFAULT_HOME, partition: Partition = "", pin_file: PinFile = None) -> None:
    with logged_in(home, "officer", partition, pin_file) as hsm:
        hsm.call("lock")
    say(_("Locked."))


@app.command(
    help=_("Open a partition that was locked on purpose, so that services log in again."),
    epilog=examples("ironroot hsm unlock --home ./plant"),
)
def unlock(home: Home = DEFAULT_HOME, partition: Partition = "", pin_file: PinFile = None) -> None:
    with logged_in(home, "officer", partition, pin_file):
        say(_("Unlocked."))


@app.command(
    help=_("Measure signatures per second with keys made for it and destroyed again: one at a time, in batches of 8 and of 64."),
    epilog=examples("ironroot hsm bench --home ./plant --seconds 2"),
)
def bench(
    home: Home = DEFAULT_HOME,
    seconds: Annotated[float, typer.Option(min=0.1, max=10, help=_("For each of the six measurements."))] = 1.0,
    partition: Partition = "",
    pin_file: PinFile = None,
    output: Format = Output.TABLE,
) -> None:
    import secrets
    import time

    rows = []
    with logged_in(home, "officer", partition, pin_file) as hsm:
        for kind in ("p-256", "sm2"):
            label = f"bench-{secrets.token_hex(6)}"
            hsm.call("generate", key=label, kind=kind)
            try:
                for batch in (1, 8, 64):
                    data, done, began = [secrets.token_bytes(32) for _number in range(batch)], 0, time.perf_counter()
                    while (spent := time.perf_counter() - began) < seconds:
                        done += len(hsm.call("sign_many", key=label, purpose="bench", data=data))
                    rows.append({"kind": kind, "batch": batch, "per_second": round(done / spent)})
            finally:
                hsm.call("destroy", key=label)
    emit(rows, output, ("kind", "batch", "per_second"))
