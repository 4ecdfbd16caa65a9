"""The one entry: from what a peer presents to a Result."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from datetime import datetime
from functools import partial

from pkix.certificate import Certificate, parse_certificate
from pkix.errors import Malformed
from validate.account import CLAUSES, checks_of, failed
from validate.memory import Given, Memory, Verdict
from validate.model import ANYBODY, Anchor, Basis, Check, Checks, Expected, Monotonic, Policy, Purpose, Question, Result, Status
from validate.path import Budget, Exhausted, Path, Search, pool_of, signed_by
from validate.rules import Case, Faults, Upper, holds, judge, judge_authorities
from validate.text import Text, say, under

Link = tuple[Certificate, Certificate]
"""A certificate and its issuer's."""

_SINGLE = (bytes, Certificate)
_GRACE = 0.25
"""Seconds beyond the budget that a status store has to come up with what it has."""
_Waiting = Generator[list[Link], list[Basis], Result]
"""Yields links whose status has to be waited for, and is sent what was found."""


async def validate(
    chain: Given | Sequence[Given],
    *,
    policy: Policy,
    now: datetime,
    purpose: Purpose = "any",
    expected: Expected = ANYBODY,
    status: Status | None = None,
    staples: Sequence[bytes] = (),
    crls: Sequence[bytes] = (),
    nonce: bytes | None = None,
    memory: Memory | None = None,
    monotonic: Monotonic = time.monotonic,
) -> Result:
    """Judges one certificate. Never raises for what is in certificates, staples, CRLs or answers: that is in the result.

    Args:
        chain: the end entity, DER or parsed; or a sequence of which it is the first, and the others are whatever came with it or is at
            hand: any order, duplicates and strangers welcome, none is trusted.
        policy: anchors, and what is accepted.
        now: the moment to judge for, aware.
        purpose: what the certificate is to be used for.
        expected: names that it must have.
        status: finds out about revocation; None: only ``Policy.status`` ``none`` and ``soft-fail`` can end well.
        staples, crls: OCSP responses and CRLs in DER that are at hand; used before anything is fetched.
        nonce: octets that OCSP responders must repeat (16 to 32, fresh for each call); None: none is sent.
        memory: what earlier validations found out; None: nothing is remembered.
        monotonic: clock for the time budget, in seconds.

    Returns:
        The result of the first path on which all holds, or of the one that came closest.
    """
    memory = Memory() if memory is None else memory
    question = _question(policy, now, monotonic, staples, crls, nonce)
    reasoning = _reasoning(chain, purpose, expected, question, status, memory)
    try:
        links = next(reasoning)
        while True:
            links = reasoning.send(await _find(links, status, question))
    except StopIteration as end:
        result: Result = end.value
        return result


def validate_sync(
    chain: Given | Sequence[Given],
    *,
    policy: Policy,
    now: datetime,
    purpose: Purpose = "any",
    expected: Expected = ANYBODY,
    status: Status | None = None,
    staples: Sequence[bytes] = (),
    crls: Sequence[bytes] = (),
    nonce: bytes | None = None,
    memory: Memory | None = None,
    monotonic: Monotonic = time.monotonic,
) -> Result:
    """``validate`` for code that runs no event loop. One is made only if something has to be fetched; then ``status`` is closed after it,
    and may be used again."""
    memory = Memory() if memory is None else memory
    question = _question(policy, now, monotonic, staples, crls, nonce)
    reasoning = _reasoning(chain, purpose, expected, question, status, memory)
    try:
        links = next(reasoning)
        while True:
            links = reasoning.send(asyncio.run(_find_and_close(links, status, question)))
    except StopIteration as end:
        result: Result = end.value
        return result


def _question(
    policy: Policy, now: datetime, monotonic: Monotonic, staples: Sequence[bytes], crls: Sequence[bytes], nonce: bytes | None
) -> Question:
    deadline = monotonic() + policy.budget.total_seconds()
    return Question(policy, now, now - policy.skew, now + policy.skew, monotonic, deadline, tuple(staples), tuple(crls), nonce)


async def _find_and_close(links: list[Link], status: Status | None, question: Question) -> list[Basis]:
    try:
        return await _find(links, status, question)
    finally:
        if status is not None:
            await status.close()


async def _find(links: list[Link], status: Status | None, question: Question) -> list[Basis]:
    if status is None:
        return [Basis("none", detail=say("no_status_source"))] * len(links)
    left = max(question.deadline - question.monotonic(), 0)

    async def one(link: Link) -> Basis:
        try:
            # The store keeps to the deadline by itself; this is for the case that it hangs.
            async with asyncio.timeout(left + _GRACE):
                return await status.find(*link, question)
        except TimeoutError:
            return Basis("none", detail=say("too_slow", seconds=f"{question.policy.budget.total_seconds():g}"))

    return list(await asyncio.gather(*map(one, links)))


# --- the reasoning, without I/O ------------------------------------------------------------------------------------


