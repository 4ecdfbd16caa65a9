"""One certificate's status being looked for: what is asked, with which means, and what was found to be no use."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, TypeVar

from pkix.certificate import Certificate
from validate.fetched import Fetch
from validate.model import Policy, Question, Status
from validate.status_store import Link, StatusStore, issuer_key
from validate.text import Text, say

MAX_URLS = 3
"""Of one kind, in one certificate, that are tried."""
REST = 10.0
"""Seconds for which a source that was no use is not asked again about the same."""

T = TypeVar("T")


class MustWait(Exception):
    """What is asked for is not at hand, and the caller does not wait. Never leaves this room."""


@dataclass(frozen=True, slots=True)
class Inquiry:
    """Everything that finding the status of one certificate needs.

    Attributes:
        certificate, issuer, question: what is asked.
        store: what is known already.
        fetch: None if nothing may be fetched.
        waits: whether the caller does; if not, what is not at hand raises ``MustWait``.
        flights: what is being fetched in this event loop.
        nested: finds out about those who sign status, keys of whom may then not speak for themselves.
        signing: SHA-256 of these keys.
        notes: what was tried and was no use.
        chosen: signers other than the issuer, of keys as good as its own, that this question's policy takes: another might not.
    """

    certificate: Certificate
    issuer: Certificate
    question: Question
    store: StatusStore
    fetch: Fetch | None
    waits: bool
    flights: dict[str, asyncio.Task[Any]]
    nested: Callable[[frozenset[bytes]], Status]
    signing: frozenset[bytes] = frozenset()
    notes: list[Text] = field(default_factory=list)
    chosen: list[Certificate] = field(default_factory=list)

    @property
    def now(self) -> datetime:
        return self.question.now

    @property
    def key(self) -> bytes:
        return issuer_key(self.issuer)

    @property
    def link(self) -> Link:
        return self.certificate.sha256, issuer_key(self.issuer)

    @property
    def under(self) -> Policy | None:
        """The policy for which alone the answer counts; None: for any."""
        return self.question.policy if self.chosen else None

    def about(self, certificate: Certificate) -> Inquiry:
        """The same about another certificate of the same issuer: whoever signs for it."""
        return replace(self, certificate=certificate, notes=[])

    def refusal(self, url: str, about: bytes = b"") -> Text | None:
        """Why ``url`` was no use a moment ago, if it was."""
        found = self.store.refusals.get((url, about))
        return None if found is None or found[0] <= self.question.monotonic() else found[1]

    def refuse(self, url: str, why: Text, about: bytes = b"") -> Text:
        """Remembers that ``url`` is no use for now."""
        self.store.refusals.put((url, about), (self.question.monotonic() + REST, why))
        return why

    async def in_time(self, flight: str, work: Callable[[], Coroutine[Any, Any, T]], *, others: bool) -> T:
        """What ``work`` comes to, which goes by the name ``flight``: whoever asks for the same while it is under way shares it.

        With ``others`` to try after it, it gets half of the time that is left. It goes on after that, and is there for whoever asks next.
        Raises TimeoutError.
        """
        task: asyncio.Task[T] | None = self.flights.get(flight)
        if task is None:
            task = self.flights[flight] = asyncio.get_running_loop().create_task(work())
            task.add_done_callback(lambda landed: _landed(self.flights, flight, landed))
        left = max(self.question.deadline - self.question.monotonic(), 0.0)
        async with asyncio.timeout(left / 2 if others else left):
            return await asyncio.shield(task)

    @property
    def too_slow(self) -> Text:
        return say("too_slow", seconds=f"{self.question.policy.budget.total_seconds():g}")


def _landed(flights: dict[str, asyncio.Task[Any]], name: str, flight: asyncio.Task[Any]) -> None:
    if flights.get(name) is flight:
        del flights[name]
    if not flight.cancelled():
        flight.exception()  # seen, also if everybody who waited has given up
