"""Micro-batches: requests of all connections are signed, logged with one sync, and only then answered.

    request ─> fast lane (this thread, keys that take microseconds) ─┐
           └─> slow lane (threads, keys that take longer) ───────────┴─> log thread: one append for all that is signed ─> answer
                                                                     └─> OCSP: summed up ─> answer; logged within a second

Nothing waits for a batch to fill: whatever was signed while the previous sync ran makes the next batch. So one caller alone has the
latency of one sync, and many callers share it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from os import sched_getaffinity, strerror
from typing import Any

from hsm_sim.signlog import Entry, SignLog, SyncFailed
from hsm_sim.summary import SUMMARISED, Summary
from hsm_sim.vault import Key
from hsm_sim.wire import Code, Rejected
from pkix.algorithms import KeyKind

FAST = frozenset((KeyKind.P_256, KeyKind.ED25519))  # 15-40 us each: handing them to a thread costs more than signing them
FAST_TURN = 128  # fast signatures in one turn of the loop (about 2 ms), so that other connections are read in between
SLOW_CHUNK = 8  # slow signatures per hand-over to a thread
LOG_BATCH = 1024
SUMMARY_EVERY = 1.0  # seconds from the first signature of a summary to its line, if no other line takes it along

Outcome = dict[str, Any]  # {"signature": bytes} or {"error": Code, "text": str}


def failure(error: Rejected) -> Outcome:
    """How an error looks in an answer."""
    return {"error": str(error.code), "text": error.text}


class Batch:
    """One ``sign_many``: its outcomes fill up in any order, and when the last one is there it calls ``done``."""

    def __init__(self, size: int, done: Callable[[list[Outcome]], None]) -> None:
        self._outcomes: list[Outcome] = [{}] * size
        self._missing = size
        self._done = done

    def settle(self, index: int, outcome: Outcome) -> None:
        self._outcomes[index] = outcome
        self._missing -= 1
        if not self._missing:
            self._done(self._outcomes)


class Job:
    """One signature to be made for place ``index`` of a batch."""

    __slots__ = ("batch", "entry", "index", "key", "outcome")

    def __init__(self, batch: Batch, index: int, key: Key, entry: Entry) -> None:
        self.batch, self.index, self.key, self.entry = batch, index, key, entry
        self.outcome: Outcome = {}

    def sign(self) -> None:
        try:
            self.outcome = {"signature": self.key.sign(self.entry.data)}
        except Rejected as error:
            self.outcome = failure(error)


class Signing:
    """The two lanes and the log behind them. Made inside the running loop; ``on_failure`` hears when the log cannot be trusted any more."""

    def __init__(self, log: SignLog, clock: Callable[[], datetime], on_failure: Callable[[SyncFailed], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._log, self._clock, self._on_failure = log, clock, on_failure
        self._fast: deque[Job] = deque()
        self._signed: list[Job] = []
        self._turn_due = False
        self._append: asyncio.Future[None] | None = None
        self._summary: Summary | None = None
        self._owed: list[Summary] = []  # summaries that the disk did not take; until it has, OCSP's signatures are refused like all others
        self._refused: Outcome | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due = False  # the timer ran off while an append was running
        self._slow_threads = ThreadPoolExecutor(len(sched_getaffinity(0)), "sign")
        self._log_thread = ThreadPoolExecutor(1, "signlog")

    def submit(self, jobs: Sequence[Job]) -> None:
        """Takes jobs in; their batches hear of the outcomes."""
        slow: list[Job] = []
        for job in jobs:
            (self._fast if job.key.kind in FAST else slow).append(job)
        for start in range(0, len(slow), SLOW_CHUNK):
            chunk = slow[start : start + SLOW_CHUNK]
            self._loop.run_in_executor(self._slow_threads, _sign_all, chunk).add_done_callback(lambda done: self._to_log(done.result()))
        if self._fast and not self._turn_due:
            self._turn_due = True
            self._loop.call_soon(self._take_turn)

    def _take_turn(self) -> None:
        """Signs what the fast lane holds, up to a turn's worth."""
        chunk = [self._fast.popleft() for _ in range(min(FAST_TURN, len(self._fast)))]
        self._turn_due = bool(self._fast)
        if self._turn_due:
            self._loop.call_soon(self._take_turn)
        self._to_log(_sign_all(chunk))

    def _to_log(self, jobs: list[Job]) -> None:
        now = self._clock()
        for job in jobs:
            if "signature" not in job.outcome:
                job.batch.settle(job.index, job.outcome)
            elif job.entry.purpose == SUMMARISED:
                self._sum_up(job, now)
            else:
                self._signed.append(job)
        if self._signed:
            self._sync()

    def _sum_up(self, job: Job, now: datetime) -> None:
        """Its signature leaves at once: a crash now costs the log this second's summary."""
        if self._refused is not None:
            job.outcome = self._refused
        else:
            self._summary = self._summary or Summary(now)
            self._summary.add(job.entry.key, job.entry.data, now)
            self._in_a_while()
        job.batch.settle(job.index, job.outcome)

    def _in_a_while(self) -> None:
        self._timer = self._timer or self._loop.call_later(SUMMARY_EVERY, self._tick)

    def _tick(self) -> None:
        self._timer, self._due = None, True
        self._sync()

    def _sync(self) -> None:
        """Starts the next append, summaries first, unless one is running: then that one's end does it."""
        if self._append is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._due = None, False
        batch, self._signed = self._signed[:LOG_BATCH], self._signed[LOG_BATCH:]
        summaries, self._summary, self._owed = self._owed + ([self._summary] if self._summary else []), None, []
        entries = [job.entry for job in batch]
        self._append = self._loop.run_in_executor(self._log_thread, self._log.append, entries, self._clock(), summaries)
        self._append.add_done_callback(lambda done: self._synced(batch, summaries, done))

    def _synced(self, batch: list[Job], summaries: list[Summary], append: asyncio.Future[None]) -> None:
        """The entries are durable, or not: only in the first case do the signatures leave."""
        self._append = self._refused = None
        error = append.exception()
        if error is not None:
            reason = strerror(error.errno or 0) if isinstance(error, OSError) else "its disk failed"
            refused = failure(Rejected(Code.STORAGE, f"the HSM cannot write its signature log ({reason}), so nothing was signed"))
            for job in batch:
                job.outcome = refused
            if summaries:
                self._owed, self._refused = summaries, refused
        if isinstance(error, SyncFailed):
            self._on_failure(error)
        for job in batch:
            job.batch.settle(job.index, job.outcome)
        if self._signed or self._due:
            self._sync()
        elif self._owed or self._summary:
            self._in_a_while()

    async def close(self) -> None:
        """Writes the last summary and ends the threads, when nothing else is running any more. Raises OSError, SyncFailed."""
        self._slow_threads.shutdown()
        while self._append is not None:
            await asyncio.wait([self._append])
        if self._owed or self._summary:
            self._sync()
        try:
            if self._append is not None:
                await self._append
        finally:
            if self._timer is not None:
                self._timer.cancel()
            self._log_thread.shutdown()


def _sign_all(jobs: list[Job]) -> list[Job]:
    for job in jobs:
        job.sign()
    return jobs
