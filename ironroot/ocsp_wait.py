"""Asks our own OCSP responder over HTTP until it says what was just done: what ``--wait`` waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import aiohttp

from ca.model import Record
from ironroot.wire import Installation
from pkix.errors import IronrootError, Unavailable
from pkix.ocsp import build_request, cert_id, parse_response, verify_response

_PAUSE = 0.2


async def until_shown(here: Installation, records: Sequence[Record], *, revoked: bool, seconds: float) -> None:
    """Returns when OCSP shows every one of ``records`` revoked, or good. Raises Unavailable after ``seconds``."""
    url = f"{here.settings.http_url}/ocsp"
    try:
        async with asyncio.timeout(seconds), aiohttp.ClientSession() as session:
            for record in records:
                while await _status(here, session, url, record) != ("revoked" if revoked else "good"):
                    await asyncio.sleep(_PAUSE)
    except TimeoutError:
        raise Unavailable(f"It is recorded, but {url} did not show it within {seconds:.0f} seconds. Is `ironroot serve` running?") from None


async def _status(here: Installation, session: aiohttp.ClientSession, url: str, record: Record) -> str | None:
    issuer = here.authority(record.authority).certificate
    request = build_request([cert_id("sha256", issuer, record.serial)])
    try:
        async with session.post(url, data=request, headers={"Content-Type": "application/ocsp-request"}) as answer:
            response = parse_response(await answer.read())
        verify_response(response, issuer, here.clock.now())
        return str(response.singles[0].status)
    except (aiohttp.ClientError, IronrootError, IndexError):
        return None
