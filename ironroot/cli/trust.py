"""``ironroot trust``: publish, follow, unfollow, show."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ironroot.cli.common import (
    DEFAULT_HOME,
    Format,
    Home,
    Output,
    emit,
    examples,
    fail,
    run,
    say,
    sub_app,
    username,
    with_installation,
)
from ironroot.i18n import _

if TYPE_CHECKING:
    from ironroot.wire import Installation
    from validate.trustlist import Received

app = sub_app(_("Trust lists: publish ours, follow those of others."))

Permit = Annotated[
    list[str] | None,
    typer.Option(help=_("Names that certificates may carry: dns:HOST, ip:NETWORK/LENGTH, uri:HOST, dirname:O=NAME.")),
]
Exclude = Annotated[list[str] | None, typer.Option(help=_("Names that they may not carry."))]
Purposes = Annotated[list[str] | None, typer.Option("--purpose", help=_("What they may be used for: tls-client, tls-server, code …"))]
Families = Annotated[list[str] | None, typer.Option("--family", help=_("Algorithm families that are taken: ecc, sm2, pq."))]
PathLength = Annotated[int | None, typer.Option(min=0, help=_("CAs below an anchor at most."))]


@app.command(
    help=_("Sign and publish a new version of our trust list; followers fetch it from /trust/list.p7m."),
    epilog=examples("ironroot trust publish --days 30", "ironroot trust publish --permit dns:plant-a.example --purpose tls-client"),
)
def publish(
    home: Home = DEFAULT_HOME,
    days: Annotated[int, typer.Option(min=1, max=3650, help=_("How long it is good for."))] = 30,
    name: Annotated[str | None, typer.Option(help=_("Name of the list, the first time."))] = None,
    algorithm: Annotated[str, typer.Option(help=_("Algorithm of a new signing key: p-256, sm2."))] = "p-256",
    rollover: Annotated[bool, typer.Option("--rollover", help=_("Change the signing key; the old one introduces the new one."))] = False,
    permit: Permit = None,
    exclude: Exclude = None,
    purpose: Purposes = None,
    family: Families = None,
    path_length: PathLength = None,
    unlimited: Annotated[bool, typer.Option("--unlimited", help=_("Lift limits of the version before."))] = False,
    version: Annotated[int | None, typer.Option(min=1, help=_("At least this version: to go on after the list was lost."))] = None,
    output: Format = Output.TABLE,
) -> None:
    from pkix.algorithms import KeyKind

    if algorithm not in ("p-256", "sm2"):
        say(_("The algorithm is p-256 or sm2."))
        raise typer.Exit(2)
    given = any(value is not None for value in (permit, exclude, purpose, family, path_length))

    async def work(here: Installation) -> dict[str, Any]:
        from ironroot.validator.follow import terms
        from ironroot.validator.publish import publish as make
        from validate.trust_limits import Limits

        limits = Limits() if unlimited else None
        if given:
            limits = terms(url="http://x", pin="0" * 64, **_limits(permit, exclude, purpose, family, path_length)).limits
        made = await make(
            here,
            actor=username(),
            days=days,
            name=name,
            kind=KeyKind(algorithm),
            rollover=rollover,
            limits=limits,
            version=version,
        )
        return _received(made) | {"url": f"{here.settings.http_url}/trust/list.p7m"}

    shown = with_installation(home, work)
    emit(shown, output)
    say(_("To follow it:") + f" ironroot trust follow {shown['url']} --pin {shown['pin']}")


@app.command(
    help=_("Follow a trust list: what it trusts is trusted by the validator in this folder, under your limits."),
    epilog=examples(
        "ironroot trust follow http://pki.plant.example/trust/list.p7m --pin 6f1c…90 --name plant-a --home /var/lib/ironroot-validator",
        "ironroot trust follow http://pki.plant-b.example/trust/list.p7m --pin 04be…77 --name plant-b --permit dns:plant-b.example",
    ),
)
def follow(
    url: Annotated[str, typer.Argument(metavar="URL")],
    pin: Annotated[str, typer.Option(help=_("SHA-256 of the public key that signs it, as its publisher tells you."))],
    home: Home = DEFAULT_HOME,
    name: Annotated[str | None, typer.Option(help=_("What it is called here; else as it calls itself."))] = None,
    permit: Permit = None,
    exclude: Exclude = None,
    purpose: Purposes = None,
    family: Families = None,
    path_length: PathLength = None,
    output: Format = Output.TABLE,
) -> None:
    async def work() -> dict[str, Any]:
        from ironroot.clock import SystemClock
        from ironroot.validator import follow as following
        from ironroot.validator.settings import initialise

        settings = initialise(home)
        on = following.terms(url=url, pin=pin.lower().replace(":", ""), **_limits(permit, exclude, purpose, family, path_length))
        found = await following.follow(settings.lists, name, on, now=SystemClock().now())
        return _followed(found)

    emit(run(work), output)
    say(_("A validator that runs here takes it up within a minute."))


@app.command(help=_("End following a trust list; what it trusts is trusted no more."), epilog=examples("ironroot trust unfollow plant-b"))
def unfollow(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    home: Home = DEFAULT_HOME,
) -> None:
    from ironroot.validator.follow import unfollow as end
    from ironroot.validator.settings import ValidatorSettings
    from pkix.errors import IronrootError

    try:
        end(ValidatorSettings.load(home).lists, name)
    except IronrootError as error:
        fail(error)


@app.command(
    help=_("Show the list that is published here and those that are followed, or what is in a file."),
    epilog=examples("ironroot trust show", "ironroot trust show list.p7m -o json"),
)
def show(
    file: Annotated[Path | None, typer.Argument(metavar="FILE", dir_okay=False, help=_("A signed trust list."))] = None,
    home: Home = DEFAULT_HOME,
    output: Format = Output.TABLE,
) -> None:
    from ironroot.validator.follow import followed
    from pkix.errors import IronrootError, NotFound
    from validate.trustlist import MAX_LIST, read

    try:
        if file is not None:
            try:
                with file.open("rb") as stream:
                    emit(_received(read(stream.read(MAX_LIST + 1)), full=True), output)
            except OSError as error:
                raise NotFound(f"{file}: {error.strerror}") from None
            return
        rows = []
        ours = home / "trust" / "list.p7m"
        if ours.exists():
            rows.append({"name": _("(published here)"), "url": "", "problem": ""} | _received(read(ours.read_bytes())))
        rows += [_followed(one) for one in followed(home / "lists")]
    except IronrootError as error:
        fail(error)
    emit(rows, output, ("name", "list", "version", "expires", "anchors", "url"))


def _limits(
    permit: list[str] | None, exclude: list[str] | None, purpose: list[str] | None, family: list[str] | None, path_length: int | None
) -> dict[str, Any]:
    found = {"permitted": permit, "excluded": exclude, "purposes": purpose, "families": family, "path_length": path_length}
    return {name: value for name, value in found.items() if value is not None}


def _followed(one: Any) -> dict[str, Any]:
    held = {"list": None, "version": None, "expires": None, "anchors": None} if one.held is None else _received(one.held)
    limits = one.terms.model_dump(mode="json", exclude_defaults=True, exclude={"url", "pin"})
    return {"name": one.name, "url": one.terms.url} | held | ({"limits": limits} if limits else {})


def _received(received: Received, *, full: bool = False) -> dict[str, Any]:
    from ironroot.views import moment

    found = received.list
    shown: dict[str, Any] = {
        "list": found.name,
        "version": found.version,
        "issued": moment(found.issued),
        "expires": moment(found.expires),
        "pin": received.signer.hex(),
        "anchors": [anchor.certificate.subject.text for anchor in found.anchors],
        "intermediates": [certificate.subject.text for certificate in found.intermediates],
    }
    if full:
        shown["ocsp"] = sorted({url for source in found.status for url in source.ocsp})
        shown["crl"] = sorted({url for source in found.status for url in source.crl})
        shown["introductions"] = len(found.introductions)
    return shown
