"""Authorities, their OCSP signers and a few certificates, real but for their keys, which are in software. For the tests of status."""

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from ssl import SSLContext
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from ca.authority import certify_responder, create_issuing, create_root
from ca.issue import Issuer
from ca.migrate import upgrade
from ca.model import Authority, Authorized, Identity, Method, Record, Signable
from ca.store_sql import SqlStore
from ocsp.answer import Answer, Answerer, Responder
from ocsp.http import StatusDoor, routes
from pkix.algorithms import KeyKind, PublicKey
from pkix.certificate import Certificate, parse_certificate
from pkix.csr import build_csr, parse_csr
from pkix.errors import Conflict, NotFound, OutcomeUnknown, Unavailable
from pkix.name import name
from pkix.ocsp import OcspResponse, build_request, cert_id, parse_response
from pkix.privatekey import PrivateKey, generate
from policies.compile import Urls
from policies.loader import DEFAULTS, load

START = datetime.now(UTC).replace(microsecond=0)
"""The moment at which all tests begin: the real one, because openssl looks at the real clock."""


@dataclass
class SoftSigner:
    """A ``Signer`` whose keys are in memory. ``mood``: ``well``, ``away``, ``lost`` (no answer came back), ``wrong`` (bad signatures)."""

    held: dict[str, PrivateKey] = field(default_factory=dict)
    mood: str = "well"
    signed: int = 0

    async def generate(self, key: str, kind: KeyKind) -> PublicKey:
        if key in self.held:
            raise Conflict(f"There is a key {key} already.")
        self.held[key] = generate(kind)
        return self.held[key].public_key

    async def public_key(self, key: str) -> PublicKey:
        return self.held[key].public_key

    async def sign(self, item: Signable) -> bytes:
        if self.mood == "away":
            raise Unavailable("The HSM does not answer.")
        if self.mood == "lost":
            raise OutcomeUnknown("The HSM did not answer in time.")
        if item.key not in self.held:
            raise NotFound(f"There is no key {item.key}.")
        self.signed += 1
        message = item.take()
        return self.held[item.key].sign(message + b"!" if self.mood == "wrong" else message)

    async def destroy(self, key: str) -> None:
        del self.held[key]

    async def ready(self) -> None: ...

    async def close(self) -> None: ...


@dataclass
class Clock:
    """Stands where it was put."""

    moment: datetime = START

    def now(self) -> datetime:
        return self.moment


class Responders(dict[str, Responder]):
    """The signers by authority."""

    def for_authority(self, authority: str) -> Responder | None:
        return self.get(authority)


@dataclass
class World:
    """What a test needs, and short ways to what it does over and over."""

    store: SqlStore
    signer: SoftSigner
    issuer: Issuer
    authorities: dict[str, Authority]
    responders: Responders
    clock: Clock

    def answerer(self, **settings: Any) -> Answerer:
        return Answerer(self.store, self.signer, self.authorities, self.responders, **settings)

    @asynccontextmanager
    async def client(
        self, *, auto_decompress: bool = True, ssl: SSLContext | None = None, **settings: Any
    ) -> AsyncIterator[TestClient[web.Request, web.Application]]:
        """An aiohttp client at the running status doors; ``auto_decompress`` and ``ssl`` are aiohttp's."""
        door = StatusDoor(
            store=self.store, signer=self.signer, authorities=self.authorities, responders=self.responders, clock=self.clock, **settings
        )
        app = web.Application()
        app.add_routes(routes(door))
        server = TestServer(app, scheme="https" if ssl else "http")
        await server.start_server(auto_decompress=auto_decompress, ssl=ssl)
        async with TestClient(server) as client:
            yield client

    async def certificate(self, device: str = "press-7", family: str = "ecc") -> Certificate:
        """A new device's certificate."""
        csr = parse_csr(build_csr(generate(KeyKind.SM2 if family == "sm2" else KeyKind.P_256), name(("CN", device))))
        identity = Identity(f"{family}-devices", device, Method.SERVICE, "test")
        issued = await self.issuer.issue(Authorized(csr, identity, f"{family}-device", f"{family}-issuing"), self.clock.now())
        return parse_certificate(issued.der)

    async def record(self, device: str = "press-7") -> Record:
        """The newest record of a device."""
        return (await self.store.by_device(device))[0]

    def ask(self, serial: int, authority: str = "ecc-issuing", hash: str = "sha256", nonce: bytes | None = None) -> bytes:
        """An OCSP request."""
        return build_request([cert_id(hash, self.authorities[authority].certificate, serial)], nonce)

    async def status(self, answerer: Answerer, serial: int, authority: str = "ecc-issuing") -> str:
        """What is said of a serial number right now."""
        return (await answerer.answer(self.ask(serial, authority), self.clock.now())).outcome

    def read(self, answer: Answer | bytes) -> OcspResponse:
        return parse_response(answer if isinstance(answer, bytes) else answer.der)


