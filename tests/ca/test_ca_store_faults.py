"""The store when something breaks: processes killed, disks full, databases away. Nothing is lost, nothing is half done, and it recovers."""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from programs import missing, need

from ca import database as database_module
from ca.audit import verify
from ca.database import GUCS, PRAGMAS
from ca.failpoint import VARIABLE
from ca.migrate import upgrade
from ca.model import Intent, Invitation, State
from ca.ports import STALE
from ca.store_sql import SqlStore
from pkix.errors import Conflict, Fatal, Malformed, OutcomeUnknown, Unauthenticated, Unavailable

# Makes one certificate with the token in argv[3]; its key, serial and TBS are always the same.
PROGRAM = """
import asyncio, sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ca.model import LINT_PROOF, Identity, Linted, Method, Tbs
from ca.store_sql import SqlStore
from pkix.errors import Unavailable

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)

async def main(url, lock, token):
    store = await SqlStore.open(url, lock_file=lock)
    try:
        tbs = Tbs("ecc-issuing", 7, b"tbs", "CN=pump-1", NOW, NOW + timedelta(days=9), b"k" * 32, "ecc-device", bytes(32),
                  Identity("ecc-devices", "pump-1", Method.TOKEN, token), bytes.fromhex(token))
        intent = await store.intend(Linted(tbs, LINT_PROOF), NOW)
        print("intended", flush=True)
        await store.record(intent, b"der", NOW)
        print("recorded", flush=True)
    except Unavailable as error:
        print("unavailable", flush=True)
    finally:
        await store.close()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
def token(url: str, drafts: Any) -> bytes:
    """A token for pump-1 in the database at ``url``."""
    invitation: Invitation = drafts.invitation("pump-1")

    async def invite() -> None:
        store = await SqlStore.open(url, lock_file=None)
        await store.invite([invitation], drafts.now, actor="op")
        await store.close()

    asyncio.run(invite())
    return invitation.token_sha256


def attempt(url: str, folder: Path, token: bytes, failpoint: str | None = None, *before: str) -> tuple[int, str]:
    environment = dict(os.environ) | ({VARIABLE: failpoint} if failpoint else {})
    arguments = [*before, sys.executable, "-W", "error", "-c", PROGRAM, url, str(folder / "lock"), token.hex()]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout.replace("\n", " ").strip()


def look(url: str, drafts: Any) -> tuple[State | None, list[str]]:
    """What is durable: the state of certificate 1, and the actions in the audit chain, which is verified."""

    async def look() -> tuple[State | None, list[str]]:
        store = await SqlStore.open(url, lock_file=None)
        entries = [entry async for entry in store.audit_entries()]
        assert verify(entries) is None
        record = await store.get(1)
        await store.close()
        return record.state if record else None, [entry.action for entry in entries if entry.action != "token.invited"]

    return asyncio.run(look())


INTENDED, ISSUED = "certificate.intended", "certificate.issued"


@pytest.mark.parametrize(
    ("point", "told", "state", "actions"),
    [
        ("store.intend.committing", "", None, []),
        ("store.intend.committed", "", State.INTENDED, [INTENDED]),
        ("store.record.committing", "intended", State.INTENDED, [INTENDED]),
        ("store.record.committed", "intended", State.ISSUED, [INTENDED, ISSUED]),
    ],
)
def test_killed_at(
    url: str, folder: Path, drafts: Any, token: bytes, point: str, told: str, state: State | None, actions: list[str]
) -> None:
    """A process that is killed leaves all or nothing of a step behind, and the next one goes on from there."""
    assert attempt(url, folder, token, f"{point}:kill") == (-signal.SIGKILL, told)
    assert look(url, drafts) == (state, actions)
    if state is None:
        assert attempt(url, folder, token) == (0, "intended recorded")
        return
    if state is State.INTENDED:

        async def recover() -> None:
            store = await SqlStore.open(url, lock_file=None)
            (intent,) = await store.unfinished(drafts.now.replace(year=2030))
            assert (intent.serial, intent.tbs_der) == (7, b"tbs")
            await store.record(intent, b"der", drafts.now)
            await store.close()

        asyncio.run(recover())
    assert look(url, drafts) == (State.ISSUED, [INTENDED, ISSUED])


@pytest.mark.parametrize(
    ("point", "state", "actions"),
    [
        ("store.intend.committing", None, []),
        ("store.intend.committed", State.INTENDED, [INTENDED]),
        ("store.record.committing", State.INTENDED, [INTENDED]),
        ("store.record.committed", State.ISSUED, [INTENDED, ISSUED]),
    ],
)
def test_failed_at(url: str, folder: Path, drafts: Any, token: bytes, point: str, state: State | None, actions: list[str]) -> None:
    """Failed and not kept, failed but kept: the caller hears Unavailable, the process lives on."""
    code, told = attempt(url, folder, token, f"{point}:raise")
    assert (code, told.split()[-1]) == (0, "unavailable")
    assert look(url, drafts) == (state, actions)


def test_a_failpoint_must_be_well_formed() -> None:
    for text in ("store.intend.committed", "store.intend.committed:explode"):
        program = [sys.executable, "-c", "import ca.failpoint"]
        done = subprocess.run(program, env=dict(os.environ) | {VARIABLE: text}, capture_output=True, text=True, check=False)
        assert "Fatal" in done.stderr


@contextmanager
def opened(url: str, lock_file: Path | None = None, deadline: float = 10.0) -> Iterator[tuple[asyncio.Runner, SqlStore]]:
    with asyncio.Runner() as runner:
        store = runner.run(SqlStore.open(url, lock_file=lock_file, deadline=deadline))
        try:
            yield runner, store
        finally:
            runner.run(store.close())


# SQLite


def test_full_disk(sqlite_url: str, drafts: Any, folder: Path) -> None:
    """503 while it lasts, nothing half done, and it goes on by itself once there is space."""
    disk = folder / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, check=False)
    if mount.returncode:
        missing("the right to mount a small file system")
    try:
        shutil.copy(folder / "ironroot.db", disk / "full.db")
        with opened(f"sqlite:///{disk}/full.db") as (runner, store):
            written = 0
            with pytest.raises(Unavailable, match="disk") as caught:  # noqa: PT012
                while True:
                    runner.run(store.intend(drafts.linted(der=secrets.token_bytes(10000)), drafts.now))
                    written += 1
            assert caught.value.retry_after
            assert written
            with pytest.raises(Unavailable):
                runner.run(store.intend(drafts.linted(der=secrets.token_bytes(10000)), drafts.now))
            assert len(runner.run(store.page(limit=1000))) == written
            subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
            runner.run(store.intend(drafts.linted(), drafts.now))
            runner.run(store.ready())
            assert len(runner.run(store.page(limit=1000))) == written + 1
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_full_database(sqlite_url: str, drafts: Any) -> None:
    with opened(sqlite_url) as (runner, store):
        with store._database.writer.connect() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
            connection.exec_driver_sql(f"PRAGMA max_page_count={pages + 2}")
        big = drafts.linted(der=secrets.token_bytes(100_000))
        with pytest.raises(Unavailable, match="full"):
            runner.run(store.intend(big, drafts.now))
        runner.run(store.intend(drafts.again(big, der=secrets.token_bytes(100_000)), drafts.now))  # a new connection, without the limit


def test_somebody_else_holds_the_database(sqlite_url: str, folder: Path, drafts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "BUSY", 50)
    with opened(sqlite_url) as (runner, store):
        other = sqlite3.connect(folder / "ironroot.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable):
            runner.run(store.ready())
        assert runner.run(store.page()) == []  # who only reads is not concerned
        other.execute("ROLLBACK")
        other.close()
        runner.run(store.ready())


def test_somebody_else_holds_the_lock_file(sqlite_url: str, folder: Path, drafts: Any) -> None:
    """Who was told that it was not done can rely on it, also when the lock is free again."""
    with opened(sqlite_url, folder / "lock", deadline=0.1) as (runner, store), open(folder / "lock") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(Unavailable) as caught:
            runner.run(store.intend(drafts.linted(), drafts.now))
        assert not isinstance(caught.value, OutcomeUnknown)
        fcntl.flock(other, fcntl.LOCK_UN)
        runner.run(store.audit("op", "note", "x", drafts.now))
        assert runner.run(store.page()) == []


def test_a_database_that_goes_away_and_comes_back(sqlite_url: str, folder: Path, drafts: Any) -> None:
    with opened(sqlite_url) as (runner, store):
        runner.run(store.ready())
        (folder / "ironroot.db").rename(folder / "away.db")
        for verb in (store.ready(), store.page(), store.status("ecc-issuing", 7)):
            with pytest.raises(Unavailable):
                runner.run(verb)
        assert not (folder / "ironroot.db").exists()
        (folder / "away.db").rename(folder / "ironroot.db")
        runner.run(store.ready())


def test_a_database_that_was_replaced_is_not_written(sqlite_url: str, sqlite_made: Path, folder: Path, drafts: Any) -> None:
    """A backup that is restored under our feet has to be checked first; writes to the old file would go nowhere."""
    with opened(sqlite_url) as (runner, store):
        runner.run(store.ready())
        (folder / "ironroot.db").rename(folder / "old.db")
        shutil.copy(sqlite_made, folder / "ironroot.db")
        for verb in (store.ready(), store.page()):
            with pytest.raises(Fatal, match="replaced"):
                runner.run(verb)


@pytest.mark.parametrize("content", [b"", b"this is not a database, however long it may be. " * 100])
def test_a_file_that_is_no_database(folder: Path, content: bytes) -> None:
    (folder / "x.db").write_bytes(content)
    with pytest.raises(Fatal):
        asyncio.run(SqlStore.open(f"sqlite:///{folder}/x.db", lock_file=None))


def test_a_missing_database_is_not_made(folder: Path) -> None:
    with pytest.raises(Unavailable):
        asyncio.run(SqlStore.open(f"sqlite:///{folder}/x.db", lock_file=None))
    assert not (folder / "x.db").exists()


def test_sqlite_that_would_not_be_durable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk without shared memory between processes (unix-none stands for it) does not take journal_mode=WAL: we do not start on it."""
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda place, **options: connect(f"{place}&vfs=unix-none", **options))
    with pytest.raises(Fatal, match="journal_mode=wal"):
        upgrade(f"sqlite:///{folder}/x.db")


