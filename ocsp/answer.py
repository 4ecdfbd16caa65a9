"""What the responder says: an OCSP request in, a signed response out (RFC 6960, RFC 9919, RFC 9654). No HTTP.

    answer = await answerer.answer(raw, now)      # never raises for what a stranger sends
    answer.der                                    # OCSPResponse, also for errors
    answer.fresh                                  # (this_update, next_update) if others may keep it, else None

Every request reads the status from the store, so a revocation shows in the very next answer of every process. Kept are only signatures: an
answer without a nonce is signed once and given again while the status stays what it was and half of its life is left; ``unknown``, which
others may not keep, for a few seconds.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

import structlog

from ca.model import Authority, Signable, State, Status
from ca.ports import Signer, Store
from pkix.algorithms import SIGNATURES
from pkix.certificate import Certificate
from pkix.errors import BadSignature, Malformed, NotFound, Unavailable
from pkix.ocsp import (
    HASHES,
    MALFORMED_REQUEST,
    TRY_LATER,
    UNAUTHORIZED,
    CertId,
    Single,
    assemble_response,
    build_response_data,
    error_response,
    issuer_hashes,
    parse_request,
)

LIFETIME = timedelta(hours=1)
"""From thisUpdate to nextUpdate."""
KEPT = 20_000
"""Signed answers kept, about 1 KiB each."""
UNKNOWN_FOR = timedelta(seconds=5)
"""How long ``unknown`` is given again: whoever asks for one such serial over and over costs one signature in that time."""
UNKNOWN_KEPT = 2_000
"""Of these, so that made up serials push nothing else out."""

_MAX_SERIAL = 1 << 159

log = structlog.get_logger("ocsp")


@dataclass(frozen=True, slots=True)
class Responder:
    """Who signs for an authority: a certificate with id-pkix-ocsp-nocheck, and the signer's reference of its key."""

    authority: Authority
    certificate: Certificate
    key: str


class Responders(Protocol):
    """The current delegated signer of each authority."""

    def for_authority(self, authority: str) -> Responder | None:
        """None while it has none."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An OCSPResponse: its DER; ``fresh`` as (thisUpdate, nextUpdate) if it may be kept by others; and what it says, for the log.

    ``outcome`` is ``good``, ``revoked``, ``unknown``, ``mixed`` (several), ``malformed``, ``unauthorized`` or ``try_later``.
    """

    der: bytes
    fresh: tuple[datetime, datetime] | None
    outcome: str


@dataclass(frozen=True, slots=True)
class _Kept:
    said: tuple[object, ...]
    answer: Answer
    since: datetime
    renew: datetime


def malformed() -> Answer:
    """The answer to what is no OCSP request."""
    return Answer(error_response(MALFORMED_REQUEST), None, "malformed")


def try_later() -> Answer:
    """The answer while the store or the signer is away."""
    return Answer(error_response(TRY_LATER), None, "try_later")


def unauthorized() -> Answer:
    """The answer about certificates of issuers that are none of ours, or of several at once."""
    return Answer(error_response(UNAUTHORIZED), None, "unauthorized")


