"""Revocation: what staples, OCSP responders, CRLs and pushes say of one certificate of a path (RFC 6960, RFC 5280 6.3).

    status = Revocation(HttpFetcher(allowed_hosts=…, networks=PLANT))     # one for the life of the program
    result = await validate(chain, policy=policy, now=now, status=status)
    status.store.push(issuer_key(issuer), serial, revoked_at, "keyCompromise", now)

What was pushed counts first, then what was handed in, then what is kept, then what is fetched: OCSP before CRLs, or as ``order`` says. Who
says "revoked" and may say so is believed; "good" counts only from a source that is authentic, current and covers the certificate.
Everything that was tried and was no use is named in the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Literal
from weakref import WeakKeyDictionary

from pkix import extensions
from pkix.certificate import Certificate
from pkix.errors import Malformed
from validate.fetched import Fetch, Fetched
from validate.model import Basis, Question
from validate.status_ask import by_ocsp, signer_checked
from validate.status_inquiry import Inquiry, MustWait
from validate.status_lists import by_crl, keep
from validate.status_ocsp import judge_response, outdated, read_response
from validate.status_store import Kept, StatusStore, issuer_key
from validate.text import Text, joined, say

NO_REVOCATION_AVAILABLE = "2.5.29.56"

_GRAVITY = ("revoked", "held", "unknown", "good")
_MAX_NOTES = 8
_OCSP_SIGNER = (extensions.EXTENDED_KEY_USAGES["OCSPSigning"],)


class Revocation:
    """``validate.model.Status``.

    Args:
        fetch: the way to the network; None: nothing is fetched, whatever the policy says.
        store: what is known already; may be shared by those with the same ``responders``.
        order: which kind of source is asked first; one that is left out is not asked.
        responders: OCSP signers that are trusted by local configuration for any issuer (RFC 6960 4.2.2.2 (1)).
    """

    def __init__(
        self,
        fetch: Fetch | None = None,
        *,
        store: StatusStore | None = None,
        order: Sequence[Literal["ocsp", "crl"]] = ("ocsp", "crl"),
        responders: Sequence[Certificate] = (),
    ) -> None:
        self.store = StatusStore() if store is None else store
        self._fetch = fetch
        self._order = tuple(order)
        self._responders = tuple(responders)
        self._flights: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, asyncio.Task[Any]]] = WeakKeyDictionary()

    def at_hand(self, certificate: Certificate, issuer: Certificate, question: Question) -> Basis | None:
        """See ``Status.at_hand``."""
        if not question.staples and not question.crls:
            # The hot path: an answer that is kept.
            key = issuer_key(issuer)
            kept = self.store.answers.get((certificate.sha256, key))
            if kept is not None and kept.lists == self.store.lists and self._fresh(kept, key, question, self._online(question)):
                return self.store.overlay(kept.basis, key, certificate.serial)
        return self._at_hand(certificate, issuer, question, frozenset())

    async def find(self, certificate: Certificate, issuer: Certificate, question: Question) -> Basis:
        """See ``Status.find``."""
        return await self._find(certificate, issuer, question, frozenset())

    def learn(self, url: str, raw: bytes, issuer: Certificate, now: datetime) -> None:
        """Takes in the CRL of ``url`` that ``issuer`` signed as if it had been fetched: from a file, a mirror, a message. May take long.

        Raises:
            Malformed: it cannot be read.
        """
        kept = keep(self.store, url, Fetched(raw), issuer, now)
        if isinstance(kept, Text):
            raise Malformed(f"the CRL for {url}: {kept.en}")

    async def close(self) -> None:
        """Ends what is under way in this event loop, and closes ``fetch``. What is known stays."""
        flights = list(self._flights.pop(asyncio.get_running_loop(), {}).values())
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)
        if self._fetch is not None:
            await self._fetch.close()

    def _at_hand(self, certificate: Certificate, issuer: Certificate, question: Question, signing: frozenset[bytes]) -> Basis | None:
        inquiry = self._inquiry(certificate, issuer, question, signing, waits=False)
        try:
            basis = _now(self._known(inquiry))
            if basis is None and self._lists_come_first(certificate, self._online(question)):
                basis = _now(self._by_crl(inquiry, last=True))
        except MustWait:
            return None
        return self.store.overlay(basis, inquiry.key, certificate.serial)

    async def _find(self, certificate: Certificate, issuer: Certificate, question: Question, signing: frozenset[bytes]) -> Basis:
        inquiry = self._inquiry(certificate, issuer, question, signing, waits=True)
        basis = None
        try:
            async with asyncio.timeout(max(question.deadline - question.monotonic(), 0.0)):
                basis = await self._known(inquiry) or await self._fetched(inquiry)
        except TimeoutError:
            inquiry.notes.append(inquiry.too_slow)
        if basis is None:
            # It should have been asked for again, and could not be: by its own word it still holds.
            kept = self.store.answers.get(inquiry.link)
            basis = kept.basis if kept is not None and self._fresh(kept, inquiry.key, question, online=False) else None
        basis = self.store.overlay(basis, inquiry.key, certificate.serial)
        return basis or Basis("none", detail=joined(inquiry.notes[:_MAX_NOTES] or [say("nowhere")]))

    def _inquiry(
        self, certificate: Certificate, issuer: Certificate, question: Question, signing: frozenset[bytes], *, waits: bool
    ) -> Inquiry:
        return Inquiry(
            certificate,
            issuer,
            question,
            self.store,
            self._fetch if self._online(question) else None,
            waits,
            self._flights.setdefault(asyncio.get_running_loop(), {}) if waits else {},
            lambda keys: _Nested(self, keys),
            signing,
        )

    def _online(self, question: Question) -> bool:
        return self._fetch is not None and question.policy.status in ("hard-fail", "soft-fail")

    def _lists_come_first(self, certificate: Certificate, online: bool) -> bool:
        """Whether a list that is kept is as good as what would be fetched."""
        return "crl" in self._order and (not online or self._order[0] == "crl" or not certificate.ocsp_urls)

    def _fresh(self, kept: Kept, key: bytes, question: Question, online: bool) -> bool:
        """Whether an answer that is kept counts for this question; if nothing can be asked, also one that HTTP would have renewed."""
        basis = kept.basis
        if basis.this_update is None or basis.until is None:
            return False
        if basis.standing == "revoked":
            return True  # for ever, also if the clock has gone back meanwhile
        if (online and kept.fresh_until < question.now) or kept.under not in (None, question.policy):
            return False
        if question.nonce is not None and basis.source == "ocsp":
            return False
        if kept.signer is not None and self.store.pushed(key, kept.signer) is not None:
            return False
        return outdated(basis.this_update, basis.until, question) is None

    def _overtaken(self, kept: Kept) -> bool:
        """Whether lists came in since, which may say more."""
        return kept.lists != self.store.lists and kept.basis.standing != "revoked"

    # --- what is known, and what is asked ---------------------------------------------------------------------------

    async def _known(self, inquiry: Inquiry) -> Basis | None:
        """Pushed for ever, exempt, handed in (the gravest counts), or kept."""
        certificate, question = inquiry.certificate, inquiry.question
        pushed = self.store.overlay(None, inquiry.key, certificate.serial)
        if pushed is not None and pushed.standing == "revoked":
            return pushed
        if exempt(certificate):
            return _EXEMPT
        found = [await self._by_staple(inquiry, at) for at in range(len(question.staples))]
        if question.crls:
            found.append(await by_crl(inquiry, last=True, handed_in_only=True))
        found.append(await self._kept(inquiry))
        usable = [basis for basis in found if basis is not None]
        newest = sorted(usable, key=lambda basis: basis.this_update or question.now, reverse=True)
        basis = min(newest, key=lambda basis: _GRAVITY.index(basis.standing), default=None)
        if basis is not None and basis.standing == "revoked":
            self.store.keep_answer(inquiry.link, Kept(basis, question.now))
        return basis

    async def _kept(self, inquiry: Inquiry) -> Basis | None:
        """The answer that is kept, unless a list that came in since says worse; one worked out from lists is then worked out again."""
        kept, lists = self.store.answers.get(inquiry.link), self.store.lists
        if kept is None or not self._fresh(kept, inquiry.key, inquiry.question, inquiry.fetch is not None):
            return None
        if not self._overtaken(kept):
            return kept.basis
        if kept.basis.source != "ocsp":
            return None
        listed = await by_crl(replace(inquiry, fetch=None, notes=[]), last=True)
        if listed is not None and (listed.standing == "revoked" or (listed.standing == "held" and _newer(listed, kept.basis))):
            return listed
        self.store.keep_answer(inquiry.link, replace(kept, lists=lists))
        return kept.basis

    async def _by_staple(self, inquiry: Inquiry, at: int) -> Basis | None:
        response = inquiry.question.answered.get(("staple", at))
        if response is None:
            response = inquiry.question.answered[("staple", at)] = read_response(inquiry.question.staples[at])
        ruling = judge_response(
            response,  # type: ignore[arg-type]
            inquiry.certificate,
            inquiry.issuer,
            inquiry.question,
            source="staple",
            responders=self._responders,
        )
        basis = await signer_checked(ruling, inquiry)
        if isinstance(basis, Basis):
            return basis
        if basis.code != "not_about_it":
            inquiry.notes.append(say("unusable", source=say("the_staple"), why=basis))
        return None

    async def _fetched(self, inquiry: Inquiry) -> Basis | None:
        for kind in self._order:
            last = kind == self._order[-1] or (kind == "ocsp" and not inquiry.certificate.crl_urls)
            found = await (by_ocsp(inquiry, self._responders, last=last) if kind == "ocsp" else self._by_crl(inquiry, last=last))
            if found is not None:
                return found
        if inquiry.fetch is None:
            inquiry.notes.append(say("not_fetched"))
        return None

    async def _by_crl(self, inquiry: Inquiry, *, last: bool) -> Basis | None:
        lists = self.store.lists  # as it is now: what comes while this is worked out may say more
        basis = await by_crl(inquiry, last=last)
        if basis is not None and basis.url:
            kept = self.store.crls.get(basis.url)
            fresh_until = inquiry.now if kept is None else kept.fresh_until
            self.store.keep_answer(inquiry.link, Kept(basis, fresh_until, lists, under=inquiry.under))
        return basis


class _Nested:
    """``Revocation`` about those who sign status: ``signing`` keys do not speak for themselves."""

    def __init__(self, whole: Revocation, signing: frozenset[bytes]) -> None:
        self._whole, self._signing = whole, signing

    def at_hand(self, certificate: Certificate, issuer: Certificate, question: Question) -> Basis | None:
        return self._whole._at_hand(certificate, issuer, question, self._signing)

    async def find(self, certificate: Certificate, issuer: Certificate, question: Question) -> Basis:
        return await self._whole._find(certificate, issuer, question, self._signing)

    async def close(self) -> None:
        pass


_EXEMPT = Basis("exempt")


def exempt(certificate: Certificate) -> bool:
    """Whether no status is due: of an OCSP signer and nothing else with nocheck (RFC 6960 4.2.2.2.1), of an end entity with noRevAvail
    that does not say where its status is after all (RFC 9608)."""
    found = certificate.extensions
    nocheck = certificate.extended_key_usage == _OCSP_SIGNER and extensions.OCSP_NOCHECK in found
    unavailable = NO_REVOCATION_AVAILABLE in found and not certificate.ocsp_urls and extensions.CRL_DISTRIBUTION_POINTS not in found
    return not certificate.is_ca and (nocheck or unavailable)


def _newer(one: Basis, other: Basis) -> bool:
    return one.this_update is not None and other.this_update is not None and one.this_update > other.this_update


def _now(work: Coroutine[Any, Any, Basis | None]) -> Basis | None:
    """What ``work`` comes to if it does not wait for anything. Raises MustWait if it does."""
    try:
        work.send(None)
    except StopIteration as end:
        basis: Basis | None = end.value
        return basis
    work.close()
    raise MustWait
