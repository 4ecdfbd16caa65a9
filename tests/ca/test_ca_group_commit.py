"""The batch thread: who comes together is done together, who is alone does not wait, and nobody is left waiting."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from ca.group_commit import BatchThread, Call, Verb
from pkix.errors import OutcomeUnknown, Unavailable

VERB: Verb[Any, int, int] = Verb("double", lambda _, items: [2 * item for item in items])


class Work:
    """Doubles items; remembers its batches; waits at ``door`` before each if that is closed."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.begun = threading.Semaphore(0)
        self.door = threading.Event()
        self.door.set()

    def __call__(self, calls: Sequence[Call]) -> Sequence[Any]:
        items = [call.item for call in calls]
        self.batches.append(items)
        self.begun.release()
        self.door.wait()
        return [ValueError(item) if item < 0 else 2 * item for item in items]

    async def has_begun(self) -> None:
        await asyncio.to_thread(self.begun.acquire)


def test_what_comes_meanwhile_is_one_batch() -> None:
    async def test() -> None:
        work = Work()
        thread = BatchThread("test", work)
        work.door.clear()
        first = asyncio.ensure_future(thread.submit(VERB, 1))
        await work.has_begun()
        others = asyncio.gather(*[thread.submit(VERB, number) for number in range(50)])
        await asyncio.sleep(0)
        work.door.set()
        assert await first == 2
        assert await others == [2 * number for number in range(50)]
        assert work.batches == [[1], list(range(50))]
        await thread.close()

    asyncio.run(test())


def test_one_wake_up_for_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        work = Work()
        thread = BatchThread("test", work)
        wakes = 0
        loop = asyncio.get_running_loop()
        call_soon = loop.call_soon_threadsafe
        work.door.clear()
        others = asyncio.gather(*[thread.submit(VERB, number) for number in range(50)])
        await work.has_begun()

        def counted(*arguments: Any) -> Any:
            nonlocal wakes
            wakes += 1
            return call_soon(*arguments)

        monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
        work.door.set()
        await others
        assert wakes == len(work.batches)
        monkeypatch.undo()
        await thread.close()

    asyncio.run(test())


def test_who_is_alone_does_not_wait_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        thread = BatchThread("test", Work(), window=60)
        for number in range(5):
            assert await thread.submit(VERB, number) == 2 * number
        await thread.close()

    def sleep(_: float) -> None:
        raise AssertionError("lingered")

    monkeypatch.setattr(time, "sleep", sleep)
    asyncio.run(test())


def test_lingers_while_more_keep_coming(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time the thread looks, one more has come; then none does, and it goes on."""

    async def test() -> None:
        loop = asyncio.get_running_loop()
        work = Work()
        thread = BatchThread("test", work, window=60)
        results: list[asyncio.Future[int]] = []
        slept = 0
        work.door.clear()
        alone = asyncio.ensure_future(thread.submit(VERB, 1))
        await work.has_begun()
        many = asyncio.gather(*[thread.submit(VERB, number) for number in range(10)])
        await asyncio.sleep(0)
        work.door.set()
        await asyncio.gather(alone, many)  # ten in the last batch

        def submit(done: threading.Event) -> None:
            results.append(asyncio.ensure_future(thread.submit(VERB, len(results))))
            loop.call_soon(done.set)

        def sleep(_: float) -> None:
            nonlocal slept
            slept += 1
            if slept < 5:
                done = threading.Event()
                loop.call_soon_threadsafe(submit, done)
                done.wait()

        monkeypatch.setattr(time, "sleep", sleep)
        assert await thread.submit(VERB, 100) == 200
        assert await asyncio.gather(*results) == [0, 2, 4, 6]
        assert work.batches[-1] == [100, 0, 1, 2, 3]
        monkeypatch.undo()
        await thread.close()

    asyncio.run(test())


def test_an_outcome_that_is_an_error_reaches_its_caller_only() -> None:
    async def test() -> None:
        thread = BatchThread("test", Work())
        outcomes = await asyncio.gather(*[thread.submit(VERB, number) for number in (1, -1, 2)], return_exceptions=True)
        assert outcomes[0] == 2
        assert isinstance(outcomes[1], ValueError)
        assert outcomes[2] == 4
        await thread.close()

    asyncio.run(test())


def test_the_thread_outlives_what_its_work_raises() -> None:
    async def test() -> None:
        broken: bool | None = True

        def work(calls: Sequence[Call]) -> Sequence[Any]:
            if broken:
                raise RuntimeError("no")
            return [0] * len(calls)

        @contextmanager
        def gate() -> Iterator[None]:
            if broken is None:
                raise OSError("no gate")
            yield

        thread = BatchThread("test", work, gate=gate)
        with pytest.raises(RuntimeError):
            await thread.submit(VERB, 1)
        broken = None
        with pytest.raises(OSError, match="no gate"):
            await thread.submit(VERB, 1)
        broken = False
        assert await thread.submit(VERB, 1) == 0
        await thread.close()

    asyncio.run(test())


def test_a_caller_that_went_away_before_is_not_served() -> None:
    async def test() -> None:
        work = Work()
        thread = BatchThread("test", work)
        work.door.clear()
        first = asyncio.ensure_future(thread.submit(VERB, 1))
        await work.has_begun()
        gone, stays = (asyncio.ensure_future(thread.submit(VERB, number)) for number in (2, 3))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        work.door.set()
        assert (await first, await stays) == (2, 6)
        assert work.batches == [[1], [3]]
        await thread.close()

    asyncio.run(test())


def test_callers_are_not_left_waiting() -> None:
    async def test() -> None:
        work = Work()
        thread = BatchThread("test", work, deadline=0.05)
        work.door.clear()
        begun = asyncio.ensure_future(thread.submit(VERB, 1))
        await work.has_begun()
        with pytest.raises(Unavailable) as waiting:
            await thread.submit(VERB, 2)
        assert not isinstance(waiting.value, OutcomeUnknown)
        with pytest.raises(OutcomeUnknown):
            await begun
        work.door.set()
        await thread.close()
        assert work.batches == [[1]]  # who was told that it was not done can rely on it

    asyncio.run(test())


def test_what_waits_at_the_gate_joins_the_batch() -> None:
    async def test() -> None:
        work, closed, at_gate = Work(), threading.Event(), threading.Event()

        @contextmanager
        def gate() -> Iterator[None]:
            at_gate.set()
            closed.wait()
            yield

        thread = BatchThread("test", work, gate=gate)
        first = asyncio.ensure_future(thread.submit(VERB, 1))
        await asyncio.to_thread(at_gate.wait)
        second = asyncio.ensure_future(thread.submit(VERB, 2))
        await asyncio.sleep(0)
        closed.set()
        assert (await first, await second) == (2, 4)
        assert work.batches == [[1, 2]]
        await thread.close()

    asyncio.run(test())


def test_closing_finishes_what_was_submitted() -> None:
    async def test() -> None:
        work = Work()
        thread = BatchThread("test", work)
        work.door.clear()
        tasks = [asyncio.ensure_future(thread.submit(VERB, 1))]
        await work.has_begun()
        tasks += [asyncio.ensure_future(thread.submit(VERB, number)) for number in (2, 3)]
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(thread.close())
        await asyncio.sleep(0)
        with pytest.raises(Unavailable):
            await thread.submit(VERB, 4)
        work.door.set()
        await closing
        assert await asyncio.gather(*tasks) == [2, 4, 6]
        assert work.batches == [[1], [2, 3]]

    asyncio.run(test())
