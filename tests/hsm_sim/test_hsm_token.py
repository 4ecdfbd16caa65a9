"""At rest: making a token, its PIN, its key files."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cbor2
import pytest

from hsm_sim import files, initialise
from hsm_sim.token import FREE_CUTS, TRIES, Token
from hsm_sim.vault import Vault
from hsm_sim.wire import Code, Rejected
from pkix.algorithms import KeyKind
from pkix.errors import Conflict, Fatal, Malformed, NotFound

NOW = datetime(2026, 11, 23, tzinfo=UTC)
Run = Callable[..., subprocess.CompletedProcess[str]]


def unlocked(home: Path) -> Vault:
    token = Token(home)
    asyncio.run(token.login((home / "pin").read_text().strip()))
    assert token.vault is not None
    return token.vault


def contents(home: Path) -> dict[str, bytes]:
    return {str(path.relative_to(home)): path.read_bytes() for path in home.rglob("*") if path.is_file()}


def test_a_token_is_for_its_owner_alone(home: Path) -> None:
    asyncio.run(unlocked(home).generate("root", KeyKind.P_256, NOW))
    for path in (home, *home.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_initialising_twice_changes_nothing(home: Path, run_hsm: Run) -> None:
    before = contents(home)
    assert run_hsm("init", "--home", str(home)).returncode == 0
    assert contents(home) == before
    assert len(before["pin"].strip()) >= 20


def test_two_who_initialise_at_once_make_one_token(tmp_path: Path, run_hsm: Run) -> None:
    with ThreadPoolExecutor(6) as pool:
        ended = list(pool.map(lambda _: run_hsm("init", "--home", str(tmp_path / "hsm")), range(6)))
    assert [(one.returncode, one.stderr) for one in ended] == [(0, "")] * 6
    unlocked(tmp_path / "hsm")


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


def test_a_token_is_never_replaced(home: Path) -> None:
    before = contents(home)
    with pytest.raises(FileExistsError):
        files.create(home / "token", b"another")
    files.sweep(home)
    assert contents(home) == before


def test_initialising_disturbs_nobody_who_serves_the_home(home: Path) -> None:
    (home / "pin.tries.new").write_bytes(b"being written by the process that serves")
    lock = files.lock(home)
    initialise(home, NOW)
    os.close(lock)
    assert (home / "pin.tries.new").exists()


def test_who_holds_the_home_and_makes_no_token_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_LOCK_PATIENCE", 0.0)
    lock = files.lock(tmp_path)
    with pytest.raises(Conflict, match="another HSM process"):
        initialise(tmp_path, NOW)
    os.close(lock)


def test_keys_whose_token_is_lost_get_no_new_one(home: Path, run_hsm: Run) -> None:
    asyncio.run(unlocked(home).generate("root", KeyKind.P_256, NOW))
    (home / "token").rename(home / "token.away")
    before = contents(home)
    ended = run_hsm("init", "--home", str(home))
    assert ended.returncode == 1
    assert "from a backup" in ended.stderr
    assert contents(home) == before
    (home / "token.away").rename(home / "token")
    assert unlocked(home).get("root")


@pytest.mark.parametrize("lost", [["token"], ["token", "pin.tries"], ["token", "pin.tries", "device.key"]])
def test_a_crash_while_initialising_is_made_good(home: Path, lost: list[str]) -> None:
    pin = (home / "pin").read_bytes()
    for name in lost:
        (home / name).unlink()
    (home / "token.new").write_bytes(b"half")
    initialise(home, NOW)
    assert (home / "pin").read_bytes() == pin
    assert not (home / "token.new").exists()
    unlocked(home)


def test_a_pin_that_is_there_is_taken_and_a_short_one_refused(tmp_path: Path) -> None:
    (tmp_path / "pin").write_text("五零六六七七八八\n")
    initialise(tmp_path, NOW)
    unlocked(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "pin").write_text("12345\n")
    with pytest.raises(Malformed, match="6 to 128"):
        initialise(tmp_path / "other", NOW)
    assert not (tmp_path / "other" / "token").exists()


def test_a_home_without_a_token_says_what_to_do(tmp_path: Path, run_hsm: Run) -> None:
    ended = run_hsm("--home", str(tmp_path))
    assert (ended.returncode, ended.stdout) == (3, "")
    assert "hsm_sim init" in ended.stderr
    with pytest.raises(NotFound):
        Token(tmp_path)


@pytest.mark.parametrize("damage", [b"", b"\xff" * 50, cbor2.dumps([1]), cbor2.dumps({"v": 1})])
def test_a_damaged_token_file_is_named(home: Path, damage: bytes, run_hsm: Run) -> None:
    (home / "token").write_bytes(damage)
    with pytest.raises(Fatal, match="damaged"):
        Token(home)
    ended = run_hsm("--home", str(home))
    assert ended.returncode == 1
    assert "damaged" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_device_secret_is_needed_beside_the_pin(home: Path) -> None:
    (home / "device.key").write_bytes(bytes(32))
    with pytest.raises(Rejected) as caught:
        unlocked(home)
    assert caught.value.code == Code.PIN_INCORRECT


@pytest.mark.parametrize("counter", [None, b"", b"many", b"10", b"99"])
def test_a_try_counter_that_is_gone_or_odd_gives_no_tries(home: Path, counter: bytes | None) -> None:
    (home / "pin.tries").unlink() if counter is None else (home / "pin.tries").write_bytes(counter)
    with pytest.raises(Rejected) as caught:
        unlocked(home)
    assert caught.value.code == Code.PIN_LOCKED


def test_the_try_is_counted_on_disk_before_the_pin_is_looked_at(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = Token._unwrap

    def look(self: Token, pin: str) -> bytes | None:
        seen.append((home / "pin.tries").read_bytes())
        return real(self, pin)

    monkeypatch.setattr(Token, "_unwrap", look)
    unlocked(home)
    assert (seen, (home / "pin.tries").read_bytes()) == ([b"0 1\n"], b"0\n")
    assert TRIES == 10


class Crash(BaseException):
    """The process ends here."""


def test_tries_that_a_crash_cut_off_do_not_lock_the_owner_out(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(_: Token, __: str) -> bytes | None:
        raise Crash

    for count in range(1, FREE_CUTS + 1):
        with monkeypatch.context() as patched:
            patched.setattr(Token, "_unwrap", crash)
            with pytest.raises(Crash):
                unlocked(home)
        assert (home / "pin.tries").read_bytes() == b"0 %d\n" % count
    unlocked(home)
    assert (home / "pin.tries").read_bytes() == b"0\n"


@pytest.mark.parametrize(("cut", "wait"), [(3, 2), (4, 4), (10, 256), (11, 300), (10**9, 300)])
def test_who_cuts_the_power_to_guess_waits_ever_longer(home: Path, monkeypatch: pytest.MonkeyPatch, cut: int, wait: int) -> None:
    (home / "pin.tries").write_bytes(b"7 %d\n" % cut)
    monkeypatch.setattr("hsm_sim.token.time", SimpleNamespace(monotonic=lambda: clock[0]))
    clock = [1000.0]
    token = Token(home)
    clock[0] += wait - 0.1
    with pytest.raises(Rejected, match="cut off") as caught:
        asyncio.run(token.login("wrong PIN"))
    assert caught.value.code == Code.PIN_LOCKED
    assert token.tries() == (7, cut)  # not even looked at
    clock[0] += 0.2
    with pytest.raises(Rejected) as caught:
        asyncio.run(token.login("wrong PIN"))
    assert (caught.value.code, token.tries()) == (Code.PIN_INCORRECT, (8, cut))
    asyncio.run(token.login((home / "pin").read_text().strip()))
    assert token.tries() == (0, 0)


def flip(octets: bytes, place: int) -> bytes:
    return octets[:place] + bytes([octets[place] ^ 1]) + octets[place + 1 :]


def attribute(name: str, value: object) -> Callable[[bytes], bytes]:
    """Rewrites one attribute of a key file and leaves the rest as it is."""

    def change(content: bytes) -> bytes:
        record: dict[str, Any] = cbor2.loads(content)
        attributes = cbor2.loads(record["attributes"])
        assert name in attributes
        record["attributes"] = cbor2.dumps(attributes | {name: value}, canonical=True)
        return cbor2.dumps(record)

    return change


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "torn": lambda content: content[: len(content) // 2],
    "zeros": lambda content: bytes(len(content)),
    "garbage": lambda _: b"\xff\x00 no CBOR",
    "another map": lambda _: cbor2.dumps({"v": 1}),
    "a list": lambda _: cbor2.dumps([1, 2, 3]),
    "one bit of the key": lambda content: flip(content, content.index(b"sealed") + 40),
    "one bit of the tag": lambda content: flip(content, len(content) - 1),
    "label": attribute("label", "other"),
    "kind": attribute("kind", "p-384"),
    "origin": attribute("origin", "imported"),
    "created": attribute("created", "2020-01-01T00:00:00+00:00"),
    "public key": attribute("public_key", b"\x30\x00"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_key_is_refused_and_the_others_work(home: Path, damage: Callable[[bytes], bytes]) -> None:
    vault = unlocked(home)
    asyncio.run(vault.generate("victim", KeyKind.P_256, NOW))
    (victim,) = (home / "keys").iterdir()
    asyncio.run(vault.generate("other", KeyKind.P_256, NOW))
    victim.write_bytes(damage(victim.read_bytes()))

    vault = unlocked(home)
    with pytest.raises(Rejected, match="restore it from a backup") as caught:
        vault.get("victim")
    assert caught.value.code == Code.KEY_DAMAGED
    assert vault.get("other").sign(bytes(32))
    with pytest.raises(Rejected) as caught:  # its name is not given to another key over its remains
        asyncio.run(vault.generate("victim", KeyKind.P_256, NOW))
    assert caught.value.code == Code.KEY_EXISTS


def test_a_key_does_not_answer_to_another_keys_name(home: Path) -> None:
    vault = unlocked(home)
    asyncio.run(vault.generate("a", KeyKind.P_256, NOW))
    (file_a,) = (home / "keys").iterdir()
    asyncio.run(vault.generate("b", KeyKind.P_256, NOW))
    (file_b,) = set((home / "keys").iterdir()) - {file_a}
    file_a.write_bytes(file_b.read_bytes())
    vault = unlocked(home)
    with pytest.raises(Rejected, match="another key's name"):
        vault.get("a")
    vault.get("b")


def test_a_half_written_key_is_swept_away(home: Path) -> None:
    asyncio.run(unlocked(home).generate("a", KeyKind.P_256, NOW))
    (file,) = (home / "keys").iterdir()
    (home / "keys" / f"{file.name}.new").write_bytes(b"half")
    vault = unlocked(home)
    assert list((home / "keys").iterdir()) == [file]
    assert vault.damaged == {}
