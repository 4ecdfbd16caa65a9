"""Fetching status and issuers over HTTP, within bounds (RFC 5280 4.2.1.13, 4.2.2.1; RFC 6960 appendix A; RFC 9111 for freshness).

    fetcher = HttpFetcher(allowed_hosts=frozenset({"pki.plant"}), networks=PLANT)
    try:
        crl = (await fetcher.fetch("http://pki.plant/crl/ecc-issuing.crl")).body
    finally:
        await fetcher.close()

URLs come out of certificates. Only http and https are asked; hosts and addresses have to be allowed, after each redirect too; answers are
bounded in size and time; nothing is decompressed; no proxy is taken from the environment.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from weakref import WeakKeyDictionary

import aiohttp
from multidict import CIMultiDictProxy
from yarl import URL

from pkix.crl_index import MAX_OCTETS
from pkix.errors import Refused, Unavailable
from validate.fetch_address import LOOPBACK, PLANT, CheckedResolver, Inward, Network, permitted
from validate.fetched import Fetched
from validate.model import Monotonic

__all__ = ["LOOPBACK", "MAX_ANSWER", "MAX_CRL", "MAX_TOGETHER", "PLANT", "HttpFetcher"]

MAX_ANSWER, MAX_CRL = 1 << 20, MAX_OCTETS
"""Octets that are read of the answer to a POST (OCSP), and to a GET (CRLs)."""
MAX_TOGETHER = 2 * MAX_CRL
"""Octets that answers under way may have together."""

_MAX_REFUSED = 4096
_REDIRECTS = (301, 302, 303, 307, 308)
_KEEP_METHOD = (307, 308)

Key = tuple[str, bytes]


class _Lane:
    """What belongs to one event loop: connections, and requests under way."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session
        self.flights: dict[Key, asyncio.Task[Fetched]] = {}


