"""Hostile octets at both doors: an answer in the 400s or the end of the connection, and the next client is served by the same process."""

from __future__ import annotations

import contextlib
import re
import select
import socket
import time

import oracles
import pytest
from est_client import Door, basic, p256_request, trust

HOST = b"Host: 127.0.0.1\r\nConnection: close\r\n"
ENROLL = b"POST /.well-known/est/ecc-devices/simpleenroll HTTP/1.1\r\n" + HOST


def get(path: bytes, *fields: bytes) -> bytes:
    return b"GET " + path + b" HTTP/1.1\r\n" + HOST + b"".join(field + b"\r\n" for field in fields) + b"\r\n"


def post(*fields: bytes, body: bytes = b"", path: bytes = b"/ocsp") -> bytes:
    return b"POST " + path + b" HTTP/1.1\r\n" + HOST + b"".join(field + b"\r\n" for field in fields) + b"\r\n" + body


@pytest.fixture(autouse=True)
def unharmed(plant):
    """Whatever a test does, the same processes go on afterwards, ready, and no bug is in their log."""
    before = plant.children("worker")
    yield
    plant.wait_ready()
    assert plant.children("worker") == before
    assert oracles.bugs(plant.home) == []


class Wire:
    """A connection on which nothing is what it should be."""

    def __init__(self, plant, *, tls: bool = False) -> None:
        self.socket = socket.create_connection(("127.0.0.1", plant.https if tls else plant.http), timeout=30)
        if tls:
            self.socket = trust(plant).wrap_socket(self.socket, server_hostname="127.0.0.1")

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, octets: bytes) -> None:
        self.socket.sendall(octets)

    def rest(self) -> bytes:
        """All that comes until the other side closes."""
        answer = b""
        try:
            while piece := self.socket.recv(65536):
                answer += piece
        except ConnectionError:
            pass
        return answer


def exchange(plant, octets: bytes, *, tls: bool = False) -> bytes:
    """Sends octets and reads until the server closes, which every request here asks for."""
    with Wire(plant, tls=tls) as wire:
        with contextlib.suppress(ConnectionError):  # it may close before it has read all
            wire.send(octets)
        return wire.rest()


def statuses(answer: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"^HTTP/\d\.\d (\d{3}) ", answer, re.M)]


