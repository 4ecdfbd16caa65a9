"""Making a device: once, in an empty folder.

    initialise(home, now, names=["ironroot"])        # harmless when repeated

In the home then: ``device.key`` (the device secret), ``hsm.db``, ``manufacturer.pem`` (what attestations are checked with), and PIN files
for those who log in: they are read here alone, and written here where there was none.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from hsm_sim import files
from hsm_sim.access import wrapped
from hsm_sim.attest import manufacture
from hsm_sim.personality import load as load_personality
from hsm_sim.roles import Role
from hsm_sim.seal import AES, CIPHERS, Ring, derive, seal
from hsm_sim.store import PartitionRow, new, partitions, put_marks, put_partition, put_role, put_setting
from pkix import pem
from pkix.errors import Conflict, Fatal, Malformed, NotFound

DEFAULT_PARTITION = "ironroot"
HASHES = ("sha256", "sm3")
FIRMWARE = "2.0.0"
MAX_PARTITIONS = 64
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,31}")
NAME_RULE = "a partition's name has 1 to 32 of A-Z, a-z, 0-9, space, dot, underscore and hyphen, and begins with a letter or digit"


def check_home(home: Path) -> None:
    """Raises NotFound (no device in ``home``), Fatal (one of an earlier version)."""
    if (home / "token").exists():
        raise Fatal(f"{home} was made by an earlier version, whose keys this one cannot open: move it away, and make a new one")
    if not (home / "hsm.db").exists():
        raise NotFound(f"no HSM in {home}: run `python -m hsm_sim init --home {home}` first")


def initialise(
    home: Path,
    now: datetime,
    *,
    names: Sequence[str] = (DEFAULT_PARTITION,),
    personality: str = "ironroot",
    cipher: str = AES,
    digest: str = "sha256",
) -> None:
    """Makes a device in ``home`` (mode 0700): partitions, and PINs from the files there, or invented and written there (mode 0600).

    Idempotent, also when two do it at once: a device that is there is left alone, and what a crash left half made is completed.

    Args:
        names: of the partitions. The first one's PINs are in ``pin`` (officer) and ``so-pin``, those of others in ``pin.NAME`` and
            ``so-pin.NAME``, the auditor's in ``auditor-pin``.
        cipher, digest: what records are sealed with, and the audit log is chained with.
    Raises:
        Malformed: a PIN in a file is shorter or longer than the personality takes (6 to 128 characters, if it has no other idea); a name,
            cipher or hash that is none.
        Conflict: somebody else has the home and makes no device in it.
        Fatal: an audit log without its database; a home of an earlier version.
        NotFound: no such personality.
        OSError: the folder cannot be written.
    """
    if len(set(names)) != len(names) or not all(NAME.fullmatch(name) for name in names) or not 0 < len(names) <= MAX_PARTITIONS:
        raise Malformed(f"{NAME_RULE}, and no two have the same")
    if cipher not in CIPHERS or digest not in HASHES:
        raise Malformed(f"the cipher is one of {', '.join(CIPHERS)}, the hash one of {', '.join(HASHES)}")
    shortest, longest = load_personality(personality).pin
    files.private_folder(home)
    if _made(home):
        return  # a process may be serving it: nothing else is touched
    try:
        lock = files.lock(home)
    except Conflict:
        if _made(home):
            return
        raise
    try:
        if not _made(home):
            _make(home, now, names, {"personality": personality, "cipher": cipher, "hash": digest}, range(shortest, longest + 1))
    finally:
        os.close(lock)


def _made(home: Path) -> bool:
    """Raises Fatal (a home of an earlier version)."""
    try:
        check_home(home)
    except NotFound:
        return False
    return True


def _make(home: Path, now: datetime, names: Sequence[str], about: dict[str, str], lengths: range) -> None:
    """``initialise`` under the lock, where there is no device."""
    files.sweep(home)
    if (home / "audit.log").exists():
        raise Fatal(f"{home} has an audit log, but its hsm.db is missing: restore it from a backup, a new one has none of the keys")
    if not (home / "device.key").exists():
        files.write(home / "device.key", secrets.token_bytes(32))
    secret, serial = (home / "device.key").read_bytes(), secrets.token_hex(8)
    identity = manufacture(serial, FIRMWARE, now, sm=about["hash"] == "sm3")
    db = new({"device": {**about, "serial": serial, "created": now.isoformat(timespec="seconds")}})
    put_setting(db, "identity", seal(derive(secret, b"identity"), identity.to_bytes(), serial.encode()))
    for slot, name in enumerate(names):
        suffix = f".{name}" if slot else ""
        pins = {Role.OFFICER: _pin(home / f"pin{suffix}", lengths), Role.SO: _pin(home / f"so-pin{suffix}", lengths)}
        new_partition(slot, name, pins, secret, about["cipher"])(db)
    put_role(db, b"", wrapped(Role.AUDITOR, _pin(home / "auditor-pin", lengths), secrets.token_bytes(32), secret, b""))
    files.write(home / "manufacturer.pem", pem.encode("CERTIFICATE", identity.manufacturer_certificate).encode())
    # The database is the commit point: until it is there, the next call starts over with the same PINs and device secret.
    files.create(home / "hsm.db", db.serialize())


def _pin(file: Path, lengths: range) -> str:
    """The PIN in ``file``, invented if there is none. Raises Malformed, OSError."""
    if not file.exists():
        files.write(file, secrets.token_urlsafe(18)[: lengths[-1]].encode() + b"\n")
    pin = file.read_text("utf-8").strip()
    if len(pin) not in lengths:
        raise Malformed(f"the PIN in {file} has to be {lengths[0]} to {lengths[-1]} characters long")
    return pin


def new_partition(slot: int, name: str, pins: Mapping[Role, str], device_secret: bytes, cipher: str) -> Callable[[Any], PartitionRow]:
    """What adds a new partition to a database. 0.15 s for each PIN."""
    place, kek = secrets.token_bytes(16), secrets.token_bytes(32)
    roles = [wrapped(role, pin, kek, device_secret, place) for role, pin in pins.items()]

    def add(db: Any) -> PartitionRow:
        put_partition(db, PartitionRow(slot, place, name, secrets.token_hex(8), 0, b""))
        for row in roles:
            put_role(db, place, row)
        put_marks(db, Ring(kek, cipher), place, 1, 0)
        return next(row for row in partitions(db) if row.id == place)

    return add
