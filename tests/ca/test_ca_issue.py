"""The issuance pipeline, recovery and CRLs: the real store, policies and lint, with a signer in software that can be made to fail."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from soft import SoftSigner

from ca import crl
from ca.authority import certify_responder, create_issuing, create_root
from ca.issue import Issuer, draw_serial
from ca.migrate import upgrade
from ca.model import Authority, Authorized, Identity, Invitation, Issued, Method, Reason, Signable, State
from ca.ports import PATIENCE, STALE
from ca.store_sql import SqlStore
from pkix.algorithms import KeyKind
from pkix.certificate import parse_certificate, verify_signed
from pkix.crl import parse_crl
from pkix.csr import build_csr, parse_csr
from pkix.errors import Fatal, OutcomeUnknown, Refused, Unauthenticated, Unavailable
from pkix.extensions import OCSP_NOCHECK
from pkix.name import name
from pkix.privatekey import generate
from policies.compile import Urls
from policies.loader import DEFAULTS, load

NOW = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)
POLICIES = load(DEFAULTS)


@dataclass
class Moody(SoftSigner):
    """Signs, unless told to be wrong once, or to lose its answer once."""

    mood: str = ""

    async def sign(self, item: Signable) -> bytes:
        mood, self.mood = self.mood, ""
        signature = await super().sign(item)
        if mood == "lost":
            raise OutcomeUnknown("The HSM's answer was lost.", retry_after=5)
        if mood == "wrong":
            return signature[:-1] + bytes((signature[-1] ^ 1,))
        return signature


@dataclass
class House:
    """A CA of both families, in software."""

    store: SqlStore
    signer: Moody
    issuer: Issuer
    authorities: dict[str, Authority]

    async def request(self, device: str = "press-7", fleet: str = "ecc-devices", **changed: Any) -> Authorized:
        """A device with an invitation and a new key."""
        token = hashlib.sha256(secrets.token_bytes(32)).digest()
        await self.store.invite([Invitation(token, fleet, device, (), NOW, NOW + DAY)], NOW, actor="test")
        family = fleet.partition("-")[0]
        key = generate(KeyKind.SM2 if family == "sm2" else KeyKind.P_256)
        csr = parse_csr(build_csr(key, name(("CN", device))))
        identity = Identity(fleet, device, Method.TOKEN, token.hex())
        return replace(Authorized(csr, identity, f"{family}-device", f"{family}-issuing", token=token), **changed)


@asynccontextmanager
async def house(folder: Any, serials: Callable[[], int] = draw_serial) -> AsyncIterator[House]:
    url = f"sqlite:///{folder}/ironroot.db"
    await asyncio.to_thread(upgrade, url)
    store = await SqlStore.open(url, lock_file=folder / "ironroot.db.lock")
    signer, authorities = Moody(), dict[str, Authority]()
    base = "http://127.0.0.1:8080"
    issuer = Issuer(
        store=store,
        signer=signer,
        authorities=authorities,
        profiles=POLICIES.profiles,
        urls=lambda authority: Urls(crl=f"{base}/crl/{authority}.crl", ocsp=f"{base}/ocsp", issuer=f"{base}/aia/{authority}.cer"),
        organization="Plant",
        country=None,
        serials=serials,
    )
    try:
        for family, kind in (("ecc", KeyKind.P_256), ("sm2", KeyKind.SM2)):
            profile = POLICIES.profiles[f"{family}-root"]
            made = {"store": store, "signer": signer, "now": NOW - 30 * DAY}
            authorities[f"{family}-root"] = await create_root(f"{family}-root", kind, profile, organization="Plant", country=None, **made)
            authorities[f"{family}-issuing"] = await create_issuing(
                f"{family}-issuing", kind, f"{family}-issuing", authorities[f"{family}-root"], issuer=issuer, **made
            )
        yield House(store, signer, issuer, authorities)
    finally:
        await store.close()


def run(folder: Any, scene: Callable[[House], Awaitable[None]], **more: Any) -> None:
    async def whole() -> None:
        async with house(folder, **more) as here:
            await scene(here)

    asyncio.run(whole())


@pytest.mark.parametrize("fleet", ["ecc-devices", "sm2-devices"])
def test_what_is_issued_verifies_and_is_recorded(tmp_path, fleet) -> None:
    async def scene(here: House) -> None:
        request = await here.request(fleet=fleet)
        issued = await here.issuer.issue(request, NOW)
        certificate = parse_certificate(issued.der)
        issuer = here.authorities[request.authority].certificate
        verify_signed(issued.der, issuer.public_key)
        assert certificate.aki == issuer.ski
        assert certificate.not_after - certificate.not_before + timedelta(seconds=1) == POLICIES.profiles[request.profile].validity
        (record,) = await here.store.by_device("press-7")
        assert (record.state, record.der, record.serial) == (State.ISSUED, issued.der, certificate.serial)

    run(tmp_path, scene)


def test_a_wrong_signature_is_never_handed_out_or_recorded(tmp_path) -> None:
    async def scene(here: House) -> None:
        request = await here.request()
        here.signer.mood = "wrong"
        with pytest.raises(Unavailable, match="does not verify"):
            await here.issuer.issue(request, NOW)
        (record,) = await here.store.by_device("press-7")
        assert (record.state, record.der) == (State.INTENDED, None)
        # The same request finds the intent once nobody can be at it any more, and is served with the serial that was set then.
        issued = await here.issuer.issue(request, NOW + timedelta(seconds=STALE))
        assert issued.serial == record.serial

    run(tmp_path, scene)


def test_an_hsm_that_was_not_reached_costs_neither_token_nor_certificate(tmp_path) -> None:
    async def scene(here: House) -> None:
        request = await here.request()
        here.signer.away = True
        with pytest.raises(Unavailable):
            await here.issuer.issue(request, NOW)
        here.signer.away = False
        await here.issuer.issue(request, NOW)
        assert sorted(record.state for record in await here.store.by_device("press-7")) == [State.ABANDONED, State.ISSUED]
        with pytest.raises(Unauthenticated):
            await here.issuer.issue(await here.request(token=request.token), NOW)

    run(tmp_path, scene)


def test_what_crashed_is_finished_by_recovery_with_the_very_same_tbs(tmp_path) -> None:
    async def scene(here: House) -> None:
        request = await here.request()
        here.signer.mood = "lost"
        with pytest.raises(OutcomeUnknown):
            await here.issuer.issue(request, NOW)
        (intent,) = await here.store.unfinished(NOW + timedelta(seconds=STALE + PATIENCE))
        assert await here.issuer.recover(NOW, NOW) == 0  # somebody may still be at it
        assert await here.issuer.recover(NOW + timedelta(seconds=STALE + PATIENCE), NOW) == 1
        (record,) = await here.store.by_device("press-7")
        assert record.state is State.ISSUED
        assert record.der is not None
        assert parse_certificate(record.der).tbs == intent.tbs_der
        assert await here.store.unfinished(NOW + DAY) == []

    run(tmp_path, scene)


def test_a_generator_that_repeats_itself_gives_no_serial_twice(tmp_path) -> None:
    setup, first, second = [draw_serial(), draw_serial()], draw_serial(), draw_serial()
    drawn = iter([*setup, first, first, second, second, second, second])

    async def scene(here: House) -> None:
        assert (await here.issuer.issue(await here.request("press-1"), NOW)).serial == first
        assert (await here.issuer.issue(await here.request("press-2"), NOW)).serial == second
        with pytest.raises(Unavailable, match="random"):
            await here.issuer.issue(await here.request("press-3"), NOW)

    run(tmp_path, scene, serials=lambda: next(drawn))


def test_a_revoked_authority_issues_nothing(tmp_path) -> None:
    async def scene(here: House) -> None:
        (own,) = await here.store.by_device("ecc-issuing")
        await here.store.revoke([own.id], Reason.cACompromise, NOW, actor="test")
        here.authorities.update(await here.store.authorities())
        assert here.authorities["ecc-issuing"].revoked
        with pytest.raises(Refused, match="ecc-issuing"):
            await here.issuer.issue(await here.request(), NOW)
        assert not here.authorities["sm2-issuing"].revoked
        await here.issuer.issue(await here.request(fleet="sm2-devices"), NOW)

    run(tmp_path, scene)


def test_what_lint_finds_is_not_signed(tmp_path) -> None:
    async def scene(here: House) -> None:
        request = await here.request()
        before = here.signer.signed
        with pytest.raises(Refused):  # a name that the profile of devices does not write
            await here.issuer.issue(replace(request, identity=replace(request.identity, names=("dns:evil.example",))), NOW)
        assert here.signer.signed == before
        assert await here.store.by_device("press-7") == []

    run(tmp_path, scene)


def test_octets_are_given_to_the_signer_once() -> None:
    item = Signable("k", generate(KeyKind.P_256).public_key, "certificate", b"tbs")
    assert item.take() == b"tbs"
    with pytest.raises(Fatal):
        item.take()


def test_an_ocsp_signer_is_its_authoritys(tmp_path) -> None:
    async def scene(here: House) -> None:
        for family in ("ecc", "sm2"):
            authority = here.authorities[f"{family}-issuing"]
            issued = await certify_responder(authority, f"{family}-ocsp", signer=here.signer, issuer=here.issuer, now=NOW)
            assert isinstance(issued, Issued)
            certificate = parse_certificate(issued.der)
            verify_signed(issued.der, authority.certificate.public_key)
            assert OCSP_NOCHECK in certificate.extensions
            newest = await here.store.newest(f"{family}-ocsp", f"{family}-issuing-ocsp")
            assert newest is not None
            assert newest.key is not None
            assert await here.signer.public_key(newest.key) == certificate.public_key

    run(tmp_path, scene)


def test_crls_rise_whatever_the_clock_does(tmp_path) -> None:
    async def scene(here: House) -> None:
        authority = here.authorities["ecc-issuing"]

        async def publish(now: datetime) -> Any:
            record = await crl.publish(authority, DAY, store=here.store, signer=here.signer, now=now)
            verify_signed(record.der, authority.certificate.public_key)
            return parse_crl(record.der)

        first = await publish(NOW + 400 * DAY)  # the clock was ahead
        issued = await here.issuer.issue(await here.request(), NOW)
        await here.store.revoke([issued.id], Reason.keyCompromise, NOW, actor="test")
        assert await here.store.crl_is_stale("ecc-issuing")
        second = await publish(NOW)
        assert second.number > first.number
        assert second.this_update == NOW
        assert second.entries[issued.serial].reason == Reason.keyCompromise
        assert not await here.store.crl_is_stale("ecc-issuing")

    run(tmp_path, scene)


def test_a_revocation_while_a_crl_is_made_calls_for_the_next(tmp_path) -> None:
    async def scene(here: House) -> None:
        issued = await here.issuer.issue(await here.request(), NOW)
        sign = here.signer.sign

        async def slowly(item: Signable) -> bytes:
            if item.purpose == "crl":
                await here.store.revoke([issued.id], Reason.keyCompromise, NOW, actor="test")
            return await sign(item)

        here.signer.sign = slowly  # type: ignore[method-assign]
        authority = here.authorities["ecc-issuing"]
        record = await crl.publish(authority, DAY, store=here.store, signer=here.signer, now=NOW)
        assert issued.serial not in parse_crl(record.der).entries
        assert await here.store.crl_is_stale("ecc-issuing")
        record = await crl.publish(authority, DAY, store=here.store, signer=here.signer, now=NOW)
        assert issued.serial in parse_crl(record.der).entries

    run(tmp_path, scene)
