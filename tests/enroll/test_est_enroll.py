"""First enrolment over EST: who gets a certificate, what is in it, and what the others are told."""

from __future__ import annotations

import asyncio
import base64
import subprocess
from datetime import timedelta

import pytest
from aiohttp.test_utils import make_mocked_request

from ca.model import Decision, Method, Reason
from pkix import der, extensions
from pkix.algorithms import SIGNATURES, KeyKind
from pkix.certificate import assemble, verify_signed
from pkix.cms import parse_certs_only
from pkix.csr import build_csr
from pkix.name import name
from pkix.privatekey import generate

ENROLL = "/.well-known/est/ecc-devices/simpleenroll"


@pytest.mark.parametrize(("fleet", "kind"), [("ecc-devices", KeyKind.P_256), ("ecc-devices", KeyKind.P_384), ("sm2-devices", KeyKind.SM2)])
def test_a_device_with_a_token_gets_its_certificate(opened, fleet: str, kind: KeyKind) -> None:
    async def scene() -> None:
        key = generate(kind)
        async with opened() as world, world.client() as client:
            token = await world.invite(fleet, "press-7")
            answer = await client.post(
                f"/.well-known/est/{fleet}/simpleenroll",
                data=world.csr(key, "press-7"),
                headers={**world.basic("press-7", token), "Content-Type": "application/pkcs10"},
            )
            assert answer.status == 200
            assert answer.headers["Content-Type"] == "application/pkcs7-mime; smime-type=certs-only"
            assert answer.headers["Content-Transfer-Encoding"] == "base64"
            assert int(answer.headers["Content-Length"]) == len(await answer.read())
            assert "Transfer-Encoding" not in answer.headers
            certificate = world.certificate(await answer.read())
            issuing = world.authorities[world.policies.fleets[fleet].authority].certificate
            verify_signed(certificate.der, issuing.public_key)
            assert certificate.public_key == key.public_key
            assert certificate.subject.get("CN") == certificate.subject.get("serialNumber") == ["press-7"]
            assert certificate.names == (f"uri:urn:ironroot:device:{fleet}:press-7",)
            (record,) = await world.store.by_device("press-7")
            assert (record.der, record.method, record.fleet) == (certificate.der, Method.TOKEN, fleet)
            assert world.events == [{"event": "est", "fleet": fleet, "operation": "simpleenroll", "status": "200"}]

    asyncio.run(scene())


def test_the_certificate_says_what_the_identity_is_not_what_the_request_wishes(opened) -> None:
    async def scene() -> None:
        async with opened() as world, world.client() as client:
            token = await world.invite("ecc-platforms", "scada.plant.example", ("dns:mes.plant.example", "ip:10.1.2.3"))
            wishes = name(("O", "Somebody Else"), ("OU", "Admins"), ("CN", "scada.plant.example"))
            csr = world.csr(generate(KeyKind.P_256), wishes, ("dns:bank.example", "ip:8.8.8.8"))
            answer = await client.post(
                "/.well-known/est/ecc-platforms/simpleenroll", data=csr, headers=world.basic("scada.plant.example", token)
            )
            certificate = world.certificate(await answer.read())
            assert certificate.subject.text == "CN=scada.plant.example,O=Example Plant"
            assert set(certificate.names) == {
                "dns:scada.plant.example",
                "dns:mes.plant.example",
                "ip:10.1.2.3",
                "uri:urn:ironroot:device:ecc-platforms:scada.plant.example",
            }

    asyncio.run(scene())


