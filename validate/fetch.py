"""Fetching status over HTTP, within bounds.

    fetcher = HttpFetcher(allowed_hosts=frozenset({"pki.plant"}))
    try:
        crl = await fetcher.get("http://pki.plant/crl/ecc-issuing.crl")
    finally:
        await fetcher.close()

URLs come out of certificates: no redirect is followed, no proxy of the environment used, nothing decompressed.
"""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import aiohttp

from pkix.errors import Refused, Unavailable

MAX_OCSP, MAX_CRL = 1 << 20, 64 << 20
"""Octets that are read of an OCSP response and of a CRL at most."""


class HttpFetcher:
    """``validate.Fetcher`` over aiohttp. Requests for the same thing that overlap in time share one flight.

    Args:
        allowed_hosts: host names (lower case) that may be asked; None: any. Set it where certificates of strangers are validated.
        timeout: seconds for one request, everything included.
    """

    def __init__(self, *, allowed_hosts: frozenset[str] | None = None, timeout: float = 5.0) -> None:
        self._allowed_hosts = allowed_hosts
        self._timeout = timeout
        self._session: aiohttp.ClientSession | None = None
        self._flights: dict[tuple[str, bytes], asyncio.Task[bytes]] = {}

    async def get(self, url: str) -> bytes:
        """Raises Refused (scheme or host not allowed) or Unavailable (no 200 in time, or longer than ``MAX_CRL``)."""
        return await self._flight(url, b"", "")

    async def post(self, url: str, body: bytes, content_type: str) -> bytes:
        """Raises Refused (scheme or host not allowed) or Unavailable (no 200 in time, or longer than ``MAX_OCSP``)."""
        return await self._flight(url, body, content_type)

    async def close(self) -> None:
        """Ends what is under way and closes all connections."""
        flights, self._flights = list(self._flights.values()), {}
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _flight(self, url: str, body: bytes, content_type: str) -> bytes:
        self._check(url)
        flight = self._flights.get((url, body))
        if flight is None:
            flight = asyncio.get_running_loop().create_task(self._request(url, body, content_type))
            self._flights[url, body] = flight
            flight.add_done_callback(lambda landed: self._landed((url, body), landed))
        # One caller that gives up must not end the flight of the others.
        return await asyncio.shield(flight)

    def _landed(self, key: tuple[str, bytes], flight: asyncio.Task[bytes]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
        if not flight.cancelled():
            flight.exception()  # seen, also if everybody who waited has given up

    def _check(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            host = parts.hostname
        except ValueError:
            raise Refused(f"{url!r} is no URL") from None
        if parts.scheme not in ("http", "https") or not host or parts.username is not None:
            raise Refused("only http and https URLs without user names are fetched")
        if self._allowed_hosts is not None and host not in self._allowed_hosts:
            raise Refused(f"the host {host} is not among those that may be asked")

    async def _request(self, url: str, body: bytes, content_type: str) -> bytes:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=self._timeout), auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
            )
        headers = {"Accept-Encoding": "identity"} | ({"Content-Type": content_type} if content_type else {})
        method, limit = ("POST", MAX_OCSP) if content_type else ("GET", MAX_CRL)
        try:
            async with self._session.request(method, url, data=body or None, headers=headers, allow_redirects=False) as response:
                if response.status != 200:
                    raise Unavailable(f"HTTP status {response.status}")
                if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                    raise Unavailable("a compressed answer, which was not asked for")
                return await _limited(response.content, limit)
        except TimeoutError:
            raise Unavailable(f"no complete answer within {self._timeout:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise Unavailable(f"the request failed ({type(error).__name__})") from None


async def _limited(content: aiohttp.StreamReader, limit: int) -> bytes:
    body = bytearray()
    async for chunk in content.iter_any():
        body += chunk
        if len(body) > limit:
            raise Unavailable(f"more than {limit} octets")
    return bytes(body)
