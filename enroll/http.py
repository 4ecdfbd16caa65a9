"""The EST door over HTTP (RFC 7030, RFC 8951): one aiohttp handler, thin.

    app.add_routes(routes(EstDoor(policies=…, store=…, issuer=…, authorities=…, clock=…, home=…)))

    GET   /.well-known/est/<fleet>/cacerts          issuing authority and those above it
    GET   /.well-known/est/<fleet>/csrattrs         what key the fleet wants
    POST  /.well-known/est/<fleet>/simpleenroll     first certificate: one-time token, manufacturer's certificate
    POST  /.well-known/est/<fleet>/simplereenroll   next certificate: the current one

Answers are whole and carry Content-Length: strongSwan, libest and BouncyCastle all fail on chunked ones. Errors are one or two sentences of
text/plain (RFC 8951 3.1).
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Protocol

import structlog
from aiohttp import web

from ca.issue import Issuer
from ca.model import Authority, Issued, Method, current
from ca.ports import Clock, Store
from enroll import est
from enroll.auth import Authenticator, Proof
from enroll.service import Enrolment
from enroll.trust import TrustFiles
from pkix.certificate import parse_certificate
from pkix.csr import parse_csr
from pkix.errors import Fatal, IronrootError, Malformed, NotFound, Refused, TooLarge, Unauthenticated, Unavailable
from policies.loader import Policies
from policies.model import SEGMENT, Fleet

BODY_SECONDS = 10.0
"""How long a body may take to arrive once its headers are here."""

RENEW = "Ironroot-Renew"
"""Header of an answer with a certificate: when the fleet wants it renewed, as two fractions of its life: from when on, spread over what."""

_PREFIX = "/.well-known/est"
_REQUEST_ID = re.compile(r"[0-9a-fA-F]{64}")
_METHODS = {"cacerts": ("GET", "HEAD"), "csrattrs": ("GET", "HEAD"), "simpleenroll": ("POST",), "simplereenroll": ("POST",)}
_NOT_OFFERED = ("serverkeygen", "fullcmc")
_UNAVAILABLE_RETRY = 5

log = structlog.get_logger("enroll.est")


class TooSlow(Malformed):
    """The body did not arrive in time."""

    code, status = "too_slow", 408


class Observe(Protocol):
    """Told of every outcome: a name and labels of small cardinality. For metrics."""

    def __call__(self, event: str, **labels: str) -> None: ...


def ignore(event: str, **labels: str) -> None:
    """An ``Observe`` that looks away."""


class EstDoor:
    """The handler and what it needs.

    Args:
        policies: fleets by label.  authorities: by id; may grow while this lives.
        home: below it lie the manufacturers' CAs that fleets name.
        observe: called with ``"est"`` and fleet, operation and status of every answer.
        body_seconds: see ``BODY_SECONDS``.
    """

    def __init__(
        self,
        *,
        policies: Policies,
        store: Store,
        issuer: Issuer,
        authorities: Mapping[str, Authority],
        clock: Clock,
        home: Path,
        observe: Observe = ignore,
        body_seconds: float = BODY_SECONDS,
    ) -> None:
        self._fleets, self._authorities, self._clock = policies.fleets, authorities, clock
        self._authenticator, self._enrolment = Authenticator(store, TrustFiles(home)), Enrolment(store, issuer)
        self._observe, self._body_seconds = observe, body_seconds

    async def handle(self, request: web.Request) -> web.Response:
        """Any request below ``/.well-known/est``. Lets ``Fatal`` through: the process has to stop."""
        label, operation = _split(request.rel_url.raw_path)
        try:
            answer = await self._answer(request, label, operation)
        except Fatal:
            raise
        except IronrootError as error:
            log.info("est.refused", fleet=label, operation=operation, status=error.status, code=error.code, text=str(error))
            answer = _refusal(error)
        self._observe(
            "est",
            fleet=label if label is not None and label in self._fleets else "-",
            operation=operation if operation is not None and operation in _METHODS else "-",
            status=str(answer.status),
        )
        return answer

    async def _answer(self, request: web.Request, label: str | None, operation: str | None) -> web.Response:
        fleet = self._fleet(label, operation)
        if operation in _NOT_OFFERED:
            return _text(501, f"{operation} is not offered here. Use simpleenroll with a key that the device made itself.")
        if operation not in _METHODS:
            raise NotFound("There is no such EST operation. There are cacerts, csrattrs, simpleenroll and simplereenroll.")
        if request.method not in _METHODS[operation]:
            allowed = ", ".join(_METHODS[operation])
            return _text(405, f"{operation} takes {allowed}.", Allow=allowed)
        wrap = est.wants_lines(request.headers.get("User-Agent", ""))
        if operation == "cacerts":
            chain = self._authority(fleet).chain
            return _base64(est.encode_certificates([certificate.der for certificate in chain], wrap=wrap), est.CERTIFICATES_TYPE)
        if operation == "csrattrs":
            return _base64(est.encode_csrattrs(fleet.keys[0], wrap=wrap), est.CSRATTRS_TYPE)
        issued = await self._enroll(request, fleet, renew=operation == "simplereenroll")
        answer = _base64(est.encode_certificates([issued.der], wrap=wrap), est.CERTIFICATES_TYPE)
        answer.headers[RENEW] = f"{fleet.renew.after:g} {fleet.renew.window:g}"
        return answer

    async def _enroll(self, request: web.Request, fleet: Fleet, *, renew: bool) -> Issued:
        signed = est.is_signed(request.headers.get("Content-Type", ""))
        connected = _client_certificates(request)
        authorization = None if renew else request.headers.get("Authorization")
        if not (signed or connected or authorization):
            raise _no_credential(renew=renew)
        body = await read_body(request, est.MAX_SIGNED_REQUEST if signed else est.MAX_REQUEST, self._body_seconds)
        now = self._clock.now()
        message = est.decode(body, signed=signed)
        proof = await self._authenticate(fleet, message, authorization, connected, now)
        try:
            csr = parse_csr(message.pkcs10)
        except Malformed as error:
            raise type(error)(f"The certificate request cannot be taken: {error}. Make a new one.") from error
        request_id = _request_id(request)
        if request_id is None and (signed or proof.identity.method is Method.CERTIFICATE):
            # The same request with the same credential means the same: a replay gets what was made before, and nothing new. Not so with a
            # token, which is good once (a device that wants to repeat names its request), nor with a manufacturer's certificate, which is
            # good for ever: a device that was reset may send its old request and must not get its old certificate.
            request_id = message.digest
        act = self._enrolment.renew if renew else self._enrolment.enroll
        issued = await act(fleet, csr, proof, now, request_id=request_id)
        log.info(
            "est.issued",
            fleet=fleet.id,
            device=proof.identity.device,
            method=proof.identity.method,
            renewal=renew,
            authority=issued.authority,
            serial=f"{issued.serial:x}",
            empty_sm2_id=csr.signature_id == "empty",
        )
        return issued

    async def _authenticate(
        self, fleet: Fleet, message: est.Message, authorization: str | None, connected: list[bytes], now: datetime
    ) -> Proof:
        """The signature on the message decides before the Authorization header, that before the certificate of the connection.

        A TLS stack presents its certificate unasked; the other two are meant.
        """
        if message.signer is not None:
            return await self._authenticator.certificate(fleet, message.signer, message.presented, now)
        if authorization is not None:
            return await self._authenticator.token(fleet, authorization, now)
        own, *others = map(parse_certificate, connected)
        return await self._authenticator.certificate(fleet, own, others, now)

    def _fleet(self, label: str | None, operation: str | None) -> Fleet:
        if label is None:
            raise NotFound(f"A label is needed: {_PREFIX}/<fleet>/{operation or 'cacerts'}. Ask the administrator for the fleet.")
        try:
            return self._fleets[label]
        except KeyError:
            raise NotFound(f"There is no fleet {label!r} here. Ask the administrator for the right address.") from None

    def _authority(self, fleet: Fleet) -> Authority:
        try:
            return self._authorities[current(self._authorities, fleet.authority)]
        except KeyError:
            raise Unavailable(f"The authority of fleet {fleet.id} is not set up yet.", retry_after=60) from None


def routes(door: EstDoor) -> list[web.RouteDef]:
    """All of EST on one route: paths are taken apart here, undecoded, so that no %2f hides in them."""
    return [web.route("*", _PREFIX + "{rest:.*}", door.handle)]


async def read_body(request: web.Request, limit: int, seconds: float) -> bytes:
    """The whole body.

    Raises:
        TooLarge: more than ``limit`` octets, announced or sent.
        TooSlow: it is not complete after ``seconds``.
        Malformed: it is compressed.
    """
    too_large = TooLarge(f"The body is longer than the {limit} octets that this operation takes.")
    if (request.content_length or 0) > limit:
        raise too_large
    if "Content-Encoding" in request.headers:
        raise Malformed("The body is compressed (Content-Encoding). Send it plain.")
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            while chunk := await request.content.readany():
                body += chunk
                if len(body) > limit:
                    raise too_large
    except TimeoutError:
        raise TooSlow(f"The body was not complete after {seconds:g} seconds. Send it at once.") from None
    return bytes(body)


def _client_certificates(request: web.Request) -> list[bytes]:
    """What the client presented in TLS, its own certificate first; empty without one. TLS has proved that it holds the key."""
    connection = request.get_extra_info("ssl_object")
    own = connection.getpeercert(True) if isinstance(connection, ssl.SSLObject) else None
    if own is None:
        return []
    assert isinstance(connection, ssl.SSLObject)  # noqa: S101 - for the type checker
    return [own, *(octets for octets in _sent_chain(connection) if octets != own)]


def _sent_chain(connection: ssl.SSLObject) -> list[bytes]:
    public = getattr(connection, "get_unverified_chain", None)
    if public is not None:  # Python 3.13
        return list(public())
    # Before that it exists without a documented name; without it intermediates have to be in the fleet's trust.
    inner = getattr(getattr(connection, "_sslobj", None), "get_unverified_chain", None)
    chain = inner() if inner is not None else None
    return [ssl.PEM_cert_to_DER_cert(certificate.public_bytes()) for certificate in chain or ()]


def _split(path: str) -> tuple[str | None, str | None]:
    """Label and operation of a raw path; what is not well formed is None."""
    parts = path.removeprefix(_PREFIX).split("/")[1:]
    if len(parts) == 1 and parts[0] in (*_METHODS, *_NOT_OFFERED):
        return None, parts[0]
    if len(parts) != 2 or not SEGMENT.fullmatch(parts[0]):
        return None, None
    return parts[0], parts[1] if SEGMENT.fullmatch(parts[1]) else None


def _request_id(request: web.Request) -> bytes | None:
    given = request.headers.get("Idempotency-Key")
    if given is not None and not _REQUEST_ID.fullmatch(given):
        raise Malformed("The Idempotency-Key is not 64 hexadecimal digits. Send 32 random octets in hexadecimal, or leave it out.")
    return None if given is None else bytes.fromhex(given)


def _no_credential(*, renew: bool) -> IronrootError:
    if renew:
        return Refused(
            "A renewal needs the device's own current certificate: present it in TLS, or sign the request with it (CMS SignedData, "
            "Content-Type application/pkcs7-mime; smime-type=signed-data)."
        )
    return Unauthenticated(
        "No credential came with the request. Send the device's serial number and its one-time token by HTTP Basic, "
        "or present the manufacturer's certificate."
    )


def _base64(body: bytes, content_type: str) -> web.Response:
    return web.Response(body=body, headers={"Content-Type": content_type, "Content-Transfer-Encoding": "base64"})


def _text(status: int, text: str, **headers: str) -> web.Response:
    return web.Response(status=status, text=text + "\n", headers=headers)


def _refusal(error: IronrootError) -> web.Response:
    """The answer to an error: its status and sentence, and the headers that go with them."""
    headers = {}
    if error.status == 401:
        headers["WWW-Authenticate"] = 'Basic realm="ironroot", charset="UTF-8"'
    retry = error.retry_after if error.retry_after is not None or not isinstance(error, Unavailable) else _UNAVAILABLE_RETRY
    if retry is not None:
        headers["Retry-After"] = str(retry)
    answer = _text(error.status, str(error), **headers)
    if isinstance(error, TooSlow | TooLarge):
        answer.force_close()  # the rest of the body is still under way
    return answer
