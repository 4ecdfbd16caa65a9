"""One durable write transaction for many calls, audit entries included.

Verbs get a ``Transaction``: its ``connection`` to write with, ``audit`` to say what they did. Writing is serialised over all processes
(SQLite: a lock on a file, then the write lock; PostgreSQL: an advisory lock), so what a verb reads holds until the commit, and the
audit chain has one order. Constraints guard the same invariants against whoever writes past us.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select
from sqlalchemy.exc import DBAPIError, IntegrityError

from ca import schema
from ca.audit import Draft, canonical, link
from ca.database import THIRD_PARTY, Database, outcome_unknown, translate, translated
from ca.failpoint import failpoint
from ca.group_commit import Call, Verb, run_verbs
from ca.model import AuditEntry
from pkix.errors import Conflict, Fatal, IronrootError, Unavailable

Outcome = Any  # a verb's result, or the exception to raise to its caller
TRIES = 3
REPEATABLE = ("40001", "40P01")  # serialization failure, deadlock: PostgreSQL undid it all

HEAD = select(schema.audit).order_by(schema.audit.c.seq.desc()).limit(1)
ENTRY_DIGEST = select(schema.audit.c.digest).where(schema.audit.c.seq == bindparam("seq"))
APPEND = insert(schema.audit)


@dataclass(slots=True)
class Transaction:
    """What verbs write through. ``drafts`` are the audit entries so far; they join the chain just before the commit."""

    connection: Connection
    drafts: list[Draft] = field(default_factory=list)

    def audit(self, actor: str, action: str, subject: str, now: datetime, **detail: object) -> None:
        """Appends an audit entry when this transaction commits."""
        self.drafts.append(Draft(int(now.timestamp()), actor, action, subject, detail))

    def append_audit(self) -> AuditEntry | None:
        """Links the drafts into the chain. Returns its new head, or None if there were no drafts."""
        if not self.drafts:
            return None
        head = audit_head(self.connection)
        rows = []
        for draft in self.drafts:
            head = link(head, draft)
            rows.append(
                {
                    "seq": head.seq,
                    "at": draft.at,
                    "actor": draft.actor,
                    "action": draft.action,
                    "subject": draft.subject,
                    "detail": canonical(draft.detail),
                    "digest": head.digest,
                }
            )
        self.connection.execute(APPEND, rows)
        return head


def entry_of(row: Any) -> AuditEntry:
    """A row of the audit table as an entry."""
    return AuditEntry(row.seq, datetime.fromtimestamp(row.at, UTC), row.actor, row.action, row.subject, json.loads(row.detail), row.digest)


def audit_head(connection: Connection) -> AuditEntry | None:
    """The last entry of the audit chain."""
    row = connection.execute(HEAD).first()
    return None if row is None else entry_of(row)


def _one_by_one(transaction: Transaction, calls: Sequence[Callable[[Transaction], Outcome]]) -> list[Outcome]:
    """Each in its savepoint: one that is refused takes nothing of the others with it."""
    outcomes: list[Outcome] = []
    for call in calls:
        drafts = len(transaction.drafts)
        try:
            with transaction.connection.begin_nested():
                outcomes.append(call(transaction))
        except IronrootError as error:
            del transaction.drafts[drafts:]
            outcomes.append(error)
    return outcomes


def single(name: str) -> Verb[Transaction, Callable[[Transaction], Outcome], Outcome]:
    """A verb whose items are functions on the transaction: for what is too rare to be worth batching."""
    return Verb(name, _one_by_one)


class Writer:
    """Does a batch of calls in one transaction. ``commit`` is the work of a ``BatchThread``, ``gate`` its gate."""

    def __init__(self, database: Database, lock_file: Path | None) -> None:
        self._database = database
        self._lock = None if lock_file is None else os.open(lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._fatal: Fatal | None = None

    @contextmanager
    def gate(self) -> Iterator[None]:
        """Held around a write: the kernel queues processes here; SQLite would have them sleep and try again, and the tail would show it."""
        if self._lock is None:
            yield
            return
        with translated():
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def commit(self, calls: Sequence[Call]) -> list[Outcome]:
        """Outcomes of ``calls``, all durable. A call that fails does so alone: the others are then done one by one."""
        if self._fatal is not None:
            return [self._fatal] * len(calls)
        for last in (False,) * (TRIES - 1) + (True,):
            try:
                return self._attempt(calls)
            except IntegrityError:
                if len(calls) == 1:
                    return [Conflict("It exists already.")]
                break
            except THIRD_PARTY as error:
                if not last and isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", None) in REPEATABLE:
                    continue
                return self._failed(calls, translate(error))
            except Unavailable as error:
                return self._failed(calls, error)
            except Exception as error:  # of one of the calls; which one shows when each is done alone
                if len(calls) == 1:
                    return [self._remember(error)]
                break
        return [outcome for call in calls for outcome in self.commit([call])]

    def close(self) -> None:
        """Lets go of the lock file."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _attempt(self, calls: Sequence[Call]) -> list[Outcome]:
        with self._database.write() as connection:
            transaction = Transaction(connection)
            outcomes = run_verbs(transaction, calls)
            head = transaction.append_audit()
            self._point(calls, "committing")  # crash here: nothing of this happened
            try:
                connection.commit()
            except DBAPIError as error:
                if not error.connection_invalidated:
                    raise
                self._look(head)
        self._point(calls, "committed")  # crash here: all of it happened, nobody was told
        return outcomes

    def _look(self, head: AuditEntry | None) -> None:
        """Returns if the commit whose answer was lost was kept. The audit entry of the batch tells.

        Raises OutcomeUnknown if that cannot be found out, Unavailable if it was not kept.
        """
        for pause in (0.0, 0.2, 1.0):
            time.sleep(pause)
            try:
                with self._database.write() as connection:  # waits for the lock: the lost transaction has ended, one way or the other
                    if head is None:
                        break
                    if connection.execute(ENTRY_DIGEST, {"seq": head.seq}).scalar() == head.digest:
                        return
                    raise translate(OSError())
            except DBAPIError:
                continue
        raise outcome_unknown()

    def _failed(self, calls: Sequence[Call], error: IronrootError) -> list[Outcome]:
        self._database.dispose()
        return [self._remember(error)] * len(calls)

    def _remember(self, error: Exception) -> Exception:
        if isinstance(error, Fatal):
            self._fatal = error
        return error

    @staticmethod
    def _point(calls: Sequence[Call], moment: str) -> None:
        for name in dict.fromkeys(call.verb.name for call in calls):
            failpoint(f"store.{name}.{moment}")
