"""The HSM's own record of what it signed: one JSON line per signature, durable before the signature leaves.

    {"seq":7,"time":"2026-11-23T20:15:00.123456Z","key":"ecc-issuing","purpose":"certificate","input":"9f…","prev":"41…"}

``input`` is the signing input in hex when it has at most 64 octets (a digest); a longer one (a message, for Ed25519 and ML-DSA) is named by
``sha256``. ``prev`` is the SHA-256 of the line before, without its line feed (zeros in the first), so the lines form a chain. The log may
hold signatures that nobody received (a crash after the sync); it never lacks one that somebody did.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from hsm_sim import files
from pkix.errors import Fatal

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
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        files.sync_folder(path.parent)
        self._size = os.lseek(self._file, 0, os.SEEK_END)
        self._failed = False
        self.head = self._recover()
        os.lseek(self._file, self._size, os.SEEK_SET)

    def _recover(self) -> Head:
        """Finds the last line that is one, and cuts off what comes after it. Raises Fatal if there is none where one must be."""
        start = max(0, self._size - _TAIL)
        tail = os.pread(self._file, self._size - start, start)
        end = len(tail)
        while (end := tail.rfind(b"\n", 0, end)) >= 0:
            line = tail[tail.rfind(b"\n", 0, end) + 1 : end]
            try:
                head = Head(int(json.loads(line)["seq"]), sha256(line).hexdigest())
            except (ValueError, KeyError, TypeError):
                continue
            self._cut(tail[end + 1 :], start + end + 1)
            return head
        if start:
            raise Fatal(f"{self._path} does not end in lines of a signature log; restore it from a backup before signing goes on")
        self._cut(tail, 0)
        return Head(0, _FIRST)

    def _cut(self, torn: bytes, size: int) -> None:
        if torn:
            files.write(self._path.with_name(self._path.name + ".torn"), torn)
            os.ftruncate(self._file, size)
            os.fsync(self._file)
        self._size = size

    def append(self, entries: Sequence[Entry], now: datetime) -> None:
        """Writes the entries with one sync. When it returns, they are durable.

        Raises:
            OSError: the disk did not take them (full, quota); the log is as it was, and later appends may work.
            SyncFailed: the sync failed; see there.
        """
        if self._failed:
            raise SyncFailed("an earlier sync failed")
        time = now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        seq, previous = self.head
        lines = bytearray()
        for key, purpose, data in entries:
            seq += 1
            name, value = ("input", data.hex()) if len(data) <= 64 else ("sha256", sha256(data).hexdigest())
            record = {"seq": seq, "time": time, "key": key, "purpose": purpose, name: value, "prev": previous}
            line = _compact(record).encode()
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

    def close(self) -> None:
        os.close(self._file)
