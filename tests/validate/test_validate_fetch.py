"""The HTTP adapter against a real server: what it refuses and where it stops."""

from __future__ import annotations

import asyncio
import gzip
import socket
import threading
from contextlib import asynccontextmanager
from ipaddress import ip_network

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from pkix import cms, pem
from pkix.errors import Refused, Unavailable
from validate import Policy, anchors, fetch, validate
from validate.fetch import LOOPBACK, PLANT, HttpFetcher, fresh_for
from validate.fetch_address import permitted
from validate.fetch_issuers import with_issuers

POST = "application/ocsp-request"


def with_server(pki, use, **options):
    async def run():
        async with pki.serving() as server:
            fetcher = HttpFetcher(**{"networks": LOOPBACK} | options)
            try:
                return await use(server, fetcher)
            finally:
                await fetcher.close()

    return asyncio.run(run())


def test_get_and_post(pki):
    async def use(server, fetcher):
        async def echo(request):
            return request.method.encode() + request.content_type.encode() + await request.read()

        server.answers["/x"] = echo
        return (await fetcher.fetch(f"{server.url}/x", b"\x01\x02", POST)).body, (await fetcher.fetch(f"{server.url}/x")).body

    posted, got = with_server(pki, use)
    assert posted == b"POSTapplication/ocsp-request\x01\x02"
    assert got.startswith(b"GET")


@pytest.mark.parametrize("status", [204, 206, 300, 304, 404, 500, 503])
def test_anything_but_200_is_nothing(pki, status):
    async def use(server, fetcher):
        async def answer(request):
            return web.Response(status=status)

        server.answers["/x"] = answer
        with pytest.raises(Unavailable, match=str(status)):
            await fetcher.fetch(f"{server.url}/x")

    with_server(pki, use)


# --- redirects -----------------------------------------------------------------------------------------------------


def sending(to, status=302):
    async def answer(request):
        return web.Response(status=status, headers={"Location": to})

    return answer


def test_redirects_are_followed_a_few_times(pki):
    async def use(server, fetcher):
        server.answers |= {"/1": sending("/2"), "/2": sending(f"{server.url}/3", 301), "/3": sending("/x", 308), "/x": b"there"}
        assert (await fetcher.fetch(f"{server.url}/1")).body == b"there"
        server.answers["/0"] = sending("/1")
        with pytest.raises(Unavailable, match="more than 3 redirects"):
            await fetcher.fetch(f"{server.url}/0")
        server.answers["/loop"] = sending("/loop")
        with pytest.raises(Unavailable, match="redirects"):
            await fetcher.fetch(f"{server.url}/loop")
        assert server.seen.count("GET /loop") == 4

    with_server(pki, use)


@pytest.mark.parametrize(
    ("to", "why"),
    [
        ("http://169.254.169.254/latest/meta-data", "169.254"),
        ("http://[::1]:1/x", "::1"),
        ("http://2130706433/x", "2130706433"),
        ("http://elsewhere.example/x", "elsewhere"),
        ("file:///etc/passwd", "http"),
        ("http://user:secret@127.0.0.1/x", "user"),
    ],
)
def test_a_redirect_leads_nowhere_that_could_not_be_asked(pki, to, why):
    async def use(server, fetcher):
        server.answers["/x"] = sending(to)
        with pytest.raises(Refused, match=why):
            await fetcher.fetch(f"{server.url}/x")

    hosts = frozenset({"127.0.0.1", "169.254.169.254", "::1", "2130706433"})
    with_server(pki, use, allowed_hosts=hosts, networks=(ip_network("127.0.0.0/8"),))


def test_a_post_is_only_redirected_as_a_post(pki):
    async def use(server, fetcher):
        async def echo(request):
            return request.method.encode() + await request.read()

        server.answers |= {"/keep": sending("/x", 307), "/change": sending("/x", 303), "/x": echo}
        assert (await fetcher.fetch(f"{server.url}/keep", b"1", POST)).body == b"POST1"
        with pytest.raises(Unavailable, match="303"):
            await fetcher.fetch(f"{server.url}/change", b"1", POST)

    with_server(pki, use)


# --- where to ------------------------------------------------------------------------------------------------------

