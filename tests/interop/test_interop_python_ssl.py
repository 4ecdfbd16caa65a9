"""Two certificates of ours in a stock Python server and client: mutual TLS, and what must not pass for the other end."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from dataclasses import dataclass, field

import pytest
from programs import curl, openssl


@dataclass
class Server:
    """Echoes one message of each client in its own thread, or remembers why it did not."""

    context: ssl.SSLContext
    errors: list[ssl.SSLError] = field(default_factory=list)
    peers: list[dict] = field(default_factory=list)

    def __enter__(self) -> Server:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
            pass  # nothing to say: the last one
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        while True:
            plain, _ = self._socket.accept()
            with plain:
                plain.settimeout(30)
                if not plain.recv(1, socket.MSG_PEEK):
                    return
                try:
                    with self.context.wrap_socket(plain, server_side=True) as connection:
                        self.peers.append(connection.getpeercert() or {})
                        connection.sendall(connection.recv(100).upper())
                except ssl.SSLError as error:
                    self.errors.append(error)
                except ConnectionError:
                    pass  # the client left first, for its own reasons


def server_context(own, trusted, crl=None) -> ssl.SSLContext:
    """Asks for a client certificate of ours; with the file of a CRL also looks whether it is revoked."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(trusted))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(own.chain, own.key)
    if crl is not None:
        context.load_verify_locations(cafile=str(crl))
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    return context


def client_context(own, trusted) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(trusted))
    if own is not None:
        context.load_cert_chain(own.chain, own.key)
    return context


def say(server: Server, context: ssl.SSLContext, name: str = "localhost") -> bytes:
    """One message there and back."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as plain, context.wrap_socket(plain, server_hostname=name) as tls:
        tls.sendall(b"temperature")
        return tls.recv(100)


@pytest.fixture(scope="module")
def platform(workshop):
    return workshop.enrolled("ecc-platforms", names=("dns:localhost", "ip:127.0.0.1"))


def test_device_and_platform_know_each_other(workshop, platform) -> None:
    device = workshop.enrolled("ecc-devices")
    with Server(server_context(platform, platform.root)) as server:
        for name in ("localhost", "127.0.0.1"):
            assert say(server, client_context(device, device.root), name) == b"TEMPERATURE"
    (first, second), errors = server.peers, server.errors
    assert (first, errors) == (second, [])
    assert ("URI", f"urn:ironroot:device:ecc-devices:{device.serial}") in first["subjectAltName"]
    assert (("serialNumber", device.serial),) in first["subject"]


def test_the_server_refuses_who_is_not_ours(workshop, platform, tmp_path) -> None:
    openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", tmp_path / "key.pem")
    openssl("req", "-x509", "-new", "-key", tmp_path / "key.pem", "-subj", "/CN=Mallory", "-days", "2", "-out", tmp_path / "chain.pem")
    mallory = client_context(None, platform.root)
    mallory.load_cert_chain(tmp_path / "chain.pem", tmp_path / "key.pem")
    with Server(server_context(platform, platform.root)) as server:
        for context in (mallory, client_context(None, platform.root)):
            with pytest.raises((ssl.SSLError, ConnectionError)):
                assert say(server, context) != b"TEMPERATURE"
    assert [error.reason for error in server.errors] == ["CERTIFICATE_VERIFY_FAILED", "PEER_DID_NOT_RETURN_A_CERTIFICATE"]
    assert server.peers == []


def test_the_server_refuses_a_revoked_device(workshop, platform, tmp_path) -> None:
    good, revoked = workshop.enrolled("ecc-devices"), workshop.revoked("ecc-devices", "keyCompromise")
    crl = tmp_path / "crl.pem"
    openssl("crl", "-inform", "DER", "-out", crl, feed=curl(f"{workshop.plant.http_url}/crl/ecc-issuing.crl").body)
    with Server(server_context(platform, platform.root, crl)) as server:
        assert say(server, client_context(good, good.root)) == b"TEMPERATURE"
        with pytest.raises((ssl.SSLError, ConnectionError)):
            assert say(server, client_context(revoked, revoked.root)) != b"TEMPERATURE"
    (error,) = server.errors
    assert "certificate revoked" in str(error)


def test_a_device_cannot_pose_as_a_server(workshop) -> None:
    """Its certificate is for clients alone; that its serial reads like a host's name does not help it."""
    device = workshop.enrolled("ecc-devices", "localhost")
    with Server(server_context(device, device.root)) as server:
        for check_hostname in (True, False):
            context = client_context(device, device.root)
            context.check_hostname = check_hostname
            with pytest.raises(ssl.SSLCertVerificationError, match="unsuitable certificate purpose"):
                say(server, context)
    assert server.peers == []


def test_a_platform_cannot_pose_as_another(workshop, platform) -> None:
    with Server(server_context(platform, platform.root)) as server:
        for name in ("scada-8", "127.0.0.2"):
            with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
                say(server, client_context(platform, platform.root), name)


def test_two_platforms(workshop, platform) -> None:
    """A platform's certificate is for both ends."""
    other = workshop.enrolled("ecc-platforms")
    with Server(server_context(platform, platform.root)) as server:
        assert say(server, client_context(other, other.root)) == b"TEMPERATURE"
