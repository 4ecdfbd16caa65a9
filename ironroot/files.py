"""Files that are whole or not there: written beside their place, synced, renamed, and the folder synced."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(file: Path, contents: bytes, mode: int = 0o644) -> None:
    """Replaces ``file``. Crash at any point: the old contents or the new ones, never a mixture."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            os.fchmod(descriptor, mode)
            stream.write(contents)
            stream.flush()
            os.fsync(descriptor)
        temporary.rename(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
