"""What must hold after every fault, read past our own code: the database by sqlite3, the HSM's log as text, keys and TBS by asn1crypto.

    oracles.check(plant, received)      # received: every certificate that any client was ever given

O1  the HSM signed no certificate without a record of the intent, and none is recorded that it did not sign
O2  every certificate that a client received is in the database, same bytes
O3  nothing that was sent to us ended in a bug: no traceback in the log of the service
O4  one certificate for a token, one token for a certificate; serial numbers are never used twice
O6  the audit chain holds, and has an entry for each intent and each certificate
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from asn1crypto import core, x509
from plant import Plant

SM2_ID = b"1234567812345678"
SM2_CURVE = "1.2.156.10197.1.301"
SM2_A_B_G = bytes.fromhex(
    "fffffffeffffffffffffffffffffffffffffffff00000000fffffffffffffffc28e9fa9e9d9f5e344d5a9e4bcf6509a7f39789f515ab8f92ddbcbd414d940e93"
    "32c4ae2c1f1981195f9904466a39c9948fe30bbff2660be1715a4589334c74c7bc3736a2f4f6779c59bdcee36b692153d0a9877cc62a474002df32e52139f0a0"
)


def check(plant: Plant, received: Iterable[bytes] = ()) -> None:
    """All oracles. The service may be up or down, but nothing may be under way that is not an intent yet."""
    found = [*unrecorded(plant.home), *unknown(plant.home, received), *bugs(plant.home), *doubled(plant.home), *unaudited(plant.home)]
    assert not found, "\n".join(found)
    plant.run("audit", "verify")


def query(home: Path, statement: str, *values: object) -> list[sqlite3.Row]:
    """Rows of the database, which may be in use."""
    with closing(sqlite3.connect(f"file:{home}/db/ironroot.db?mode=ro", uri=True, timeout=30)) as connection:
        connection.row_factory = sqlite3.Row
        return connection.execute(statement, values).fetchall()


def issued(home: Path, fleet: str) -> dict[str, list[bytes]]:
    """Certificates by device serial."""
    found: dict[str, list[bytes]] = {}
    for row in query(home, "SELECT device, der FROM certificates WHERE fleet = ? AND state = 'issued' ORDER BY id", fleet):
        found.setdefault(row["device"], []).append(row["der"])
    return found


def signatures(home: Path) -> list[dict[str, Any]]:
    """What the HSM's log says of signatures; the chain through all its lines holds. OCSP's are summaries without ``key`` and ``inputs``."""
    aside = [path for path in (home / "hsm").glob("audit.log.*") if path.suffix[1:].isdecimal()]  # named by the number of the first line
    logs = [*sorted(aside, key=lambda path: int(path.suffix[1:])), home / "hsm" / "audit.log"]
    lines = [line for log in logs for line in log.read_bytes().splitlines() if line]
    previous, found = "0" * 64, []
    for number, line in enumerate(lines, start=1):
        entry = json.loads(line)
        assert (entry["seq"], entry["prev"]) == (number, previous), f"line {number} of the HSM's log"
        previous = hashlib.sha256(line).hexdigest()
        if entry["op"] == "sign":
            found.append(entry)
    return found


def unrecorded(home: Path) -> list[str]:
    """O1."""
    before = signatures(home)
    rows = query(home, "SELECT id, authority, device, state, tbs, der FROM certificates")
    authorities = query(home, "SELECT id, key, certificate, parent FROM authorities")
    keys = {row["id"]: (row["key"], row["certificate"]) for row in authorities}
    after = {(entry["key"], made) for entry in signatures(home) if entry["purpose"] == "certificate" for made in entry["inputs"]}
    # A root's own certificate is no row of certificates: an audit entry is its intent, the authority its record.
    roots = [row for row in authorities if row["parent"] == row["id"]]
    known = {(row["key"], signing_input(_parts(row["certificate"])[0].dump(), row["certificate"])) for row in roots}
    found = []
    for row in rows:
        if row["state"] == "abandoned":
            continue  # given up before it was signed: a signature over it is one without a record
        key, certificate = keys[row["authority"]]
        made = (key, signing_input(row["tbs"] or _parts(row["der"])[0].dump(), certificate))
        known.add(made)
        if row["state"] == "issued" and made not in after:
            found.append(f"O1: certificate {row['id']} of {row['device']} is recorded, but the HSM did not sign it")
    ours = {row["key"] for row in authorities}
    for entry in before:
        if entry["purpose"] == "ocsp" and ours & entry["keys"].keys():
            found.append(f"O1: an authority's own key signed for OCSP: line {entry['seq']} of the HSM's log")
        if entry["purpose"] == "certificate" and any((entry["key"], made) not in known for made in entry["inputs"]):
            found.append(f"O1: the HSM signed without a record: line {entry['seq']} of its log, {entry['key']}")
    return found


def unknown(home: Path, received: Iterable[bytes]) -> list[str]:
    """O2."""
    recorded = {row["der"] for row in query(home, "SELECT der FROM certificates WHERE state = 'issued'")}
    return [f"O2: a client holds a certificate that is not recorded: {der[:40].hex()}…" for der in received if der not in recorded]


def bugs(home: Path) -> list[str]:
    """O3."""
    log = home / "serve.log"
    lines = log.read_text().splitlines() if log.exists() else []
    return [f"O3: {line[:2000]}" for line in lines if "Traceback" in line or '"event": "bug"' in line]


def doubled(home: Path) -> list[str]:
    """O4."""
    rows = query(home, "SELECT authority, serial, token, sha256 FROM certificates")
    tokens = Counter(row["token"] for row in rows if row["token"] is not None)
    serials = Counter((row["authority"], row["serial"]) for row in rows)
    digests = Counter(row["sha256"] for row in rows if row["sha256"] is not None)
    return [f"O4: more than once: {one}" for counter in (tokens, serials, digests) for one, times in counter.items() if times > 1]


def unaudited(home: Path) -> list[str]:
    """O6, the half that ``audit verify`` does not look at."""
    actions = Counter(row["action"] for row in query(home, "SELECT action FROM audit"))
    rows = Counter(row["state"] for row in query(home, "SELECT state FROM certificates"))
    expected = {
        "certificate.intended": sum(rows.values()),
        "certificate.issued": rows["issued"],
        "certificate.abandoned": rows["abandoned"],
    }
    return [
        f"O6: {actions[action]} audit entries {action}, expected {count}" for action, count in expected.items() if actions[action] != count
    ]


def signing_input(tbs: bytes, issuer: bytes) -> str:
    """Hex of what the issuer's key signs for a TBSCertificate: its digest, for SM2 with Z in front (GM/T 0003.2)."""
    key = x509.Certificate.load(issuer)["tbs_certificate"]["subject_public_key_info"]
    if key["algorithm"]["parameters"].native != SM2_CURVE:
        return hashlib.sha256(tbs).hexdigest()
    point = key["public_key"].native[1:]
    z = hashlib.new("sm3", (8 * len(SM2_ID)).to_bytes(2, "big") + SM2_ID + SM2_A_B_G + point).digest()
    return hashlib.new("sm3", z + tbs).hexdigest()


class _Parts(core.SequenceOf):
    _child_spec = core.Any


def _parts(der: bytes) -> _Parts:
    return _Parts.load(der, strict=True)
