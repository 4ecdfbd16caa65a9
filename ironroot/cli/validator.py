"""``ironroot validator``: init, serve, sync."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ironroot.cli.common import DEFAULT_HOME, Format, Home, Output, emit, examples, fail, run, say, sub_app
from ironroot.i18n import _

if TYPE_CHECKING:
    from ironroot.validator.settings import ValidatorSettings

app = sub_app(_("Validation beside a platform: no CA, no database on this machine."))

Config = Annotated[Path | None, typer.Option(dir_okay=False, help=_("Settings; else validator.toml in the folder."))]


@app.command(
    help=_("Make the folder of a validator, with default settings. May be run again."),
    epilog=examples("ironroot validator init --home /var/lib/ironroot-validator"),
)
def init(home: Home = DEFAULT_HOME) -> None:
    from ironroot.validator.settings import initialise
    from pkix.errors import IronrootError

    try:
        initialise(home)
    except IronrootError as error:
        fail(error)
    say(_("Ready. Next:") + f" ironroot trust follow URL --pin SHA256 --home {home}")


@app.command(
    help=_("Serve: judge peers over a Unix socket and HTTP, until SIGTERM or Ctrl-C."),
    epilog=examples("ironroot validator serve --home /var/lib/ironroot-validator", "ironroot validator serve --config /etc/validator.toml"),
)
def serve(home: Home = DEFAULT_HOME, config: Config = None) -> None:
    from ironroot.validator.service import run as run_validator
    from pkix.errors import IronrootError

    settings = _settings(home, config)
    try:
        run_validator(settings)
    except IronrootError as error:
        fail(error)


@app.command(
    help=_("Write CRLs and CA certificates as files, for programs that know no better (mosquitto, nginx)."),
    epilog=examples(
        "ironroot validator sync --to /etc/mosquitto/pki --home /var/lib/ironroot-validator",
        "ironroot validator sync --to /etc/mosquitto/pki --every 60 --reload /run/mosquitto/mosquitto.pid",
    ),
)
def sync(
    to: Annotated[Path, typer.Option(file_okay=False, help=_("The folder for ca.pem and crl.pem."))],
    home: Home = DEFAULT_HOME,
    config: Config = None,
    every: Annotated[int | None, typer.Option(min=1, help=_("Go on, and do it every N seconds."))] = None,
    reload: Annotated[Path | None, typer.Option(dir_okay=False, help=_("PID file of a program that gets SIGHUP after a change."))] = None,
    output: Format = Output.TABLE,
) -> None:
    import asyncio

    from ironroot.validator.service import validator
    from ironroot.validator.sync import Report, hang_up
    from ironroot.validator.sync import sync as bring
    from ironroot.views import moment
    from pkix.errors import NotFound, Unavailable

    settings = _settings(home, config)

    async def work() -> Report:
        async with validator(settings) as here:
            while True:
                here.reload()
                await here.refresh()
                report = await bring(settings, here.trust, to, here.fetch, here.clock.now())
                for problem in report.problems:
                    say(_("Error: ") + problem)
                if report.changed and reload is not None:
                    try:
                        hang_up(reload)
                    except NotFound as error:
                        say(_("Error: ") + str(error))
                if every is None:
                    return report
                await asyncio.sleep(every)

    report = run(work)
    rows: list[dict[str, Any]] = [
        {"issuer": issuer, "not_after": None if until is None else moment(until)} for issuer, until in sorted(report.lists.items())
    ]
    emit(rows, output, ("issuer", "not_after"))
    if report.problems:
        raise typer.Exit(Unavailable.exit_code)


def _settings(home: Path, config: Path | None) -> ValidatorSettings:
    from ironroot.validator.settings import ValidatorSettings
    from pkix.errors import IronrootError

    try:
        return ValidatorSettings.load(home if config is None or home != DEFAULT_HOME else config.absolute().parent, config)
    except IronrootError as error:
        fail(error)
