"""Status on disk: what was fetched is kept, and stands in while its source is away, also after a restart.

    fetch = KeptFetch(HttpFetcher(…), settings.kept_status, authorities=lambda: trust.authorities)

The network is asked first, always. Whether what is kept is still current is judged like anything that is fetched: by its signature, its
nextUpdate and ``max_age``. Only what an authority that we know signed takes the place of what is kept, and nothing older, and nothing about
something else: somebody on the line can keep status from us, but not empty the store.

A crash while writing leaves the old file. What is older than ``FORGET`` goes at the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import structlog

from ironroot.files import write_atomically
from pkix.certificate import Certificate, verify_signed
from pkix.crl import PLAIN, read_head
from pkix.errors import IronrootError, Malformed, Refused, Unavailable
from pkix.extensions import DELTA_CRL_INDICATOR
from pkix.ocsp import OcspResponse, parse_request, parse_response, verify_response
from validate.fetched import Fetch, Fetched

PATIENCE = 0.75
"""Seconds that a source may take where there is something to stand in for it."""
STANDS_IN = 30.0
"""Seconds for which what stands in is used before its source is asked again."""
FORGET = 90 * 86_400
"""Seconds."""

log = structlog.get_logger("validator.status")


class KeptFetch:
    """A ``Fetch`` with a memory on disk.

    Args:
        inner: asks the network.  folder: where answers are kept, a file each.
        authorities: the CA certificates whose status is worth keeping.
        recheck: seconds for which an answer is used at least, also if HTTP says that it may not be kept.
    """

    def __init__(self, inner: Fetch, folder: Path, *, authorities: Callable[[], Iterable[Certificate]], recheck: float = 0.0) -> None:
        self._inner, self._folder, self._authorities, self._recheck = inner, folder, authorities, recheck
        self._retired: list[Fetch] = []
        self._behind: set[asyncio.Task[Fetched]] = set()
        self._writing: set[asyncio.Task[None]] = set()

    def ask_through(self, inner: Fetch) -> None:
        """Another way to the network from now on; what is under way on the one before ends there."""
        self._retired.append(self._inner)
        self._inner = inner

    def forget(self) -> None:
        """Deletes what is so old that nothing can still rest on it."""
        limit = time.time() - FORGET
        for file in self._folder.glob("*"):
            with contextlib.suppress(OSError):
                if file.stat().st_mtime < limit:
                    file.unlink()

    async def fetch(self, url: str, body: bytes = b"", content_type: str = "") -> Fetched:
        """From the network; from the disk where that has nothing, or is slow. Raises as ``inner`` where the disk has nothing either."""
        file = self._folder / hashlib.sha256(url.encode() + b"\0" + body).hexdigest()
        asked = asyncio.get_running_loop().create_task(self._ask(file, url, body, content_type))
        self._behind.add(asked)
        asked.add_done_callback(self._behind.discard)
        # Waiting is given up, not the request: its answer will be there for the next one who asks.
        await asyncio.wait((asked,), timeout=PATIENCE if file.exists() else None)
        if asked.done():
            try:
                return asked.result()
            except Refused:
                raise
            except IronrootError as error:
                return self._instead(file, url, error)
        asked.add_done_callback(_seen)
        return self._instead(file, url, Unavailable(f"no answer within {PATIENCE:g} s"))

    async def close(self) -> None:
        """Ends requests that are under way, and lets writing end."""
        for task in list(self._behind):
            task.cancel()
        await asyncio.gather(*self._behind, *self._writing, return_exceptions=True)
        for fetch in (self._inner, *self._retired):
            await fetch.close()

    async def _ask(self, file: Path, url: str, body: bytes, content_type: str) -> Fetched:
        fetched = await self._inner.fetch(url, body, content_type)
        writing = asyncio.get_running_loop().create_task(asyncio.to_thread(self._keep, file, body, fetched.body))
        self._writing.add(writing)
        writing.add_done_callback(self._writing.discard)
        return fetched if fetched.fresh_for is None else Fetched(fetched.body, max(fetched.fresh_for, self._recheck))

    def _keep(self, file: Path, asked: bytes, answer: bytes) -> None:
        """Keeps ``answer`` if an authority that we know made it, about what was asked, no earlier than what is kept."""
        try:
            made = _statement(answer, asked)
            if not self._signed(answer, made):
                return
            if file.exists() and not _succeeds(made, answer, file.read_bytes(), asked):
                return
            write_atomically(file, answer, mode=0o600)
        except IronrootError:
            return
        except OSError as error:
            log.error("not_kept", error=str(error))

    def _signed(self, answer: bytes, made: _Statement) -> bool:
        for authority in self._authorities():
            try:
                if made.response is None:
                    verify_signed(answer, authority.public_key)
                else:
                    verify_response(made.response, authority, made.at)
            except Malformed:
                continue
            return True
        return False

    @staticmethod
    def _instead(file: Path, url: str, error: IronrootError) -> Fetched:
        try:
            kept = file.read_bytes()
        except OSError:
            raise error from None
        log.warning("status_from_disk", url=url, error=str(error))
        return Fetched(kept, STANDS_IN)


class _Statement(NamedTuple):
    """What an answer is about (the issuer of a CRL, or a certificate), and when it was true."""

    about: object
    at: datetime
    response: OcspResponse | None


def _statement(answer: bytes, asked: bytes) -> _Statement:
    """What an answer says of itself. Raises Malformed: it is no CRL, or for a request none that answers it."""
    if not asked:
        head, _, _ = read_head(answer, PLAIN | {DELTA_CRL_INDICATOR})
        return _Statement(head.issuer, head.this_update, None)
    response, wanted = parse_response(answer), parse_request(asked).cert_ids[0]
    single = response.find(wanted)
    if single is None:
        raise Malformed("the response is not about the certificate that was asked for")
    return _Statement(wanted, single.this_update, response)


def _succeeds(made: _Statement, answer: bytes, kept: bytes, asked: bytes) -> bool:
    """Whether an answer is newer than what is kept, and about the same."""
    try:
        before = _statement(kept, asked)
    except IronrootError:
        return True  # what is kept was damaged
    return answer != kept and made.about == before.about and made.at >= before.at


def _seen(task: asyncio.Task[Fetched]) -> None:
    if not task.cancelled():
        task.exception()
