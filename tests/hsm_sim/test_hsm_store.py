"""What survives: kill -9, a full disk, an edited file, an older one, a home that was half made."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import sqlite3
import stat
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cbor2
import pytest
from hsm_inside import NOW, Inside, code, refused, run, somebody

from hsm_sim import cka, files, initialise
from hsm_sim.errors import Code, Rejected
from hsm_sim.roles import Role
from pkix.errors import Conflict, IronrootError, Malformed

Run = Callable[..., subprocess.CompletedProcess[str]]


def contents(home: Path) -> dict[str, bytes]:
    return {str(path.relative_to(home)): path.read_bytes() for path in home.rglob("*") if path.is_file()}


async def two_keys(hsm: Inside) -> None:
    for label in ("victim", "other"):
        await hsm.pair(label)


def edit(home: Path, statement: str, *values: object) -> None:
    """Changes the database of a device that is not running."""
    with contextlib.closing(sqlite3.connect(home / "hsm.db")) as db, db:
        assert db.execute(statement, values).rowcount


def rows(home: Path, label: str) -> list[tuple[Any, ...]]:
    """All columns of the private object ``label``."""
    with contextlib.closing(sqlite3.connect(home / "hsm.db")) as db:
        found = db.execute("SELECT * FROM objects WHERE open = 0").fetchall()
    return [row for row in found if cbor2.loads(row[4])["attributes"][cka.CKA_LABEL] == label.encode()]


# --- making a home


def test_a_home_is_for_its_owner_alone(home: Path) -> None:
    run(home, two_keys)
    for path in (home, *home.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_initialising_twice_changes_nothing(home: Path, run_hsm: Run) -> None:
    before = contents(home)
    assert run_hsm("init", "--home", str(home)).returncode == 0
    assert contents(home) == before
    assert all(len(before[name].strip()) >= 20 for name in ("pin", "so-pin", "auditor-pin"))


def test_two_who_initialise_at_once_make_one_device(tmp_path: Path, run_hsm: Run) -> None:
    with ThreadPoolExecutor(4) as pool:
        ended = list(pool.map(lambda _: run_hsm("init", "--home", str(tmp_path / "hsm")), range(4)))
    assert [(one.returncode, one.stderr) for one in ended] == [(0, "")] * 4
    run(tmp_path / "hsm", two_keys)


def test_the_second_looks_again_when_it_has_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, made = files.lock, []

    def overtaken(home: Path) -> int:
        monkeypatch.setattr(files, "lock", lock)
        initialise(home, NOW)
        made.append(contents(home))
        return lock(home)

    monkeypatch.setattr(files, "lock", overtaken)
    initialise(tmp_path, NOW)
    assert made == [contents(tmp_path)]


def test_initialising_disturbs_nobody_who_serves_the_home(home: Path) -> None:
    (home / "audit.checkpoint.new").write_bytes(b"being written by the process that serves")
    lock = files.lock(home)
    initialise(home, NOW)
    os.close(lock)
    assert (home / "audit.checkpoint.new").exists()


def test_who_holds_the_home_and_makes_no_device_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_LOCK_PATIENCE", 0.0)
    lock = files.lock(tmp_path)
    with pytest.raises(Conflict, match="another HSM process"):
        initialise(tmp_path, NOW)
    os.close(lock)


@pytest.mark.parametrize("lost", [["hsm.db"], ["hsm.db", "manufacturer.pem", "auditor-pin"], ["hsm.db", "device.key"]])
def test_a_crash_while_initialising_is_made_good(home: Path, lost: list[str]) -> None:
    pin = (home / "pin").read_bytes()
    for name in lost:
        (home / name).unlink()
    (home / "hsm.db.new").write_bytes(b"half")
    initialise(home, NOW)
    assert (home / "pin").read_bytes() == pin
    assert not (home / "hsm.db.new").exists()
    run(home, two_keys)


def test_a_lost_database_is_not_replaced_by_an_empty_one(home: Path, run_hsm: Run) -> None:
    run(home, two_keys)
    (home / "hsm.db").rename(home / "hsm.db.away")
    before = contents(home)
    ended = run_hsm("init", "--home", str(home))
    assert (ended.returncode, "from a backup" in ended.stderr) == (1, True)
    assert contents(home) == before


def test_pins_that_are_there_are_taken_and_short_ones_refused(tmp_path: Path) -> None:
    (tmp_path / "pin").write_text("五零六六七七八八\n")
    initialise(tmp_path, NOW)
    run(tmp_path, two_keys)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "pin").write_text("12345\n")
    with pytest.raises(Malformed, match="6 to 128"):
        initialise(tmp_path / "other", NOW)
    assert not (tmp_path / "other" / "hsm.db").exists()


def test_a_home_of_an_earlier_version_is_named(tmp_path: Path, run_hsm: Run) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "token").write_bytes(b"old")
    for command in ("init", "serve"):
        ended = run_hsm(command, "--home", str(tmp_path))
        assert (ended.returncode, ended.stdout) == (1, "")
        assert "earlier version" in ended.stderr
        assert "Traceback" not in ended.stderr
    assert not (tmp_path / "hsm.db").exists()


def test_a_home_without_a_device_says_what_to_do(tmp_path: Path, run_hsm: Run) -> None:
    ended = run_hsm("serve", "--home", str(tmp_path))
    assert (ended.returncode, ended.stdout) == (3, "")
    assert "hsm_sim init" in ended.stderr


@pytest.mark.parametrize(
    "wrong",
    [["--partition", ""], ["--partition", " x"], ["--partition", "x" * 33], ["--partition", "ü"], ["--partition", "a", "--partition", "a"]],
)
def test_partitions_have_names_that_fit_a_token_label(tmp_path: Path, run_hsm: Run, wrong: list[str]) -> None:
    ended = run_hsm("init", "--home", str(tmp_path / "hsm"), *wrong)
    assert (ended.returncode, "1 to 32" in ended.stderr) == (2, True)
    assert not (tmp_path / "hsm" / "hsm.db").exists()


def test_national_algorithms_and_several_partitions_by_setting(tmp_path: Path, run_hsm: Run) -> None:
    options = ["--cipher", "sm4-gcm", "--hash", "sm3", "--partition", "one", "--partition", "the other"]
    assert run_hsm("init", "--home", str(tmp_path), *options).returncode == 0

    async def story(hsm: Inside) -> None:
        _, key = await hsm.pair("k", "sm2")
        assert await hsm.sign(key)
        assert (hsm.device.cipher, hsm.device.hash, list(hsm.device.partitions)) == ("sm4-gcm", "sm3", ["one", "the other"])
        other = hsm.device.partition("the other")
        assert (await code(other.login(somebody("the other"), Role.OFFICER, (tmp_path / "pin").read_text().strip()))) is Code.PIN_INCORRECT
        await other.login(somebody("the other"), Role.OFFICER, (tmp_path / "pin.the other").read_text().strip())

    run(tmp_path, story)
    run(tmp_path, lambda hsm: hsm.sign("k"))
    assert b"sm3" in (tmp_path / "audit.log").read_bytes()


# --- kill -9


@pytest.mark.parametrize("point", ["committing", "committed", "audited"])
@pytest.mark.parametrize("op", ["generate", "set_attributes", "destroy"])
def test_a_kill_at_any_point_loses_nothing_that_was_acknowledged(home: Path, hsm: Any, op: str, point: str) -> None:
    client = hsm.login()
    for label in ("told", "victim"):
        client.call("generate", key=label, kind="p-256")
    told = client.call("public_key", key="told")
    hsm.kill()

    hsm.start(env={**os.environ, "IRONROOT_FAILPOINT": f"hsm.{op}.{point}:kill"})
    client = hsm.login()
    arguments: dict[str, Any] = {"key": "new", "kind": "p-256"} if op == "generate" else {"key": "victim"}
    if op == "set_attributes":
        arguments["attributes"] = {"decrypt": True}
    with pytest.raises(ConnectionError):
        client.call(op, **arguments)
    assert hsm.process.wait() == -9
    hsm.process.communicate()

    client = hsm.start().login()
    assert client.call("public_key", key="told") == told
    assert client.call("status")["damaged"] == {}
    labels = {key["label"] for key in client.call("keys")}
    durable = point != "committing"
    assert labels == {"told"} | ({"victim"} if op != "destroy" or not durable else set()) | (
        {"new"} if op == "generate" and durable else set()
    )
    for label in labels:
        assert "signature" in client.sign(label)
    assert hsm.stop() == 0

    async def look(inside: Inside) -> None:
        assert (inside.partition.incomplete, inside.partition.rolled_back) == ("", "")
        if op == "set_attributes":
            victim = inside.partition.by_label(inside.caller, "victim")
            assert victim.attributes[cka.CKA_DECRYPT] is durable

    run(home, look)


# --- no room


def test_a_full_disk_refuses_what_it_cannot_keep_and_keeps_what_it_has(home: Path, hsm: Any) -> None:
    client = hsm.login()
    client.call("generate", key="before", kind="p-256")
    size = max(path.stat().st_size for path in home.iterdir())
    resource.prlimit(hsm.process.pid, resource.RLIMIT_FSIZE, (size + 20_000, resource.RLIM_INFINITY))
    made = []
    for number in range(200):
        try:
            client.call("generate", key=f"k{number}", kind="p-256")
        except RuntimeError as error:
            assert str(error) == "storage"  # noqa: PT017 - the calls before it succeed
            break
        made.append(f"k{number}")
    assert 0 < len(made) < 200
    assert client.code("set_attributes", key="before", attributes={"decrypt": True}) == "storage"
    resource.prlimit(hsm.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    client.call("generate", key="after", kind="p-256")
    expected = {"before", "after", *made}
    for _ in range(2):
        labels = {key["label"] for key in client.call("keys")}
        assert expected <= labels <= {*expected, f"k{len(made)}"}
        assert "signature" in client.sign("before")
        client = hsm.restart()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root; the test above does without")
def test_a_full_file_system_does_the_same(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(small)], capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        initialise(small / "hsm", NOW)

        async def fill(hsm: Inside) -> int:
            for number in range(200):
                try:
                    await hsm.pair(f"k{number}")
                except Rejected as error:
                    assert error.code is Code.STORAGE  # noqa: PT017 - the calls before it succeed
                    return number
            raise AssertionError

        try:
            count = run(small / "hsm", fill)
        except OSError:  # the log's last lines have no room either
            count = 1
        assert count

        async def look(hsm: Inside) -> None:
            for number in range(count):
                assert hsm.partition.by_label(hsm.caller, f"k{number}").key is not None
            assert (hsm.partition.damaged, hsm.partition.incomplete) == ({}, "")

        shutil.copytree(small / "hsm", tmp_path / "hsm")
        run(tmp_path / "hsm", look)
    finally:
        subprocess.run(["umount", str(small)], check=True)


# --- an edited database


def attribute(number: int, value: object) -> Callable[[bytes], bytes]:
    def change(described: bytes) -> bytes:
        fields = cbor2.loads(described)
        assert number in fields["attributes"]
        fields["attributes"][number] = value
        return cbor2.dumps(fields, canonical=True)

    return change


def member(name: str, value: object) -> Callable[[bytes], bytes]:
    return lambda described: cbor2.dumps({**cbor2.loads(described), name: value}, canonical=True)


def flip(octets: bytes, place: int) -> bytes:
    place %= len(octets)
    return octets[:place] + bytes([octets[place] ^ 1]) + octets[place + 1 :]


DAMAGE: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "extractable": ("described", attribute(cka.CKA_EXTRACTABLE, True)),
    "sensitive": ("described", attribute(cka.CKA_SENSITIVE, False)),
    "may decrypt": ("described", attribute(cka.CKA_DECRYPT, True)),
    "label": ("described", attribute(cka.CKA_LABEL, b"root")),
    "public key": ("described", attribute(cka.CKA_PUBLIC_KEY_INFO, b"\x30\x00")),
    "origin": ("described", member("origin", "imported")),
    "usage limit": ("described", member("usage_limit", 1)),
    "used": ("described", member("used", 1)),
    "quorum": ("described", member("quorum", ["destroy"])),
    "version": ("described", member("version", 7)),
    "no CBOR": ("described", lambda _: b"\xff\x00"),
    "a bit of the nonce": ("record", lambda octets: flip(octets, 3)),
    "a bit of the key": ("record", lambda octets: flip(octets, 40)),
    "a bit of the tag": ("record", lambda octets: flip(octets, -1)),
    "torn": ("record", lambda octets: octets[: len(octets) // 2]),
    "empty": ("record", lambda _: b""),
}


@pytest.mark.parametrize(("column", "damage"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_changed_object_is_refused_by_name_and_the_others_work(home: Path, column: str, damage: Callable[[bytes], bytes]) -> None:
    run(home, two_keys)
    (row,) = rows(home, "victim")
    before = row[4] if column == "described" else row[5]
    assert damage(before) != before
    edit(home, f"UPDATE objects SET {column} = ? WHERE id = ?", damage(before), row[0])  # noqa: S608

    async def look(hsm: Inside) -> None:
        (named,) = hsm.partition.damaged
        assert "restore it from a backup" in hsm.partition.damaged[named]
        assert named in ("victim", "root", row[0].hex())
        with pytest.raises(Rejected) as caught:
            hsm.partition.by_label(hsm.caller, named)
        assert caught.value.code is Code.KEY_DAMAGED
        assert await hsm.sign("other")
        assert (await code(hsm.pair(named))) is Code.KEY_EXISTS  # its name is not given to another key over its remains

    run(home, look)


def test_a_record_does_not_pass_for_another_objects(home: Path) -> None:
    run(home, two_keys)
    (victim,), (other,) = rows(home, "victim"), rows(home, "other")
    edit(home, "UPDATE objects SET described = ?, record = ? WHERE id = ?", victim[4], victim[5], other[0])

    async def look(hsm: Inside) -> None:
        assert list(hsm.partition.damaged) == ["victim"]
        assert await hsm.sign("victim")
        with pytest.raises(Rejected):
            hsm.partition.by_label(hsm.caller, "other")

    run(home, look)


async def no_key_is_used(hsm: Inside) -> None:
    """The set of objects is not what it was: everything is to be seen, nothing is used or made, until the SO has decided."""
    assert hsm.partition.incomplete
    error = await refused(hsm.sign("other"))
    assert (error.code, "security officer" in error.text) == (Code.TAMPERED, True)
    assert (await code(hsm.pair("new"))) is Code.TAMPERED
    await hsm.partition.accept_damage(await hsm.login(Role.SO))
    assert await hsm.sign("other")
    await hsm.pair("new")


def test_a_deleted_row_is_noticed_and_the_so_decides(home: Path) -> None:
    run(home, two_keys)
    (victim,) = rows(home, "victim")
    edit(home, "DELETE FROM objects WHERE id = ?", victim[0])
    run(home, no_key_is_used)
    assert not run(home, still_incomplete)
    assert b'"op":"accept_damage"' in (home / "audit.log").read_bytes()


async def still_incomplete(hsm: Inside) -> str:
    return hsm.partition.incomplete


def test_an_older_row_is_noticed(home: Path) -> None:
    run(home, two_keys)
    (old,) = rows(home, "victim")

    async def limit(hsm: Inside) -> None:
        await hsm.partition.restrict(hsm.caller, hsm.partition.by_label(hsm.caller, "victim"), usage_limit=1)

    run(home, limit)
    edit(home, "UPDATE objects SET version = ?, described = ?, record = ? WHERE id = ?", old[2], old[4], old[5], old[0])
    run(home, no_key_is_used)


def test_a_row_put_in_again_after_its_key_was_destroyed_is_noticed(home: Path) -> None:
    run(home, two_keys)
    (old,) = rows(home, "victim")

    async def destroy(hsm: Inside) -> None:
        await hsm.partition.destroy(hsm.caller, hsm.partition.by_label(hsm.caller, "victim"))

    run(home, destroy)
    edit(home, f"INSERT INTO objects VALUES ({', '.join('?' * len(old))})", *old)  # noqa: S608
    run(home, no_key_is_used)


def test_an_older_database_is_refused_against_the_log(home: Path) -> None:
    run(home, two_keys)
    old = (home / "hsm.db").read_bytes()

    async def destroy(hsm: Inside) -> None:
        await hsm.partition.destroy(hsm.caller, hsm.partition.by_label(hsm.caller, "victim"))

    run(home, destroy)
    (home / "hsm.db").write_bytes(old)

    async def refuse(hsm: Inside) -> None:
        assert hsm.partition.incomplete == ""
        error = await refused(hsm.login(Role.OFFICER))
        assert (error.code, "older than the audit log" in error.text) == (Code.TAMPERED, True)
        so = await hsm.login(Role.SO)
        await hsm.partition.accept_damage(so)
        hsm.caller = await hsm.login(Role.OFFICER)
        await hsm.sign("victim")

    for _ in range(2):  # a second start does not forget it
        shutil.copytree(home, home.with_name("copy"))
        run(home.with_name("copy"), refuse, role=None)
        run(home.with_name("copy"), lambda hsm: hsm.sign("other"))  # what was accepted stays so
        shutil.rmtree(home.with_name("copy"))

        async def look(hsm: Inside) -> bool:
            return bool(hsm.partition.rolled_back)

        assert run(home, look, role=None)


def test_an_older_log_is_refused_against_the_database(home: Path) -> None:
    run(home, two_keys)
    run(home, two_keys_more)
    (home / "audit.log").write_bytes(b"")
    (home / "audit.checkpoint").unlink()
    for _ in range(2):
        with pytest.raises(Rejected) as caught:
            run(home, two_keys)
        assert (caught.value.code, "audit log is older" in caught.value.text) == (Code.TAMPERED, True)

    async def accept(hsm: Inside) -> None:
        await hsm.partition.accept_damage(hsm.caller)

    run(home, accept, role=Role.SO)
    assert run(home, lambda hsm: hsm.sign("fourth"))


def test_a_partition_that_an_older_database_does_not_have_is_missed(home: Path) -> None:
    run(home, two_keys)
    old = (home / "hsm.db").read_bytes()

    async def another(hsm: Inside) -> None:
        await hsm.device.create_partition(hsm.caller, "another", "a PIN for it")

    run(home, another, role=Role.SO)
    (home / "hsm.db").write_bytes(old)

    async def missed(hsm: Inside) -> None:
        assert "another" in (await refused(hsm.login(Role.OFFICER))).text
        await hsm.partition.accept_damage(await hsm.login(Role.SO))

    run(home, missed, role=None)
    assert run(home, lambda hsm: hsm.sign("victim"))


@pytest.mark.parametrize("torn", ["more", "less"])
def test_a_torn_write_ahead_log(home: Path, hsm: Any, torn: str) -> None:
    """What was being written when the power went is not there; if what had been synced is gone, too, the log knows."""
    client = hsm.login()
    for label in ("one", "two"):
        client.call("generate", key=label, kind="p-256")
    hsm.kill()
    ahead = home / "hsm.db-wal"
    octets = ahead.read_bytes()
    ahead.write_bytes(octets + octets[-3000:] if torn == "more" else octets[: 2 * len(octets) // 3])

    async def look(hsm: Inside) -> set[str]:
        assert (hsm.partition.incomplete, hsm.partition.damaged) == ("", {})
        return {obj.label for obj in hsm.partition.everything()}

    if torn == "more":
        assert run(home, look) == {"one", "two"}
        return
    with pytest.raises(Rejected) as caught:
        run(home, look)
    assert caught.value.code is Code.TAMPERED
    assert run(home, look, role=Role.SO) < {"one", "two"}


async def two_keys_more(hsm: Inside) -> None:
    for label in ("third", "fourth"):
        await hsm.pair(label)


def test_a_database_of_another_device_is_named(home: Path, tmp_path: Path, run_hsm: Run) -> None:
    initialise(tmp_path / "hsm", NOW)
    (home / "hsm.db").write_bytes((tmp_path / "hsm" / "hsm.db").read_bytes())
    ended = run_hsm("serve", "--home", str(home))
    assert (ended.returncode, "do not belong together" in ended.stderr) == (1, True)
    (home / "device.key").unlink()
    ended = run_hsm("serve", "--home", str(home))
    assert (ended.returncode, "device.key is missing" in ended.stderr) == (1, True)


@pytest.mark.parametrize("damage", [b"", b"\xff" * 5000, b"SQLite format 3\0" + bytes(4080)])
def test_a_file_that_is_no_database_is_named(home: Path, damage: bytes, run_hsm: Run) -> None:
    (home / "hsm.db").write_bytes(damage)
    ended = run_hsm("serve", "--home", str(home))
    assert ended.returncode == 1
    assert "restore it from a backup" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_any_flipped_octet_of_the_database_is_refused_or_harmless(home: Path) -> None:
    """Never a traceback, never another key under a label: the device is refused, an object is, or it is as it was."""
    publics = {}

    async def make(hsm: Inside) -> None:
        for label in ("one", "two"):
            public, _ = await hsm.pair(label)
            publics[label] = public.attributes[cka.CKA_PUBLIC_KEY_INFO]

    run(home, make)
    good = (home / "hsm.db").read_bytes()
    log = contents(home)
    dice = random.Random(20261123)
    used = [place for place in range(len(good)) if good[place]]
    outcomes = set()
    for _ in range(40):
        place = dice.choice(used)
        (home / "hsm.db").write_bytes(flip(good, place))
        outcomes.add(run_damaged(home, publics))
        for name, octets in log.items():
            (home / name).write_bytes(octets)
        for path in home.glob("hsm.db-*"):
            path.unlink()
    assert len(outcomes) > 1


def run_damaged(home: Path, publics: dict[str, Any]) -> str:
    async def look(hsm: Inside) -> str:
        for label, public in publics.items():
            try:
                key = hsm.partition.by_label(hsm.caller, label)
                signature = await hsm.sign(key)
            except Rejected as error:
                assert error.code in (Code.KEY_DAMAGED, Code.KEY_NOT_FOUND, Code.TAMPERED, Code.KEY_FUNCTION_NOT_PERMITTED), error  # noqa: PT017
                continue
            assert key.attributes[cka.CKA_PUBLIC_KEY_INFO] == public
            assert len(signature) == 64
        return "damaged" if hsm.partition.damaged or hsm.partition.incomplete else "whole"

    try:
        return run(home, look)
    except Rejected as error:
        return str(error.code)
    except IronrootError as error:
        return error.code
