"""The disk is full: 503 and when to come back, no signature without a record; with room again it goes on by itself."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import oracles
import pytest
from est_client import Door, p256_request, trust
from programs import missing

from hsm_sim.client import Client


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 4 MB in the place of a folder, with what was in it."""
    kept = folder.with_name(folder.name + ".kept")
    folder.rename(kept)
    folder.mkdir(mode=0o700)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs", folder], capture_output=True, text=True, check=False)
    if done.returncode:
        missing(f"the right to mount a small file system (mount: {done.stderr.strip()})")
    try:
        for file in kept.iterdir():
            (shutil.copytree if file.is_dir() else shutil.copy2)(file, folder / file.name)
        yield folder
        shutil.copytree(folder, kept, dirs_exist_ok=True, ignore=lambda *_: [file.name for file in folder.iterdir() if file.is_socket()])
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
        shutil.rmtree(folder, ignore_errors=True)
        kept.rename(folder)


def fill(folder: Path) -> Path:
    """Takes all the room there is; the file to remove for having it back."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    assert os.statvfs(folder).f_bavail == 0
    return filler


def use_up(client: Client) -> None:
    """Has the HSM log signatures until the room that its log had taken beforehand is used up."""
    for count in (1024, 32, 1):
        digests = [bytes(32)] * count
        while all(type(outcome) is bytes for outcome in client.call("sign_many", key="ecc-root", purpose="test", data=digests)):
            continue


@pytest.mark.parametrize("room", ["db", "hsm"])
def test_no_room(own_plant, room) -> None:
    plant = own_plant
    with small_disk(plant.home / room) as folder:
        plant.start()
        context = trust(plant)
        serials = [f"device-{number}" for number in range(40)]
        tokens = plant.tokens("ecc-devices", *serials)
        requests = {serial: p256_request(serial) for serial in serials}
        received: list[bytes] = []

        def enroll(serial: str) -> int:
            with Door(plant, context, timeout=30) as door:
                reply = door.enroll("ecc-devices", serial, tokens[serial], requests[serial])
            if reply.status == 200:
                received.append(reply.certificate)
            else:
                assert (reply.status, int(reply.headers["retry-after"]) > 0) == (503, True), reply
            return reply.status

        assert enroll(serials[0]) == 200
        with Client(plant.home / "hsm" / "native.sock") as client:
            client.call("login", pin=(plant.home / "hsm" / "pin").read_text().strip())
            filler = fill(folder)
            if room == "hsm":
                use_up(client)
        # What was reserved before may still take a few.
        statuses = [enroll(serial) for serial in serials[1:]]
        assert statuses[-5:] == [503] * 5, statuses
        assert oracles.unrecorded(plant.home) == []
        assert plant.status("/livez") == 200
        assert plant.get("/crl/ecc-issuing.crl")
        with Door(plant, context) as door:
            assert door.ask("GET", "/.well-known/est/ecc-devices/cacerts").status == 200
            assert door.enroll("ecc-devices", serials[1], "wrong.token", requests[serials[1]]).status == 401
        worker = plant.children("worker")
        filler.unlink()
        refused = [serial for serial, status in zip(serials[1:], statuses, strict=True) if status == 503]
        for serial in refused:
            plant.until(lambda serial=serial: enroll(serial) == 200, f"the certificate of {serial}")
        assert plant.children("worker") == worker  # nobody had to start it again
        recorded = oracles.issued(plant.home, "ecc-devices")
        assert {serial: len(recorded.get(serial, ())) for serial in serials} == dict.fromkeys(serials, 1)
        oracles.check(plant, received)
        assert plant.stop() == 0
