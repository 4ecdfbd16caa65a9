"""Other people's programs, as tests call them. One that is not installed skips its test with a word, or fails it where nothing may skip."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest

SM2_ID = "distid:1234567812345678"
"""How openssl is told the identifier of GM/T 0009; it takes an empty one by itself."""


def missing(what: str) -> NoReturn:
    """Skips the test for want of ``what``; with ``IRONROOT_TEST_NO_SKIP=1`` in the environment fails it."""
    text = f"{what} is not here; this test needs it"
    if os.environ.get("IRONROOT_TEST_NO_SKIP") == "1":
        pytest.fail(text, pytrace=False)
    pytest.skip(text)


def need(*programs: str) -> None:
    """All of these are installed, or the test does not run."""
    for program in programs:
        if shutil.which(program) is None:
            missing(program)


def openssl(*arguments: str | Path, folder: Path | None = None, feed: bytes = b"", fails: bool = False) -> str:
    """``openssl …``: what it said on both streams. Its exit code is 0, or is not if it ``fails``; often only the text says which."""
    done = subprocess.run(["openssl", *map(str, arguments)], cwd=folder, input=feed, capture_output=True, check=False, timeout=60)
    said = (done.stdout + done.stderr).decode(errors="replace")
    assert (done.returncode != 0) is fails, (arguments, done.returncode, said)
    return said


@dataclass(frozen=True)
class Answer:
    """What curl got: its own exit code (0: there was an answer), status, headers with lower-case names, body."""

    exit: int
    status: int
    headers: dict[str, str]
    body: bytes
    said: str

    @property
    def text(self) -> str:
        return self.body.decode()


def curl(url: str, *arguments: str | Path, feed: bytes | None = None) -> Answer:
    """``curl …``. ``feed`` is the body of a POST, sent as it is."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = ["curl", "-sS", "--max-time", "60", "-o", str(folder / "body"), "-D", str(folder / "head"), "-w", "%{http_code}"]
        if feed is not None:
            (folder / "feed").write_bytes(feed)
            command += ["--data-binary", f"@{folder / 'feed'}"]
        done = subprocess.run([*command, *map(str, arguments), url], capture_output=True, check=False, timeout=90)
        head = (folder / "head").read_text() if (folder / "head").exists() else ""
        body = (folder / "body").read_bytes() if (folder / "body").exists() else b""
    last = head.rstrip().rpartition("\nHTTP/")[2]  # after 100 Continue comes another one
    fields = [line.partition(":") for line in last.splitlines() if ":" in line]
    headers = {field.strip().lower(): value.strip() for field, _, value in fields}
    return Answer(done.returncode, int(done.stdout or b"0"), headers, body, done.stderr.decode(errors="replace"))