def test_sqlite_that_does_not_take_a_setting(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRAGMAS, "synchronous", 7)
    with pytest.raises(Fatal, match="synchronous"):
        asyncio.run(SqlStore.open(sqlite_url, lock_file=None))


def test_fsync_that_failed_is_not_repeated(sqlite_url: str, folder: Path, drafts: Any) -> None:
    """What was written may be on the disk or not: the process must stop, not go on as if it were."""
    need("strace")
    with opened(sqlite_url) as (runner, store):
        invitation = drafts.invitation("pump-1")
        runner.run(store.invite([invitation], drafts.now, actor="op"))
    strace = ["strace", "-f", "-q", "-o", "/dev/null", "-e", "trace=fdatasync,fsync", "-e", "inject=fdatasync,fsync:error=EIO"]
    code, told = attempt(sqlite_url, folder, invitation.token_sha256, None, *strace)
    if "ptrace" in told:
        missing("the right to trace")
    assert (code, told) == (1, "")  # Fatal, not Unavailable
    state, actions = look(sqlite_url, drafts)
    assert (state, actions) in ((None, []), (State.INTENDED, [INTENDED]))


def test_processes_that_write_at_once(sqlite_url: str, folder: Path, drafts: Any) -> None:
    program = """
import asyncio, sys
from datetime import UTC, datetime
from ca.store_sql import SqlStore

async def main(url, lock):
    store = await SqlStore.open(url, lock_file=lock)
    await asyncio.gather(*[store.audit("op", "note", "x", datetime.now(UTC)) for _ in range(200)])
    await store.close()

asyncio.run(main(*sys.argv[1:]))
"""
    arguments = [sys.executable, "-W", "error", "-c", program, sqlite_url, str(folder / "lock")]
    running = [subprocess.Popen(arguments) for _ in range(3)]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    assert look(sqlite_url, drafts) == (None, ["note"] * 600)


