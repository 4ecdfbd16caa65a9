"""``ironroot device``: invite, list, show, approve, deny."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ironroot.cli.common import (
    DEFAULT_HOME,
    DryRun,
    Format,
    Home,
    Output,
    Yes,
    confirm,
    emit,
    examples,
    say,
    sub_app,
    username,
    with_installation,
)
from ironroot.i18n import _

if TYPE_CHECKING:
    from ca.model import Decision
    from ironroot.wire import Installation

app = sub_app(_("Devices and platforms: invite, list, show, approve, deny."))

Device = Annotated[str, typer.Argument(metavar="SERIAL", help=_("The device's serial number."))]
Fleet = Annotated[str | None, typer.Option(help=_("Only of this fleet."))]


@app.command(
    help=_("Make a one-time token with which one device may enrol; it also pins our CA."),
    epilog=examples(
        "ironroot device invite --fleet ecc-devices --serial SN-0001",
        "ironroot device invite --fleet ecc-platforms --serial scada-1 --name scada-1.plant.example --name 10.0.0.5",
    ),
)
def invite(
    fleet: Annotated[str, typer.Option(help=_("The fleet that it joins."))],
    serial: Annotated[str, typer.Option(help=_("The device's serial number."))],
    home: Home = DEFAULT_HOME,
    name: Annotated[list[str] | None, typer.Option(help=_("A DNS name or address for its certificate (platforms)."))] = None,
    output: Format = Output.TABLE,
) -> None:
    from ironroot import views
    from ironroot.invite import invite as make

    async def work(here: Installation) -> dict[str, Any]:
        made = await make(here, fleet, serial, names=name or (), now=here.clock.now(), actor=username())
        return {
            "token": made.token,
            "url": here.settings.https_url,
            "ca_sha256": made.ca_sha256,
            "expires": views.moment(made.expires),
            "fleet": fleet,
            "serial": serial,
        }

    shown = with_installation(home, work)
    emit(shown, output)
    if output is Output.TABLE:
        say(_("The token is shown once. On the device:"))
        say(f"  ironroot-device up --url {shown['url']} --fleet {fleet} --serial {serial} --token-file FILE --state DIR")


@app.command("list", help=_("List requests that wait for approval, or were decided."), epilog=examples("ironroot device list --pending"))
def list_(
    home: Home = DEFAULT_HOME,
    pending: Annotated[bool, typer.Option("--pending", help=_("Only those that wait."))] = False,
    output: Format = Output.TABLE,
) -> None:
    from ca.model import Decision
    from ironroot import views

    async def work(here: Installation) -> list[dict[str, Any]]:
        return [views.application(found) for found in await here.store.applications(Decision.PENDING if pending else None)]

    emit(with_installation(home, work), output, ("fleet", "device", "decision", "method", "created", "spki_sha256"))


@app.command(help=_("Show a device's certificates."), epilog=examples("ironroot device show SN-0001"))
def show(device: Device, home: Home = DEFAULT_HOME, fleet: Fleet = None, output: Format = Output.TABLE) -> None:
    from ironroot import views
    from pkix.errors import NotFound

    async def work(here: Installation) -> list[dict[str, Any]]:
        records = await here.store.by_device(device, fleet)
        if not records:
            raise NotFound(f"Nothing was issued to a device {device!r}.")
        return [views.certificate(record, here.clock.now()) for record in records]

    emit(with_installation(home, work), output, ("serial", "status", "fleet", "not_before", "not_after", "method"))


Key = Annotated[str | None, typer.Option(help=_("The key that is meant, as the first digits of its SHA-256, where a device sent several."))]


@app.command(help=_("Approve what a device asked for."), epilog=examples("ironroot device approve SN-0001 --fleet ecc-devices"))
def approve(
    device: Device,
    home: Home = DEFAULT_HOME,
    fleet: Fleet = None,
    key: Key = None,
    dry_run: DryRun = False,
    output: Format = Output.TABLE,
) -> None:
    from ca.model import Decision

    _decide(device, fleet, key, Decision.APPROVED, home, True, dry_run, output)


@app.command(help=_("Deny what a device asked for."), epilog=examples("ironroot device deny SN-0001 --yes"))
def deny(
    device: Device,
    home: Home = DEFAULT_HOME,
    fleet: Fleet = None,
    key: Key = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    output: Format = Output.TABLE,
) -> None:
    from ca.model import Decision

    _decide(device, fleet, key, Decision.DENIED, home, yes, dry_run, output)


def _decide(
    device: str, fleet: str | None, key: str | None, decision: Decision, home: Any, yes: bool, dry_run: bool, output: Output
) -> None:
    from ca.model import Decision
    from ironroot import views
    from pkix.errors import Conflict, NotFound

    async def work(here: Installation) -> list[dict[str, Any]]:
        waiting = [
            found
            for found in await here.store.applications(Decision.PENDING)
            if found.device == device and fleet in (None, found.fleet) and found.spki_sha256.hex().startswith((key or "").lower())
        ]
        if not waiting:
            raise NotFound(f"No such request of a device {device!r} waits for approval.")
        for found in waiting:
            say(f"  {found.fleet}/{found.device}  key {found.spki_sha256.hex()[:16]}  {found.method}  {views.moment(found.created)}")
        if decision is Decision.APPROVED and len(waiting) > 1:
            # Two keys in the name of one device: one of them may be somebody else's. Ask the device which is its own.
            raise Conflict("Several requests wait. Say which key is the device's own: --key, and --fleet where they differ.")
        if dry_run:
            say(_("Dry run: nothing was done."))
            return [views.application(found) for found in waiting]
        if decision is Decision.DENIED:
            confirm(_("Deny it?"), yes)
        decided = await here.store.decide([found.id for found in waiting], decision, here.clock.now(), actor=username())
        return [views.application(found) for found in decided]

    emit(with_installation(home, work), output, ("fleet", "device", "decision", "decided"))
