"""The main job through real programs: a device enrols, a platform trusts it, an administrator revokes it, the platform stops."""

from __future__ import annotations

import json
import stat
import subprocess
from pathlib import Path

import pytest

from pkix import pem
from pkix.algorithms import KeyKind
from pkix.certificate import parse_certificate
from pkix.crl import parse_crl
from pkix.privatekey import load_private_key

KINDS = {"ecc": KeyKind.P_256, "sm2": KeyKind.SM2}


def certificate(file: Path):
    return parse_certificate(pem.decode(file.read_bytes(), "CERTIFICATE")[0][1])


def verdict(plant, state: Path, *more: str, expect: int = 0) -> dict:
    return plant.json("verify", str(state / "device.pem"), "--chain", str(state / "chain.pem"), *more, expect=expect)


@pytest.mark.parametrize("family", ["ecc", "sm2"])
def test_enrol_trust_revoke_distrust(plant, family):
    serial = f"main-{family}"
    state = plant.enrolled(f"{family}-devices", serial)
    leaf = certificate(state / "device.pem")
    assert leaf.public_key.kind == KINDS[family]
    assert leaf.subject.get("serialNumber") == [serial]
    assert f"uri:urn:ironroot:device:{family}-devices:{serial}" in leaf.names
    assert load_private_key((state / "device.key").read_bytes()).public_key == leaf.public_key
    assert stat.S_IMODE((state / "device.key").stat().st_mode) == 0o600

    good = verdict(plant, state, "--purpose", "client")
    assert good["good"]
    assert {entry["source"] for entry in good["basis"]} == {"ocsp"}

    revoked = plant.json("cert", "revoke", serial, "--reason", "keyCompromise", "--yes", "--wait")
    assert [(one["device"], one["status"], one["reason"]) for one in revoked] == [(serial, "revoked", "keyCompromise")]
    bad = verdict(plant, state, "--purpose", "client", expect=8)
    assert not bad["good"]
    assert "keyCompromise" in bad["reason"]
    plant.until(lambda: leaf.serial in parse_crl(plant.get(f"/crl/{family}-issuing.crl")).entries, "the revocation to be on the CRL")
    # Once more is no error, and changes neither date nor reason.
    again = plant.json("cert", "revoke", serial, "--reason", "superseded", "--yes")
    assert (again[0]["revoked_at"], again[0]["reason"]) == (revoked[0]["revoked_at"], "keyCompromise")


@pytest.mark.parametrize("family", ["ecc", "sm2"])
def test_renewal_makes_a_new_key_for_the_same_identity(plant, family):
    state = plant.enrolled(f"{family}-devices", f"renew-{family}")
    before = certificate(state / "device.pem")
    plant.device("renew", "--state", str(state))
    after = certificate(state / "device.pem")
    assert after.public_key != before.public_key
    assert (after.subject, after.names) == (before.subject, before.names)
    assert load_private_key((state / "device.key").read_bytes()).public_key == after.public_key
    assert verdict(plant, state)["good"]
    records = plant.json("device", "show", f"renew-{family}")
    assert [record["method"] for record in records] == ["certificate", "token"]


@pytest.mark.parametrize("family", ["ecc", "sm2"])
def test_a_revoked_device_cannot_renew(plant, family):
    state = plant.enrolled(f"{family}-devices", f"norenew-{family}")
    plant.run("cert", "revoke", f"norenew-{family}", "--reason", "keyCompromise", "--yes")
    refused = plant.device("renew", "--state", str(state), expect=4)
    assert "revoked" in refused.stderr


def test_hold_and_unhold(plant):
    state = plant.enrolled("ecc-devices", "hold-1")
    plant.run("cert", "hold", "hold-1", "--yes", "--wait")
    assert verdict(plant, state, expect=8)["code"] != "good"
    assert plant.json("cert", "show", "hold-1")["status"] == "held"
    plant.run("cert", "unhold", "hold-1", "--yes", "--wait")
    assert verdict(plant, state)["good"]
    assert plant.json("cert", "show", "hold-1")["status"] == "good"
    # What is revoked for good is not lifted.
    plant.run("cert", "revoke", "hold-1", "--yes")
    plant.run("cert", "unhold", "hold-1", "--yes", expect=5)


def test_a_platform_gets_the_names_it_was_invited_with(plant):
    state = plant.enrolled("ecc-platforms", "scada-1.plant.example", "--name", "localhost", "--name", "127.0.0.1")
    leaf = certificate(state / "device.pem")
    assert set(leaf.names) >= {"dns:scada-1.plant.example", "dns:localhost", "ip:127.0.0.1"}
    assert verdict(plant, state, "--purpose", "server")["good"]


def test_a_device_is_no_server(plant):
    state = plant.enrolled("ecc-devices", "noserver-1")
    assert verdict(plant, state, "--purpose", "server", expect=8)["good"] is False


def test_every_way_to_name_a_certificate(plant):
    state = plant.enrolled("ecc-devices", "named-1")
    leaf = certificate(state / "device.pem")
    fingerprint = leaf.sha256.hex()
    colons = ":".join(f"{leaf.serial:032x}"[i : i + 2] for i in range(0, 32, 2))
    for what in (
        f"{leaf.serial:x}",
        str(leaf.serial),
        colons,
        fingerprint[:8],
        fingerprint[:9],
        fingerprint,
        str(state / "device.pem"),
        "named-1",
    ):
        assert plant.json("cert", "show", what)["sha256"] == fingerprint, what
    listed = plant.json("cert", "list", "--fleet", "ecc-devices")
    assert fingerprint in {one["sha256"] for one in listed}
    plant.run("cert", "show", "no-such-device", expect=3)
    plant.run("cert", "revoke", "ffffffffffffffff", "--yes", expect=3)


