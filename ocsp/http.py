"""The status doors over plain HTTP: OCSP, CRLs and CA certificates, for whoever asks (RFC 6960 A, RFC 9919, RFC 5280).

    app.add_routes(routes(StatusDoor(store=…, signer=…, authorities=…, responders=…, clock=…)))

    POST  /ocsp                         GET  /ocsp/<base64 of the request>
    GET   /crl/<authority>.crl          the newest CRL
    GET   /aia/<id>.cer                 a CA certificate: by authority, by its SHA-256, or tls-root (what devices pin)

Caches on the way may keep a GET answer for ``MAX_AGE``, never to its nextUpdate: a revocation has to be seen soon behind them too.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Protocol
from urllib.parse import unquote_to_bytes

import structlog
from aiohttp import web
from aiohttp.hdrs import ETAG

from ca.model import Authority, CrlRecord
from ca.ports import Clock, Signer, Store
from ocsp.answer import LIFETIME, Answer, Answerer, Responders, malformed
from pkix.errors import Unavailable

MAX_AGE = timedelta(seconds=60)
"""How long a cache between us and a relying party may keep a status or a CRL: what a revocation may be late behind such a cache."""
CERTIFICATE_MAX_AGE = timedelta(hours=1)
MAX_REQUEST = 8192
"""Octets of an OCSP request."""
BODY_SECONDS = 10.0
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


class StatusDoor:
    """The handlers and what they need.

    Args:
        authorities: by id; may grow while this lives.
        responders: their delegated signers.  lifetime: of an OCSP answer.
        max_age: see ``MAX_AGE``.
        observe: called with ``"ocsp"`` and method and outcome of every OCSP answer.
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
    ) -> None:
        self._answerer = Answerer(store, signer, authorities, responders, lifetime=lifetime)
        self._store, self._authorities, self._clock = store, authorities, clock
        self._max_age, self._observe, self._body_seconds = max_age, observe, body_seconds
        self._crls: dict[str, CrlRecord] = {}

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
        return _cached(request, answer.der, _OCSP_TYPE, now, this_update, min(self._max_age, next_update - now))

    async def crl(self, request: web.Request) -> web.Response:
        """The newest CRL, from memory while its number is the newest in the store."""
        authority = request.match_info["authority"]
        if authority not in self._authorities:
            return _text(404, "There is no authority of that name here.")
        try:
            record = await self._newest_crl(authority)
        except Unavailable as error:
            return _text(503, str(error), {"Retry-After": _RETRY})
        if record is None:
            return _text(503, f"{authority} has not published a CRL yet. Try again later.", {"Retry-After": _RETRY})
        return _cached(request, record.der, _CRL_TYPE, self._clock.now(), record.this_update, self._max_age)

    async def certificate(self, request: web.Request) -> web.Response:
        """The certificate of an authority, in DER."""
        asked = request.match_info["id"]
        name = TLS_ROOT if asked == "tls-root" else asked
        for authority in self._authorities.values():
            if name in (authority.id, authority.certificate.sha256.hex()):
                certificate = authority.certificate
                return _cached(request, certificate.der, _CERTIFICATE_TYPE, self._clock.now(), certificate.not_before, CERTIFICATE_MAX_AGE)
        return _text(404, "There is no CA certificate of that name or SHA-256 here.")

    async def _newest_crl(self, authority: str) -> CrlRecord | None:
        number = await self._store.latest_crl_number(authority)
        kept = self._crls.get(authority)
        if kept is not None and kept.number == number:
            return kept
        record = await self._store.latest_crl(authority)
        if record is not None:
            self._crls[authority] = record
        return record


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
    """The body, or None if it is too long for any OCSP request. Raises HTTPRequestTimeout."""
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            while chunk := await request.content.readany():
                body += chunk
                if len(body) > MAX_REQUEST:
                    return None
    except TimeoutError:
        raise web.HTTPRequestTimeout(text="The body was not complete in time.\n", headers={"Connection": "close"}) from None
    return bytes(body)


def _from_path(path: str) -> bytes | None:
    text = unquote_to_bytes(path).translate(_URL_SAFE).rstrip(b"=")
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        return None


def _uncached(answer: Answer) -> web.Response:
    return web.Response(body=answer.der, headers={"Content-Type": _OCSP_TYPE, "Cache-Control": "no-store"})


def _cached(request: web.Request, body: bytes, content_type: str, now: datetime, modified: datetime, max_age: timedelta) -> web.Response:
    """200 with the validators of RFC 9110, or 304 if the client has it. Expires says the same as max-age, for caches of HTTP/1.0."""
    tag = hashlib.sha256(body).hexdigest()[:40]
    headers = {
        "Content-Type": content_type,
        "Cache-Control": f"max-age={int(max_age.total_seconds())}, public, no-transform, must-revalidate",
        ETAG: f'"{tag}"',
    }
    unchanged = _has(request, tag, modified)
    response = web.Response(status=304 if unchanged else 200, body=None if unchanged else body, headers=headers)
    response.last_modified = modified
    response.headers["Expires"] = _http_date(now + max_age)
    return response


def _has(request: web.Request, tag: str, modified: datetime) -> bool:
    """Whether the client says it has this version (RFC 9110 13.2.2: If-None-Match counts, if given, before If-Modified-Since)."""
    if request.if_none_match is not None:
        return any(etag.value in (tag, "*") for etag in request.if_none_match)
    return request.if_modified_since is not None and modified <= request.if_modified_since


def _http_date(moment: datetime) -> str:
    return moment.strftime("%a, %d %b %Y %H:%M:%S GMT")


def _text(status: int, text: str, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(status=status, text=text + "\n", headers=headers)
