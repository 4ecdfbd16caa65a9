"""``ironroot hsm fault``: faults on purpose, in an HSM that was started with --lab."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ironroot.cli.common import DEFAULT_HOME, Format, Home, Output, emit, examples, say, sub_app
from ironroot.cli.hsm.link import PinFile, logged_in, read_octets
from ironroot.i18n import _

app = sub_app(_("Faults on purpose, in an HSM that was started with --lab: load, list, clear."))
_COLUMNS = ("kind", "op", "key", "door", "matched", "shown")


@app.command(help=_("Load a scenario; it takes the place of the one before."), epilog=examples("ironroot hsm fault load slow.toml"))
def load(
    file: Annotated[Path, typer.Argument(dir_okay=False, help=_("The scenario, TOML (docs/hsm-lab.md)."))],
    home: Home = DEFAULT_HOME,
    pin_file: PinFile = None,
    output: Format = Output.TABLE,
) -> None:
    with logged_in(home, "officer", "", pin_file) as hsm:
        emit(hsm.call("lab", scenario=read_octets(file, "the scenario").decode("utf-8", "replace")), output, _COLUMNS)


@app.command("list", help=_("List the faults that are loaded, and how often they were shown."), epilog=examples("ironroot hsm fault list"))
def list_(home: Home = DEFAULT_HOME, pin_file: PinFile = None, output: Format = Output.TABLE) -> None:
    with logged_in(home, "officer", "", pin_file) as hsm:
        emit(hsm.call("lab"), output, _COLUMNS)


@app.command(help=_("End all faults."), epilog=examples("ironroot hsm fault clear"))
def clear(home: Home = DEFAULT_HOME, pin_file: PinFile = None) -> None:
    with logged_in(home, "officer", "", pin_file) as hsm:
        hsm.call("lab", clear=True)
    say(_("Cleared."))