REFUSED = {
    # Two messages in one, as some proxy between may see it (RFC 9112 6.1, 11.2).
    "length and chunked": post(b"Content-Length: 4", b"Transfer-Encoding: chunked", body=b"0\r\n\r\nGET /livez HTTP/1.1\r\n\r\n"),
    "two lengths": post(b"Content-Length: 0", b"Content-Length: 40", body=get(b"/livez")),
    "length with a sign": post(b"Content-Length: +4", body=b"AAAA"),
    "length below zero": post(b"Content-Length: -4", body=b"AAAA"),
    "length in hex": post(b"Content-Length: 0x4", body=b"AAAA"),
    "length of twenty digits": post(b"Content-Length: 99999999999999999999", body=b"AAAA"),
    "chunked, misspelt": post(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n"),
    "chunked before gzip": post(b"Transfer-Encoding: chunked, gzip", body=b"0\r\n\r\n"),
    "chunk of no size": post(b"Transfer-Encoding: chunked", body=b"ZZ\r\nAAAA\r\n0\r\n\r\n"),
    "chunk below zero": post(b"Transfer-Encoding: chunked", body=b"-4\r\nAAAA\r\n0\r\n\r\n"),
    "chunk longer than memory": post(b"Transfer-Encoding: chunked", body=b"fffffffffffffffff\r\nAAAA\r\n"),
    "chunk that is longer than it says": post(b"Transfer-Encoding: chunked", body=b"1\r\nAAAA\r\n0\r\n\r\n"),
    "blank before the colon": get(b"/livez", b"Content-Length : 4"),
    "folded field": get(b"/livez", b"X-One: a", b" b"),
    "NUL in a field": get(b"/livez", b"X-One: a\0b"),
    "line feed alone in a field": get(b"/livez", b"X-One: a\nX-Two: b\r"),
    "name of a field that is none": get(b"/livez", b"X(One): a"),
    "no colon": get(b"/livez", b"colonless"),
    "NUL in the path": get(b"/livez\0"),
    "blank in the path": get(b"/liv ez"),
    "control character in the method": b"GE\x01T /livez HTTP/1.1\r\n" + HOST + b"\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/9.9": b"GET /livez HTTP/9.9\r\n" + HOST + b"\r\n",
    "TLS at the plain door": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(512),
    "noise": bytes(range(256)) * 64,
    "a field of 64 KiB": get(b"/livez", b"X-One: " + b"a" * 65536),
    "a path of 64 KiB": get(b"/ocsp/" + b"A" * 65536),
    "CONNECT": b"CONNECT 127.0.0.1:22 HTTP/1.1\r\n" + HOST + b"\r\n",
    "all options": b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n",
    "TRACE": b"TRACE /livez HTTP/1.1\r\nX-Secret: hidden\r\n" + HOST + b"\r\n",
    "DELETE": b"DELETE /crl/ecc-issuing.crl HTTP/1.1\r\n" + HOST + b"\r\n",
    "an expectation that nobody has": post(b"Expect: 200-at-once", b"Content-Length: 1", body=b"A"),
    "path upwards": get(b"/../../etc/passwd"),
    "path upwards, encoded": get(b"/crl/%2e%2e%2f%2e%2e%2fdb%2fironroot.db"),
    "path upwards, twice encoded": get(b"/aia/%252e%252e%252ftls%252fservice.pem"),
    "path upwards, as a name": get(b"/crl/..%2f..%2ftls%2fservice.crl"),
    "path upwards, backslashes": get(b"/aia/..\\..\\tls\\service.cer"),
    "path with an encoded NUL": get(b"/crl/ecc-issuing%00.crl"),
    "path with encoded line ends": get(b"/crl/%0d%0aSet-Cookie:%20a=b.crl"),
    "path that is no UTF-8": get(b"/crl/%ff%fe.crl"),
    "path with half an escape": get(b"/crl/%2.crl"),
    "somebody else's address": get(b"http://127.0.0.1:22/no-such"),
    "address of another kind": get(b"ftp://a/etc/passwd"),
    "file": get(b"file:///etc/passwd"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(plant, case) -> None:
    answer = exchange(plant, REFUSED[case])
    seen = statuses(answer)
    assert len(seen) == 1, answer  # never two answers: nobody's next request is made of this one
    assert 400 <= seen[0] < 500, answer
    head, _, body = answer.partition(b"\r\n\r\n")
    for secret in (b"root:", b"PRIVATE KEY", b"SQLite", b"Set-Cookie", b"hidden", b"Traceback", b"site-packages"):
        assert secret not in head
        assert secret not in body


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_what_looks_odd_and_is_not(plant, tls) -> None:
    """An address in full (RFC 9112 3.2.2), HTTP/1.0, and more fields than anybody needs."""
    many = [b"X-%d: a" % number for number in range(100)]
    for request in (
        get(b"http://anywhere.example/livez"),
        b"GET /livez HTTP/1.0\r\n\r\n",
        b"GET /livez\r\n\r\n",
        get(b"/livez", *many),
        get(b"/livez?a=%00"),
    ):
        assert statuses(exchange(plant, request, tls=tls)) == [200]


def test_upgrades_are_not_taken(plant) -> None:
    for what in (b"h2c", b"websocket", b"TLS/1.0"):
        request = b"GET /livez HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, close\r\nUpgrade: " + what + b"\r\n\r\n"
        assert statuses(exchange(plant, request)) in ([200], [400])


def test_plain_http_at_the_tls_door(plant) -> None:
    with socket.create_connection(("127.0.0.1", plant.https), timeout=30) as plain:
        plain.sendall(get(b"/livez"))
        assert b"HTTP/1.1" not in plain.recv(1000)


def test_clients_that_say_nothing_and_go(plant) -> None:
    for tls in (False, True):
        for octets in (b"", b"\r\n" * 5000, b"GET", b"GET /livez HTTP/1.1\r\nHost:", post(b"Content-Length: 500", body=b"0")):
            with Wire(plant, tls=tls) as wire:
                wire.send(octets)


@pytest.mark.parametrize("path", [b"/.well-known/est/ecc-devices/simpleenroll", b"/ocsp", b"/livez", b"/no-such"])
def test_a_body_without_an_end(plant, path) -> None:
    """Chunk after chunk, until the server has had enough: it answers early and does not keep what comes."""
    serial = "endless-" + path.decode().rpartition("/")[2]
    credential = b"Authorization: " + basic(serial, plant.tokens("ecc-devices", serial)[serial]).encode()
    sent, chunk = 0, b"1000\r\n" + b"A" * 4096 + b"\r\n"
    with Wire(plant, tls=True) as wire:
        wire.send(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
        while b"ok" not in wire.socket.recv(65536):
            pass  # from here on whatever is readable is the answer
        wire.send(post(credential, b"Transfer-Encoding: chunked", path=path))
        try:
            while sent < 64 << 20 and not select.select([wire.socket], [], [], 0)[0]:
                wire.send(chunk)
                sent += len(chunk)
            answer = wire.socket.recv(65536)
        except OSError:
            answer = b""
    assert sent < 64 << 20
    if path == b"/ocsp":
        assert b"\x30\x03\x0a\x01\x01" in answer or not answer  # malformedRequest
    else:
        assert all(400 <= status < 500 for status in statuses(answer)), answer
    assert serial not in oracles.issued(plant.home, "ecc-devices")


def test_heads_that_never_end_do_not_keep_others_waiting(plant) -> None:
    """Two hundred clients send a field every now and then; the others do not notice."""
    slow = [Wire(plant, tls=number % 4 == 0) for number in range(200)]
    try:
        for wire in slow:
            wire.send(b"GET /livez HTTP/1.1\r\nHost: a\r\nX-One: ")
        for turn in range(3):
            for wire in slow:
                wire.send(b"%d" % turn)
            assert plant.status("/readyz") == 200
        serial = "among-slow"
        with Door(plant, trust(plant)) as door:
            assert door.enroll("ecc-devices", serial, plant.tokens("ecc-devices", serial)[serial], p256_request(serial)).status == 200
    finally:
        for wire in slow:
            wire.socket.close()


@pytest.mark.nightly
def test_heads_that_never_end_are_cut_off(plant) -> None:
    with Wire(plant) as wire:
        wire.send(b"GET /livez HTTP/1.1\r\nHost: a\r\nX-One: ")
        end = time.monotonic() + 120
        while time.monotonic() < end and not select.select([wire.socket], [], [], 1)[0]:
            wire.send(b"a")
        assert select.select([wire.socket], [], [], 0)[0]
        assert all(400 <= status < 500 for status in statuses(wire.rest()))
