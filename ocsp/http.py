"""The status doors over plain HTTP: OCSP, CRLs and CA certificates, for whoever asks (RFC 6960 A, RFC 9919, RFC 5280).

    app.add_routes(routes(StatusDoor(store=…, signer=…, authorities=…, responders=…, clock=…)))

    POST  /ocsp                         GET  /ocsp/<base64 of the request>
    GET   /crl/<authority>.crl          the newest CRL
    GET   /aia/<id>.cer                 a CA certificate: by authority, by its SHA-256, or tls-root (what devices pin)

Caches on the way may keep a GET answer for ``MAX_AGE``, never to its nextUpdate: a revocation has to be seen soon behind them too. They
renew it by its ETag. If-Modified-Since is not looked at: one second may hold a good answer and a revoked one.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol
from urllib.parse import unquote_to_bytes

import structlog
from aiohttp import web
from aiohttp.hdrs import CONTENT_ENCODING, ETAG

from ca.model import Authority
from ca.ports import Clock, Signer, Store
from ocsp.answer import LIFETIME, Answer, Answerer, Responders, malformed
from pkix.errors import Unavailable

MAX_AGE = timedelta(seconds=60)
"""How long a cache between us and a relying party may keep a status or a CRL: what a revocation may be late behind such a cache."""
CERTIFICATE_MAX_AGE = timedelta(hours=1)
MAX_REQUEST = 8192
"""Octets of an OCSP request."""
BODY_SECONDS = 10.0
PIECE = 64 * 1024
"""Octets of a CRL that wait in memory for one client."""
PIECE_SECONDS = 60.0
"""How long a client may take to read them."""
TLS_ROOT = "ecc-root"
"""The authority above the service's own TLS certificate."""

_OCSP_TYPE, _CRL_TYPE, _CERTIFICATE_TYPE = "application/ocsp-response", "application/pkix-crl", "application/pkix-cert"
_URL_SAFE = bytes.maketrans(b"-_ ", b"+/+")
_RETRY = "5"

log = structlog.get_logger("ocsp")


class Observe(Protocol):
    """Told of every outcome: a name and labels of small cardinality. For metrics."""

    def __call__(self, event: str, **labels: str) -> None: ...


def ignore(event: str, **labels: str) -> None:
    """An ``Observe`` that looks away."""


@dataclass(frozen=True, slots=True)
class _Document:
    """What caches may keep; its tag stands for exactly these octets."""

    body: bytes
    content_type: str
    modified: datetime
    tag: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tag", hashlib.sha256(self.body).hexdigest()[:40])


class StatusDoor:
    """The handlers and what they need.

    Args:
        authorities: by id; may grow while this lives.
        responders: their delegated signers.  lifetime: of an OCSP answer.
        max_age: see ``MAX_AGE``.
        observe: called with ``"ocsp"`` and method and outcome of every OCSP answer.
        body_seconds: for the whole of a request.  piece_seconds: see ``PIECE_SECONDS``.
    """

    def __init__(
        self,
        *,
        store: Store,
        signer: Signer,
        authorities: Mapping[str, Authority],
        responders: Responders,
        clock: Clock,
        lifetime: timedelta = LIFETIME,
        max_age: timedelta = MAX_AGE,
        observe: Observe = ignore,
        body_seconds: float = BODY_SECONDS,
        piece_seconds: float = PIECE_SECONDS,
    ) -> None:
        self._answerer = Answerer(store, signer, authorities, responders, lifetime=lifetime)
        self._store, self._authorities, self._clock = store, authorities, clock
        self._max_age, self._observe = max_age, observe
        self._body_seconds, self._piece_seconds = body_seconds, piece_seconds
        self._crls: dict[str, tuple[int, _Document]] = {}
        self._loading: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def ocsp_post(self, request: web.Request) -> web.Response:
        """RFC 6960 A.1. Nothing between may keep the answer."""
        body = await _read_body(request, self._body_seconds)
        if body is None:
            answer = malformed()
        else:
            answer = await self._answerer.answer(body, self._clock.now())
        self._observe("ocsp", method="POST", outcome=answer.outcome)
        response = _uncached(answer)
        if body is None:
            response.force_close()  # the rest of the body is still under way
        return response

    async def ocsp_get(self, request: web.Request) -> web.Response:
        """RFC 6960 A.1: the request in base64 as the rest of the path, percent-encoded; also as careless clients send it, or base64url."""
        now = self._clock.now()
        raw = _from_path(request.rel_url.raw_path.partition("/ocsp/")[2])
        answer = malformed() if raw is None else await self._answerer.answer(raw, now)
        self._observe("ocsp", method="GET", outcome=answer.outcome)
        if answer.fresh is None:
            return _uncached(answer)
        this_update, next_update = answer.fresh
        return _cached(request, _Document(answer.der, _OCSP_TYPE, this_update), now, min(self._max_age, next_update - now))

    async def crl(self, request: web.Request) -> web.StreamResponse:
        """The newest CRL, from memory while its number is the newest in the store; no faster than the client reads."""
        authority = request.match_info["authority"]
        if authority not in self._authorities:
            return _text(404, "There is no authority of that name here.")
        try:
            newest = await self._newest_crl(authority)
        except Unavailable as error:
            return _text(503, str(error), {"Retry-After": _RETRY})
        if newest is None:
            return _text(503, f"{authority} has not published a CRL yet. Try again later.", {"Retry-After": _RETRY})
        response = _cached(request, newest, self._clock.now(), self._max_age)
        if response.status != 200 or request.method == "HEAD":
            return response
        return await _in_pieces(request, newest.body, response.headers, self._piece_seconds)

    async def certificate(self, request: web.Request) -> web.Response:
        """The certificate of an authority, in DER."""
        asked = request.match_info["id"]
        name = TLS_ROOT if asked == "tls-root" else asked
        for authority in self._authorities.values():
            if name in (authority.id, authority.certificate.sha256.hex()):
                certificate = authority.certificate
                document = _Document(certificate.der, _CERTIFICATE_TYPE, certificate.not_before)
                return _cached(request, document, self._clock.now(), CERTIFICATE_MAX_AGE)
        return _text(404, "There is no CA certificate of that name or SHA-256 here.")

    async def _newest_crl(self, authority: str) -> _Document | None:
        number = await self._store.latest_crl_number(authority)
        async with self._loading[authority]:  # all who ask for a new one wait for one reading of it
            kept = self._crls.get(authority)
            if kept is not None and kept[0] == number:
                return kept[1]
            record = await self._store.latest_crl(authority)
            if record is None:
                return None
            # In a thread: the tag of some 10 MB takes milliseconds, and SHA-256 lets others run.
            document = await asyncio.to_thread(_Document, record.der, _CRL_TYPE, record.this_update)
            self._crls[authority] = (record.number, document)
            return document


