"""``hsm.db``: what has to survive, in SQLite (WAL, synchronous=FULL), written by one thread of the one process that holds the home's lock.

    store = Store(home / "hsm.db")
    counter = await store.write(lambda db: change(db, partition, ring, put=[row]), "generate")     # durable when it returns
    rows = await store.read(lambda db: objects(db, partition))

A transaction is whole or not there, whenever the power goes: nothing that was acknowledged is lost, nothing half done is found. Which
objects there are is vouched for by the set digest (``seal.Ring.mark``), changed in the same transaction as the objects, and how often it
changed by ``counter``, which the audit log repeats: so neither a row nor the whole file can be exchanged for an older one unseen.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import cbor2

from hsm_sim.errors import Code, Rejected
from hsm_sim.failpoint import failpoint
from hsm_sim.seal import Ring, derive, seal, unseal
from pkix.errors import Fatal, Malformed

T = TypeVar("T")
_VERSION = 1
_PRAGMAS = ("locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = FULL", "secure_delete = ON", "trusted_schema = OFF")
_SCHEMA = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE partitions (slot INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, name TEXT NOT NULL UNIQUE, serial TEXT NOT NULL,
    counter INTEGER NOT NULL, marks BLOB NOT NULL);
CREATE TABLE roles (partition BLOB NOT NULL, role TEXT NOT NULL, salt BLOB NOT NULL, wrapped BLOB NOT NULL,
    wrong INTEGER NOT NULL DEFAULT 0, cut INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (partition, role)) WITHOUT ROWID;
CREATE TABLE objects (id BLOB PRIMARY KEY, partition BLOB NOT NULL, version INTEGER NOT NULL, open INTEGER NOT NULL,
    described BLOB NOT NULL, record BLOB NOT NULL);
CREATE TABLE approvers (partition TEXT NOT NULL, name TEXT NOT NULL, spki BLOB NOT NULL, added TEXT NOT NULL,
    PRIMARY KEY (partition, name));
CREATE TABLE approvals (nonce BLOB PRIMARY KEY, expires TEXT NOT NULL) WITHOUT ROWID;
"""


class PartitionRow(NamedTuple):
    """A partition. ``marks``: counter and set digest, sealed under its KEK; empty after zeroisation."""

    slot: int
    id: bytes
    name: str
    serial: str
    counter: int
    marks: bytes


class RoleRow(NamedTuple):
    """A role's PIN: salt, the KEK wrapped under its PIN key, wrong tries in a row, tries that were counted and never settled."""

    role: str
    salt: bytes
    wrapped: bytes
    wrong: int
    cut: int


class ObjectRow(NamedTuple):
    """An object: ``described`` is everything but its secret, in the clear and authenticated; ``open``: it has no CKA_PRIVATE."""

    id: bytes
    version: int
    open: bool
    described: bytes
    record: bytes


class Store:
    """The open database. ``read`` and ``write`` take a function of the connection and run it in the store's thread."""

    def __init__(self, path: Path) -> None:
        """Raises Fatal (not an HSM's database, damaged, of another version), OSError."""
        self._thread = ThreadPoolExecutor(1, "store")
        try:
            self._db = self._thread.submit(_open, path).result()
        except BaseException:
            self._thread.shutdown()
            raise

    async def read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """What ``query`` returns. Raises Rejected(STORAGE)."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self.now, query)

    async def write(self, change: Callable[[sqlite3.Connection], T], name: str = "") -> T:
        """Runs ``change`` in a transaction, which is durable when this returns, even if nobody waits for it any more.

        ``name`` is for failpoints (``hsm.NAME.committing``, ``hsm.NAME.committed``). Raises Rejected(STORAGE), and what ``change`` raises:
        then nothing has changed.
        """
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, self._transact, change, name))

    def now(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """``read`` for who is in the store's thread already, or alone (at the start)."""
        try:
            return query(self._db)
        except sqlite3.Error as error:
            raise _failed(error) from error

    def _transact(self, change: Callable[[sqlite3.Connection], T], name: str) -> T:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            result = change(self._db)
            failpoint(f"hsm.{name}.committing")
            # A crash up to here leaves no trace of it.
            self._db.execute("COMMIT")
            failpoint(f"hsm.{name}.committed")
        except sqlite3.Error as error:
            raise _failed(error) from error
        finally:
            if self._db.in_transaction:
                self._db.rollback()
        return result

    async def forget(self) -> None:
        """Moves what was deleted out of the write-ahead log too, so that no file has it any more. Raises Rejected(STORAGE)."""
        await self.read(lambda db: db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall())

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._db.close)
        self._thread.shutdown()


def new(first: dict[str, Any]) -> sqlite3.Connection:
    """An empty database in memory, with these settings. ``serialize()`` gives its octets."""
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.executescript(_SCHEMA)
    db.execute(f"PRAGMA user_version = {_VERSION}")
    for name, value in first.items():
        put_setting(db, name, value)
    return db


