"""The file under the audit log: JSON lines, each with the digest of the one before. No clock, no threads; one writer at a time.

    chain = Chain(home / "audit.log", "sha256")
    lines, head = chain.lines([Body('"op":"login","result":"ok"')], time="2026-11-23T20:15:00.000000Z", boot=3)
    chain.append(lines, head)                      # durable when it returns
    for file in chain_files(path): …               # those put aside first

A line is ``{"seq","time","boot", …what happened…,"prev"}`` without spaces, in ASCII; ``prev`` is the hex digest of the line before, without
its line feed (zeros in the first). A checkpoint has a last member ``signature`` more. A file of ``ROTATE`` octets becomes
``<name>.<number of its first line>``. The one that is written may end in line feeds: room that is taken beforehand, since writing where the
file system has nothing to note down is durable in half the time.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from hsm_sim import files
from pkix import digest
from pkix.errors import Fatal

ROTATE = 64 << 20  # octets; a file may get longer by one append
MAX_APPEND = 2 << 20  # octets, but for a single longer line
GROW = 1 << 20  # octets by which a file gets longer at once
_TAIL = 4 << 20  # octets read from the end at start; more than GROW and the largest append
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_BLOCK = 1 << 18
FIRST = "0" * 64
compact = json.JSONEncoder(separators=(",", ":")).encode


class Head(NamedTuple):
    """The last durable line: its number (0: none) and the hex digest of its octets."""

    seq: int
    digest: str


class SyncFailed(Exception):
    """The disk did not take what it had accepted. What is on it now nobody knows: the process has to end and read it afresh."""


class Body(NamedTuple):
    """What a line says: its members as JSON without the braces, and whether the audit key signs it (and so all lines before it)."""

    members: str
    checkpoint: bool = False


Sign = Callable[[bytes], bytes]
_CONTEXT = b"ironroot hsm audit checkpoint 1\n"
_SIGNATURE = b',"signature":"'


def _signed(line: bytes, sign: Sign) -> bytes:
    """``line`` with one more member, the signature in hex over ``_CONTEXT`` and the line up to there."""
    start = line[:-1]
    return start + _SIGNATURE + sign(_CONTEXT + start).hex().encode() + b'"}'


def signature_of(line: bytes) -> tuple[bytes, bytes]:
    """Of a line with a signature: what was signed, and the signature. Raises ValueError."""
    start, _, rest = line.rpartition(_SIGNATURE)
    signature = bytes.fromhex(rest[:-2].decode("ascii"))
    if start + _SIGNATURE + signature.hex().encode() + b'"}' != line:
        raise ValueError
    return _CONTEXT + start, signature


def digester(algorithm: str) -> Callable[[bytes], str]:
    """The function from a line's octets to its hex digest: "sha256" or "sm3"."""
    if algorithm == "sha256":
        return lambda octets: sha256(octets).hexdigest()
    return lambda octets: digest.compute(algorithm, octets).hex()


def read_line(octets: bytes) -> dict[str, Any] | None:
    """The members of a line, if it is one and written exactly as ``Chain`` writes."""
    try:
        line = json.loads(octets)
        right = type(line) is dict and type(line["seq"]) is int and type(line["prev"]) is str and compact(line).encode() == octets
    except (ValueError, KeyError, RecursionError):
        return None
    return line if right else None


def chain_files(path: Path) -> list[Path]:
    """The files of the log ``path``, oldest first, those that were put aside included."""
    return [*rotated(path), *([path] if path.exists() else [])]


def rotated(path: Path) -> list[Path]:
    """The files that were put aside, oldest first."""
    older = [file for file in path.parent.glob(f"{path.name}.*") if file.suffix[1:].isdecimal()]
    return sorted(older, key=lambda file: int(file.suffix[1:]))


def number(line: bytes) -> int:
    """``seq`` of a line, without reading the rest. Raises ValueError."""
    return int(line[7 : line.index(b",")])


def lines_after(path: Path, after: int) -> Iterator[bytes]:
    """The whole lines of the log ``path`` with numbers above ``after``. Raises OSError, ValueError (damaged)."""
    found = chain_files(path)
    while len(found) > 1 and _first_number(found[1]) <= after + 1:
        found.pop(0)
    for name in found:
        with name.open("rb") as file:
            file.seek(_place(file.fileno(), name.stat().st_size, after))
            for line in file:
                if line.endswith(b"\n") and len(line) > 1 and number(line) > after:
                    yield line[:-1]


def _first_number(path: Path) -> int:
    with path.open("rb") as file:
        line = file.readline()
    return number(line) if line.strip().endswith(b"}") else sys.maxsize


def _place(file: int, end: int, after: int) -> int:
    """Where a line begins that is not after the line ``after`` + 1, and not far before it."""
    start = 0
    while end - start > _BLOCK:
        middle = (start + end) // 2
        block = os.pread(file, _BLOCK, middle)
        skipped = block.find(b"\n") + 1
        if skipped and block.find(b"\n", skipped) > skipped and number(block[skipped:]) <= after:
            start = middle + skipped
        else:
            end = middle
    return start