def test_revoke_asks_and_can_be_tried_out(plant):
    plant.enrolled("ecc-devices", "ask-1")
    plant.run("cert", "revoke", "ask-1", expect=2)  # nobody to ask
    tried = plant.run("cert", "revoke", "ask-1", "--dry-run")
    assert "ecc-devices/ask-1" in tried.stderr
    assert plant.json("cert", "show", "ask-1")["status"] == "good"
    plant.run("cert", "revoke", "ask-1", "--reason", "because", "--yes", expect=2)


def test_authorities_in_openssl(plant, tmp_path):
    listed = {one["id"]: one for one in plant.json("ca", "list")}
    assert set(listed) == {"ecc-root", "ecc-issuing", "sm2-root", "sm2-issuing"}
    for one in listed.values():
        assert set(one) >= {"id", "subject", "algorithm", "serial", "not_before", "not_after", "sha256", "certificate"}
        assert plant.json("ca", "show", one["id"]) == one
        exported = plant.run("ca", "export", one["id"]).stdout
        assert exported == one["certificate"]
        (tmp_path / f"{one['id']}.pem").write_text(exported)
        said = subprocess.run(
            ["openssl", "x509", "-in", str(tmp_path / f"{one['id']}.pem"), "-noout", "-serial", "-fingerprint", "-sha256"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.lower()
        assert f"serial={one['serial']}" in said
        assert one["sha256"] in said.replace(":", "")
    plant.run("ca", "show", "no-such", expect=3)
    for family, more in (("ecc", []), ("sm2", ["-vfyopt", "distid:1234567812345678"])):
        command = ["openssl", "verify", *more, "-x509_strict", "-CAfile", f"{family}-root.pem", f"{family}-issuing.pem"]
        assert subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stdout.strip().endswith("OK")


def test_invitation_says_what_a_device_needs(plant):
    made = plant.invite("ecc-devices", "invite-1")
    assert set(made) >= {"token", "url", "ca_sha256", "expires"}
    assert made["url"] == plant.https_url
    assert made["ca_sha256"] == plant.json("ca", "show", "ecc-root")["sha256"]
    # The token is nowhere on our disk, and in no log.
    secret = made["token"].encode()
    for file in plant.home.rglob("*"):
        if file.is_file():
            assert secret not in file.read_bytes(), file
            assert secret.partition(b".")[0] not in file.read_bytes(), file
    plant.run("device", "invite", "--fleet", "no-such", "--serial", "x", expect=3)
    plant.run("device", "invite", "--fleet", "ecc-devices", "--serial", "a b", expect=2)
    plant.run("device", "invite", "--fleet", "ecc-devices", "--serial", "x1", "--name", "evil.example", expect=4)


def test_crl_commands(plant):
    first = plant.json("crl", "publish", "ecc-issuing")
    second = plant.json("crl", "publish", "ecc-issuing")
    assert second["number"] > first["number"]
    assert plant.json("crl", "show", "ecc-issuing")["number"] >= second["number"]
    plant.run("crl", "show", "no-such", expect=3)


def test_the_audit_chain_holds_and_names_who_did_what(plant):
    plant.enrolled("ecc-devices", "audited-1")
    plant.run("cert", "revoke", "audited-1", "--reason", "superseded", "--yes")
    plant.run("audit", "checkpoint")
    checked = plant.json("audit", "verify")
    assert checked["entries"] > 10
    assert checked["checkpoints"] > 0
    entries = plant.json("audit", "tail", "-n", "100000")
    mine = [entry for entry in entries if entry["detail"].get("device") == "audited-1" or "audited-1" in json.dumps(entry)]
    assert {"token.invited", "certificate.intended"} <= {entry["action"] for entry in mine}
    assert [entry["actor"] for entry in entries if entry["action"] == "certificate.revoked"]


def test_init_again_changes_nothing(plant):
    before = plant.json("ca", "list")
    plant.run("init")
    plant.run("init", "--http-port", str(plant.http), "--https-port", str(plant.https))
    assert plant.json("ca", "list") == before
    plant.run("init", "--http-port", "1234", expect=5)


def test_no_device_serial_reaches_our_own_certificates(plant):
    plant.run("cert", "revoke", "ecc-issuing", "--yes", expect=3)
    plant.run("cert", "revoke", "ironroot-service", "--yes", expect=3)
    assert plant.json("cert", "revoke", plant.json("ca", "show", "ecc-issuing")["sha256"], "--dry-run")[0]["profile"] == "ecc-issuing"


def test_a_serial_in_two_fleets_is_asked_about(plant):
    plant.enrolled("ecc-devices", "twice-1")
    plant.devices.joinpath("twice-1").rename(plant.devices / "twice-1-ecc")
    plant.enrolled("sm2-devices", "twice-1")
    assert "--fleet" in plant.run("cert", "revoke", "twice-1", "--yes", expect=5).stderr
    plant.run("cert", "revoke", "twice-1", "--fleet", "sm2-devices", "--yes")
    assert plant.json("cert", "show", "twice-1", "--fleet", "ecc-devices")["status"] == "good"
    assert plant.json("cert", "show", "twice-1", "--fleet", "sm2-devices")["status"] == "revoked"


def test_verify_knows_our_own_authorities(plant):
    state = plant.enrolled("sm2-devices", "alone-1")
    assert plant.json("verify", str(state / "device.pem"), "--purpose", "client")["good"]