URLS = [
    "file:///etc/passwd",
    "ldap://127.0.0.1/cn=x",
    "ftp://127.0.0.1/x",
    "http:///x",
    "http://user:secret@127.0.0.1/",
    "http://[::1",
    "x",
    "",
    "http://h:99999/",
    "http://elsewhere.example/",
]


@pytest.mark.parametrize("url", URLS)
def test_urls_that_are_not_asked(pki, url):
    async def use(server, fetcher):
        with pytest.raises(Refused):
            await fetcher.fetch(url)
        return server.seen

    assert with_server(pki, use, allowed_hosts=frozenset({"127.0.0.1", "h"})) == []


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "017700000001",
        "127.0.0.1.",
        "localhost",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "0.0.0.0",  # noqa: S104
        "[::]",
        "[fe80::1%25lo]",
        "169.254.169.254",
        "[fd00:ec2::254]",
        "10.0.0.1",
    ],
)
def test_addresses_inside_are_not_asked_however_they_are_written(pki, host):
    async def use(server, fetcher):
        server.answers["/x"] = b"secret"
        with pytest.raises((Refused, Unavailable)):
            await fetcher.fetch(f"http://{host}:{server.url.rpartition(':')[2]}/x")
        return server.seen

    assert with_server(pki, use, networks=()) == []


def test_a_name_that_leads_inside_is_refused_as_such(pki):
    async def use(server, fetcher):
        with pytest.raises(Refused, match="localhost leads only to addresses that may not be asked"):
            await fetcher.fetch("http://localhost/x")

    with_server(pki, use, networks=())


@pytest.mark.parametrize(
    ("address", "networks", "good"),
    [
        ("8.8.8.8", (), True),
        ("2606:4700::1111", (), True),
        ("10.1.2.3", (), False),
        ("10.1.2.3", PLANT, True),
        ("127.0.0.1", PLANT, False),
        ("::ffff:10.1.2.3", PLANT, True),
        ("::ffff:127.0.0.1", PLANT, False),
        ("64:ff9b::127.0.0.1", PLANT, False),
        ("64:ff9b::8.8.8.8", (), True),
        ("64:ff9b:1::10.0.0.1", (), False),
        ("::ffff:0:10.0.0.1", (), False),
        ("fec0::1", (), False),
        ("5f00::1", (), False),
        ("2002:7f00:1::", (), False),
        ("224.0.0.1", (), False),
        ("255.255.255.255", PLANT, False),
        ("100.64.0.1", (), False),
        ("169.254.169.254", PLANT, False),
        ("fe80::1%lo", PLANT, False),
        ("fd00::1", PLANT, True),
        ("::127.0.0.1", PLANT, False),
        ("nonsense", PLANT, False),
    ],
)
def test_permitted_addresses(address, networks, good):
    assert permitted(address, networks) is good


@given(st.ip_addresses(v=4))
def test_wrapping_an_address_permits_nothing_more(address):
    plain = permitted(str(address), PLANT)
    assert permitted(f"::ffff:{address}", PLANT) is plain
    assert not permitted(f"64:ff9b::{address}", PLANT) or plain


def test_what_was_judged_is_what_is_connected_to(pki, monkeypatch):
    """A name server that says something else the second time (DNS rebinding) is not asked a second time."""
    asked = []
    real = socket.getaddrinfo

    def rebinding(host, port, *more, **named):
        if host != "rebind.example":
            return real(host, port, *more, **named)
        asked.append(host)
        where = "127.0.0.77" if len(asked) == 1 else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (where, port))]

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)

    async def use(server, fetcher):
        server.answers["/x"] = b"secret"
        with pytest.raises(Unavailable, match="no connection"):
            await fetcher.fetch(f"http://rebind.example:{server.url.rpartition(':')[2]}/x")
        return server.seen

    assert with_server(pki, use, networks=(ip_network("127.0.0.77"),)) == []
    assert asked == ["rebind.example"]


def test_of_several_addresses_only_permitted_ones_are_tried(pki, monkeypatch):
    async def use(server, fetcher):
        port = int(server.url.rpartition(":")[2])
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (where, port)) for where in ("127.0.0.99", "127.0.0.1")]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        server.answers["/x"] = b"1"
        return (await fetcher.fetch(f"http://both.example:{port}/x")).body

    assert with_server(pki, use, networks=(ip_network("127.0.0.1"),)) == b"1"


