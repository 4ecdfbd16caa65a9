"""``ironroot cert``: list, show, revoke, hold, unhold.

A certificate is named by its serial (hex or decimal), a prefix of its SHA-256 (8 digits or more), a file with it, or its device's serial.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
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
    from ca.model import Reason, Record
    from ironroot.wire import Installation

app = sub_app(_("Certificates: list, show, revoke, hold, unhold."))

_COLUMNS = ("serial", "status", "fleet", "device", "not_after", "reason")
_REASONS = "unspecified keyCompromise cACompromise affiliationChanged superseded cessationOfOperation privilegeWithdrawn aACompromise"
_WAIT = 30.0  # seconds that --wait waits for OCSP

What = Annotated[list[str], typer.Argument(metavar="CERT...", help=_("Serial (hex, decimal), SHA-256 prefix, PEM file, or device serial."))]
Fleet = Annotated[str | None, typer.Option(help=_("Only of this fleet."))]
Wait = Annotated[bool, typer.Option("--wait", help=_("Return when OCSP shows it."))]


@app.command("list", help=_("List certificates."), epilog=examples("ironroot cert list --fleet ecc-devices", "ironroot cert list -o json"))
def list_(
    home: Home = DEFAULT_HOME,
    fleet: Fleet = None,
    authority: Annotated[str | None, typer.Option(help=_("Only of this authority."))] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help=_("At most so many."))] = 1000,
    after: Annotated[int, typer.Option(min=0, help=_("Skip the first N."))] = 0,
    output: Format = Output.TABLE,
) -> None:
    from ironroot import views

    async def work(here: Installation) -> list[dict[str, Any]]:
        records: list[Record] = []
        skip, last = after, 0
        while len(records) < limit:
            page = await here.store.page(after=last, limit=min(1000, limit + skip), fleet=fleet, authority=authority)
            if not page:
                break
            last = page[-1].id
            records += page[skip:]
            skip = max(0, skip - len(page))
        return [views.certificate(record, here.clock.now()) for record in records[:limit]]

    emit(with_installation(home, work), output, _COLUMNS)


@app.command(help=_("Show one certificate."), epilog=examples("ironroot cert show SN-0001", "ironroot cert show device.pem -o json"))
def show(
    what: Annotated[str, typer.Argument(metavar="CERT", help=_("Serial, SHA-256 prefix, PEM file, or device serial."))],
    home: Home = DEFAULT_HOME,
    fleet: Fleet = None,
    output: Format = Output.TABLE,
) -> None:
    from ironroot import select, views

    async def work(here: Installation) -> dict[str, Any]:
        record, others = await select.one(here.store, what, fleet)
        if others:
            say(_("This is the newest; others of that device:") + f" {others}")
        return views.certificate(record, here.clock.now(), full=True)

    emit(with_installation(home, work), output)


@app.command(
    help=_("Revoke certificates, for good. Reasons:") + f" {_REASONS}.",
    epilog=examples("ironroot cert revoke SN-0001 --reason keyCompromise --wait", "ironroot cert revoke 4fa3…09 7c11…2b --dry-run"),
)
def revoke(
    what: What,
    home: Home = DEFAULT_HOME,
    fleet: Fleet = None,
    reason: Annotated[str, typer.Option(help=_("Reason name of RFC 5280."))] = "unspecified",
    invalidity_date: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%SZ"], help=_("Since when the key may be in other hands (UTC)."))
    ] = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    wait: Wait = False,
    output: Format = Output.TABLE,
) -> None:
    if reason not in _REASONS.split():
        say(_("There is no such reason. There are:") + f" {_REASONS}; " + _("a hold is made by `cert hold`."))
        raise typer.Exit(2)
    moment = invalidity_date.replace(tzinfo=UTC) if invalidity_date else None
    _change(what, home, output, yes=yes, dry_run=dry_run, wait=wait, reason=reason, fleet=fleet, invalidity=moment)


@app.command(help=_("Suspend certificates; `cert unhold` lifts it."), epilog=examples("ironroot cert hold SN-0001 --wait"))
def hold(
    what: What,
    home: Home = DEFAULT_HOME,
    fleet: Fleet = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    wait: Wait = False,
    output: Format = Output.TABLE,
) -> None:
    _change(what, home, output, yes=yes, dry_run=dry_run, wait=wait, reason="certificateHold", fleet=fleet)


@app.command(help=_("Lift a hold."), epilog=examples("ironroot cert unhold SN-0001"))
def unhold(
    what: What,
    home: Home = DEFAULT_HOME,
    fleet: Fleet = None,
    yes: Yes = False,
    dry_run: DryRun = False,
    wait: Wait = False,
    output: Format = Output.TABLE,
) -> None:
    _change(what, home, output, yes=yes, dry_run=dry_run, wait=wait, reason=None, fleet=fleet)


def _change(
    what: Sequence[str],
    home: Any,
    output: Output,
    *,
    yes: bool,
    dry_run: bool,
    wait: bool,
    reason: str | None,
    fleet: str | None,
    invalidity: datetime | None = None,
) -> None:
    from ca.model import Reason
    from ironroot import views
    from pkix.errors import Conflict

    chosen = Reason[reason] if reason else None

    async def work(here: Installation) -> list[dict[str, Any]]:
        targets = await _targets(here, what, fleet, chosen)
        if chosen is None and (final := [r for r in targets if r.revocation and r.revocation.reason is not Reason.certificateHold]):
            raise Conflict(f"Certificate {views.serial(final[0].serial)} is revoked for good; only a hold can be lifted.")
        fresh = [record for record in targets if _would_change(record, chosen)]
        for record in targets:
            note = "" if record in fresh else "  (" + _("nothing to do") + ")"
            status = views.status(record, here.clock.now())
            say(f"  {views.serial(record.serial)}  {status:8}  {record.fleet}/{record.device}  {record.subject}{note}")
        if dry_run:
            say(_("Dry run: nothing was done."))
            return [views.certificate(record, here.clock.now()) for record in targets]
        if fresh:
            confirm(_question(chosen, len(fresh)), yes)
        # A device may renew while the question stands, or at this very moment: what came since is looked for until nothing does. Once its
        # certificates are revoked it cannot renew any more, so this ends.
        while fresh:
            ids = [record.id for record in fresh]
            if chosen is None:
                await here.store.unhold(ids, here.clock.now(), actor=username())
                break
            await here.store.revoke(ids, chosen, here.clock.now(), actor=username(), invalidity=invalidity)
            targets = list({record.id: record for record in (*targets, *await _targets(here, what, fleet, chosen))}.values())
            fresh = [record for record in await _now(here, targets) if _would_change(record, chosen)]
        if wait:
            from ironroot.ocsp_wait import until_shown

            await until_shown(here, targets, revoked=chosen is not None, seconds=_WAIT)
        return [views.certificate(record, here.clock.now()) for record in await _now(here, targets)]

    rows = with_installation(home, work)
    emit(rows, output, _COLUMNS)
    if not dry_run:
        say(_("OCSP says so from now on; the CRL follows within seconds while the service runs."))


async def _now(here: Installation, records: Sequence[Record]) -> list[Record]:
    """The records as the store has them now."""
    found = [await here.store.get(record.id) for record in records]
    return [record for record in found if record is not None]


async def _targets(here: Installation, what: Sequence[str], fleet: str | None, reason: Reason | None) -> list[Record]:
    """What the words name, once each. Of a device: all that are not over yet; a hold or its lifting leaves out what is revoked."""
    from ca.model import State
    from ironroot import select
    from pkix.errors import NotFound

    found: dict[int, Record] = {}
    for word in what:
        records = await select.certificates(here.store, word, fleet)
        if len(records) > 1:
            now = here.clock.now()
            records = [r for r in records if r.state is not State.ABANDONED and r.not_after >= now] or records
            if reason is None:
                records = [r for r in records if r.revocation is not None] or records
        found |= {record.id: record for record in records}
    if not found:
        raise NotFound("No certificate was named.")
    return list(found.values())


def _would_change(record: Record, reason: Reason | None) -> bool:
    from ca.model import Reason

    if reason is None:
        return record.revocation is not None
    return record.revocation is None or (record.revocation.reason is Reason.certificateHold and reason is not Reason.certificateHold)


def _question(reason: Reason | None, count: int) -> str:
    if reason is None:
        return _("Lift these holds?") + f" ({count})"
    return _("Revoke these certificates?") + f" ({count}, {reason.name})"
