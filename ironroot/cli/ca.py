"""``ironroot ca``: the authorities."""

from __future__ import annotations

from typing import Annotated

import typer

from ironroot.cli.common import DEFAULT_HOME, Format, Home, Output, emit, examples, sub_app, with_installation
from ironroot.i18n import _

app = sub_app(_("Authorities: list, show, export."))

Authority = Annotated[str, typer.Argument(metavar="ID", help=_("An authority, such as ecc-issuing."))]


@app.command("list", help=_("List the authorities."), epilog=examples("ironroot ca list -o json"))
def list_(home: Home = DEFAULT_HOME, output: Format = Output.TABLE) -> None:
    from ironroot import views
    from ironroot.wire import Installation

    async def work(here: Installation) -> list[dict[str, object]]:
        return [views.authority(authority) for authority in here.authorities.values()]

    emit(with_installation(home, work), output, ("id", "algorithm", "issuer", "not_after", "sha256"))


@app.command(help=_("Show one authority."), epilog=examples("ironroot ca show sm2-issuing"))
def show(authority: Authority, home: Home = DEFAULT_HOME, output: Format = Output.TABLE) -> None:
    from ironroot import views
    from ironroot.wire import Installation

    async def work(here: Installation) -> dict[str, object]:
        return views.authority(here.authority(authority))

    emit(with_installation(home, work), output)


@app.command(help=_("Write an authority's certificate, PEM, to stdout."), epilog=examples("ironroot ca export ecc-root > root.pem"))
def export(
    authority: Authority,
    home: Home = DEFAULT_HOME,
    chain: Annotated[bool, typer.Option("--chain", help=_("And those above it, up to the root."))] = False,
) -> None:
    from ironroot.wire import Installation
    from pkix import pem

    async def work(here: Installation) -> str:
        found = here.authority(authority)
        return "".join(pem.encode("CERTIFICATE", c.der) for c in (found.chain if chain else found.chain[:1]))

    typer.echo(with_installation(home, work), nl=False)
