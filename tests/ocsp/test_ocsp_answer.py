"""What the responder says of a certificate, for every state that one can be in, and when it says nothing."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ca.authority import certify_responder
from ca.model import Authority, Reason, Signable, State
from ocsp.answer import Answerer, Responder
from pkix import der
from pkix.certificate import parse_certificate
from pkix.errors import OutcomeUnknown, Unavailable
from pkix.ocsp import HASHES, CertId, build_request, cert_id, parse_response, verify_response

MALFORMED, TRY_LATER, UNAUTHORIZED = 1, 3, 6


@pytest.mark.parametrize("family", ["ecc", "sm2"])
def test_good_is_what_was_handed_out(opened, family: str) -> None:
    async def scene() -> None:
        async with opened() as world:
            certificate = await world.certificate(family=family)
            authority = world.authorities[f"{family}-issuing"].certificate
            answer = await world.answerer().answer(world.ask(certificate.serial, f"{family}-issuing"), world.clock.now())
            response = world.read(answer)
            verify_response(response, authority, world.clock.now())
            (single,) = response.singles
            assert (answer.outcome, single.status, single.cert_id.serial) == ("good", "good", certificate.serial)
            assert single.this_update == response.produced_at == world.clock.now()
            assert single.next_update == world.clock.now() + timedelta(hours=1)
            (signer,) = response.certificates
            assert "1.3.6.1.5.5.7.48.1.5" in signer.extensions, "id-pkix-ocsp-nocheck"
            assert signer.public_key != authority.public_key, "delegated"

    asyncio.run(scene())


def test_revoked_is_said_at_once_with_time_and_reason(opened) -> None:
    async def scene() -> None:
        async with opened() as world:
            certificate, answerer = await world.certificate(), world.answerer()
            assert await world.status(answerer, certificate.serial) == "good"
            record = await world.record()
            at = world.clock.now()
            await world.store.revoke([record.id], Reason.keyCompromise, at, actor="test")
            answer = await answerer.answer(world.ask(certificate.serial), at)
            (single,) = world.read(answer).singles
            assert (single.status, single.revoked_at, single.reason) == ("revoked", at, Reason.keyCompromise)

    asyncio.run(scene())


def test_a_hold_is_revoked_until_it_is_lifted_and_no_older_answer_comes_back(opened) -> None:
    async def scene() -> None:
        async with opened() as world:
            certificate, answerer = await world.certificate(), world.answerer()
            record = await world.record()
            first = await answerer.answer(world.ask(certificate.serial), world.clock.now())
            world.clock.moment += timedelta(seconds=60)
            await world.store.revoke([record.id], Reason.certificateHold, world.clock.now(), actor="test")
            held = await answerer.answer(world.ask(certificate.serial), world.clock.now())
            (single,) = world.read(held).singles
            assert (single.status, single.reason) == ("revoked", Reason.certificateHold)
            world.clock.moment += timedelta(seconds=60)
            await world.store.unhold([record.id], world.clock.now(), actor="test")
            lifted = await answerer.answer(world.ask(certificate.serial), world.clock.now())
            assert lifted.outcome == "good"
            assert lifted.fresh[0] > held.fresh[0] > first.fresh[0]

    asyncio.run(scene())


@pytest.mark.parametrize("serial", [1, 0, -5, 1 << 126, (1 << 159) - 1, (1 << 159)])
def test_a_serial_that_was_never_given_is_unknown_and_never_kept(opened, serial: int) -> None:
    async def scene() -> None:
        async with opened() as world:
            answerer = world.answerer()
            if serial >= 1 << 159:
                answer = await answerer.answer(world.ask(serial), world.clock.now())
                assert world.read(answer).status == MALFORMED
                return
            answer = await answerer.answer(world.ask(serial), world.clock.now())
            (single,) = world.read(answer).singles
            assert (single.status, single.next_update, answer.fresh) == ("unknown", None, None)

    asyncio.run(scene())


def test_another_authoritys_serial_is_unknown(opened) -> None:
    async def scene() -> None:
        async with opened() as world:
            certificate, answerer = await world.certificate(), world.answerer()
            assert await world.status(answerer, certificate.serial, "sm2-issuing") == "unknown"
            assert await world.status(answerer, certificate.serial, "ecc-root") == "unknown"
            issuing = world.authorities["ecc-issuing"].certificate
            assert await world.status(answerer, issuing.serial, "ecc-root") == "good"

    asyncio.run(scene())


def test_what_was_only_intended_or_given_up_is_unknown_unless_revoked(opened) -> None:
    async def scene() -> None:
        async with opened() as world:
            answerer = world.answerer()
            for mood, error, state in (("lost", OutcomeUnknown, State.INTENDED), ("away", Unavailable, State.ABANDONED)):
                world.signer.mood = mood
                with pytest.raises(error):
                    await world.certificate(device=mood)
                world.signer.mood = "well"
                record = await world.record(mood)
                assert record.state is state
                assert await world.status(answerer, record.serial) == "unknown"
                await world.store.revoke([record.id], Reason.cessationOfOperation, world.clock.now(), actor="test")
                assert await world.status(answerer, record.serial) == "revoked"

    asyncio.run(scene())


def test_an_issuer_that_is_none_of_ours(opened) -> None:
    async def scene() -> None:
        async with opened() as world:
            ours = cert_id("sha256", world.authorities["ecc-issuing"].certificate, 7)
            strange = CertId("sha256", bytes(32), ours.key_hash, 7, ours.der.replace(ours.name_hash, bytes(32)))
            for asked in ([strange], [ours, strange], [ours, cert_id("sha256", world.authorities["sm2-issuing"].certificate, 7)]):
                answer = await world.answerer().answer(build_request(asked), world.clock.now())
                assert (world.read(answer).status, answer.outcome, answer.fresh) == (UNAUTHORIZED, "unauthorized", None)

    asyncio.run(scene())


@pytest.mark.parametrize("hash", HASHES)
@pytest.mark.parametrize("parameters", [b"\x05\x00", b""], ids=["NULL", "absent"])
def test_the_question_is_echoed_octet_for_octet(opened, hash: str, parameters: bytes) -> None:
    async def scene() -> None:
        async with opened() as world:
            certificate = await world.certificate()
            plain = cert_id(hash, world.authorities["ecc-issuing"].certificate, certificate.serial)
            algorithm, *rest = der.children(plain.der, der.read(plain.der))
            oid = der.children(plain.der, algorithm)[0]
            encoded = der.sequence(
                der.sequence(plain.der[oid.start : oid.end], parameters), *(plain.der[each.start : each.end] for each in rest)
            )
            asked = CertId(plain.hash, plain.name_hash, plain.key_hash, plain.serial, encoded)
            response = world.read(await world.answerer().answer(build_request([asked]), world.clock.now()))
            assert (response.singles[0].status, response.singles[0].cert_id.der) == ("good", encoded)

    asyncio.run(scene())


@pytest.mark.parametrize("length", [1, 16, 32, 128])
def test_a_nonce_comes_back_in_an_answer_made_for_it(opened, length: int) -> None:
    async def scene() -> None:
        async with opened() as world:
            certificate, answerer = await world.certificate(), world.answerer()
            plain = await answerer.answer(world.ask(certificate.serial), world.clock.now())
            for filling in (b"a", b"b"):
                answer = await answerer.answer(world.ask(certificate.serial, nonce=filling * length), world.clock.now())
                assert (world.read(answer).nonce, answer.fresh) == (filling * length, None)
            assert (await answerer.answer(world.ask(certificate.serial), world.clock.now())).der == plain.der
            assert world.read(plain).nonce is None

    asyncio.run(scene())


def test_several_at_once_of_one_authority(opened) -> None:
    async def scene() -> None:
        async with opened() as world:
            issuer = world.authorities["ecc-issuing"].certificate
            serials = [(await world.certificate(device=f"press-{number}")).serial for number in range(3)]
            record = await world.record("press-1")
            await world.store.revoke([record.id], Reason.superseded, world.clock.now(), actor="test")
            request = build_request([cert_id("sha256", issuer, serial) for serial in (*serials, 12345)])
            answer = await world.answerer().answer(request, world.clock.now())
            assert [single.status for single in world.read(answer).singles] == ["good", "revoked", "good", "unknown"]
            assert (answer.outcome, answer.fresh) == ("mixed", None)
            many = build_request([cert_id("sha256", issuer, serial) for serial in range(1, 66)])
            assert world.read(await world.answerer().answer(many, world.clock.now())).status == MALFORMED

    asyncio.run(scene())


def test_an_answer_is_signed_once_while_it_is_fresh(opened) -> None:
    async def scene() -> None:
        async with opened() as world:
            certificate, answerer = await world.certificate(), world.answerer()
            signed = world.signer.signed
            first = await answerer.answer(world.ask(certificate.serial), world.clock.now())
            world.clock.moment += timedelta(minutes=29)
            assert (await answerer.answer(world.ask(certificate.serial), world.clock.now())).der == first.der
            assert world.signer.signed == signed + 1
            other_hash = await answerer.answer(world.ask(certificate.serial, hash="sha1"), world.clock.now())
            assert other_hash.der != first.der
            world.clock.moment += timedelta(minutes=2)
            again = await answerer.answer(world.ask(certificate.serial), world.clock.now())
            assert again.fresh[0] == world.clock.now()
            assert world.signer.signed == signed + 3

    asyncio.run(scene())


def test_what_is_kept_is_bounded(opened) -> None:
    async def scene() -> None:
        async with opened() as world:
            certificates = [await world.certificate(device=f"press-{number}") for number in range(3)]
            answerer, signed = world.answerer(kept=2), world.signer.signed
            for certificate in (*certificates, certificates[0]):
                await answerer.answer(world.ask(certificate.serial), world.clock.now())
            assert world.signer.signed == signed + 4
            await answerer.answer(world.ask(certificates[2].serial), world.clock.now())
            assert world.signer.signed == signed + 4
            for serial in range(100, 200):
                await answerer.answer(world.ask(serial), world.clock.now())
            await answerer.answer(world.ask(certificates[2].serial), world.clock.now())
            assert world.signer.signed == signed + 104, "unknown serials push nothing out"

    asyncio.run(scene())


def test_asking_on_and_on_about_an_unknown_serial_costs_one_signature_in_5_seconds(opened) -> None:
    async def scene() -> None:
        async with opened() as world:
            answerer, signed = world.answerer(), world.signer.signed
            first = await answerer.answer(world.ask(1234), world.clock.now())
            for _ in range(49):
                world.clock.moment += timedelta(milliseconds=100)
                again = await answerer.answer(world.ask(1234), world.clock.now())
                assert (again.der, again.fresh) == (first.der, None)
            assert world.signer.signed == signed + 1
            world.clock.moment += timedelta(milliseconds=100)
            later = await answerer.answer(world.ask(1234), world.clock.now())
            assert world.read(later).singles[0].this_update > world.read(first).singles[0].this_update
            world.clock.moment -= timedelta(seconds=1)  # a clock that was set back: nothing from the future
            back = await answerer.answer(world.ask(1234), world.clock.now())
            assert world.read(back).produced_at <= world.clock.now()
            assert world.signer.signed == signed + 3
            nonce = await answerer.answer(world.ask(1234, nonce=b"n" * 16), world.clock.now())
            assert world.read(nonce).nonce == b"n" * 16

    asyncio.run(scene())


def test_unknown_answers_kept_are_bounded(opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ocsp.answer.UNKNOWN_KEPT", 3)

    async def scene() -> None:
        async with opened() as world:
            answerer, signed = world.answerer(), world.signer.signed
            for serial in (1, 2, 3, 4, 4, 3, 2, 1):
                await answerer.answer(world.ask(serial), world.clock.now())
            assert world.signer.signed == signed + 5, "only 1 was pushed out"

    asyncio.run(scene())


def test_an_unknown_serial_is_good_as_soon_as_it_is_issued(opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never given, intended, issued, on hold, good again: all in one moment, each said at once."""

    async def scene() -> None:
        async with opened() as world:
            answerer, serial, said = world.answerer(), 0x40 << 120 | 4711, []
            sign = world.signer.sign

            async def ask() -> None:
                said.extend([await world.status(answerer, serial) for _ in range(2)])

            async def ask_before_signing(item: Signable) -> bytes:
                if item.purpose == "certificate":
                    await ask()
                return await sign(item)

            monkeypatch.setattr(world.signer, "sign", ask_before_signing)
            monkeypatch.setattr(world.issuer, "_serials", lambda: serial)
            await ask()
            assert (await world.certificate()).serial == serial
            await ask()
            record = await world.record()
            await world.store.revoke([record.id], Reason.certificateHold, world.clock.now(), actor="test")
            await ask()
            await world.store.unhold([record.id], world.clock.now(), actor="test")
            await ask()
            assert said == [outcome for outcome in ("unknown", "unknown", "good", "revoked", "good") for _ in range(2)]

    asyncio.run(scene())