def test_a_used_token_gives_nothing_more_but_to_the_request_that_it_was_used_for(opened) -> None:
    """Single use. A device that repeats names its request, and gets the certificate that was made for it; nobody gets another one."""

    async def scene() -> None:
        async with opened() as world, world.client() as client:
            headers = world.basic("press-7", await world.invite("ecc-devices", "press-7"))
            named = headers | {"Idempotency-Key": "7a" * 32}
            csr = world.csr(generate(KeyKind.P_256), "press-7")
            first = await client.post(ENROLL, data=csr, headers=named)
            again = await client.post(ENROLL, data=csr, headers=named)
            assert (first.status, again.status) == (200, 200)
            assert await first.read() == await again.read()
            for body, sent in (
                (csr, headers),
                (csr, headers | {"Idempotency-Key": "7b" * 32}),
                (world.csr(generate(KeyKind.P_256), "press-7"), headers),
                (world.csr(generate(KeyKind.P_256), "press-7"), named),
            ):
                other = await client.post(ENROLL, data=body, headers=sent)
                assert other.status == 401
                assert "used before" in await other.text()
            assert len(await world.store.by_device("press-7")) == 1

    asyncio.run(scene())


def test_an_idempotency_key_names_the_request_whatever_its_octets_and_only_for_its_own_device(opened) -> None:
    async def scene() -> None:
        key = generate(KeyKind.P_256)
        async with opened() as world, world.client() as client:
            named = {"Idempotency-Key": "5a" * 32}
            headers = world.basic("press-7", await world.invite("ecc-devices", "press-7")) | named
            first = await client.post(ENROLL, data=world.csr(key, "press-7"), headers=headers)
            again = await client.post(ENROLL, data=world.csr(key, "press-7"), headers=headers)
            assert first.status == again.status == 200
            assert await first.read() == await again.read()
            another_key = await client.post(ENROLL, data=world.csr(generate(KeyKind.P_256), "press-7"), headers=headers)
            assert another_key.status == 401, "the same name for a request with another key does not get the first key's certificate"
            other = world.basic("press-8", await world.invite("ecc-devices", "press-8")) | named
            answer = await client.post(ENROLL, data=world.csr(generate(KeyKind.P_256), "press-8"), headers=other)
            assert world.certificate(await answer.read()).subject.get("CN") == ["press-8"]
            wrong = await client.post(ENROLL, data=world.csr(key, "press-7"), headers=headers | {"Idempotency-Key": "1"})
            assert wrong.status == 400

    asyncio.run(scene())


def test_of_a_hundred_at_once_with_one_token_one_gets_a_certificate(opened) -> None:
    async def scene() -> None:
        async with opened() as world, world.client() as client:
            headers = world.basic("press-7", await world.invite("ecc-devices", "press-7"))
            requests = [world.csr(generate(KeyKind.P_256), "press-7") for _ in range(100)]
            answers = await asyncio.gather(*(client.post(ENROLL, data=csr, headers=headers) for csr in requests))
            statuses = [answer.status for answer in answers]
            assert statuses.count(200) == 1
            assert set(statuses) <= {200, 401, 409}
            assert world.signer.signed == 1

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("user", "fleet", "hours", "status", "says"),
    [
        ("press-8", "ecc-devices", 24, 401, "another device"),
        ("press-7", "ecc-platforms", 24, 401, "another fleet"),
        ("press-7", "ecc-devices", -1, 401, "expired"),
        ("press-7", "ecc-devices", 0, 401, "expired"),
        ("press 7", "ecc-devices", 24, 401, "no serial number"),
        ("", "ecc-devices", 24, 401, "no serial number"),
    ],
)
def test_a_token_is_good_for_its_device_its_fleet_and_its_time(opened, user: str, fleet: str, hours: int, status: int, says: str) -> None:
    async def scene() -> None:
        async with opened() as world, world.client() as client:
            token = await world.invite(fleet, "press-7", hours=hours)
            answer = await client.post(ENROLL, data=world.csr(generate(KeyKind.P_256), "press-7"), headers=world.basic(user, token))
            assert (answer.status, says in await answer.text()) == (status, True)
            assert answer.headers["WWW-Authenticate"].startswith("Basic realm=")
            assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
            assert token not in await answer.text()
            assert world.signer.signed == 0

    asyncio.run(scene())


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Basic",
        "Basic !!!",
        "Bearer abc",
        "Basic " + base64.b64encode(b"press-7").decode(),
        "Basic " + base64.b64encode(b"\xff:x").decode(),
    ],
)
def test_a_header_that_is_no_basic_credential_is_no_credential(opened, authorization: str) -> None:
    async def scene() -> None:
        async with opened() as world, world.client() as client:
            answer = await client.post(ENROLL, data=world.csr(generate(KeyKind.P_256), "x"), headers={"Authorization": authorization})
            assert answer.status == 401
            assert answer.headers["WWW-Authenticate"].startswith("Basic realm=")

    asyncio.run(scene())


