"""``ironroot hsm audit``: verify, read, acknowledge, force."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ironroot.cli.common import DEFAULT_HOME, Format, Home, Output, emit, examples, fail, say, sub_app
from ironroot.cli.hsm.link import PinFile, hsm_home, logged_in, read_octets
from ironroot.i18n import _
from pkix.errors import IronrootError, NotFound, NotValid

app = sub_app(_("The HSM's own log: verify, read, acknowledge, force."))


@app.command(
    help=_("Check the log without the HSM: its chain and signed checkpoints; name the first bad entry, with exit code 8."),
    epilog=examples("ironroot hsm audit verify --home ./plant", "ironroot hsm audit verify --dir ./copy --trust manufacturer.pem"),
)
def verify(
    home: Home = DEFAULT_HOME,
    dir: Annotated[Path | None, typer.Option(file_okay=False, help=_("Folder with a copy of the log; else the HSM's own."))] = None,
    trust: Annotated[Path | None, typer.Option(dir_okay=False, help=_("The manufacturer's certificate; else that of this HSM."))] = None,
    output: Format = Output.TABLE,
) -> None:
    from hsm_sim.audit_verify import verify as check
    from pkix import pem

    place = hsm_home(home)
    try:
        anchors = pem.certificates(read_octets(trust or place / "manufacturer.pem", "the manufacturer's certificate"))
        verdict = check(dir or place, anchors)
    except IronrootError as error:
        fail(error)
    except OSError as error:
        fail(NotFound(f"the log cannot be read: {error.strerror}"))
    flaw = verdict.flaw
    shown: dict[str, Any] = {"ok": verdict.ok} | {name: value for name, value in verdict._asdict().items() if name != "flaw"}
    if flaw is not None:
        shown |= flaw._asdict()
    emit(shown, output)
    if flaw is not None:
        fail(NotValid(f"{flaw.file}, line {flaw.line}: {flaw.text}"))
    say(_("The chain is whole."))


@app.command(
    help=_("Read lines of the log, as the auditor; JSON lines on stdout."), epilog=examples("ironroot hsm audit read --after 1000 -n 50")
)
def read(
    home: Home = DEFAULT_HOME,
    after: Annotated[int, typer.Option(min=0, help=_("Lines after this number."))] = 0,
    number: Annotated[int, typer.Option("--number", "-n", min=1, max=1000, help=_("So many."))] = 100,
    pin_file: PinFile = None,
) -> None:
    with logged_in(home, "auditor", "", pin_file) as hsm:
        for line in hsm.call("audit_read", after=after, limit=number):
            typer.echo(line)


@app.command(help=_("Acknowledge that the log was read and kept, up to a line."), epilog=examples("ironroot hsm audit acknowledge 1050"))
def acknowledge(
    seq: Annotated[int, typer.Argument(min=0, help=_("The last line that was read."))], home: Home = DEFAULT_HOME, pin_file: PinFile = None
) -> None:
    with logged_in(home, "auditor", "", pin_file) as hsm:
        say(_("Acknowledged up to line") + f" {hsm.call('audit_ack', seq=seq)['acknowledged']}.")


@app.command(
    help=_("Refuse to use keys when more lines than this are not acknowledged; 0 turns it off."),
    epilog=examples("ironroot hsm audit force 10000"),
)
def force(
    limit: Annotated[int, typer.Argument(min=0, help=_("So many lines."))], home: Home = DEFAULT_HOME, pin_file: PinFile = None
) -> None:
    with logged_in(home, "auditor", "", pin_file) as hsm:
        typer.echo(json.dumps(hsm.call("force_audit", limit=limit or None)))
