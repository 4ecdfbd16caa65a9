"""``ironroot hsm``: keys, generate, destroy, attest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ironroot.cli.common import DEFAULT_HOME, Format, Home, Output, Yes, confirm, emit, examples, fail
from ironroot.cli.hsm.link import Partition, PinFile, logged_in, read_octets
from ironroot.i18n import _
from pkix.errors import IronrootError

Label = Annotated[str, typer.Argument(help=_("The key's label."))]
Approvals = Annotated[
    list[Path] | None, typer.Option("--approval", dir_okay=False, help=_("An approver's file; may be repeated (docs/hsm-trust.md)."))
]
_COLUMNS = ("label", "kind", "origin", "created", "extractable", "quorum")


def enter(app: typer.Typer) -> None:
    """Puts the commands into ``app``."""
    app.command(help=_("List the keys."), epilog=examples("ironroot hsm keys --home ./plant"))(keys)
    app.command(
        help=_("Make a key that stays in the HSM."),
        epilog=examples("ironroot hsm generate code-signing --kind p-256", "ironroot hsm generate root --kind sm2 --quorum destroy"),
    )(generate)
    app.command(
        help=_("Destroy a key for good."),
        epilog=examples("ironroot hsm destroy old --yes", "ironroot hsm destroy root --approval a.bin --approval b.bin"),
    )(destroy)
    app.command(
        help=_("Have the HSM certify what it knows of a key: a certificate chain, PEM, on stdout. Or check such a chain."),
        epilog=examples(
            "ironroot hsm attest ecc-root > attestation.pem", "ironroot hsm attest --verify attestation.pem --trust manufacturer.pem"
        ),
    )(attest)


def keys(home: Home = DEFAULT_HOME, partition: Partition = "", pin_file: PinFile = None, output: Format = Output.TABLE) -> None:
    with logged_in(home, "officer", partition, pin_file) as hsm:
        emit([_shown(key) for key in hsm.call("keys")], output, _COLUMNS)


def generate(
    label: Label,
    kind: Annotated[str, typer.Option(help="p-256 | p-384 | ed25519 | sm2 | rsa-2048 | rsa-3072 | rsa-4096 | aes-256 | …")],
    home: Home = DEFAULT_HOME,
    extractable: Annotated[bool, typer.Option("--extractable", help=_("It may leave, wrapped under another key."))] = False,
    usage_limit: Annotated[int | None, typer.Option(min=1, help=_("How often it may be used."))] = None,
    quorum: Annotated[list[str] | None, typer.Option(help=_("An operation that takes approvals: export, destroy or recover."))] = None,
    partition: Partition = "",
    pin_file: PinFile = None,
    output: Format = Output.TABLE,
) -> None:
    wanted: dict[str, Any] = {"extractable": True} if extractable else {}
    wanted |= ({"usage_limit": usage_limit} if usage_limit else {}) | ({"quorum": quorum} if quorum else {})
    with logged_in(home, "officer", partition, pin_file) as hsm:
        emit(_shown(hsm.call("generate", key=label, kind=kind, attributes=wanted)), output)


def destroy(
    label: Label,
    home: Home = DEFAULT_HOME,
    approval: Approvals = None,
    yes: Yes = False,
    partition: Partition = "",
    pin_file: PinFile = None,
) -> None:
    with logged_in(home, "officer", partition, pin_file) as hsm:
        found = hsm.call("attributes", key=label)
        confirm(_("Destroy this key for good?") + f" {label} ({found['kind']})", yes)
        hsm.call("destroy", key=label, approvals=[read_octets(file, "an approval") for file in approval or ()])


def attest(
    label: Annotated[str, typer.Argument(help=_("The key's label."))] = "",
    home: Home = DEFAULT_HOME,
    verify: Annotated[Path | None, typer.Option(dir_okay=False, help=_("A chain to check, instead of making one."))] = None,
    trust: Annotated[Path | None, typer.Option(dir_okay=False, help=_("The manufacturer's certificate; else that of this HSM."))] = None,
    partition: Partition = "",
    pin_file: PinFile = None,
    output: Format = Output.TABLE,
) -> None:
    from pkix import pem

    if verify is not None:
        emit(_attested(home, verify, trust), output)
        return
    if not label:
        raise typer.BadParameter(_("Say which key, or --verify FILE."))
    with logged_in(home, "officer", partition, pin_file) as hsm:
        chain = hsm.call("attest", key=label)
    typer.echo("".join(pem.encode("CERTIFICATE", der) for der in chain), nl=False)


def _attested(home: Path, file: Path, trust: Path | None) -> dict[str, Any]:
    """What an attestation says, after its signatures were checked. Ends the command (8) where they are wrong."""
    from ironroot.cli.hsm.link import hsm_home
    from pkix import pem
    from pkix.attestation import verify_attestation
    from pkix.certificate import parse_certificate

    try:
        chain = pem.certificates(read_octets(file, "the attestation"))
        anchor = pem.certificates(read_octets(trust or hsm_home(home) / "manufacturer.pem", "the manufacturer's certificate"))[0]
        key = parse_certificate(chain[0]).public_key
        found = verify_attestation(chain, anchor, key.spki)
    except IronrootError as error:
        fail(error)
    return {
        "label": found.label,
        "kind": str(key.kind),
        "made_here": found.made_here,
        "origin": found.origin,
        "protection": sorted(found.protection),
        "capabilities": sorted(found.capabilities),
        "partition": found.partition,
        "device": found.serial,
        "history": list(found.history),
        "public_key_sha256": key.sha256.hex(),
    }


def _shown(key: dict[str, Any]) -> dict[str, Any]:
    """A key's attributes as JSON has them: octets in hex, the public key as PEM."""
    from pkix import pem

    shown = {name: value.hex() if isinstance(value, bytes) else value for name, value in key.items()}
    if key.get("public_key"):
        shown["public_key"] = pem.encode("PUBLIC KEY", key["public_key"])
    return shown