def test_an_unknown_token_and_no_credential_at_all(opened) -> None:
    async def scene() -> None:
        async with opened() as world, world.client() as client:
            csr = world.csr(generate(KeyKind.P_256), "press-7")
            unknown = await client.post(ENROLL, data=csr, headers=world.basic("press-7", "guess.guess"))
            assert (unknown.status, "new invitation" in await unknown.text()) == (401, True)
            nobody = await client.post(ENROLL, data=csr)
            assert (nobody.status, "one-time token" in await nobody.text()) == (401, True)

    asyncio.run(scene())


def test_a_fleet_takes_only_the_proofs_that_it_lists(opened) -> None:
    async def scene() -> None:
        async with opened({"ecc-devices": {"authenticators": ("idevid",)}}) as world, world.client() as client:
            headers = world.basic("press-7", await world.invite("ecc-devices", "press-7"))
            answer = await client.post(ENROLL, data=world.csr(generate(KeyKind.P_256), "press-7"), headers=headers)
            assert (answer.status, "does not take one-time tokens" in await answer.text()) == (403, True)

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("subject", "status"),
    [
        (name(), 200),
        (name(("CN", "press-7")), 200),
        (name(("serialNumber", "press-7")), 200),
        (name(("C", "CN"), ("O", "Anything"), ("CN", "press-7"), ("serialNumber", "press-7")), 200),
        (name(("CN", "press-8")), 403),
        (name(("CN", "press-7"), ("serialNumber", "press-8")), 403),
        (name(("CN", "press-7"), ("CN", "press-8")), 403),
    ],
    ids=lambda value: value.text if hasattr(value, "text") else str(value),
)
def test_a_device_that_believes_to_be_another_is_told(opened, subject, status: int) -> None:
    async def scene() -> None:
        async with opened() as world, world.client() as client:
            headers = world.basic("press-7", await world.invite("ecc-devices", "press-7"))
            answer = await client.post(ENROLL, data=world.csr(generate(KeyKind.P_256), subject), headers=headers)
            assert answer.status == status
            if status == 403:
                assert "press-8" in await answer.text()

    asyncio.run(scene())


def test_a_key_of_a_kind_that_the_fleet_does_not_take(opened) -> None:
    async def scene() -> None:
        async with opened() as world, world.client() as client:
            headers = world.basic("press-7", await world.invite("ecc-devices", "press-7"))
            for kind in (KeyKind.RSA_2048, KeyKind.SM2, KeyKind.ED25519):
                answer = await client.post(ENROLL, data=world.csr(generate(kind), "press-7"), headers=headers)
                text = await answer.text()
                assert answer.status == 403
                assert "p-256 or p-384" in text
                assert kind in text
            # None of these used the token up.
            assert (await client.post(ENROLL, data=world.csr(generate(KeyKind.P_256), "press-7"), headers=headers)).status == 200

    asyncio.run(scene())


def wishing(key, wish: extensions.Extension) -> bytes:
    """A CSR that asks for an extension."""
    request = der.sequence(der.oid("1.2.840.113549.1.9.14"), der.set_of([der.sequence(wish.der)]))
    info = der.sequence(der.integer(0), name(("CN", "press-7")).der, key.public_key.spki, der.context(0, request))
    return base64.b64encode(assemble(info, SIGNATURES[key.kind], key.sign(info)))


