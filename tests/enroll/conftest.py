"""An installation in one process, real but for its keys, which are in software: store, issuance, EST door. For the tests of enrolment."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import secrets
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from soft import SoftSigner

from ca.authority import create_issuing, create_root
from ca.issue import Issuer
from ca.migrate import upgrade
from ca.model import Authority, Invitation
from ca.store_sql import SqlStore
from enroll.http import EstDoor, routes
from pkix.algorithms import KeyKind
from pkix.certificate import Certificate, parse_certificate
from pkix.cms import parse_certs_only
from pkix.csr import build_csr
from pkix.name import Name, name
from pkix.privatekey import PrivateKey
from policies.compile import Urls
from policies.loader import DEFAULTS, Policies, load

START = datetime.now(UTC).replace(microsecond=0)
"""The moment at which all tests begin: the real one, because TLS libraries look at the real clock."""


@dataclass
class FakeClock:
    """A clock that stands where it was put."""

    moment: datetime = START

    def now(self) -> datetime:
        return self.moment


@dataclass
class World:
    """What a test needs of an installation, and short ways to what it does over and over."""

    store: SqlStore
    signer: SoftSigner
    issuer: Issuer
    authorities: dict[str, Authority]
    policies: Policies
    clock: FakeClock
    door: EstDoor
    events: list[dict[str, str]]
    home: Path

    @property
    def app(self) -> web.Application:
        app = web.Application()
        app.add_routes(routes(self.door))
        return app

    @asynccontextmanager
    async def client(self, **server: Any) -> AsyncIterator[TestClient[web.Request, web.Application]]:
        """An aiohttp client at the running door."""
        async with TestClient(TestServer(self.app, **server)) as client:
            yield client

    async def invite(self, fleet: str, device: str, names: tuple[str, ...] = (), hours: int = 24) -> str:
        """A one-time token for a device."""
        token = f"{secrets.token_urlsafe(32)}.{secrets.token_urlsafe(32)}"
        now = self.clock.now()
        invitation = Invitation(hashlib.sha256(token.encode()).digest(), fleet, device, names, now, now + timedelta(hours=hours))
        await self.store.invite([invitation], now, actor="test")
        return token

    async def enrolled(self, client: TestClient[web.Request, web.Application], fleet: str, device: str, key: PrivateKey) -> Certificate:
        """The certificate of a new device, by token."""
        token = await self.invite(fleet, device)
        answer = await client.post(f"/.well-known/est/{fleet}/simpleenroll", data=self.csr(key, device), headers=self.basic(device, token))
        assert answer.status == 200, await answer.text()
        return self.certificate(await answer.read())

    @staticmethod
    def basic(device: str, token: str) -> dict[str, str]:
        """The Authorization header of a device with a token."""
        return {"Authorization": "Basic " + base64.b64encode(f"{device}:{token}".encode()).decode()}

    @staticmethod
    def csr(key: PrivateKey, subject: str | Name, names: tuple[str, ...] = ()) -> bytes:
        """A CSR in base64; its subject is the name, or CN alone."""
        return base64.b64encode(build_csr(key, subject if isinstance(subject, Name) else name(("CN", subject)), names))

    @staticmethod
    def certificate(body: bytes) -> Certificate:
        """The one certificate in an answer."""
        (der,) = parse_certs_only(base64.b64decode(body, validate=True))
        return parse_certificate(der)


def _urls(authority: str) -> Urls:
    base = "http://127.0.0.1:8080"
    return Urls(crl=f"{base}/crl/{authority}.crl", ocsp=f"{base}/ocsp", issuer=f"{base}/aia/{authority}.cer")


def _issuer(store: SqlStore, signer: SoftSigner, authorities: dict[str, Authority], policies: Policies) -> Issuer:
    return Issuer(
        store=store,
        signer=signer,
        authorities=authorities,
        profiles=policies.profiles,
        urls=_urls,
        organization="Example Plant",
        country=None,
    )


async def _found(folder: Path) -> SoftSigner:
    """A database with both hierarchies in ``folder``, and the signer with their keys."""
    url = f"sqlite:///{folder}/ironroot.db"
    upgrade(url)
    signer, policies = SoftSigner(), load(DEFAULTS)
    store = await SqlStore.open(url, lock_file=folder / "writer.lock")
    try:
        authorities: dict[str, Authority] = {}
        issuer = _issuer(store, signer, authorities, policies)
        for family, kind in (("ecc", KeyKind.P_256), ("sm2", KeyKind.SM2)):
            root = await create_root(
                f"{family}-root",
                kind,
                policies.profiles[f"{family}-root"],
                store=store,
                signer=signer,
                organization="Example Plant",
                country=None,
                now=START,
            )
            authorities[root.id] = root
            await create_issuing(f"{family}-issuing", kind, f"{family}-issuing", root, store=store, signer=signer, issuer=issuer, now=START)
    finally:
        await store.close()
    return signer


@pytest.fixture(scope="session")
def founded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SoftSigner]:
    """An installation just made, to be copied."""
    folder = tmp_path_factory.mktemp("founded")
    return folder, asyncio.run(_found(folder))


Opened = Callable[..., AbstractAsyncContextManager[World]]


@pytest.fixture
def opened(founded: tuple[Path, SoftSigner], tmp_path: Path) -> Opened:
    """``async with opened(fleets={id: {key: value}}) as world``: a fresh copy, with its fleets changed so."""

    @asynccontextmanager
    async def open_world(fleets: dict[str, dict[str, Any]] | None = None, **door: Any) -> AsyncIterator[World]:
        home = tmp_path / secrets.token_hex(4)
        shutil.copytree(founded[0], home)
        policies = load(DEFAULTS)
        changed = {id: fleet.model_copy(update=(fleets or {}).get(id, {})) for id, fleet in policies.fleets.items()}
        policies = replace(policies, fleets=changed)
        store = await SqlStore.open(f"sqlite:///{home}/ironroot.db", lock_file=home / "writer.lock")
        try:
            signer, clock = SoftSigner(dict(founded[1].held)), FakeClock()
            authorities = await store.authorities()
            issuer = _issuer(store, signer, authorities, policies)
            events: list[dict[str, str]] = []
            est = EstDoor(
                policies=policies,
                store=store,
                issuer=issuer,
                authorities=authorities,
                clock=clock,
                home=home,
                observe=lambda event, **labels: events.append({"event": event, **labels}),
                **door,
            )
            yield World(store, signer, issuer, authorities, policies, clock, est, events, home)
        finally:
            await store.close()

    return open_world
