"""``ironroot verify``: the validate room as a command."""

from __future__ import annotations

import ipaddress
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import typer

from ironroot.cli.common import Output, emit, fail, run, say, with_settings
from ironroot.i18n import _
from ironroot.i18n import language as reader
from pkix import pem
from pkix.errors import IronrootError, Malformed, NotFound, NotValid

if TYPE_CHECKING:
    from pkix.certificate import Certificate
    from validate import Basis, Check, Policy, Result
    from validate.model import Language

_MAX_FILE = 1 << 20
_PEER = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9.-]+)):(\d{1,5})")
_SHORT = {"client": "tls-client", "server": "tls-server"}
_MARKS = {"ok": "ok", "failed": "FAIL", "skipped": "-", "unknown": "?"}
_COLOURS = {"ok": "green", "failed": "bold red", "skipped": "dim", "unknown": "yellow"}


@dataclass
class Presented:
    """What is judged: certificates in DER, the end entity first; staples; names and purpose that go without saying."""

    chain: list[bytes]
    staples: list[bytes] = field(default_factory=list)
    names: tuple[str, ...] = ()
    purpose: str = "any"


def verify(
    target: str,
    home: Path,
    *,
    chain: Path | None,
    staple: Path | None,
    purpose: str | None,
    names: Sequence[str],
    trust: Path | None,
    explain: bool,
    output: Output,
) -> None:
    """Validates a file or a live TLS server and ends the command with 0 (good) or 8 (not), the verdict on stdout."""
    from validate import Expected, Purpose, validate

    asked = _SHORT.get(purpose or "", purpose)
    if asked is not None and asked not in get_args(Purpose):
        say(_("The purpose is one of:") + " " + ", ".join(get_args(Purpose)))
        raise typer.Exit(2)
    try:
        presented = _presented(target)
        policy = _policy(trust, home)
        given = presented.chain + (_certificates(chain) if chain else [])
        staples = presented.staples + ([_read(staple)] if staple else [])
        expected = Expected(*(names or presented.names))
    except IronrootError as error:
        fail(error)

    async def work() -> Result:
        from ironroot.clock import SystemClock
        from validate.fetch import LOOPBACK, PLANT, HttpFetcher
        from validate.status import Revocation

        # Whoever types this command may connect to these addresses anyway.
        status = Revocation(HttpFetcher(networks=(*PLANT, *LOOPBACK)))
        try:
            return await validate(
                given,
                policy=policy,
                purpose=asked or presented.purpose,  # type: ignore[arg-type]
                expected=expected,
                now=SystemClock().now(),
                status=status,
                staples=staples,
            )
        finally:
            await status.close()

    result = run(work)
    if output is Output.JSON:
        emit(result.as_dict(), output)
    elif explain:
        _draw(_tree(result))
    else:
        typer.echo(result.sentence(_language()))
        for check in result.checks:
            if check.outcome in ("failed", "unknown"):
                typer.echo("  " + _line(check))
    raise typer.Exit(0 if result.good else NotValid.exit_code)


# --- what is judged ------------------------------------------------------------------------------------------------


def _presented(target: str) -> Presented:
    """A file, or a live server. Raises NotValid: the file holds no certificate; NotFound, Unavailable."""
    peer = _PEER.fullmatch(target)
    if peer is None or Path(target).exists():
        try:
            return Presented(_certificates(Path(target)))
        except Malformed as error:
            raise NotValid(f"{target}: {error}") from None
    from ironroot.validator.peer import show

    host, port = peer[1] or peer[2], int(peer[3])
    if not 0 < port < 65536:
        raise Malformed(f"{target}: there is no port {port}")
    shown = show(host, port)
    if not shown.sees_staples:
        say(_("Without pyOpenSSL the server's OCSP staple cannot be seen, nor SM2."))
    try:
        name = f"ip:{ipaddress.ip_address(host)}"
    except ValueError:
        name = f"dns:{host.lower()}"
    return Presented(shown.chain, shown.staples, (name,), "tls-server")


def _certificates(file: Path) -> list[bytes]:
    return pem.certificates(_read(file))


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(_MAX_FILE)
    except OSError as error:
        raise NotFound(f"{file}: {error.strerror}") from None


