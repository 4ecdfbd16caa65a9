"""The HTTP adapter against a real server: what it refuses and where it stops."""

from __future__ import annotations

import asyncio
import gzip

import pytest
from aiohttp import web

from pkix.errors import Refused, Unavailable
from validate import fetch
from validate.fetch import HttpFetcher


def with_server(pki, use, **options):
    async def run():
        async with pki.serving() as server:
            fetcher = HttpFetcher(**options)
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
        posted = await fetcher.post(f"{server.url}/x", b"\x01\x02", "application/ocsp-request")
        return posted, await fetcher.get(f"{server.url}/x")

    posted, got = with_server(pki, use)
    assert posted == b"POSTapplication/ocsp-request\x01\x02"
    assert got.startswith(b"GET")


@pytest.mark.parametrize("status", [204, 301, 302, 307, 404, 500, 503])
def test_anything_but_200_is_nothing_and_redirects_are_not_followed(pki, status):
    async def use(server, fetcher):
        async def answer(request):
            return web.Response(status=status, headers={"Location": f"{server.url}/inside"})

        server.answers |= {"/x": answer, "/inside": b"secret"}
        with pytest.raises(Unavailable, match=str(status)):
            await fetcher.get(f"{server.url}/x")
        return server.seen

    assert with_server(pki, use) == ["GET /x"]


def test_size_is_bounded_whatever_the_header_says(pki, monkeypatch):
    monkeypatch.setattr(fetch, "MAX_CRL", 1000)
    monkeypatch.setattr(fetch, "MAX_OCSP", 100)

    async def use(server, fetcher):
        async def endless(request):
            response = web.StreamResponse()
            await response.prepare(request)
            while True:
                await response.write(b"x" * 500)

        server.answers |= {"/fits": b"x" * 1000, "/over": b"x" * 1001, "/endless": endless}
        assert len(await fetcher.get(f"{server.url}/fits")) == 1000
        for path in ("/over", "/endless"):
            with pytest.raises(Unavailable, match="more than 1000 octets"):
                await fetcher.get(server.url + path)
        with pytest.raises(Unavailable, match="more than 100 octets"):
            await fetcher.post(f"{server.url}/fits", b"1", "application/ocsp-request")

    with_server(pki, use)


def test_compressed_answers_are_refused(pki):
    async def use(server, fetcher):
        async def bomb(request):
            assert request.headers["Accept-Encoding"] == "identity"
            return web.Response(body=gzip.compress(bytes(1 << 20)), headers={"Content-Encoding": "gzip"})

        server.answers["/x"] = bomb
        with pytest.raises(Unavailable, match="compressed"):
            await fetcher.get(f"{server.url}/x")

    with_server(pki, use)


def test_a_slow_answer_ends(pki):
    async def use(server, fetcher):
        async def drip(request):
            response = web.StreamResponse()
            await response.prepare(request)
            while True:
                await response.write(b"x")
                await asyncio.sleep(0.02)

        server.answers["/x"] = drip
        with pytest.raises(Unavailable, match=r"within 0\.2 s"):
            await fetcher.get(f"{server.url}/x")

    with_server(pki, use, timeout=0.2)


@pytest.mark.parametrize(
    "url",
    [
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
    ],
)
def test_urls_that_are_not_asked(pki, url):
    async def use(server, fetcher):
        with pytest.raises((Refused, Unavailable)):
            await fetcher.get(url)
        return server.seen

    assert with_server(pki, use, allowed_hosts=frozenset({"127.0.0.1", "h"})) == []


def test_allowed_hosts(pki):
    async def use(server, fetcher):
        server.answers["/x"] = b"1"
        return await fetcher.get(f"{server.url}/x")

    assert with_server(pki, use, allowed_hosts=frozenset({"127.0.0.1"})) == b"1"
    with pytest.raises(Refused, match=r"127\.0\.0\.1"):
        with_server(pki, use, allowed_hosts=frozenset({"pki.example"}))


def test_overlapping_requests_share_a_flight(pki):
    async def use(server, fetcher):
        gate = asyncio.Event()

        async def slow(request):
            await gate.wait()
            return b"1"

        server.answers["/x"] = slow
        flights = [asyncio.create_task(fetcher.get(f"{server.url}/x")) for _ in range(20)]
        while not server.seen:
            await asyncio.sleep(0)
        flights[0].cancel()  # one that gives up does not take the others with it
        gate.set()
        answers = await asyncio.gather(*flights, return_exceptions=True)
        assert isinstance(answers[0], asyncio.CancelledError)
        assert answers[1:] == [b"1"] * 19
        assert await fetcher.get(f"{server.url}/x") == b"1"
        return server.seen

    assert with_server(pki, use) == ["GET /x"] * 2


def test_different_posts_do_not_share(pki):
    async def use(server, fetcher):
        async def echo(request):
            return await request.read()

        server.answers["/x"] = echo
        return await asyncio.gather(*(fetcher.post(f"{server.url}/x", bytes([n]), "a/b") for n in range(5)))

    assert with_server(pki, use) == [bytes([n]) for n in range(5)]


def test_the_environment_does_not_choose_a_proxy(pki, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")

    async def use(server, fetcher):
        server.answers["/x"] = b"1"
        return await fetcher.get(f"{server.url}/x")

    assert with_server(pki, use) == b"1"


def test_usable_again_after_close_and_in_another_loop(pki):
    fetcher = HttpFetcher()

    async def once():
        async with pki.serving() as server:
            server.answers["/x"] = b"1"
            try:
                return await fetcher.get(f"{server.url}/x")
            finally:
                await fetcher.close()

    assert asyncio.run(once()) == b"1"
    assert asyncio.run(once()) == b"1"
