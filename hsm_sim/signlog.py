"""The HSM's own record of what it signed: one JSON line per signature, durable before the signature leaves; OCSP's are summed up.

    {"seq":7,"time":"2026-11-23T20:15:00.123456Z","key":"ecc-issuing","purpose":"certificate","input":"9f…","prev":"41…"}
    {"seq":8,"time":"…","purpose":"ocsp","count":981,"inputs":"5c…","first":"…","last":"…","keys":{"ecc-issuing-ocsp":981},"prev":"d0…"}

``input`` is the signing input in hex when it has at most 64 octets (a digest); a longer one (a message, for Ed25519 and ML-DSA) is named by
``sha256``. ``prev`` is the SHA-256 of the line before, without its line feed (zeros in the first), so the lines form a chain. The log may
hold signatures that nobody received (a crash after the sync); it never lacks one that somebody did, but for OCSP's of the last second.
What a summary says: ``summary``.

A log of ``ROTATE`` octets becomes ``<name>.<number of its first line>``, and the chain goes on in a new one.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Sequence
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from hsm_sim import files
from hsm_sim.summary import Summary, stamp
from pkix.errors import Fatal

ROTATE = 64 << 20  # octets; a log may get longer by one batch
_TAIL = 4 << 20  # octets read from the end at start; more than the largest batch
_FIRST = "0" * 64
_compact = json.JSONEncoder(separators=(",", ":")).encode


class Entry(NamedTuple):
    """A signature that was made: with which key, for what, over which signing input."""

    key: str
    purpose: str
    data: bytes


class Head(NamedTuple):
    """The last line: its number (0: none) and the hex SHA-256 of its octets."""

    seq: int
    sha256: str


class SyncFailed(Exception):
    """The disk did not take what it had accepted. What is on it now nobody knows: the process has to end and read it afresh."""


class SignLog:
    """The log at ``path``; one writer at a time. ``head`` is its last durable line."""

    def __init__(self, path: Path) -> None:
        """Opens or makes it. What a crash left of an unfinished line is moved to ``<name>.torn``: it was never acknowledged.

        Raises OSError, and Fatal for a log that is damaged and not just torn.
        """
        self._path = path
        self._file = _open(path)
        files.sync_folder(path.parent)
        self._size = os.lseek(self._file, 0, os.SEEK_END)
        self._failed = False
        self.head = self._recover()
        os.lseek(self._file, self._size, os.SEEK_SET)

    def _recover(self) -> Head:
        """Finds the last line that is one, and cuts off what comes after it. Raises Fatal if there is none where one must be."""
        head, torn, end = _last_line(self._file, self._size)
        if head is None:
            if end:
                raise Fatal(f"{self._path} does not end in lines of a signature log; restore it from a backup before signing goes on")
            self._cut(torn, 0)
            head = self._head_before()
            self._first = head.seq + 1
            return head
        first = _seq(os.pread(self._file, _TAIL, 0).partition(b"\n")[0])
        if first is None:
            raise Fatal(f"{self._path} does not begin with a line of a signature log; restore it from a backup before signing goes on")
        self._cut(torn, end)
        self._first = first
        return head

    def _head_before(self) -> Head:
        """Where an empty log begins: at the end of the newest rotated one. Raises Fatal."""
        older = rotated(self._path)
        if not older:
            return Head(0, _FIRST)
        descriptor = os.open(older[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            head, torn, _ = _last_line(descriptor, os.lseek(descriptor, 0, os.SEEK_END))
        finally:
            os.close(descriptor)
        if head is None or torn:
            raise Fatal(f"{older[-1]} does not end in lines of a signature log; restore it from a backup before signing goes on")
        return head

    def _cut(self, torn: bytes, size: int) -> None:
        if torn:
            files.write(self._path.with_name(self._path.name + ".torn"), torn)
            os.ftruncate(self._file, size)
            os.fsync(self._file)
        self._size = size

    def append(self, entries: Sequence[Entry], now: datetime, summaries: Sequence[Summary] = ()) -> None:
        """Writes the summaries and then the entries, with one sync. When it returns, they are durable.

        Raises:
            OSError: the disk did not take them (full, quota); the log is as it was, and later appends may work.
            SyncFailed: the sync failed; see there.
        """
        if self._failed:
            raise SyncFailed("an earlier sync failed")
        if self._size >= ROTATE:
            self._rotate()
        time = stamp(now)
        seq, previous = self.head
        lines = bytearray()
        for fields in [*(summary.fields() for summary in summaries), *map(_fields, entries)]:
            seq += 1
            line = _compact({"seq": seq, "time": time, **fields, "prev": previous}).encode()
            previous = sha256(line).hexdigest()
            lines += line + b"\n"
        try:
            files.write_all(self._file, bytes(lines))
        except OSError:
            os.ftruncate(self._file, self._size)
            os.lseek(self._file, self._size, os.SEEK_SET)
            raise
        try:
            os.fdatasync(self._file)
        except OSError as error:
            self._failed = True
            raise SyncFailed(f"{self._path}: {os.strerror(error.errno or 0)}") from error
        self._size += len(lines)
        self.head = Head(seq, previous)

    def _rotate(self) -> None:
        """Puts the full log aside and begins a new one. Raises OSError (nothing has changed), SyncFailed."""
        aside = self._path.with_name(f"{self._path.name}.{self._first}")
        if aside.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        fresh = self._path.with_name(self._path.name + files.NEW)
        descriptor = _open(fresh, os.O_TRUNC)
        try:
            self._path.rename(aside)
        except OSError:
            os.close(descriptor)
            raise
        # A crash here leaves no log of this name: the next start makes one, and finds the head in the one put aside.
        os.close(self._file)
        self._file, self._size, self._first = descriptor, 0, self.head.seq + 1
        try:
            fresh.rename(self._path)
            files.sync_folder(self._path.parent)
        except OSError as error:
            self._failed = True
            raise SyncFailed(f"{self._path}: {os.strerror(error.errno or 0)}") from error

    def close(self) -> None:
        os.close(self._file)


def rotated(path: Path) -> list[Path]:
    """The logs that were put aside, oldest first."""
    older = [file for file in path.parent.glob(f"{path.name}.*") if file.suffix[1:].isdecimal()]
    return sorted(older, key=lambda file: int(file.suffix[1:]))


def _open(path: Path, flags: int = 0) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o600)


def _fields(entry: Entry) -> dict[str, object]:
    """What the line of one signature says of it."""
    key, purpose, data = entry
    name, value = ("input", data.hex()) if len(data) <= 64 else ("sha256", sha256(data).hexdigest())
    return {"key": key, "purpose": purpose, name: value}


def _seq(line: bytes) -> int | None:
    """The number of a line, or None if it is none."""
    try:
        return int(json.loads(line)["seq"])
    except (ValueError, KeyError, TypeError):
        return None


def _last_line(file: int, size: int) -> tuple[Head | None, bytes, int]:
    """The last line that is one, what comes after it, and where that begins. No line: None, and the end of the file that was searched."""
    start = max(0, size - _TAIL)
    tail = os.pread(file, size - start, start)
    end = len(tail)
    while (end := tail.rfind(b"\n", 0, end)) >= 0:
        line = tail[tail.rfind(b"\n", 0, end) + 1 : end]
        if (seq := _seq(line)) is not None:
            return Head(seq, sha256(line).hexdigest()), tail[end + 1 :], start + end + 1
    return None, tail, start
