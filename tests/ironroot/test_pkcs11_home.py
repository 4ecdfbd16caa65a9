"""An installation on SoftHSM2: made, served, given new keys on another token, and moved there; as devices and openssl see it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from key_stores import SOFTHSM, SimulatorToken, SoftHsm, standing
from plant import Plant, free_ports
from programs import need, openssl


class SoftPlant(Plant):
    """A plant on a token, and the tokens."""

    softhsm: SoftHsm

    def uri(self, token: str) -> str:
        return f"pkcs11:token={token}?module-path={SOFTHSM}&pin-source=file:hsm.pin"


@pytest.fixture
def plant_on_tokens() -> Iterator[SoftPlant]:
    with standing("softhsm2") as softhsm:
        assert isinstance(softhsm, SoftHsm)
        softhsm.add_token("second")
        home = Path(tempfile.mkdtemp(prefix="ir", dir="/tmp"))
        plant = SoftPlant(home, *free_ports(2))
        plant.softhsm = softhsm
        try:
            (home / "hsm.pin").write_text(softhsm.pin)
            yield plant
        finally:
            plant.kill()
            shutil.rmtree(home, ignore_errors=True)


def initialised(plant: SoftPlant) -> list[dict[str, Any]]:
    ports = ("--http-port", str(plant.http), "--https-port", str(plant.https))
    done: list[dict[str, Any]] = plant.json("init", *ports, "--hsm", plant.uri("ironroot"))
    return done


def authorities(plant: SoftPlant) -> dict[str, Path]:
    """Files with the certificates of the authorities, and of all of them together (``all``)."""
    found = {authority["id"]: authority["certificate"] for authority in plant.json("ca", "list")}
    found["all"] = "".join(found.values())
    for name, text in found.items():
        (plant.home / f"{name}.pem").write_text(text)
    return {name: plant.home / f"{name}.pem" for name in found}


def verified(plant: SoftPlant, serial: str, files: dict[str, Path]) -> str:
    """The issuer of a device's certificate, which openssl found good."""
    own = plant.devices / serial / "device.pem"
    assert f"{own}: OK" in openssl("verify", "-CAfile", files["all"], own)
    return openssl("x509", "-noout", "-issuer", "-in", own).strip()


def serial_of(plant: SoftPlant, serial: str) -> str:
    return openssl("x509", "-noout", "-serial", "-in", plant.devices / serial / "device.pem").strip().partition("=")[2]


def ocsp(plant: SoftPlant, serial: str, authority: str, files: dict[str, Path]) -> str:
    """What openssl reads from our responder, signature checked up to the root."""
    own = plant.devices / serial / "device.pem"
    trust = ("-CAfile", files["ecc-root"], "-verify_other", files["all"])
    said = openssl("ocsp", "-issuer", files[authority], "-cert", own, "-url", f"{plant.http_url}/ocsp", *trust)
    assert "Response verify OK" in said
    found = re.search(rf"{own}: (\w+)", said)
    assert found, said
    return found[1]


def crl(plant: SoftPlant, authority: str, files: dict[str, Path]) -> str:
    """The CRL of an authority as openssl shows it, its signature checked."""
    file = plant.home / "crl.der"
    file.write_bytes(plant.get(f"/crl/{authority}.crl"))
    assert "verify OK" in openssl("crl", "-inform", "DER", "-in", file, "-CAfile", files[authority], "-noout")
    return openssl("crl", "-inform", "DER", "-in", file, "-noout", "-text")