# PostgreSQL


def test_postgresql_that_would_not_be_durable(postgresql: Any) -> None:
    url = postgresql.database()
    for name, value in (("synchronous_commit", "off"), ("fsync", "off"), ("full_page_writes", "off")):
        assert name in GUCS
        postgresql.sql(f"ALTER SYSTEM SET {name} = {value}", "SELECT pg_reload_conf()")
        _until(postgresql, name, value)
        with pytest.raises(Fatal, match=name):
            asyncio.run(SqlStore.open(url, lock_file=None))
        postgresql.sql(f"ALTER SYSTEM RESET {name}", "SELECT pg_reload_conf()")
        _until(postgresql, name, "on")


def _until(server: Any, name: str, value: str) -> None:
    engine = sqlalchemy.create_engine(server.url("postgres").replace("://", "+psycopg://", 1), poolclass=sqlalchemy.NullPool)
    shown = ""
    while shown != value:
        with engine.connect() as connection:
            shown = connection.exec_driver_sql(f"SHOW {name}").scalar_one()
    engine.dispose()


def test_postgresql_restarts(postgresql: Any, drafts: Any) -> None:
    with opened(postgresql.database()) as (runner, store):
        intent = runner.run(store.intend(drafts.linted(), drafts.now))
        assert isinstance(intent, Intent)
        postgresql.stop("immediate")
        try:
            for verb in (store.ready(), store.page(), store.status("ecc-issuing", 7), store.record(intent, b"der", drafts.now)):
                with pytest.raises(Unavailable) as caught:
                    runner.run(verb)
                assert caught.value.retry_after
        finally:
            postgresql.start()
        assert runner.run(store.record(intent, b"der", drafts.now)).der == b"der"
        runner.run(store.ready())


