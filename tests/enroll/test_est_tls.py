"""EST over TLS with other people's clients: curl and Python's ssl, with the certificates of the connection as proof."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import uvloop
from aiohttp.test_utils import TestServer

from ca.model import Method, Reason
from pkix import extensions, pem
from pkix.algorithms import SIGNATURES, KeyKind
from pkix.certificate import Certificate, assemble, build_tbs, parse_certificate
from pkix.cms import parse_certs_only
from pkix.name import Name, name
from pkix.privatekey import PrivateKey, generate

NOW = datetime.now(UTC).replace(microsecond=0)
LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]


def run(scene, loop_factory=asyncio.new_event_loop) -> None:
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(scene())


def write(folder: Path, stem: str, key: PrivateKey, *chain: Certificate) -> tuple[Path, Path]:
    """``stem.pem`` with the chain and ``stem.key``."""
    certificate, private = folder / f"{stem}.pem", folder / f"{stem}.key"
    certificate.write_text("".join(each.pem for each in chain))
    private.write_bytes(key.to_pem())
    return certificate, private


@asynccontextmanager
async def serving(world, folder: Path, *client_cas: Certificate) -> AsyncIterator[str]:
    """The door behind TLS as a plant would run it: its own certificate from ecc-platforms, client certificates optional. Yields its URL."""
    key = generate(KeyKind.P_256)
    async with world.client() as client:
        token = await world.invite("ecc-platforms", "localhost", ("ip:127.0.0.1",))
        answer = await client.post(
            "/.well-known/est/ecc-platforms/simpleenroll", data=world.csr(key, "localhost"), headers=world.basic("localhost", token)
        )
        own = world.certificate(await answer.read())
    authority = world.authorities["ecc-issuing"]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*write(folder, "service", key, own, authority.certificate))
    context.verify_mode = ssl.CERT_OPTIONAL
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    for certificate in (*authority.chain, *client_cas):
        context.load_verify_locations(cadata=certificate.der)
    write(folder, "root", key, world.authorities["ecc-root"].certificate)
    server = TestServer(world.app, scheme="https")
    await server.start_server(ssl=context)
    try:
        yield f"https://127.0.0.1:{server.port}/.well-known/est/ecc-devices"
    finally:
        await server.close()


async def curl(folder: Path, *arguments: str | Path, fails: bool = False) -> tuple[int, dict[str, str], bytes]:
    """Runs curl, which trusts our root alone: status, headers, body. ``fails``: curl itself gives up (TLS)."""
    process = await asyncio.create_subprocess_exec(
        "curl", "--silent", "--include", "--cacert", "root.pem", *map(str, arguments), cwd=folder, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert (process.returncode != 0) == fails
    if fails:
        return 0, {}, b""
    head, _, body = output.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = {key.lower(): value for key, _, value in (line.partition(": ") for line in lines)}
    return int(status.split()[1]), headers, body


@pytest.mark.parametrize("loop_factory", LOOPS, ids=["asyncio", "uvloop"])
def test_curl_does_all_that_a_device_needs(opened, tmp_path: Path, loop_factory) -> None:
    key, new_key = generate(KeyKind.P_256), generate(KeyKind.P_256)

    async def scene() -> None:
        async with opened() as world, serving(world, tmp_path) as url:
            status, _, body = await curl(tmp_path, f"{url}/cacerts")
            assert status == 200
            assert {each.der for each in world.authorities["ecc-issuing"].chain} == set(parse_certs_only(base64.b64decode(body)))

            token = await world.invite("ecc-devices", "press-7")
            (tmp_path / "first.csr").write_bytes(world.csr(key, "press-7"))
            status, headers, body = await curl(
                tmp_path, "--user", f"press-7:{token}", "--data-binary", "@first.csr", "--header", "Content-Type: application/pkcs10",
                f"{url}/simpleenroll",
            )  # fmt: skip
            assert (status, headers["content-length"]) == (200, str(len(body)))
            current = world.certificate(body)

            write(tmp_path, "device", key, current)
            (tmp_path / "next.csr").write_text(pem.encode("CERTIFICATE REQUEST", base64.b64decode(world.csr(new_key, current.subject))))
            shown = ("--cert", "device.pem", "--key", "device.key")
            stale = ("--user", f"press-7:{token}")  # a password that a client still has configured does no harm
            status, _, body = await curl(tmp_path, *shown, *stale, "--data-binary", "@next.csr", f"{url}/simplereenroll")
            assert status == 200, body
            renewed = world.certificate(body)
            assert (renewed.subject, renewed.public_key) == (current.subject, new_key.public_key)

            # Chunked, as some clients send it; the same octets are the same request.
            again = await curl(
                tmp_path, *shown, "--header", "Transfer-Encoding: chunked", "--data-binary", "@next.csr", f"{url}/simplereenroll"
            )
            assert again[2] == body

            old = (await world.store.by_sha256(current.sha256))[0]
            await world.store.revoke([old.id], Reason.superseded, world.clock.now(), actor="test")
            status, _, body = await curl(tmp_path, *shown, "--data-binary", "@next.csr", f"{url}/simplereenroll")
            assert (status, b"revoked (superseded)" in body) == (403, True)

            status, headers, body = await curl(tmp_path, "--data-binary", "@first.csr", f"{url}/simpleenroll")
            assert (status, headers["www-authenticate"]) == (401, 'Basic realm="ironroot", charset="UTF-8"')

    run(scene, loop_factory)


def certify(by: PrivateKey, issuer: Name, key: PrivateKey, subject: Name, *items: extensions.Extension) -> Certificate:
    tbs = build_tbs(
        serial=int.from_bytes(key.public_key.sha256[:8]),
        issuer=issuer,
        subject=subject,
        not_before=NOW - timedelta(days=1),
        not_after=datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC),
        public_key=key.public_key,
        signature=SIGNATURES[by.kind],
        extensions=items,
    )
    return parse_certificate(assemble(tbs, SIGNATURES[by.kind], by.sign(tbs)))


@pytest.mark.parametrize("loop_factory", LOOPS, ids=["asyncio", "uvloop"])
def test_an_idevid_with_its_intermediate_on_the_connection(opened, tmp_path: Path, loop_factory) -> None:
    root_key, middle_key, key = (generate(KeyKind.P_256) for _ in range(3))
    usage = (extensions.basic_constraints(True), extensions.key_usage("keyCertSign"))
    root = certify(root_key, name(("CN", "Maker")), root_key, name(("CN", "Maker")), *usage)
    middle = certify(root_key, root.subject, middle_key, name(("CN", "Maker Plant 2")), *usage)
    idevid = certify(middle_key, middle.subject, key, name(("O", "Maker"), ("serialNumber", "press-7")))

    async def scene() -> None:
        async with opened() as world, serving(world, tmp_path, root) as url:
            (path,) = world.policies.fleets["ecc-devices"].idevid.trust
            (world.home / path).parent.mkdir()
            (world.home / path).write_text(root.pem)
            write(tmp_path, "idevid", key, idevid, middle)
            (tmp_path / "one.csr").write_bytes(world.csr(generate(KeyKind.P_256), "press-7"))
            shown = ("--cert", "idevid.pem", "--key", "idevid.key", "--data-binary", "@one.csr")
            status, _, body = await curl(tmp_path, *shown, f"{url}/simpleenroll")
            assert status == 200, body
            certificate = world.certificate(body)
            assert certificate.names == ("uri:urn:ironroot:device:ecc-devices:press-7",)
            (record,) = await world.store.by_device("press-7")
            assert (record.method, record.fleet) == (Method.IDEVID, "ecc-devices")

            # The certificate is there for ever: the same octets once more are a new request, unless the device names it.
            _, _, second = await curl(tmp_path, *shown, f"{url}/simpleenroll")
            assert world.certificate(second).serial != certificate.serial
            named = ("--header", "Idempotency-Key: " + "ab" * 32)
            assert (await curl(tmp_path, *shown, *named, f"{url}/simpleenroll"))[2] == (
                await curl(tmp_path, *shown, *named, f"{url}/simpleenroll")
            )[2]

            status, _, body = await curl(tmp_path, *shown, f"{url}/simplereenroll")
            assert (status, b"current certificate" in body) == (403, True)

            # A token is meant where a TLS stack's certificate is only shown: it decides.
            token = await world.invite("ecc-devices", "press-9")
            (tmp_path / "nine.csr").write_bytes(world.csr(generate(KeyKind.P_256), "press-9"))
            status, _, body = await curl(
                tmp_path, *shown[:4], "--user", f"press-9:{token}", "--data-binary", "@nine.csr", f"{url}/simpleenroll"
            )
            assert world.certificate(body).subject.get("CN") == ["press-9"]

    run(scene, loop_factory)


def test_a_certificate_of_a_stranger_does_not_get_through_tls(opened, tmp_path: Path) -> None:
    key = generate(KeyKind.P_256)

    async def scene() -> None:
        async with opened() as world, serving(world, tmp_path) as url:
            write(tmp_path, "stranger", key, certify(key, name(("CN", "press-7")), key, name(("CN", "press-7"))))
            (tmp_path / "one.csr").write_bytes(world.csr(key, "press-7"))
            shown = ("--cert", "stranger.pem", "--key", "stranger.key")
            await curl(tmp_path, *shown, "--data-binary", "@one.csr", f"{url}/simpleenroll", fails=True)

    run(scene)


def test_a_device_uses_its_certificate_for_mutual_tls_with_a_platform(opened, tmp_path: Path) -> None:
    """Stock Python on both sides: what was issued here is good for what it is for."""
    key = generate(KeyKind.P_256)

    async def scene() -> None:
        async with opened() as world, serving(world, tmp_path) as url, world.client() as client:
            device = await world.enrolled(client, "ecc-devices", "press-7", key)
            context = ssl.create_default_context(cafile=str(tmp_path / "root.pem"))
            context.load_cert_chain(*write(tmp_path, "device", key, device, world.authorities["ecc-issuing"].certificate))
            port = int(url.split(":")[2].split("/")[0])
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
            writer.write(b"GET /.well-known/est/ecc-devices/csrattrs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
            writer.close()
            await writer.wait_closed()

    run(scene)
