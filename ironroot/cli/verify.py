"""``ironroot verify``: the validate room as a command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from ironroot.cli.common import Output, emit, fail, run, say, with_settings
from ironroot.i18n import _, language
from pkix import pem
from pkix.errors import IronrootError, Malformed, NotFound, NotValid

_MAX_FILE = 1 << 20


def verify_file(file: Path, home: Path, chain: Path | None, purpose: str, trust: Path | None, output: Output) -> None:
    """Validates ``file`` and ends the command with 0 (good) or 8 (not), the verdict on stdout."""
    if purpose not in ("client", "server", "any"):
        say(_("The purpose is client, server or any."))
        raise typer.Exit(2)
    try:
        leaf, *rest = _presented(file)
        extra = rest + (_certificates(chain) if chain else [])
        if trust:
            anchors = _certificates(trust)
        else:
            anchors, ours = _own(home)
            extra += ours
    except IronrootError as error:
        fail(error)

    async def work() -> Any:
        from ironroot.clock import SystemClock
        from validate import Policy, validate
        from validate.fetch import HttpFetcher

        fetch = HttpFetcher()
        try:
            policy = Policy(purpose=purpose)  # type: ignore[arg-type]
            return await validate(leaf, chain=extra, trust=anchors, policy=policy, now=SystemClock().now(), fetch=fetch)
        finally:
            await fetch.close()

    result = run(work)
    if output is Output.JSON:
        emit(result.as_dict(), output)
    else:
        typer.echo(result.text(language()))
        for check in result.checks:
            mark = {"pass": "ok", "fail": "FAIL", "skipped": "-"}[check.outcome]
            typer.echo(f"  {mark:4}  {check.message.zh if language() == 'zh' else check.text}  ({check.clause})")
    raise typer.Exit(0 if result.good else 8)


def _presented(file: Path) -> list[bytes]:
    try:
        return _certificates(file)
    except Malformed as error:
        raise NotValid(f"{file}: {error}") from None


def _certificates(file: Path) -> list[bytes]:
    try:
        with file.open("rb") as stream:
            raw = stream.read(_MAX_FILE)
    except OSError as error:
        raise NotFound(f"{file}: {error.strerror}") from None
    return pem.certificates(raw)


def _own(home: Path) -> tuple[list[bytes], list[bytes]]:
    """The roots of this installation, and its other authorities, from its database."""
    from ca.store_sql import SqlStore

    settings = with_settings(home)

    async def work() -> tuple[list[bytes], list[bytes]]:
        store = await SqlStore.open(settings.database_url, lock_file=settings.database_lock)
        try:
            authorities = (await store.authorities()).values()
            return [a.certificate.der for a in authorities if a.is_root], [a.certificate.der for a in authorities if not a.is_root]
        finally:
            await store.close()

    return run(work)
