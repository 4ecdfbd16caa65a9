"""CRLs as files, for programs that know no better: mosquitto's ``crlfile``, nginx's ``ssl_crl``.

    report = await sync(settings, trust, folder, fetch, now)     # `ironroot validator sync --to DIR`

    DIR/ca.pem     every CA certificate that is trusted, or helps to find a path
    DIR/crl.pem    the newest CRL of each of them that can be had

A CRL is written only if its authority signed it, and never an older one than what is there. Where a newer one cannot be had the old one
stays: the program refuses everybody once it is over, which is the right way to fail.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from ironroot.files import write_atomically
from ironroot.validator.settings import ValidatorSettings
from ironroot.validator.trust import Trust
from pkix import pem
from pkix.certificate import Certificate, verify_signed
from pkix.crl import PLAIN, CrlHead, read_head
from pkix.errors import IronrootError, Malformed, NotFound, Unavailable
from validate.fetched import Fetch

_SKEW = timedelta(minutes=5)


@dataclass
class Report:
    """What came of it: whether a file was changed, the CRLs that are there now, and what went wrong."""

    changed: bool = False
    lists: dict[str, datetime | None] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


async def sync(settings: ValidatorSettings, trust: Trust, folder: Path, fetch: Fetch, now: datetime) -> Report:
    """Brings the files of ``folder`` up to date. Raises Unavailable: they cannot be written."""
    report = Report()
    authorities = trust.authorities
    newest = _held(folder / "crl.pem", authorities)
    urls = [url for source in trust.sources for url in source.crl[:1]] + list(settings.status.crls)
    urls += [url for authority in authorities for url in authority.crl_urls[:1]]
    fetched = await asyncio.gather(*(_fetched(fetch, url) for url in dict.fromkeys(urls)))
    for url, answer in zip(dict.fromkeys(urls), fetched, strict=True):
        try:
            if isinstance(answer, IronrootError):
                raise answer
            key, head = _authentic(answer, authorities)
        except IronrootError as error:
            report.problems.append(f"{url}: {error}")
            continue
        if head.this_update > now + _SKEW:
            report.problems.append(f"{url}: it is from the future, {head.this_update:%F %TZ}")
        elif key not in newest or newest[key][1].this_update <= head.this_update:
            newest[key] = answer, head
    for _, head in newest.values():
        report.lists[head.issuer.text] = head.next_update
        if head.next_update is not None and head.next_update < now:
            report.problems.append(f"the CRL of {head.issuer.text} was good until {head.next_update:%F %TZ}, and no newer one can be had")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        report.changed |= _write(folder / "ca.pem", "CERTIFICATE", [authority.der for authority in authorities])
        report.changed |= _write(folder / "crl.pem", "X509 CRL", [raw for _, (raw, _) in sorted(newest.items())])
    except OSError as error:
        raise Unavailable(f"{folder} cannot be written: {error.strerror}") from None
    return report


def hang_up(pid_file: Path) -> None:
    """Tells the program of ``pid_file`` to read its files again (SIGHUP). Raises NotFound: it is not running."""
    try:
        os.kill(int(pid_file.read_text().strip()), signal.SIGHUP)
    except (OSError, ValueError) as error:
        raise NotFound(f"{pid_file} names no process that could be told: {error}") from None


async def _fetched(fetch: Fetch, url: str) -> bytes | IronrootError:
    try:
        return (await fetch.fetch(url)).body
    except IronrootError as error:
        return error


def _authentic(raw: bytes, authorities: Sequence[Certificate]) -> tuple[bytes, CrlHead]:
    """The head of a CRL that one of ``authorities`` signed, and what it is known by: its issuer and its scope. Raises Malformed."""
    head, _, _ = read_head(raw, PLAIN)
    for authority in authorities:
        if authority.subject != head.issuer or (head.aki is not None and head.aki != authority.ski):
            continue
        verify_signed(raw, authority.public_key)
        scope = head.extensions.get("2.5.29.28")
        return head.issuer.der + (head.aki or b"") + (scope.value if scope is not None else b""), head
    raise Malformed(f"a CRL of {head.issuer.text}, which is not among the authorities that are trusted here")


def _held(file: Path, authorities: Sequence[Certificate]) -> dict[bytes, tuple[bytes, CrlHead]]:
    """What is there already; what is damaged, or of an authority that is no longer trusted, is not."""
    found: dict[bytes, tuple[bytes, CrlHead]] = {}
    try:
        blocks = pem.decode(file.read_bytes(), "X509 CRL")
    except (OSError, Malformed):
        return found
    for _, raw in blocks:
        try:
            key, head = _authentic(raw, authorities)
        except IronrootError:
            continue
        found[key] = raw, head
    return found


def _write(file: Path, label: str, ders: Sequence[bytes]) -> bool:
    """Writes the file if that changes it, readable for everybody: there is nothing secret in it."""
    contents = "".join(pem.encode(label, der) for der in ders).encode()
    if not ders or (file.exists() and file.read_bytes() == contents):
        return False
    write_atomically(file, contents)
    return True
