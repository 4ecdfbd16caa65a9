"""``ironroot hsm quorum``: approvals for what one person alone must not do."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ironroot.cli.common import DEFAULT_HOME, Format, Home, Output, emit, examples, fail, sub_app
from ironroot.cli.hsm.link import Partition, PinFile, logged_in, read_octets
from ironroot.i18n import _
from pkix.errors import IronrootError

app = sub_app(_("Approvals: approvers, policy, requests. What is marked takes M of N of them."))

Name = Annotated[str, typer.Argument(help=_("The approver's name."))]
_APPROVERS = ("name", "kind", "sha256", "added")


class Operation(StrEnum):
    """What can take approvals."""

    DESTROY = "destroy"
    EXPORT = "export"
    RECOVER = "recover"
    BACKUP = "backup"


@app.command(help=_("List the approvers."), epilog=examples("ironroot hsm quorum approvers"))
def approvers(home: Home = DEFAULT_HOME, partition: Partition = "", pin_file: PinFile = None, output: Format = Output.TABLE) -> None:
    with logged_in(home, "so", partition, pin_file) as hsm:
        emit([_approver(found) for found in hsm.call("approvers")], output, _APPROVERS)


@app.command(help=_("Register an approver's public key."), epilog=examples("ironroot hsm quorum add li-wei li-wei.pub.pem"))
def add(
    name: Name,
    file: Annotated[Path, typer.Argument(dir_okay=False, help=_("The public key, PEM: P-256, Ed25519 or SM2."))],
    home: Home = DEFAULT_HOME,
    partition: Partition = "",
    pin_file: PinFile = None,
    output: Format = Output.TABLE,
) -> None:
    from pkix import pem

    with logged_in(home, "so", partition, pin_file) as hsm:
        spki = pem.decode(read_octets(file, "the public key"), "PUBLIC KEY")[0][1]
        emit([_approver(found) for found in hsm.call("approvers", add=name, public_key=spki)], output, _APPROVERS)


@app.command(help=_("Remove an approver."), epilog=examples("ironroot hsm quorum remove li-wei"))
def remove(
    name: Name, home: Home = DEFAULT_HOME, partition: Partition = "", pin_file: PinFile = None, output: Format = Output.TABLE
) -> None:
    with logged_in(home, "so", partition, pin_file) as hsm:
        emit([_approver(found) for found in hsm.call("approvers", remove=name)], output, _APPROVERS)


@app.command(
    help=_("Show a partition's policy, or set it: how many approvals, and for which operations on every key."),
    epilog=examples("ironroot hsm quorum policy", "ironroot hsm quorum policy --needed 2 --operation backup --operation destroy"),
)
def policy(
    home: Home = DEFAULT_HOME,
    needed: Annotated[int | None, typer.Option(min=1, max=32, help=_("How many approvals."))] = None,
    operation: Annotated[list[Operation] | None, typer.Option(help=_("An operation; may be repeated."))] = None,
    partition: Partition = "",
    pin_file: PinFile = None,
    output: Format = Output.TABLE,
) -> None:
    wanted: dict[str, Any] = {} if needed is None else {"needed": needed}
    wanted |= {"operations": [each.value for each in operation]} if operation else {}
    with logged_in(home, "so", partition, pin_file) as hsm:
        emit(hsm.call("quorum", **wanted), output)


@app.command(
    help=_("Ask for a request that approvers sign; octets on stdout. It is good for ten minutes and one use."),
    epilog=examples("ironroot hsm quorum request destroy root --requester wang > request.bin"),
)
def request(
    operation: Annotated[Operation, typer.Argument(help=_("The operation that is to be approved."))],
    key: Annotated[str, typer.Argument(help=_("The key's label; none for a backup."))] = "",
    home: Home = DEFAULT_HOME,
    requester: Annotated[str, typer.Option(help=_("Who asks: he does not count as an approver."))] = "",
    wrapping: Annotated[str, typer.Option(help=_("For export: label of the wrapping key."))] = "",
    mechanism: Annotated[str, typer.Option(help=_("For export: the mechanism."))] = "CKM_AES_KEY_WRAP_KWP",
    shares: Annotated[str, typer.Option(help=_("For backup: M/N, as the backup will have it."))] = "",
    partition: Partition = "",
    pin_file: PinFile = None,
) -> None:
    from ironroot.cli.hsm.spare import m_of_n

    if operation is Operation.RECOVER:
        raise typer.BadParameter(_("Approvals to recover a key are asked for by the program that brings it in (docs/hsm-trust.md)."))
    asked: dict[str, Any] = {"for": operation.value, "requester": requester, **({"key": key} if key else {})}
    if operation is Operation.EXPORT:
        asked |= {"wrapping": wrapping, "mechanism": mechanism}
    if shares:
        asked |= dict(zip(("needed", "total"), m_of_n(shares), strict=True))
    with logged_in(home, "so" if operation is Operation.BACKUP else "officer", partition, pin_file) as hsm:
        octets = hsm.call("challenge", **asked)
    _binary(octets)


@app.command(help=_("Show what a request is for."), epilog=examples("ironroot hsm quorum show request.bin"))
def show(file: Annotated[Path, typer.Argument(dir_okay=False, help=_("The request."))], output: Format = Output.TABLE) -> None:
    from dataclasses import asdict

    from hsm_sim.quorum import read_request

    try:
        found = asdict(read_request(read_octets(file, "the request")))
    except IronrootError as error:
        fail(error)
    emit({name: value.hex() if isinstance(value, bytes) else value for name, value in found.items()}, output)


@app.command(
    help=_("Approve a request with an approver's private key, anywhere: the HSM is not needed. Octets on stdout."),
    epilog=examples("ironroot hsm quorum approve request.bin --key li-wei.pem > li-wei.approval"),
)
def approve(
    file: Annotated[Path, typer.Argument(dir_okay=False, help=_("The request."))],
    key: Annotated[Path, typer.Option(dir_okay=False, help=_("The approver's private key, PEM."))],
) -> None:
    from hsm_sim.quorum import approve as sign
    from hsm_sim.quorum import read_request
    from ironroot.cli.common import say
    from pkix.privatekey import load_private_key

    try:
        octets = read_octets(file, "the request")
        asked = read_request(octets)
        approval = sign(load_private_key(read_octets(key, "the private key")), octets)
    except IronrootError as error:
        fail(error)
    say(_("Approved:") + f" {asked.op} {asked.label or asked.partition} ({asked.about or '-'}), {asked.requester or '-'}, {asked.expires}")
    _binary(approval)


def _approver(found: dict[str, Any]) -> dict[str, Any]:
    from pkix.algorithms import load_public_key

    key = load_public_key(found["public_key"])
    return {"name": found["name"], "kind": str(key.kind), "sha256": key.sha256.hex(), "added": found["added"]}


def _binary(octets: bytes) -> None:
    sys.stdout.buffer.write(octets)
    sys.stdout.buffer.flush()
