"""Renewal over EST: only by the device's own current certificate, and it stays who it was. Here by messages signed with it (CMS)."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from ca.model import Decision, Method, Reason
from pkix.algorithms import SIGNATURES, KeyKind
from pkix.certificate import assemble, build_tbs, parse_certificate, verify_signed
from pkix.cms import sign_data
from pkix.csr import build_csr
from pkix.name import name
from pkix.privatekey import generate

SIGNED = {"Content-Type": "application/pkcs7-mime; smime-type=signed-data"}


def path(fleet: str, operation: str = "simplereenroll") -> str:
    return f"/.well-known/est/{fleet}/{operation}"


def renewal(key, certificate, now, new_key=None, subject=None, names=()) -> bytes:
    """A request for a new key, signed with the current one."""
    csr = build_csr(new_key or generate(key.kind), certificate.subject if subject is None else subject, names)
    return sign_data(csr, key, certificate, now=now)


@pytest.mark.parametrize(("fleet", "kind"), [("ecc-devices", KeyKind.P_256), ("sm2-devices", KeyKind.SM2)])
def test_a_device_renews_with_its_certificate_and_a_new_key(opened, fleet: str, kind: KeyKind) -> None:
    async def scene() -> None:
        key, new_key = generate(kind), generate(kind)
        async with opened() as world, world.client() as client:
            current = await world.enrolled(client, fleet, "press-7", key)
            world.clock.moment += timedelta(days=60)
            body = renewal(key, current, world.clock.now(), new_key)
            answer = await client.post(path(fleet), data=body, headers=SIGNED)
            assert answer.status == 200, await answer.text()
            renewed = world.certificate(await answer.read())
            verify_signed(renewed.der, world.authorities[world.policies.fleets[fleet].authority].certificate.public_key)
            assert renewed.public_key == new_key.public_key
            assert (renewed.subject, renewed.names) == (current.subject, current.names)
            assert renewed.not_after > current.not_after
            newest = (await world.store.by_device("press-7"))[0]
            assert (newest.sha256, newest.method) == (renewed.sha256, Method.CERTIFICATE)
            # The old certificate goes on until it ends: the device may still have to fall back on it.
            assert (await client.post(path(fleet), data=renewal(key, current, world.clock.now()), headers=SIGNED)).status == 200
            # Whoever recorded the message and sends it again gets what it got, and nothing new is signed.
            signed = world.signer.signed
            replayed = await client.post(path(fleet), data=body, headers=SIGNED)
            assert await replayed.read() == await answer.read()
            assert world.signer.signed == signed

    asyncio.run(scene())


def test_a_platform_keeps_the_names_that_were_vouched_for(opened) -> None:
    async def scene() -> None:
        key = generate(KeyKind.P_256)
        async with opened() as world, world.client() as client:
            token = await world.invite("ecc-platforms", "scada.plant.example", ("ip:10.1.2.3",))
            answer = await client.post(
                path("ecc-platforms", "simpleenroll"),
                data=world.csr(key, "scada.plant.example"),
                headers=world.basic("scada.plant.example", token),
            )
            current = world.certificate(await answer.read())
            assert "ip:10.1.2.3" in current.names
            answer = await client.post(path("ecc-platforms"), data=renewal(key, current, world.clock.now()), headers=SIGNED)
            assert world.certificate(await answer.read()).names == current.names

    asyncio.run(scene())


def test_subject_and_names_are_the_same_or_left_out(opened) -> None:
    async def scene() -> None:
        key = generate(KeyKind.P_256)
        async with opened() as world, world.client() as client:
            current = await world.enrolled(client, "ecc-devices", "press-7", key)

            async def outcome(subject, names=()) -> tuple[int, str]:
                body = renewal(key, current, world.clock.now(), subject=subject, names=names)
                answer = await client.post(path("ecc-devices"), data=body, headers=SIGNED)
                return answer.status, await answer.text()

            assert (await outcome(name()))[0] == 200
            assert (await outcome(current.subject, current.names))[0] == 200
            assert (await outcome(current.subject))[0] == 200
            for subject, names in (
                (name(("CN", "press-8")), ()),
                (name(("CN", "press-7")), ()),
                (current.subject, ("dns:bank.example",)),
                (current.subject, (*current.names, "dns:bank.example")),
                (name(), ("uri:urn:ironroot:device:ecc-devices:press-8",)),
            ):
                status, text = await outcome(subject, names)
                assert status == 403
                assert "keeps" in text

    asyncio.run(scene())


def test_nothing_else_than_the_current_certificate_renews(opened) -> None:
    async def scene() -> None:
        key = generate(KeyKind.P_256)
        async with opened() as world, world.client() as client:
            await world.enrolled(client, "ecc-devices", "press-7", key)
            signed = world.signer.signed
            headers = world.basic("press-7", await world.invite("ecc-devices", "press-7"))
            for extra in ({}, headers, {"X-Client-Cert": "anything", "Client-Cert": ":AAAA:"}):
                answer = await client.post(path("ecc-devices"), data=world.csr(generate(KeyKind.P_256), "press-7"), headers=extra)
                assert answer.status == 403
                assert "own current certificate" in await answer.text()
            assert world.signer.signed == signed

    asyncio.run(scene())


@pytest.mark.parametrize(("reason", "says"), [(Reason.keyCompromise, "revoked (keyCompromise)"), (Reason.certificateHold, "on hold")])
@pytest.mark.parametrize("operation", ["simplereenroll", "simpleenroll"])
def test_a_revoked_or_held_certificate_opens_nothing(opened, operation: str, reason: Reason, says: str) -> None:
    async def scene() -> None:
        key = generate(KeyKind.P_256)
        async with opened() as world, world.client() as client:
            current = await world.enrolled(client, "ecc-devices", "press-7", key)
            (record,) = await world.store.by_device("press-7")
            body = renewal(key, current, world.clock.now())
            await world.store.revoke([record.id], reason, world.clock.now(), actor="test")
            answer = await client.post(path("ecc-devices", operation), data=body, headers=SIGNED)
            assert (answer.status, says in await answer.text()) == (403, True)
            if reason is Reason.certificateHold:
                await world.store.unhold([record.id], world.clock.now(), actor="test")
                assert (await client.post(path("ecc-devices", operation), data=body, headers=SIGNED)).status == 200

    asyncio.run(scene())


def test_a_revocation_between_the_door_and_the_store_stops_a_renewal(opened) -> None:
    async def scene() -> None:
        key = generate(KeyKind.P_256)
        async with opened() as world, world.client() as client:
            current = await world.enrolled(client, "ecc-devices", "press-7", key)
            (record,) = await world.store.by_device("press-7")
            inner = world.store.intend

            async def intend(linted, now):
                await world.store.revoke([record.id], Reason.keyCompromise, now, actor="test")
                return await inner(linted, now)

            world.store.intend = intend
            answer = await client.post(path("ecc-devices"), data=renewal(key, current, world.clock.now()), headers=SIGNED)
            assert (answer.status, "revoked or on hold" in await answer.text()) == (403, True)
            assert len(await world.store.by_device("press-7")) == 1

    asyncio.run(scene())


def test_an_expired_certificate_and_one_of_another_fleet(opened) -> None:
    async def scene() -> None:
        key = generate(KeyKind.P_256)
        async with opened() as world, world.client() as client:
            current = await world.enrolled(client, "ecc-devices", "press-7", key)
            elsewhere = await client.post(path("ecc-platforms"), data=renewal(key, current, world.clock.now()), headers=SIGNED)
            assert (elsewhere.status, "another fleet" in await elsewhere.text()) == (403, True)
            world.clock.moment = current.not_after
            assert (await client.post(path("ecc-devices"), data=renewal(key, current, current.not_after), headers=SIGNED)).status == 200
            world.clock.moment += timedelta(seconds=1)
            expired = await client.post(path("ecc-devices"), data=renewal(key, current, current.not_after), headers=SIGNED)
            assert (expired.status, "not valid now" in await expired.text()) == (403, True)

    asyncio.run(scene())


def test_a_self_made_certificate_with_the_devices_names_is_not_its_certificate(opened) -> None:
    async def scene() -> None:
        key, forger = generate(KeyKind.P_256), generate(KeyKind.P_256)
        async with opened() as world, world.client() as client:
            current = await world.enrolled(client, "ecc-devices", "press-7", key)
            tbs = build_tbs(
                serial=current.serial,
                issuer=current.issuer,
                subject=current.subject,
                not_before=current.not_before,
                not_after=current.not_after,
                public_key=forger.public_key,
                signature=SIGNATURES[forger.kind],
                extensions=list(current.extensions.values()),
            )
            forged = parse_certificate(assemble(tbs, SIGNATURES[forger.kind], forger.sign(tbs)))
            for operation in ("simplereenroll", "simpleenroll"):
                answer = await client.post(path("ecc-devices", operation), data=renewal(forger, forged, world.clock.now()), headers=SIGNED)
                assert answer.status == 401
                assert "manufacturer" in await answer.text()

    asyncio.run(scene())


def test_renewal_needs_no_second_approval(opened) -> None:
    async def scene() -> None:
        key = generate(KeyKind.P_256)
        async with opened({"ecc-devices": {"approval": "manual"}}) as world, world.client() as client:
            headers = world.basic("press-7", await world.invite("ecc-devices", "press-7"))
            csr = world.csr(key, "press-7")
            assert (await client.post(path("ecc-devices", "simpleenroll"), data=csr, headers=headers)).status == 202
            (application,) = await world.store.applications()
            await world.store.decide([application.id], Decision.APPROVED, world.clock.now(), actor="test")
            answer = await client.post(path("ecc-devices", "simpleenroll"), data=csr, headers=headers)
            current = world.certificate(await answer.read())
            for operation in ("simplereenroll", "simpleenroll"):
                body = renewal(key, current, world.clock.now(), subject=name())
                assert (await client.post(path("ecc-devices", operation), data=body, headers=SIGNED)).status == 200

    asyncio.run(scene())
