"""The signature log: one chain, over every crash."""

from __future__ import annotations

import errno
import json
import os
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pytest

from hsm_sim.signlog import Entry, SignLog, SyncFailed
from pkix.errors import Fatal

NOW = datetime(2026, 11, 23, 20, 15, tzinfo=UTC)


def entries(count: int, start: int = 0) -> list[Entry]:
    return [Entry(f"key {n}", "certificate", sha256(b"%d" % n).digest()) for n in range(start, start + count)]


def check_chain(path: Path) -> list[dict[str, object]]:
    """All lines of a log, after checking numbers and digests."""
    previous, records = "0" * 64, []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
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
