"""The token: from a PIN to an open vault, and back.

    LOCKED ── login(PIN) ──> OPERATIONAL ── lock() ──> LOCKED

In the home: ``device.key`` (32 random octets, the device secret), ``token`` (the key-encrypting key KEK, wrapped), ``pin.tries`` (wrong
PINs in a row, and tries that were cut off), ``pin`` (the PIN itself, for those who log in; the HSM only writes it when it invents one),
``keys/`` and ``sign.log``.

KEK is random and wrapped with AES-256-GCM under HKDF-SHA256(Argon2id(PIN, salt) ‖ device secret): a stolen ``token`` and ``keys/`` without
``device.key`` cannot even be guessed at.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import secrets
import time
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import cbor2
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from hsm_sim import files
from hsm_sim.vault import Vault
from hsm_sim.wire import Code, Rejected
from pkix.errors import Conflict, Fatal, Malformed, NotFound

TRIES = 10
FREE_CUTS = 2  # tries that were cut off and cost nothing; each one more doubles the wait after a start, from 2 s
LONGEST_WAIT = 300.0  # seconds
_KEK_CONTEXT = b"ironroot hsm kek 1 "


def initialise(home: Path, now: datetime) -> None:
    """Makes a token in ``home`` (mode 0700) with the PIN in ``home/pin``, or with a random one that it writes there (mode 0600).

    Idempotent, also when two do it at once: an existing token is left alone, and what a crash left half made is completed.

    Raises:
        Malformed: the PIN in the file is shorter than 6 or longer than 128 characters.
        Conflict: somebody else has the home and makes no token in it.
        Fatal: there are keys and no token; a new one could not open them.
        OSError: the folder cannot be written.
    """
    files.private_folder(home)
    files.private_folder(home / "keys")
    if (home / "token").exists():
        return  # a process may be serving it: nothing else is touched
    try:
        lock = files.lock(home)
    except Conflict:
        if (home / "token").exists():
            return
        raise
    try:
        if not (home / "token").exists():
            _make(home, now)
    finally:
        os.close(lock)


def _make(home: Path, now: datetime) -> None:
    """``initialise`` under the lock, where there is no token."""
    files.sweep(home)
    if any((home / "keys").glob("*.key")):
        raise Fatal(
            f"{home / 'keys'} has keys, but their token is missing: restore {home / 'token'} from a backup, a new one cannot open them"
        )
    if not (home / "pin").exists():
        files.write(home / "pin", secrets.token_urlsafe(18).encode() + b"\n")
    pin = (home / "pin").read_text("utf-8").strip()
    if not 6 <= len(pin) <= 128:
        raise Malformed(f"the PIN in {home / 'pin'} has to be 6 to 128 characters long")
    if not (home / "device.key").exists():
        files.write(home / "device.key", secrets.token_bytes(32))
    files.write(home / "pin.tries", b"0\n")
    serial, salt, nonce, kek = secrets.token_hex(8), secrets.token_bytes(16), secrets.token_bytes(12), secrets.token_bytes(32)
    wrapped = AESGCM(_pin_key(pin, salt, (home / "device.key").read_bytes())).encrypt(nonce, kek, _KEK_CONTEXT + serial.encode())
    # The token file is the commit point: until it is there, the next call starts over with the same PIN and device secret.
    token = {"v": 1, "serial": serial, "created": now.isoformat(timespec="seconds"), "salt": salt, "nonce": nonce, "wrapped": wrapped}
    files.create(home / "token", cbor2.dumps(token))


def _pin_key(pin: str, salt: bytes, device_secret: bytes) -> bytes:
    """Argon2id with 64 MiB and three passes: 0.15 s and 64 MiB per guess, for who has the device secret."""
    stretched = Argon2id(salt=salt, length=32, iterations=3, lanes=1, memory_cost=64 << 10).derive(pin.encode())
    return HKDF(SHA256(), length=32, salt=None, info=b"ironroot hsm pin 1").derive(stretched + device_secret)


class Tries(NamedTuple):
    """``pin.tries``: wrong PINs in a row, and tries since the last right one that were counted and never settled (a crash, a power cut)."""

    wrong: int
    cut: int


class Token:
    """The token in ``home``: counts PINs, opens the vault, locks it again.

    ``vault`` is there while it is operational. ``epoch`` counts lockings, so that a login is good until the next one. ``locked_on_request``
    tells a lock that somebody asked for from the one that every start begins with.
    """

    def __init__(self, home: Path) -> None:
        """Raises NotFound (not initialised), Fatal (the token file is damaged)."""
        try:
            record = cbor2.loads((home / "token").read_bytes())
            self._salt, self._nonce, self._wrapped = bytes(record["salt"]), bytes(record["nonce"]), bytes(record["wrapped"])
            self.serial, version = str(record["serial"]), record["v"]
            self._device_secret = (home / "device.key").read_bytes()
        except FileNotFoundError as error:
            raise NotFound(f"no token in {home}: run `python -m hsm_sim init --home {home}` first") from error
        except (cbor2.CBORDecodeError, KeyError, TypeError, ValueError) as error:
            raise Fatal(f"{home / 'token'} is damaged: restore it from a backup, its keys need it") from error
        if version != 1 or len(self._device_secret) != 32:
            raise Fatal(f"the token in {home} was made by another version, or its device.key is damaged")
        files.sweep(home)
        self._home = home
        self._login = asyncio.Lock()
        self._boot_key = secrets.token_bytes(32)
        self._known_pin = b""
        self.vault: Vault | None = None
        self.epoch = 0
        self.locked_on_request = False
        cut = self.tries().cut
        self._opens_at = time.monotonic() + (min(2.0 ** min(cut - FREE_CUTS, 20), LONGEST_WAIT) if cut > FREE_CUTS else 0)

    @property
    def state(self) -> str:
        return "locked" if self.vault is None else "operational"

    def tries(self) -> Tries:
        """What is counted so far. A counter that is gone or unreadable counts as used up: who removed it may want more tries."""
        try:
            wrong, cut = [*map(int, (self._home / "pin.tries").read_bytes().split()), 0][:2]
        except (FileNotFoundError, ValueError):
            return Tries(TRIES, 0)
        return Tries(wrong, cut)

    async def login(self, pin: str) -> None:
        """Checks the PIN; the first right one opens the vault.

        Raises Rejected: PIN_INCORRECT, PIN_LOCKED after ten wrong ones in a row or for a while after cut-off ones, STORAGE when the try
        cannot be counted.
        """
        if (wait := self._opens_at - time.monotonic()) > 0:
            raise Rejected(Code.PIN_LOCKED, f"tries were cut off before they were answered, so no PIN is taken for another {wait:.0f} s")
        async with self._login:
            opened = await asyncio.to_thread(self._check, pin, self._known_pin)
            if opened is not None:
                self.vault, self._known_pin, self.locked_on_request = opened, self._fingerprint(pin), False

    def _check(self, pin: str, known: bytes) -> Vault | None:
        """Counts, then checks, then settles: a power cut in between is found at the next start, which makes the next try wait.

        ``known`` is the fingerprint of the PIN that opened the vault, or empty. Returns the vault if this PIN opened it.
        """
        wrong, cut = self.tries()
        if wrong >= TRIES:
            raise Rejected(Code.PIN_LOCKED, "the PIN is locked after too many wrong ones; docs/hsm.md says how its owner unlocks it")
        self._count(Tries(wrong, cut + 1))
        kek = None if known else self._unwrap(pin)
        if kek is None and not (known and hmac.compare_digest(self._fingerprint(pin), known)):
            self._count(Tries(wrong + 1, cut))
            raise Rejected(Code.PIN_INCORRECT, f"the PIN is wrong; {TRIES - wrong - 1} tries are left")
        self._count(Tries(0, 0))
        return None if kek is None else Vault(self._home / "keys", kek)

    def _unwrap(self, pin: str) -> bytes | None:
        try:
            key = AESGCM(_pin_key(pin, self._salt, self._device_secret))
            return key.decrypt(self._nonce, self._wrapped, _KEK_CONTEXT + self.serial.encode())
        except InvalidTag:
            return None

    def _fingerprint(self, pin: str) -> bytes:
        """What later logins are compared with: the PIN under a key of this boot, so that the PIN itself need not be remembered."""
        return hmac.digest(self._boot_key, pin.encode(), "sha256")

    def _count(self, tries: Tries) -> None:
        try:
            files.write(self._home / "pin.tries", b"%d %d\n" % tries if tries.cut else b"%d\n" % tries.wrong)
        except OSError as error:
            raise Rejected(Code.STORAGE, f"the PIN try cannot be counted: {os.strerror(error.errno or 0)}") from error

    def lock(self) -> None:
        """Closes the vault and forgets the PIN; all logins end."""
        self.vault, self._known_pin, self.locked_on_request = None, b"", True
        self.epoch += 1
