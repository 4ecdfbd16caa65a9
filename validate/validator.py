"""The one entry: from what a peer presents to a Result."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator, Sequence
from datetime import datetime

from pkix.certificate import Certificate, parse_certificate
from pkix.errors import Malformed
from validate.memory import Memory, Verdict
from validate.model import ANYBODY, Anchor, Basis, Check, Expected, Monotonic, Policy, Purpose, Question, Result, Status
from validate.path import Budget, Exhausted, Path, Search, pool_of
from validate.rules import CLAUSES, Case, Upper, failed, judge, judge_authorities
from validate.text import Text, say, under

Given = bytes | Certificate
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

    async def find(links: list[Link]) -> list[Basis]:
        try:
            return await _find(links, status, question)
        finally:
            if status is not None:
                await status.close()

    try:
        links = next(reasoning)
        while True:
            links = reasoning.send(asyncio.run(find(links)))
    except StopIteration as end:
        result: Result = end.value
        return result


def _question(
    policy: Policy, now: datetime, monotonic: Monotonic, staples: Sequence[bytes], crls: Sequence[bytes], nonce: bytes | None
) -> Question:
    deadline = monotonic() + policy.budget.total_seconds()
    return Question(policy, now, monotonic, deadline, tuple(staples), tuple(crls), nonce)


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
        leaf, presented, unreadable = _parsed(given, policy, memory, budget)
    except Malformed as error:
        return _refusal(say("malformed", why=error), "RFC 5280 4.1", question, budget)
    except Exhausted as end:
        return _refusal(end.text, CLAUSES["path"], question, budget)
    pool = pool_of(policy)
    search = Search(pool, presented, policy, budget, memory, now, unreadable=unreadable)
    closest: Result | None = None
    try:
        for path in search.paths(leaf):
            for anchor in pool.anchors[path[-1]]:
                budget.path()
                upper = _upper(path[1:], policy, anchor, purpose, memory)
                checks = judge(leaf, upper, expected, now)
                fault, basis = failed(checks), _NOTHING
                if fault is None:
                    found = _at_hand(path, question, status)
                    basis = _complete(found) or (yield from _waited(path, found))
                    looked = _status_checks(path, basis, policy)
                    checks, fault = checks + looked, failed(looked)
                message = _praise(path, basis) if fault is None else _complaint(fault.detail)
                result = Result(fault is None, path, checks, basis, message, question.now, budget.signatures, budget.steps)
                if fault is None:
                    _keep(key, given, result, upper, presented, memory)
                    return result
                if closest is None or _failures(result) < _failures(closest):
                    closest = result
    except Exhausted as end:
        return closest or _refusal(end.text, CLAUSES["path"], question, budget)
    return closest or _refusal(search.dead_end(), CLAUSES["path"], question, budget)


def _parsed(given: tuple[Given, ...], policy: Policy, memory: Memory, budget: Budget) -> tuple[Certificate, list[Certificate], str]:
    """The end entity, the others that parse, and what was wrong with one that does not: what is not needed must not stand in the way.

    Raises:
        Malformed: the end entity cannot be read, or there is none.  Exhausted: there are more than anybody needs.
    """
    if not given:
        raise Malformed("there is no certificate; give the one that is to be judged first")
    leaf = given[0] if isinstance(given[0], Certificate) else parse_certificate(given[0])
    others = dict.fromkeys(given[1:])
    if len(others) > policy.max_certificates:
        raise Exhausted(say("too_many_certificates", count=len(others), limit=policy.max_certificates))
    found, unreadable = [], ""
    for count, raw in enumerate(others, 1):
        if count % 64 == 0:
            budget.look()
        try:
            found.append(raw if isinstance(raw, Certificate) else memory.issuers.get(raw) or parse_certificate(raw))
        except Malformed as error:
            unreadable = max(unreadable, str(error))
    return leaf, found, unreadable


def _upper(authorities: Path, policy: Policy, anchor: Anchor, purpose: Purpose, memory: Memory) -> Upper:
    key = authorities, policy, id(anchor), purpose  # the policy keeps its anchors alive
    upper = memory.uppers.get(key)
    if upper is None:
        upper = judge_authorities(authorities, Case(policy, anchor, purpose))
        if failed(upper.checks) is None:
            memory.uppers.put(key, upper)
    return upper


def _failures(result: Result) -> tuple[int, bool]:
    """How far from good: the fewer rules broken the closer; among equals, a path whose status was looked at."""
    return sum(check.outcome == "failed" for check in result.checks), not any(check.name == "status" for check in result.checks)


# --- revocation ----------------------------------------------------------------------------------------------------

_NOTHING: tuple[Basis, ...] = ()


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


_MAX_OCTETS = 32768
"""Of everything that was presented, up to which a verdict on it is kept: peers that are good may still present a lot of rubbish."""


def _keep(key: object, given: tuple[Given, ...], result: Result, upper: Upper, presented: list[Certificate], memory: Memory) -> None:
    for certificate in presented:
        if certificate in result.path:
            memory.keep_issuer(certificate)
    octets = sum([len(one) if isinstance(one, bytes) else len(one.der) for one in given])
    if octets <= _MAX_OCTETS and memory.seen_before(key):
        leaf = result.path[0]
        window = max(upper.not_before, leaf.not_before), min(upper.not_after, leaf.not_after)
        memory.verdicts.put(key, Verdict(result, *window))


def _again(verdict: Verdict, question: Question, now: datetime, status: Status | None) -> Result | None:
    """The verdict once more, if it holds at this moment and nobody says anything but good now; None: everything is to be looked at."""
    if not verdict.not_before <= now <= verdict.not_after:
        return None
    known = verdict.result
    found = _at_hand(known.path, question, status)
    checks, basis, message = known.checks, known.basis, known.message
    if tuple(found) != basis:
        basis = _complete(found)
        if not basis or any(one.standing not in ("good", "exempt") for one in basis):
            return None
        checks = tuple(check for check in checks if check.name != "status") + _status_checks(known.path, basis, question.policy)
        message = _praise(known.path, basis)
    return Result(True, known.path, checks, basis, message, question.now)


# --- in words ------------------------------------------------------------------------------------------------------

_UNASKED, _TRUSTED = say("status_unasked"), say("status_anchor")


def _praise(path: Path, basis: tuple[Basis, ...]) -> Text:
    status = basis[0].summary if basis else _TRUSTED if len(path) == 1 else _UNASKED
    return say("good", who=path[0], issuer=path[0].issuer, status=status)


def _complaint(why: Text) -> Text:
    """The sentence for a person, under the code of what is wrong."""
    return under(why.code, "not_good", why=why)


def _refusal(why: Text, clause: str, question: Question, budget: Budget) -> Result:
    check = Check("path", "failed", why, clause)
    return Result(False, (), (check,), (), _complaint(why), question.now, budget.signatures, budget.steps)