class Answerer:
    """Args: the ports; authorities by id, which may grow while this lives; their signers; ``lifetime`` of an answer."""

    def __init__(
        self,
        store: Store,
        signer: Signer,
        authorities: Mapping[str, Authority],
        responders: Responders,
        *,
        lifetime: timedelta = LIFETIME,
        kept: int = KEPT,
    ) -> None:
        self._store, self._signer, self._responders = store, signer, responders
        self._authorities, self._lifetime, self._size = authorities, lifetime, kept
        self._issuers: dict[tuple[str, bytes, bytes], str] = {}
        self._indexed = 0
        self._kept: OrderedDict[tuple[str, bytes], _Kept] = OrderedDict()
        self._unknown: OrderedDict[tuple[str, bytes], _Kept] = OrderedDict()

    async def answer(self, raw: bytes, now: datetime) -> Answer:
        """The response to the octets of a request. Errors of the request, the store and the signer are OCSP answers too."""
        try:
            request = parse_request(raw)
        except Malformed:
            return malformed()
        issuers = {self._issuer(cert_id) for cert_id in request.cert_ids}
        # One signer answers for one issuer: a question about several cannot be answered with authority (RFC 6960 2.3).
        issuer = issuers.pop() if len(issuers) == 1 else None
        if issuer is None:
            return unauthorized()
        try:
            responder = self._responder(issuer, now)
            statuses = await asyncio.gather(*(self._status(issuer, cert_id.serial) for cert_id in request.cert_ids))
            if request.nonce is None and len(statuses) == 1:
                return await self._kept_or_signed(responder, request.cert_ids[0], statuses[0], now)
            return await self._sign(responder, request.cert_ids, statuses, now, request.nonce)
        except (Unavailable, NotFound) as error:
            log.warning("ocsp.try_later", authority=issuer, code=error.code, text=str(error))
            return try_later()

    def _issuer(self, cert_id: CertId) -> str | None:
        if self._indexed != len(self._authorities):
            for authority in self._authorities.values():
                for name in HASHES:
                    self._issuers[name, *issuer_hashes(name, authority.certificate)] = authority.id
            self._indexed = len(self._authorities)
        return self._issuers.get((cert_id.hash, cert_id.name_hash, cert_id.key_hash))

    def _responder(self, authority: str, now: datetime) -> Responder:
        responder = self._responders.for_authority(authority)
        if responder is None or not responder.certificate.not_before <= now < responder.certificate.not_after:
            raise Unavailable(f"{authority} has no OCSP signer certificate that is valid now.")
        return responder

    async def _status(self, issuer: str, serial: int) -> Status | None:
        return await self._store.status(issuer, serial) if 0 < serial < _MAX_SERIAL else None

    async def _kept_or_signed(self, responder: Responder, cert_id: CertId, status: Status | None, now: datetime) -> Answer:
        key, said = (responder.authority.id, cert_id.der), (status, responder.certificate.sha256)
        kept = self._kept.get(key) or self._unknown.get(key)
        if kept is not None and kept.said == said and kept.since <= now < kept.renew:
            if key in self._kept:
                self._kept.move_to_end(key)
            return kept.answer
        answer = await self._sign(responder, (cert_id,), [status], now, None)
        # In the place of what was said before: an older answer never comes back.
        self._kept.pop(key, None)
        self._unknown.pop(key, None)
        if answer.fresh is not None:
            into, size, renew = self._kept, self._size, now + (answer.fresh[1] - now) / 2
        else:
            into, size, renew = self._unknown, UNKNOWN_KEPT, now + UNKNOWN_FOR
        into[key] = _Kept(said, answer, now, renew)
        if len(into) > size:
            into.popitem(last=False)
        return answer

    async def _sign(
        self, responder: Responder, cert_ids: tuple[CertId, ...], statuses: list[Status | None], now: datetime, nonce: bytes | None
    ) -> Answer:
        next_update = min(now + self._lifetime, responder.certificate.not_after)
        singles = [_single(cert_id, status, now, next_update) for cert_id, status in zip(cert_ids, statuses, strict=True)]
        public_key = responder.certificate.public_key
        data = build_response_data(responder_key=public_key, produced_at=now, singles=singles, nonce=nonce)
        signature = await self._signer.sign(Signable(responder.key, public_key, "ocsp", data))
        try:
            public_key.verify(signature, data)
        except BadSignature:
            raise Unavailable("The HSM returned a signature on an OCSP response that does not verify; it was thrown away.") from None
        der = assemble_response(data, SIGNATURES[public_key.kind], signature, [responder.certificate.der])
        said = {single.status for single in singles}
        fresh = (now, next_update) if nonce is None and "unknown" not in said else None
        return Answer(der, fresh, said.pop() if len(said) == 1 else "mixed")


def _single(cert_id: CertId, status: Status | None, now: datetime, next_update: datetime) -> Single:
    """What is said of one certificate.

    ``good`` is only what was handed out. A serial that was never given, or stands in an intent whose certificate nobody got yet, is
    ``unknown`` without nextUpdate: the next question may have another answer (RFC 6960 4.2.2.1). Revoked is revoked in every state.
    """
    if status is not None and status.revocation is not None:
        revocation = status.revocation
        return Single(cert_id, "revoked", revocation.at, revocation.reason, now, next_update)
    if status is not None and status.state is State.ISSUED:
        return Single(cert_id, "good", None, None, now, next_update)
    return Single(cert_id, "unknown", None, None, now, None)
