"""The ``Store`` on SQL: SQLite in a file, or PostgreSQL. The same code on both.

    store = await SqlStore.open("sqlite:////var/lib/ironroot/ironroot.db", lock_file=Path("/var/lib/ironroot/ironroot.db.lock"))
    intent = await store.intend(linted, now)

Writes go to one thread, which commits what many tasks asked for in one transaction (``ca.group_commit``, ``ca.transaction``); OCSP's
``status`` to another, which looks up many serials at once; other reads to two more. The verbs are in ``ca.store_*``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection

from ca import migrate, records, schema, store_enrol, store_issue, store_read, store_revoke
from ca.audit import Checkpoint
from ca.database import Database, translated
from ca.group_commit import BatchThread, Call, run_verbs
from ca.model import (
    Application,
    AuditEntry,
    Authority,
    CrlRecord,
    Decision,
    Identity,
    Intent,
    Invitation,
    Issued,
    Linted,
    Reason,
    Record,
    Status,
)
from ca.transaction import Transaction, Writer, audit_head, single
from pkix.crl import CrlEntry

P = ParamSpec("P")
R = TypeVar("R")

READERS = 2
CHUNK = 2000  # rows that a stream reads at once
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_c = schema.certificates.c


class SqlStore:
    """A ``ca.ports.Store``, where each verb is described. Made by ``open``.

    Args:
        url: SQLAlchemy URL of the database; ``ca.migrate.upgrade`` has made its tables.
        lock_file: with SQLite, a file beside the database on which the processes queue for writing; None if there is one process.
        window: seconds to wait for more writes, while more are coming.
        deadline: seconds after which a caller is told that the database does not answer.
    """

    def __init__(self, url: str, *, lock_file: Path | None, window: float = 0.006, deadline: float = 10.0) -> None:
        self._database = Database(url, readers=READERS + 1)
        self._writer = Writer(self._database, lock_file if self._database.is_sqlite else None)
        self._writes = BatchThread("store-write", self._writer.commit, window=window, deadline=deadline, gate=self._writer.gate)
        self._looks = BatchThread("store-look", self._look_up, deadline=deadline)
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="store-read")

    @classmethod
    async def open(cls, url: str, *, lock_file: Path | None, window: float = 0.006, deadline: float = 10.0) -> SqlStore:
        """Opens the store.

        Raises:
            Fatal: the database could lose what is committed, or its tables are not of this version (older: run the upgrade).
            Unavailable: it is away.
            Malformed: the URL.
        """
        store = cls(url, lock_file=lock_file, window=window, deadline=deadline)
        try:
            await asyncio.get_running_loop().run_in_executor(store._readers, store._check)
        except BaseException:
            await store.close()
            raise
        return store

    def _check(self) -> None:
        self._database.check()
        with translated(), self._database.reader.connect() as connection:
            migrate.check(connection)

    async def close(self) -> None:
        """Finishes what was submitted, then closes all connections."""
        await asyncio.gather(self._writes.close(), self._looks.close())
        await asyncio.get_running_loop().run_in_executor(None, self._readers.shutdown)
        self._writer.close()
        self._database.dispose()

    # How a verb is done

    async def _write(self, function: Callable[Concatenate[Transaction, P], R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        def call(transaction: Transaction) -> R:
            return function(transaction, *args, **kwargs)

        result: R = await self._writes.submit(single(function.__name__), call)
        return result

    async def _read(self, function: Callable[Concatenate[Connection, P], R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        def run() -> R:
            with translated():
                self._database.present()
                with self._database.reader.connect() as connection:
                    return function(connection, *args, **kwargs)

        return await asyncio.get_running_loop().run_in_executor(self._readers, run)

    def _look_up(self, calls: Sequence[Call]) -> Sequence[Any]:
        with translated():
            self._database.present()
            with self._database.reader.connect() as connection:
                return run_verbs(connection, calls)

    # Authorities

    async def add_authority(self, authority: Authority, now: datetime) -> None:
        await self._write(store_enrol.add_authority, authority, now)

    async def authorities(self) -> dict[str, Authority]:
        return await self._read(store_enrol.read_authorities)

    async def supersede(self, authority: str, successor: str, now: datetime, *, actor: str) -> None:
        await self._write(store_enrol.supersede, authority, successor, now, actor=actor)

    async def move_key(self, authority: Authority, key: str, now: datetime, *, actor: str) -> None:
        await self._write(store_enrol.move_key, authority, key, now, actor=actor)

    # Issuance

    async def intend(self, linted: Linted, now: datetime) -> Intent | Issued:
        return await self._writes.submit(store_issue.intend, (linted, now))

    async def record(self, intent: Intent, der: bytes, now: datetime) -> Issued:
        return await self._writes.submit(store_issue.record, (intent, der, now))

    async def unfinished(self, created_before: datetime) -> list[Intent]:
        return await self._read(store_read.unfinished, created_before)

    async def abandon(self, intent: Intent, now: datetime) -> None:
        await self._write(store_issue.abandon, intent, now)

    # Status and revocation

    async def status(self, authority: str, serial: int) -> Status | None:
        return await self._looks.submit(store_read.status, (authority, serial))

    async def revoke(
        self, ids: Sequence[int], reason: Reason, now: datetime, *, actor: str, invalidity: datetime | None = None
    ) -> list[Record]:
        return await self._write(store_revoke.revoke, ids, reason, now, actor=actor, invalidity=invalidity)

    async def unhold(self, ids: Sequence[int], now: datetime, *, actor: str) -> list[Record]:
        return await self._write(store_revoke.unhold, ids, now, actor=actor)

    async def revocation_entries(self, authority: str) -> AsyncIterator[CrlEntry]:
        serial = 0
        while some := await self._read(store_revoke.entries_after, authority, serial, CHUNK):
            for entry in some:
                yield entry
            serial = some[-1].serial

    # Look-ups

    async def get(self, certificate_id: int) -> Record | None:
        return _first(await self._read(records.by_ids, [certificate_id]))

    async def by_serial(self, serial: int) -> list[Record]:
        return await self._read(store_read.some, _c.serial == serial) if 0 <= serial <= records.LAST_SERIAL else []

    async def by_sha256(self, prefix: bytes, nibble: str = "") -> list[Record]:
        return await self._read(store_read.by_sha256, prefix, nibble)

    async def by_device(self, device: str, fleet: str | None = None) -> list[Record]:
        of_fleet = () if fleet is None else (_c.fleet == fleet,)
        return await self._read(store_read.some, _c.device == device, *of_fleet, newest_first=True)

    async def page(self, *, after: int = 0, limit: int = 100, fleet: str | None = None, authority: str | None = None) -> list[Record]:
        conditions = [_c.id > min(after, records.LAST_ID)]
        if fleet is not None:
            conditions.append(_c.fleet == fleet)
        if authority is not None:
            conditions.append(_c.authority == authority)
        return await self._read(store_read.some, *conditions, limit=limit)

    async def newest(self, profile: str, device: str) -> Record | None:
        return _first(await self._read(store_read.some, *store_read.issued(profile, device), newest_first=True, limit=1))

    # Enrolment

    async def invite(self, invitations: Sequence[Invitation], now: datetime, *, actor: str) -> None:
        await self._write(store_enrol.invite, invitations, now, actor=actor)

    async def invitation(self, token_sha256: bytes) -> Invitation | None:
        return await self._looks.submit(store_enrol.invitation, token_sha256)

    async def apply(self, identity: Identity, spki_sha256: bytes, now: datetime) -> Application:
        return await self._write(store_enrol.apply, identity, spki_sha256, now)

    async def applications(self, decision: Decision | None = None) -> list[Application]:
        return await self._read(store_enrol.read_applications, decision)

    async def decide(self, ids: Sequence[int], decision: Decision, now: datetime, *, actor: str) -> list[Application]:
        return await self._write(store_enrol.decide, ids, decision, now, actor=actor)

    # CRLs

    async def next_crl_number(self, authority: str) -> int:
        return await self._write(store_revoke.next_crl_number, authority)

    async def publish_crl(self, crl: CrlRecord, now: datetime) -> None:
        await self._write(store_revoke.publish_crl, crl, now)

    async def latest_crl(self, authority: str) -> CrlRecord | None:
        return await self._read(store_revoke.latest_crl, authority)

    async def latest_crl_number(self, authority: str) -> int | None:
        return await self._read(store_revoke.latest_crl_number, authority)

    async def crl_is_stale(self, authority: str) -> bool:
        return await self._read(store_revoke.crl_is_stale, authority)

    # Audit

    async def audit(self, actor: str, action: str, subject: str, now: datetime, **detail: object) -> None:
        await self._write(store_read.add_entry, actor, action, subject, now, **detail)

    async def audit_entries(self, after: int = 0) -> AsyncIterator[AuditEntry]:
        while some := await self._read(store_read.audit_entries, after, CHUNK):
            for entry in some:
                yield entry
            after = some[-1].seq

    async def audit_head(self) -> AuditEntry | None:
        return await self._read(audit_head)

    async def add_checkpoint(self, seq: int, digest: bytes, key: str, signature: bytes, now: datetime) -> None:
        await self._write(store_read.add_checkpoint, seq, digest, key, signature, now)

    async def checkpoints(self) -> list[Checkpoint]:
        return await self._read(store_read.read_checkpoints)

    # One of many machines

    async def lease(self, name: str, holder: str, seconds: int, now: datetime) -> bool:
        return await self._write(store_enrol.lease, name, holder, seconds, now)

    async def ready(self) -> None:
        """Commits one small write, so that a full or read-only disk shows. Raises Unavailable."""
        await self._write(store_enrol.lease, "ready", "anybody", 0, EPOCH)


def _first(found: Sequence[Record]) -> Record | None:
    return found[0] if found else None