def test_root_issuing_enrolment_crl_and_ocsp_on_softhsm(plant_on_tokens: SoftPlant) -> None:
    need("openssl", "pkcs11-tool")
    plant = plant_on_tokens
    made = plant.run(
        *("init", "--http-port", str(plant.http), "--https-port", str(plant.https), "--hsm", plant.uri("ironroot"), "-o", "json")
    )
    assert "Left out" in made.stderr
    assert "sm2" in made.stderr
    assert [authority["id"] for authority in plant.json("ca", "list")] == ["ecc-root", "ecc-issuing"]
    assert f'uri = "{plant.uri("ironroot")}"' in (plant.home / "ironroot.toml").read_text()
    assert not (plant.home / "hsm").exists()
    assert "says hsm.uri" in plant.run("init", "--hsm", plant.uri("second"), expect=5).stderr

    shown = subprocess.run(
        ["pkcs11-tool", "--module", SOFTHSM, "--token-label", "ironroot", "--login", "--pin", plant.softhsm.pin, "-O", "--type", "privkey"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    labels = re.findall(r"label: +(\S+)", shown)
    assert {"ecc-root", "ecc-issuing"} < set(labels)
    assert len([label for label in labels if re.match(r"ecc-(root|issuing)-ocsp-", label)]) == 2
    assert shown.count("never extractable") == len(labels)

    plant.start()
    assert plant.children("hsm") == []
    plant.enrolled("ecc-devices", "S-1")
    files = authorities(plant)
    assert "CN = ecc-issuing" in verified(plant, "S-1", files)
    assert ocsp(plant, "S-1", "ecc-issuing", files) == "good"
    plant.json("cert", "revoke", "S-1", "--yes", "--wait")
    assert ocsp(plant, "S-1", "ecc-issuing", files) == "revoked"
    serial = serial_of(plant, "S-1")
    plant.until(lambda: serial in crl(plant, "ecc-issuing", files), "the CRL")
    assert plant.stop() == 0
    assert plant.json("status")["hsm"] == "ok"
    (plant.home / "hsm.pin").write_text("wrong")
    assert "PIN is wrong" in plant.json("status", expect=7)["hsm"]


def test_a_new_key_on_another_token_while_devices_go_on(plant_on_tokens: SoftPlant) -> None:
    need("openssl")
    plant = plant_on_tokens
    initialised(plant)
    plant.start()
    plant.enrolled("ecc-devices", "R-1")
    second = plant.uri("second")

    plan = plant.json("ca", "rekey", "ecc-issuing", "--onto", second, "--dry-run")
    assert plan["successor"] == "ecc-issuing-g2"
    assert "say --yes" in plant.run("ca", "rekey", "ecc-issuing", "--onto", second, expect=2).stderr
    assert set(authorities(plant)) == {"ecc-root", "ecc-issuing", "all"}
    made = plant.json("ca", "rekey", "ecc-issuing", "--onto", second, "--yes")
    assert made["subject"].startswith("CN=ecc-issuing-g2,")
    assert made["issuer"] == "ecc-root"
    assert made["key"].startswith("pkcs11:token=second;object=ecc-issuing-g2?")
    plant.until(lambda: plant.status("/crl/ecc-issuing-g2.crl") == 200, "the service to notice")

    plant.enrolled("ecc-devices", "R-2")
    files = authorities(plant)
    for device, authority in (("R-1", "ecc-issuing"), ("R-2", "ecc-issuing-g2")):
        assert f"CN = {authority}" in verified(plant, device, files)
        assert ocsp(plant, device, authority, files) == "good"
    serial = serial_of(plant, "R-1")
    plant.device("renew", "--state", str(plant.devices / "R-1"))  # authenticates with a certificate of the old one
    assert "CN = ecc-issuing-g2" in verified(plant, "R-1", files)
    plant.json("cert", "revoke", serial, "--yes", "--wait")
    plant.until(lambda: serial in crl(plant, "ecc-issuing", files), "the old authority's CRL")
    assert serial not in crl(plant, "ecc-issuing-g2", files)

    assert "successor ecc-issuing-g2" in plant.run("ca", "rekey", "ecc-issuing", "--onto", second, "--yes", expect=5).stderr
    assert "root" in plant.run("ca", "rekey", "ecc-root", "--onto", second, "--yes", expect=4).stderr
    actions = [(entry["action"], entry["subject"]) for entry in plant.json("audit", "tail", "-n", "100")]
    assert ("authority.superseded", "ecc-issuing") in actions
    assert plant.stop() == 0


def test_the_same_key_from_another_token(plant_on_tokens: SoftPlant) -> None:
    need("openssl", "pkcs11-tool")
    plant = plant_on_tokens
    # A key that may leave its token was made by hand, before: whoever wants that.
    command = ["pkcs11-tool", "--module", SOFTHSM, "--token-label", "ironroot", "--login", "--pin", plant.softhsm.pin, "--keypairgen"]
    subprocess.run(
        [*command, "--key-type", "EC:prime256v1", "--label", "ecc-issuing", "--id", "77", "--extractable"], check=True, capture_output=True
    )
    initialised(plant)
    plant.start()
    plant.enrolled("ecc-devices", "M-1")
    certificate = plant.json("ca", "show", "ecc-issuing")["certificate"]
    second = plant.uri("second")

    refused = plant.run("ca", "migrate", "ecc-root", "--to", second, "--yes", expect=4).stderr
    assert "ironroot hsm backup" in refused
    refused = plant.run(
        "ca", "migrate", "ecc-root", "--to", second.replace("pin-source=file:hsm.pin", "pin-value=1234"), "--yes", expect=2
    ).stderr
    assert "pin-source" in refused
    assert plant.json("ca", "migrate", "ecc-issuing", "--to", second, "--dry-run")["way"] == "wrapped"
    moved = plant.json("ca", "migrate", "ecc-issuing", "--to", second, "--yes")
    assert moved["key"].startswith("pkcs11:token=second;object=ecc-issuing?")
    assert moved["certificate"] == certificate
    assert plant.run("ca", "migrate", "ecc-issuing", "--to", second, "--yes", expect=5).stderr.count("already")
    for token in ("ironroot", "second"):  # there and back again: both have it by now, and the reference alone changes
        assert plant.json("ca", "migrate", "ecc-issuing", "--to", plant.uri(token), "--yes")["certificate"] == certificate
    assert plant.stop() == 0
    # The first token is not needed for it any more: its key is destroyed there.
    command[-1] = "--delete-object"
    subprocess.run([*command, "--type", "privkey", "--label", "ecc-issuing"], check=True, capture_output=True)
    plant.start()
    plant.enrolled("ecc-devices", "M-2")
    files = authorities(plant)
    for device in ("M-1", "M-2"):
        assert "CN = ecc-issuing" in verified(plant, device, files)
        assert ocsp(plant, device, "ecc-issuing", files) == "good"

    assert "does not leave" in plant.run("ca", "migrate", "ecc-issuing", "--to", plant.uri("ironroot"), "--yes", expect=4).stderr
    actions = [(entry["action"], entry["subject"]) for entry in plant.json("audit", "tail", "-n", "100")]
    assert ("authority.moved", "ecc-issuing") in actions
    assert plant.stop() == 0


def test_from_one_simulator_to_another_by_backup(own_plant: Plant) -> None:
    """Keys that never leave in the clear, born in the first: the second gets them by shares, and is used as any PKCS#11 token is."""
    need("openssl")
    plant = own_plant
    plant.start()
    shares, backup = plant.home / "shares", plant.home / "move.backup"
    plant.run("hsm", "backup", "--to", str(backup), "--shares", "2/3", "--shares-to", str(shares))
    with standing("p11-kit") as other:
        assert isinstance(other, SimulatorToken)
        chosen = [word for number in (1, 3) for word in ("--share", str(shares / f"share-{number}.txt"))]
        command = [sys.executable, "-m", "ironroot.cli.main", "hsm", "restore", str(backup), *chosen, "--home", str(other.folder)]
        subprocess.run(command, check=True, capture_output=True)
        for authority in ("ecc-root", "sm2-root", "sm2-issuing"):
            assert plant.json("ca", "migrate", authority, "--to", str(other.uri()), "--dry-run")["way"] == "there"
            moved = plant.json("ca", "migrate", authority, "--to", str(other.uri()), "--yes")
            assert moved["key"] == str(other.uri().key(authority))
        plant.until(lambda: plant.status("/readyz") == 200, "the service")
        plant.enrolled("sm2-devices", "B-1")
        other.stop()
        plant.until(lambda: plant.status("/readyz") == 503, "the service to miss the second simulator")
        plant.enrolled("ecc-devices", "B-2")  # its authority is still in the first
        assert plant.stop() == 0