def test_allowed_hosts(pki):
    async def use(server, fetcher):
        server.answers["/x"] = b"1"
        return (await fetcher.fetch(f"{server.url}/x")).body

    assert with_server(pki, use, allowed_hosts=frozenset({"127.0.0.1"})) == b"1"
    with pytest.raises(Refused, match=r"127\.0\.0\.1"):
        with_server(pki, use, allowed_hosts=frozenset({"pki.example"}))


def test_the_environment_does_not_choose_a_proxy(pki, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")

    async def use(server, fetcher):
        server.answers["/x"] = b"1"
        return (await fetcher.fetch(f"{server.url}/x")).body

    assert with_server(pki, use) == b"1"


def test_a_proxy_of_the_policy_is_used_for_allowed_hosts_alone(pki):
    async def run():
        async with pki.serving() as proxy:
            proxy.answers["/crl"] = b"by proxy"
            fetcher = HttpFetcher(proxy=proxy.url, allowed_hosts=frozenset({"pki.example"}))
            try:
                assert (await fetcher.fetch("http://pki.example/crl")).body == b"by proxy"
                with pytest.raises(Refused):
                    await fetcher.fetch("http://other.example/crl")
            finally:
                await fetcher.close()

    asyncio.run(run())
    with pytest.raises(Refused, match="allowed_hosts"):
        HttpFetcher(proxy="http://127.0.0.1:9")


# --- how much, how long --------------------------------------------------------------------------------------------


def test_size_is_bounded_whatever_the_header_says(pki, monkeypatch):
    monkeypatch.setattr(fetch, "MAX_CRL", 1000)
    monkeypatch.setattr(fetch, "MAX_ANSWER", 100)

    async def use(server, fetcher):
        async def endless(request):
            response = web.StreamResponse()
            await response.prepare(request)
            while True:
                await response.write(b"x" * 500)

        server.answers |= {"/fits": b"x" * 1000, "/over": b"x" * 1001, "/endless": endless}
        assert len((await fetcher.fetch(f"{server.url}/fits")).body) == 1000
        for path in ("/over", "/endless"):
            with pytest.raises(Unavailable, match="more than 1000 octets"):
                await fetcher.fetch(server.url + path)
        with pytest.raises(Unavailable, match="more than 100 octets"):
            await fetcher.fetch(f"{server.url}/fits", b"1", POST)

    with_server(pki, use)


def test_answers_under_way_are_bounded_together(pki, monkeypatch):
    monkeypatch.setattr(fetch, "MAX_TOGETHER", 1500)

    async def use(server, fetcher):
        gate = asyncio.Event()

        async def half(request):
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(b"x" * 1000)
            await gate.wait()
            return response

        server.answers |= {"/1": half, "/2": half}
        first = asyncio.create_task(fetcher.fetch(f"{server.url}/1"))
        while "GET /1" not in server.seen:
            await asyncio.sleep(0)
        second = asyncio.create_task(fetcher.fetch(f"{server.url}/2"))
        done, _ = await asyncio.wait((first, second), return_when=asyncio.FIRST_COMPLETED)
        gate.set()
        with pytest.raises(Unavailable, match="too much"):
            done.pop().result()
        left = await asyncio.gather(first, second, return_exceptions=True)
        assert sum(not isinstance(one, Exception) for one in left) == 1

    with_server(pki, use)


@asynccontextmanager
async def raw_server(talk):
    """A server that says what ``talk`` writes, byte by byte if it likes."""

    async def serve(reader, writer):
        try:
            await reader.readuntil(b"\r\n\r\n")
            await talk(writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/x"
    finally:
        server.close()


async def one_at_a_time(writer, what=b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000):
    for octet in what:
        writer.write(bytes((octet,)))
        await writer.drain()
        await asyncio.sleep(0.02)


async def endless_headers(writer):
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X-Filler: " + b"y" * 1000 + b"\r\n")
        await writer.drain()


async def long_header(writer):
    writer.write(b"HTTP/1.1 200 OK\r\nX-Filler: ")
    while True:
        writer.write(b"y" * 10_000)
        await writer.drain()


async def not_http(writer):
    writer.write(b"\x30\x03\x0a\x01\x03")


async def cut_off(writer):
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")


async def bad_chunks(writer):
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFFFFF\r\nx")


@pytest.mark.parametrize("talk", [one_at_a_time, endless_headers, long_header, not_http, cut_off, bad_chunks])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_servers_that_do_not_come_to_the_point(talk, method):
    async def run():
        async with raw_server(talk) as url:
            fetcher = HttpFetcher(networks=LOOPBACK, timeout=0.3, download_timeout=0.3)
            try:
                with pytest.raises(Unavailable):
                    await fetcher.fetch(url, *((b"1", POST) if method == "POST" else ()))
            finally:
                await fetcher.close()

    asyncio.run(asyncio.wait_for(run(), 30))


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "identity, gzip"])
def test_compressed_answers_are_refused(pki, encoding):
    async def use(server, fetcher):
        async def bomb(request):
            assert request.headers["Accept-Encoding"] == "identity"
            return web.Response(body=gzip.compress(bytes(1 << 20)), headers={"Content-Encoding": encoding})

        server.answers["/x"] = bomb
        with pytest.raises(Unavailable, match="compressed"):
            await fetcher.fetch(f"{server.url}/x")

    with_server(pki, use)


