"""The state folder: what is on disk, and what holds if the power goes at any line.

    DIR/                 0700
      state.json         settings (no secrets)
      tls-trust.pem      the root that the server's TLS certificate must lead to
      device.pem         -> current/device.pem      (device.key, chain.pem, trust.pem likewise)
      current            -> versions/2              the pair in use
      previous           -> versions/1              the one before, until the new one has worked
      next               -> versions/3              a key being certified: device.key, device.csr, request.json, then the answer:
                                                chain.pem, trust.pem, renew (when the fleet renews), device.pem
      pending/token      0600, only until enrolled
      lock               held by whoever writes

A version is written completely before a link names it, and ``commit`` is one rename of ``next`` onto ``current``: certificate, key, chain,
trust and renewal window change together or not at all. Every file is written beside its place, fsynced, renamed, and its folder fsynced.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from enroll.device import settings as device_settings
from enroll.device.failpoint import reached
from enroll.device.schedule import Renewal, parse_renewal
from enroll.device.settings import Settings
from pkix.errors import Conflict, Malformed, Unavailable

FILES = ("device.pem", "device.key", "chain.pem", "trust.pem")
ENROLL, REENROLL = "simpleenroll", "simplereenroll"


@dataclass(frozen=True, slots=True)
class Request:
    """One certificate being asked for: the EST operation, for whom, and the key under which the server remembers its answer.

    ``idempotency_key`` (64 hex digits, random) is on disk before the first attempt and repeated on every other, so that an answer that
    was lost is given again instead of a second certificate.
    """

    operation: str
    fleet: str
    serial: str
    algorithm: str
    idempotency_key: str


@dataclass(frozen=True, slots=True)
class Version:
    """One key with all that belongs to it, in its own folder."""

    path: Path

    def file(self, name: str) -> Path:
        return self.path / name

    @property
    def request(self) -> Request | None:
        """The request that this version came from, until it is settled. Raises Malformed if the file is damaged."""
        data = _read(self.file("request.json"))
        if data is None:
            return None
        try:
            return Request(**json.loads(data))
        except (ValueError, TypeError):
            raise Malformed("next/request.json in the state folder is damaged; remove the link `next` and run the command again") from None

    @property
    def renewal(self) -> Renewal:
        """When the fleet wants this certificate renewed, as the server said with it; the defaults for what is missing or damaged."""
        return parse_renewal((_read(self.file("renew")) or b"").decode("ascii", "replace"))

    @property
    def answered(self) -> bool:
        """Whether the certificate is here. It is written last: then all of the answer is."""
        return self.file("device.pem").exists()

    def store_answer(self, certificate: str, chain: str, trust: str, renewal: Renewal) -> None:
        """Write the answer. If we crash before the last line, ``answered`` is false and the server is asked again with the same key."""
        write(self.file("chain.pem"), chain)
        write(self.file("trust.pem"), trust)
        write(self.file("renew"), f"{renewal}\n")
        reached("answer-half-stored")
        write(self.file("device.pem"), certificate)
        reached("answer-stored")

    def settle(self) -> None:
        """Forget the request: nothing is left to do for it."""
        remove(self.file("device.csr"))
        remove(self.file("request.json"))


class Folder:
    """One device's state folder at ``path``. Reading needs no lock; whoever writes holds ``lock()``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Make the folder if need be, and be the only one to write in it. The lock goes with the process.

        Raises:
            Conflict: another process is at work here, or the folder is somebody else's.
            Unavailable: the disk refuses.
        """
        with _disk(self.path):
            handle = self._open()
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Conflict(f"another ironroot-device is at work in {self.path}; wait for it", retry_after=1) from None
            with _disk(self.path):
                self._furnish()
            self.sweep()
            yield
        finally:
            os.close(handle)

    def _open(self) -> int:
        """The lock file, made before anything else: it marks the folder as ours."""
        if self.path.is_dir() and not (self.path / "lock").exists() and any(self.path.iterdir()):
            raise Conflict(f"{self.path} holds other files; name an empty folder, or one that does not exist, with --state")
        self.path.mkdir(parents=True, exist_ok=True)
        if self.path.stat().st_mode & 0o777 != 0o700:
            self.path.chmod(0o700)
        return os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def _furnish(self) -> None:
        (self.path / "versions").mkdir(mode=0o700, exist_ok=True)
        for name in FILES:  # dangling until ``current`` exists
            if not (self.path / name).is_symlink():
                _link(self.path / name, f"current/{name}")

    def sweep(self) -> None:
        """Remove what no link names: a key that was never staged or was given up, a version replaced twice."""
        with _disk(self.path):
            named = {os.readlink(self.path / name) for name in ("current", "previous", "next") if (self.path / name).is_symlink()}
            for folder in (self.path / "versions").iterdir():
                if f"versions/{folder.name}" not in named:
                    shutil.rmtree(folder)

    # -- settings, trust and token

    @property
    def settings(self) -> Settings | None:
        data = _read(self.path / "state.json")
        return None if data is None else device_settings.from_json(data)

    def save_settings(self, value: Settings) -> None:
        """Written only when it changed, to spare the flash."""
        text = value.to_json()
        if _read(self.path / "state.json") != text.encode():
            write(self.path / "state.json", text)
        reached("settings-saved")

    @property
    def tls_trust(self) -> bytes | None:
        """PEM of the server's pinned root (or roots)."""
        return _read(self.path / "tls-trust.pem")

    def save_tls_trust(self, pem: str) -> None:
        write(self.path / "tls-trust.pem", pem)
        reached("trust-saved")

    def forget_tls_trust(self) -> None:
        remove(self.path / "tls-trust.pem")

    @property
    def token(self) -> str | None:
        data = _read(self.path / "pending" / "token")
        return None if data is None else data.decode("ascii", "replace").strip()

    def save_token(self, token: str) -> None:
        with _disk(self.path):
            (self.path / "pending").mkdir(mode=0o700, exist_ok=True)
        write(self.path / "pending" / "token", token + "\n", mode=0o600)
        reached("token-saved")

    def forget_token(self) -> None:
        with _disk(self.path):
            if (self.path / "pending").exists():
                shutil.rmtree(self.path / "pending")
                _sync(self.path)
        reached("token-removed")

    # -- versions

    @property
    def current(self) -> Version | None:
        return self._version("current")

    @property
    def previous(self) -> Version | None:
        return self._version("previous")

    @property
    def next(self) -> Version | None:
        return self._version("next")

    def _version(self, link: str) -> Version | None:
        """The version that ``link`` names at this moment: its own folder, so that its files fit together whatever happens to the link."""
        try:
            return Version(self.path / os.readlink(self.path / link))
        except OSError:
            return None

    def stage(self, key: bytes, csr: bytes, request: Request) -> Version:
        """Make ``next``: key, CSR and request durable, then named by one rename. Nothing has been sent yet."""
        with _disk(self.path):
            numbers = [int(folder.name) for folder in (self.path / "versions").iterdir() if folder.name.isdigit()]
            number = max(numbers, default=0) + 1
            version = Version(self.path / "versions" / str(number))
            version.path.mkdir(mode=0o700)
            write(version.file("device.key"), key, mode=0o600)
            reached("key-made")
            write(version.file("device.csr"), csr)
            fields = {name: getattr(request, name) for name in Request.__slots__}
            write(version.file("request.json"), json.dumps(fields, indent=2) + "\n", mode=0o600)
            _sync(self.path / "versions")
            _link(self.path / "next", f"versions/{number}")
        reached("staged")
        return version

    def commit(self) -> None:
        """``next`` becomes ``current``, in one rename; what was current becomes ``previous``."""
        with _disk(self.path):
            if self.current:
                _link(self.path / "previous", os.readlink(self.path / "current"))
                reached("previous-set")
            os.rename(self.path / "next", self.path / "current")
            _sync(self.path)
        reached("swapped")

    def discard_next(self) -> None:
        """Give up the key being certified."""
        remove(self.path / "next")
        self.sweep()

    def discard_previous(self) -> None:
        """The new pair has worked: let the old key go, with the next sweep."""
        remove(self.path / "previous")


def write(path: Path, data: str | bytes, mode: int = 0o644) -> None:
    """Replace ``path`` durably and at once. A reader sees the old contents or the new, never less. Raises Unavailable."""
    temporary = path.with_name(f".{path.name}.tmp")
    with _disk(path):
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(handle, "wb") as file:
            os.fchmod(handle, mode)
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(handle)
        os.rename(temporary, path)
        _sync(path.parent)


def remove(path: Path) -> None:
    """Remove ``path``, if it is there, durably. Raises Unavailable."""
    with _disk(path):
        try:
            path.unlink()
        except FileNotFoundError:
            return
        _sync(path.parent)


def _read(path: Path) -> bytes | None:
    with _disk(path):
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None


def _link(path: Path, target: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    os.symlink(target, temporary)
    os.rename(temporary, path)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unavailable(f"the state folder cannot be used: {path}: {error.strerror or error}") from None
