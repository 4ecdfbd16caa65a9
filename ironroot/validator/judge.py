"""The one thing that every door of the service asks: what becomes of a request.

judge = Judge(policy, status=store, clock=SystemClock())
body = await judge.answer(body)            # JSON in, JSON out; raises Problem
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from ironroot.validator.api import Problem, Request, document, dumps, moment_of, read_requests
from pkix.errors import Malformed, Unavailable
from validate import Expected, Memory, Policy, Purpose, Result, Status, validate
from validate.text import moment

_BATCH_SECONDS = 10.0
_WORDED = 2048


class Clock(Protocol):
    """Where ``now`` comes from."""

    def now(self) -> datetime:
        """The present moment, UTC, whole seconds."""


class Judge:
    """Judges requests by what is trusted now; ``trust`` changes that while requests are under way.

    Args:
        policy: what is trusted.
        status: finds out about revocation; None: nothing does, and a policy that asks gets no good verdict.
        allow_now: whether a request may choose its moment (tests).
    """

    def __init__(self, policy: Policy, *, status: Status | None, clock: Clock, allow_now: bool = False) -> None:
        self._policy = policy
        self._status, self._clock, self._allow_now = status, clock, allow_now
        self._memory = Memory()
        self._worded: OrderedDict[tuple[int, bool], tuple[tuple[object, ...], bytes]] = OrderedDict()

    def trust(self, policy: Policy) -> None:
        """From the next request on."""
        self._policy = policy
        self._memory.clear()

    @property
    def policy(self) -> Policy:
        return self._policy

    async def result(
        self,
        presented: Sequence[bytes],
        *,
        purpose: Purpose,
        names: Sequence[str] = (),
        staples: Sequence[bytes] = (),
        at: datetime | None = None,
    ) -> Result:
        """The verdict on certificates, the end entity's first. Raises Problem: a name that is none."""
        try:
            expected = Expected(*names)
        except Malformed as error:
            raise Problem(error, "/names") from None
        return await validate(
            presented,
            purpose=purpose,
            expected=expected,
            now=at or self._clock.now(),
            policy=self._policy,
            status=self._status,
            staples=tuple(staples),
            memory=self._memory,
        )

    async def of(self, request: Request) -> bytes:
        """The verdict on one request, as JSON. Raises Problem."""
        result = await self.result(
            request.certificates(),
            purpose=request.purpose,
            names=request.names,
            staples=request.responses(),
            at=moment_of(request, self._clock.now(), allow_now=self._allow_now),
        )
        return self._in_words(result, request.explain)

    async def answer(self, body: bytes) -> bytes:
        """What to answer to a request or a batch of them. Raises Problem; in a batch the first stands for all."""
        requests, batch = read_requests(body)
        if not batch:
            return await self.of(requests[0])
        try:
            async with asyncio.timeout(_BATCH_SECONDS):
                outcomes = await asyncio.gather(*map(self.of, requests), return_exceptions=True)
        except TimeoutError:
            raise Problem(Unavailable(f"the batch took longer than {_BATCH_SECONDS:g} s; send fewer at once", retry_after=1)) from None
        verdicts: list[bytes] = []
        for at, outcome in enumerate(outcomes):
            if isinstance(outcome, BaseException):
                raise outcome.under(f"/{at}") if isinstance(outcome, Problem) else outcome
            verdicts.append(outcome)
        return b"[" + b",".join(verdicts) + b"]"

    def _in_words(self, result: Result, explain: bool) -> bytes:
        """The JSON of a verdict. While nothing changes the library gives the parts of a good one again, and only the moment differs."""
        parts = result.message, result.checks, result.basis, result.path
        key = (id(result.message), explain)
        kept = self._worded.get(key)
        if kept is None or any(one is not other for one, other in zip(kept[0], parts, strict=True)):
            # Holding the parts keeps their ids from being given to others.
            kept = self._worded[key] = parts, dumps(document(result, explain=explain))[:-1]
            if len(self._worded) > _WORDED:
                self._worded.popitem(last=False)
        return kept[1] + b',"at":"' + moment(result.at).encode() + b'"}'