def test_nobody_becomes_an_authority(opened) -> None:
    async def scene() -> None:
        async with opened() as world, world.client() as client:
            headers = world.basic("press-7", await world.invite("ecc-devices", "press-7"))
            for wish in (extensions.basic_constraints(True), extensions.key_usage("keyCertSign")):
                answer = await client.post(ENROLL, data=wishing(generate(KeyKind.P_256), wish), headers=headers)
                assert (answer.status, "CA" in await answer.text()) == (403, True)
            harmless = wishing(generate(KeyKind.P_256), extensions.extended_key_usage("codeSigning"))
            answer = await client.post(ENROLL, data=harmless, headers=headers)
            certificate = world.certificate(await answer.read())
            assert not certificate.is_ca
            assert certificate.extended_key_usage == (extensions.EXTENDED_KEY_USAGES["clientAuth"],)

    asyncio.run(scene())


def test_approval_is_asked_for_waited_for_and_given(opened) -> None:
    async def scene() -> None:
        async with opened({"ecc-devices": {"approval": "manual"}}) as world, world.client() as client:
            headers = world.basic("press-7", await world.invite("ecc-devices", "press-7"))
            csr = world.csr(generate(KeyKind.P_256), "press-7")
            for _ in range(2):
                waiting = await client.post(ENROLL, data=csr, headers=headers)
                assert waiting.status == 202
                assert int(waiting.headers["Retry-After"]) > 0
                assert "administrator" in await waiting.text()
            assert world.signer.signed == 0
            (application,) = await world.store.applications(Decision.PENDING)
            assert (application.device, application.fleet) == ("press-7", "ecc-devices")
            await world.store.decide([application.id], Decision.APPROVED, world.clock.now(), actor="test")
            granted = await client.post(ENROLL, data=csr, headers=headers)
            assert granted.status == 200
            # The approval was for that key.
            token = await world.invite("ecc-devices", "press-7")
            other = await client.post(ENROLL, data=world.csr(generate(KeyKind.P_256), "press-7"), headers=world.basic("press-7", token))
            assert other.status == 202

    asyncio.run(scene())


def test_approval_denied(opened) -> None:
    async def scene() -> None:
        async with opened({"ecc-devices": {"approval": "manual"}}) as world, world.client() as client:
            headers = world.basic("press-7", await world.invite("ecc-devices", "press-7"))
            csr = world.csr(generate(KeyKind.P_256), "press-7")
            assert (await client.post(ENROLL, data=csr, headers=headers)).status == 202
            (application,) = await world.store.applications()
            await world.store.decide([application.id], Decision.DENIED, world.clock.now(), actor="test")
            denied = await client.post(ENROLL, data=csr, headers=headers)
            assert (denied.status, "denied" in await denied.text()) == (403, True)
            assert world.signer.signed == 0

    asyncio.run(scene())


def test_a_lost_answer_is_fetched_and_a_used_token_asks_for_nothing(opened) -> None:
    """In a fleet with approval: who holds a used token gets its own certificate once more, and no administrator is bothered by it."""

    async def scene() -> None:
        async with opened({"ecc-devices": {"approval": "manual"}}) as world, world.client() as client:
            headers = world.basic("press-7", await world.invite("ecc-devices", "press-7"))
            named = headers | {"Idempotency-Key": "7a" * 32}
            csr = world.csr(generate(KeyKind.P_256), "press-7")
            assert (await client.post(ENROLL, data=csr, headers=named)).status == 202
            (application,) = await world.store.applications()
            await world.store.decide([application.id], Decision.APPROVED, world.clock.now(), actor="test")
            world.signer.away = True
            assert (await client.post(ENROLL, data=csr, headers=named)).status == 503
            assert [one.decision for one in await world.store.applications()] == [Decision.APPROVED]
            world.signer.away = False
            first = await client.post(ENROLL, data=csr, headers=named)
            again = await client.post(ENROLL, data=csr, headers=named)
            assert (first.status, await first.read()) == (200, await again.read())
            for _ in range(3):
                other = await client.post(ENROLL, data=world.csr(generate(KeyKind.P_256), "press-7"), headers=headers)
                assert (other.status, "used before" in await other.text()) == (401, True)
            assert [one.decision for one in await world.store.applications()] == [Decision.USED]

    asyncio.run(scene())


