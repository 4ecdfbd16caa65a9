"""Getting hold of CRLs and deltas for one certificate, and what they come to (RFC 5280 6.3).

    basis = await by_crl(inquiry, last=True)        # None: no list was of use; ``inquiry.notes`` say why

Lists that were handed in come first, then, for each distribution point, its URLs in turn. A list is kept until its nextUpdate by the URL it
came from, and the one that is there gives way only to a newer one, rightly signed, of the same scope. Long lists are read aside, and go on
being read when the time of the validation that asked for them is up: the next one finds them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime, timedelta

from pkix.certificate import Certificate
from pkix.errors import IronrootError, Malformed
from validate.crl_check import Origin, Tally, unpaired
from validate.crl_load import INLINE, LoadedCrl, aside, read
from validate.crl_points import Point, freshest, points
from validate.crl_signer import authorised, signed_by
from validate.fetched import Fetch, Fetched
from validate.model import Basis
from validate.names import subject
from validate.status_inquiry import MAX_URLS, REST, Inquiry, MustWait
from validate.status_ocsp import outdated
from validate.status_store import KeptCrl, StatusStore
from validate.text import Text, say

Listed = tuple[LoadedCrl, Origin]

_MAX_LISTS = 8
"""Complete lists that are fetched for one certificate, about."""


async def by_crl(inquiry: Inquiry, *, last: bool, handed_in_only: bool = False) -> Basis | None:
    """What complete lists, with their deltas, say; None if they do not say it for every reason."""
    try:
        listed = points(inquiry.certificate)
    except Malformed as error:
        inquiry.notes.append(say("unusable_detail", why=error))
        return None
    tally = Tally(inquiry.certificate, inquiry.question)
    handed = await _handed_in(inquiry)
    deltas = [crl for crl in handed if crl.index.base is not None]
    tried: set[str] = set()
    for at, point in enumerate(listed):
        await _from_handed(inquiry, tally, point, handed, deltas)
        if not handed_in_only:
            urls = [url for url in point.urls[:MAX_URLS] if url in tried or len(tried) < _MAX_LISTS]
            tried.update(urls)
            await _from_urls(inquiry, tally, point, urls, deltas, others=at + 1 < len(listed) or not last)
        if tally.basis is not None:
            return tally.basis
    if tally.reasons:
        inquiry.notes.append(say("crl_reasons"))
    return None


async def _from_handed(inquiry: Inquiry, tally: Tally, point: Point, handed: Sequence[LoadedCrl], deltas: Sequence[LoadedCrl]) -> None:
    """Lists that were handed in: those that revoke first, then those of the issuer's own key, then the newest."""
    own = inquiry.issuer.ski
    for crl in sorted(handed, key=lambda crl: (not tally.revokes(crl), crl.index.aki != own, -crl.this_update.timestamp())):
        if tally.covers(point):
            return
        problem = await _taken(inquiry, tally, point, (crl, Origin()), deltas)
        if problem is not None and problem.code not in ("not_about_it", "crl_is_delta"):
            inquiry.notes.append(say("unusable", source=say("the_list"), why=problem))


async def _from_urls(
    inquiry: Inquiry, tally: Tally, point: Point, urls: Sequence[str], deltas: Sequence[LoadedCrl], *, others: bool
) -> None:
    for at, url in enumerate(urls):
        if tally.covers(point):
            return
        crl = await fetched_list(inquiry, url, others=others or at + 1 < len(urls))
        problem = crl if isinstance(crl, Text) else await _taken(inquiry, tally, point, (crl, Origin(url)), deltas)
        if problem is not None:
            unreached = problem.code in ("unreachable", "not_fetched")
            inquiry.notes.append(problem if unreached else say("unusable", source=say("the_point", url=url), why=problem))


async def _taken(inquiry: Inquiry, tally: Tally, point: Point, listed: Listed, deltas: Sequence[LoadedCrl]) -> Text | None:
    """RFC 5280 6.3.3 (b) to (k) for one list; why it is no use, or None."""
    crl, origin = listed
    problem = tally.unfit(point, crl)
    if problem is not None:
        return problem
    signer = await authorised(inquiry, crl)
    if isinstance(signer, Text):
        return signer
    if signer is not inquiry.issuer:
        inquiry.chosen.append(signer)
    delta = await _delta(inquiry, crl, signer, deltas)
    return tally.take(point, crl, *((None, origin) if delta is None else delta))


