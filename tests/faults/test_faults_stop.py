"""SIGTERM while requests are under way: they are finished, whoever comes later is not let in, and the exit code is 0."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import ssl

import oracles
from est_client import basic, p256_request, trust


def begin(plant, context: ssl.SSLContext, serial: str, token: str, length: int) -> ssl.SSLSocket:
    """A request whose head has been read by a worker, which now waits for the body: it said 100 Continue."""
    connection = context.wrap_socket(socket.create_connection(("127.0.0.1", plant.https), timeout=60), server_hostname="127.0.0.1")
    lines = (
        "POST /.well-known/est/ecc-devices/simpleenroll HTTP/1.1",
        "Host: 127.0.0.1",
        f"Authorization: {basic(serial, token)}",
        "Content-Type: application/pkcs10",
        f"Content-Length: {length}",
        "Expect: 100-continue",
    )
    connection.sendall("\r\n".join((*lines, "", "")).encode())
    assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
    return connection


def finish(connection: ssl.SSLSocket) -> http.client.HTTPResponse:
    """The answer, read whole."""
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    answer.read()
    return answer


def test_requests_under_way_are_finished(own_plant) -> None:
    """Half of them wait for the HSM to sign, of the others not even the body has come. One whose body never comes is cut off in time."""
    plant = own_plant
    plant.start("--workers", "2")
    context = trust(plant)
    tokens = plant.tokens("ecc-devices", *(f"last-{number}" for number in range(12)))
    requests = {serial: p256_request(serial) for serial in tokens}
    connections = {serial: begin(plant, context, serial, token, len(requests[serial])) for serial, token in tokens.items()}
    stalled = begin(plant, context, "nobody", "no token", 100)
    idle = socket.create_connection(("127.0.0.1", plant.http), timeout=60)
    early, late = list(tokens)[:6], list(tokens)[6:]
    (hsm,) = plant.children("hsm")
    os.kill(hsm, signal.SIGSTOP)
    try:
        for serial in early:
            connections[serial].sendall(requests[serial])
        plant.until(lambda: len(oracles.query(plant.home, "SELECT id FROM certificates WHERE state = 'intended'")) == 6, "the intents")
        plant.service.send_signal(signal.SIGTERM)
        plant.until(lambda: plant.status("/livez") is None, "the doors to close")
    finally:
        os.kill(hsm, signal.SIGCONT)
    for serial in late:
        connections[serial].sendall(requests[serial])
    for connection in connections.values():
        answer = finish(connection)
        assert (answer.status, answer.headers["Connection"]) == (200, "close")
        connection.close()
    assert plant.service.wait(30) == 0
    plant.service = None
    assert '"killed"' not in (plant.home / "serve.log").read_text()  # the worker ended by itself
    for connection in (idle, stalled):
        assert connection.recv(10) == b""
        connection.close()
    assert sorted(oracles.issued(plant.home, "ecc-devices")) == sorted(tokens)
    for role in ("hsm", "worker", "scheduler"):
        assert plant.children(role) == []
    oracles.check(plant)
