"""The HTTP doors of validation (RFC 9110, RFC 9457).

application = application(judge, nginx=NginxDoor(judge, header, proxies))

POST /api/v1/validate         one request or a batch (docs/validator.md)
GET  /api/v1/openapi.json     its description
GET  /auth/nginx              for nginx's auth_request: 204, 401 without a certificate, 403 with the reason in headers
GET  /livez
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import get_args
from urllib.parse import quote, unquote_to_bytes

import structlog
from aiohttp import web

from ironroot import __version__
from ironroot.validator.api import MAX_BODY, Problem, dumps, openapi, too_large
from ironroot.validator.judge import Judge
from pkix import pem
from pkix.errors import IronrootError, Malformed, NotFound, Refused, Unauthenticated
from validate.model import Purpose, Result

log = structlog.get_logger("validator.http")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

BODY_SECONDS = 10.0
"""How long a client may take to send its request."""
_JSON = {"Content-Type": "application/json", "Cache-Control": "no-store"}
_PLAIN = " ,.:;=()/@-_'"


def answered(handler: Handler) -> Handler:
    """``handler``, with its Problems and our errors as problem+json, and anything else as a 500 that says nothing."""

    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except Problem as problem:
            return problem_response(problem)
        except IronrootError as error:
            return problem_response(Problem(error))
        except (web.HTTPException, asyncio.CancelledError, ConnectionError):
            raise
        except Exception:
            log.exception("bug", path=request.path)
            return problem_response(Problem(IronrootError("An error of ours; it is in the log.")))

    return handle


def problem_response(problem: Problem) -> web.Response:
    """RFC 9457 3."""
    headers = {"Content-Type": "application/problem+json", "Cache-Control": "no-store"}
    if problem.retry_after is not None:
        headers["Retry-After"] = str(problem.retry_after)
    response = web.Response(status=problem.status, body=dumps(problem.as_dict()), headers=headers)
    if problem.status in (408, 413):
        response.force_close()  # the rest of the body is still under way
    return response


class ApiDoor:
    """``/api/v1/validate`` and its description. ``body_seconds``: for the whole of a request."""

    def __init__(self, judge: Judge, *, body_seconds: float = BODY_SECONDS) -> None:
        self._judge, self._body_seconds = judge, body_seconds
        self._description = dumps(openapi(__version__))

    async def validate(self, request: web.Request) -> web.StreamResponse:
        """One request, or a batch."""
        _only(request, "POST")
        if request.content_type != "application/json" or request.headers.get("Content-Encoding", "identity") != "identity":
            raise Problem(Malformed("Send application/json, not compressed."), status=415)
        return web.Response(body=await self._judge.answer(await read_body(request, self._body_seconds)), headers=_JSON)

    async def describe(self, request: web.Request) -> web.StreamResponse:
        """The OpenAPI description."""
        _only(request, "GET", "HEAD")
        return web.Response(body=self._description, headers={"Content-Type": "application/json"})

    def routes(self) -> list[web.RouteDef]:
        """For an aiohttp application."""
        found = (("/api/v1/validate", self.validate), ("/api/v1/openapi.json", self.describe))
        return [web.route("*", path, answered(handler)) for path, handler in found]


async def read_body(request: web.Request, seconds: float) -> bytes:
    """The body, at most ``MAX_BODY`` octets, in time. Raises Problem."""
    if request.content_length is not None and request.content_length > MAX_BODY:
        raise too_large()
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for piece in request.content.iter_any():
                body += piece
                if len(body) > MAX_BODY:
                    raise too_large()
    except TimeoutError:
        raise Problem(Malformed(f"The request did not arrive within {seconds:g} s."), status=408) from None
    except web.RequestPayloadError:
        raise Problem(Malformed("The body ends in the middle.")) from None
    return bytes(body)


def _only(request: web.Request, *methods: str) -> None:
    if request.method not in methods:
        raise Problem(Malformed(f"{request.path} takes {' and '.join(methods)}."), status=405)


class NginxDoor:
    """``/auth/nginx``: what nginx asks with ``auth_request`` before it passes a request on.

    The certificate is believed only from ``proxies``: whoever else could send the header could pass for anybody, for a header proves no
    possession of a key. nginx does (TLS), and overwrites what its client sent.

    Args:
        header: with the certificate as ``$ssl_client_escaped_cert`` has it: PEM, percent-encoded.
        proxies: addresses, or ``unix`` for whoever may open our Unix socket.
    """

    def __init__(self, judge: Judge, header: str, proxies: Iterable[str]) -> None:
        self._judge, self._header, self._proxies = judge, header, frozenset(proxies)

    async def check(self, request: web.Request) -> web.StreamResponse:
        """204 lets the client through. nginx knows 401 and 403 besides; whatever else we say becomes its 500."""
        try:
            result = await self._verdict(request)
        except Problem as problem:
            return self._refused(problem.status if problem.status == 401 else 403, "refused", str(problem))
        except IronrootError as error:
            return self._refused(401 if isinstance(error, Unauthenticated) else 403, error.code, str(error))
        if not result.good:
            log.info("client_refused", code=result.code, reason=result.sentence("en"))
            return self._refused(403, result.code, result.sentence("en"))
        peer = result.path[0]
        said = {"Subject": peer.subject.text, "Names": " ".join(peer.names), "Serial": f"{peer.serial:x}", "Sha256": peer.sha256.hex()}
        headers = {f"X-Ironroot-{name}": quote(value, safe=_PLAIN) for name, value in said.items()}
        return web.Response(status=204, headers=headers | {"Cache-Control": "no-store"})

    async def _verdict(self, request: web.Request) -> Result:
        if _sender(request) not in self._proxies:
            log.warning("not_a_proxy", sender=_sender(request))
            raise Refused("This address may not say which client it saw; nginx.proxies in validator.toml names those that may.")
        sent = request.headers.getall(self._header, [])
        if not any(sent):
            raise Unauthenticated("The client showed no certificate.")
        if len(sent) > 1:
            raise Refused("The certificate's header came twice; the proxy has to overwrite it.")
        purpose = request.query.get("purpose", "tls-client")
        if purpose not in get_args(Purpose):
            raise Malformed(f"There is no purpose {purpose[:40]!r}.")
        presented = [der for _, der in pem.decode(unquote_to_bytes(sent[0]), "CERTIFICATE")]
        return await self._judge.result(presented[:1], purpose=purpose, names=request.query.getall("name", []))  # type: ignore[arg-type]

    @staticmethod
    def _refused(status: int, code: str, reason: str) -> web.Response:
        said = {"X-Ironroot-Code": code, "X-Ironroot-Reason": quote(reason[:500], safe=_PLAIN), "Cache-Control": "no-store"}
        return web.Response(status=status, text=f"{reason}\n", headers=said)


def _sender(request: web.Request) -> str:
    """Address of who asks; ``unix`` on a Unix socket."""
    peer = request.transport.get_extra_info("peername") if request.transport is not None else None
    return str(peer[0]) if isinstance(peer, tuple) and peer else "unix"


def application(judge: Judge, nginx: NginxDoor) -> web.Application:
    """The stand-alone service's HTTP interface."""
    made = web.Application(client_max_size=MAX_BODY)
    made.add_routes(ApiDoor(judge).routes())
    made.add_routes([web.get("/auth/nginx", nginx.check), web.get("/livez", _alive), web.route("*", "/{rest:.*}", answered(_nowhere))])
    return made


async def _alive(_request: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})


async def _nowhere(request: web.Request) -> web.StreamResponse:
    raise NotFound(f"There is nothing at {request.path[:100]!r} with {request.method}. There is: /api/v1/validate, /api/v1/openapi.json.")