class Chain:
    """The log at ``path``. ``head`` is its last durable line, ``last`` that line's members."""

    def __init__(self, path: Path, algorithm: str) -> None:
        """Opens or makes it. What a crash left of an unfinished line is moved to ``<name>.torn``: it was never acknowledged.

        Raises OSError, and Fatal for a log that is damaged and not just torn.
        """
        self._path, self._digest = path, digester(algorithm)
        self._file = _open(path)
        files.sync_folder(path.parent)
        self._room = os.lseek(self._file, 0, os.SEEK_END)
        self._size = 0
        self._failed = False
        self.last: dict[str, Any] = {}
        self.head = self._recover()

    @property
    def empty(self) -> bool:
        """Whether the file has no line yet."""
        return self._size == 0

    @property
    def full(self) -> bool:
        """Whether ``rotate`` is due."""
        return self._size >= ROTATE

    def _recover(self) -> Head:
        """Finds the last line that is one, and cuts off what comes after it. Raises Fatal if there is none where one must be."""
        octets, torn, self._size = _last_line(self._file, self._room)
        if octets is None:
            if self._size:
                raise Fatal(f"{self._path} does not end in lines of an audit log; restore it from a backup before the HSM is used")
            self._cut(torn)
            head = self._head_before()
            self._first = head.seq + 1
            return head
        first = read_line(os.pread(self._file, _TAIL, 0).partition(b"\n")[0])
        if first is None:
            raise Fatal(f"{self._path} does not begin with a line of an audit log; restore it from a backup before the HSM is used")
        self._cut(torn)
        self._first = first["seq"]
        return self._found(octets)

    def _head_before(self) -> Head:
        """Where an empty file begins: at the end of the newest one put aside. Raises Fatal."""
        older = rotated(self._path)
        if not older:
            return Head(0, FIRST)
        descriptor = os.open(older[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            octets, torn, _ = _last_line(descriptor, os.lseek(descriptor, 0, os.SEEK_END))
        finally:
            os.close(descriptor)
        if octets is None or torn:
            raise Fatal(f"{older[-1]} does not end in lines of an audit log; restore it from a backup before the HSM is used")
        return self._found(octets)

    def _found(self, octets: bytes) -> Head:
        self.last = read_line(octets) or {}
        return Head(self.last["seq"], self._digest(octets))

    def _cut(self, torn: bytes) -> None:
        if torn:
            files.write(self._path.with_name(self._path.name + ".torn"), torn)
            self._truncate()

    def _truncate(self) -> None:
        """Takes away what lies behind the last line."""
        os.ftruncate(self._file, self._size)
        os.fsync(self._file)
        self._room = self._size

    def lines(self, bodies: Sequence[Body], time: str, boot: int, sign: Sign | None = None) -> tuple[list[bytes], Head]:
        """The lines that ``append`` takes, and the head that they make. Bodies that ask for it get a signature, if there is ``sign``."""
        seq, previous = self.head
        lines: list[bytes] = []
        for members, checkpoint in bodies:
            seq += 1
            line = f'{{"seq":{seq},"time":"{time}","boot":{boot},{members},"prev":"{previous}"}}'.encode()
            if checkpoint and sign is not None:
                line = _signed(line, sign)
            previous = self._digest(line)
            lines.append(line)
        return lines, Head(seq, previous)

    def append(self, lines: Sequence[bytes], head: Head) -> None:
        """Writes what ``lines`` made. When it returns, they are durable.

        Raises:
            OSError: the disk did not take them (full, quota); the log is as it was, and later appends may work.
            SyncFailed: see there.
        """
        octets = b"\n".join([*lines, b""])
        if self._size + len(octets) > self._room:
            self._grow(self._size + len(octets))
        self._write(octets, self._size)
        self._size += len(octets)
        self.head = head

    def _grow(self, least: int) -> None:
        """Makes the file longer, by line feeds. Raises OSError (it is as it was), SyncFailed."""
        try:
            self._write(b"\n" * (max(least, self._size + GROW) - self._room), self._room)
        except OSError:
            self._truncate()
            raise
        self._room = max(least, self._size + GROW)

    def _write(self, octets: bytes, place: int) -> None:
        """Durably (O_DSYNC). Raises OSError: no room, and nobody minds what is at ``place`` now; SyncFailed."""
        if self._failed:
            raise SyncFailed("an earlier sync failed")
        try:
            files.write_at(self._file, octets, place)
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise
            raise self._lost(error) from error

    def _lost(self, error: OSError) -> SyncFailed:
        self._failed = True
        return SyncFailed(f"{self._path}: {os.strerror(error.errno or 0)}")

    def rotate(self) -> None:
        """Puts the full file aside and begins a new one. Raises OSError (nothing has changed), SyncFailed."""
        aside = self._path.with_name(f"{self._path.name}.{self._first}")
        if aside.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        self._truncate()
        fresh = self._path.with_name(self._path.name + files.NEW)
        descriptor = _open(fresh, os.O_TRUNC)
        try:
            self._path.rename(aside)
        except OSError:
            os.close(descriptor)
            raise
        # A crash here leaves no log of this name: the next start makes one, and finds the head in the one put aside.
        os.close(self._file)
        self._file, self._size, self._room, self._first = descriptor, 0, 0, self.head.seq + 1
        try:
            fresh.rename(self._path)
            files.sync_folder(self._path.parent)
        except OSError as error:
            raise self._lost(error) from error

    def close(self) -> None:
        """Takes the line feeds at the end away. Raises OSError, with the file closed."""
        try:
            self._truncate()
        finally:
            os.close(self._file)


def _open(path: Path, flags: int = 0) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_DSYNC | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o600)


def _last_line(file: int, size: int) -> tuple[bytes | None, bytes, int]:
    """The last line that is one, what comes after it but for line feeds, and where. No line: None, and the end that was searched."""
    start = max(0, size - _TAIL)
    tail = os.pread(file, size - start, start)
    rest = tail.rstrip(b"\n")
    end = len(rest) + 1
    while (end := tail.rfind(b"\n", 0, end)) >= 0:
        line = tail[tail.rfind(b"\n", 0, end) + 1 : end]
        if read_line(line) is not None:
            return line, rest[end + 1 :], start + end + 1
    return None, rest, start