def routes(door: StatusDoor) -> list[web.RouteDef]:
    """All doors of this room."""
    return [
        web.post("/ocsp", door.ocsp_post),
        web.post("/ocsp/", door.ocsp_post),
        web.get("/ocsp/{request:.*}", door.ocsp_get),
        web.get("/crl/{authority:[a-z0-9-]{1,64}}.crl", door.crl),
        web.get("/aia/{id:[a-z0-9-]{1,64}}.cer", door.certificate),
    ]


async def _read_body(request: web.Request, seconds: float) -> bytes | None:
    """The body, or None if it is too long for any OCSP request, or not sent as it is. Raises HTTPRequestTimeout."""
    if CONTENT_ENCODING in request.headers:
        return None
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            while chunk := await request.content.readany():
                body += chunk
                if len(body) > MAX_REQUEST:
                    return None
    except TimeoutError:
        raise web.HTTPRequestTimeout(text="The body was not complete in time.\n", headers={"Connection": "close"}) from None
    except web.RequestPayloadError:
        return None
    return bytes(body)


def _from_path(path: str) -> bytes | None:
    text = unquote_to_bytes(path).translate(_URL_SAFE).rstrip(b"=")
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        return None


def _uncached(answer: Answer) -> web.Response:
    return web.Response(body=answer.der, headers={"Content-Type": _OCSP_TYPE, "Cache-Control": "no-store"})


def _cached(request: web.Request, document: _Document, now: datetime, max_age: timedelta) -> web.Response:
    """200 with the validators of RFC 9110, or 304 if the client has it. Expires says the same as max-age, for caches of HTTP/1.0."""
    headers = {
        "Content-Type": document.content_type,
        "Cache-Control": f"max-age={int(max_age.total_seconds())}, public, no-transform, must-revalidate",
        ETAG: f'"{document.tag}"',
        "Last-Modified": _http_date(document.modified),
        "Expires": _http_date(now + max_age),
    }
    unchanged = any(etag.value in (document.tag, "*") for etag in request.if_none_match or ())
    return web.Response(status=304 if unchanged else 200, body=None if unchanged else document.body, headers=headers)


async def _in_pieces(request: web.Request, body: bytes, headers: Mapping[str, str], seconds: float) -> web.StreamResponse:
    """200 with ``body``: the next piece when the client has read the one before. One that takes longer than ``seconds`` is cut off."""
    response = web.StreamResponse(headers=headers)
    response.content_length = len(body)
    transport = request.transport
    if transport is None or transport.is_closing():
        return response
    # A piece is read when all of it is with the kernel. Not 0: at a mark of 0 octets the TLS transports pause when nothing waits.
    transport.set_write_buffer_limits(high=1, low=0)
    try:
        await response.prepare(request)
        for start in range(0, len(body), PIECE):
            async with asyncio.timeout(seconds):
                await response.write(body[start : start + PIECE])
                await request.writer.drain()
    except TimeoutError:
        transport.abort()
    except ConnectionError:
        pass  # the client went away; aiohttp knows
    return response


def _http_date(moment: datetime) -> str:
    return moment.strftime("%a, %d %b %Y %H:%M:%S GMT")


def _text(status: int, text: str, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(status=status, text=text + "\n", headers=headers)
