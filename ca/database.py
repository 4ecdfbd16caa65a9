"""The database itself: SQLite or PostgreSQL, opened so that what is committed stays, or not at all.

    database = Database("sqlite:////var/lib/ironroot/ironroot.db")      # or postgresql://…
    database.check()                                                    # raises Fatal where durability is weakened

SQLAlchemy's, sqlite3's and psycopg's exceptions end here: ``translate`` makes ours of them.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, SQLAlchemyError
from sqlalchemy.pool import QueuePool

from pkix.errors import Fatal, IronrootError, Malformed, OutcomeUnknown, Unavailable

RETRY = 5  # seconds
BUSY = 5000  # milliseconds that a statement waits for a lock
PRAGMAS = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
GUCS = {
    "fsync": {"on"},
    "full_page_writes": {"on"},
    "synchronous_commit": {"on", "local", "remote_write", "remote_apply"},
}
WRITER_LOCK = 0x69726F6E  # advisory lock: one write transaction at a time, so that the audit chain has one order
THIRD_PARTY = (SQLAlchemyError, sqlite3.Error, OSError)

# An fsync that failed says nothing about what is on the disk, and must not be repeated; a damaged file must not be written to.
SQLITE_FATAL = ("SQLITE_IOERR_FSYNC", "SQLITE_IOERR_DIR_FSYNC", "SQLITE_CORRUPT", "SQLITE_NOTADB")


def translate(error: BaseException) -> IronrootError:
    """What a caller may be told of an error of the database or the disk."""
    if isinstance(error, IronrootError):
        return error
    orig = error.orig if isinstance(error, DBAPIError) else error
    name = getattr(orig, "sqlite_errorname", None) or getattr(orig, "sqlstate", None) or ""
    if name.startswith(SQLITE_FATAL):
        return Fatal(f"The database cannot be trusted any more ({name}). Check the disk, then start again or restore a backup.")
    if name in ("SQLITE_FULL", "53100"):
        return Unavailable("The disk of the database is full. Free some space, then repeat the request.", retry_after=RETRY)
    if name.startswith("SQLITE_READONLY") or name == "25006":
        return Unavailable("The database is read-only. Make it writable, then repeat the request.", retry_after=RETRY)
    if isinstance(error, DataError):
        return Malformed("Text that cannot be stored: it holds a NUL character or is too long.")
    return Unavailable("The database is not available at the moment. Repeat the request later.", retry_after=RETRY)


@contextmanager
def translated() -> Iterator[None]:
    """Turns third-party exceptions into ours."""
    try:
        yield
    except THIRD_PARTY as error:
        raise translate(error) from error


class Database:
    """Two engines on one database: ``writer`` (one connection, one write transaction at a time) and ``reader`` (autocommit).

    Raises Malformed for a URL that is neither SQLite's with a file nor PostgreSQL's. Connects only when used.
    """

    def __init__(self, url: str, *, readers: int = 3) -> None:
        try:
            parsed = make_url(url)
        except ArgumentError as error:
            raise Malformed("The database URL does not parse. Write sqlite:////path/to/file or postgresql://user@host/name.") from error
        self.path: Path | None = None
        self._inode: tuple[int, int] | None = None
        if parsed.get_backend_name() == "sqlite" and parsed.database not in (None, "", ":memory:"):
            self.path = Path(str(parsed.database))
            self.writer, self.reader = _sqlite(self.path, 1, write=True), _sqlite(self.path, readers, write=False)
        elif parsed.get_backend_name() == "postgresql":
            target = parsed.set(drivername="postgresql+psycopg")
            self.writer, self.reader = _postgresql(target, 1, write=True), _postgresql(target, readers, write=False)
        else:
            raise Malformed("The database must be SQLite in a file or PostgreSQL.")

    @property
    def is_sqlite(self) -> bool:
        return self.path is not None

    def check(self) -> None:
        """Raises Fatal if what is committed could be lost, Unavailable if the database is away."""
        with translated():
            self.present()
            with self.writer.connect() as connection:  # SQLite's pragmas were checked on connecting
                if not self.is_sqlite:
                    _check_gucs(connection)

    def present(self) -> None:
        """Raises if the SQLite file under our open connections is no longer the one at its path: writes would go nowhere."""
        if self.path is None:
            return
        stat = os.stat(self.path)
        inode = (stat.st_dev, stat.st_ino)
        if self._inode is None:
            self._inode = inode
        elif self._inode != inode:
            raise Fatal("The database file was replaced while in use. Start again, so that what was restored is checked.")

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A connection in a write transaction, the only one on this database. The caller commits; otherwise it is rolled back."""
        self.present()
        with self.writer.connect() as connection:
            connection.begin()  # SQLite: BEGIN IMMEDIATE takes the one write lock
            if not self.is_sqlite:
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITER_LOCK})")
            yield connection

    def dispose(self) -> None:
        """Closes all connections that are not in use; the engines open new ones when used again."""
        self.writer.dispose()
        self.reader.dispose()


def _sqlite(path: Path, size: int, *, write: bool) -> Engine:
    def connect() -> sqlite3.Connection:
        # mode=rw: a database that is gone is an error, not a new empty one
        place = f"file:{quote(str(path.absolute()))}?mode=rw"
        connection = sqlite3.connect(
            place, uri=True, timeout=BUSY / 1000, isolation_level=None, check_same_thread=False, cached_statements=256
        )
        try:
            _configure(connection, write=write)
        except BaseException:
            connection.close()
            raise
        return connection

    engine = create_engine("sqlite://", creator=connect, poolclass=QueuePool, pool_size=size, max_overflow=0, pool_timeout=5)
    if write:

        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _configure(connection: sqlite3.Connection, *, write: bool) -> None:
    for pragma, value in PRAGMAS.items():
        connection.execute(f"PRAGMA {pragma}={value}")
    for pragma, value in PRAGMAS.items():
        (taken,) = connection.execute(f"PRAGMA {pragma}").fetchone()
        if taken != value:
            raise Fatal(f"The database refuses {pragma}={value}: what it stores could be lost. Put it on a local disk.")
    connection.execute("PRAGMA wal_autocheckpoint=4000" if write else "PRAGMA query_only=ON")


def _postgresql(url: Any, size: int, *, write: bool) -> Engine:
    timeouts = f"-c lock_timeout={BUSY} -c statement_timeout=30000 -c idle_in_transaction_session_timeout=15000"
    arguments = {"connect_timeout": 2, "options": timeouts, "tcp_user_timeout": 10000, "application_name": "ironroot"}
    # READ COMMITTED: each statement after the advisory lock sees what the holder before us committed
    isolation = "READ COMMITTED" if write else "AUTOCOMMIT"
    try:
        return create_engine(
            url,
            isolation_level=isolation,
            connect_args=arguments,
            pool_size=size,
            max_overflow=0,
            pool_timeout=5,
            pool_pre_ping=True,  # after a fail-over the first request already gets a connection that works
        )
    except ModuleNotFoundError as error:
        raise Malformed("PostgreSQL needs the package psycopg. Install ironroot[postgresql].") from error


def _check_gucs(connection: Connection) -> None:
    for name, allowed in GUCS.items():
        value = connection.exec_driver_sql(f"SHOW {name}").scalar_one()
        if value not in allowed:
            raise Fatal(f"PostgreSQL runs with {name}={value}: what it stores could be lost. Set {name}=on and restart it.")


def outcome_unknown() -> OutcomeUnknown:
    """For a commit whose answer never came."""
    return OutcomeUnknown("The database went away while it stored this; it may have been done. Look, then repeat it.", retry_after=RETRY)
