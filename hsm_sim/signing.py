"""Micro-batches: signatures of all connections are made, logged with one sync, and only then answered.

    order ─> fast lane (this thread, keys that take microseconds) ─┐
         └─> slow lane (threads, keys that take longer) ───────────┴─> audit: a line per key and purpose, one sync for all ─> answer
                                                                   └─> OCSP: summed up ─> answer; logged within a second

Whatever was signed while the previous sync ran shares the next one. What the fast lane has signed goes to the log when it is half of what
is there, so that a sync and the signatures of the other half run side by side. Nothing waits for what has not been asked for: one caller
alone has the latency of one sync, and many callers share it.

Here nothing is permitted or refused but for the disk: roles, attributes, limits and the laboratory are the partition's, which comes first.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from os import sched_getaffinity

from hsm_sim.audit import AuditLog
from hsm_sim.errors import Rejected
from hsm_sim.roles import Caller
from hsm_sim.summary import SUMMARISED

FAST_TURN = 64  # fast signatures in one turn of the loop (about a millisecond), so that answers leave and others are read in between
GATHER = 128  # fast signatures that go to the log in any case, however many are waiting
SLOW_CHUNK = 8  # slow signatures per hand-over to a thread

Outcome = bytes | Rejected


class Order:
    """Signatures with one key for one purpose, over one input or many.

    Args:
        caller: for whom.  label: the key's, for the log.  mech: the mechanism's name, for the log.
        purpose: what for, as the client says; ``ocsp`` is summed up in the log and does not wait for the disk.
        sign: makes one signature of one input; raises Rejected. Called in another thread unless ``fast``.
        fast: it takes microseconds (P-256, Ed25519): handing it to a thread would cost more than signing.
        inputs: what is signed, in order.
        done: called once, in the loop, with one outcome per input.
    """

    __slots__ = ("caller", "done", "fast", "inputs", "label", "mech", "outcomes", "purpose", "sign", "taken")

    def __init__(
        self,
        caller: Caller,
        label: str,
        mech: str,
        purpose: str,
        sign: Callable[[bytes], bytes],
        inputs: Sequence[bytes],
        done: Callable[[list[Outcome]], None],
        *,
        fast: bool,
    ) -> None:
        self.caller, self.label, self.mech, self.purpose = caller, label, mech, purpose
        self.sign, self.inputs, self.done, self.fast = sign, inputs, done, fast
        self.outcomes: list[Outcome] = []
        self.taken = 0


class Signing:
    """The two lanes. Made inside the running loop."""

    def __init__(self, audit: AuditLog) -> None:
        self._loop = asyncio.get_running_loop()
        self._audit = audit
        self._fast: deque[Order] = deque()
        self._turn_due = False
        self._waiting = 0  # inputs in the fast lane
        self._gathered: list[Order] = []  # signed there and not in the log yet
        self._threads = ThreadPoolExecutor(len(sched_getaffinity(0)), "sign")

    def submit(self, order: Order) -> None:
        """Takes an order in; its ``done`` hears of the outcomes when the log has them."""
        if not order.fast:
            order.outcomes = [b""] * len(order.inputs)
            for start in range(0, len(order.inputs), SLOW_CHUNK):
                self._hand_over(order, start)
            return
        self._fast.append(order)
        self._waiting += len(order.inputs)
        if not self._turn_due:
            self._turn_due = True
            self._loop.call_soon(self._take_turn)

    def _hand_over(self, order: Order, start: int) -> None:
        """Has a chunk of a slow order signed in a thread."""

        def made(future: Future[list[Outcome]]) -> None:
            self._loop.call_soon_threadsafe(self._put, order, start, future)

        self._threads.submit(_make, order.sign, order.inputs[start : start + SLOW_CHUNK]).add_done_callback(made)

    def _put(self, order: Order, start: int, future: Future[list[Outcome]]) -> None:
        outcomes = future.result()
        order.outcomes[start : start + len(outcomes)] = outcomes
        order.taken += len(outcomes)
        if order.taken == len(order.inputs):
            self._made(order)

    def _take_turn(self) -> None:
        """Signs what the fast lane holds, up to a turn's worth."""
        room = FAST_TURN
        while room > 0 and self._fast:
            order = self._fast[0]
            outcomes = _make(order.sign, order.inputs[order.taken : order.taken + room])
            order.outcomes += outcomes
            order.taken += len(outcomes)
            room -= len(outcomes)
            if order.taken < len(order.inputs):
                break
            self._fast.popleft()
            if order.purpose == SUMMARISED:
                self._made(order)
            else:
                self._gathered.append(order)
        self._turn_due = bool(self._fast)
        if self._turn_due:
            self._loop.call_soon(self._take_turn)
        self._waiting -= FAST_TURN - room
        if sum(len(order.inputs) for order in self._gathered) >= min(self._waiting, GATHER):
            gathered, self._gathered = self._gathered, []
            for order in gathered:
                self._made(order)

    def _made(self, order: Order) -> None:
        """All its signatures are made; now the log has to have them."""
        outcomes = order.outcomes
        whole = set(map(type, outcomes)) == {bytes}
        good = order.inputs if whole else [data for data, outcome in zip(order.inputs, outcomes, strict=True) if type(outcome) is bytes]

        def settle(refusal: Rejected | None) -> None:
            if refusal is not None:
                order.outcomes = [refusal if type(outcome) is bytes else outcome for outcome in outcomes]
            order.done(order.outcomes)

        if not good:
            settle(None)
        elif order.purpose == SUMMARISED:
            settle(self._audit.sum_up(order.caller, order.label, good))
        else:
            self._audit.signed(order.caller, order.label, order.mech, order.purpose, good, settle)

    async def one(
        self, caller: Caller, label: str, mech: str, purpose: str, sign: Callable[[bytes], bytes], data: bytes, *, fast: bool
    ) -> bytes:
        """An order of one: the signature. Raises Rejected."""
        answer: asyncio.Future[Outcome] = self._loop.create_future()

        def done(outcomes: list[Outcome]) -> None:
            if not answer.done():  # else whoever asked has gone
                answer.set_result(outcomes[0])

        self.submit(Order(caller, label, mech, purpose, sign, (data,), done, fast=fast))
        outcome = await answer
        if isinstance(outcome, Rejected):
            raise outcome
        return outcome

    async def close(self) -> None:
        """Ends the threads, when nothing is running any more (the audit log is closed after this)."""
        self._threads.shutdown()


def _make(sign: Callable[[bytes], bytes], inputs: Sequence[bytes]) -> list[Outcome]:
    """One outcome for each input."""
    try:
        return [sign(data) for data in inputs]
    except Rejected:
        return [_attempt(sign, data) for data in inputs]  # some are signed a second time, and none has left


def _attempt(sign: Callable[[bytes], bytes], data: bytes) -> Outcome:
    try:
        return sign(data)
    except Rejected as error:
        return error
