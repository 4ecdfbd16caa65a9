"""Many at once with one token: one certificate comes of it, whoever is first, and all repetitions of one request get that one."""

from __future__ import annotations

import http.client
import threading
from collections import Counter
from collections.abc import Callable, Sequence

import oracles
import pytest
from est_client import Door, Reply, p256_request, sm2_request, trust

FAMILIES = {"ecc": p256_request, "sm2": sm2_request}


def at_once(plant, calls: Sequence[Callable[[Door], Reply]]) -> list[Reply]:
    """The answers to all calls, each on a connection of its own, let go in the same moment. Nobody is left without an answer."""
    context, together = trust(plant), threading.Barrier(len(calls))
    answers: list[Reply] = []
    lost: list[BaseException] = []

    def race(call: Callable[[Door], Reply]) -> None:
        try:
            with Door(plant, context) as door:
                together.wait(60)
                answers.append(call(door))
        except (OSError, http.client.HTTPException, threading.BrokenBarrierError) as error:
            lost.append(error)
            together.abort()

    threads = [threading.Thread(target=race, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lost == []
    return answers


@pytest.mark.parametrize("family", FAMILIES)
def test_a_hundred_with_one_token(plant, family) -> None:
    fleet, serial = f"{family}-devices", f"raced-{family}"
    token = plant.tokens(fleet, serial)[serial]
    requests = [FAMILIES[family](serial) for _ in range(100)]
    answers = at_once(plant, [lambda door, csr=csr: door.enroll(fleet, serial, token, csr) for csr in requests])
    count = Counter(answer.status for answer in answers)
    assert count.total() == 100
    assert count[200] == 1
    assert set(count) <= {200, 401, 409}, count
    received = [answer.certificate for answer in answers if answer.status == 200]
    assert oracles.issued(plant.home, fleet)[serial] == received
    for answer in answers:
        assert answer.status != 409 or int(answer.headers["retry-after"]) > 0
    oracles.check(plant, received)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_request_many_times(plant, family) -> None:
    fleet, serial = f"{family}-devices", f"echo-{family}"
    token, csr = plant.tokens(fleet, serial)[serial], FAMILIES[family](serial)
    answers = at_once(plant, [lambda door: door.enroll(fleet, serial, token, csr)] * 40)
    assert {answer.status for answer in answers} <= {200, 409}
    received = {answer.certificate for answer in answers if answer.status == 200}
    assert len(received) == 1
    with Door(plant, trust(plant)) as door:
        assert {door.enroll(fleet, serial, token, csr).certificate} == received
    assert oracles.issued(plant.home, fleet)[serial] == list(received)
    oracles.check(plant, received)


def test_many_devices_at_once_each_get_their_own(plant) -> None:
    serials = [f"crowd-{number}" for number in range(60)]
    tokens = plant.tokens("ecc-devices", *serials)
    requests = {serial: p256_request(serial) for serial in serials}
    answers = at_once(
        plant, [lambda door, serial=serial: door.enroll("ecc-devices", serial, tokens[serial], requests[serial]) for serial in serials]
    )
    assert [answer.status for answer in answers] == [200] * 60
    recorded = oracles.issued(plant.home, "ecc-devices")
    assert {answer.certificate for answer in answers} == {der for serial in serials for der in recorded[serial]}
    for serial in serials:
        (der,) = recorded[serial]
        assert serial.encode() in der
    oracles.check(plant, [answer.certificate for answer in answers])
