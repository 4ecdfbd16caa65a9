"""The oracles can say no: each is shown what it is there to find."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import oracles
import pytest
from est_client import Door, p256_request, sm2_request, trust


@pytest.fixture(scope="module")
def certificates(plant) -> list[bytes]:
    """Two that were handed out, so that there is something to lose."""
    found = []
    with Door(plant, trust(plant)) as door:
        for family, request in (("ecc", p256_request), ("sm2", sm2_request)):
            fleet, serial = f"{family}-devices", f"oracle-{family}"
            reply = door.enroll(fleet, serial, plant.tokens(fleet, serial)[serial], request(serial))
            assert reply.status == 200
            found.append(reply.certificate)
    return found


@pytest.fixture
def copy(plant, certificates, tmp_path) -> Path:
    """A copy of what the oracles read, to be damaged."""
    (tmp_path / "db").mkdir()
    (tmp_path / "hsm").mkdir()
    with (
        closing(sqlite3.connect(plant.home / "db" / "ironroot.db")) as source,
        closing(sqlite3.connect(tmp_path / "db/ironroot.db")) as target,
    ):
        source.backup(target)
    (tmp_path / "hsm/audit.log").write_bytes((plant.home / "hsm/audit.log").read_bytes().rstrip(b"\n") + b"\n")
    return tmp_path


def change(home: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(home / "db/ironroot.db")) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        assert connection.execute(statement, values).rowcount == 1
        connection.commit()


def test_a_sound_installation(plant, copy, certificates) -> None:
    oracles.check(plant, certificates)
    assert oracles.unrecorded(copy) == oracles.unknown(copy, certificates) == oracles.doubled(copy) == oracles.unaudited(copy) == []


@pytest.mark.parametrize("number", [0, 1], ids=["ecc", "sm2"])
def test_a_signature_without_a_record(copy, certificates, number) -> None:
    change(copy, "DELETE FROM certificates WHERE der = ?", certificates[number])
    assert len([line for line in oracles.unrecorded(copy) if "signed without a record" in line]) == 1
    assert len(oracles.unknown(copy, certificates)) == 1
    assert oracles.unaudited(copy)


def test_a_signature_over_something_else(copy) -> None:
    last = (copy / "hsm/audit.log").read_bytes().splitlines()[-1]
    entry = {"op": "sign", "key": "ecc-issuing", "purpose": "certificate", "inputs": ["00" * 32], "prev": hashlib.sha256(last).hexdigest()}
    entry["seq"] = json.loads(last)["seq"] + 1
    with (copy / "hsm/audit.log").open("a") as log:
        log.write(json.dumps(entry) + "\n")
    (line,) = oracles.unrecorded(copy)
    assert f"line {entry['seq']} " in line


def test_a_record_that_was_never_signed(copy, certificates) -> None:
    der = certificates[0]
    change(copy, "UPDATE certificates SET der = ? WHERE der = ?", der.replace(b"oracle-ecc", b"oracle-Ecc"), der)
    assert ["recorded, but" in line for line in oracles.unrecorded(copy)] == [True, False]
    assert len(oracles.unknown(copy, certificates)) == 1


def test_a_log_with_a_line_missing(copy) -> None:
    lines = (copy / "hsm/audit.log").read_bytes().splitlines(keepends=True)
    (copy / "hsm/audit.log").write_bytes(b"".join(lines[:2] + lines[3:]))
    with pytest.raises(AssertionError, match="line 3"):
        oracles.unrecorded(copy)


def test_a_bug_in_the_log(copy) -> None:
    (copy / "serve.log").write_text('{"event": "est.refused"}\n{"event": "bug", "exception": "Traceback (most recent call last)"}\n')
    assert len(oracles.bugs(copy)) == 1