# --- flights, rests, freshness -------------------------------------------------------------------------------------


def test_overlapping_requests_share_a_flight(pki):
    async def use(server, fetcher):
        gate = asyncio.Event()

        async def slow(request):
            await gate.wait()
            return b"1"

        server.answers["/x"] = slow
        flights = [asyncio.create_task(fetcher.fetch(f"{server.url}/x")) for _ in range(20)]
        while not server.seen:
            await asyncio.sleep(0)
        flights[0].cancel()  # one that gives up does not take the others with it
        gate.set()
        answers = await asyncio.gather(*flights, return_exceptions=True)
        assert isinstance(answers[0], asyncio.CancelledError)
        assert [answer.body for answer in answers[1:]] == [b"1"] * 19
        assert (await fetcher.fetch(f"{server.url}/x")).body == b"1"
        return server.seen

    assert with_server(pki, use) == ["GET /x"] * 2


def test_different_posts_do_not_share(pki):
    async def use(server, fetcher):
        async def echo(request):
            return await request.read()

        server.answers["/x"] = echo
        answers = await asyncio.gather(*(fetcher.fetch(f"{server.url}/x", bytes([n]), "a/b") for n in range(5)))
        return [answer.body for answer in answers]

    assert with_server(pki, use) == [bytes([n]) for n in range(5)]


def test_what_failed_rests_for_a_while(pki):
    clock = [100.0]

    async def use(server, fetcher):
        url = f"{server.url}/x"
        for _ in range(3):
            with pytest.raises(Unavailable, match="404"):
                await fetcher.fetch(url)
        server.answers["/x"] = b"1"
        with pytest.raises(Unavailable, match="a moment ago"):
            await fetcher.fetch(url)
        assert (await fetcher.fetch(url, b"1", POST)).body == b"1"  # something else
        clock[0] += 5.1
        assert (await fetcher.fetch(url)).body == b"1"
        return server.seen

    assert with_server(pki, use, monotonic=lambda: clock[0]) == ["GET /x", "POST /x", "GET /x"]


