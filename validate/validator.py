"""The one entry: from a certificate to a Result."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import datetime

from pkix.certificate import Certificate, parse_certificate
from pkix.errors import Malformed
from validate.model import Check, Fetcher, Policy, Result, StatusEvidence
from validate.path import Path, Search
from validate.rules import judge
from validate.statements import Asked
from validate.status import Inquiry, revocation, source_text
from validate.text import Text, say, under

_MAX_PATHS = 16


async def validate(
    certificate: bytes | Certificate,
    *,
    trust: Iterable[bytes | Certificate],
    now: datetime,
    chain: Iterable[bytes | Certificate] = (),
    policy: Policy | None = None,
    fetch: Fetcher | None = None,
    staples: Iterable[bytes] = (),
    crls: Iterable[bytes] = (),
    nonce: bytes | None = None,
) -> Result:
    """Judges one certificate. Never raises for what is in certificates, chains, staples, CRLs or answers: that is in the result.

    Args:
        certificate: the end entity, DER or parsed.
        trust: trust anchors. Their names, keys and constraints count; their own signatures and revocation do not.
        now: the moment to judge for, aware.
        chain: other certificates that came with it or are at hand; any order, duplicates and strangers welcome, none is trusted.
        policy: what is asked; default ``Policy()``: any purpose, any name, status required.
        fetch: for OCSP and CRLs of the URLs in the certificates; None: nothing is fetched.
        staples, crls: OCSP responses and CRLs in DER that are at hand; used before anything is fetched.
        nonce: octets that OCSP responders must repeat (16 to 32, fresh for each call); None: none is sent.

    Returns:
        The result of the first path on which all holds, or of the one that came closest.
    """
    policy = Policy() if policy is None else policy
    try:
        leaf = _parsed(certificate)
    except Malformed as error:
        return _refusal(say("malformed", why=error), "RFC 5280 4.1", now)
    unreadable: list[Malformed] = []
    search = Search(
        _readable(trust, unreadable),
        _readable(chain, unreadable),
        now,
        max_intermediates=policy.max_intermediates,
        unreadable=str(unreadable[0]) if unreadable else "",
    )
    inquiry = Inquiry(Asked(policy, now, nonce), fetch, tuple(staples), tuple(crls))
    closest: Result | None = None
    for _, path in zip(range(_MAX_PATHS), search.paths(leaf), strict=False):
        result = await _judged(path, inquiry)
        if result.good:
            return result
        if closest is None or _failures(result) < _failures(closest):
            closest = result
    return closest or _refusal(search.dead_end(), "RFC 5280 6.1", now)


def validate_sync(
    certificate: bytes | Certificate,
    *,
    trust: Iterable[bytes | Certificate],
    now: datetime,
    chain: Iterable[bytes | Certificate] = (),
    policy: Policy | None = None,
    fetch: Fetcher | None = None,
    staples: Iterable[bytes] = (),
    crls: Iterable[bytes] = (),
    nonce: bytes | None = None,
) -> Result:
    """``validate`` in an event loop of its own, for code that has none running. Closes ``fetch`` at the end; it may be given again."""

    async def run() -> Result:
        try:
            return await validate(
                certificate, trust=trust, now=now, chain=chain, policy=policy, fetch=fetch, staples=staples, crls=crls, nonce=nonce
            )
        finally:
            if fetch is not None:
                await fetch.close()

    return asyncio.run(run())


async def _judged(path: Path, inquiry: Inquiry) -> Result:
    """One complete path: the rules, and then, if they hold, revocation."""
    checks = judge(path, inquiry.asked.policy, inquiry.asked.now)
    evidence: tuple[StatusEvidence, ...] = ()
    if not any(check.outcome == "fail" for check in checks):
        found, evidence = await revocation(path, inquiry)
        checks += found
    failed = next((check for check in checks if check.outcome == "fail"), None)
    message = _praise(path, checks, evidence) if failed is None else _complaint(failed.message)
    return Result(failed is None, path, checks, evidence, message, inquiry.asked.now)


def _failures(result: Result) -> tuple[int, bool]:
    """How far from good: the fewer rules broken the closer; among equals, a path whose status was looked at."""
    return sum(check.outcome == "fail" for check in result.checks), not any(check.name == "status" for check in result.checks)


def _praise(path: Path, checks: tuple[Check, ...], evidence: tuple[StatusEvidence, ...]) -> Text:
    own = next((check for check in checks if check.name == "status"), None)
    if own is not None and own.outcome == "pass":
        status = say("status_good", source=source_text(evidence[0]))
    elif len(path) == 1:
        status = say("status_anchor")
    elif own is not None and own.code == "status_exempt":
        status = own.message
    else:
        status = say("status_unasked" if own is None or own.code != "status_partial" else "status_forgiven")
    return say("good", who=path[0], issuer=path[0].issuer, status=status)


def _complaint(why: Text) -> Text:
    """The sentence for a person, under the code of what is wrong."""
    return under(why.code, "not_good", why=why)


def _refusal(why: Text, clause: str, now: datetime) -> Result:
    return Result(False, (), (Check("path", "fail", why, clause),), (), _complaint(why), now)


def _parsed(certificate: bytes | Certificate) -> Certificate:
    return certificate if isinstance(certificate, Certificate) else parse_certificate(certificate)


def _readable(certificates: Iterable[bytes | Certificate], unreadable: list[Malformed]) -> list[Certificate]:
    """Those that parse: what is broken and not needed must not stand in the way of what is good."""
    found = []
    for certificate in certificates:
        try:
            found.append(_parsed(certificate))
        except Malformed as error:
            unreadable.append(error)
    return found
