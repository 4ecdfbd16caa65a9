"""Requests with something changed in them, over HTTPS, each with a good token: refused with a sentence, or granted if nothing was hurt."""

from __future__ import annotations

import base64
import random
from collections import Counter

import oracles
import pytest
from cryptography import x509
from est_client import Door, p256_request, sm2_request, trust

FAMILIES = {"ecc": p256_request, "sm2": sm2_request}
ODD = (0x00, 0x01, 0x02, 0x03, 0x05, 0x06, 0x0C, 0x13, 0x30, 0x31, 0x7F, 0x80, 0x81, 0x84, 0xA0, 0xFF)


def changed(octets: bytes, chance: random.Random) -> bytes:
    """Near the given octets: flipped, replaced, cut, doubled or swapped in one to three places."""
    data = bytearray(octets)
    for _ in range(chance.choice((1, 1, 2, 3))):
        at, length = chance.randrange(len(data)), chance.randrange(1, 24)
        match chance.randrange(6):
            case 0:
                data[at] ^= 1 << chance.randrange(8)
            case 1:
                data[at] = chance.choice(ODD)
            case 2:
                del data[at : at + length]
            case 3:
                data[at:at] = data[at : at + length]
            case 4:
                data[at:at] = chance.randbytes(length)
            case 5:
                other = chance.randrange(len(data))
                data[at : at + length], data[other : other + length] = data[other : other + length], data[at : at + length]
        data = data or bytearray(b"0")
    return bytes(data)


@pytest.mark.parametrize("family", FAMILIES)
def test_three_hundred_changed_requests(plant, family) -> None:
    fleet, chance = f"{family}-devices", random.Random(f"{family} over HTTPS")
    serials = [f"changed-{family}-{number}" for number in range(40)]
    tokens = plant.tokens(fleet, *serials)
    workers, received, count = plant.children("worker"), [], Counter()
    serial = serials.pop()
    csr = FAMILIES[family](serial)
    with Door(plant, trust(plant)) as door:
        for _ in range(300):
            body = changed(csr, chance)
            body = (
                base64.b64encode(body)
                if chance.random() < 0.5
                else changed(base64.b64encode(csr), chance)
                if chance.random() < 0.2
                else body
            )
            reply = door.enroll(fleet, serial, tokens[serial], body)
            count[reply.status] += 1
            if reply.status == 200:
                received.append(reply.certificate)
                issued = x509.load_der_x509_certificate(reply.certificate)
                assert issued.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value == serial
                serial = serials.pop()
                csr = FAMILIES[family](serial)
            else:
                assert reply.headers["content-type"].startswith("text/plain")
                assert 10 < len(reply.body) < 600
                assert reply.body.count(b"\n") == 1
        assert set(count) <= {200, 400, 403, 413}, count
        assert count[400] > 200
        honest = door.enroll(fleet, serial, tokens[serial], csr)
        assert honest.status == 200  # none of it used the token up
    assert plant.children("worker") == workers
    oracles.check(plant, [*received, honest.certificate])
