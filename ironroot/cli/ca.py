"""``ironroot ca``: the authorities."""

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
    from ca.pkcs11_uri import Pkcs11Uri
    from ironroot.wire import Installation

app = sub_app(_("Authorities: list, show, export, rekey, migrate."))

_SOFTHSM = "'pkcs11:token=plant?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:plant.pin'"

Authority = Annotated[str, typer.Argument(metavar="ID", help=_("An authority, such as ecc-issuing."))]


@app.command("list", help=_("List the authorities."), epilog=examples("ironroot ca list -o json"))
def list_(home: Home = DEFAULT_HOME, output: Format = Output.TABLE) -> None:
    from ironroot import views

    async def work(here: Installation) -> list[dict[str, object]]:
        return [views.authority(authority) for authority in here.authorities.values()]

    emit(with_installation(home, work), output, ("id", "algorithm", "issuer", "not_after", "sha256"))


@app.command(help=_("Show one authority."), epilog=examples("ironroot ca show sm2-issuing"))
def show(authority: Authority, home: Home = DEFAULT_HOME, output: Format = Output.TABLE) -> None:
    from ironroot import views

    async def work(here: Installation) -> dict[str, object]:
        return views.authority(here.authority(authority))

    emit(with_installation(home, work), output)


@app.command(help=_("Write an authority's certificate, PEM, to stdout."), epilog=examples("ironroot ca export ecc-root > root.pem"))
def export(
    authority: Authority,
    home: Home = DEFAULT_HOME,
    chain: Annotated[bool, typer.Option("--chain", help=_("And those above it, up to the root."))] = False,
) -> None:
    from pkix import pem

    async def work(here: Installation) -> str:
        found = here.authority(authority)
        return "".join(pem.encode("CERTIFICATE", c.der) for c in (found.chain if chain else found.chain[:1]))

    typer.echo(with_installation(home, work), nl=False)


@app.command(
    help=_("Give an authority a new key on another token: a successor with a certificate of its own issues from then on."),
    epilog=examples(f"ironroot ca rekey ecc-issuing --onto {_SOFTHSM}"),
)
def rekey(
    authority: Authority,
    onto: Annotated[str, typer.Option(metavar="URI", help=_("The token, as a PKCS#11 URI (RFC 7512)."))],
    home: Home = DEFAULT_HOME,
    yes: Yes = False,
    dry_run: DryRun = False,
    output: Format = Output.TABLE,
) -> None:
    from ironroot import key_moves, views

    uri = _uri(onto)

    async def work(here: Installation) -> dict[str, Any]:
        plan = await key_moves.plan_rekey(here, authority, uri)
        say(f"  {plan.authority.id} → {plan.successor}  ({plan.profile}, {plan.authority.certificate.public_key.kind})  {plan.key}")
        if dry_run:
            say(_("Dry run: nothing was done."))
            return {"authority": plan.authority.id, "successor": plan.successor, "key": plan.key, "profile": plan.profile}
        confirm(_("Make this successor, and let it issue from now on?"), yes)
        return views.authority(await key_moves.rekey(here, plan, actor=username()))

    emit(with_installation(home, work), output)
    if not dry_run:
        say(_("It issues from now on. The old one still signs its CRLs and OCSP answers: keep its key until its last certificate ends."))


@app.command(
    help=_("Use an authority's key from another token that holds it, or move it there where both tokens allow that."),
    epilog=examples(f"ironroot ca migrate ecc-root --to {_SOFTHSM}"),
)
def migrate(
    authority: Authority,
    to: Annotated[str, typer.Option(metavar="URI", help=_("The token, as a PKCS#11 URI (RFC 7512)."))],
    home: Home = DEFAULT_HOME,
    yes: Yes = False,
    dry_run: DryRun = False,
    output: Format = Output.TABLE,
) -> None:
    from ironroot import key_moves, views

    uri = _uri(to)

    async def work(here: Installation) -> dict[str, Any]:
        plan = await key_moves.plan_migrate(here, authority, uri)
        say(f"  {plan.authority.id}: {plan.authority.key} → {plan.key}  ({_WAYS[plan.way]})")
        if dry_run:
            say(_("Dry run: nothing was done."))
            return {"authority": plan.authority.id, "key": plan.key, "way": plan.way}
        confirm(_("Use the key from there from now on?"), yes)
        return views.authority(await key_moves.migrate(here, plan, actor=username()))

    emit(with_installation(home, work), output)
    if not dry_run:
        say(_("The key is used from there now. Where it was it still is: destroy that copy with the token's own tools once you are sure."))


_WAYS = {"there": _("the same key is there already"), "wrapped": _("moves wrapped, from token to token")}


def _uri(text: str) -> Pkcs11Uri:
    from ca.pkcs11_uri import parse
    from ironroot.cli.common import fail
    from pkix.errors import Malformed

    try:
        return parse(text)
    except Malformed as error:
        fail(error)