def test_a_signer_whose_time_has_not_come_is_none(opened) -> None:
    """Made while a clock was ahead: its certificate would be refused by whoever has the right time."""

    async def scene() -> None:
        async with opened() as world:
            certificate, answerer = await world.certificate(), world.answerer()
            begin = world.responders["ecc-issuing"].certificate.not_before
            world.clock.moment = begin - timedelta(seconds=1)
            assert await world.status(answerer, certificate.serial) == "try_later"
            world.clock.moment = begin
            assert await world.status(answerer, certificate.serial) == "good"

    asyncio.run(scene())


def test_no_answer_outlives_its_signer(opened) -> None:
    async def scene() -> None:
        async with opened() as world:
            certificate, answerer = await world.certificate(), world.answerer()
            end = world.responders["ecc-issuing"].certificate.not_after
            world.clock.moment = end - timedelta(minutes=10)
            answer = await answerer.answer(world.ask(certificate.serial), world.clock.now())
            assert world.read(answer).singles[0].next_update == end
            world.clock.moment = end
            late = await answerer.answer(world.ask(certificate.serial), world.clock.now())
            assert world.read(late).status == TRY_LATER

    asyncio.run(scene())


def test_a_new_signer_signs_at_once(opened) -> None:
    async def scene() -> None:
        async with opened() as world:
            certificate, answerer = await world.certificate(), world.answerer()
            first = await answerer.answer(world.ask(certificate.serial), world.clock.now())
            authority: Authority = world.authorities["ecc-issuing"]
            issued = await certify_responder(authority, "ecc-ocsp", signer=world.signer, issuer=world.issuer, now=world.clock.now())
            (record,) = await world.store.by_sha256(parse_certificate(issued.der).sha256)
            world.responders["ecc-issuing"] = Responder(authority, parse_certificate(issued.der), record.key)
            second = await answerer.answer(world.ask(certificate.serial), world.clock.now())
            assert world.read(second).certificates != world.read(first).certificates
            verify_response(world.read(second), authority.certificate, world.clock.now())

    asyncio.run(scene())