class HttpFetcher:
    """``validate.fetched.Fetch`` over aiohttp. Requests for the same thing that overlap in time share one flight.

    Any number of event loops may use one, also in several threads: each gets connections of its own.

    Args:
        allowed_hosts: host names (lower case) that may be asked; None: any. Set it where certificates of strangers are validated.
        networks: address ranges that may be connected to beside the public internet: ``PLANT``, ``LOOPBACK``, or single hosts.
        proxy: URL of an HTTP proxy. It resolves names itself, so addresses cannot be judged: ``allowed_hosts`` is needed with it.
        timeout: seconds for one POST, and for any server to begin answering.
        download_timeout: seconds for one GET, everything included.
        max_redirects: hops that are followed; each is judged like the first, none leads from https to http.
        rest: seconds for which what failed is not tried again.
        tls: for https; None: the system's trust.
        monotonic: clock for ``rest``, in seconds.

    Raises:
        Refused: a proxy without ``allowed_hosts``.
    """

    def __init__(
        self,
        *,
        allowed_hosts: frozenset[str] | None = None,
        networks: Sequence[Network] = (),
        proxy: str | None = None,
        timeout: float = 5.0,
        download_timeout: float = 60.0,
        max_redirects: int = 3,
        rest: float = 5.0,
        tls: ssl.SSLContext | None = None,
        monotonic: Monotonic = time.monotonic,
    ) -> None:
        if proxy is not None and allowed_hosts is None:
            raise Refused("with a proxy, say which hosts may be asked (allowed_hosts): the proxy alone knows their addresses")
        self._allowed_hosts = allowed_hosts
        self._networks = tuple(networks)
        self._proxy = None if proxy is None else URL(proxy)
        self._timeout, self._download_timeout = timeout, download_timeout
        self._max_redirects = max_redirects
        self._rest = rest
        self._tls = tls
        self._monotonic = monotonic
        self._lanes: WeakKeyDictionary[asyncio.AbstractEventLoop, _Lane] = WeakKeyDictionary()
        self._refused: dict[Key, tuple[float, str]] = {}
        self._under_way = 0

    async def fetch(self, url: str, body: bytes = b"", content_type: str = "") -> Fetched:
        """The body of a 200 answer to GET, or to POST if there is a ``content_type``.

        Raises:
            Refused: scheme, host or address are not allowed.
            Unavailable: no 200 in time, or a longer answer than is taken, or it failed within the last ``rest`` seconds.
        """
        start = self._allowed(url)
        key = str(start), body
        for failed in (_silent(start.origin()), _silent(start), key):
            self._rested(failed)
        lane = self._lane()
        flight = lane.flights.get(key)
        if flight is None:
            flight = asyncio.get_running_loop().create_task(self._flight(lane, start, body, content_type))
            lane.flights[key] = flight
            flight.add_done_callback(lambda landed: _landed(lane, key, landed))
        # One caller that gives up must not end the flight of the others.
        return await asyncio.shield(flight)

    async def close(self) -> None:
        """Ends what is under way in this event loop and closes its connections."""
        lane = self._lanes.pop(asyncio.get_running_loop(), None)
        if lane is not None:
            flights = list(lane.flights.values())
            for flight in flights:
                flight.cancel()
            await asyncio.gather(*flights, return_exceptions=True)
            await lane.session.close()

    # --- what may be asked -----------------------------------------------------------------------------------------

    def _allowed(self, text: str) -> URL:
        try:
            url = URL(text)
            host, scheme, user = url.host, url.scheme, url.user
            url.port  # noqa: B018  # raises on one that is out of range
        except (ValueError, TypeError):
            raise Refused(f"{text[:200]!r} is no URL") from None
        if scheme not in ("http", "https") or not host or user is not None or url.password is not None:
            raise Refused("only http and https URLs without user names are fetched")
        if self._allowed_hosts is not None and host.lower() not in self._allowed_hosts:
            raise Refused(f"the host {host} is not among those that may be asked")
        if _is_literal(host) and not permitted(host, self._networks):
            raise Refused(f"the address {host} is not among those that may be asked")
        return url.with_fragment(None)

    def _rested(self, key: Key) -> None:
        until, why = self._refused.get(key, (0.0, ""))
        if until > self._monotonic():
            raise Unavailable(f"{why} (a moment ago)")

    def _refuse(self, key: Key, error: Unavailable) -> Unavailable:
        self._refused.pop(key, None)
        self._refused[key] = self._monotonic() + self._rest, str(error)
        while len(self._refused) > _MAX_REFUSED:
            del self._refused[next(iter(self._refused))]
        return error

    # --- asking ----------------------------------------------------------------------------------------------------

    def _lane(self) -> _Lane:
        loop = asyncio.get_running_loop()
        lane = self._lanes.get(loop)
        if lane is None:
            proxy = None if self._proxy is None else self._proxy.host
            connector = aiohttp.TCPConnector(resolver=CheckedResolver(self._networks, proxy), limit=32, limit_per_host=8)
            session = aiohttp.ClientSession(connector=connector, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar())
            lane = self._lanes[loop] = _Lane(session)
        return lane

    async def _flight(self, lane: _Lane, url: URL, body: bytes, content_type: str) -> Fetched:
        first = str(url), body
        for _ in range(self._max_redirects + 1):
            try:
                found = await self._request(lane, url, body, content_type)
            except _Silent as error:
                # Nobody there, or nobody who answers: whatever else would be asked has nothing to wait for either.
                raise self._refuse(_silent(url if error.connected else url.origin()), error) from None
            except Unavailable as error:
                raise self._refuse(first, error) from None
            if isinstance(found, Fetched):
                return found
            if url.scheme == "https" and found.scheme == "http":
                raise Refused("a redirect from https to http is not followed")
            url = self._allowed(str(found))
        raise self._refuse(first, Unavailable(f"more than {self._max_redirects} redirects"))

    async def _request(self, lane: _Lane, url: URL, body: bytes, content_type: str) -> Fetched | URL:
        """The answer, or where it sends us."""
        headers = {"Accept-Encoding": "identity"} | ({"Content-Type": content_type} if content_type else {})
        limit = aiohttp.ClientTimeout(
            total=self._timeout if content_type else self._download_timeout, connect=self._timeout, sock_read=self._timeout
        )
        answered = False
        try:
            async with lane.session.request(
                "POST" if content_type else "GET",
                url,
                data=body or None,
                headers=headers,
                allow_redirects=False,
                timeout=limit,
                proxy=self._proxy,
                ssl=self._tls if self._tls is not None else True,
            ) as response:
                answered = True
                if response.status in (_KEEP_METHOD if content_type else _REDIRECTS) and "Location" in response.headers:
                    return url.join(URL(response.headers["Location"]))
                if response.status != 200:
                    raise Unavailable(f"HTTP status {response.status}")
                if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                    raise Unavailable("a compressed answer, which was not asked for")
                read = await self._read(response.content, MAX_ANSWER if content_type else MAX_CRL)
                return Fetched(read, fresh_for(response.headers))
        except aiohttp.ConnectionTimeoutError:
            raise _Silent(f"no connection within {self._timeout:g} s", connected=False) from None
        except TimeoutError:
            if answered:
                raise Unavailable(f"no complete answer within {limit.total:g} s") from None
            raise _Silent(f"no answer within {self._timeout:g} s", connected=True) from None
        except aiohttp.ClientConnectorError as failed:
            if isinstance(failed.os_error, Inward):
                raise Refused(f"{failed.os_error}") from None
            raise _Silent(f"no connection ({type(failed).__name__})", connected=False) from None
        except (aiohttp.ClientError, OSError, ValueError) as failed:
            raise Unavailable(f"the request failed ({type(failed).__name__})") from None

    async def _read(self, content: aiohttp.StreamReader, limit: int) -> bytes:
        chunks, size = [], 0
        try:
            async for chunk in content.iter_any():
                size += len(chunk)
                self._under_way += len(chunk)
                if size > limit:
                    raise Unavailable(f"more than {limit} octets")
                if self._under_way > MAX_TOGETHER:
                    raise Unavailable("too much is being fetched at once")
                chunks.append(chunk)
            return b"".join(chunks)
        finally:
            self._under_way -= size


