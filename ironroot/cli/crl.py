"""``ironroot crl``: publish, show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ironroot.cli.common import DEFAULT_HOME, Format, Home, Output, emit, examples, sub_app, with_installation
from ironroot.i18n import _

if TYPE_CHECKING:
    from ironroot.wire import Installation

app = sub_app(_("Certificate revocation lists: publish, show."))

Authority = Annotated[str, typer.Argument(metavar="ID", help=_("An authority, such as ecc-issuing."))]


@app.command(help=_("Make and publish a new CRL now."), epilog=examples("ironroot crl publish ecc-issuing"))
def publish(authority: Authority, home: Home = DEFAULT_HOME, output: Format = Output.TABLE) -> None:
    from ironroot import views

    async def work(here: Installation) -> dict[str, Any]:
        from ca.crl import publish as make

        found = here.authority(authority)
        return views.crl(await make(found, here.settings.crl_lifetime, store=here.store, signer=here.signer, now=here.clock.now()))

    emit(with_installation(home, work), output)


@app.command(help=_("Show the newest CRL."), epilog=examples("ironroot crl show sm2-issuing -o json"))
def show(authority: Authority, home: Home = DEFAULT_HOME, output: Format = Output.TABLE) -> None:
    from ironroot import views
    from pkix.errors import NotFound

    async def work(here: Installation) -> dict[str, Any]:
        found = here.authority(authority)
        latest = await here.store.latest_crl(found.id)
        if latest is None:
            raise NotFound(f"{found.id} has not published a CRL yet: ironroot crl publish {found.id}")
        return views.crl(latest)

    emit(with_installation(home, work), output)
