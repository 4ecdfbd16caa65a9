"""The look-ups: records of certificates, the status that OCSP asks for, the audit chain."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Select, insert, literal_column, select

from ca.audit import Checkpoint
from ca.group_commit import Verb
from ca.model import AuditEntry, Intent, Record, State, Status
from ca.ports import PATIENCE
from ca.records import INTENTS, LAST_SERIAL, RECORDS, STATUS, among, each, intent_of, records, status_of
from ca.schema import audit, certificates, checkpoints
from ca.transaction import ENTRY_DIGEST, Transaction, entry_of
from pkix.errors import Conflict, Malformed

_c = certificates.c
BY_SERIAL = among(STATUS, _c.serial)
UNFINISHED = INTENTS.where(_c.state == literal_column("'intended'")).order_by(_c.created, _c.id)
ENTRIES = select(audit).order_by(audit.c.seq)
HEX = "0123456789abcdef"


def _statuses(connection: Connection, items: Sequence[tuple[str, int]]) -> list[Status | Exception | None]:
    found: dict[tuple[str, int], Status] = {}
    possible = {serial for _, serial in items if 0 <= serial <= LAST_SERIAL}
    for row in each(connection, BY_SERIAL, possible):  # of any authority: pairs would not use SQLite's index
        found[row.authority, row.serial] = status_of(row)
    return [found.get(item) for item in items]


status: Verb[Connection, tuple[str, int], Status | None] = Verb("status", _statuses)


def unfinished(connection: Connection, created_before: datetime) -> list[Intent]:
    """See ``ca.ports.Store.unfinished``."""
    nobodys = _c.token.is_(None) | (_c.created < created_before - timedelta(seconds=PATIENCE))
    return [intent_of(row) for row in connection.execute(UNFINISHED.where(_c.created < created_before, nobodys))]


def by_sha256(connection: Connection, prefix: bytes, nibble: str) -> list[Record]:
    """Certificates whose SHA-256 starts with ``prefix`` and then the hex digit ``nibble``, from the index."""
    if nibble and (len(nibble) != 1 or nibble.lower() not in HEX):
        raise Malformed("A fingerprint is written in hexadecimal digits.")
    digit = HEX.find(nibble.lower()) if nibble else 0
    first = prefix + bytes([digit << 4]) if nibble else prefix
    last = prefix + bytes([digit << 4 | 0xF]) if nibble else prefix
    statement = RECORDS.where(_c.sha256 >= first, _c.sha256 <= last + b"\xff" * (33 - len(last))).order_by(_c.id)
    return records(connection, statement)


def some(connection: Connection, *conditions: Any, newest_first: bool = False, limit: int | None = None) -> list[Record]:
    """Records that meet all ``conditions``, by id."""
    statement: Select[Any] = RECORDS.where(*conditions).order_by(_c.id.desc() if newest_first else _c.id)
    return records(connection, statement if limit is None else statement.limit(limit))


def audit_entries(connection: Connection, after: int, limit: int) -> list[AuditEntry]:
    """The next ``limit`` entries of the audit chain after ``after``."""
    return [entry_of(row) for row in connection.execute(ENTRIES.where(audit.c.seq > after).limit(limit))]


def add_entry(transaction: Transaction, /, actor: str, action: str, subject: str, now: datetime, **detail: object) -> None:
    """Appends one entry to the audit chain."""
    transaction.audit(actor, action, subject, now, **detail)


def add_checkpoint(transaction: Transaction, seq: int, digest: bytes, key: str, signature: bytes, now: datetime) -> None:
    """Keeps a signed head of the audit chain. Raises Conflict if the chain has another digest there, or it was signed before."""
    if transaction.connection.execute(ENTRY_DIGEST, {"seq": seq}).scalar() != digest:
        raise Conflict(f"The audit chain has no entry {seq} with this digest. Sign its head as it is now.")
    transaction.connection.execute(insert(checkpoints).values(seq=seq, digest=digest, key=key, signature=signature, created=now))


def read_checkpoints(connection: Connection) -> list[Checkpoint]:
    """All checkpoints, oldest first."""
    statement = select(checkpoints).order_by(checkpoints.c.seq, checkpoints.c.key)
    return [(row.seq, row.digest, row.key, row.signature) for row in connection.execute(statement)]


def issued(profile: str, device: str) -> Sequence[Any]:
    """The conditions for issued certificates of a profile and device."""
    return (_c.device == device, _c.profile == profile, _c.state == State.ISSUED.value)