class _Silent(Unavailable):
    """The host did not begin to answer; ``connected``: it is there."""

    def __init__(self, text: str, *, connected: bool) -> None:
        super().__init__(text)
        self.connected = connected


def _silent(url: URL) -> Key:
    """Under which is remembered that nobody answers at ``url``, whatever is asked."""
    return f"silent {url}", b""


def _landed(lane: _Lane, key: Key, flight: asyncio.Task[Fetched]) -> None:
    if lane.flights.get(key) is flight:
        del lane.flights[key]
    if not flight.cancelled():
        flight.exception()  # seen, also if everybody who waited has given up


def _is_literal(host: str) -> bool:
    # Whatever does not look like a name: addresses, and numbers that a resolver might take for one.
    return ":" in host or host.rstrip(".").rpartition(".")[2].isdecimal() or host.lower().rpartition(".")[2].startswith("0x")


def fresh_for(headers: CIMultiDictProxy[str]) -> float | None:
    """Seconds for which an answer counts as fresh (RFC 9111 4.2.1, 4.2.3); 0 if it must not be kept; None if it does not say."""
    directives = [part.strip().lower() for field in headers.getall("Cache-Control", ()) for part in field.split(",")]
    if "no-store" in directives or "no-cache" in directives or any(part.startswith("no-cache=") for part in directives):
        return 0.0
    ages = [part[8:].strip('"') for part in directives if part.startswith("max-age=")]
    if ages:
        lifetime = min((float(age) if age.isdecimal() and len(age) < 11 else 0.0) for age in ages)
    elif "Expires" in headers:
        try:
            made = parsedate_to_datetime(headers.get("Date", ""))
            lifetime = (parsedate_to_datetime(headers["Expires"]) - made).total_seconds()
        except (TypeError, ValueError):
            return 0.0
    else:
        return None
    age = headers.get("Age", "0")
    return max(0.0, lifetime - (float(age) if age.isdecimal() and len(age) < 11 else 0.0))
