"""Hostile requests at the EST door: whatever comes, the answer is 4xx with a sentence, nothing is signed, and the next device is served."""

from __future__ import annotations

import asyncio
import base64
import gzip
import random
from unittest import mock

import pytest
from aiohttp import HttpVersion11, StreamReader, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_parser import RawRequestMessage
from aiohttp.test_utils import TestServer
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from enroll import est
from pkix import der
from pkix.algorithms import SIGNATURES, KeyKind
from pkix.certificate import assemble, split
from pkix.cms import sign_data
from pkix.csr import build_csr
from pkix.name import name
from pkix.privatekey import PrivateKey, generate

ENROLL = "/.well-known/est/{}/simpleenroll"
SIGNED = {"Content-Type": "application/pkcs7-mime; smime-type=signed-data"}
NAMES = ("dns:press-7.plant.example", "ip:10.0.0.7", "uri:urn:a:b", "email:a@plant.example")


def mutated(octets: bytes, chance: random.Random) -> bytes:
    """Other octets, near the given ones."""
    data = bytearray(octets)
    while True:
        for _ in range(chance.choice((1, 1, 1, 2, 4))):
            at = chance.randrange(len(data))
            match chance.randrange(7):
                case 0:
                    data[at] ^= 1 << chance.randrange(8)
                case 1:
                    data[at] = chance.choice((0x00, 0x01, 0x30, 0x31, 0x7F, 0x80, 0x84, 0x89, 0xFF))
                case 2:
                    del data[at : at + chance.randrange(1, 9)]
                case 3:
                    data[at:at] = chance.randbytes(chance.randrange(1, 9))
                case 4:
                    data[at:] = data[at:][: chance.randrange(len(data))]
                case 5:
                    start = chance.randrange(len(data))
                    data[at:at] = data[start : start + chance.randrange(1, 64)]
                case 6:
                    data += chance.randbytes(chance.randrange(1, 9))
            data = data or bytearray(1)
        if bytes(data) != octets:
            return bytes(data)


def resigned(csr: bytes, key: PrivateKey, chance: random.Random) -> bytes:
    """A CSR with something changed in it, and a signature that is right for that: what a hostile but able device can make."""
    info, _, _ = split(csr)
    changed = mutated(info, chance)
    return assemble(changed, SIGNATURES[key.kind], key.sign(changed))


class Posted(web.Request):
    """A request as aiohttp would hand it to the door, without a socket."""

    def __init__(self, path: str, body: bytes, headers: dict[str, str]) -> None:
        loop = asyncio.get_running_loop()
        fields = CIMultiDictProxy(CIMultiDict(headers, **{"Content-Length": str(len(body))}))
        message = RawRequestMessage("POST", path, HttpVersion11, fields, (), False, None, False, False, URL(path, encoded=True))
        payload = StreamReader(BaseProtocol(loop), 2**16, loop=loop)
        payload.feed_data(body)
        payload.feed_eof()
        super().__init__(message, payload, mock.Mock(transport=None), mock.Mock(), mock.Mock(), loop)


def dressed(octets: bytes, label: str, chance: random.Random) -> bytes:
    """In one of the layouts in which a request may come."""
    match chance.randrange(3):
        case 0:
            return octets
        case 1:
            return base64.b64encode(octets)
        case _:
            return b"-----BEGIN " + label.encode() + b"-----\n" + base64.encodebytes(octets) + b"-----END " + label.encode() + b"-----\n"


@pytest.mark.parametrize(("fleet", "kind", "count"), [("ecc-devices", KeyKind.P_256, 5000), ("sm2-devices", KeyKind.SM2, 5000)])
def test_ten_thousand_mutated_requests_are_refused_and_sign_nothing(opened, fleet: str, kind: KeyKind, count: int) -> None:
    chance = random.Random(f"{fleet} 1")

    async def scene() -> None:
        csr = build_csr(generate(kind), name(("CN", "press-7")), NAMES)
        async with opened() as world:
            headers = world.basic("press-7", await world.invite(fleet, "press-7"))
            statuses: dict[int, int] = {}
            for _ in range(count):
                body = dressed(mutated(csr, chance), "CERTIFICATE REQUEST", chance)
                answer = await world.door.handle(Posted(ENROLL.format(fleet), body, headers))
                statuses[answer.status] = statuses.get(answer.status, 0) + 1
                assert answer.text
            assert set(statuses) <= {400, 403}, statuses
            assert world.signer.signed == 0
            honest = await world.door.handle(Posted(ENROLL.format(fleet), csr, headers))
            assert honest.status == 200

    asyncio.run(scene())


