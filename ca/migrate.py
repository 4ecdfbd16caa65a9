"""Makes and upgrades the tables.

    upgrade("sqlite:////var/lib/ironroot/ironroot.db")

Revisions are in ``ca/migrations/versions`` (alembic). ``upgrade`` may be called by many processes at once, and at every start: one of
them does what is to be done, in one transaction; a crash in the middle leaves the tables as they were.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from ca.database import Database, translated
from pkix.errors import Fatal

SCRIPTS = Path(__file__).parent / "migrations"
NEWER = "The database was made by a newer version of ironroot ({revision}). Use that version, or restore a backup from before."
OLDER = "The tables of the database are older than this version of ironroot. Run the upgrade first; stop other versions before."


def _scripts() -> tuple[Config, ScriptDirectory]:
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    return config, ScriptDirectory.from_config(config)


def current(connection: Connection) -> str | None:
    """The revision of the tables, None if there are none."""
    return MigrationContext.configure(connection).get_current_revision()


def check(connection: Connection) -> None:
    """Raises Fatal unless the tables are exactly those of this version."""
    _, scripts = _scripts()
    revision, head = current(connection), scripts.get_current_head()
    if revision != head:
        raise Fatal(NEWER.format(revision=revision) if _is_newer(scripts, revision) else OLDER)


def upgrade(url: str) -> None:
    """Brings the database at ``url`` to the tables of this version, making the file (SQLite) and the tables if there are none.

    Raises:
        Fatal: the tables are of a newer version; nothing was changed.
        Unavailable: the database is away.
        Malformed: the URL.
    """
    database = Database(url)
    with translated(), _alone(database):
        try:
            with database.write() as connection:
                _upgrade(connection)
                connection.commit()
        finally:
            database.dispose()


def _upgrade(connection: Connection) -> None:
    config, scripts = _scripts()
    revision = current(connection)
    if _is_newer(scripts, revision):
        raise Fatal(NEWER.format(revision=revision))
    if revision == scripts.get_current_head():
        return
    environment = EnvironmentContext(config, scripts, fn=lambda done, _: scripts._upgrade_revs("head", done))
    environment.configure(connection=connection, transactional_ddl=True)
    environment.run_migrations()


def _is_newer(scripts: ScriptDirectory, revision: str | None) -> bool:
    return revision is not None and revision not in {known.revision for known in scripts.walk_revisions()}


@contextmanager
def _alone(database: Database) -> Iterator[None]:
    """One process at a time; makes SQLite's file, for its owner only. (PostgreSQL: the advisory lock of every write transaction.)"""
    if database.path is None:
        yield
        return
    lock = os.open(database.path.with_name(database.path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not database.path.exists():  # an open file's POSIX locks go when any descriptor of it is closed
            os.close(os.open(database.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        yield
    finally:
        os.close(lock)
