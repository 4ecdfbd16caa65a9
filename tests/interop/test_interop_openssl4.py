"""OpenSSL 4 (inside cryptography's wheel, through pyOpenSSL) knows the SM2 identifier: whole chains, CRLs, TLS 1.3 (RFC 8998)."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL, crypto
from OpenSSL._util import ffi, lib

FAMILIES = ("ecc", "sm2")


def load(file: Path) -> crypto.X509:
    return crypto.load_certificate(crypto.FILETYPE_PEM, file.read_bytes())


def verdict(device, *crls: bytes, certificate: crypto.X509 | None = None) -> str:
    """What OpenSSL 4 says of a device's chain from the root (or of another certificate in its place); with CRLs it looks at all levels."""
    store = crypto.X509Store()
    store.add_cert(load(device.root))
    flags = crypto.X509StoreFlags.X509_STRICT
    for crl in crls:
        store.add_crl(x509.load_der_x509_crl(crl))
        flags |= crypto.X509StoreFlags.CRL_CHECK | crypto.X509StoreFlags.CRL_CHECK_ALL
    store.set_flags(flags)
    try:
        crypto.X509StoreContext(store, certificate or load(device.certificate), chain=[load(device.issuing)]).verify_certificate()
    except crypto.X509StoreContextError as error:
        return str(error)
    return "ok"


@pytest.mark.parametrize("family", FAMILIES)
def test_chains_and_crls(workshop, family) -> None:
    good, revoked = workshop.enrolled(f"{family}-devices"), workshop.revoked(f"{family}-devices", "keyCompromise")
    crls = [workshop.plant.get(f"/crl/{family}-{level}.crl") for level in ("root", "issuing")]
    assert verdict(good) == verdict(revoked) == "ok"
    assert verdict(good, *crls) == "ok"
    assert verdict(revoked, *crls) == "certificate revoked"
    assert "CRL" in verdict(good, crls[1])  # it looks at both


def test_a_changed_sm2_certificate(workshop) -> None:
    device = workshop.enrolled("sm2-devices")
    serial = device.serial.encode()
    changed = device.der.replace(serial, serial.upper())
    assert changed != device.der
    assert verdict(device, certificate=crypto.load_certificate(crypto.FILETYPE_ASN1, changed)) == "certificate signature failure"


def context(own, trusted: Path) -> SSL.Context:
    """TLS 1.3 with the Chinese suite, group and signature and nothing else; asks the peer for its certificate."""
    made = SSL.Context(SSL.TLS_METHOD)
    made.set_min_proto_version(SSL.TLS1_3_VERSION)
    made.use_privatekey_file(str(own.key))
    for number, file in enumerate((own.certificate, own.issuing)):
        certificate = load(file).to_cryptography()
        made.add_extra_chain_cert(certificate) if number else made.use_certificate(certificate)
    made.load_verify_locations(str(trusted))
    made.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, lambda *seen: bool(seen[-1]))
    assert lib.SSL_CTX_set_ciphersuites(made._context, b"TLS_SM4_GCM_SM3") == 1
    assert lib.SSL_CTX_set1_sigalgs_list(made._context, b"sm2sig_sm3") == 1
    assert lib.SSL_CTX_set1_curves_list(made._context, b"curveSM2") == 1
    return made


def handshake(server: SSL.Connection, client: SSL.Connection) -> None:
    """Carries octets between the two until both are through. Raises SSL.Error where one refuses the other."""
    waiting = [client, server]
    for _ in range(10):
        for one, other in ((client, server), (server, client)):
            if one in waiting:
                try:
                    one.do_handshake()
                    waiting.remove(one)
                except SSL.WantReadError:
                    pass
            try:
                other.bio_write(one.bio_read(1 << 16))
            except SSL.WantReadError:
                continue
        if not waiting:
            return
    raise AssertionError("the handshake does not end")


def connected(server_side: SSL.Context, client_side: SSL.Context) -> tuple[SSL.Connection, SSL.Connection]:
    server, client = SSL.Connection(server_side, None), SSL.Connection(client_side, None)
    server.set_accept_state()
    client.set_connect_state()
    client.set_tlsext_host_name(b"localhost")
    handshake(server, client)
    return server, client


def test_tls13_with_sm2_at_both_ends(workshop) -> None:
    platform = workshop.enrolled("sm2-platforms", names=("dns:localhost",))
    device = workshop.enrolled("sm2-devices")
    server, client = connected(context(platform, platform.root), context(device, device.root))
    for end in (server, client):
        assert (end.get_cipher_name(), end.get_protocol_version_name()) == ("TLS_SM4_GCM_SM3", "TLSv1.3")
        assert ffi.string(lib.SSL_get0_group_name(end._ssl)) == b"curveSM2"
    seen = server.get_peer_certificate(as_cryptography=True)
    assert seen.public_bytes(Encoding.DER) == device.der
    seen = client.get_peer_certificate(as_cryptography=True)
    assert seen.public_bytes(Encoding.DER) == platform.der
    client.send(b"temperature")
    server.bio_write(client.bio_read(1000))
    assert server.recv(100) == b"temperature"


def test_an_sm2_device_cannot_pose_as_a_server(workshop) -> None:
    one, other = workshop.enrolled("sm2-devices"), workshop.enrolled("sm2-devices")
    with pytest.raises(SSL.Error, match="certificate verify failed"):
        connected(context(one, one.root), context(other, other.root))
    with pytest.raises(SSL.Error, match="certificate verify failed"):  # the platform does not trust the other hierarchy
        connected(context(workshop.enrolled("sm2-platforms"), workshop.folder / "ecc-root.pem"), context(other, other.root))