@pytest.mark.parametrize("mood", ["away", "lost", "wrong"])
def test_while_the_hsm_fails_it_says_try_later_and_what_it_signed_before(opened, mood: str) -> None:
    async def scene() -> None:
        async with opened() as world:
            known, other, answerer = await world.certificate(), await world.certificate(device="press-8"), world.answerer()
            kept = await answerer.answer(world.ask(known.serial), world.clock.now())
            world.signer.mood = mood
            answer = await answerer.answer(world.ask(other.serial), world.clock.now())
            assert (world.read(answer).status, answer.outcome, answer.fresh) == (TRY_LATER, "try_later", None)
            assert (await answerer.answer(world.ask(known.serial), world.clock.now())).der == kept.der
            world.signer.mood = "well"
            assert await world.status(answerer, other.serial) == "good"

    asyncio.run(scene())


def test_without_a_signer_key_or_database_it_says_try_later(opened) -> None:
    async def scene() -> None:
        async with opened() as world:
            certificate, answerer = await world.certificate(), world.answerer()
            await world.signer.destroy(world.responders["ecc-issuing"].key)
            assert await world.status(answerer, certificate.serial) == "try_later"
            del world.responders["ecc-issuing"]
            assert await world.status(answerer, certificate.serial) == "try_later"

            class Away:
                async def status(self, _authority: str, _serial: int) -> None:
                    raise Unavailable("The database does not answer.")

            deaf = Answerer(Away(), world.signer, world.authorities, world.responders)
            assert (await deaf.answer(world.ask(7, "sm2-issuing"), world.clock.now())).outcome == "try_later"

    asyncio.run(scene())


