"""Files that survive a power cut: written whole or not at all, and only for their owner's eyes."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from pkix.errors import Conflict

NEW = ".new"  # suffix of a file that is being written; what is found with it at start was never acknowledged
_LOCK_PATIENCE = 5.0  # seconds that whoever has the lock may take to end


def write(path: Path, data: bytes) -> None:
    """Puts ``data`` under ``path``, mode 0600, replacing what was there. When it returns, a power cut loses nothing. Raises OSError."""
    temporary = _whole(path, data)
    # A crash here leaves the old file and a ``.new`` one that nobody reads.
    temporary.replace(path)
    sync_folder(path.parent)


def create(path: Path, data: bytes) -> None:
    """``write`` for a file that nothing may replace. Raises OSError; FileExistsError, with the file as it was, when there is one."""
    temporary = _whole(path, data)
    os.link(temporary, path)
    # A crash here leaves two names for one file, of which the ``.new`` one is swept away.
    temporary.unlink()
    sync_folder(path.parent)


def _whole(path: Path, data: bytes) -> Path:
    """The synced octets under the name that ``path`` has while it is written."""
    temporary = path.with_name(path.name + NEW)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return temporary


def write_all(descriptor: int, data: bytes) -> None:
    """``os.write`` until all of it is written. Raises OSError, with part of it written."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def write_at(descriptor: int, data: bytes, place: int) -> None:
    """``os.pwrite`` until all of it is written. Raises OSError, with part of it written."""
    written = os.pwrite(descriptor, data, place)
    if written < len(data):
        write_at(descriptor, data[written:], place + written)


def remove(path: Path) -> None:
    """Deletes ``path`` for good. Raises OSError."""
    path.unlink()
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes names in ``folder`` durable: new, renamed and deleted ones."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def private_folder(folder: Path) -> None:
    """Makes ``folder`` (and those above it), mode 0700; closes it to others if it was open. Raises OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    sync_folder(folder.parent)


def lock(home: Path) -> int:
    """Takes the home until the returned descriptor is closed or the process ends. Raises OSError, Conflict (others keep it for long)."""
    descriptor = os.open(home / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + _LOCK_PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise Conflict(f"another HSM process has {home}; stop that one first") from error
            time.sleep(0.05)


def sweep(folder: Path) -> None:
    """Deletes half-written files of an earlier life."""
    for path in folder.glob(f"*{NEW}"):
        path.unlink()