# --- what is trusted -----------------------------------------------------------------------------------------------


def _policy(file: Path | None, home: Path) -> Policy:
    """What is trusted: the anchors in the file, what the validator in ``home`` trusts, or the authorities of the installation there."""
    from validate import Policy, anchors

    if file is not None:
        return Policy(anchors=anchors(*_certificates(file)))
    if (home / "validator.toml").exists() and not (home / "ironroot.toml").exists():
        from ironroot.clock import SystemClock
        from ironroot.validator.follow import followed
        from ironroot.validator.settings import ValidatorSettings
        from ironroot.validator.trust import policy, trusted

        settings = ValidatorSettings.load(home)
        return policy(settings, trusted(settings, followed(settings.lists), SystemClock().now()))
    roots, others = _own(home)
    return Policy(anchors=anchors(*roots), intermediates=tuple(others))


def _own(home: Path) -> tuple[list[Certificate], list[Certificate]]:
    """The roots of this installation, and its other authorities, from its database."""
    from ca.store_sql import SqlStore

    settings = with_settings(home)

    async def work() -> tuple[list[Certificate], list[Certificate]]:
        store = await SqlStore.open(settings.database_url, lock_file=settings.database_lock)
        try:
            authorities = (await store.authorities()).values()
            return [a.certificate for a in authorities if a.is_root], [a.certificate for a in authorities if not a.is_root]
        finally:
            await store.close()

    return run(work)


# --- why -----------------------------------------------------------------------------------------------------------


@dataclass
class Node:
    """One line of the reasoning, and what stands below it."""

    text: str
    style: str = ""
    below: list[Node] = field(default_factory=list)


def _tree(result: Result) -> Node:
    """The verdict; below it the path as a whole, then each certificate with what was looked at and what its status rests on."""
    from validate.text import title

    root = Node(result.sentence(_language()), "bold green" if result.good else "bold red")
    whole = [check for check in result.checks if check.index is None]
    if whole:
        root.below.append(Node(_("the path as a whole"), "bold", [_leaf(check) for check in whole]))
    for at, certificate in enumerate(result.path):
        last = at == len(result.path) - 1
        node = Node(title(certificate) + (f"  ({_('trust anchor')})" if last else ""), "bold")
        node.below.append(Node(f"{_('serial')} {certificate.serial:x}  SHA-256 {certificate.sha256.hex()}", "dim"))
        node.below.append(Node(f"{certificate.not_before:%Y-%m-%d %H:%M:%SZ} – {certificate.not_after:%Y-%m-%d %H:%M:%SZ}", "dim"))
        node.below += [_leaf(check) for check in result.checks if check.index == at]
        if at < len(result.basis):
            node.below += _status(result.basis[at])
        root.below.append(node)
    return root


def _status(basis: Basis) -> list[Node]:
    facts = [(_("produced"), basis.produced_at), (_("until"), basis.until), (_("revoked at"), basis.revoked_at)]
    said = [f"{word} {at:%Y-%m-%d %H:%M:%SZ}" for word, at in facts if at is not None]
    said += [basis.reason] if basis.reason else []
    where = f"{basis.source} {basis.url}".strip()
    return [Node(f"{_('status')}: {basis.standing} ({where})" + "".join(f"; {part}" for part in said), "dim")]


def _language() -> Language:
    return "zh" if reader() == "zh" else "en"


def _leaf(check: Check) -> Node:
    return Node(_line(check), _COLOURS[check.outcome])


def _line(check: Check) -> str:
    return f"{_MARKS[check.outcome]:4}  {check.detail.zh if _language() == 'zh' else check.detail.en}  ({check.clause})"


def _draw(node: Node) -> None:
    """A tree on a terminal; else the same, indented."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.text import Text
        from rich.tree import Tree

        def grown(branch: Node) -> Tree:
            tree = Tree(Text(branch.text, style=branch.style))
            for inner in branch.below:
                tree.add(grown(inner))
            return tree

        Console().print(grown(node))
        return

    def indented(branch: Node, depth: int) -> None:
        typer.echo("  " * depth + branch.text)
        for inner in branch.below:
            indented(inner, depth + 1)

    indented(node, 0)