async def _delta(inquiry: Inquiry, crl: LoadedCrl, signer: Certificate, deltas: Sequence[LoadedCrl]) -> Listed | None:
    """The newest delta that brings ``crl`` up to date; without one it counts as it is (RFC 5280 5.2.4)."""
    found: list[Listed] = [(delta, Origin()) for delta in deltas if delta.issuer == crl.issuer]
    try:
        urls = dict.fromkeys((*crl.freshest, *freshest(inquiry.certificate)))
    except Malformed as error:
        inquiry.notes.append(say("unusable_detail", why=error))
        urls = {}
    for url in list(urls)[:MAX_URLS]:
        delta = await fetched_list(inquiry, url, others=True)
        if isinstance(delta, Text):
            inquiry.notes.append(delta)
        else:
            found.append((delta, Origin(url)))
    usable = []
    for delta, origin in found:
        problem = await signed_by(inquiry, delta, signer) or unpaired(crl, delta)
        problem = problem or outdated(delta.this_update, delta.index.next_update or delta.this_update, inquiry.question)
        if problem is None:
            usable.append((delta, origin))
        else:
            inquiry.notes.append(say("unusable", source=say("the_delta"), why=problem))
    return max(usable, key=lambda listed: listed[0].index.number or 0, default=None)


# --- getting hold of lists -----------------------------------------------------------------------------------------


async def _handed_in(inquiry: Inquiry) -> list[LoadedCrl]:
    """The lists of the question, read once in the life of the store, by their digest."""
    found = []
    for at, raw in enumerate(inquiry.question.crls):
        key = ("crl", at)
        crl = inquiry.question.answered.get(key)
        if crl is None:
            if len(raw) > INLINE and not inquiry.waits:
                raise MustWait
            crl = _recalled(inquiry, raw) if len(raw) <= INLINE else await aside(_recalled, inquiry, raw)
            inquiry.question.answered[key] = crl
        if isinstance(crl, LoadedCrl):
            found.append(crl)
        elif isinstance(crl, Text):
            inquiry.notes.append(say("unusable", source=say("the_list"), why=crl))
    return found


def _recalled(inquiry: Inquiry, raw: bytes) -> LoadedCrl | Text:
    digest = hashlib.sha256(raw).digest()
    kept = inquiry.store.crls.get(digest)
    if kept is not None:
        return kept.crl
    crl = read(raw)
    if isinstance(crl, LoadedCrl):
        inquiry.store.crls.put(digest, KeptCrl(crl, inquiry.now), crl.octets)
    return crl


async def fetched_list(inquiry: Inquiry, url: str, *, others: bool) -> LoadedCrl | Text:
    """The list of ``url``: kept and fresh, or fetched now; one flight for each URL. What is kept stands in for what cannot be had."""
    kept = inquiry.store.crls.get(url)
    if kept is not None and kept.fresh_until > inquiry.now:
        return kept.crl
    problem = say("not_fetched") if inquiry.fetch is None else inquiry.refusal(url)
    if problem is None and inquiry.fetch is not None:
        if not inquiry.waits:
            raise MustWait
        fetch = inquiry.fetch
        try:
            crl = await inquiry.in_time(f"crl {url}", lambda: _flight(inquiry, fetch, url), others=others)
            if isinstance(crl, LoadedCrl):
                return crl
            problem = crl
        except TimeoutError:
            problem = say("unreachable", url=url, why=say("out_of_patience"))
    if kept is None:
        return problem or say("not_fetched")
    if problem is not None and problem.code != "not_fetched":
        inquiry.notes.append(problem)
    return kept.crl


async def _flight(inquiry: Inquiry, fetch: Fetch, url: str) -> LoadedCrl | Text:
    try:
        fetched = await fetch.fetch(url)
    except IronrootError as error:
        return inquiry.refuse(url, say("unreachable", url=url, why=error))
    work = (inquiry.store, url, fetched, inquiry.issuer, inquiry.now)
    crl = keep(*work) if len(fetched.body) <= INLINE else await aside(keep, *work)
    return inquiry.refuse(url, crl) if isinstance(crl, Text) else crl


def keep(store: StatusStore, url: str, fetched: Fetched, issuer: Certificate, now: datetime) -> LoadedCrl | Text:
    """Reads the list of ``url``, of which ``issuer`` may be the signer, and keeps it unless what is kept is better.

    Returns the list that is to be used, or why this one cannot be read. May take long.
    """
    crl = read(fetched.body)
    if isinstance(crl, Text):
        return crl
    if crl.issuer == subject(issuer):
        crl.check(issuer)
    # Whoever stands on the line could send the list of yesterday, or of another partition: it does not take the place of what is better.
    kept = store.crls.get(url)
    if kept is not None and kept.crl.verified and not _succeeds(crl, kept.crl):
        return kept.crl
    rest = now + timedelta(seconds=REST)
    until = crl.index.next_update if crl.verified else None
    store.keep_list(url, crl, rest if until is None else max(fetched.until(until, now), rest))
    return crl


def _succeeds(crl: LoadedCrl, kept: LoadedCrl) -> bool:
    return crl.verified and crl.scope == kept.scope and crl.issuer == kept.issuer and crl.this_update >= kept.this_update
