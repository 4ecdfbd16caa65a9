"""Other people's responders, our own, and hostile ones: a verdict or a refusal, in time."""

from __future__ import annotations

import asyncio
import subprocess
import time
from datetime import UTC, datetime, timedelta

import pytest
from aiohttp import web
from programs import need

from ca.authority import certify_responder, create_issuing, create_root
from ca.issue import Issuer
from ca.migrate import upgrade
from ca.model import Authorized, Identity, Method, Reason
from ca.store_sql import SqlStore
from ocsp.answer import Answerer, Responder
from pkix import extensions
from pkix.algorithms import KeyKind
from pkix.certificate import parse_certificate
from pkix.csr import build_csr, parse_csr
from pkix.name import name
from pkix.privatekey import generate
from policies.compile import Urls
from policies.loader import DEFAULTS, load
from validate import Policy, anchors, validate
from validate.fetch import LOOPBACK, HttpFetcher
from validate.fetched import Fetched
from validate.status import Revocation

NONCE = bytes(range(32))


# --- openssl ocsp --------------------------------------------------------------------------------------------------


def openssl_responder(folder, plant, status_line):
    """``openssl ocsp`` answering from an index file; each request a run of its own."""
    need("openssl")
    (folder / "index.txt").write_text(status_line)
    (folder / "ca.pem").write_text(plant.issuing.certificate.pem)
    (folder / "signer.pem").write_text(plant.signer.certificate.pem)
    (folder / "signer.key").write_bytes(plant.signer.key.to_pem())

    async def answer(request):
        (folder / "request").write_bytes(await request.read())
        command = "openssl ocsp -index index.txt -CA ca.pem -rsigner signer.pem -rkey signer.key -reqin request -respout response -ndays 1"
        subprocess.run(command.split(), cwd=folder, capture_output=True, check=True)
        return web.Response(body=(folder / "response").read_bytes())

    return answer


@pytest.mark.parametrize("nonce", [None, NONCE])
@pytest.mark.parametrize(
    ("flag", "when", "code"),
    [
        ("V", "", "good"),
        ("R", "261101000000Z,keyCompromise", "revoked"),
        ("R", "261101000000Z,certificateHold", "on_hold"),
        ("", "", "unknown_serial"),
    ],
)
def test_openssl_as_the_responder(pki, tmp_path, flag, when, code, nonce):
    # openssl looks at the real clock: everything here is valid around now.
    now = datetime.now(UTC).replace(microsecond=0)
    valid = {"not_before": now - timedelta(days=1), "not_after": now + timedelta(days=1)}

    async def run():
        async with pki.serving() as server:
            root = pki.issue(None, "openssl root", ca=True, **valid)
            issuing = pki.issue(root, "openssl issuing", ca=True, crl=(f"{server.url}/root.crl",), **valid)
            device = pki.issue(issuing, "openssl device", ocsp=(f"{server.url}/ocsp",), **valid)
            signer = pki.issue(issuing, "openssl ocsp", purposes=("OCSPSigning",), extra=(extensions.ocsp_nocheck(),), **valid)
            plant = pki.plant()
            plant = type(plant)(root, issuing, device, signer, server.url)
            serial = f"{device.certificate.serial:X}"
            line = f"{flag}\t{(now + timedelta(days=9)):%y%m%d%H%M%SZ}\t{when}\t{serial}\tunknown\t/CN=x\n" if flag else ""
            server.answers |= {
                "/ocsp": openssl_responder(tmp_path, plant, line),
                "/root.crl": root.crl(this_update=now, next_update=now + timedelta(days=1)),
            }
            status = Revocation(HttpFetcher(networks=LOOPBACK))
            try:
                policy = Policy(anchors=anchors(root.der), budget=timedelta(seconds=30))
                return await validate((device.der, issuing.der), policy=policy, now=now, status=status, nonce=nonce)
            finally:
                await status.close()

    result = asyncio.run(run())
    assert result.code == code, result.sentence()
    assert result.basis[0].source == "ocsp"


# --- our own -------------------------------------------------------------------------------------------------------


class Softly:
    """A ``Signer`` whose keys are in memory."""

    def __init__(self):
        self.keys = {}

    async def generate(self, key, kind):
        self.keys[key] = generate(kind)
        return self.keys[key].public_key

    async def public_key(self, key):
        return self.keys[key].public_key

    async def sign(self, item):
        return self.keys[item.key].sign(item.take())


class Straight:
    """A ``Fetch`` that asks our responder without HTTP in between, and knows one CRL."""

    def __init__(self, answerer, now):
        self.answerer, self.now, self.lists = answerer, now, {}

    async def fetch(self, url, body=b"", content_type=""):
        if content_type:
            return Fetched((await self.answerer.answer(body, self.now())).der)
        return Fetched(self.lists[url])

    async def close(self):
        pass


