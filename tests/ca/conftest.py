"""Databases for the store's tests: SQLite in a folder, and a private PostgreSQL server where its programs are installed."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from programs import missing

from ca.audit import verify
from ca.migrate import upgrade
from ca.model import LINT_PROOF, Identity, Invitation, Linted, Method, Tbs
from ca.schema import metadata
from ca.store_sql import SqlStore

NOW = datetime(2026, 6, 1, 12, 0, 0, tzinfo=UTC)
DAY = timedelta(days=1)
Test = Callable[[SqlStore], Awaitable[None]]


@dataclass
class PostgreSQL:
    """A server of our own on a socket in ``folder``."""

    bin: Path
    folder: Path
    become: list[str]
    databases: int = 0

    def url(self, name: str) -> str:
        return f"postgresql://postgres@/{name}?host={self.folder}"

    def run(self, program: str, *arguments: str) -> None:
        subprocess.run([*self.become, str(self.bin / program), *arguments], check=True, capture_output=True, cwd=self.folder)

    def start(self) -> None:
        options = f"-c listen_addresses='' -c unix_socket_directories={self.folder} -c max_connections=50"
        log = str(self.folder / "log")
        self.run("pg_ctl", "start", "-w", "-s", "-D", str(self.folder / "data"), "-l", log, "-o", options)

    def stop(self, mode: str = "fast") -> None:
        self.run("pg_ctl", "stop", "-w", "-s", "-D", str(self.folder / "data"), "-m", mode)

    def sql(self, *statements: str, database: str = "postgres") -> None:
        engine = sqlalchemy.create_engine(self.url(database).replace("://", "+psycopg://", 1), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)
        engine.dispose()

    def database(self) -> str:
        """The URL of a database with our tables, empty."""
        tables = ", ".join(table.name for table in metadata.sorted_tables)
        self.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'made' AND pid <> pg_backend_pid()",
            "SET session_replication_role = replica",  # past the trigger that keeps the audit chain
            f"TRUNCATE {tables}",
            database="made",
        )
        return self.url("made")


def _programs() -> Path | None:
    found = shutil.which("initdb")
    if found:
        return Path(found).parent
    return max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), default=None)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    programs = _programs()
    if programs is None:
        missing("a PostgreSQL server (initdb)")
    pytest.importorskip("psycopg")
    become = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
    folder = Path(tempfile.mkdtemp(prefix="ir", dir="/tmp"))
    if become:
        shutil.chown(folder, "postgres", "postgres")
    server = PostgreSQL(programs, folder, become)
    try:
        server.run("initdb", "-D", str(folder / "data"), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C")
        server.start()
        server.sql("CREATE DATABASE made")
        upgrade(server.url("made"))
        yield server
        server.stop("immediate")
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="ir", dir="/tmp"))
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="session")
def sqlite_made() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="ir", dir="/tmp"))
    upgrade(f"sqlite:///{made}/made.db")
    yield made / "made.db"
    shutil.rmtree(made)


@pytest.fixture
def sqlite_url(folder: Path, sqlite_made: Path) -> str:
    shutil.copy(sqlite_made, folder / "ironroot.db")
    return f"sqlite:///{folder}/ironroot.db"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    """A new database with our tables, on each of the two."""
    if request.param == "sqlite":
        return str(request.getfixturevalue("sqlite_url"))
    return str(request.getfixturevalue("postgresql").database())


@pytest.fixture
def run(url: str) -> Callable[[Test], None]:
    """Runs an async test on a store of its own, then verifies the whole audit chain."""

    def run(test: Test) -> None:
        async def all_of_it() -> None:
            store = await SqlStore.open(url, lock_file=None)
            try:
                await test(store)
                assert verify([entry async for entry in store.audit_entries()]) is None
            finally:
                await store.close()

        asyncio.run(all_of_it())

    return run


class Drafts:
    """Makes what goes into a store. Everything is different each time, unless it is asked for."""

    now = NOW

    def tbs(self, *, device: str = "", token: bytes | None = None, **fields: Any) -> Tbs:
        device = device or f"dev-{secrets.token_hex(4)}"
        method = Method.TOKEN if token else Method.IDEVID
        made = Tbs(
            authority="ecc-issuing",
            serial=1 << 126 | secrets.randbits(126),
            der=secrets.token_bytes(300),
            subject=f"CN={device}",
            not_before=NOW,
            not_after=NOW + 90 * DAY,
            spki_sha256=secrets.token_bytes(32),
            profile="ecc-device",
            profile_hash=bytes(32),
            identity=Identity("ecc-devices", device, method, (token or b"idevid").hex(), ("dns:a.example", "ip:::1")),
            token=token,
        )
        return replace(made, **fields)

    def linted(self, **fields: Any) -> Linted:
        return Linted(self.tbs(**fields), LINT_PROOF)

    def again(self, linted: Linted, **fields: Any) -> Linted:
        """The same request once more: another serial and TBS, the rest as it was."""
        fresh = {"serial": 1 << 126 | secrets.randbits(126), "der": secrets.token_bytes(300)}
        return Linted(replace(linted.tbs, **{**fresh, **fields}), LINT_PROOF)

    def invitation(self, device: str, **fields: Any) -> Invitation:
        made = Invitation(secrets.token_bytes(32), "ecc-devices", device, (), NOW - DAY, NOW + DAY)
        return replace(made, **fields)


@pytest.fixture
def drafts() -> Drafts:
    return Drafts()
