"""Where a platform puts validation: Python's TLS, aiohttp, pyOpenSSL with SM2. Each with peers that are good and peers that are not."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from OpenSSL import SSL
from OpenSSL._util import lib
from small_pki import Owner, issue, now

from ironroot.validator.peer import show
from pkix.algorithms import KeyKind
from pkix.errors import NotFound, NotValid, Unavailable
from validate import Memory, Policy, Result, anchors, validate, validate_sync
from validate.adapters import openssl, tls
from validate.adapters.web import CHAIN, PEER, peers
from validate.status import Revocation


class Plant:
    """A hierarchy, its policy, and a judge; who is in ``revoked`` is."""

    def __init__(self, kind: KeyKind, folder: Path) -> None:
        self.folder = folder
        self.root = issue(None, "Root", kind, ca=True)
        self.issuing = issue(self.root, "Issuing", kind, ca=True, path_length=0)
        self.device = issue(self.issuing, "plc-7", kind)
        self.server = issue(self.issuing, "scada-1", kind, purposes=("serverAuth",), names=("dns:localhost",))
        self.revoked: list[Owner] = []
        self._memory = Memory()

    def _asked(self) -> dict:
        self.issuing.revoked.clear()
        for one in self.revoked:
            self.issuing.revoke(one)
        policy = Policy(anchors=anchors(self.root.der), status="offline")
        lists = (self.root.crl(), self.issuing.crl())
        return {"policy": policy, "now": now(), "purpose": "tls-client", "crls": lists, "status": Revocation(), "memory": self._memory}

    def judge(self, chain) -> Result:
        return validate_sync(list(chain), **self._asked())

    async def judge_async(self, chain) -> Result:
        return await validate(list(chain), **self._asked())

    def files(self, owner: Owner) -> tuple[Path, Path]:
        return owner.files(self.folder / owner.certificate.subject.get("CN")[0], self.issuing)

    @property
    def authorities(self) -> list[bytes]:
        return [self.root.der, self.issuing.der]

    def client(self, owner: Owner | None) -> ssl.SSLContext:
        context = ssl.create_default_context(cadata=self.root.der)
        if owner is not None:
            context.load_cert_chain(*self.files(owner))
        return context


@pytest.fixture(scope="module")
def ecc(tmp_path_factory) -> Plant:
    return Plant(KeyKind.P_256, tmp_path_factory.mktemp("ecc"))


@pytest.fixture(scope="module")
def sm2(tmp_path_factory) -> Plant:
    return Plant(KeyKind.SM2, tmp_path_factory.mktemp("sm2"))


@pytest.fixture(autouse=True)
def nobody_is_revoked(ecc, sm2) -> None:
    ecc.revoked.clear()
    sm2.revoked.clear()


# Python's ssl


@contextlib.contextmanager
def echoing(context: ssl.SSLContext) -> Iterator[tuple[int, list[ssl.SSLError]]]:
    """A server that answers one message of each client in capitals; and why it refused those that it refused."""
    refused: list[ssl.SSLError] = []

    def serve() -> None:
        while True:
            plain, _ = listener.accept()
            with plain:
                plain.settimeout(20)
                if not plain.recv(1, socket.MSG_PEEK):
                    return
                try:
                    with context.wrap_socket(plain, server_side=True) as connection:
                        connection.sendall(connection.recv(100).upper())
                except ssl.SSLError as error:
                    refused.append(error)
                except ConnectionError:
                    pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1], refused
        finally:
            with contextlib.suppress(OSError), socket.create_connection(listener.getsockname()):
                pass
            thread.join()


def say(port: int, context: ssl.SSLContext) -> bytes:
    """The answer; nothing where the server refuses, which a client of TLS 1.3 notices in one of several ways."""
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=20) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as peer,
        ):
            peer.sendall(b"temperature")
            return peer.recv(100)
    except (ssl.SSLError, ConnectionError):
        return b""


def test_python_ssl(ecc, caplog) -> None:
    context = tls.server_context(*ecc.files(ecc.server), authorities=ecc.authorities, judge=ecc.judge)
    with caplog.at_level(logging.WARNING, "validate.tls"), echoing(context) as (port, refused):
        assert say(port, ecc.client(ecc.device)) == b"TEMPERATURE"
        ecc.revoked.append(ecc.device)
        # Revoked; a server that poses as a client; nobody. OpenSSL finds out about the latter two by itself.
        assert [say(port, ecc.client(one)) for one in (ecc.device, ecc.server, None)] == [b"", b"", b""]
        ecc.revoked.clear()
        assert say(port, ecc.client(ecc.device)) == b"TEMPERATURE"
    assert isinstance(refused[0], ssl.SSLCertVerificationError)
    assert "Not good: CN=plc-7,O=Example Plant was revoked" in str(refused[0])
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["peer refused (revoked)"]


def test_python_ssl_under_asyncio(ecc) -> None:
    """The same context: the judge runs in the handshake."""
    context = tls.server_context(*ecc.files(ecc.server), authorities=ecc.authorities, judge=ecc.judge)

    async def hello(reader, writer) -> None:
        writer.write((await reader.read(100)).upper())
        writer.close()

    async def work() -> list[bytes]:
        server = await asyncio.start_server(hello, "127.0.0.1", 0, ssl=context)
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        said = []
        for revoked in ([], [ecc.device]):
            ecc.revoked[:] = revoked
            try:
                reader, writer = await asyncio.open_connection(
                    *server.sockets[0].getsockname(), ssl=ecc.client(ecc.device), server_hostname="localhost"
                )
                writer.write(b"x")
                said.append(await reader.read(100))
                writer.close()
            except (OSError, ssl.SSLError):
                said.append(b"")
        server.close()
        return said

    assert asyncio.run(work()) == [b"X", b""]


# aiohttp


def test_aiohttp(ecc, caplog) -> None:
    """Each request is judged: a device that is revoked while its connection stands gets no further."""

    async def hello(request: web.Request) -> web.Response:
        assert request[PEER].good
        return web.Response(text=f"{len(request[CHAIN])}")

    async def work() -> list[tuple[int, str]]:
        away = []

        async def judge(chain):
            if away:
                raise Unavailable("the validator does not answer")
            return await ecc.judge_async(chain)

        app = web.Application(middlewares=[peers(judge)])
        app.add_routes([web.get("/", hello)])
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*ecc.files(ecc.server))
        context.verify_mode = ssl.CERT_OPTIONAL
        context.load_verify_locations(cadata=ecc.root.der)
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        plain = web.TCPSite(runner, "127.0.0.1", 0)
        await plain.start()
        said = []

        async def get(session, url="https://localhost") -> None:
            port = runner.addresses[url.startswith("http:")][1]
            async with session.get(f"{url}:{port}/") as response:
                said.append((response.status, (await response.text())[:300]))

        resolver = aiohttp.resolver.ThreadedResolver()
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=ecc.client(ecc.device), resolver=resolver)) as device,
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=ecc.client(None), resolver=resolver)) as nobody,
        ):
            await get(device)
            ecc.revoked.append(ecc.device)
            await get(device)
            ecc.revoked.clear()
            await get(device)
            away.append(True)
            await get(device)
            await get(nobody)
            await get(nobody, "http://127.0.0.1")
        await runner.cleanup()
        return said

    said = asyncio.run(work())
    assert [status for status, _ in said] == [200, 403, 200, 503, 401, 401]
    assert said[0][1] == "2"
    assert '"code": "revoked"' in said[1][1]
    assert "was revoked" in said[1][1]


# pyOpenSSL


def context(plant: Plant, owner: Owner) -> SSL.Context:
    """RFC 8998 alone: TLS 1.3 with the Chinese suite, group and signature."""
    made = SSL.Context(SSL.TLS_METHOD)
    made.set_min_proto_version(SSL.TLS1_3_VERSION)
    certificate, key = plant.files(owner)
    made.use_certificate_chain_file(str(certificate))
    made.use_privatekey_file(str(key))
    assert lib.SSL_CTX_set_ciphersuites(made._context, b"TLS_SM4_GCM_SM3") == 1
    assert lib.SSL_CTX_set1_sigalgs_list(made._context, b"sm2sig_sm3") == 1
    assert lib.SSL_CTX_set1_curves_list(made._context, b"curveSM2") == 1
    return made


def handshake(server: SSL.Connection, client: SSL.Connection) -> None:
    server.set_accept_state()
    client.set_connect_state()
    waiting = [client, server]
    for _ in range(10):
        for one, other in ((client, server), (server, client)):
            if one in waiting:
                with contextlib.suppress(SSL.WantReadError):
                    one.do_handshake()
                    waiting.remove(one)
            with contextlib.suppress(SSL.WantReadError):
                other.bio_write(one.bio_read(1 << 16))
        if not waiting:
            return
    raise AssertionError("the handshake does not end")


def test_pyopenssl_with_sm2(sm2, caplog) -> None:
    listening = context(sm2, sm2.server)
    openssl.ask_for_certificate(listening)

    def accepted(owner: Owner) -> SSL.Connection:
        calling = context(sm2, owner)
        calling.set_verify(SSL.VERIFY_NONE)
        server, client = SSL.Connection(listening, None), SSL.Connection(calling, None)
        handshake(server, client)
        assert openssl.presented(server) == [owner.der, sm2.issuing.der]
        return server

    answer = openssl.check(accepted(sm2.device), sm2.judge)
    assert answer.good
    sm2.revoked.append(sm2.device)
    with pytest.raises(NotValid, match="was revoked"):
        openssl.check(accepted(sm2.device), sm2.judge)
    sm2.revoked.clear()
    with pytest.raises(NotValid, match="TLS client"):
        openssl.check(accepted(sm2.server), sm2.judge)
    assert {record.getMessage().partition(":")[0] for record in caplog.records} == {
        "peer refused (revoked)",
        "peer refused (wrong_purpose)",
    }


def test_pyopenssl_without_a_certificate(sm2) -> None:
    listening = context(sm2, sm2.server)
    openssl.ask_for_certificate(listening)
    calling = SSL.Context(SSL.TLS_METHOD)
    calling.set_verify(SSL.VERIFY_NONE)
    lib.SSL_CTX_set_ciphersuites(calling._context, b"TLS_SM4_GCM_SM3")
    lib.SSL_CTX_set1_sigalgs_list(calling._context, b"sm2sig_sm3")
    lib.SSL_CTX_set1_curves_list(calling._context, b"curveSM2")
    with pytest.raises(SSL.Error, match="peer did not return a certificate"):
        handshake(SSL.Connection(listening, None), SSL.Connection(calling, None))


# A live server, as `ironroot verify HOST:PORT` looks at it


@contextlib.contextmanager
def answering(made: SSL.Context | None) -> Iterator[int]:
    """A TLS server that shakes hands and no more; None: one that speaks no TLS."""

    def serve() -> None:
        for _ in range(1):
            plain, _ = listener.accept()
            with plain:
                if made is None:
                    plain.sendall(b"220 hello\r\n")
                    plain.recv(1000)
                    return
                connection = SSL.Connection(made, plain)
                connection.set_accept_state()
                with contextlib.suppress(SSL.Error):
                    connection.do_handshake()
                    connection.shutdown()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def serving(plant: Plant, staple: bytes = b"") -> SSL.Context:
    made = SSL.Context(SSL.TLS_METHOD)
    certificate, key = plant.files(plant.server)
    made.use_certificate_chain_file(str(certificate))
    made.use_privatekey_file(str(key))
    if staple:
        made.set_ocsp_server_callback(lambda *_: staple)
    return made


@pytest.mark.parametrize("family", ["ecc", "sm2"])
def test_a_live_server_with_its_staple(family, request) -> None:
    plant = request.getfixturevalue(family)
    staple = plant.issuing.ocsp(plant.server)
    with answering(serving(plant, staple)) as port:
        shown = show("127.0.0.1", port)
    assert (shown.chain, shown.staples, shown.sees_staples) == ([plant.server.der, plant.issuing.der], [staple], True)


def test_a_live_server_without_pyopenssl(ecc, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "OpenSSL", None)
    with answering(serving(ecc, ecc.issuing.ocsp(ecc.server))) as port:
        shown = show("localhost", port)
    assert (shown.chain, shown.staples, shown.sees_staples) == ([ecc.server.der, ecc.issuing.der], [], False)


def test_no_live_server() -> None:
    with answering(None) as port, pytest.raises(Unavailable, match="TLS"):
        show("127.0.0.1", port)
    with socket.create_server(("127.0.0.1", 0)) as mute, pytest.raises(Unavailable, match="did not answer"):
        show("127.0.0.1", mute.getsockname()[1], timeout=1)
    with pytest.raises((Unavailable, NotFound)):
        show("127.0.0.1", 1)