@pytest.mark.parametrize(("family", "kind"), [("ecc", KeyKind.P_256), ("sm2", KeyKind.SM2)])
def test_our_own_responder(tmp_path, family, kind):
    now = datetime.now(UTC).replace(microsecond=0)
    moment = [now]

    async def run():
        url = f"sqlite:///{tmp_path}/ironroot.db"
        upgrade(url)
        store, signer, profiles = await SqlStore.open(url, lock_file=None), Softly(), load(DEFAULTS).profiles
        authorities = {}
        issuer = Issuer(
            store=store,
            signer=signer,
            authorities=authorities,
            profiles=profiles,
            urls=lambda id: Urls(crl=f"http://pki/{id}.crl", ocsp="http://pki/ocsp", issuer=f"http://pki/{id}.cer"),
            organization="Plant",
            country=None,
        )
        made = {"store": store, "signer": signer, "now": now}
        try:
            root = authorities[f"{family}-root"] = await create_root(
                f"{family}-root", kind, profiles[f"{family}-root"], organization="Plant", country=None, **made
            )
            issuing = authorities[f"{family}-issuing"] = await create_issuing(
                f"{family}-issuing", kind, f"{family}-issuing", root, issuer=issuer, **made
            )
            responders = {}
            for authority in (root, issuing):
                await certify_responder(authority, f"{family}-ocsp", signer=signer, issuer=issuer, now=now)
                newest = await store.newest(f"{family}-ocsp", f"{authority.id}-ocsp")
                responders[authority.id] = Responder(authority, parse_certificate(newest.der), newest.key)
            csr = parse_csr(build_csr(generate(kind), name(("CN", "press-7"))))
            identity = Identity(f"{family}-devices", "press-7", Method.SERVICE, "test")
            issued = await issuer.issue(Authorized(csr, identity, f"{family}-device", issuing.id), now)
            fetch = Straight(Answerer(store, signer, authorities, Found(responders)), lambda: moment[0])
            policy = Policy(anchors=anchors(root.certificate))

            async def judged(nonce=None):
                chain = (issued.der, issuing.certificate)
                return await validate(chain, policy=policy, now=moment[0], status=Revocation(fetch), nonce=nonce)

            for nonce in (None, NONCE):
                result = await judged(nonce)
                assert result.good, result.sentence()
                assert [basis.source for basis in result.basis] == ["ocsp", "ocsp"]
            record = (await store.by_device("press-7"))[0]
            moment[0] += timedelta(seconds=1)
            await store.revoke([record.id], Reason.keyCompromise, moment[0], actor="test")
            result = await judged(NONCE)
            assert (result.code, result.basis[0].reason) == ("revoked", "keyCompromise")
        finally:
            await store.close()

    asyncio.run(run())


class Found(dict):
    def for_authority(self, authority):
        return self.get(authority)


# --- hostile -------------------------------------------------------------------------------------------------------


async def hangs(request):
    await asyncio.Event().wait()


async def trickles(request):
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b"\x30")
        await asyncio.sleep(0.01)


async def floods(request):
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(bytes(1 << 16))


async def circles(request):
    return web.Response(status=302, headers={"Location": str(request.url)})


async def inward(request):
    return web.Response(status=307, headers={"Location": "http://169.254.169.254/latest/meta-data"})


@pytest.mark.parametrize("behaviour", [hangs, trickles, floods, circles, inward])
@pytest.mark.parametrize("mode", ["hard-fail", "soft-fail"])
def test_hostile_servers_cost_no_more_than_the_budget(pki, behaviour, mode):
    async def run():
        async with pki.serving() as server:
            plant = pki.at(server.url, ocsp=[f"{server.url}/{n}" for n in range(9)], crl=[f"{server.url}/l{n}" for n in range(9)])
            server.answers |= dict.fromkeys([f"/{n}" for n in range(9)] + [f"/l{n}" for n in range(9)], behaviour)
            server.answers["/root.crl"] = plant.root.crl()
            status = Revocation(HttpFetcher(networks=LOOPBACK))
            policy = Policy(anchors=anchors(plant.root.der), status=mode, budget=timedelta(seconds=0.5))
            began = time.monotonic()
            try:
                result = await validate((plant.device.der, plant.issuing.der), policy=policy, now=pki.NOW, status=status)
            finally:
                await status.close()
            return result, time.monotonic() - began, server.seen

    result, took, seen = asyncio.run(run())
    assert result.good is (mode == "soft-fail")
    assert result.basis[0].standing == "none"
    assert took < 30  # not a matter of speed: without a bound it would be for ever
    assert len(set(seen)) <= 3 + 8 + 2