def test_an_authority_made_later_is_answered_for(opened) -> None:
    async def scene() -> None:
        async with opened() as world:
            certificate = await world.certificate()
            later = world.authorities.pop("ecc-issuing")
            answerer = world.answerer()
            request = build_request([cert_id("sha256", later.certificate, certificate.serial)])
            assert (await answerer.answer(request, world.clock.now())).outcome == "unauthorized"
            world.authorities["ecc-issuing"] = later
            assert (await answerer.answer(request, world.clock.now())).outcome == "good"

    asyncio.run(scene())


def test_any_octets_get_an_ocsp_answer(opened) -> None:
    async def scene() -> None:
        async with opened() as world:
            answerer = world.answerer()
            serial = (await world.certificate()).serial
            good = world.ask(serial, nonce=b"n" * 32)
            outcomes: set[str] = set()
            asked: list[bytes] = []
            places = st.integers(0, len(good) - 1)

            @settings(max_examples=600, database=None, deadline=None)
            @given(st.one_of(st.binary(max_size=300), st.tuples(places, st.binary(max_size=6), st.none() | st.integers(0, 8))))
            def collect(change: bytes | tuple[int, bytes, int | None]) -> None:
                if isinstance(change, bytes):
                    asked.append(change)
                else:
                    at, octets, cut = change
                    asked.append(good[:at] + octets + good[at + (len(octets) if cut is None else cut) :])

            collect()
            for raw in asked:
                answer = await answerer.answer(raw, world.clock.now())
                response = parse_response(answer.der)
                outcomes.add(answer.outcome)
                assert response.status in (0, MALFORMED, UNAUTHORIZED)
                if answer.outcome == "good":
                    assert [single.cert_id.serial for single in response.singles] == [serial]
            assert {"malformed", "unknown", "unauthorized"} <= outcomes

    asyncio.run(scene())


def test_sizes_and_counts_beyond_reason(opened) -> None:
    async def scene() -> None:
        async with opened() as world:
            issuer = world.authorities["ecc-issuing"].certificate
            one = der.sequence(cert_id("sha1", issuer, 7).der)
            nonce = der.sequence(der.oid("1.3.6.1.5.5.7.48.1.2"), der.octet_string(der.octet_string(b"")))
            for raw in (
                der.sequence(der.sequence(der.sequence(*[one] * 10_000))),
                der.sequence(der.sequence(der.sequence(one), der.context(2, der.sequence(nonce)))),
                der.sequence(der.sequence(der.sequence(one), der.context(2, der.sequence(nonce.replace(b"\x04\x02\x04\x00", b""))))),
                der.sequence(der.sequence(der.sequence())),
                bytes(1_000_000),
                b"",
            ):
                answer = await world.answerer().answer(raw, world.clock.now())
                assert world.read(answer).status == MALFORMED

    asyncio.run(scene())
