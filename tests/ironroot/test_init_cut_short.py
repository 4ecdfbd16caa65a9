"""``ironroot init`` killed in the middle: run once more, it goes on with the keys that were born, and the authorities are whole."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from plant import Plant, free_ports


@pytest.mark.parametrize("point", ["issue.signed", "crl.signed"])
def test_init_once_more_after_a_kill(point):
    home = Path(tempfile.mkdtemp(prefix="ir", dir="/tmp"))
    plant = Plant(home, *free_ports(2))
    ports = ("--http-port", str(plant.http), "--https-port", str(plant.https))
    try:
        plant.run("init", *ports, expect=-9, env={"IRONROOT_FAILPOINT": f"{point}:kill"})
        plant.run("init", *ports)
        listed = {one["id"]: one for one in plant.json("ca", "list")}
        assert set(listed) == {"ecc-root", "ecc-issuing", "sm2-root", "sm2-issuing"}
        (issuing,) = [one for one in plant.json("cert", "list") if one["device"] == "ecc-issuing" and one["status"] == "good"]
        assert issuing["sha256"] == listed["ecc-issuing"]["sha256"]
        plant.run("audit", "verify")
    finally:
        shutil.rmtree(home, ignore_errors=True)