def _urls(authority: str) -> Urls:
    base = "http://127.0.0.1:8080"
    return Urls(crl=f"{base}/crl/{authority}.crl", ocsp=f"{base}/ocsp", issuer=f"{base}/aia/{authority}.cer")


def _issuer(store: SqlStore, signer: SoftSigner, authorities: dict[str, Authority]) -> Issuer:
    return Issuer(
        store=store,
        signer=signer,
        authorities=authorities,
        profiles=load(DEFAULTS).profiles,
        urls=_urls,
        organization="Example Plant",
        country=None,
    )


async def _found(folder: Path) -> tuple[SoftSigner, Responders]:
    url = f"sqlite:///{folder}/ironroot.db"
    upgrade(url)
    signer, profiles, responders = SoftSigner(), load(DEFAULTS).profiles, Responders()
    store = await SqlStore.open(url, lock_file=None)
    try:
        authorities: dict[str, Authority] = {}
        issuer = _issuer(store, signer, authorities)
        for family, kind in (("ecc", KeyKind.P_256), ("sm2", KeyKind.SM2)):
            root = authorities[f"{family}-root"] = await create_root(
                f"{family}-root",
                kind,
                profiles[f"{family}-root"],
                store=store,
                signer=signer,
                organization="Plant",
                country=None,
                now=START,
            )
            authorities[f"{family}-issuing"] = await create_issuing(
                f"{family}-issuing", kind, f"{family}-issuing", root, store=store, signer=signer, issuer=issuer, now=START
            )
        for authority in authorities.values():
            await certify_responder(authority, f"{authority.family}-ocsp", signer=signer, issuer=issuer, now=START)
            newest = await store.newest(f"{authority.family}-ocsp", f"{authority.id}-ocsp")
            assert newest is not None
            assert newest.der is not None
            assert newest.key is not None
            responders[authority.id] = Responder(authority, parse_certificate(newest.der), newest.key)
    finally:
        await store.close()
    return signer, responders


@pytest.fixture(scope="session")
def founded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SoftSigner, Responders]:
    """An installation just made, to be copied."""
    folder = tmp_path_factory.mktemp("founded")
    return folder, *asyncio.run(_found(folder))


Opened = Callable[[], AbstractAsyncContextManager[World]]


@pytest.fixture
def opened(founded: tuple[Path, SoftSigner, Responders], tmp_path: Path) -> Opened:
    """``async with opened() as world``: a fresh copy, one second after it was made."""

    @asynccontextmanager
    async def open_world() -> AsyncIterator[World]:
        home = tmp_path / secrets.token_hex(4)
        shutil.copytree(founded[0], home)
        store = await SqlStore.open(f"sqlite:///{home}/ironroot.db", lock_file=None)
        try:
            signer = SoftSigner(dict(founded[1].held))
            authorities = await store.authorities()
            clock = Clock(START + timedelta(seconds=1))
            yield World(store, signer, _issuer(store, signer, authorities), authorities, Responders(founded[2]), clock)
        finally:
            await store.close()

    return open_world
