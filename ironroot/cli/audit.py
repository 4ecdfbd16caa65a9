"""``ironroot audit``: verify, tail, checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ironroot.cli.common import DEFAULT_HOME, Format, Home, Output, emit, examples, say, sub_app, with_installation
from ironroot.i18n import _

if TYPE_CHECKING:
    from ironroot.wire import Installation

app = sub_app(_("The audit log: verify, tail, checkpoint."))


@app.command(
    help=_("Check the whole chain and its signed checkpoints; name the first bad entry."), epilog=examples("ironroot audit verify")
)
def verify(home: Home = DEFAULT_HOME, output: Format = Output.TABLE) -> None:
    from ca.audit import Chain
    from pkix.errors import NotValid

    async def work(here: Installation) -> dict[str, Any]:
        keys = {authority.id: authority.certificate.public_key for authority in here.authorities.values()}
        # Checkpoints first: one that is signed while we read covers entries that we have not seen.
        checkpoints = await here.store.checkpoints()
        chain = Chain(checkpoints, keys)
        flaw = None
        async for entry in here.store.audit_entries():
            if (flaw := chain.feed(entry)) is not None:
                break
        if (flaw := flaw or chain.finish()) is not None:
            raise NotValid(flaw.text)
        return {"entries": chain.length, "checkpoints": len(checkpoints)}

    emit(with_installation(home, work), output)
    say(_("The chain is whole."))


@app.command(help=_("Show the newest entries."), epilog=examples("ironroot audit tail -n 20"))
def tail(
    home: Home = DEFAULT_HOME,
    number: Annotated[int, typer.Option("--number", "-n", min=1, max=100_000, help=_("So many."))] = 20,
    output: Format = Output.TABLE,
) -> None:
    from ironroot import views

    async def work(here: Installation) -> list[dict[str, Any]]:
        head = await here.store.audit_head()
        after = max(0, head.seq - number) if head else 0
        return [
            {"seq": e.seq, "at": views.moment(e.at), "actor": e.actor, "action": e.action, "subject": e.subject}
            | {"detail": dict(e.detail), "digest": e.digest.hex()}
            async for e in here.store.audit_entries(after)
        ]

    emit(with_installation(home, work), output, ("seq", "at", "actor", "action", "subject"))


@app.command(help=_("Sign the head of the chain with a root key now."), epilog=examples("ironroot audit checkpoint"))
def checkpoint(home: Home = DEFAULT_HOME) -> None:
    from ironroot.scheduler import sign_checkpoint

    say(_("Signed up to entry") + f" {with_installation(home, sign_checkpoint)}.")