def _reasoning(
    chain: Given | Sequence[Given], purpose: Purpose, expected: Expected, question: Question, status: Status | None, memory: Memory
) -> _Waiting:
    given = (chain,) if isinstance(chain, _SINGLE) else tuple(chain)
    policy, now = question.policy, question.now.replace(microsecond=0) if question.now.microsecond else question.now
    key = given, purpose, expected.names, policy
    known = memory.verdicts.get(key)
    if known is not None and (again := _again(known, question, now, status)) is not None:
        return again
    budget = Budget(policy, question.monotonic, question.deadline)
    try:
        leaf = _end_entity(given)
    except Malformed as error:
        return _refusal(say("malformed", why=error), "RFC 5280 4.1", question, budget)
    way = leaf.issuer.der, given[1:], policy, purpose
    search, closest = None, None
    try:
        paths = _known_path(leaf, memory.ways.get(way), policy, memory, budget)
        if not paths:
            search = _search(given, policy, now, memory, budget)
            paths = _paths(leaf, search, policy, purpose, memory, budget)
        for path, upper in paths:
            faults = judge(leaf, upper, expected, now)
            basis: tuple[Basis, ...] | None = None
            if holds(upper, faults, now):
                found = _at_hand(path, question, status)
                basis = _complete(found) or (yield from _waited(path, found))
            checks = Checks(partial(_account, path, upper, expected, now, faults, basis))
            good = basis is not None and (_is_good(basis) or not failed(checks))
            message = _praise(path, basis) if good else _complaint(failed(checks)[0].detail)
            result = Result(good, path, checks, basis or (), message, question.now, budget.signatures, budget.steps)
            if good:
                if search is not None:
                    memory.keep_way(way, upper, only=search.only_one)
                if memory.seen_before(key):
                    window = max(upper.not_before, leaf.not_before), min(upper.not_after, leaf.not_after)
                    memory.keep_verdict(key, Verdict(result, *window))
                return result
            if closest is None or _failures(result) < _failures(closest):
                closest = result
    except Exhausted as end:
        return closest or _refusal(end.text, CLAUSES["path"], question, budget)
    return closest or _refusal(say("too_complex") if search is None else search.dead_end(), CLAUSES["path"], question, budget)


def _end_entity(given: tuple[Given, ...]) -> Certificate:
    """Raises Malformed: it cannot be read, or there is none."""
    if not given:
        raise Malformed("there is no certificate; give the one that is to be judged first")
    return given[0] if isinstance(given[0], Certificate) else parse_certificate(given[0])


def _known_path(leaf: Certificate, upper: Upper | None, policy: Policy, memory: Memory, budget: Budget) -> Iterable[tuple[Path, Upper]]:
    """The one path that there can be, if it is known and the signature on ``leaf`` verifies; else nothing, and what there is has to be
    searched. Raises Exhausted."""
    if upper is None or leaf.der in pool_of(policy).anchors or leaf.spki in [authority.spki for authority in upper.path]:
        return ()
    return (((leaf, *upper.path), upper),) if signed_by(leaf, upper.path[0], memory, budget) is None else ()


def _search(given: tuple[Given, ...], policy: Policy, now: datetime, memory: Memory, budget: Budget) -> Search:
    """A search among what was presented beside the end entity. What is not needed must not stand in the way if it cannot be read.

    Raises:
        Exhausted: more was presented than anybody needs.
    """
    others = dict.fromkeys(given[1:])
    if len(others) > policy.max_certificates:
        raise Exhausted(say("too_many_certificates", count=len(others), limit=policy.max_certificates))
    presented, unreadable = [], ""
    for count, raw in enumerate(others, 1):
        if count % 64 == 0:
            budget.look()
        try:
            presented.append(raw if isinstance(raw, Certificate) else memory.issuers.get(raw) or parse_certificate(raw))
        except Malformed as error:
            unreadable = max(unreadable, str(error))
    return Search(pool_of(policy), presented, policy, budget, memory, now, unreadable=unreadable)


def _paths(
    leaf: Certificate, search: Search, policy: Policy, purpose: Purpose, memory: Memory, budget: Budget
) -> Iterator[tuple[Path, Upper]]:
    """Every path under every anchor that its last certificate is. Raises Exhausted."""
    for path in search.paths(leaf):
        for anchor in pool_of(policy).anchors[path[-1].der]:
            budget.path()
            yield path, _upper(path[1:], policy, anchor, purpose, memory)


def _upper(authorities: Path, policy: Policy, anchor: Anchor, purpose: Purpose, memory: Memory) -> Upper:
    key = authorities, policy, id(anchor), purpose  # the policy keeps its anchors alive
    upper = memory.uppers.get(key)
    if upper is None:
        upper = judge_authorities(authorities, Case(policy, anchor, purpose))
        if upper.sound:
            memory.uppers.put(key, upper)
    return upper


def _failures(result: Result) -> tuple[int, bool]:
    """How far from good: the fewer rules broken the closer; among equals, a path whose status was looked at."""
    return len(failed(result.checks)), not any(check.name == "status" for check in result.checks)