@pytest.mark.parametrize(("fleet", "kind", "count"), [("ecc-devices", KeyKind.P_256, 2000), ("sm2-devices", KeyKind.SM2, 500)])
def test_requests_changed_by_the_holder_of_the_key(opened, fleet: str, kind: KeyKind, count: int) -> None:
    """The signature is right, so everything behind proof of possession sees them. Some are good, none is our fault."""
    chance = random.Random(f"{fleet} 2")

    async def scene() -> None:
        key = generate(kind)
        csr = build_csr(key, name(("CN", "press-7"), ("O", "Plant")), NAMES)
        async with opened() as world:
            headers = world.basic("press-7", await world.invite(fleet, "press-7"))
            granted = 0
            for _ in range(count):
                answer = await world.door.handle(Posted(ENROLL.format(fleet), resigned(csr, key, chance), headers))
                assert answer.status in (200, 400, 403), answer.text
                if answer.status == 200:
                    granted += 1
                    assert isinstance(answer.body, bytes)
                    assert world.certificate(answer.body).subject.get("CN") == ["press-7"]
                    headers = world.basic("press-7", await world.invite(fleet, "press-7"))
            assert granted < count / 2

    asyncio.run(scene())


def test_mutated_signed_messages(opened) -> None:
    chance = random.Random("cms")

    async def scene() -> None:
        key = generate(KeyKind.P_256)
        async with opened() as world:
            token = await world.invite("ecc-devices", "press-7")
            first = await world.door.handle(Posted(ENROLL.format("ecc-devices"), world.csr(key, "press-7"), world.basic("press-7", token)))
            assert isinstance(first.body, bytes)
            current = world.certificate(first.body)
            message = sign_data(build_csr(generate(KeyKind.P_256), name()), key, current, now=world.clock.now())
            signed = world.signer.signed
            for _ in range(2000):
                body = dressed(mutated(message, chance), "CMS", chance)
                answer = await world.door.handle(Posted("/.well-known/est/ecc-devices/simplereenroll", body, SIGNED))
                # A changed unsigned part (a version, a digest listed, a certificate beside) may leave the message what it was.
                assert answer.status in (200, 400, 401, 403), answer.text
            assert world.signer.signed - signed <= 1, "what was recorded and changed where it is not signed is the same request"

    asyncio.run(scene())


def test_a_few_hundred_over_a_real_connection(opened) -> None:
    chance = random.Random("http")

    async def scene() -> None:
        csr = build_csr(generate(KeyKind.P_256), name(("CN", "press-7")), NAMES)
        async with opened() as world, world.client() as client:
            headers = world.basic("press-7", await world.invite("ecc-devices", "press-7"))
            for _ in range(300):
                answer = await client.post(ENROLL.format("ecc-devices"), data=mutated(csr, chance), headers=headers)
                assert answer.status in (400, 403)
                assert (await answer.text()).endswith("\n")
            assert (await client.post(ENROLL.format("ecc-devices"), data=csr, headers=headers)).status == 200

    asyncio.run(scene())


def nested(depth: int) -> bytes:
    body = b"\x05\x00"
    for _ in range(depth):
        body = der.sequence(body)
    return body


@pytest.mark.parametrize(
    "body",
    [
        b"\x30\x80\x02\x01\x00\x00\x00",
        b"\x30\x84\xff\xff\xff\xff",
        b"\x30\x00",
        b"0",
        b"\x1f" * 1000,
        nested(3000),
        der.sequence(b"\x06\x82\x3a\x98" + b"\x81" * 14999 + b"\x01"),
        der.sequence(der.sequence(*[der.null()] * 7000)),
        b"A" * 16384,
        b"=" * 100,
        b"MII" + b"\n" * 16000,
        b"-----BEGIN CERTIFICATE REQUEST-----" * 400,
        b'{"csr":"\xff"}',
    ],
    ids=range(13),
)
def test_shapes_that_parsers_choke_on(opened, body: bytes) -> None:
    async def scene() -> None:
        async with opened() as world:
            headers = world.basic("press-7", await world.invite("ecc-devices", "press-7"))
            for extra in ({}, SIGNED):
                answer = await world.door.handle(Posted(ENROLL.format("ecc-devices"), body, headers | extra))
                assert (answer.status, answer.content_type) == (400, "text/plain")

    asyncio.run(scene())


