"""A fleet whose devices an administrator lets in one by one, through the real service and commands."""

from __future__ import annotations

import pytest


@pytest.fixture
def manual(own_plant):
    file = own_plant.home / "policies" / "fleets" / "ecc-devices.toml"
    file.write_text(file.read_text().replace('approval = "automatic"', 'approval = "manual"'))
    own_plant.start()
    yield own_plant
    assert own_plant.stop() == 0


def up(plant, serial: str, state: str, *, expect: int):
    return plant.device(
        *("up", "--url", plant.https_url, "--fleet", "ecc-devices", "--serial", serial),
        *("--token-file", str(plant.devices / f"{serial}.token"), "--state", str(plant.devices / state)),
        expect=expect,
    )


def test_pending_approved_enrolled_and_denied(manual):
    for serial in ("gate-1", "gate-2"):
        (manual.devices / f"{serial}.token").write_text(manual.invite("ecc-devices", serial)["token"])
        up(manual, serial, serial, expect=6)
    waiting = manual.json("device", "list", "--pending")
    assert sorted(one["device"] for one in waiting) == ["gate-1", "gate-2"]
    assert manual.json("cert", "list", "--fleet", "ecc-devices") == []

    manual.run("device", "approve", "gate-1", "--dry-run")
    assert len(manual.json("device", "list", "--pending")) == 2
    assert [one["decision"] for one in manual.json("device", "approve", "gate-1")] == ["approved"]
    up(manual, "gate-1", "gate-1", expect=0)
    assert manual.json("cert", "show", "gate-1")["status"] == "good"

    manual.run("device", "deny", "gate-2", expect=2)  # nobody to confirm
    manual.run("device", "deny", "gate-2", "--yes")
    up(manual, "gate-2", "gate-2", expect=4)
    manual.run("device", "approve", "gate-2", expect=3)
    manual.run("device", "approve", "no-such", expect=3)


def test_an_approval_is_for_the_key_that_was_shown(manual):
    """Somebody who copied the token asks for a key of his own in the same name: the administrator has to say which is the device's."""
    (manual.devices / "gate-3.token").write_text(manual.invite("ecc-devices", "gate-3")["token"])
    up(manual, "gate-3", "thief", expect=6)
    (thief,) = manual.json("device", "list", "--pending")
    up(manual, "gate-3", "device", expect=6)
    (device,) = [one for one in manual.json("device", "list", "--pending") if one["spki_sha256"] != thief["spki_sha256"]]
    manual.run("device", "approve", "gate-3", expect=5)
    manual.run("device", "approve", "gate-3", "--key", device["spki_sha256"][:12])
    up(manual, "gate-3", "thief", expect=6)
    up(manual, "gate-3", "device", expect=0)
    (record,) = manual.json("device", "show", "gate-3")
    assert record["status"] == "good"
