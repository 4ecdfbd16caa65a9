"""Who waits for the log: certificates do, OCSP does not, and neither is signed when it cannot be written."""

from __future__ import annotations

import asyncio
import errno
import json
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hsm_sim import signing
from hsm_sim.signing import Batch, Job, Outcome, Signing
from hsm_sim.signlog import Entry, SignLog, SyncFailed
from hsm_sim.summary import Summary
from hsm_sim.vault import Key
from pkix.algorithms import KeyKind
from pkix.privatekey import generate

NOW = datetime(2026, 11, 23, tzinfo=UTC)
PRIVATE = generate(KeyKind.P_256)
KEY = Key("k", KeyKind.P_256, "", PRIVATE.public_key.spki, PRIVATE)


class Gated(SignLog):
    """A log whose disk is slow while ``gate`` is shut, and full while ``full``."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.gate = threading.Event()
        self.gate.set()
        self.full = False

    def append(self, entries: Sequence[Entry], now: datetime, summaries: Sequence[Summary] = ()) -> None:
        self.gate.wait()
        if self.full:
            raise OSError(errno.ENOSPC, "full")
        super().append(entries, now, summaries)


class Scene:
    """Signing over such a log, inside a running loop."""

    def __init__(self, folder: Path) -> None:
        self.log = Gated(folder / "sign.log")
        self.failures: list[SyncFailed] = []
        self.signing = Signing(self.log, lambda: NOW, self.failures.append)

    def sign(self, purpose: str) -> asyncio.Future[Outcome]:
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        batch = Batch(1, lambda outcomes: future.set_result(outcomes[0]))
        self.signing.submit([Job(batch, 0, KEY, Entry("k", purpose, bytes(32)))])
        return future

    def lines(self) -> list[tuple[str, int]]:
        """Purpose and number of signatures of each line."""
        records = [json.loads(line) for line in self.log._path.read_bytes().splitlines()]
        return [(record["purpose"], record.get("count", 1)) for record in records]

    async def end(self) -> None:
        await self.signing.close()
        self.log.close()


def test_ocsp_does_not_wait_for_the_disk_and_certificates_do(tmp_path: Path) -> None:
    async def run() -> None:
        scene = Scene(tmp_path)
        scene.log.gate.clear()
        assert "signature" in await scene.sign("ocsp")
        certificate = scene.sign("certificate")
        assert "signature" in await scene.sign("ocsp")  # signed in the same turn: in the summary before the certificate's line
        for _ in range(5):
            assert "signature" in await scene.sign("ocsp")
        assert not certificate.done()
        scene.log.gate.set()
        assert "signature" in await certificate
        assert scene.lines() == [("ocsp", 2), ("certificate", 1)]
        await scene.end()
        assert scene.lines() == [("ocsp", 2), ("certificate", 1), ("ocsp", 5)]

    asyncio.run(run())


def test_a_summary_is_written_when_its_second_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signing, "SUMMARY_EVERY", 0.01)

    async def run() -> None:
        scene = Scene(tmp_path)
        for number in (1, 2):
            await scene.sign("ocsp")
            while scene.log.head.seq < number:
                await asyncio.sleep(0.001)
        await scene.end()
        assert scene.lines() == [("ocsp", 1)] * 2

    asyncio.run(run())


def test_on_a_full_disk_ocsp_stops_too_and_no_summary_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signing, "SUMMARY_EVERY", 0.01)

    async def run() -> None:
        scene = Scene(tmp_path)
        scene.log.full = True
        signed = 0
        while "signature" in (outcome := await scene.sign("ocsp")):
            signed += 1
            await asyncio.sleep(0.001)
        assert outcome["error"] == "storage"
        assert (await scene.sign("certificate"))["error"] == "storage"
        scene.log.full = False
        while "signature" not in await scene.sign("ocsp"):
            await asyncio.sleep(0.001)
        await scene.end()
        assert sum(count for _, count in scene.lines()) == signed + 1
        assert scene.failures == []

    asyncio.run(run())


def test_a_last_summary_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    async def run() -> None:
        scene = Scene(tmp_path)
        await scene.sign("ocsp")
        scene.log.full = True
        with pytest.raises(OSError, match="full"):
            await scene.signing.close()
        scene.log.close()

    asyncio.run(run())