def _open(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        # Exclusive: the home's lock has one writer anyway, and without shared memory no full disk can end the process with SIGBUS.
        for pragma in (
            "locking_mode = EXCLUSIVE",
            "journal_mode = WAL",
            "synchronous = FULL",
            "secure_delete = ON",
            "trusted_schema = OFF",
        ):
            db.execute(f"PRAGMA {pragma}")
        (version,) = db.execute("PRAGMA user_version").fetchone()
        trouble = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.Error as error:
        db.close()
        raise Fatal(f"{path} cannot be read ({error}): restore it from a backup, its keys are in it") from error
    if version != _VERSION or trouble != "ok":
        db.close()
        why = "is damaged" if trouble != "ok" else "was made by another version"
        raise Fatal(f"{path} {why}: restore it from a backup, its keys are in it")
    return db


def _failed(error: sqlite3.Error) -> Rejected:
    return Rejected(Code.STORAGE, f"the HSM's storage failed ({error}): nothing was changed")


# --- queries: functions of the connection, for Store.read and Store.write -------------------------------------------


def settings(db: sqlite3.Connection) -> dict[str, Any]:
    """All settings by name."""
    return {name: cbor2.loads(value) for name, value in db.execute("SELECT name, value FROM settings")}


def put_setting(db: sqlite3.Connection, name: str, value: object) -> None:
    """Sets or, with None, removes a setting."""
    if value is None:
        db.execute("DELETE FROM settings WHERE name = ?", (name,))
    else:
        db.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, cbor2.dumps(value, canonical=True)))


def partitions(db: sqlite3.Connection) -> list[PartitionRow]:
    """All of them, in the order of their slots."""
    return [PartitionRow(*row) for row in db.execute("SELECT slot, id, name, serial, counter, marks FROM partitions ORDER BY slot")]


def put_partition(db: sqlite3.Connection, row: PartitionRow) -> None:
    """Adds a partition, or replaces the one in its slot."""
    db.execute("INSERT OR REPLACE INTO partitions VALUES (?, ?, ?, ?, ?, ?)", row)


def role(db: sqlite3.Connection, partition: bytes, name: str) -> RoleRow | None:
    """A role of a partition (of the device: with an empty ``partition``), or None if it has no PIN."""
    query = "SELECT role, salt, wrapped, wrong, cut FROM roles WHERE partition = ? AND role = ?"
    row = db.execute(query, (partition, name)).fetchone()
    return None if row is None else RoleRow(*row)


def put_role(db: sqlite3.Connection, partition: bytes, row: RoleRow) -> None:
    """Sets a role's PIN, or its counters."""
    db.execute("INSERT OR REPLACE INTO roles VALUES (?, ?, ?, ?, ?, ?)", (partition, *row))


def drop_roles(db: sqlite3.Connection, partition: bytes) -> None:
    """Takes all PINs of a partition away, and with them its KEK."""
    db.execute("DELETE FROM roles WHERE partition = ?", (partition,))


def objects(db: sqlite3.Connection, partition: bytes) -> list[ObjectRow]:
    """All objects of a partition, oldest first."""
    query = "SELECT id, version, open, described, record FROM objects WHERE partition = ? ORDER BY rowid"
    return [ObjectRow(row[0], row[1], bool(row[2]), row[3], row[4]) for row in db.execute(query, (partition,))]


def object_row(db: sqlite3.Connection, id: bytes) -> ObjectRow:
    """One object. Raises Rejected(OBJECT_HANDLE_INVALID)."""
    row = db.execute("SELECT id, version, open, described, record FROM objects WHERE id = ?", (id,)).fetchone()
    if row is None:
        raise Rejected(Code.OBJECT_HANDLE_INVALID, "the object is not there any more")
    return ObjectRow(row[0], row[1], bool(row[2]), row[3], row[4])


def change(db: sqlite3.Connection, partition: bytes, ring: Ring, put: Iterable[ObjectRow] = (), drop: Sequence[bytes] = ()) -> int:
    """Puts and drops objects, and brings the set digest along. Returns the new counter.

    Raises Rejected: TAMPERED (the digest is not this counter's), OBJECT_HANDLE_INVALID (nothing to drop).
    """
    counter, sealed = marks(db, partition)
    total = open_marks(ring, partition, counter, sealed)
    for gone in drop:
        total -= ring.mark(gone, object_row(db, gone).version)
        db.execute("DELETE FROM objects WHERE id = ?", (gone,))
    for row in put:
        before = db.execute("SELECT version FROM objects WHERE id = ? AND partition = ?", (row.id, partition)).fetchone()
        if before is None:
            db.execute("INSERT INTO objects VALUES (?, ?, ?, ?, ?, ?)", (row.id, partition, *row[1:]))
        else:
            total -= ring.mark(row.id, before[0])
            columns = (row.version, row.open, row.described, row.record, row.id)
            db.execute("UPDATE objects SET version = ?, open = ?, described = ?, record = ? WHERE id = ?", columns)
        total += ring.mark(row.id, row.version)
    return put_marks(db, ring, partition, counter + 1, total)


def marks(db: sqlite3.Connection, partition: bytes) -> tuple[int, bytes]:
    """A partition's counter and its sealed set digest."""
    counter, sealed = db.execute("SELECT counter, marks FROM partitions WHERE id = ?", (partition,)).fetchone()
    return counter, sealed


def put_marks(db: sqlite3.Connection, ring: Ring, partition: bytes, counter: int, total: int) -> int:
    """Writes counter and set digest. Returns the counter."""
    sealed = seal(derive(ring.kek, b"marks"), counter.to_bytes(8) + (total % (1 << 256)).to_bytes(32), partition)
    db.execute("UPDATE partitions SET counter = ?, marks = ? WHERE id = ?", (counter, sealed, partition))
    return counter


def open_marks(ring: Ring, partition: bytes, counter: int, sealed: bytes) -> int:
    """The set digest that was sealed with ``counter``. Raises Rejected(TAMPERED)."""
    try:
        content = unseal(derive(ring.kek, b"marks"), sealed, partition)
    except Malformed as error:
        raise Rejected(Code.TAMPERED, f"the digest of the partition's objects cannot be used: {error}") from error
    if int.from_bytes(content[:8]) != counter:
        raise Rejected(Code.TAMPERED, "the digest of the partition's objects is of another time than the partition")
    return int.from_bytes(content[8:])
