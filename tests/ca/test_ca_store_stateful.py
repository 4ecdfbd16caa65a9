"""Any order of revoking, holding, lifting, publishing and time: what the store says is what a dictionary would say."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from ca.audit import verify
from ca.model import CrlRecord, Intent, Reason, State
from ca.store_sql import SqlStore
from pkix.errors import Conflict

AUTHORITY = "ecc-issuing"
REASONS = st.sampled_from([Reason.keyCompromise, Reason.superseded, Reason.certificateHold])


@dataclass
class Believed:
    """One certificate as it should be. ``shown``: a CRL made after its expiry has it already."""

    serial: int
    not_after: datetime
    revoked: tuple[datetime, Reason] | None = None
    shown: bool = False


@pytest.fixture
def machine(sqlite_made: Path, drafts: Any) -> type[RuleBasedStateMachine]:
    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.folder = Path(tempfile.mkdtemp(prefix="ir", dir="/tmp"))
            shutil.copy(sqlite_made, self.folder / "x.db")
            self.runner = asyncio.Runner()
            self.store = self.runner.run(SqlStore.open(f"sqlite:///{self.folder}/x.db", lock_file=None, window=0))
            self.now = drafts.now
            self.believed: dict[int, Believed] = {}
            self.changed = True

        def teardown(self) -> None:
            entries = self.runner.run(self._entries())
            assert verify(entries) is None
            self.runner.run(self.store.close())
            self.runner.close()
            shutil.rmtree(self.folder)

        async def _entries(self) -> list[Any]:
            return [entry async for entry in self.store.audit_entries()]

        async def _crl(self) -> list[tuple[int, datetime, int]]:
            return [(entry.serial, entry.revoked_at, entry.reason) async for entry in self.store.revocation_entries(AUTHORITY)]

        def _expected(self) -> list[tuple[int, datetime, int]]:
            due = (one for one in self.believed.values() if one.revoked and not one.shown)
            return sorted((one.serial, one.revoked[0], one.revoked[1].value) for one in due if one.revoked)

        @rule(seconds=st.integers(1, 30))
        def issues(self, seconds: int) -> None:
            linted = drafts.linted(not_after=self.now + timedelta(seconds=seconds))
            intent = self.runner.run(self.store.intend(linted, self.now))
            assert isinstance(intent, Intent)
            self.runner.run(self.store.record(intent, b"der" + intent.tbs_der, self.now))
            self.believed[intent.id] = Believed(linted.tbs.serial, linted.tbs.not_after)

        @precondition(lambda self: self.believed)
        @rule(data=st.data(), reason=REASONS)
        def revokes(self, data: st.DataObject, reason: Reason) -> None:
            ids = data.draw(st.lists(st.sampled_from(sorted(self.believed)), min_size=1, max_size=3))
            self.runner.run(self.store.revoke(ids, reason, self.now, actor="op"))
            for one in (self.believed[number] for number in set(ids)):
                if one.revoked is None:
                    one.revoked, one.shown, self.changed = (self.now, reason), False, True
                elif one.revoked[1] is Reason.certificateHold and reason is not Reason.certificateHold:
                    one.revoked, one.shown, self.changed = (one.revoked[0], reason), False, True

        @precondition(lambda self: self.believed)
        @rule(data=st.data())
        def lifts(self, data: st.DataObject) -> None:
            ids = data.draw(st.lists(st.sampled_from(sorted(self.believed)), min_size=1, max_size=3))
            chosen = [self.believed[number] for number in set(ids)]
            if any(one.revoked and one.revoked[1] is not Reason.certificateHold for one in chosen):
                with pytest.raises(Conflict):
                    self.runner.run(self.store.unhold(ids, self.now, actor="op"))
                return
            self.runner.run(self.store.unhold(ids, self.now, actor="op"))
            self.changed |= any(one.revoked for one in chosen)
            for one in chosen:
                one.revoked = None

        @rule()
        def publishes(self) -> None:
            number = self.runner.run(self.store.next_crl_number(AUTHORITY))
            assert self.runner.run(self._crl()) == self._expected()
            self.runner.run(self.store.publish_crl(CrlRecord(AUTHORITY, number, b"crl", self.now, self.now, 0), self.now))
            self.changed = False
            for one in self.believed.values():
                one.shown = bool(one.revoked) and one.not_after < self.now

        @rule(seconds=st.integers(1, 20))
        def time_passes(self, seconds: int) -> None:
            self.now += timedelta(seconds=seconds)

        @invariant()
        def what_the_store_says(self) -> None:
            assert self.runner.run(self._crl()) == self._expected()
            assert self.runner.run(self.store.crl_is_stale(AUTHORITY)) == self.changed
            for one in self.believed.values():
                status = self.runner.run(self.store.status(AUTHORITY, one.serial))
                assert status is not None
                assert status.state is State.ISSUED
                told = status.revocation and (status.revocation.at, status.revocation.reason)
                assert told == one.revoked

    return Machine


def test_revocation_against_a_model(machine: type[RuleBasedStateMachine]) -> None:
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    run_state_machine_as_test(
        machine, settings=settings(max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=checks)
    )
