"""Who waits for the log: certificates do, OCSP does not, and neither is signed when it cannot be written."""

from __future__ import annotations

import asyncio
import errno
import json
import threading
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from hsm_sim import audit, signing
from hsm_sim.audit import AuditLog
from hsm_sim.chain import Chain
from hsm_sim.errors import Code, Rejected
from hsm_sim.roles import Caller, Role
from hsm_sim.signing import Order, Outcome, Signing

NOW = datetime(2026, 11, 23, tzinfo=UTC)
OFFICER = Caller("native", 1, "ironroot", Role.OFFICER)


def reverse(data: bytes) -> bytes:
    """Stands for a signature."""
    if data == b"bad":
        raise Rejected(Code.DATA_LEN_RANGE, "bad")
    return data[::-1]


class Scene:
    """Signing over a log whose disk is slow while ``gate`` is shut, and full while ``full``."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate, self.full = threading.Event(), False
        self.gate.set()
        self.path = folder / "audit.log"
        append = Chain.append

        def gated(chain: Chain, *arguments: Any) -> None:
            self.gate.wait()
            if self.full:
                raise OSError(errno.ENOSPC, "full")
            append(chain, *arguments)

        monkeypatch.setattr(Chain, "append", gated)
        self.log = AuditLog(folder, lambda: NOW)
        self.signing = Signing(self.log)

    def sign(self, purpose: str, *inputs: bytes, fast: bool = True, key: str = "k") -> asyncio.Future[Sequence[Outcome]]:
        answer: asyncio.Future[Sequence[Outcome]] = asyncio.get_running_loop().create_future()
        self.signing.submit(Order(OFFICER, key, "CKM_ECDSA", purpose, reverse, inputs or (b"in",), answer.set_result, fast=fast))
        return answer

    def lines(self) -> list[tuple[str, int]]:
        """Purpose and number of signatures of each line."""
        records = [json.loads(line) for line in self.path.read_bytes().splitlines() if line]
        return [(record["purpose"], record["count"]) for record in records if record["op"] == "sign"]

    async def end(self) -> None:
        await self.signing.close()
        await self.log.close()


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Scene], Awaitable[None]]], None]:
    def run(story: Callable[[Scene], Awaitable[None]]) -> None:
        async def whole() -> None:
            await story(Scene(tmp_path, monkeypatch))

        asyncio.run(whole())

    return run


Run = Callable[[Callable[[Scene], Awaitable[None]]], None]


@pytest.mark.parametrize("fast", [True, False])
def test_outcomes_come_in_the_order_of_the_inputs(scene: Run, fast: bool) -> None:
    async def story(at: Scene) -> None:
        inputs = [b"%d" % number for number in range(100, 300)]
        inputs[7] = inputs[150] = b"bad"
        several = [at.sign("certificate", *inputs, fast=fast) for _ in range(3)]
        for outcomes in await asyncio.gather(*several):
            assert len(outcomes) == 200
            for data, outcome in zip(inputs, outcomes, strict=True):
                assert outcome == data[::-1] if data != b"bad" else isinstance(outcome, Rejected)
        await at.end()
        assert sum(count for _, count in at.lines()) == 3 * 198

    scene(story)


def test_ocsp_does_not_wait_for_the_disk_and_certificates_do(scene: Run) -> None:
    async def story(at: Scene) -> None:
        await at.sign("certificate")
        at.gate.clear()
        assert await at.sign("ocsp") == [b"ni"]
        certificate = at.sign("certificate")
        assert await at.sign("ocsp") == [b"ni"]  # in the summary before the certificate's line
        for _ in range(5):
            assert await at.sign("ocsp") == [b"ni"]
        assert not certificate.done()
        at.gate.set()
        assert await certificate == [b"ni"]
        assert at.lines() == [("certificate", 1), ("ocsp", 2), ("certificate", 1)]
        await at.end()
        assert at.lines() == [("certificate", 1), ("ocsp", 2), ("certificate", 1), ("ocsp", 5)]

    scene(story)


def test_a_summary_is_written_when_its_second_is_over(scene: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "SOON", 0.01)

    async def story(at: Scene) -> None:
        await at.sign("certificate")
        before = at.log.head.seq
        for number in (1, 2):
            await at.sign("ocsp")
            while at.log.head.seq < before + number:
                await asyncio.sleep(0.001)
        await at.end()
        assert at.lines() == [("certificate", 1), ("ocsp", 1), ("ocsp", 1)]

    scene(story)


def test_on_a_full_disk_ocsp_stops_too_and_no_summary_is_lost(scene: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "SOON", 0.01)

    async def story(at: Scene) -> None:
        await at.sign("certificate")
        at.full, signed = True, 0
        while (outcome := (await at.sign("ocsp"))[0]) == b"ni":
            signed += 1
            await asyncio.sleep(0.001)
        assert isinstance(outcome, Rejected)
        assert outcome.code is Code.STORAGE
        mixed = await at.sign("certificate", b"in", b"bad")
        assert [outcome.code for outcome in mixed if isinstance(outcome, Rejected)] == [Code.STORAGE, Code.DATA_LEN_RANGE]
        at.full = False
        while (await at.sign("ocsp"))[0] != b"ni":
            await asyncio.sleep(0.001)
        await at.end()
        assert sum(count for purpose, count in at.lines() if purpose == "ocsp") == signed + 1

    scene(story)


def test_a_last_summary_that_cannot_be_written_is_said(scene: Run) -> None:
    async def story(at: Scene) -> None:
        await at.sign("ocsp")
        at.full = True
        with pytest.raises(OSError, match="full"):
            await at.end()

    scene(story)


def test_an_order_of_one_is_the_signature_or_raises(scene: Run) -> None:
    async def story(at: Scene) -> None:
        assert await at.signing.one(OFFICER, "k", "CKM_ECDSA", "pkcs11", reverse, b"in", fast=False) == b"ni"
        with pytest.raises(Rejected, match="bad"):
            await at.signing.one(OFFICER, "k", "CKM_ECDSA", "pkcs11", reverse, b"bad", fast=True)
        given_up = asyncio.ensure_future(at.signing.one(OFFICER, "k", "CKM_ECDSA", "pkcs11", reverse, b"in", fast=True))
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.wait([given_up])
        assert await at.sign("certificate") == [b"ni"]
        await at.end()

    scene(story)


def test_long_orders_leave_the_loop_to_others_in_between(scene: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signing, "FAST_TURN", 4)

    async def story(at: Scene) -> None:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.ensure_future(count())
        await at.sign("ocsp", *[b"in"] * 400)
        counting.cancel()
        assert turns >= 90
        await at.end()

    scene(story)