def test_the_approval_of_a_key_is_good_once(opened) -> None:
    async def scene() -> None:
        async with opened({"ecc-devices": {"approval": "manual"}}) as world, world.client() as client:
            csr = world.csr(generate(KeyKind.P_256), "press-7")
            headers = [world.basic("press-7", await world.invite("ecc-devices", "press-7")) for _ in range(2)]
            assert (await client.post(ENROLL, data=csr, headers=headers[0])).status == 202
            (application,) = await world.store.applications()
            await world.store.decide([application.id], Decision.APPROVED, world.clock.now(), actor="test")
            assert (await client.post(ENROLL, data=csr, headers=headers[0])).status == 200
            second = await client.post(ENROLL, data=csr, headers=headers[1])
            assert (second.status, "Make a new key" in await second.text()) == (403, True)
            # The second token was not burned by that.
            new = await client.post(ENROLL, data=world.csr(generate(KeyKind.P_256), "press-7"), headers=headers[1])
            assert new.status == 202

    asyncio.run(scene())


def test_a_repeated_request_whose_certificate_was_revoked_is_told(opened) -> None:
    async def scene() -> None:
        async with opened() as world, world.client() as client:
            headers = world.basic("press-7", await world.invite("ecc-devices", "press-7")) | {"Idempotency-Key": "7a" * 32}
            csr = world.csr(generate(KeyKind.P_256), "press-7")
            assert (await client.post(ENROLL, data=csr, headers=headers)).status == 200
            (record,) = await world.store.by_device("press-7")
            await world.store.revoke([record.id], Reason.keyCompromise, world.clock.now(), actor="test")
            again = await client.post(ENROLL, data=csr, headers=headers)
            assert (again.status, "Make a new request" in await again.text()) == (409, True)

    asyncio.run(scene())


def test_while_the_hsm_is_away_devices_are_asked_to_return_and_lose_nothing(opened) -> None:
    async def scene() -> None:
        async with opened() as world, world.client() as client:
            headers = world.basic("press-7", await world.invite("ecc-devices", "press-7"))
            csr = world.csr(generate(KeyKind.P_256), "press-7")
            world.signer.away = True
            answer = await client.post(ENROLL, data=csr, headers=headers)
            assert (answer.status, answer.headers["Retry-After"]) == (503, "7")
            world.signer.away = False
            assert (await client.post(ENROLL, data=csr, headers=headers)).status == 200

    asyncio.run(scene())


def test_a_token_outlives_its_use_for_the_same_request_only(opened) -> None:
    """The answer got lost, and the device asks again after its token has expired."""

    async def scene() -> None:
        async with opened() as world, world.client() as client:
            headers = world.basic("press-7", await world.invite("ecc-devices", "press-7", hours=1)) | {"Idempotency-Key": "7a" * 32}
            csr = world.csr(generate(KeyKind.P_256), "press-7")
            first = await client.post(ENROLL, data=csr, headers=headers)
            world.clock.moment += timedelta(hours=2)
            again = await client.post(ENROLL, data=csr, headers=headers)
            assert await first.read() == await again.read()

    asyncio.run(scene())


def test_an_sm2_request_proved_under_the_empty_id_is_taken(opened, tmp_path) -> None:
    """What stock OpenSSL 3 makes."""

    def openssl(command: str) -> bytes:
        return subprocess.run(["openssl", *command.split()], cwd=tmp_path, check=True, capture_output=True).stdout

    openssl("genpkey -algorithm SM2 -out key.pem")
    csr = openssl("req -new -key key.pem -subj /CN=press-7")

    async def scene() -> None:
        async with opened() as world, world.client() as client:
            headers = world.basic("press-7", await world.invite("sm2-devices", "press-7"))
            answer = await client.post("/.well-known/est/sm2-devices/simpleenroll", data=csr, headers=headers)
            assert answer.status == 200, await answer.text()
            certificate = world.certificate(await answer.read())
            verify_signed(certificate.der, world.authorities["sm2-issuing"].certificate.public_key)

    asyncio.run(scene())


