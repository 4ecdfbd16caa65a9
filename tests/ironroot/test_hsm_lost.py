"""The HSM is lost, with all its files; a new one gets the keys from a backup, and the plant goes on as docs/operations.md says."""

from __future__ import annotations

import shutil
import subprocess
import sys


def test_a_plant_goes_on_with_a_new_hsm_and_the_keys_of_the_backup(own_plant, tmp_path) -> None:
    plant = own_plant
    plant.start()
    plant.enrolled("sm2-devices", "before")
    root = plant.json("ca", "show", "sm2-root")
    shares, backup = tmp_path / "shares", tmp_path / "hsm.backup"
    plant.run("hsm", "backup", "--to", str(backup), "--shares", "2/3", "--shares-to", str(shares))
    assert plant.stop() == 0
    shutil.rmtree(plant.home / "hsm")

    plant.run("hsm", "init")
    served = subprocess.Popen(
        [sys.executable, "-m", "ironroot.cli.main", "hsm", "serve", "--home", str(plant.home)], stdout=subprocess.PIPE, text=True
    )
    assert served.stdout is not None
    assert served.stdout.readline() == "ready\n"
    plant.run("hsm", "restore", str(backup), "--share", str(shares / "share-3.txt"), "--share", str(shares / "share-1.txt"))
    served.terminate()
    assert served.wait(20) == 0
    served.stdout.close()

    plant.start()
    assert plant.json("ca", "show", "sm2-root") == root
    plant.enrolled("sm2-devices", "after")
    for serial in ("before", "after"):
        (revoked,) = plant.json("cert", "revoke", serial, "--reason", "keyCompromise", "--yes", "--wait")
        assert revoked["status"] == "revoked"
    plant.run("audit", "verify")
    plant.run("hsm", "audit", "verify")
    assert plant.stop() == 0