def test_connection_killed_between_intent_and_record(postgresql: Any, drafts: Any) -> None:
    with opened(postgresql.database()) as (runner, store):
        intent = runner.run(store.intend(drafts.linted(), drafts.now))
        postgresql.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'made'")
        (unfinished,) = runner.run(store.unfinished(drafts.now.replace(year=2030)))
        assert unfinished == intent
        assert runner.run(store.record(unfinished, b"der", drafts.now)).der == b"der"


def test_read_only_standby(postgresql: Any, drafts: Any) -> None:
    url = postgresql.database()
    postgresql.sql("ALTER DATABASE made SET default_transaction_read_only = on")
    try:
        with opened(url) as (runner, store):
            with pytest.raises(Unavailable, match="read-only"):
                runner.run(store.intend(drafts.linted(), drafts.now))
            with pytest.raises(Unavailable, match="read-only"):
                runner.run(store.ready())
            assert runner.run(store.page()) == []
    finally:
        postgresql.sql("ALTER DATABASE made RESET default_transaction_read_only")


class Cutter:
    """Passes on what a client and PostgreSQL say, until a COMMIT: then it cuts the line, before or after the server has answered."""

    def __init__(self, folder: Path, server: Path) -> None:
        self._server = str(server / ".s.PGSQL.5432")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / ".s.PGSQL.5432"))
        self._listener.listen()
        self.cut: str | None = None
        self.cuts = 0
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                thread = threading.Thread(target=self._pass_on, args=(client,))
                self._threads.append(thread)
                thread.start()

    def _pass_on(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as server:
            server.connect(self._server)
            back = threading.Thread(target=self._copy, args=(server, client))
            back.start()
            while data := client.recv(65536):
                if b"COMMIT\0" in data and self.cut:
                    self.cuts += 1
                    where, self.cut = self.cut, None
                    if where == "after":
                        client.shutdown(socket.SHUT_WR)  # deaf to the answer; the server's side sees the statement through
                        server.sendall(data)
                        server.shutdown(socket.SHUT_WR)
                    break
                server.sendall(data)
            with suppress(OSError):
                server.shutdown(socket.SHUT_WR)
            back.join()
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    @staticmethod
    def _copy(source: socket.socket, sink: socket.socket) -> None:
        while data := source.recv(65536):
            with suppress(OSError):
                sink.sendall(data)


@pytest.fixture
def cutter(postgresql: Any, folder: Path) -> Iterator[Cutter]:
    made = Cutter(folder, postgresql.folder)
    yield made
    made.close()


def test_commit_whose_answer_was_lost_counts(postgresql: Any, cutter: Cutter, folder: Path, drafts: Any) -> None:
    postgresql.database()
    with opened(f"postgresql://postgres@/made?host={folder}") as (runner, store):
        runner.run(store.ready())
        cutter.cut = "after"
        intent = runner.run(store.intend(drafts.linted(), drafts.now))
        assert cutter.cuts == 1
        assert runner.run(store.unfinished(drafts.now.replace(year=2030))) == [intent]
        cutter.cut = "after"
        with pytest.raises(OutcomeUnknown):  # nothing in the audit chain that would tell
            runner.run(store.next_crl_number("ecc-issuing"))
        assert cutter.cuts == 2
        runner.run(store.ready())


def test_commit_that_never_arrived_was_not_done(postgresql: Any, cutter: Cutter, folder: Path, drafts: Any) -> None:
    postgresql.database()
    with opened(f"postgresql://postgres@/made?host={folder}") as (runner, store):
        runner.run(store.ready())
        cutter.cut = "before"
        linted = drafts.linted()
        with pytest.raises(Unavailable) as caught:
            runner.run(store.intend(linted, drafts.now))
        assert not isinstance(caught.value, OutcomeUnknown)
        assert cutter.cuts == 1
        assert runner.run(store.page()) == []
        assert isinstance(runner.run(store.intend(linted, drafts.now)), Intent)


def test_text_with_nul_is_refused(postgresql: Any, drafts: Any) -> None:
    with opened(postgresql.database()) as (runner, store):
        with pytest.raises(Malformed):
            runner.run(store.audit("op\0", "note", "x", drafts.now))
        runner.run(store.audit("op", "note", "x", drafts.now))


def test_two_tokens_from_two_machines(url: str, drafts: Any, token: bytes) -> None:
    """A retry on another machine while the first still works on it."""
    with opened(url) as (runner, one):
        two = runner.run(SqlStore.open(url, lock_file=None))
        linted = drafts.linted(device="pump-1", token=token)
        intent = runner.run(one.intend(linted, drafts.now))
        assert isinstance(intent, Intent)
        with pytest.raises(Conflict) as caught:
            runner.run(two.intend(drafts.again(linted), drafts.now))
        assert caught.value.retry_after == STALE
        runner.run(one.record(intent, b"der", drafts.now))
        with pytest.raises(Unauthenticated):
            runner.run(two.intend(drafts.again(linted), drafts.now))
        runner.run(two.close())


def test_upgrade_while_a_store_is_open(url: str, drafts: Any) -> None:
    with opened(url) as (runner, store):
        upgrade(url)
        runner.run(store.ready())