def test_cacerts_and_csrattrs_are_for_everybody(opened) -> None:
    async def scene() -> None:
        async with opened() as world, world.client() as client:
            for fleet, family in (("ecc-devices", "ecc"), ("sm2-devices", "sm2")):
                answer = await client.get(f"/.well-known/est/{fleet}/cacerts")
                assert answer.headers["Content-Type"] == "application/pkcs7-mime; smime-type=certs-only"
                body = await answer.read()
                assert b"\n" not in body
                chain = {world.authorities[f"{family}-issuing"].certificate.der, world.authorities[f"{family}-root"].certificate.der}
                assert set(parse_certs_only(base64.b64decode(body))) == chain
                attributes = await client.get(f"/.well-known/est/{fleet}/csrattrs")
                assert attributes.headers["Content-Type"] == "application/csrattrs"
                assert base64.b64decode(await attributes.read())[0] == 0x30
            lines = (await (await client.get("/.well-known/est/ecc-devices/cacerts", headers={"User-Agent": "libest 3.2"})).read()).split()
            assert max(map(len, lines)) == 76
            head = await client.head("/.well-known/est/ecc-devices/cacerts")
            assert (head.status, await head.read()) == (200, b"")

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("method", "path", "status", "says"),
    [
        ("GET", "/.well-known/est/cacerts", 404, "label is needed"),
        ("GET", "/.well-known/est", 404, "label is needed"),
        ("GET", "/.well-known/est/", 404, "label is needed"),
        ("GET", "/.well-known/est/nowhere/cacerts", 404, "no fleet 'nowhere'"),
        ("GET", "/.well-known/est/ecc-devices/", 404, "no such EST operation"),
        ("GET", "/.well-known/est/ecc-devices/shell", 404, "no such EST operation"),
        ("POST", "/.well-known/est/ecc-devices/serverkeygen", 501, "not offered"),
        ("POST", "/.well-known/est/ecc-devices/fullcmc", 501, "not offered"),
        ("GET", "/.well-known/est/ecc-devices/simpleenroll", 405, "takes POST"),
        ("POST", "/.well-known/est/ecc-devices/cacerts", 405, "takes GET"),
        ("GET", "/.well-known/est/ecc-devices%2fcacerts", 404, "label is needed"),
        ("GET", "/.well-known/est/..%2f..%2fetc/cacerts", 404, "label is needed"),
        ("GET", "/.well-known/est/ecc-devices/cacerts/more", 404, "label is needed"),
        ("GET", "/.well-known/est/ecc-devices/cacerts%00", 404, "no such EST operation"),
        ("GET", "/.well-known/est/%0d%0aX-Injected:%201/cacerts", 404, "label is needed"),
    ],
)
def test_paths_that_lead_nowhere(opened, method: str, path: str, status: int, says: str) -> None:
    async def scene() -> None:
        async with opened() as world:
            answer = await world.door.handle(make_mocked_request(method, path))
            assert (answer.status, says in (answer.text or "")) == (status, True)
            for fleet in world.policies.fleets:  # strangers are not told what there is
                assert fleet not in (answer.text or "")
            if status == 405:
                assert answer.headers["Allow"]

    asyncio.run(scene())


def test_every_other_word_in_the_place_of_the_operation_signs_nothing(opened) -> None:
    async def scene() -> None:
        words = ["", "SimpleEnroll", "simpleenroll2", "enroll", "cacert", "csrattr", "renew", "crl", "u", "simplepkixenroll"]
        async with opened() as world, world.client() as client:
            headers = world.basic("press-7", await world.invite("ecc-devices", "press-7"))
            body = base64.b64encode(build_csr(generate(KeyKind.P_256), name(("CN", "press-7"))))
            for word in words:
                answer = await client.post(f"/.well-known/est/ecc-devices/{word}", data=body, headers=headers)
                assert answer.status == 404
            assert world.signer.signed == 0

    asyncio.run(scene())
