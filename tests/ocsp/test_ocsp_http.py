"""The status doors over HTTP, with other people's clients: openssl ocsp, openssl crl, curl, cryptography."""

from __future__ import annotations

import asyncio
import base64
import random
import ssl
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

import pytest
import uvloop
from cryptography import x509
from cryptography.x509 import ocsp as their_ocsp

from ca.crl import publish
from ca.model import CrlRecord, Reason
from ocsp.http import PIECE
from pkix import pem
from pkix.ocsp import cert_id, parse_response, verify_response

POST = {"Content-Type": "application/ocsp-request"}


async def run(folder: Path, *command: str | Path) -> str:
    """What a program says, stdout and stderr; it must succeed."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command), cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode(errors="replace")
    return output.decode(errors="replace")


def write(folder: Path, world, certificate) -> None:
    (folder / "device.pem").write_text(certificate.pem)
    for id, authority in world.authorities.items():
        (folder / f"{id}.pem").write_text(authority.certificate.pem)


@pytest.mark.parametrize("digest", ["sha1", "sha256", "sha384"])
def test_openssl_asks_and_verifies(opened, tmp_path: Path, digest: str) -> None:
    async def scene() -> None:
        async with opened() as world, world.client() as client:
            certificate = await world.certificate()
            write(tmp_path, world, certificate)
            url = str(client.make_url("/ocsp"))

            async def ask(*what: str) -> str:
                return await run(tmp_path, "openssl", "ocsp", "-CAfile", "ecc-root.pem", "-url", url, f"-{digest}", *what)

            device = ("-issuer", "ecc-issuing.pem", "-cert", "device.pem")
            text = await ask(*device)
            assert "Response verify OK" in text
            assert "WARNING: no nonce" not in text
            assert "device.pem: good" in text

            record = await world.record()
            await world.store.revoke([record.id], Reason.keyCompromise, world.clock.now(), actor="test")
            for nonce in ((), ("-no_nonce",)):
                text = await ask(*device, *nonce)
                assert "Response verify OK" in text
                assert "device.pem: revoked" in text
                assert "Reason: keyCompromise" in text

            text = await ask("-issuer", "ecc-issuing.pem", "-serial", "0x1234")
            assert "0x1234: unknown" in text
            text = await ask("-issuer", "ecc-root.pem", "-cert", "ecc-issuing.pem")
            assert "Response verify OK" in text
            assert "ecc-issuing.pem: good" in text
            # Several certificates in one request.
            text = await ask(*device, "-serial", "7")
            assert "device.pem: revoked" in text
            assert "7: unknown" in text

    asyncio.run(scene())


def test_openssl_asks_about_an_sm2_certificate_by_sm3(opened, tmp_path: Path) -> None:
    """openssl 3.0 cannot verify SM2 under the default id; it reads the answer, and we verify it."""

    async def scene() -> None:
        async with opened() as world, world.client() as client:
            certificate = await world.certificate(family="sm2")
            write(tmp_path, world, certificate)
            question = ("openssl", "ocsp", "-sm3", "-issuer", "sm2-issuing.pem", "-cert", "device.pem", "-noverify")
            text = await run(tmp_path, *question, "-url", str(client.make_url("/ocsp")), "-respout", "answer.der")
            assert "device.pem: good" in text
            response = parse_response((tmp_path / "answer.der").read_bytes())
            verify_response(response, world.authorities["sm2-issuing"].certificate, world.clock.now())
            assert response.singles[0].cert_id.hash == "sm3"

    asyncio.run(scene())


def test_curl_gets_what_openssl_reads(opened, tmp_path: Path) -> None:
    async def scene() -> None:
        async with opened() as world, world.client() as client:
            write(tmp_path, world, await world.certificate())
            await run(
                tmp_path, "openssl", "ocsp", "-issuer", "ecc-issuing.pem", "-cert", "device.pem", "-no_nonce", "-reqout", "question.der"
            )
            question = quote(base64.b64encode((tmp_path / "question.der").read_bytes()), safe="")
            await run(tmp_path, "curl", "--silent", "--fail", "--output", "answer.der", f"{client.make_url('/ocsp')}/{question}")
            text = await run(
                tmp_path, "openssl", "ocsp", "-issuer", "ecc-issuing.pem", "-cert", "device.pem", "-CAfile", "ecc-root.pem",
                "-respin", "answer.der", "-no_nonce",
            )  # fmt: skip
            assert "Response verify OK" in text
            assert "device.pem: good" in text

    asyncio.run(scene())


def test_cryptography_reads_the_answer(opened) -> None:
    async def scene() -> None:
        async with opened() as world, world.client() as client:
            certificate = await world.certificate()
            record = await world.record()
            await world.store.revoke([record.id], Reason.cessationOfOperation, world.clock.now(), actor="test")
            answer = await client.post("/ocsp", data=world.ask(certificate.serial, nonce=b"n" * 32), headers=POST)
            response = their_ocsp.load_der_ocsp_response(await answer.read())
            assert response.certificate_status is their_ocsp.OCSPCertStatus.REVOKED
            assert response.revocation_reason is x509.ReasonFlags.cessation_of_operation
            assert response.revocation_time_utc == world.clock.now()
            assert response.serial_number == certificate.serial
            assert response.extensions.get_extension_for_class(x509.OCSPNonce).value.nonce == b"n" * 32

    asyncio.run(scene())


def spellings(raw: bytes) -> dict[str, str]:
    """The same request in a path, as clients write it."""
    text = base64.b64encode(raw).decode()
    return {
        "escaped": quote(text, safe=""),
        "slashes and pluses as they are": quote(text, safe="/+="),
        "no padding": quote(text.rstrip("="), safe=""),
        "base64url": base64.urlsafe_b64encode(raw).decode(),
        "base64url without padding": base64.urlsafe_b64encode(raw).decode().rstrip("="),
        "lower-case escapes": quote(text, safe="").replace("%2F", "%2f").replace("%2B", "%2b"),
    }


async def get(client, path: str) -> tuple[int, dict[str, str], bytes]:
    """GET with a path that nobody normalises on the way."""
    reader, writer = await asyncio.open_connection("127.0.0.1", client.server.port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    status, *lines = head.decode().split("\r\n")
    return int(status.split()[1]), {key.lower(): value for key, _, value in (line.partition(": ") for line in lines)}, body


@pytest.mark.parametrize("spelling", list(spellings(b"")))
def test_every_spelling_of_a_get_is_read(opened, spelling: str) -> None:
    async def scene() -> None:
        async with opened() as world, world.client() as client:
            serials = [(await world.certificate(device=f"press-{number}")).serial for number in range(8)]
            requests = [world.ask(serial, hash=hash) for serial in serials for hash in ("sha1", "sha256")]
            assert any("/" in base64.b64encode(raw).decode() for raw in requests)
            assert any("+" in base64.b64encode(raw).decode() for raw in requests)
            for raw in requests:
                status, headers, body = await get(client, "/ocsp/" + spellings(raw)[spelling])
                assert (status, headers["content-type"]) == (200, "application/ocsp-response")
                assert parse_response(body).singles[0].status == "good"

    asyncio.run(scene())


def test_a_get_may_be_kept_a_minute_and_asked_again_with_its_tag(opened) -> None:
    async def scene() -> None:
        async with opened() as world, world.client() as client:
            certificate = await world.certificate()
            path = "/ocsp/" + quote(base64.b64encode(world.ask(certificate.serial)), safe="")
            first = await client.get(path)
            assert first.headers["Cache-Control"] == "max-age=60, public, no-transform, must-revalidate"
            assert int(first.headers["Content-Length"]) == len(await first.read())
            stamp = "%a, %d %b %Y %H:%M:%S GMT"
            assert first.headers["Last-Modified"] == world.clock.now().strftime(stamp)
            assert first.headers["Expires"] == (world.clock.now() + timedelta(seconds=60)).strftime(stamp)
            for condition in (
                {"If-None-Match": first.headers["ETag"]},
                {"If-None-Match": "*"},
                {"If-None-Match": f'W/"x", {first.headers["ETag"]}'},
            ):
                same = await client.get(path, headers=condition)
                assert (same.status, await same.read(), same.headers["ETag"]) == (304, b"", first.headers["ETag"])
            head = await client.head(path)
            assert (head.status, head.headers["ETag"], await head.read()) == (200, first.headers["ETag"], b"")
            await world.store.revoke([(await world.record()).id], Reason.superseded, world.clock.now(), actor="test")
            changed = await client.get(path, headers={"If-None-Match": first.headers["ETag"]})
            assert changed.status == 200
            assert parse_response(await changed.read()).singles[0].status == "revoked"

    asyncio.run(scene())


def test_a_cache_never_outlives_the_answer(opened) -> None:
    async def scene() -> None:
        async with opened() as world, world.client() as client:
            certificate = await world.certificate()
            world.clock.moment = world.responders["ecc-issuing"].certificate.not_after - timedelta(seconds=20)
            answer = await client.get("/ocsp/" + quote(base64.b64encode(world.ask(certificate.serial)), safe=""))
            assert answer.headers["Cache-Control"].startswith("max-age=20,")

    asyncio.run(scene())


def test_what_nobody_may_keep(opened) -> None:
    async def scene() -> None:
        async with opened() as world, world.client() as client:
            certificate = await world.certificate()
            in_path = [world.ask(certificate.serial, nonce=b"n" * 32), world.ask(1234), world.ask(1234, "sm2-root"), b"junk"]
            answers = [await client.get("/ocsp/" + quote(base64.b64encode(raw), safe="")) for raw in in_path]
            answers.append(await client.post("/ocsp", data=world.ask(certificate.serial), headers=POST))
            world.signer.mood = "away"
            answers.append(await client.get("/ocsp/" + quote(base64.b64encode(world.ask(certificate.serial, hash="sha1")), safe="")))
            for answer in answers:
                assert (answer.status, answer.headers["Content-Type"]) == (200, "application/ocsp-response")
                assert answer.headers["Cache-Control"] == "no-store"
                assert "ETag" not in answer.headers

    asyncio.run(scene())


def test_a_few_hundred_mutated_questions(opened) -> None:
    chance = random.Random(1)

    async def scene() -> None:
        async with opened() as world, world.client() as client:
            good = world.ask((await world.certificate()).serial)
            for number in range(400):
                raw = bytearray(good)
                for _ in range(chance.randrange(1, 4)):
                    raw[chance.randrange(len(raw))] = chance.randrange(256)
                del raw[chance.randrange(40, 2 * len(raw)) :]
                if number % 2:
                    answer = await client.post("/ocsp", data=bytes(raw), headers=POST)
                else:
                    answer = await client.get("/ocsp/" + quote(base64.b64encode(raw), safe=""))
                assert answer.status == 200
                assert parse_response(await answer.read()).status in (0, 1, 6)
            for junk in ("", "!", "%00", "%2e%2e%2f", "..%2f..%2fetc%2fpasswd", "A" * 8000, "%ff%fe", "MEI=MEI="):
                status, headers, body = await get(client, "/ocsp/" + junk)
                assert (status, headers["content-type"], body) == (200, "application/ocsp-response", b"\x30\x03\x0a\x01\x01")

    asyncio.run(scene())


def test_questions_that_are_too_long_or_never_end(opened) -> None:
    async def scene() -> None:
        async with opened() as world, world.client(body_seconds=0.2) as client:
            for size in (8193, 1_000_000):
                answer = await client.post("/ocsp", data=b"\x30" * size, headers=POST)
                assert (answer.status, await answer.read()) == (200, b"\x30\x03\x0a\x01\x01")
            reader, writer = await asyncio.open_connection("127.0.0.1", client.server.port)
            writer.write(b"POST /ocsp HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n0")
            assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
            writer.close()
            answer = await client.post("/ocsp/", data=world.ask((await world.certificate()).serial), headers=POST)
            assert parse_response(await answer.read()).singles[0].status == "good"

    asyncio.run(scene())


@pytest.mark.parametrize("family", ["ecc", "sm2"])
def test_a_crl_is_there_as_soon_as_it_is_published(opened, tmp_path: Path, family: str) -> None:
    async def scene() -> None:
        async with opened() as world, world.client() as client:
            certificate = await world.certificate(family=family)
            write(tmp_path, world, certificate)
            authority, path = world.authorities[f"{family}-issuing"], f"/crl/{family}-issuing.crl"

            async def issue_crl() -> None:
                await publish(authority, timedelta(hours=24), store=world.store, signer=world.signer, now=world.clock.now())

            early = await client.get(path)
            assert (early.status, early.headers["Retry-After"]) == (503, "5")
            await issue_crl()
            first = await client.get(path)
            assert first.headers["Content-Type"] == "application/pkix-crl"
            assert first.headers["Cache-Control"].startswith("max-age=60,")
            assert (await client.get(path, headers={"If-None-Match": first.headers["ETag"]})).status == 304
            await world.store.revoke([(await world.record()).id], Reason.keyCompromise, world.clock.now(), actor="test")
            world.clock.moment += timedelta(seconds=5)
            await issue_crl()
            second = await client.get(path, headers={"If-None-Match": first.headers["ETag"]})
            assert second.status == 200
            (tmp_path / "list.crl").write_bytes(await second.read())
            shown = await run(tmp_path, "openssl", "crl", "-inform", "DER", "-in", "list.crl", "-noout", "-text")
            assert f"Serial Number: {certificate.serial:X}" in shown
            assert "Key Compromise" in shown
            if family == "ecc":
                checked = await run(
                    tmp_path, "openssl", "crl", "-inform", "DER", "-in", "list.crl", "-noout", "-CAfile", "ecc-issuing.pem", "-verify"
                )
                assert "verify OK" in checked

    asyncio.run(scene())


def test_what_happens_within_a_second_is_not_hidden_by_the_date(opened) -> None:
    async def scene() -> None:
        async with opened() as world, world.client() as client:
            certificate = await world.certificate()
            issuing = world.authorities["ecc-issuing"]
            question = "/ocsp/" + quote(base64.b64encode(world.ask(certificate.serial)), safe="")
            for path in (question, "/crl/ecc-issuing.crl"):
                await publish(issuing, timedelta(hours=24), store=world.store, signer=world.signer, now=world.clock.now())
                first = await client.get(path)
                world.clock.moment += timedelta(milliseconds=300)
                if path == question:
                    await world.store.revoke([(await world.record()).id], Reason.keyCompromise, world.clock.now(), actor="test")
                await publish(issuing, timedelta(hours=24), store=world.store, signer=world.signer, now=world.clock.now())
                second = await client.get(path, headers={"If-Modified-Since": first.headers["Last-Modified"]})
                assert second.headers["Last-Modified"] == first.headers["Last-Modified"]
                assert second.status == 200
                assert await second.read() != await first.read()
                world.clock.moment += timedelta(seconds=1)

    asyncio.run(scene())


@pytest.mark.parametrize(
    "field",
    [
        ("If-Modified-Since", "Mon, 01 Jan 99999999999999999 00:00:00 GMT"),
        ("If-Modified-Since", "Mon, 99 Jan 2020 99:99:99 +9999999999"),
        ("If-Unmodified-Since", "Mon, 01 Jan 99999999999999999 00:00:00 GMT"),
        ("If-None-Match", '"' * 4000),
        ("If-None-Match", 'W/"\x80", junk'),
        ("If-Range", "99999999999999999"),
        ("Range", "bytes=9999999999999999999999-"),
        ("Range", "bytes=0-1,a"),
        ("Accept-Encoding", "gzip, \x80"),
        ("Cookie", "a=\x80; ="),
        ("Content-Type", "text/plain; charset=\x80"),
    ],
)
def test_no_field_of_a_request_can_break_an_answer(opened, field: tuple[str, str]) -> None:
    async def scene() -> None:
        async with opened() as world, world.client() as client:
            certificate = await world.certificate()
            issuing = world.authorities["ecc-issuing"]
            await publish(issuing, timedelta(hours=24), store=world.store, signer=world.signer, now=world.clock.now())
            question = base64.urlsafe_b64encode(world.ask(certificate.serial)).decode()
            name, value = field
            for path in (f"/ocsp/{question}", "/crl/ecc-issuing.crl", "/aia/ecc-root.cer"):
                for method in ("GET", "HEAD"):
                    reader, writer = await asyncio.open_connection("127.0.0.1", client.server.port)
                    head = f"{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{name}: {value}\r\n\r\n"
                    writer.write(head.encode("latin-1"))
                    assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
                    writer.close()
                    await writer.wait_closed()

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("coding", "decompress"),
    [("gzip", True), ("identity", True), ("no-such", True), ("gzip", False), ("deflate", False), ("br", False), ("no-such", False)],
)
@pytest.mark.parametrize("at_once", [True, False])
def test_a_compressed_question_is_malformed_and_ends_the_connection(opened, coding: str, decompress: bool, at_once: bool) -> None:
    """Whether aiohttp below would decompress it or not. (If so, it refuses broken deflate, and br, with 400 by itself.)"""

    async def scene() -> None:
        async with opened() as world, world.client(auto_decompress=decompress) as client:
            reader, writer = await asyncio.open_connection("127.0.0.1", client.server.port)
            writer.write(f"POST /ocsp HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Encoding: {coding}\r\n\r\n".encode())
            if at_once:
                writer.write(b"ABCD")
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            assert b"Connection: close" in head
            assert await reader.readexactly(5) == b"\x30\x03\x0a\x01\x01"
            writer.write(b"ABCD")
            writer.close()

    asyncio.run(scene())


def big_crl(world) -> CrlRecord:
    """No CRL, only as long as one, and more than all buffers between two sockets hold."""
    now = world.clock.now()
    return CrlRecord("ecc-issuing", 1, random.Random(7).randbytes(24_000_001), now, now + timedelta(days=1), 0)


class BigCrl:
    """A store with one CRL, which counts how often it is read."""

    def __init__(self, record: CrlRecord) -> None:
        self.record, self.read = record, 0

    async def latest_crl_number(self, _authority: str) -> int:
        return self.record.number

    async def latest_crl(self, _authority: str) -> CrlRecord:
        self.read += 1
        await asyncio.sleep(0)
        return self.record


def test_a_big_crl_is_read_once_and_comes_whole(opened) -> None:
    async def scene() -> None:
        async with opened() as world:
            record = big_crl(world)
            store, world.store = world.store, BigCrl(record)
            try:
                async with world.client() as client:

                    async def fetch() -> None:
                        answer = await client.get("/crl/ecc-issuing.crl")
                        assert answer.headers["Content-Length"] == str(len(record.der))
                        assert "Transfer-Encoding" not in answer.headers
                        assert await answer.read() == record.der

                    await asyncio.gather(fetch(), fetch(), fetch())
                    assert world.store.read == 1
                    head = await client.head("/crl/ecc-issuing.crl")
                    assert (head.headers["Content-Length"], await head.read()) == (str(len(record.der)), b"")
                    same = await client.get("/crl/ecc-issuing.crl", headers={"If-None-Match": head.headers["ETag"]})
                    assert (same.status, await same.read()) == (304, b"")
            finally:
                world.store = store

    asyncio.run(scene())


def test_a_client_that_does_not_read_its_crl_is_cut_off_and_holds_little(opened) -> None:
    async def scene() -> None:
        async with opened() as world:
            record = big_crl(world)
            store, world.store = world.store, BigCrl(record)
            held: list[int] = []
            try:
                async with world.client(piece_seconds=0.5) as client:
                    reader, writer = await asyncio.open_connection("127.0.0.1", client.server.port, limit=1024)
                    writer.write(b"GET /crl/ecc-issuing.crl HTTP/1.1\r\nHost: a\r\n\r\n")
                    while not writer.transport.is_closing():
                        # The other end of the connection, as the server sees it.
                        ends = [protocol.transport for protocol in client.server.runner.server.connections]
                        if not ends and held:
                            break
                        held += [end.get_write_buffer_size() for end in ends if end is not None]
                        await asyncio.sleep(0.01)
                    assert 0 < max(held) <= PIECE
                    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                        await reader.readexactly(len(record.der))
                    writer.close()
                    # The next one is served.
                    answer = await client.get("/crl/ecc-issuing.crl")
                    assert await answer.read() == record.der
            finally:
                world.store = store

    asyncio.run(scene())


def test_a_big_crl_comes_whole_through_the_loop_and_tls_of_a_worker(opened, tmp_path: Path) -> None:
    """uvloop has transports of its own."""

    async def scene() -> None:
        async with opened() as world:
            made = ("-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "k", "-out", "c", "-subj", "/CN=localhost")
            await run(tmp_path, "openssl", "req", *made)
            server, anyone = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
            server.load_cert_chain(tmp_path / "c", tmp_path / "k")
            anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
            record = big_crl(world)
            store, world.store = world.store, BigCrl(record)
            try:
                async with world.client(ssl=server) as client:
                    for _ in range(2):
                        answer = await client.get("/crl/ecc-issuing.crl", ssl=anyone)
                        assert await answer.read() == record.der
            finally:
                world.store = store

    uvloop.run(scene())


def test_a_client_that_leaves_in_the_middle_of_a_crl_breaks_nothing(opened, caplog) -> None:
    async def scene() -> None:
        async with opened() as world:
            record = big_crl(world)
            store, world.store = world.store, BigCrl(record)
            try:
                async with world.client() as client:
                    for _ in range(4):
                        reader, writer = await asyncio.open_connection("127.0.0.1", client.server.port)
                        writer.write(b"GET /crl/ecc-issuing.crl HTTP/1.1\r\nHost: a\r\n\r\n")
                        await reader.readexactly(100_000)
                        writer.transport.abort()
                    answer = await client.get("/crl/ecc-issuing.crl")
                    assert await answer.read() == record.der
            finally:
                world.store = store

    asyncio.run(scene())
    assert caplog.records == []


def test_ca_certificates_by_name_and_by_fingerprint(opened, tmp_path: Path) -> None:
    async def scene() -> None:
        async with opened() as world, world.client() as client:
            for id, authority in world.authorities.items():
                for name in (id, authority.certificate.sha256.hex()):
                    answer = await client.get(f"/aia/{name}.cer")
                    assert answer.headers["Content-Type"] == "application/pkix-cert"
                    assert await answer.read() == authority.certificate.der
            pinned = await client.get("/aia/tls-root.cer")
            assert await pinned.read() == world.authorities["ecc-root"].certificate.der
            await run(tmp_path, "curl", "--silent", "--fail", "--output", "root.cer", str(client.make_url("/aia/sm2-root.cer")))
            text = await run(tmp_path, "openssl", "x509", "-inform", "DER", "-in", "root.cer", "-noout", "-subject")
            assert "sm2-root" in text

    asyncio.run(scene())


@pytest.mark.parametrize(
    "path",
    [
        "/crl/nobody.crl",
        "/crl/ecc-issuing",
        "/crl/ECC-ISSUING.crl",
        "/crl/..%2fecc-issuing.crl",
        "/crl/../../etc/passwd",
        "/crl/%00.crl",
        "/aia/nobody.cer",
        "/aia/" + "0" * 64 + ".cer",
        "/aia/" + "a" * 65 + ".cer",
        "/aia/%2e%2e%2fecc-root.cer",
        "/aia/ecc-root.cer/more",
        "/ocsp",
        "/ocspx/AAAA",
    ],
)
def test_paths_that_lead_nowhere(opened, path: str) -> None:
    async def scene() -> None:
        async with opened() as world, world.client() as client:
            status, _, body = await get(client, path)
            assert status in (404, 405)
            assert b"ecc" not in body

    asyncio.run(scene())


def test_a_device_certificate_points_to_where_its_status_is(opened) -> None:
    """What stands in the certificate leads to these doors."""

    async def scene() -> None:
        async with opened() as world, world.client() as client:
            certificate = await world.certificate()
            issuing = world.authorities["ecc-issuing"]
            await publish(issuing, timedelta(hours=24), store=world.store, signer=world.signer, now=world.clock.now())
            (ocsp_url,), (crl_url,), (issuer_url,) = certificate.ocsp_urls, certificate.crl_urls, certificate.issuer_urls
            path = ocsp_url.removeprefix("http://127.0.0.1:8080")
            answer = await client.post(path, data=world.ask(certificate.serial), headers=POST)
            assert parse_response(await answer.read()).find(cert_id("sha256", issuing.certificate, certificate.serial)).status == "good"
            assert (await client.get(crl_url.removeprefix("http://127.0.0.1:8080"))).status == 200
            issuer = await client.get(issuer_url.removeprefix("http://127.0.0.1:8080"))
            assert pem.encode("CERTIFICATE", await issuer.read()) == issuing.certificate.pem

    asyncio.run(scene())
