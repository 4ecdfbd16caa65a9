"""``ironroot hsm partition`` and ``ironroot hsm pin``: what the security officer does."""

from __future__ import annotations

import getpass
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ironroot.cli.common import DEFAULT_HOME, Format, Home, Output, Yes, confirm, emit, examples, fail, say, sub_app
from ironroot.cli.hsm.link import Partition, PinFile, logged_in, read_octets
from ironroot.i18n import _
from pkix.errors import IronrootError, NotFound

app = sub_app(_("Partitions of the HSM: list, create, zeroise."))
pin = sub_app(_("PINs: change one's own, set or unlock another's."))

NewPin = Annotated[Path | None, typer.Option("--new-pin-file", dir_okay=False, help=_("File with the new PIN; else a question."))]


class Role(StrEnum):
    """Whose PIN."""

    OFFICER = "officer"
    USER = "user"
    SO = "so"
    AUDITOR = "auditor"


@app.command("list", help=_("List the partitions and their states."), epilog=examples("ironroot hsm partition list"))
def list_(home: Home = DEFAULT_HOME, output: Format = Output.TABLE) -> None:
    with logged_in(home) as hsm:
        states = hsm.call("status")["partitions"]
    emit([{"partition": name, "state": state} for name, state in states.items()], output, ("partition", "state"))


@app.command(
    help=_("Make a partition: a token of its own, with its own security officer."),
    epilog=examples("ironroot hsm partition create kmc --new-pin-file kmc-so-pin"),
)
def create(
    name: Annotated[str, typer.Argument(help=_("Its name, which is also the PKCS#11 token's label."))],
    home: Home = DEFAULT_HOME,
    new_pin_file: NewPin = None,
    pin_file: PinFile = None,
) -> None:
    with logged_in(home, "so", "", pin_file) as hsm:
        made = hsm.call("create_partition", name=name, so_pin=_new(new_pin_file))
    say(_("Made partition") + f" {made['partition']} (slot {made['slot']}).")


@app.command(
    help=_("Destroy all keys of a partition for good. Only a backup brings them back."),
    epilog=examples("ironroot hsm partition zeroise --partition kmc"),
)
def zeroise(home: Home = DEFAULT_HOME, partition: Partition = "", yes: Yes = False, pin_file: PinFile = None) -> None:
    with logged_in(home, "so", partition, pin_file) as hsm:
        confirm(_("Destroy all keys of this partition for good?") + f" {hsm.call('status')['partition']}", yes)
        hsm.call("zeroise")
    say(_("Zeroised."))


@app.command(
    help=_("Go on with what is left after objects were damaged, or an older copy of the database was put back."),
    epilog=examples("ironroot hsm partition accept-damage"),
)
def accept_damage(home: Home = DEFAULT_HOME, partition: Partition = "", yes: Yes = False, pin_file: PinFile = None) -> None:
    with logged_in(home, "so", partition, pin_file) as hsm:
        found = hsm.call("status")
        for name, trouble in found["damaged"].items():
            say(f"{name}: {trouble}")
        if found["rolled_back"]:
            say(found["rolled_back"])
        confirm(_("Give up what is damaged and go on?"), yes)
        hsm.call("accept_damage")
    say(_("Accepted."))


@pin.command(help=_("Change a PIN, knowing the old one."), epilog=examples("ironroot hsm pin change --role officer --new-pin-file new-pin"))
def change(
    home: Home = DEFAULT_HOME,
    role: Annotated[Role, typer.Option(help=_("Whose PIN."))] = Role.OFFICER,
    new_pin_file: NewPin = None,
    partition: Partition = "",
    pin_file: PinFile = None,
) -> None:
    from ironroot.cli.hsm.link import _pin, hsm_home

    try:
        old = _pin(hsm_home(home), role.value, partition, pin_file)
    except IronrootError as error:
        fail(error)
    with logged_in(home) as hsm:
        hsm.call("login", role=role.value, pin=old, **({"partition": partition} if partition else {}))
        hsm.call("set_pin", role=role.value, old=old, new=_new(new_pin_file))
    say(_("Changed. Put the new PIN where it is read from; the old one does not open anything any more."))


@pin.command(
    "set",
    help=_("Set another's PIN as the security officer: a first one, or a new one for a PIN that is locked."),
    epilog=examples("ironroot hsm pin set --role user --new-pin-file user-pin"),
)
def set_(
    home: Home = DEFAULT_HOME,
    role: Annotated[Role, typer.Option(help=_("Whose PIN."))] = Role.OFFICER,
    new_pin_file: NewPin = None,
    partition: Partition = "",
    pin_file: PinFile = None,
) -> None:
    with logged_in(home, "so", partition, pin_file) as hsm:
        hsm.call("set_pin", role=role.value, new=_new(new_pin_file))
    say(_("Set."))


def _new(file: Path | None) -> str:
    """A new PIN from a file, or asked for twice. Raises NotFound."""
    if file is not None:
        return read_octets(file, "the new PIN").decode("utf-8", "replace").strip()
    if not sys.stdin.isatty():
        raise NotFound("nobody is there to be asked for the new PIN: say --new-pin-file")
    first, second = getpass.getpass(_("New PIN: ")), getpass.getpass(_("Again: "))
    if first != second:
        raise typer.BadParameter(_("The two are not the same."))
    return first
