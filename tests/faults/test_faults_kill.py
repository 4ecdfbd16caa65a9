"""kill -9 at random while devices enrol: everyone gets a certificate in the end, one each, and no signature is without a record."""

from __future__ import annotations

import http.client
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import oracles
from est_client import Door, p256_request, sm2_request, trust
from plant import Plant

PACE = 0.02  # seconds between two devices of a thread: so that kills, not the load, fill the time
LOST = {"RemoteDisconnected", "ConnectionRefusedError", "ConnectionResetError", "SSLEOFError", "BrokenPipeError"}
REQUESTS = {"ecc-devices": p256_request, "sm2-devices": sm2_request}


class Devices:
    """Devices that enrol one after the other, in one thread; each repeats its request until it has its certificate."""

    def __init__(self, plant, fleet: str, names: Iterator[str], tokens: dict[str, str], stop: threading.Event) -> None:
        self.received: dict[str, bytes] = {}
        self.statuses: Counter[int | str] = Counter()
        self.failure: BaseException | None = None
        self._plant, self._fleet, self._names, self._tokens, self._stop = plant, fleet, names, tokens, stop
        self._context = trust(plant)
        self._door: Door | None = None
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            while not self._stop.wait(PACE):
                serial = next(self._names)
                self.received[serial] = self._certificate(serial, REQUESTS[self._fleet](serial))
        except BaseException as error:  # whatever it is, the test shows it
            self.failure = error
        finally:
            self._hang_up()

    def _hang_up(self) -> None:
        if self._door is not None:
            self._door.connection.close()
            self._door = None

    def _certificate(self, serial: str, csr: bytes) -> bytes:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                self._door = self._door or Door(self._plant, self._context, timeout=30)
                reply = self._door.enroll(self._fleet, serial, self._tokens[serial], csr)
            except (OSError, http.client.HTTPException) as error:
                self.statuses[type(error).__name__] += 1
                self._hang_up()
                time.sleep(0.02)
                continue
            self.statuses[reply.status] += 1
            if reply.status == 200:
                return reply.certificate
            assert reply.status in (409, 503), reply
            assert int(reply.headers["retry-after"]) >= 0
            time.sleep(0.1)
        raise AssertionError(f"{serial} did not get its certificate in a minute")


@dataclass
class Crowd:
    """Six devices of both families at work, at an installation that is hurt meanwhile."""

    plant: Plant
    devices: list[Devices]
    stop: threading.Event

    @classmethod
    def at(cls, plant: Plant) -> Crowd:
        stop, devices = threading.Event(), []
        for fleet, count in (("ecc-devices", 6000), ("sm2-devices", 4000)):
            tokens = plant.tokens(fleet, *(f"{fleet}.{number}" for number in range(count)))
            names = iter(tokens)
            devices += [Devices(plant, fleet, names, tokens, stop) for _ in range(3)]
        return cls(plant, devices, stop)

    def __enter__(self) -> Crowd:
        for one in self.devices:
            one.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """All get what they asked for last; then everybody has one certificate, and every oracle holds."""
        self.stop.set()
        for one in self.devices:
            one.thread.join()
        assert [one.failure for one in self.devices if one.failure] == []
        seen = set().union(*(one.statuses for one in self.devices))
        assert seen - {200, 409, 503} <= LOST
        self.plant.wait_ready()
        received: dict[str, bytes] = {}
        for one in self.devices:
            received |= one.received
        recorded = oracles.issued(self.plant.home, "ecc-devices") | oracles.issued(self.plant.home, "sm2-devices")
        assert {serial: [der] for serial, der in received.items()} == recorded  # nobody has two, nobody has none
        oracles.check(self.plant, received.values())

    def goes_on(self) -> None:
        """Waits for two certificates more for everybody."""
        before = {one: len(one.received) for one in self.devices}
        self.plant.until(lambda: all(one.failure or len(one.received) > before[one] + 1 for one in self.devices), "certificates", 60)


def test_kill_9_at_random_under_load(own_plant) -> None:
    plant, chance = own_plant, random.Random(1)
    plant.start("--workers", "2")
    killed: Counter[str] = Counter()
    with Crowd.at(plant) as crowd:
        end = time.monotonic() + 8
        while time.monotonic() < end:
            time.sleep(chance.uniform(0.2, 0.8))  # when it hits is the fault, not a wait for something
            role = chance.choice(("worker", "worker", "worker", "worker", "hsm", "scheduler"))
            running = plant.children(role)
            if running:
                os.kill(chance.choice(running), signal.SIGKILL)
                killed[role] += 1
        crowd.goes_on()
    assert killed["worker"] > 3
    assert plant.stop() == 0


def test_everything_is_killed_at_once_under_load(own_plant) -> None:
    """As when the power goes, but for the disk; then it is started again."""
    plant = own_plant
    plant.start("--workers", "2")
    with Crowd.at(plant) as crowd:
        for _ in range(3):
            crowd.goes_on()
            processes = [plant.service.pid, *(process for role in ("worker", "scheduler", "hsm") for process in plant.children(role))]
            assert len(processes) == 5
            for process in processes:
                os.kill(process, signal.SIGKILL)
            plant.service.wait()
            plant.start("--workers", "2")
    assert plant.stop() == 0
