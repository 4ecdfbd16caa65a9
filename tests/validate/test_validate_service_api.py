"""The doors of the validation service, over HTTP and over the Unix socket: verdicts, problems, bounds, and a description that fits."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import shutil
import tempfile
from pathlib import Path
from urllib.parse import quote

import aiohttp
import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ironroot.validator import api
from ironroot.validator.http import ApiDoor, NginxDoor, application
from ironroot.validator.judge import Judge
from ironroot.validator.lines import MAX_LINE, Lines, answer
from pkix import pem
from pkix.algorithms import KeyKind
from pkix.errors import Malformed, Unavailable
from validate import Policy, anchors
from validate.client import Client, ask


class Stopped:
    """A clock that stands."""

    def __init__(self, at) -> None:
        self._at = at

    def now(self):
        return self._at


@pytest.fixture(scope="module")
def plant(pki):
    return pki.plant()


@pytest.fixture(scope="module")
def judge(pki, plant):
    """Trusts one plant, looks at no status."""
    trusted = anchors(plant.root.der, pki.plant(KeyKind.SM2).root.der)
    policy = Policy(anchors=trusted, intermediates=(plant.issuing.certificate,), status="none")
    return Judge(policy, status=None, clock=Stopped(pki.NOW))


def b64(party) -> str:
    return base64.b64encode(party.der).decode()


@contextlib.asynccontextmanager
async def serving(judge, *, proxies=("127.0.0.1",), body_seconds=5.0, unix=None):
    """The HTTP interface on loopback, or on a Unix socket; a session that asks there."""
    made = application(judge, NginxDoor(judge, "X-Client-Certificate", proxies))
    if body_seconds != 5.0:
        made = web.Application()
        made.add_routes(ApiDoor(judge, body_seconds=body_seconds).routes())
    runner = web.AppRunner(made, shutdown_timeout=0.1, max_field_size=65536)
    await runner.setup()
    site = web.UnixSite(runner, str(unix)) if unix else web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    base = "http://validator" if unix else f"http://127.0.0.1:{runner.addresses[0][1]}"
    connector = aiohttp.UnixConnector(str(unix)) if unix else None
    try:
        async with aiohttp.ClientSession(base, connector=connector) as session:
            yield session
    finally:
        await runner.cleanup()


def over_http(judge, method, path, *, serve=None, **request):
    """Status, headers and body of one request."""

    async def work():
        async with serving(judge, **(serve or {})) as session, session.request(method, path, **request) as response:
            return response.status, response.headers, await response.read()

    return asyncio.run(work())


def asked(judge, document, **more) -> tuple[int, dict]:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    status, headers, said = over_http(
        judge,
        "POST",
        "/api/v1/validate",
        data=io.BytesIO(body),
        headers={"Content-Type": "application/json"} | more.pop("headers", {}),
        **more,
    )
    assert headers["Content-Type"] == ("application/json" if status == 200 else "application/problem+json")
    return status, json.loads(said)


# Verdicts


def test_a_good_peer(judge, plant) -> None:
    for encoded in (b64(plant.device), plant.device.certificate.pem, plant.device.certificate.pem + plant.issuing.certificate.pem):
        status, verdict = asked(judge, {"certificate": encoded, "purpose": "tls-client", "names": ["uri:urn:ironroot:device:x:plc-7"]})
        assert (status, verdict["good"], verdict["code"]) == (200, True, "good")
        assert [one["subject"].split(",")[0] for one in verdict["path"]] == ["CN=plc-7", "CN=p-256 issuing", "CN=p-256 root"]
        assert "checks" not in verdict


def test_a_peer_that_is_not_good_is_an_answer(judge, plant) -> None:
    for request, code in (
        ({"purpose": "tls-server"}, "wrong_purpose"),
        ({"names": ["dns:plc-8.plant"]}, "wrong_name"),
        ({"certificate": "MIIB"}, "malformed"),
    ):
        status, verdict = asked(judge, {"certificate": b64(plant.device)} | request)
        assert (status, verdict["good"], verdict["code"]) == (200, False, code)
        assert verdict["reason"].startswith("Not good: ")
        assert verdict["reason_zh"].startswith("无效：")


def test_its_own_chain(pki, judge) -> None:
    sm2 = pki.plant(KeyKind.SM2)
    status, verdict = asked(judge, {"certificate": b64(sm2.device), "chain": [b64(sm2.issuing)]})
    assert (status, verdict["good"]) == (200, True)
    assert asked(judge, {"certificate": b64(sm2.device)})[1]["code"] == "unknown_issuer"


def test_a_batch_keeps_its_order(judge, plant) -> None:
    status, verdicts = asked(judge, [{"certificate": b64(plant.device), "purpose": p} for p in ("tls-client", "tls-server", "tls-client")])
    assert status == 200
    assert [verdict["code"] for verdict in verdicts] == ["good", "wrong_purpose", "good"]


def test_explained(judge, plant) -> None:
    _, verdict = asked(judge, {"certificate": b64(plant.device), "explain": True})
    assert {check["name"] for check in verdict["checks"]} > {"signature", "validity", "purpose"}
    api.VerdictView.model_validate(verdict)


def test_now_is_for_tests(pki, judge, plant) -> None:
    later = {"certificate": b64(plant.device), "now": "2027-11-23T10:00:00Z"}
    status, problem = asked(judge, later)
    assert (status, problem["errors"][0]["pointer"]) == (400, "/now")
    in_tests = Judge(judge.policy, status=None, clock=Stopped(pki.NOW), allow_now=True)
    assert asked(in_tests, later)[1]["code"] == "expired"
    assert asked(in_tests, later | {"now": "2027-11-23T10:00:00"})[0] == 400  # of which time zone?


# Problems


@pytest.mark.parametrize(
    ("document", "status", "pointer"),
    [
        (b"", 400, None),
        (b"{", 400, None),
        (b"nonsense", 400, None),
        (b"null", 400, None),
        (b"\xff\xfe", 400, None),
        (b"[" * 10_000, 400, None),
        ([], 400, None),
        ({}, 400, "/certificate"),
        ({"certificate": 7}, 400, "/certificate"),
        ({"certificate": ""}, 400, "/certificate"),
        ({"certificate": "-----BEGIN CERTIFICATE-----\nMII"}, 400, "/certificate"),
        ({"certificate": "-----BEGIN PRIVATE KEY-----\nMII=\n-----END PRIVATE KEY-----"}, 400, "/certificate"),
        ({"certificate": "ß"}, 400, "/certificate"),
        ({"certificate": "MII=", "chain": ["?"]}, 400, "/chain/0"),
        ({"certificate": "MII=", "chain": ["MII="] * 10_000}, 400, "/chain"),
        ({"certificate": "MII=", "staples": ["?"]}, 400, "/staples/0"),
        ({"certificate": "MII=", "purpose": "world-peace"}, 400, "/purpose"),
        ({"certificate": "MII=", "names": ["dns:*.plant"]}, 400, "/names"),
        ({"certificate": "MII=", "names": ["x"] * 33}, 400, "/names"),
        ({"certificate": "MII=", "certifcate": "MII="}, 400, "/certifcate"),
        ({"certificate": "MII=", "a/b~c": 1}, 400, "/a~1b~0c"),
        ([{"certificate": "MII="}, {"certificate": "?"}], 400, "/1/certificate"),
        ([{"certificate": "MII="}] * 65, 400, None),
        ({"certificate": "A" * 200_000}, 400, "/certificate"),
        (b'{"certificate": "' + b"A" * (1 << 20) + b'"}', 413, None),
    ],
)
def test_bad_requests(judge, document, status, pointer) -> None:
    got, problem = asked(judge, document)
    assert (got, problem["status"]) == (status, status), problem
    assert pointer in {None, *(error["pointer"] for error in problem.get("errors", ()))}, problem
    api.ProblemView.model_validate(problem)


def test_ten_thousand_certificates_in_a_bundle(judge) -> None:
    status, problem = asked(judge, {"certificate": "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n" * 1600})
    assert (status, problem["errors"][0]["detail"]) == (400, "1600 certificates, and 32 are taken")


def test_other_media_types_and_methods(judge) -> None:
    for headers in ({"Content-Type": "text/plain"}, {"Content-Encoding": "gzip"}):
        assert asked(judge, {"certificate": "MII="}, headers=headers)[0] == 415
    for method, path, expected in (("GET", "/api/v1/validate", 405), ("POST", "/api/v1/openapi.json", 405), ("GET", "/x", 404)):
        status, headers, said = over_http(judge, method, path)
        assert (status, headers["Content-Type"], json.loads(said)["status"]) == (expected, "application/problem+json", expected)


def test_a_slow_client_is_let_go(judge) -> None:
    async def trickle():
        yield b'{"certificate":'
        await asyncio.sleep(60)

    async def work():
        async with serving(judge, body_seconds=0.2) as session:
            headers = {"Content-Type": "application/json"}
            async with session.post("/api/v1/validate", data=trickle(), headers=headers) as response:
                return response.status, await response.json(content_type="application/problem+json")

    status, problem = asyncio.run(work())
    assert (status, problem["code"]) == (408, "malformed")


def test_a_long_body_is_not_read_to_its_end(judge) -> None:
    async def endless():
        while True:
            yield b" " * 65536

    async def work():
        async with serving(judge) as session:
            with contextlib.suppress(aiohttp.ClientError):  # it may be cut off while still sending
                headers = {"Content-Type": "application/json"}
                async with session.post("/api/v1/validate", data=endless(), headers=headers) as response:
                    return response.status
            return 413

    assert asyncio.run(work()) == 413


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    document=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["certificate", "chain", "names", "id", "x"]), inner),
        max_leaves=8,
    )
)
def test_any_document_is_answered(judge, document) -> None:
    line = json.dumps(document).encode()
    number, said = asyncio.run(answer(judge, line))
    json.loads(b'{"id":' + number + b"," + said + b"}")
    with contextlib.suppress(api.Problem):
        json.loads(asyncio.run(judge.answer(line)))


# The description


def schema_errors(schema: dict, value: object, schemas: dict, where: str = "") -> list[str]:
    """What of a JSON Schema is not met: as much of it as the description uses."""
    if "$ref" in schema:
        return schema_errors(schemas[schema["$ref"].rpartition("/")[2]], value, schemas, where)
    for word in ("oneOf", "anyOf"):
        if word in schema:
            fits = [not schema_errors(one, value, schemas, where) for one in schema[word]]
            return [] if (sum(fits) == 1 if word == "oneOf" else any(fits)) else [f"{where}: {word}"]
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "null": type(None)}
    found = []
    if "type" in schema and (not isinstance(value, kinds[schema["type"]]) or (schema["type"] == "integer" and isinstance(value, bool))):
        return [f"{where}: not of type {schema['type']}"]
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{where}: {value!r} is not listed")
    if isinstance(value, dict):
        known = schema.get("properties", {})
        found += [f"{where}/{name} is missing" for name in schema.get("required", ()) if name not in value]
        if schema.get("additionalProperties") is False:
            found += [f"{where}/{name} is unknown" for name in value if name not in known]
        for name in value.keys() & known.keys():
            found += schema_errors(known[name], value[name], schemas, f"{where}/{name}")
    if isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            found.append(f"{where}: {len(value)} items")
        for at, one in enumerate(value):
            found += schema_errors(schema.get("items", {}), one, schemas, f"{where}/{at}")
    if isinstance(value, str) and len(value) > schema.get("maxLength", len(value)):
        found.append(f"{where}: too long")
    return found


def test_the_description_is_right(judge, plant) -> None:
    """Paths, limits, members and types, held against what the service does."""
    status, headers, said = over_http(judge, "GET", "/api/v1/openapi.json")
    description = json.loads(said)
    assert (status, headers["Content-Type"], description["openapi"]) == (200, "application/json", "3.1.0")
    routes = {route.resource.canonical for route in application(judge, NginxDoor(judge, "X", ())).router.routes()}
    assert set(description["paths"]) <= routes
    schemas = description["components"]["schemas"]
    operation = description["paths"]["/api/v1/validate"]["post"]
    request = operation["requestBody"]["content"]["application/json"]["schema"]
    verdict = operation["responses"]["200"]["content"]["application/json"]["schema"]

    one = {"certificate": b64(plant.device), "names": ["dns:x"], "chain": [b64(plant.issuing)], "explain": True}
    for document, good in (
        (one, True),
        ([one, one], True),
        ([one] * 64, True),
        ([one] * 65, False),
        (one | {"chain": [b64(plant.issuing)] * 33}, False),
        (one | {"certificate": "A" * 100_001}, False),
        (one | {"purpose": "world-peace"}, False),
        (one | {"more": 1}, False),
        ({}, False),
    ):
        assert (not schema_errors(request, document, schemas)) is good
        status, said = asked(judge, document)
        if good:
            assert (status, schema_errors(verdict, said, schemas)) == (200, [])
        else:
            assert str(status) in operation["responses"]
            problem = operation["responses"][str(status)]["content"]["application/problem+json"]["schema"]
            assert schema_errors(problem, said, schemas) == []


# nginx


def auth(judge, certificate: str | None, path="/auth/nginx", **serve):
    headers = {} if certificate is None else {"X-Client-Certificate": quote(certificate)}
    status, headers, _ = over_http(judge, "GET", path, headers=headers, serve=serve)
    return status, headers


def test_nginx_gets_what_it_understands(judge, plant) -> None:
    status, headers = auth(judge, plant.device.certificate.pem)
    assert (status, headers["X-Ironroot-Names"]) == (204, "uri:urn:ironroot:device:x:plc-7")
    assert headers["X-Ironroot-Subject"] == "CN=plc-7,O=Example Plant"
    status, headers = auth(judge, plant.device.certificate.pem, "/auth/nginx?purpose=tls-server")
    assert (status, headers["X-Ironroot-Code"]) == (403, "wrong_purpose")
    status, headers = auth(judge, plant.device.certificate.pem, "/auth/nginx?name=device:x/plc-8")
    assert (status, headers["X-Ironroot-Code"]) == (403, "wrong_name")
    for path in ("/auth/nginx?purpose=x", "/auth/nginx?name=x"):
        assert auth(judge, plant.device.certificate.pem, path)[0] == 403
    assert auth(judge, None)[0] == auth(judge, "")[0] == 401
    assert auth(judge, "rubbish")[0] == auth(judge, "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----")[0] == 403


def test_only_the_proxy_is_believed(judge, plant) -> None:
    status, headers = auth(judge, plant.device.certificate.pem, proxies=("192.0.2.7", "unix"))
    assert (status, headers["X-Ironroot-Code"]) == (403, "refused")
    folder = Path(tempfile.mkdtemp(prefix="ir", dir="/tmp"))
    try:
        assert auth(judge, plant.device.certificate.pem, proxies=("unix",), unix=folder / "s")[0] == 204
        assert auth(judge, plant.device.certificate.pem, proxies=("127.0.0.1",), unix=folder / "s")[0] == 403
    finally:
        shutil.rmtree(folder)


def test_a_header_that_came_twice_is_refused(pki, judge, plant) -> None:
    both = [("X-Client-Certificate", quote(plant.device.certificate.pem)), ("X-Client-Certificate", quote(plant.issuing.certificate.pem))]
    assert over_http(judge, "GET", "/auth/nginx", headers=both)[0] == 403


# The Unix socket


@contextlib.asynccontextmanager
async def listening(judge):
    folder = Path(tempfile.mkdtemp(prefix="ir", dir="/tmp"))
    connections: set[Lines] = set()
    server = await asyncio.get_running_loop().create_unix_server(lambda: Lines(judge, connections), folder / "s")
    try:
        yield folder / "s", connections
    finally:
        server.close()
        await asyncio.gather(*(connection.finish(1) for connection in list(connections)))
        shutil.rmtree(folder)


def spoken(judge, sent: bytes) -> list[dict]:
    """All answers to what is sent in one go; then the connection ends."""

    async def work():
        async with listening(judge) as (path, _):
            reader, writer = await asyncio.open_unix_connection(path, limit=8 << 20)
            writer.write(sent)
            writer.write_eof()
            said = await reader.read()
            writer.close()
            return [json.loads(line) for line in said.splitlines()]

    return asyncio.run(work())


def test_lines_are_answered_each(judge, plant) -> None:
    good, bad = ({"certificate": b64(plant.device), "purpose": purpose} for purpose in ("tls-client", "tls-server"))
    sent = b"".join(json.dumps(one | {"id": n}).encode() + b"\n\n" for n, one in ((1, good), ("two", bad), (3, {"certificate": "?"})))
    answers = {said["id"]: said for said in spoken(judge, sent + b"nonsense\n" + b'{"id": 9, "certificate": ')}
    assert answers[1]["verdict"]["code"] == "good"
    assert answers["two"]["verdict"]["code"] == "wrong_purpose"
    assert answers[3]["problem"]["status"] == answers[None]["problem"]["status"] == 400
    assert 9 not in answers  # the line never ended


def test_more_lines_than_are_worked_on_at_once(judge, plant) -> None:
    line = json.dumps({"certificate": b64(plant.device)}).encode()
    answers = spoken(judge, b"".join(line[:-1] + b', "id": %d}\n' % n for n in range(1000)))
    assert sorted(said["id"] for said in answers) == list(range(1000))
    assert all(said["verdict"]["good"] for said in answers)


def test_a_line_without_end(judge) -> None:
    (said,) = spoken(judge, b'{"id": 1, "certificate": "' + b"A" * (MAX_LINE + 70_000))
    assert said["problem"]["status"] == 413
    answers = spoken(judge, b'{"id": 1, "certificate": "' + b"A" * (MAX_LINE + 1) + b'"}\n{"id": 2}\n')
    assert answers[0]["problem"]["status"] == 413


def test_a_peer_that_does_not_read_does_not_fill_memory(judge, plant) -> None:
    line = json.dumps({"certificate": b64(plant.device), "explain": True}).encode() + b"\n"

    async def work():
        async with listening(judge) as (path, connections):
            _, writer = await asyncio.open_unix_connection(path, limit=1024)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    for _ in range(20_000):
                        writer.write(line)
                        await writer.drain()
            (connection,) = connections
            waits = connection._transport.get_write_buffer_size()  # type: ignore[union-attr]
            writer.transport.abort()
            return waits

    assert asyncio.run(work()) < 8 << 20


def test_the_client(judge, plant) -> None:
    chain = [plant.device.der, plant.issuing.der]

    async def work():
        async with listening(judge) as (path, _):
            client = Client(path)
            verdicts = await asyncio.gather(*(client.ask(chain, purpose=p) for p in ("tls-client", "tls-server") * 50))
            assert [verdict.code for verdict in verdicts] == ["good", "wrong_purpose"] * 50
            assert verdicts[1].sentence("zh").startswith("无效：")
            with pytest.raises(Malformed, match="/names"):
                await client.ask(chain, names=("x",))
            explained = await asyncio.to_thread(ask, path, chain, names=("device:x/plc-7",), explain=True)
            assert explained.good
            assert explained.document["checks"]
            client._writer.close()  # type: ignore[union-attr]
            await client._writer.wait_closed()  # type: ignore[union-attr]
            assert (await client.ask(chain)).good  # on a new connection
            await client.close()
            return path

    path = asyncio.run(work())
    with pytest.raises(Unavailable, match="cannot be asked"):
        ask(path, chain)
    with pytest.raises(Unavailable, match="cannot be reached"):
        asyncio.run(Client(path).ask(chain))


def test_a_validator_that_says_nothing_is_no_verdict(plant) -> None:
    async def mute(reader, writer) -> None:
        while await reader.read(65536):
            pass
        writer.close()

    async def work():
        folder = Path(tempfile.mkdtemp(prefix="ir", dir="/tmp"))
        server = await asyncio.start_unix_server(mute, folder / "s")
        client = Client(folder / "s", timeout=0.2)
        try:
            with pytest.raises(Unavailable, match=r"did not answer within 0\.2 s"):
                await client.ask([plant.device.der])
            with pytest.raises(Unavailable, match="cannot be asked"):
                await asyncio.to_thread(ask, folder / "s", [plant.device.der], timeout=0.2)
        finally:
            await client.close()
            server.close()
            shutil.rmtree(folder)

    asyncio.run(work())


def test_pem_is_read_as_pem_is(plant) -> None:
    request = api.Request(certificate="Subject: …\n" + plant.device.certificate.pem, chain=[pem.encode("CERTIFICATE", plant.issuing.der)])
    assert request.certificates() == [plant.device.der, plant.issuing.der]