def _account(
    path: Path, upper: Upper, expected: Expected, now: datetime, faults: Faults, basis: tuple[Basis, ...] | None
) -> tuple[Check, ...]:
    """All checks of a path; ``basis`` None: revocation was not looked at."""
    checks = checks_of(path[0], upper, expected, now, faults)
    return checks if basis is None else checks + _status_checks(path, basis, upper.case.policy)


# --- revocation ----------------------------------------------------------------------------------------------------


def _at_hand(path: Path, question: Question, status: Status | None) -> list[Basis | None]:
    """What the status of each certificate below the anchor rests on, as far as nothing has to be waited for."""
    if question.policy.status == "none":
        return []
    if status is None:
        return [None] * (len(path) - 1)
    return [status.at_hand(path[at], path[at + 1], question) for at in range(len(path) - 1)]


def _complete(found: list[Basis | None]) -> tuple[Basis, ...]:
    """``found`` if nothing is missing, else nothing."""
    known = tuple([basis for basis in found if basis is not None])
    return known if len(known) == len(found) else ()


def _waited(path: Path, found: list[Basis | None]) -> Generator[list[Link], list[Basis], tuple[Basis, ...]]:
    """``found`` with what is missing."""
    missing = [at for at, basis in enumerate(found) if basis is None]
    fetched = iter((yield [(path[at], path[at + 1]) for at in missing]) if missing else ())
    return tuple([next(fetched) if basis is None else basis for basis in found])


_WELL = frozenset(("good", "exempt"))


def _is_good(basis: Sequence[Basis]) -> bool:
    return _WELL.issuperset([one.standing for one in basis])


def _status_checks(path: Path, basis: tuple[Basis, ...], policy: Policy) -> tuple[Check, ...]:
    if policy.status == "none":
        return (_STATUS_UNASKED,)
    return tuple([_status_check(index, path[index], found, policy) for index, found in enumerate(basis)])


_STATUS_UNASKED = Check("status", "skipped", say("status_skipped"), CLAUSES["status"])
_CLAUSES = {"staple": "RFC 6960 3.2", "ocsp": "RFC 6960 3.2", "crl": "RFC 5280 6.3.3", "delta": "RFC 5280 6.3.3"}


def _status_check(index: int, certificate: Certificate, basis: Basis, policy: Policy) -> Check:
    clause = _CLAUSES.get(basis.source, CLAUSES["status"])
    match basis.standing:
        case "good":
            return Check("status", "ok", say("not_revoked", who=certificate, source=basis.origin), clause, index)
        case "exempt":
            return Check("status", "skipped", say("status_exempt"), "RFC 6960 4.2.2.2.1; RFC 9608", index)
        case "none":
            why = basis.detail or say("nowhere")
            if policy.status == "soft-fail":
                return Check("status", "unknown", say("status_partial", who=certificate, why=why), clause, index)
            return Check("status", "failed", say("no_status", who=certificate, why=why), clause, index)
        case "unknown":
            return Check("status", "failed", say("unknown_serial", who=certificate, source=basis.origin), clause, index)
        case "held" | "revoked":
            code = "on_hold" if basis.standing == "held" else "revoked"
            reason = basis.reason or "unspecified"
            said = say(code, who=certificate, at=basis.revoked_at, reason=reason, source=basis.origin)
            return Check("status", "failed", said, clause, index)


# --- again ------------------------------------------------------------------------------------------------------


def _again(verdict: Verdict, question: Question, now: datetime, status: Status | None) -> Result | None:
    """The verdict once more, if it holds at this moment and nobody says anything but good now; None: everything is to be looked at."""
    if not verdict.not_before <= now <= verdict.not_after:
        return None
    known = verdict.result
    found = _at_hand(known.path, question, status)
    checks, basis, message = known.checks, known.basis, known.message
    if tuple(found) != basis:
        basis = _complete(found)
        if not basis or not _is_good(basis):
            return None
        checks = Checks(partial(_again_in_words, known, basis, question.policy))
        message = _praise(known.path, basis)
    return Result(True, known.path, checks, basis, message, question.now)


def _again_in_words(known: Result, basis: tuple[Basis, ...], policy: Policy) -> tuple[Check, ...]:
    return tuple([check for check in known.checks if check.name != "status"]) + _status_checks(known.path, basis, policy)


# --- in words ------------------------------------------------------------------------------------------------------

_UNASKED, _TRUSTED = say("status_unasked"), say("status_anchor")


def _praise(path: Path, basis: tuple[Basis, ...] | None) -> Text:
    status = basis[0].summary if basis else _TRUSTED if len(path) == 1 else _UNASKED
    return say("good", who=path[0], issuer=path[0].issuer, status=status)


def _complaint(why: Text) -> Text:
    """The sentence for a person, under the code of what is wrong."""
    return under(why.code, "not_good", why=why)


def _refusal(why: Text, clause: str, question: Question, budget: Budget) -> Result:
    check = Check("path", "failed", why, clause)
    return Result(False, (), (check,), (), _complaint(why), question.now, budget.signatures, budget.steps)
