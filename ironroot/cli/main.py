"""``ironroot``: the administrator's command. Nouns, then verbs; each noun has its own module here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from ironroot.cli import audit, ca, cert, crl, device, fleet, hsm, trust, validator
from ironroot.cli.common import DEFAULT_HOME, EXIT_CODES, Format, Home, Output, emit, examples, run, say, sub_app, with_installation
from ironroot.i18n import _
from ironroot.log import configure
from pkix.errors import IronrootError, Unavailable

app = sub_app(_("Certificate trust for the industrial internet.") + " " + EXIT_CODES)
app.add_typer(ca.app, name="ca")
app.add_typer(cert.app, name="cert")
app.add_typer(crl.app, name="crl")
app.add_typer(device.app, name="device")
app.add_typer(fleet.app, name="fleet")
app.add_typer(audit.app, name="audit")
app.add_typer(hsm.app, name="hsm")
app.add_typer(trust.app, name="trust")
app.add_typer(validator.app, name="validator")


@app.command(
    help=_("Make an installation: settings, HSM, authorities, profiles and fleets. May be run again."),
    epilog=examples("ironroot init --home /var/lib/ironroot", "ironroot init --home ./plant --http-port 9080 --https-port 9443"),
)
def init(
    home: Home = DEFAULT_HOME,
    http_port: Annotated[int | None, typer.Option(min=1, max=65535, help=_("Port for OCSP, CRLs and CA certificates (8080)."))] = None,
    https_port: Annotated[int | None, typer.Option(min=1, max=65535, help=_("Port for enrolment over TLS (8443)."))] = None,
    organization: Annotated[str | None, typer.Option(help=_("Organization in the subjects of certificates."))] = None,
    hsm: Annotated[str | None, typer.Option(metavar="URI", help=_("A PKCS#11 token for the keys (RFC 7512); else the simulator."))] = None,
    output: Format = Output.TABLE,
) -> None:
    from ironroot.setup import FAMILIES, initialise
    from ironroot.views import authority, moment
    from ironroot.wire import installation

    async def work() -> list[dict[str, object]]:
        settings = await initialise(home, http_port=http_port, https_port=https_port, organization=organization, hsm_uri=hsm)
        async with installation(settings) as here:
            return [
                {"id": a.id, "algorithm": str(a.certificate.public_key.kind), "not_after": moment(a.certificate.not_after)}
                | {"sha256": authority(a)["sha256"]}
                for a in here.authorities.values()
            ]

    rows = run(work)
    emit(rows, output, ("id", "algorithm", "not_after", "sha256"))
    for family in FAMILIES:
        if f"{family}-root" not in {row["id"] for row in rows}:
            say(_("Left out, since the token does not sign with such keys:") + f" {family}")
    say(_("Ready. Next:") + f" ironroot serve --home {home}")


@app.command(
    help=_("Serve: HSM, web workers and scheduler, until SIGTERM or Ctrl-C."),
    epilog=examples("ironroot serve --home /var/lib/ironroot --workers 4"),
)
def serve(
    home: Home = DEFAULT_HOME,
    workers: Annotated[int | None, typer.Option(min=1, max=64, help=_("Web processes; else as the settings say."))] = None,
) -> None:
    from ironroot.settings import Settings
    from ironroot.supervisor import serve as supervise

    async def work() -> None:
        configure()
        settings = Settings.load(home)
        await supervise(settings, workers or settings.workers)

    run(work)


@app.command(
    help=_("Say whether a certificate, or a live TLS server, is good, now, for a purpose, and why not. Exit code 0 good, 8 not."),
    epilog=examples(
        "ironroot verify device.pem --chain chain.pem --purpose tls-client",
        "ironroot verify scada-1.plant.example:443 --explain",
        "ironroot verify peer.pem --trust root.pem -o json",
    ),
)
def verify(
    target: Annotated[
        str, typer.Argument(metavar="FILE|HOST:PORT", help=_("A certificate, PEM or DER, with or without its chain; or a TLS server."))
    ],
    home: Home = DEFAULT_HOME,
    chain: Annotated[Path | None, typer.Option(dir_okay=False, help=_("Intermediate certificates."))] = None,
    purpose: Annotated[str | None, typer.Option(help="tls-client | tls-server | code | data-signature | … | any")] = None,
    name: Annotated[
        list[str] | None, typer.Option(help=_("What it must be called: dns:HOST, ip:ADDRESS, uri:URI, device:FLEET/SERIAL."))
    ] = None,
    staple: Annotated[Path | None, typer.Option(dir_okay=False, help=_("An OCSP response, DER."))] = None,
    trust: Annotated[Path | None, typer.Option(dir_okay=False, help=_("Trust anchors; else the roots of this installation."))] = None,
    explain: Annotated[bool, typer.Option("--explain", help=_("Show everything that was looked at, as a tree."))] = False,
    output: Format = Output.TABLE,
) -> None:
    from ironroot.cli.verify import verify as judge

    judge(
        target,
        home,
        chain=chain,
        staple=staple,
        purpose=purpose,
        names=name or (),
        trust=trust,
        explain=explain,
        output=output,
    )


@app.command(help=_("Say what runs here and how it is."), epilog=examples("ironroot status --home /var/lib/ironroot -o json"))
def status(home: Home = DEFAULT_HOME, output: Format = Output.TABLE) -> None:
    from ironroot.views import moment
    from ironroot.wire import Installation

    async def work(here: Installation) -> dict[str, object]:
        shown: dict[str, object] = {"http": here.settings.http_url, "https": here.settings.https_url}
        for part, check in (("hsm", here.signer.ready), ("database", here.store.ready)):
            try:
                await check()
                shown[part] = "ok"
            except IronrootError as error:
                shown[part] = str(error)
        for authority in here.authorities:
            latest = await here.store.latest_crl(authority)
            shown[f"crl {authority}"] = None if latest is None else f"{latest.number}, until {moment(latest.next_update)}"
        head = await here.store.audit_head()
        shown["audit"] = 0 if head is None else head.seq
        return shown

    shown = with_installation(home, work)
    emit(shown, output)
    if not shown["hsm"] == shown["database"] == "ok":
        raise typer.Exit(Unavailable.exit_code)


@app.command(help=_("Print the version."), epilog=examples("ironroot version"))
def version() -> None:
    from ironroot import __version__

    typer.echo(__version__)


def main() -> None:
    """Entry point. No error of ours leaves as a traceback."""
    try:
        app()
    except IronrootError as error:
        say(_("Error: ") + str(error))
        raise SystemExit(error.exit_code) from None
    except BrokenPipeError:
        raise SystemExit(1) from None
    except Exception as error:
        if os.environ.get("IRONROOT_DEBUG"):
            raise
        say(_("Error: ") + f"{type(error).__name__}: {error}. " + _("This is a defect of ironroot; IRONROOT_DEBUG=1 shows where."))
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
