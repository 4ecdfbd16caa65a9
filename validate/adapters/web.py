"""aiohttp: every request comes from a peer that is good now.

    app = web.Application(middlewares=[peers(judge)])
    …
    request[PEER].code, request[CHAIN][0]        # the verdict, and the peer's certificate in DER

The server's TLS context asks for client certificates (``ssl.CERT_REQUIRED``, or ``validate.adapters.tls.server_context``). Each request is
judged, not each connection: one that was opened last week may be of a device that was revoked today.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Middleware

from pkix.errors import IronrootError
from validate.adapters import Judge
from validate.adapters.tls import presented

PEER: web.RequestKey[Any] = web.RequestKey("ironroot.peer", object)
CHAIN: web.RequestKey[list[bytes]] = web.RequestKey("ironroot.chain", list)
"""Where a request has the verdict on its peer, and what the peer presented."""

log = logging.getLogger("validate.web")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def peers(judge: Judge) -> Middleware:
    """A middleware: 401 to who showed no certificate, 403 to whom ``judge`` does not call good, 503 where it cannot judge (RFC 9457)."""

    @web.middleware
    async def look(request: web.Request, handler: Handler) -> web.StreamResponse:
        tls = request.transport.get_extra_info("ssl_object") if request.transport is not None else None
        chain = [] if tls is None else presented(tls)
        if not chain:
            return _problem(401, "unauthenticated", "Show a client certificate.")
        try:
            answer = await judge(chain)
        except IronrootError as error:
            log.error("cannot judge (%s): %s", error.code, error)
            return _problem(503, error.code, "Whether your certificate is good cannot be found out now. Try again later.")
        if not answer.good:
            log.warning("peer refused (%s): %s", answer.code, answer.sentence("en"))
            return _problem(403, answer.code, answer.sentence("en"))
        request[PEER], request[CHAIN] = answer, chain
        return await handler(request)

    return look


def _problem(status: int, code: str, detail: str) -> web.Response:
    title = {401: "Not authenticated", 403: "Refused", 503: "Unavailable"}[status]
    members = {"type": f"urn:ironroot:problem:{code}", "title": title, "status": status, "detail": detail, "code": code}
    return web.Response(status=status, body=json.dumps(members).encode(), headers={"Content-Type": "application/problem+json"})
