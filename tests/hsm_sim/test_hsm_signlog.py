"""The signature log: one chain, over every crash."""

from __future__ import annotations

import errno
import json
import os
import stat
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest

from hsm_sim import signlog
from hsm_sim.signlog import Entry, SignLog, SyncFailed, rotated
from hsm_sim.summary import Summary
from pkix.errors import Fatal

NOW = datetime(2026, 11, 23, 20, 15, tzinfo=UTC)


def entries(count: int, start: int = 0) -> list[Entry]:
    return [Entry(f"key {n}", "certificate", sha256(b"%d" % n).digest()) for n in range(start, start + count)]


def check_chain(path: Path) -> list[dict[str, object]]:
    """All lines of a log, those put aside first, after checking numbers and digests."""
    previous, records = "0" * 64, []
    lines = [line for file in (*rotated(path), path) for line in file.read_bytes().splitlines()]
    for number, line in enumerate(lines, 1):
        record = json.loads(line)
        assert (record["seq"], record["prev"]) == (number, previous)
        previous = sha256(line).hexdigest()
        records.append(record)
    return records


def written(path: Path, count: int = 5) -> bytes:
    log = SignLog(path)
    log.append(entries(count), NOW)
    log.close()
    return path.read_bytes()


def test_it_says_what_was_signed_and_is_a_chain(tmp_path: Path) -> None:
    log = SignLog(tmp_path / "sign.log")
    log.append(entries(2), NOW)
    log.append([Entry("ed", "crl", b"a message that is longer than any digest" * 2)], NOW)
    log.close()
    first, _, third = check_chain(tmp_path / "sign.log")
    assert first == first | {
        "key": "key 0",
        "purpose": "certificate",
        "input": sha256(b"0").hexdigest(),
        "time": "2026-11-23T20:15:00.000000Z",
    }
    assert third["sha256"] == sha256(b"a message that is longer than any digest" * 2).hexdigest()
    assert log.head == (3, sha256((tmp_path / "sign.log").read_bytes().splitlines()[2]).hexdigest())


def test_after_a_crash_at_any_octet_it_goes_on_from_the_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "sign.log"
    whole = written(path, 2)
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        log = SignLog(path)
        assert log.head.seq == whole[:cut].count(b"\n")
        log.append(entries(1, 100), NOW)
        log.close()
        assert len(check_chain(path)) == whole[:cut].count(b"\n") + 1


def test_zeros_of_a_lost_batch_are_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "sign.log"
    whole = written(path)
    path.write_bytes(whole + bytes(100_000) + b"\n" + bytes(10))
    log = SignLog(path)
    assert log.head.seq == 5
    log.close()
    assert path.read_bytes() == whole
    assert (tmp_path / "sign.log.torn").read_bytes() == bytes(100_000) + b"\n" + bytes(10)


def test_a_log_that_is_no_log_is_not_cut_away(tmp_path: Path) -> None:
    path = tmp_path / "sign.log"
    path.write_bytes(b"somebody else's file\n" * 300_000)
    with pytest.raises(Fatal, match="signature log"):
        SignLog(path)
    assert path.read_bytes() == b"somebody else's file\n" * 300_000


def test_many_signatures_in_one_line(tmp_path: Path) -> None:
    log, summary = SignLog(tmp_path / "sign.log"), Summary(NOW)
    for number, key in enumerate(("a", "b", "a")):
        summary.add(key, b"%d" % number, NOW + timedelta(milliseconds=number))
    log.append(entries(1), NOW + timedelta(seconds=1), [summary])
    log.close()
    line, other = check_chain(tmp_path / "sign.log")
    assert {name: line[name] for name in line if name not in ("seq", "prev")} == {
        "time": "2026-11-23T20:15:01.000000Z",
        "purpose": "ocsp",
        "count": 3,
        "inputs": sha256(b"".join(sha256(data).digest() for data in (b"0", b"1", b"2"))).hexdigest(),
        "first": "2026-11-23T20:15:00.000000Z",
        "last": "2026-11-23T20:15:00.002000Z",
        "keys": {"a": 2, "b": 1},
    }
    assert other["purpose"] == "certificate"


def test_a_full_log_is_put_aside_and_the_chain_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sign.log"
    monkeypatch.setattr(signlog, "ROTATE", 2000)
    log = SignLog(path)
    for number in range(20):
        log.append(entries(3, 3 * number), NOW)
        if number % 5 == 4:
            log.close()
            log = SignLog(path)
    log.close()
    assert len(rotated(path)) >= 5
    assert [record["key"] for record in check_chain(path)] == [f"key {n}" for n in range(60)]
    for file in (*rotated(path), path):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert file.stat().st_size < 3000
        first = json.loads(file.read_bytes().splitlines()[0])["seq"]
        assert file == path or file.name == f"sign.log.{first}"


@pytest.mark.parametrize("left", [None, b"", b'{"seq":7,"time'])
def test_a_crash_after_it_was_put_aside_loses_no_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: bytes | None) -> None:
    path = tmp_path / "sign.log"
    whole = written(path)
    path.rename(tmp_path / "sign.log.1")
    if left is not None:
        path.write_bytes(left)
    log = SignLog(path)
    assert log.head == (5, sha256(whole.splitlines()[-1]).hexdigest())
    monkeypatch.setattr(signlog, "ROTATE", 10)
    for number in (5, 6):
        log.append(entries(1, number), NOW)
    log.close()
    assert [file.name for file in rotated(path)] == ["sign.log.1", "sign.log.6"]
    assert len(check_chain(path)) == 7


def test_what_was_put_aside_is_never_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sign.log"
    log = SignLog(path)
    log.append(entries(1), NOW)
    monkeypatch.setattr(signlog, "ROTATE", 10)
    (tmp_path / "sign.log.1").write_bytes(b"somebody else's\n")
    with pytest.raises(FileExistsError):
        log.append(entries(1, 1), NOW)
    (tmp_path / "sign.log.1").unlink()
    log.append(entries(1, 1), NOW)
    log.close()
    assert len(check_chain(path)) == 2


@pytest.mark.parametrize("damaged", ["sign.log", "sign.log.1"])
def test_a_log_whose_beginning_or_forerunner_is_damaged_is_named(tmp_path: Path, damaged: str) -> None:
    whole = written(tmp_path / damaged)
    (tmp_path / damaged).write_bytes(b"?" + whole[1:] if damaged == "sign.log" else whole[:-1])
    with pytest.raises(Fatal, match=f"{damaged} does not"):
        SignLog(tmp_path / "sign.log")


def test_a_failed_sync_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = SignLog(tmp_path / "sign.log")
    log.append(entries(1), NOW)

    def fail(_: int) -> None:
        raise OSError(errno.EIO, "I/O error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", fail)
        with pytest.raises(SyncFailed):
            log.append(entries(1, 1), NOW)
    with pytest.raises(SyncFailed):  # the disk's later word is not taken
        log.append(entries(1, 2), NOW)
    assert log.head.seq == 1
    log.close()
