"""``ironroot hsm``: the simulated HSM. Its nouns have modules of their own; what is at the top is in ``device``."""

from __future__ import annotations

from ironroot.cli.hsm import audit, device, fault, key, partition, quorum, spare

app = device.app
app.add_typer(audit.app, name="audit")
app.add_typer(fault.app, name="fault")
app.add_typer(partition.app, name="partition")
app.add_typer(partition.pin, name="pin")
app.add_typer(quorum.app, name="quorum")
for command in (key, spare):
    command.enter(app)

__all__ = ["app"]
