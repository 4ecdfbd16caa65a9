"""What every command shares: options, running, output, errors.

Data goes to stdout, everything else to stderr. A table on a terminal, the same columns separated by tabs in a pipe, JSON with ``-o json``.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

from ironroot.i18n import _
from ironroot.log import configure
from pkix.errors import IronrootError

if TYPE_CHECKING:
    from ironroot.settings import Settings
    from ironroot.wire import Installation

T = TypeVar("T")

EXIT_CODES = _("Exit codes: 0 ok, 1 failure, 2 usage, 3 not found, 4 denied, 5 conflict, 6 pending approval, 7 unavailable, 8 not valid.")


class Output(StrEnum):
    """Form of the data on stdout."""

    TABLE = "table"
    JSON = "json"


Home = Annotated[
    Path, typer.Option("--home", envvar="IRONROOT_HOME", help=_("Folder of the installation."), show_default=True, file_okay=False)
]
Format = Annotated[Output, typer.Option("--output", "-o", help=_("Form of the output."))]
Yes = Annotated[bool, typer.Option("--yes", "-y", help=_("Do it without asking."))]
DryRun = Annotated[bool, typer.Option("--dry-run", help=_("Show what would be done, and do nothing."))]

DEFAULT_HOME = Path("~/.ironroot").expanduser()


def sub_app(help: str) -> typer.Typer:
    """A noun: a group of commands."""
    return typer.Typer(help=help, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)


def examples(*lines: str) -> str:
    """The epilogue of a command's help."""
    return "\b\n" + _("Examples:") + "\n" + "\n".join("  " + line for line in lines)


def say(text: str) -> None:
    """A line for the person, on stderr."""
    typer.echo(text, err=True)


def fail(error: IronrootError) -> NoReturn:
    """Ends the command with the error's sentence and exit code."""
    say(_("Error: ") + str(error))
    raise typer.Exit(error.exit_code)


def run(work: Callable[[], Awaitable[T]]) -> T:
    """Runs a command's work; our errors become a sentence and an exit code, Ctrl-C 130."""

    async def awaited() -> T:
        return await work()

    configure(logging.WARNING)
    try:
        return asyncio.run(awaited())
    except IronrootError as error:
        fail(error)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def with_settings(home: Path) -> Settings:
    """The installation's settings. Ends the command where they are missing or wrong."""
    from ironroot.settings import Settings

    try:
        return Settings.load(home)
    except IronrootError as error:
        fail(error)


def with_installation(home: Path, work: Callable[[Installation], Awaitable[T]]) -> T:
    """Opens the installation, runs ``work`` on it, closes it."""
    from ironroot.wire import installation

    settings = with_settings(home)

    async def opened() -> T:
        async with installation(settings) as here:
            return await work(here)

    return run(opened)


def emit(value: Any, output: Output, columns: Sequence[str] = ()) -> None:
    """Data on stdout: a list of mappings, or one mapping.

    Args:
        value: JSON-able.  columns: of the table, keys of the mappings; for one mapping all keys are shown.
    """
    if output is Output.JSON:
        typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
    elif isinstance(value, Mapping):
        width = max((len(key) for key in value), default=0)
        for key, item in value.items():
            text = _text(item)
            typer.echo(f"{key:<{width}}  {text}" if "\n" not in text else f"{key}\n{text}")
    elif sys.stdout.isatty():
        _table(value, columns)
    else:
        for row in value:
            typer.echo("\t".join(_text(row.get(column)) for column in columns))


def confirm(question: str, yes: bool) -> None:
    """Asks before something that cannot be undone. Ends the command (4) unless the answer is yes; (2) where there is nobody to ask."""
    if yes:
        return
    if not sys.stdin.isatty():
        say(_("Nobody is there to confirm; say --yes."))
        raise typer.Exit(2)
    if not typer.confirm(question, err=True):
        say(_("Nothing was done."))
        raise typer.Exit(4)


def username() -> str:
    """Who acts, for the audit log."""
    import pwd

    try:
        return f"cli:{pwd.getpwuid(os.getuid()).pw_name}"
    except KeyError:
        return f"cli:{os.getuid()}"


def _text(item: Any) -> str:
    if item is None:
        return "-"
    if isinstance(item, list | tuple):
        return ", ".join(str(part) for part in item)
    return str(item)


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(_(column), overflow="fold")
    for row in rows:
        table.add_row(*(_text(row.get(column)) for column in columns))
    console = Console()
    # A narrow terminal folds long lines itself; a serial folded inside a table could not be copied.
    console.width = max(console.width, Measurement.get(console, console.options.update(max_width=1000), table).maximum)
    console.print(table)
