"""From what an administrator has in hand to certificates: serial (hex or decimal), SHA-256 prefix, PEM or DER file, device serial."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from ca.model import Method, Record, State
from ca.ports import Store
from pkix import pem
from pkix.certificate import parse_certificate
from pkix.errors import Conflict, Malformed, NotFound

_HEX = re.compile(r"(?:0x)?[0-9a-f]{1,64}")
_MAX_FILE = 1 << 20


async def certificates(store: Store, what: str, fleet: str | None = None) -> list[Record]:
    """The certificates that ``what`` names; for a device all of its certificates, newest first.

    Raises:
        NotFound: nothing by that name.
        Conflict: it can be read in two ways that mean different certificates, or is a device in several fleets.
    """
    if ("/" in what or "." in what) and os.path.isfile(what):
        return await _of_file(store, Path(what))
    readings: dict[str, list[Record]] = {}
    text = what.strip().lower().replace(":", "")
    if text.isascii() and text.isdigit() and len(text) < 50:
        readings["serial, decimal"] = await store.by_serial(int(text))
    if _HEX.fullmatch(text):
        digits = text.removeprefix("0x")
        readings["serial, hex"] = await store.by_serial(int(digits, 16))
        if len(digits) >= 8:
            even = len(digits) // 2 * 2
            readings["SHA-256"] = await store.by_sha256(bytes.fromhex(digits[:even]), digits[even:])
    # Our own (authorities, OCSP signers, the service) are named by serial, fingerprint or file: no device's serial shall hit them.
    readings["device"] = [record for record in await store.by_device(what, fleet) if record.method is not Method.SERVICE]
    if len(fleets := {record.fleet for record in readings["device"]}) > 1:
        raise Conflict(f"{what} is a device in the fleets {', '.join(sorted(fleets))}; say which: --fleet")
    found = {how: {record.id for record in records} for how, records in readings.items() if records}
    if not found:
        raise NotFound(f"No certificate has the serial, the SHA-256 or the device serial {what!r}.")
    if len({frozenset(ids) for ids in found.values()}) > 1:
        raise Conflict(f"{what!r} could be " + " or ".join(f"a {how}" for how in found) + "; use the SHA-256 fingerprint instead.")
    return readings[next(iter(found))]


async def one(store: Store, what: str, fleet: str | None = None) -> tuple[Record, int]:
    """One certificate, the newest that was issued, and how many others ``what`` also names."""
    records = await certificates(store, what, fleet)
    newest = next((record for record in records if record.state is State.ISSUED), records[0])
    return newest, len(records) - 1


async def _of_file(store: Store, path: Path) -> list[Record]:
    with path.open("rb") as stream:
        raw = stream.read(_MAX_FILE + 1)
    if len(raw) > _MAX_FILE:
        raise Malformed(f"{path} is over 1 MiB; it should be one certificate, in PEM or DER.")
    certificate = parse_certificate(pem.certificates(raw)[0])
    records = await store.by_sha256(hashlib.sha256(certificate.der).digest())
    if not records:
        raise NotFound(f"The certificate in {path} was not issued here.")
    return records
