"""Group commit: what many tasks ask for at the same moment is done at once, by one thread, and paid for once.

    thread = BatchThread(work, window=0.006)          # work: list of calls → list of outcomes, in order
    issued = await thread.submit(verb, item)          # many tasks; one call of work for all of them

A request alone is worked on at once. Only while fewer wait than the last batch held does the thread linger, for up to ``window`` seconds,
and only while more keep coming. Results go back to the event loop with one wake-up a batch.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from pkix.errors import OutcomeUnknown, Unavailable

Item = TypeVar("Item")
Result = TypeVar("Result")
Context = TypeVar("Context")

STEP = 0.002  # seconds: how long nothing may come before the thread stops lingering
RETRY = 5  # seconds: what a caller is told to wait


@dataclass(frozen=True, slots=True)
class Verb(Generic[Context, Item, Result]):
    """A verb that does many items at once: one outcome each, in order; an exception among the outcomes is raised to that caller alone."""

    name: str
    run: Callable[[Context, Sequence[Item]], Sequence[Result | Exception]]


@dataclass(slots=True, eq=False)
class Call:
    """One item of one verb, and who waits for it. ``taken``: the thread has it, nobody can say any more that it was not done."""

    verb: Verb[Any, Any, Any]
    item: Any
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop
    since: float
    taken: bool = False


def run_verbs(context: Any, calls: Sequence[Call]) -> list[Any]:
    """Every verb among ``calls`` once, over all of its items; the outcomes in the order of ``calls``."""
    outcomes: list[Any] = [None] * len(calls)
    positions: dict[Verb[Any, Any, Any], list[int]] = {}
    for position, call in enumerate(calls):
        positions.setdefault(call.verb, []).append(position)
    for verb, places in positions.items():
        for place, outcome in zip(places, verb.run(context, [calls[place].item for place in places]), strict=True):
            outcomes[place] = outcome
    return outcomes


Work = Callable[[Sequence[Call]], Sequence[Any]]
Gate = Callable[[], AbstractContextManager[object]]


class BatchThread:
    """One thread that does in batches what tasks submit.

    Args:
        work: does a batch; returns an outcome for each call. What it raises is raised to all callers, and the thread lives on.
        window: seconds to linger at most.
        deadline: seconds after which a caller is told that its call was not, or may not have been, done.
        gate: entered before the queue is emptied and left after the work: what waits at the gate still grows the batch.
    """

    def __init__(self, name: str, work: Work, *, window: float = 0.0, deadline: float = 10.0, gate: Gate = nullcontext) -> None:
        self._work, self._window, self._deadline, self._gate = work, window, deadline, gate
        self._waiting: list[Call] = []
        self._under_way: list[Call] = []
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        self._idle = True
        self._closing = False
        self._watched: asyncio.AbstractEventLoop | None = None
        self._last = 0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    async def submit(self, verb: Verb[Context, Item, Result], item: Item) -> Result:
        """The outcome of ``verb`` for ``item``.

        Raises:
            Unavailable: closed, or not begun within the deadline. It was not done.
            OutcomeUnknown: begun and not ended within the deadline.
        """
        loop = asyncio.get_running_loop()
        call = Call(verb, item, loop.create_future(), loop, time.monotonic())
        with self._lock:
            if self._closing:
                raise Unavailable("The service is stopping. Repeat the request.", retry_after=RETRY)
            self._waiting.append(call)
            if self._idle:
                self._idle = False
                self._arrived.notify()
        if self._watched is not loop:
            self._watched = loop
            loop.call_later(self._deadline, self._expire, loop)
        return cast(Result, await call.future)

    async def close(self) -> None:
        """Does what is waiting, then ends the thread. Waits no longer than the deadline."""
        with self._lock:
            self._closing = True
            self._arrived.notify()
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join, self._deadline)

    # Below here: in the thread.

    def _run(self) -> None:
        while self._wait():
            self._linger()
            outcomes: Sequence[Any]
            calls: list[Call] = []
            try:
                with self._gate():
                    calls = self._take()
                    outcomes = self._work(calls) if calls else []
            except Exception as error:  # the rim of the thread: whoever waits gets it, and the next batch has its own chance
                calls = calls or self._take()
                outcomes = [error] * len(calls)
            self._deliver(calls, outcomes)

    def _wait(self) -> bool:
        with self._lock:
            while not self._waiting:
                if self._closing:
                    return False
                self._idle = True
                self._arrived.wait()
            self._idle = False
            return True

    def _linger(self) -> None:
        """Waits while more calls keep coming and fewer wait than the last batch had: those were answered together and come together."""
        end, seen = time.monotonic() + self._window, 0
        while seen < len(self._waiting) < self._last and time.monotonic() < end and not self._closing:
            seen = len(self._waiting)
            time.sleep(STEP)

    def _take(self) -> list[Call]:
        with self._lock:
            calls = [call for call in self._waiting if not call.future.done()]
            self._waiting = []
            for call in calls:
                call.taken = True
            self._under_way = calls
        self._last = len(calls)
        return calls

    def _deliver(self, calls: list[Call], outcomes: Sequence[Any]) -> None:
        with self._lock:
            self._under_way = []
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = {}
        for call, outcome in zip(calls, outcomes, strict=True):
            by_loop.setdefault(call.loop, []).append((call.future, outcome))
        for loop, results in by_loop.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(_resolve, results)

    # And here: in the event loop again.

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        """Gives up on calls that are older than the deadline, and looks again later."""
        late = time.monotonic() - self._deadline
        with self._lock:
            calls = [call for call in (*self._under_way, *self._waiting) if call.loop is loop and call.since <= late]
            for call in calls:
                if call.future.done():
                    continue
                error = OutcomeUnknown if call.taken else Unavailable
                call.future.set_exception(error("The database did not answer in time. Repeat the request later.", retry_after=RETRY))
        if not self._closing:
            loop.call_later(self._deadline / 4, self._expire, loop)


def _resolve(results: list[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, outcome in results:
        if future.done():  # its caller went away
            continue
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
