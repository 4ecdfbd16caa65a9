"""Making and upgrading the tables."""

from __future__ import annotations

import asyncio
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import CheckConstraint, inspect, text

from ca import schema
from ca.database import Database
from ca.migrate import upgrade
from ca.store_sql import SqlStore
from pkix.errors import Fatal, Malformed, Unavailable


@pytest.fixture(params=["sqlite", "postgresql"])
def empty(request: pytest.FixtureRequest, folder: Path) -> str:
    """A database without tables."""
    if request.param == "sqlite":
        return f"sqlite:///{folder}/new.db"
    server = request.getfixturevalue("postgresql")
    server.databases += 1
    server.sql(f"CREATE DATABASE empty{server.databases}")
    return str(server.url(f"empty{server.databases}"))


def execute(url: str, statement: str) -> None:
    database = Database(url)
    with database.writer.begin() as connection:
        connection.execute(text(statement))
    database.dispose()


def test_migrations_make_what_the_schema_says(empty: str) -> None:
    upgrade(empty)
    database = Database(empty)
    with database.reader.connect() as connection:
        options = {"compare_type": True, "target_metadata": schema.metadata}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), schema.metadata) == []
        found = inspect(connection)
        for table in schema.metadata.tables.values():  # what alembic does not compare
            checks = {check.name for check in table.constraints if isinstance(check, CheckConstraint)}
            assert {check["name"] for check in found.get_check_constraints(table.name)} == checks
            assert found.get_pk_constraint(table.name)["name"] == table.primary_key.name
    database.dispose()


def test_upgrading_again_changes_nothing(empty: str) -> None:
    upgrade(empty)
    execute(empty, "INSERT INTO leases VALUES ('a', 'b', 3)")
    upgrade(empty)
    database = Database(empty)
    with database.reader.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM leases")).scalar() == 1
    database.dispose()


def test_processes_that_upgrade_at_once(empty: str) -> None:
    program = "import sys; from ca.migrate import upgrade; sys.stdin.read(); upgrade(sys.argv[1])"
    starting = [subprocess.Popen([sys.executable, "-W", "error", "-c", program, empty], stdin=subprocess.PIPE) for _ in range(3)]
    for process in starting:
        assert process.stdin is not None
        process.stdin.close()
    assert [process.wait(60) for process in starting] == [0, 0, 0]

    async def opens() -> None:
        await (await SqlStore.open(empty, lock_file=None)).close()

    asyncio.run(opens())


def test_a_newer_database_is_left_alone(empty: str) -> None:
    upgrade(empty)
    execute(empty, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(Fatal, match=r"newer version of ironroot.*9999"):
        upgrade(empty)
    with pytest.raises(Fatal, match="newer version"):
        asyncio.run(SqlStore.open(empty, lock_file=None))


def test_the_store_does_not_open_on_older_tables(empty: str) -> None:
    upgrade(empty)
    execute(empty, "DELETE FROM alembic_version")
    with pytest.raises(Fatal, match="older"):
        asyncio.run(SqlStore.open(empty, lock_file=None))


def test_a_crash_in_the_middle_leaves_nothing(empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from alembic import op

    def fails(*_: Any, **__: Any) -> None:
        raise OSError("the disk went away")

    with monkeypatch.context() as patch:
        patch.setattr(op, "create_index", fails)
        with pytest.raises(Unavailable):
            upgrade(empty)
    database = Database(empty)
    with database.reader.connect() as connection:
        assert inspect(connection).get_table_names() == []
    database.dispose()
    upgrade(empty)


def test_the_file_is_for_its_owner_only(folder: Path) -> None:
    upgrade(f"sqlite:///{folder}/new.db")
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_a_folder_that_is_not_there(folder: Path) -> None:
    with pytest.raises(Unavailable):
        upgrade(f"sqlite:///{folder}/missing/new.db")


@pytest.mark.parametrize("url", ["", "nonsense", "sqlite://", "sqlite:///:memory:", "mysql://localhost/x"])
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(Malformed):
        upgrade(url)
