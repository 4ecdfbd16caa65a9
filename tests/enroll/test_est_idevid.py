"""The manufacturer's certificate as first proof: which paths to a trusted manufacturer count, and which serial number a device gets."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from ca.model import Method, Reason
from enroll.path import verify_path
from pkix import extensions
from pkix.algorithms import SIGNATURES, KeyKind
from pkix.certificate import Certificate, assemble, build_tbs, parse_certificate
from pkix.cms import sign_data
from pkix.csr import build_csr
from pkix.errors import Unauthenticated
from pkix.extensions import Extension
from pkix.name import Name, name
from pkix.privatekey import PrivateKey, generate

NOW = datetime.now(UTC).replace(microsecond=0)
FOREVER = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
SIGNED = {"Content-Type": "application/pkcs7-mime; smime-type=signed-data"}
ENROLL = "/.well-known/est/ecc-devices/simpleenroll"
MAKER = name(("O", "Press Works"), ("CN", "Press Works Root"))


@dataclass
class Maker:
    """A key with its certificate, that can certify others."""

    certificate: Certificate
    key: PrivateKey

    def certify(self, key: PrivateKey, subject: Name, *items: Extension, until: datetime = FOREVER) -> Certificate:
        return certify(self.key, self.certificate.subject, key, subject, *items, until=until)

    def authority(self, common_name: str, *items: Extension, until: datetime = FOREVER) -> Maker:
        key = generate(KeyKind.P_256)
        items = items or (extensions.basic_constraints(True), extensions.key_usage("keyCertSign"))
        return Maker(self.certify(key, name(("CN", common_name)), *items, until=until), key)


def certify(by: PrivateKey, issuer: Name, key: PrivateKey, subject: Name, *items: Extension, until: datetime = FOREVER) -> Certificate:
    tbs = build_tbs(
        serial=abs(hash(subject.der)) + 1,
        issuer=issuer,
        subject=subject,
        not_before=NOW - timedelta(days=1000),
        not_after=until,
        public_key=key.public_key,
        signature=SIGNATURES[by.kind],
        extensions=items,
    )
    return parse_certificate(assemble(tbs, SIGNATURES[by.kind], by.sign(tbs)))


def maker(kind: KeyKind = KeyKind.P_256, subject: Name = MAKER, *items: Extension) -> Maker:
    key = generate(kind)
    items = items or (extensions.basic_constraints(True), extensions.key_usage("keyCertSign", "cRLSign"))
    return Maker(certify(key, subject, key, subject, *items), key)


DEVICE_KEY = generate(KeyKind.P_256)
SUBJECT = name(("O", "Press Works"), ("serialNumber", "press-7"))


def accepted(leaf: Certificate, presented: list[Certificate], trusted: list[Certificate]) -> bool:
    try:
        verify_path(leaf, presented, trusted, NOW)
    except Unauthenticated:
        return False
    return True


def test_paths_up_to_four_certificates_lead_to_the_manufacturer() -> None:
    root = maker()
    one = root.authority("One")
    two = one.authority("Two")
    three = two.authority("Three")
    chain = [two.certificate, one.certificate, three.certificate]
    assert accepted(root.certify(DEVICE_KEY, SUBJECT), [], [root.certificate])
    assert accepted(one.certify(DEVICE_KEY, SUBJECT), chain, [root.certificate])
    assert accepted(two.certify(DEVICE_KEY, SUBJECT), chain, [root.certificate])
    assert not accepted(three.certify(DEVICE_KEY, SUBJECT), chain, [root.certificate])
    assert accepted(three.certify(DEVICE_KEY, SUBJECT), [], [three.certificate]), "an intermediate may be what is trusted"
    assert not accepted(two.certify(DEVICE_KEY, SUBJECT), [one.certificate], [root.certificate]), "one is missing"
    assert not accepted(root.certify(DEVICE_KEY, SUBJECT), [], [])


def test_what_is_trusted_may_have_expired_and_what_is_presented_may_not() -> None:
    past = NOW - timedelta(days=1)
    root = maker()
    old = root.authority("Old", until=past)
    assert accepted(old.certify(DEVICE_KEY, SUBJECT), [], [old.certificate])
    assert not accepted(old.certify(DEVICE_KEY, SUBJECT), [old.certificate], [root.certificate])
    assert not accepted(root.certify(DEVICE_KEY, SUBJECT, until=past), [], [root.certificate])
    assert accepted(root.certify(DEVICE_KEY, SUBJECT, until=NOW), [], [root.certificate])


@pytest.mark.parametrize(
    "items",
    [
        (extensions.key_usage("keyCertSign"),),
        (extensions.basic_constraints(False), extensions.key_usage("keyCertSign")),
        (extensions.basic_constraints(True), extensions.key_usage("digitalSignature")),
        (extensions.basic_constraints(True), Extension("2.5.29.30", True, b"\x30\x00")),
    ],
    ids=["no constraints", "not a CA", "may not sign certificates", "name constraints"],
)
def test_not_everything_that_signs_is_an_authority(items: tuple[Extension, ...]) -> None:
    root = maker()
    middle = root.authority("Middle", *items)
    assert not accepted(middle.certify(DEVICE_KEY, SUBJECT), [middle.certificate], [root.certificate])


def test_the_path_length_is_kept() -> None:
    root = maker(KeyKind.P_256, MAKER, extensions.basic_constraints(True, 0))
    middle = root.authority("Middle")
    assert accepted(root.certify(DEVICE_KEY, SUBJECT), [], [root.certificate])
    assert not accepted(middle.certify(DEVICE_KEY, SUBJECT), [middle.certificate], [root.certificate])


@pytest.mark.parametrize(
    "items",
    [
        (extensions.basic_constraints(True),),
        (extensions.key_usage("keyEncipherment"),),
        (extensions.extended_key_usage("serverAuth"),),
        (Extension("1.2.3.4", True, b"\x05\x00"),),
    ],
    ids=["a CA", "may not sign", "servers only", "unknown critical"],
)
def test_not_every_certificate_of_a_manufacturer_is_a_devices(items: tuple[Extension, ...]) -> None:
    root = maker()
    assert not accepted(root.certify(DEVICE_KEY, SUBJECT, *items), [], [root.certificate])


def test_ordinary_and_strange_extensions_of_a_device_certificate_do_no_harm() -> None:
    root = maker()
    items = (
        extensions.key_usage("digitalSignature"),
        extensions.extended_key_usage("clientAuth", "serverAuth"),
        Extension("1.2.3.4", False, b"\x05\x00"),
    )
    assert accepted(root.certify(DEVICE_KEY, SUBJECT, *items), [], [root.certificate])


def test_the_same_name_with_another_key_is_another_manufacturer() -> None:
    root, impostor = maker(), maker()
    assert not accepted(impostor.certify(DEVICE_KEY, SUBJECT), [impostor.certificate], [root.certificate])
    bits = bytearray(root.certify(DEVICE_KEY, SUBJECT).der)
    bits[-1] ^= 1
    assert not accepted(parse_certificate(bytes(bits)), [], [root.certificate])


def test_certificates_that_certify_each_other_end_nowhere() -> None:
    first, second = maker(subject=name(("CN", "First"))), maker(subject=name(("CN", "Second")))
    usage = (extensions.basic_constraints(True),)
    ring = [first.certify(second.key, name(("CN", "Second")), *usage), second.certify(first.key, name(("CN", "First")), *usage)]
    assert not accepted(first.certify(DEVICE_KEY, SUBJECT), ring, [maker().certificate])
    assert not accepted(first.certify(DEVICE_KEY, SUBJECT), ring * 10, [maker().certificate])


def trusting(world, *makers: Maker) -> None:
    """Puts the makers into the file that the fleet ecc-devices names."""
    (path,) = world.policies.fleets["ecc-devices"].idevid.trust
    (world.home / path).parent.mkdir(parents=True, exist_ok=True)
    (world.home / path).write_text("".join(each.certificate.pem for each in makers))


@pytest.mark.parametrize("kind", [KeyKind.P_256, KeyKind.RSA_2048, KeyKind.SM2])
def test_a_device_enrols_with_a_message_signed_by_its_idevid(opened, kind: KeyKind) -> None:
    async def scene() -> None:
        root, key, device_key = maker(kind), generate(kind), generate(KeyKind.P_256)
        idevid = root.certify(key, SUBJECT)
        async with opened() as world, world.client() as client:
            message = sign_data(build_csr(device_key, name(("CN", "press-7"))), key, idevid, now=NOW)
            stranger = await client.post(ENROLL, data=message, headers=SIGNED)
            assert (stranger.status, "manufacturer" in await stranger.text()) == (401, True)
            trusting(world, root)  # seen without a restart
            answer = await client.post(ENROLL, data=message, headers=SIGNED)
            assert answer.status == 200, await answer.text()
            certificate = world.certificate(await answer.read())
            assert certificate.names == ("uri:urn:ironroot:device:ecc-devices:press-7",)
            (record,) = await world.store.by_device("press-7")
            assert record.method is Method.IDEVID
            # It is no key to renewals: those take what we issued.
            renewal = await client.post(ENROLL.replace("simpleenroll", "simplereenroll"), data=message, headers=SIGNED)
            assert (renewal.status, "current certificate" in await renewal.text()) == (403, True)
            # After a reset the device makes a new key and a new message, and gets a new certificate.
            fresh = sign_data(build_csr(generate(KeyKind.P_256), name()), key, idevid, now=NOW)
            again = world.certificate(await (await client.post(ENROLL, data=fresh, headers=SIGNED)).read())
            assert again.serial != certificate.serial

    asyncio.run(scene())


@pytest.mark.parametrize("reason", [Reason.keyCompromise, Reason.certificateHold])
def test_a_device_that_was_revoked_comes_back_by_an_invitation_only(opened, reason: Reason) -> None:
    async def scene() -> None:
        root, key = maker(), generate(KeyKind.P_256)
        idevid = root.certify(key, SUBJECT)
        async with opened() as world, world.client() as client:
            trusting(world, root)

            def message() -> bytes:
                return sign_data(build_csr(generate(KeyKind.P_256), name()), key, idevid, now=NOW)

            assert (await client.post(ENROLL, data=message(), headers=SIGNED)).status == 200
            (record,) = await world.store.by_device("press-7")
            await world.store.revoke([record.id], reason, world.clock.now(), actor="test")
            refused = await client.post(ENROLL, data=message(), headers=SIGNED)
            assert (refused.status, "invitation" in await refused.text()) == (403, True)
            await world.enrolled(client, "ecc-devices", "press-7", generate(KeyKind.P_256))

    asyncio.run(scene())


def test_the_same_serial_number_from_another_maker_is_another_device(opened) -> None:
    async def scene() -> None:
        async with opened() as world, world.client() as client:
            makers = [maker(), maker(subject=name(("O", "Pump Works"), ("CN", "Pump Works Root")))]
            trusting(world, *makers)
            answers = []
            for each in makers:
                key = generate(KeyKind.P_256)
                message = sign_data(build_csr(generate(KeyKind.P_256), name()), key, each.certify(key, SUBJECT), now=NOW)
                answers.append(await client.post(ENROLL, data=message, headers=SIGNED))
            assert [answer.status for answer in answers] == [200, 403]
            assert "another credential" in await answers[1].text()

    asyncio.run(scene())


@pytest.mark.parametrize(
    "subject",
    [
        name(("CN", "press-7")),
        name(("serialNumber", "press-7"), ("serialNumber", "press-8")),
        name(("serialNumber", "press 7")),
        name(("serialNumber", "../../etc")),
        name(("serialNumber", "7" * 64), ("CN", "x")),
    ],
    ids=lambda subject: subject.text[:40],
)
def test_the_serial_number_is_taken_from_the_idevid_or_not_at_all(opened, subject: Name) -> None:
    async def scene() -> None:
        root, key = maker(), generate(KeyKind.P_256)
        idevid = root.certify(key, subject)
        async with opened() as world, world.client() as client:
            trusting(world, root)
            message = sign_data(build_csr(generate(KeyKind.P_256), name()), key, idevid, now=NOW)
            answer = await client.post(ENROLL, data=message, headers=SIGNED)
            good = subject.get("serialNumber") == ["7" * 64]
            assert answer.status == (200 if good else 401)
            assert good or "serialNumber" in await answer.text()

    asyncio.run(scene())


def test_a_fleet_that_takes_no_idevid_takes_none(opened) -> None:
    async def scene() -> None:
        root, key = maker(), generate(KeyKind.P_256)
        async with opened({"ecc-devices": {"authenticators": ("token",)}}) as world, world.client() as client:
            trusting(world, root)
            message = sign_data(build_csr(generate(KeyKind.P_256), name()), key, root.certify(key, SUBJECT), now=NOW)
            answer = await client.post(ENROLL, data=message, headers=SIGNED)
            assert (answer.status, "none of ours" in await answer.text()) == (403, True)

    asyncio.run(scene())


@pytest.mark.parametrize("content", [b"", b"nonsense", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_a_broken_trust_file_trusts_nobody_and_breaks_nothing(opened, content: bytes) -> None:
    async def scene() -> None:
        root, key = maker(), generate(KeyKind.P_256)
        async with opened() as world, world.client() as client:
            trusting(world, root)
            (path,) = world.policies.fleets["ecc-devices"].idevid.trust
            (world.home / path).write_bytes(content)
            message = sign_data(build_csr(generate(KeyKind.P_256), name()), key, root.certify(key, SUBJECT), now=NOW)
            assert (await client.post(ENROLL, data=message, headers=SIGNED)).status == 401

    asyncio.run(scene())
