"""Validation in the main service: its own hierarchy, judged by its own records, for whoever shows a certificate of ours.

    mount(application, here, api=True)

    POST /api/v1/validate, GET /api/v1/openapi.json     on the TLS door (docs/validator.md)
    GET  /trust/list.p7m                                on both: the list is signed

Status comes from the store itself: what was revoked a moment ago is revoked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.hdrs import ETAG

from ca.model import Authority, Reason, State
from ironroot.validator.http import ApiDoor, answered
from ironroot.validator.judge import Judge
from ironroot.validator.publish import list_file
from ironroot.wire import Installation
from pkix.certificate import Certificate
from pkix.errors import IronrootError, NotFound, Unauthenticated
from validate import Anchor, Basis, Policy, Question
from validate.text import say
from validate.trustlist import CONTENT_TYPE

_LIST_MAX_AGE = 60


def mount(application: web.Application, here: Installation, *, api: bool) -> None:
    """Adds the routes of this page; ``api`` where clients can show a certificate."""
    application.add_routes([web.get("/trust/list.p7m", answered(_trust_list(here)))])
    if api:
        application.add_routes(OwnDoor(here).routes())


class OwnDoor(ApiDoor):
    """``ApiDoor`` for the installation's own authorities, for callers with a good certificate of theirs."""

    def __init__(self, here: Installation) -> None:
        self._here = here
        self._seen: tuple[Authority, ...] = ()
        super().__init__(Judge(_policy(()), status=RecordStatus(here), clock=here.clock))

    async def validate(self, request: web.Request) -> web.StreamResponse:
        """One request or a batch, after a look at who asks."""
        await self._authenticate(request)
        authorities = tuple(self._here.authorities.values())
        if authorities != self._seen:
            self._seen = authorities
            self._judge.trust(_policy(authorities))
        return await super().validate(request)

    async def _authenticate(self, request: web.Request) -> None:
        """Judging costs: it is for our own. Raises Unauthenticated."""
        tls = None if request.transport is None else request.transport.get_extra_info("ssl_object")
        shown = None if tls is None else tls.getpeercert(binary_form=True)
        now = self._here.clock.now()
        for record in [] if shown is None else await self._here.store.by_sha256(hashlib.sha256(shown).digest()):
            if record.state is State.ISSUED and record.revocation is None and record.not_before <= now <= record.not_after:
                return
        raise Unauthenticated("Show a certificate of this installation that is valid (TLS client authentication).")


class RecordStatus:
    """``validate.Status`` from the store's records."""

    def __init__(self, here: Installation) -> None:
        self._here = here

    def at_hand(self, _certificate: Certificate, _issuer: Certificate, _question: Question) -> Basis | None:
        """Nothing: the record is looked up each time."""
        return None

    async def find(self, certificate: Certificate, issuer: Certificate, question: Question) -> Basis:
        """What the record says."""
        now = question.now
        try:
            authority = next(a for a in self._here.authorities.values() if a.certificate == issuer)
            status = await self._here.store.status(authority.id, certificate.serial)
        except StopIteration:
            return Basis("none", detail=say("not_about_it"))
        except IronrootError as error:
            return Basis("none", detail=say("unusable_detail", why=error))
        if status is None or status.state is not State.ISSUED:
            return Basis("unknown", "push", produced_at=now, this_update=now, until=now)
        revocation = status.revocation
        if revocation is None:
            return Basis("good", "push", produced_at=now, this_update=now, until=now)
        standing = "held" if revocation.reason is Reason.certificateHold else "revoked"
        reason = Reason(revocation.reason).name
        return Basis(
            standing,  # type: ignore[arg-type]
            "push",
            produced_at=now,
            this_update=now,
            until=now,
            revoked_at=revocation.at,
            reason=reason,
        )

    async def close(self) -> None:
        """Nothing is held."""


def _policy(authorities: tuple[Authority, ...]) -> Policy:
    return Policy(
        anchors=tuple(Anchor(a.certificate) for a in authorities if a.is_root),
        intermediates=tuple(a.certificate for a in authorities if not a.is_root),
    )


def _trust_list(here: Installation) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """The list that `ironroot trust publish` made, with its ETag (RFC 9110 8.8.3)."""

    async def serve(request: web.Request) -> web.StreamResponse:
        try:
            raw = list_file(here.settings).read_bytes()
        except FileNotFoundError:
            raise NotFound("No trust list is published here (ironroot trust publish).") from None
        tag = hashlib.sha256(raw).hexdigest()[:40]
        headers = {"Content-Type": CONTENT_TYPE, "Cache-Control": f"max-age={_LIST_MAX_AGE}, public, no-transform", ETAG: f'"{tag}"'}
        if any(etag.value in (tag, "*") for etag in request.if_none_match or ()):
            return web.Response(status=304, headers=headers)
        return web.Response(body=raw, headers=headers)

    return serve