def test_a_host_that_is_away_is_away_for_everything():
    async def run():
        with socket.create_server(("127.0.0.1", 0)) as closed:
            url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        fetcher = HttpFetcher(networks=LOOPBACK)
        try:
            with pytest.raises(Unavailable, match="no connection"):
                await fetcher.fetch(f"{url}/1")
            with pytest.raises(Unavailable, match="a moment ago"):
                await fetcher.fetch(f"{url}/2", b"1", POST)
        finally:
            await fetcher.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Cache-Control": "public, max-age=300"}, 300),
        ({"Cache-Control": 'Max-Age="300"', "Age": "100"}, 200),
        ({"Cache-Control": "max-age=60", "Age": "100"}, 0),
        ({"Cache-Control": "max-age=300, max-age=5"}, 5),
        ({"Cache-Control": "s-maxage=5"}, None),
        ({"Cache-Control": "no-store"}, 0),
        ({"Cache-Control": "max-age=300, no-cache"}, 0),
        ({"Cache-Control": "max-age=-1"}, 0),
        ({"Cache-Control": "max-age=99999999999999999999"}, 0),
        ({"Expires": "Mon, 23 Nov 2026 11:00:00 GMT", "Date": "Mon, 23 Nov 2026 10:00:00 GMT"}, 3600),
        ({"Expires": "Mon, 23 Nov 2026 09:00:00 GMT", "Date": "Mon, 23 Nov 2026 10:00:00 GMT"}, 0),
        ({"Expires": "0"}, 0),
        ({"Expires": "Mon, 23 Nov 2026 11:00:00 GMT"}, 0),
        ({"Expires": "Mon, 23 Nov 2026 11:00:00 GMT", "Cache-Control": "max-age=7"}, 7),
    ],
)
def test_freshness_as_http_has_it(headers, seconds):
    assert fresh_for(CIMultiDictProxy(CIMultiDict(headers))) == seconds


def test_usable_again_after_close_and_in_other_loops_and_threads(pki):
    fetcher = HttpFetcher(networks=LOOPBACK)
    got = []

    async def once():
        async with pki.serving() as server:
            server.answers["/x"] = b"1"
            try:
                got.append((await fetcher.fetch(f"{server.url}/x")).body)
            finally:
                await fetcher.close()

    asyncio.run(once())
    threads = [threading.Thread(target=lambda: asyncio.run(once())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [b"1"] * 5


# --- issuers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["der", "p7c", "pem"])
def test_issuers_that_the_peer_did_not_send(pki, form):
    def encoded(party):
        return {"der": party.der, "p7c": cms.certs_only([party.der]), "pem": pem.encode("CERTIFICATE", party.der).encode()}[form]

    async def use(server, fetcher):
        root = pki.issue(None, "aia root", ca=True)
        middle = pki.issue(root, "aia middle", ca=True, extra=(access(server.url, "root"),))
        issuing = pki.issue(middle, "aia issuing", ca=True, extra=(access(server.url, "middle"),))
        leaf = pki.issue(issuing, "aia leaf", extra=(access(server.url, "issuing"),))
        server.answers |= {"/issuing": encoded(issuing), "/middle": encoded(middle)}
        policy = Policy(anchors=anchors(root.der), status="none")
        assert (await validate((leaf.der,), policy=policy, now=pki.NOW)).code == "unknown_issuer"
        chain = await with_issuers((leaf.der,), policy, fetcher)
        assert (await validate(chain, policy=policy, now=pki.NOW)).good
        assert server.seen == ["GET /issuing", "GET /middle"]
        server.seen.clear()
        await with_issuers((leaf.der, issuing.der, middle.der), policy, fetcher)
        assert server.seen == []

    with_server(pki, use)


def access(url, name):
    from pkix import extensions

    return extensions.authority_information_access(issuers=[f"{url}/{name}"])


def test_fetching_issuers_ends(pki):
    """Each issuer points to yet another one: a stranger's chain without end."""

    async def use(server, fetcher):
        above = pki.issue(None, "nobody", ca=True)
        for at in range(9):
            above = pki.issue(above, f"endless {at}", ca=True, extra=(access(server.url, at),))
            server.answers[f"/{at + 1}"] = above.der
        leaf = pki.issue(above, "endless", extra=(access(server.url, 9),))
        policy = Policy(anchors=anchors(pki.plant().root.der))
        assert len(await with_issuers((leaf.der,), policy, fetcher, limit=4)) == 5
        assert len(server.seen) == 4
        server.answers["/9"] = b"rubbish"
        assert await with_issuers((leaf.der, b"rubbish"), policy, fetcher) == [leaf.der, b"rubbish"]
        inward = pki.issue(above, "inward", extra=(access("http://169.254.169.254", "latest"),))
        assert await with_issuers((inward.der,), policy, fetcher) == [inward.der]

    with_server(pki, use)
