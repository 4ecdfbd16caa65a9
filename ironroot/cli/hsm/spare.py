"""``ironroot hsm``: backup and restore."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ironroot.cli.common import DEFAULT_HOME, Format, Home, Output, emit, examples, fail, say
from ironroot.cli.hsm.key import Approvals
from ironroot.cli.hsm.link import Partition, PinFile, logged_in, read_octets
from ironroot.i18n import _
from pkix.errors import Conflict, Unavailable


def enter(app: typer.Typer) -> None:
    """Puts the commands into ``app``."""
    app.command(
        help=_("Write a backup of a partition, its key in M-of-N shares for as many people, or for one other HSM."),
        epilog=examples(
            "ironroot hsm backup --to plant.backup --shares 3/5 --shares-to ./shares",
            "ironroot hsm backup --to move.backup --for other.pem --for-manufacturer other-manufacturer.pem",
        ),
    )(backup)
    app.command(
        help=_("Put a backup's keys into a partition; keys that are there stay."),
        epilog=examples("ironroot hsm restore plant.backup --share share-1.txt --share share-4.txt --share share-5.txt"),
    )(restore)
    app.command(
        help=_("Write the HSM's certificates, PEM, to stdout: the one that backups for it are wrapped to, and its manufacturer's."),
        epilog=examples("ironroot hsm identity > other.pem"),
    )(identity)


def backup(
    to: Annotated[Path, typer.Option(dir_okay=False, help=_("The file to write; it must not be there yet."))],
    home: Home = DEFAULT_HOME,
    shares: Annotated[str, typer.Option(help=_("M/N: so many shares of N open it."))] = "",
    shares_to: Annotated[
        Path | None, typer.Option(file_okay=False, help=_("Folder for the shares, one file each; give each to one person."))
    ] = None,
    for_: Annotated[
        Path | None, typer.Option("--for", dir_okay=False, help=_("The other HSM's `hsm identity`, instead of shares."))
    ] = None,
    for_manufacturer: Annotated[
        Path | None, typer.Option(dir_okay=False, help=_("Its manufacturer's certificate, got on a way that you trust."))
    ] = None,
    approval: Approvals = None,
    partition: Partition = "",
    pin_file: PinFile = None,
) -> None:
    from pkix import pem

    if (for_ is None) == (not shares) or bool(shares) != (shares_to is not None) or (for_ is None) != (for_manufacturer is None):
        raise typer.BadParameter(_("Say --shares M/N with --shares-to, or --for with --for-manufacturer."))
    if to.exists():
        fail(Conflict(f"{to} is there already"))
    asked: dict[str, Any] = dict(zip(("needed", "total"), m_of_n(shares), strict=True)) if shares else {}
    with logged_in(home, "so", partition, pin_file) as hsm:
        if for_ is not None and for_manufacturer is not None:
            asked["recipient"] = pem.certificates(read_octets(for_, "the other HSM's identity"))[0]
            asked["manufacturer"] = pem.certificates(read_octets(for_manufacturer, "its manufacturer's certificate"))[0]
        made = hsm.call("backup", approvals=[read_octets(file, "an approval") for file in approval or ()], **asked)
    if shares_to is not None:
        shares_to.mkdir(mode=0o700, parents=True, exist_ok=True)
        for number, text in enumerate(made["shares"], 1):
            _create(shares_to / f"share-{number}.txt", text.encode() + b"\n")
    _create(to, made["backup"])
    say(_("Written:") + f" {to}" + (f", {len(made['shares'])} {_('shares in')} {shares_to}" if shares_to else ""))


def restore(
    file: Annotated[Path, typer.Argument(dir_okay=False, help=_("The backup."))],
    home: Home = DEFAULT_HOME,
    share: Annotated[list[Path] | None, typer.Option(dir_okay=False, help=_("A share's file; may be repeated."))] = None,
    manufacturer: Annotated[
        Path | None, typer.Option(dir_okay=False, help=_("Certificate of the manufacturer of the HSM that made it."))
    ] = None,
    check: Annotated[bool, typer.Option("--check", help=_("Only say whether the shares open it."))] = False,
    partition: Partition = "",
    pin_file: PinFile = None,
    output: Format = Output.TABLE,
) -> None:
    from pkix import pem

    with logged_in(home, "so", partition, pin_file) as hsm:
        octets = read_octets(file, "the backup")
        texts = [read_octets(each, "a share").decode("utf-8", "replace").strip() for each in share or ()]
        if check:
            emit(hsm.call("shares", backup=octets, shares=texts), output)
            return
        known = {} if manufacturer is None else {"manufacturer": pem.certificates(read_octets(manufacturer, "the certificate"))[0]}
        emit(hsm.call("restore", backup=octets, shares=texts, **known), output)


def identity(home: Home = DEFAULT_HOME) -> None:
    from pkix import pem

    with logged_in(home) as hsm:
        found = hsm.call("identity")
    typer.echo("".join(pem.encode("CERTIFICATE", found[name]) for name in ("transport", "manufacturer")), nl=False)


def m_of_n(text: str) -> tuple[int, int]:
    """``"3/5"`` as (3, 5). Ends the command (2) for anything else."""
    needed, slash, total = text.partition("/")
    if not slash or not needed.isdecimal() or not total.isdecimal():
        raise typer.BadParameter(_("Shares are M/N, such as 3/5."))
    return int(needed), int(total)


def _create(file: Path, octets: bytes) -> None:
    """A new file for its owner alone. Ends the command where one is there or cannot be written."""
    from hsm_sim import files

    try:
        files.create(file.absolute(), octets)
    except FileExistsError:
        fail(Conflict(f"{file} is there already"))
    except OSError as error:
        fail(Unavailable(f"{file} cannot be written: {error.strerror}"))
