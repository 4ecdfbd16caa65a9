"""What status needs of the network: an answer to one request, and for how long HTTP says that it is fresh."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple, Protocol


class Fetched(NamedTuple):
    """A body, and the seconds after which HTTP asks to look again (Cache-Control, Expires; RFC 9111 4.2.1); None: it does not say."""

    body: bytes
    fresh_for: float | None = None

    def until(self, lapses: datetime, now: datetime) -> datetime:
        """Until when it need not be asked for again: HTTP can only shorten what the answer itself says (``lapses``)."""
        return lapses if self.fresh_for is None else min(lapses, now + timedelta(seconds=min(self.fresh_for, 1e8)))


class Fetch(Protocol):
    """Gets things over HTTP, within bounds. ``validate.fetch.HttpFetcher`` does."""

    async def fetch(self, url: str, body: bytes = b"", content_type: str = "") -> Fetched:
        """The answer to GET, or to POST if there is a ``content_type``. Raises an IronrootError when there is none to return."""

    async def close(self) -> None:
        """Lets go of connections. It may be used again after that, in another event loop too."""
