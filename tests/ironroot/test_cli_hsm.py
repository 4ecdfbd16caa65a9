"""``ironroot hsm`` as an administrator uses it: an HSM on its own, in a process of its own, and the command beside it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from ironroot.cli.main import app

IRONROOT = (sys.executable, "-m", "ironroot.cli.main")


class Hsm:
    """One home with its HSM, served; ``run`` is one command."""

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="ir", dir="/tmp"))
        self.place = self.home / "hsm"
        self.process: subprocess.Popen[str] | None = None

    def start(self, *options: str) -> None:
        command = [*IRONROOT, "hsm", "serve", "--home", str(self.home), *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            assert self.process.wait(20) == 0
            assert self.process.stdout is not None
            self.process.stdout.close()
        self.process = None

    def run(self, *words: str, expect: int = 0) -> str:
        return self.raw(*words, expect=expect).stdout

    def raw(self, *words: str, expect: int = 0) -> Result:
        done = CliRunner().invoke(app, ["hsm", *words, "--home", str(self.home)], catch_exceptions=False)
        assert done.exit_code == expect, (words, done.exit_code, done.stderr)
        return done

    def json(self, *words: str) -> object:
        return json.loads(self.run(*words, "-o", "json"))


@pytest.fixture(scope="module")
def hsm() -> Iterator[Hsm]:
    made = Hsm()
    made.run("init")
    made.start("--lab")
    yield made
    made.stop()
    shutil.rmtree(made.home)


def offline(*words: str) -> Result:
    return CliRunner().invoke(app, ["hsm", *words], catch_exceptions=False)


def test_status_names_the_sockets_the_pin_file_and_the_state(hsm: Hsm) -> None:
    found = hsm.json("status")
    assert isinstance(found, dict)
    assert Path(found["native_socket"]).is_socket()
    assert Path(found["pkcs11_socket"]).is_socket()
    assert Path(found["pin_file"]).stat().st_mode & 0o777 == 0o600
    assert found["state"] in ("locked", "operational")
    assert found["lab"] is True


def test_status_of_an_hsm_that_does_not_run_or_is_not_there() -> None:
    other = Hsm()
    try:
        other.run("status", expect=3)
        other.run("init")
        found = json.loads(other.run("status", "-o", "json", expect=7))
        assert found["state"] == "stopped"
        assert found["pin_file"]
        other.run("keys", expect=7)
    finally:
        shutil.rmtree(other.home)


def test_a_key_is_made_listed_attested_and_destroyed(hsm: Hsm, tmp_path: Path) -> None:
    made = hsm.json("generate", "line-3", "--kind", "p-256")
    assert isinstance(made, dict)
    assert made["never_extractable"] is True
    assert "PUBLIC KEY" in made["public_key"]
    keys = hsm.json("keys")
    assert isinstance(keys, list)
    assert "line-3" in [key["label"] for key in keys]
    chain = tmp_path / "attestation.pem"
    chain.write_text(hsm.run("attest", "line-3"))
    said = hsm.json("attest", "--verify", str(chain))
    assert isinstance(said, dict)
    assert (said["label"], said["made_here"], said["origin"]) == ("line-3", True, "generated")
    hsm.run("generate", "line-3", "--kind", "p-256", expect=5)
    hsm.run("destroy", "line-3", expect=2)
    hsm.run("destroy", "line-3", "--yes")
    hsm.run("destroy", "line-3", "--yes", expect=3)
    hsm.run("generate", "odd", "--kind", "dsa-1024", expect=2)


def test_an_attestation_of_another_hsm_is_not_taken_for_ours(hsm: Hsm, tmp_path: Path) -> None:
    other = Hsm()
    other.run("init", "--hash", "sm3")
    other.start()
    try:
        other.run("generate", "k", "--kind", "sm2")
        chain = tmp_path / "other.pem"
        chain.write_text(other.run("attest", "k"))
        hsm.run("attest", "--verify", str(chain), expect=8)
        hsm.run("attest", "--verify", str(chain), "--trust", str(other.place / "manufacturer.pem"))
    finally:
        other.stop()
        shutil.rmtree(other.home)


def test_a_marked_key_is_destroyed_by_two_approvers_and_not_by_one(hsm: Hsm, tmp_path: Path) -> None:
    files = {}
    for name, curve in (("li", "prime256v1"), ("wang", "prime256v1")):
        key, public = tmp_path / f"{name}.pem", tmp_path / f"{name}.pub"
        subprocess.run(["openssl", "ecparam", "-name", curve, "-genkey", "-noout", "-out", key], check=True, capture_output=True)
        subprocess.run(["openssl", "pkey", "-in", key, "-pubout", "-out", public], check=True)
        hsm.run("quorum", "add", name, str(public))
        files[name] = key
    hsm.run("generate", "root", "--kind", "sm2", "--quorum", "destroy")
    hsm.run("destroy", "root", "--yes", expect=4)
    request = tmp_path / "request.bin"
    request.write_bytes(hsm.raw("quorum", "request", "destroy", "root", "--requester", "zhang").stdout_bytes)
    assert "root" in offline("quorum", "show", str(request)).stdout
    approvals = []
    for name, key in files.items():
        approval = tmp_path / f"{name}.approval"
        approval.write_bytes(offline("quorum", "approve", str(request), "--key", str(key)).stdout_bytes)
        approvals += ["--approval", str(approval)]
    hsm.run("destroy", "root", "--yes", *approvals[:2], expect=4)
    hsm.run("destroy", "root", "--yes", *approvals[:2], *approvals[:2], expect=4)
    hsm.run("destroy", "root", "--yes", *approvals)
    hsm.run("destroy", "root", "--yes", *approvals, expect=3)


def test_a_backup_opens_with_enough_shares_in_another_hsm(hsm: Hsm, tmp_path: Path) -> None:
    made = hsm.json("generate", "spare", "--kind", "p-256")
    backup, folder = tmp_path / "plant.backup", tmp_path / "shares"
    hsm.run("backup", "--to", str(backup), "--shares", "2/3", "--shares-to", str(folder))
    shares = sorted(folder.iterdir())
    assert [file.stat().st_mode & 0o777 for file in shares] == [0o600] * 3
    hsm.run("backup", "--to", str(backup), "--shares", "2/3", "--shares-to", str(folder), expect=5)
    hsm.run("backup", "--to", str(tmp_path / "x"), "--shares", "three", "--shares-to", str(folder), expect=2)
    other = Hsm()
    other.run("init")
    other.start()
    try:
        other.run("restore", str(backup), "--share", str(shares[0]), expect=2)
        other.run("restore", str(backup), "--share", str(shares[0]), "--share", str(shares[2]))
        keys = other.json("keys")
        assert isinstance(made, dict)
        assert isinstance(keys, list)
        assert made["public_key"] in [key["public_key"] for key in keys]
    finally:
        other.stop()
        shutil.rmtree(other.home)


def test_the_log_is_whole_until_somebody_edits_it(hsm: Hsm, tmp_path: Path) -> None:
    hsm.run("generate", "logged", "--kind", "ed25519")
    lines = [json.loads(line) for line in hsm.run("audit", "read", "-n", "1000").splitlines()]
    assert any(line["op"] == "generate" and line.get("key") == "logged" for line in lines)
    hsm.run("audit", "verify")
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in hsm.place.glob("audit.*"):
        shutil.copy(file, copy)
    text = (copy / "audit.log").read_text()
    (copy / "audit.log").write_text(text.replace('"op":"generate"', '"op":"Generate"', 1))
    done = hsm.raw("audit", "verify", "--dir", str(copy), expect=8)
    assert "audit.log, line " in done.stderr


def test_keys_are_refused_while_nobody_reads_the_log(hsm: Hsm) -> None:
    hsm.run("audit", "force", "1")
    try:
        hsm.run("generate", "unread", "--kind", "p-256", expect=7)
        last = json.loads(hsm.run("audit", "read", "-n", "1000").splitlines()[-1])["seq"]
        hsm.run("audit", "acknowledge", str(last))
    finally:
        hsm.run("audit", "force", "0")
    hsm.run("generate", "unread", "--kind", "p-256")


def test_pins_are_changed_and_unlocked_by_the_security_officer(hsm: Hsm, tmp_path: Path) -> None:
    wrong, fresh = tmp_path / "wrong", tmp_path / "fresh"
    wrong.write_text("not-the-pin\n")
    fresh.write_text("a-new-one-for-the-user\n")
    hsm.run("pin", "set", "--role", "user", "--new-pin-file", str(fresh))
    hsm.run("keys", "--pin-file", str(wrong), expect=4)
    hsm.run("pin", "change", "--role", "user", "--pin-file", str(wrong), "--new-pin-file", str(fresh), expect=4)
    second = tmp_path / "second"
    second.write_text("yet-another-one\n")
    hsm.run("pin", "change", "--role", "user", "--pin-file", str(fresh), "--new-pin-file", str(second))
    hsm.run("keys", "--pin-file", str(tmp_path / "none"), expect=3)


def test_a_lock_holds_until_it_is_opened_on_purpose(hsm: Hsm) -> None:
    hsm.run("lock")
    found = hsm.json("status")
    assert isinstance(found, dict)
    assert (found["state"], found["locked_on_request"]) == ("locked", True)
    hsm.run("unlock")
    found = hsm.json("status")
    assert isinstance(found, dict)
    assert (found["state"], found["locked_on_request"]) == ("operational", False)


def test_a_partition_is_a_token_of_its_own(hsm: Hsm, tmp_path: Path) -> None:
    so, officer = tmp_path / "so", tmp_path / "officer"
    so.write_text("kmc-security-officer")
    officer.write_text("kmc-crypto-officer")
    hsm.run("partition", "create", "kmc", "--new-pin-file", str(so))
    hsm.run("pin", "set", "--partition", "kmc", "--pin-file", str(so), "--role", "officer", "--new-pin-file", str(officer))
    hsm.run("generate", "escrow", "--kind", "sm2", "--partition", "kmc", "--pin-file", str(officer))
    ours, theirs = hsm.json("keys"), hsm.json("keys", "--partition", "kmc", "--pin-file", str(officer))
    assert isinstance(ours, list)
    assert isinstance(theirs, list)
    assert [key["label"] for key in theirs] == ["escrow"]
    assert "escrow" not in [key["label"] for key in ours]
    hsm.run("partition", "zeroise", "--partition", "kmc", "--pin-file", str(so), "--yes")
    listed = hsm.json("partition", "list")
    assert {"partition": "kmc", "state": "tampered"} in (listed if isinstance(listed, list) else [])


def test_a_fault_is_shown_counted_and_logged(hsm: Hsm, tmp_path: Path) -> None:
    scenario = tmp_path / "scenario.toml"
    scenario.write_text('[[fault]]\nkind = "error"\ncode = "device_error"\nop = "generate"\ncount = 1\n')
    hsm.run("fault", "load", str(scenario))
    hsm.run("generate", "faulty", "--kind", "p-256", expect=7)
    (fault,) = json.loads(hsm.run("fault", "list", "-o", "json"))
    assert (fault["kind"], fault["shown"]) == ("error", 1)
    hsm.run("generate", "faulty", "--kind", "p-256")
    hsm.run("fault", "clear")
    lines = [json.loads(line) for line in hsm.run("audit", "read", "-n", "1000").splitlines()]
    assert any(line["op"] == "fault" for line in lines)
    scenario.write_text('[[fault]]\nkind = "flood"\n')
    hsm.run("fault", "load", str(scenario), expect=2)


def test_no_faults_without_the_laboratory(tmp_path: Path) -> None:
    other = Hsm()
    other.run("init")
    other.start()
    try:
        scenario = tmp_path / "scenario.toml"
        scenario.write_text('[[fault]]\nkind = "hang"\n')
        other.run("fault", "load", str(scenario), expect=2)
    finally:
        other.stop()
        shutil.rmtree(other.home)


def test_the_bench_leaves_no_keys_behind(hsm: Hsm) -> None:
    before = hsm.json("keys")
    rows = hsm.json("bench", "--seconds", "0.1")
    assert isinstance(rows, list)
    assert [(row["kind"], row["batch"]) for row in rows] == [(kind, batch) for kind in ("p-256", "sm2") for batch in (1, 8, 64)]
    assert hsm.json("keys") == before