def test_bodies_of_the_limit_and_one_octet_more(opened) -> None:
    async def scene() -> None:
        async with opened() as world, world.client() as client:
            headers = world.basic("press-7", await world.invite("ecc-devices", "press-7"))
            for limit, extra in ((est.MAX_REQUEST, {}), (est.MAX_SIGNED_REQUEST, SIGNED)):
                path = ENROLL.format("ecc-devices")
                assert (await client.post(path, data=b"A" * limit, headers=headers | extra)).status == 400
                over = await client.post(path, data=b"A" * (limit + 1), headers=headers | extra)
                assert (over.status, str(limit) in await over.text()) == (413, True)

                async def chunks(size: int = limit):
                    for _ in range(size // 1024 + 2):
                        yield b"A" * 1024

                assert (await client.post(path, data=chunks(), headers=headers | extra)).status == 413
            csr = build_csr(generate(KeyKind.P_256), name(("CN", "press-7")))
            assert (await client.post(ENROLL.format("ecc-devices"), data=csr, headers=headers)).status == 200

    asyncio.run(scene())


def test_a_compressed_body_is_not_unpacked(opened) -> None:
    async def scene() -> None:
        async with opened() as world, world.client() as client:
            headers = {**world.basic("press-7", await world.invite("ecc-devices", "press-7")), "Content-Encoding": "gzip"}
            bomb = gzip.compress(bytes(50_000_000))[:16000]
            answer = await client.post(ENROLL.format("ecc-devices"), data=bomb, headers=headers)
            assert (answer.status, "compressed" in await answer.text()) == (400, True)

    asyncio.run(scene())


async def raw(server: TestServer, octets: bytes) -> bytes:
    """Sends octets as they are and reads until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(octets)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


@pytest.mark.parametrize(
    ("head", "statuses"),
    [
        (b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", (400,)),
        (b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nAAAAA", (400,)),
        (b"Content-Length: -1\r\n\r\n", (400,)),
        (b"Transfer-Encoding: chunked\r\n\r\nZZZ\r\n", (400,)),
        (b"Content-Length: 4\r\n\r\nAA", (400, 408)),
        (b"Transfer-Encoding: chunked\r\n\r\n4\r\nMIIB\r\n", (400, 408)),
    ],
    ids=["length and chunked", "two lengths", "negative", "no chunk size", "body never ends", "chunks never end"],
)
def test_http_that_is_none(opened, head: bytes, statuses: tuple[int, ...]) -> None:
    async def scene() -> None:
        async with opened(body_seconds=0.2) as world:
            server = TestServer(world.app)
            await server.start_server(lingering_time=0.1)
            try:
                credential = world.basic("press-7", await world.invite("ecc-devices", "press-7"))["Authorization"].encode()
                start = b"POST " + ENROLL.format("ecc-devices").encode() + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
                answer = await raw(server, start + b"Authorization: " + credential + b"\r\n" + head)
                assert int(answer.split()[1]) in statuses
                assert world.signer.signed == 0
            finally:
                await server.close()

    asyncio.run(scene())


def test_slow_senders_do_not_keep_the_others_waiting(opened) -> None:
    async def scene() -> None:
        async with opened(body_seconds=0.5) as world, world.client() as client:
            server = client.server
            credential = world.basic("press-7", await world.invite("ecc-devices", "press-7"))["Authorization"].encode()
            start = b"POST " + ENROLL.format("ecc-devices").encode() + b" HTTP/1.1\r\nHost: a\r\nAuthorization: " + credential
            slow = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(200)]
            for _, writer in slow:
                writer.write(start + b"\r\nContent-Length: 500\r\n\r\nMIIB")
            csr = build_csr(generate(KeyKind.P_256), name(("CN", "press-7")))
            headers = world.basic("press-7", await world.invite("ecc-devices", "press-7"))
            assert (await client.post(ENROLL.format("ecc-devices"), data=csr, headers=headers)).status == 200
            for reader, writer in slow:
                assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
                writer.close()

    asyncio.run(scene())
