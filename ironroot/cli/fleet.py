"""``ironroot fleet``: list, show, trust."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ironroot.cli.common import DEFAULT_HOME, Format, Home, Output, emit, examples, say, sub_app, username, with_installation
from ironroot.i18n import _

if TYPE_CHECKING:
    from ironroot.wire import Installation

app = sub_app(_("Fleets: who may enrol, and how they prove it."))


@app.command("list", help=_("List the fleets."), epilog=examples("ironroot fleet list"))
def list_(home: Home = DEFAULT_HOME, output: Format = Output.TABLE) -> None:
    async def work(here: Installation) -> list[dict[str, Any]]:
        return [json.loads(fleet.model_dump_json()) for fleet in here.policies.fleets.values()]

    emit(with_installation(home, work), output, ("id", "authority", "profile", "keys", "authenticators", "approval"))


@app.command(help=_("Show one fleet."), epilog=examples("ironroot fleet show sm2-devices"))
def show(fleet: Annotated[str, typer.Argument(metavar="FLEET")], home: Home = DEFAULT_HOME, output: Format = Output.TABLE) -> None:
    async def work(here: Installation) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(here.fleet(fleet).model_dump_json())
        return found

    emit(with_installation(home, work), output)


@app.command(
    help=_("Trust a manufacturer's CA: devices of this fleet may enrol with the certificates that it put in (IDevID)."),
    epilog=examples("ironroot fleet trust ecc-devices maker-ca.pem"),
)
def trust(
    fleet: Annotated[str, typer.Argument(metavar="FLEET")],
    file: Annotated[Path, typer.Argument(metavar="FILE", dir_okay=False, help=_("CA certificates, PEM or DER."))],
    home: Home = DEFAULT_HOME,
) -> None:
    from ironroot.files import write_atomically
    from pkix import pem
    from pkix.certificate import parse_certificate
    from pkix.errors import Malformed, NotFound, Refused

    async def work(here: Installation) -> None:
        paths = here.fleet(fleet).idevid.trust
        if not paths:
            raise Refused(f"Fleet {fleet} takes no manufacturers' certificates: its file names no idevid.trust.")
        if not file.is_file():
            raise NotFound(f"{file} is not there.")
        target = here.settings.home / paths[0]
        trusted = pem.certificates(target.read_bytes()) if target.exists() else []
        for der in pem.certificates(file.read_bytes()):
            certificate = parse_certificate(der)
            if not certificate.is_ca:
                raise Malformed(f"{certificate.subject.text} is not a CA certificate (basicConstraints says so).")
            if der not in trusted:
                trusted.append(der)
                detail = {"subject_name": certificate.subject.text, "ca_sha256": certificate.sha256.hex()}
                await here.store.audit(username(), "fleet.trusted", fleet, here.clock.now(), **detail)
            say(_("Trusted for") + f" {fleet}: {certificate.subject.text}")
        target.parent.mkdir(mode=0o700, exist_ok=True)
        write_atomically(target, "".join(pem.encode("CERTIFICATE", der) for der in trusted).encode())

    with_installation(home, work)
