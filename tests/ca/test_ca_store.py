"""The contract of ``ca.ports.Store``, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy.exc import DBAPIError

from ca.audit import verify
from ca.database import Database
from ca.group_commit import Verb
from ca.model import (
    Authority,
    CrlRecord,
    Decision,
    Identity,
    Intent,
    Issued,
    Linted,
    Method,
    Reason,
    State,
)
from ca.ports import STALE, SerialTaken, Store
from ca.store_enrol import lease
from ca.store_sql import SqlStore
from ca.transaction import Transaction, single
from pkix import extensions
from pkix.algorithms import SIGNATURES, KeyKind
from pkix.certificate import assemble, build_tbs, parse_certificate
from pkix.errors import Conflict, Fatal, Malformed, NotFound, Refused, Unauthenticated
from pkix.name import name
from pkix.privatekey import generate

SECOND = timedelta(seconds=1)
STALE_TIME = STALE * SECOND


def execute(url: str, statement: str) -> list[Any]:
    """Looks into the database, past the store."""
    database = Database(url)
    try:
        with database.writer.connect() as connection:
            result = connection.execute(sqlalchemy.text(statement))
            rows = list(result) if result.returns_rows else []
            connection.commit()
            return rows
    finally:
        database.dispose()


async def begin(store: Store, linted: Linted, now: datetime) -> Intent:
    intent = await store.intend(linted, now)
    assert isinstance(intent, Intent)
    return intent


async def issue(store: Store, linted: Linted, now: datetime) -> Issued:
    intent = await begin(store, linted, now)
    return await store.record(intent, b"certificate" + intent.tbs_der, now)


async def actions(store: Store) -> list[str]:
    return [entry.action async for entry in store.audit_entries()]


def test_the_store_is_the_port(sqlite_url: str) -> None:
    store: Store = SqlStore(sqlite_url, lock_file=None)
    asyncio.run(store.close())


# Issuance


def test_intent_then_certificate(run: Any, drafts: Any, url: str) -> None:
    async def test(store: SqlStore) -> None:
        linted = drafts.linted(device="pump-1", key="hsm-key")
        intent = await begin(store, linted, drafts.now)
        tbs = linted.tbs
        assert intent == Intent(intent.id, tbs.authority, tbs.serial, tbs.der, tbs.identity, drafts.now)
        assert await store.unfinished(drafts.now + SECOND) == [intent]
        assert await store.unfinished(drafts.now) == []
        status = await store.status(tbs.authority, tbs.serial)
        assert status is not None
        assert (status.state, status.revocation, status.not_after) == (State.INTENDED, None, tbs.not_after)

        issued = await store.record(intent, b"der", drafts.now + SECOND)
        assert issued == Issued(intent.id, tbs.authority, tbs.serial, b"der")
        assert await store.unfinished(drafts.now + SECOND) == []
        record = await store.get(intent.id)
        assert record is not None
        assert (record.state, record.der, record.subject, record.key) == (State.ISSUED, b"der", "CN=pump-1", "hsm-key")
        assert (record.names, record.method, record.fleet) == (("dns:a.example", "ip:::1"), Method.IDEVID, "ecc-devices")
        assert (record.not_before, record.not_after, record.created) == (tbs.not_before, tbs.not_after, drafts.now)

    run(test)
    ((tbs, digest),) = execute(url, "SELECT tbs, tbs_sha256 FROM certificates")
    assert tbs is None
    assert len(digest) == 32


def test_unknown_serials_have_no_status(run: Any, drafts: Any) -> None:
    async def test(store: SqlStore) -> None:
        issued = await issue(store, drafts.linted(), drafts.now)
        assert await store.status("sm2-issuing", issued.serial) is None
        for serial in (issued.serial + 1, 0, -1, 1 << 200):
            assert await store.status("ecc-issuing", serial) is None
        assert await store.by_serial(1 << 200) == []
        assert await store.get(1 << 80) is None

    run(test)


def test_many_statuses_at_once(run: Any, drafts: Any) -> None:
    async def test(store: SqlStore) -> None:
        many = await asyncio.gather(*[issue(store, drafts.linted(), drafts.now) for _ in range(60)])
        await store.revoke([one.id for one in many[::2]], Reason.superseded, drafts.now, actor="op")
        found = await asyncio.gather(*[store.status(one.authority, one.serial + extra) for extra in (0, 1) for one in many])
        assert [status is not None and status.revocation is not None for status in found[:60]] == [True, False] * 30
        assert found[60:] == [None] * 60

    run(test)


def test_recording_twice_keeps_the_first(run: Any, drafts: Any) -> None:
    async def test(store: SqlStore) -> None:
        intent = await begin(store, drafts.linted(), drafts.now)
        first, second = await asyncio.gather(store.record(intent, b"one", drafts.now), store.record(intent, b"two", drafts.now))
        assert first == second
        assert (await store.record(intent, b"three", drafts.now)).der == first.der
        assert (await actions(store)).count("certificate.issued") == 1

    run(test)


def test_serial_number_of_before_is_not_taken_again(run: Any, drafts: Any) -> None:
    async def test(store: SqlStore) -> None:
        issued = await issue(store, drafts.linted(), drafts.now)
        with pytest.raises(SerialTaken):
            await store.intend(drafts.linted(serial=issued.serial), drafts.now)
        other = await issue(store, drafts.linted(serial=issued.serial, authority="sm2-issuing"), drafts.now)
        assert {record.id for record in await store.by_serial(issued.serial)} == {issued.id, other.id}

    run(test)


def test_a_bad_one_in_a_batch_fails_alone(run: Any, drafts: Any) -> None:
    async def test(store: SqlStore) -> None:
        serial = drafts.linted().tbs.serial
        wanted = [drafts.linted(serial=serial), *(drafts.linted() for _ in range(20)), drafts.linted(serial=serial)]
        wanted.append(drafts.linted(token=secrets.token_bytes(32)))
        outcomes = await asyncio.gather(*[store.intend(one, drafts.now) for one in wanted], return_exceptions=True)
        assert sum(isinstance(outcome, Intent) for outcome in outcomes) == 21
        assert sum(isinstance(outcome, SerialTaken) for outcome in outcomes) == 1
        assert isinstance(outcomes[-1], Unauthenticated)
        assert (await actions(store)) == ["certificate.intended"] * 21

    run(test)


def test_text_that_cannot_be_stored_is_refused_alone(run: Any, drafts: Any) -> None:
    async def test(store: SqlStore) -> None:
        bad = store.audit("op", "note", "x", drafts.now, text="\ud800")
        outcomes = await asyncio.gather(bad, *[store.audit("op", "note", "x", drafts.now) for _ in range(5)], return_exceptions=True)
        assert isinstance(outcomes[0], Malformed)
        assert outcomes[1:] == [None] * 5
        assert len(await actions(store)) == 5

    run(test)


def test_what_a_refused_verb_wrote_is_undone_alone(run: Any, drafts: Any) -> None:
    async def test(store: SqlStore) -> None:
        def refuses(transaction: Transaction) -> None:
            lease(transaction, "refused", "x", 30, drafts.now)
            transaction.audit("op", "refused", "x", drafts.now)
            raise Refused("no")

        outcomes = await asyncio.gather(
            store.audit("op", "before", "x", drafts.now),
            store._writes.submit(single("refuses"), refuses),
            store.lease("kept", "x", 30, drafts.now),
            store.audit("op", "after", "x", drafts.now),
            return_exceptions=True,
        )
        assert isinstance(outcomes[1], Refused)
        assert await actions(store) == ["before", "after"]
        assert not await store.lease("kept", "other", 30, drafts.now)
        assert await store.lease("refused", "other", 30, drafts.now)

    run(test)


def test_after_a_broken_invariant_nothing_more_is_written(run: Any, drafts: Any) -> None:
    async def test(store: SqlStore) -> None:
        def breaks(_: Transaction) -> None:
            raise ZeroDivisionError

        def fatal(_: Sequence[Any], __: Any) -> Any:
            raise Fatal("broken")

        with pytest.raises(ZeroDivisionError):  # a mistake of ours is its caller's alone
            await store._writes.submit(single("breaks"), breaks)
        await store.audit("op", "before", "x", drafts.now)
        with pytest.raises(Fatal):
            await store._writes.submit(Verb("fatal", fatal), None)
        with pytest.raises(Fatal, match="broken"):
            await store.audit("op", "after", "x", drafts.now)
        assert await actions(store) == ["before"]

    run(test)


# Tokens


def test_token_is_good_once_for_its_fleet_and_device(run: Any, drafts: Any) -> None:
    async def test(store: SqlStore) -> None:
        invitation = drafts.invitation("pump-1")
        token = invitation.token_sha256
        await store.invite([invitation], drafts.now, actor="op:ana")
        assert await store.invitation(token) == invitation
        identity = Identity("sm2-devices", "pump-1", Method.TOKEN, token.hex())
        refusals = {
            "unknown": drafts.linted(device="pump-1", token=secrets.token_bytes(32)),
            "fleet": drafts.linted(device="pump-1", token=token, identity=identity),
            "device": drafts.linted(device="pump-2", token=token),
        }
        texts = {}
        for case, linted in refusals.items():
            with pytest.raises(Unauthenticated) as caught:
                await store.intend(linted, drafts.now)
            texts[case] = str(caught.value)
        issued = await issue(store, drafts.linted(device="pump-1", token=token), drafts.now)
        used = await store.invitation(token)
        assert used is not None
        assert used.used == drafts.now
        with pytest.raises(Unauthenticated) as caught:
            await store.intend(drafts.linted(device="pump-1", token=token), drafts.now + STALE_TIME)
        texts["used"] = str(caught.value)
        assert texts["unknown"] == texts["fleet"]  # who does not hold it learns nothing
        assert len(set(texts.values())) == 3
        assert (await store.get(issued.id)) is not None
        assert token.hex() not in str([entry async for entry in store.audit_entries() if entry.action == "token.invited"])
        with pytest.raises(Conflict):
            await store.invite([drafts.invitation("pump-9"), invitation], drafts.now, actor="op:ana")
        assert await actions(store) == ["token.invited", "certificate.intended", "certificate.issued"]

    run(test)


def test_token_expires_to_the_second(run: Any, drafts: Any) -> None:
    async def test(store: SqlStore) -> None:
        late, early = drafts.invitation("a", expires=drafts.now), drafts.invitation("b", expires=drafts.now + SECOND)
        await store.invite([late, early], drafts.now, actor="op")
        with pytest.raises(Unauthenticated, match="expired"):
            await store.intend(drafts.linted(device="a", token=late.token_sha256), drafts.now)
        await store.intend(drafts.linted(device="b", token=early.token_sha256), drafts.now)

    run(test)


def test_a_hundred_with_one_token_get_one_intent(url: str, drafts: Any, folder: Any) -> None:
    async def test() -> None:
        stores = [await SqlStore.open(url, lock_file=folder / "lock") for _ in range(2)]
        invitation = drafts.invitation("pump-1")
        await stores[0].invite([invitation], drafts.now, actor="op")
        one = drafts.linted(device="pump-1", token=invitation.token_sha256)
        same_key = [stores[number % 2].intend(drafts.again(one), drafts.now) for number in range(50)]
        others = [
            stores[number % 2].intend(drafts.linted(device="pump-1", token=invitation.token_sha256), drafts.now) for number in range(50)
        ]
        outcomes = await asyncio.gather(*same_key, *others, return_exceptions=True)
        assert sum(isinstance(outcome, Intent) for outcome in outcomes) == 1
        assert sum(isinstance(outcome, Conflict) and outcome.retry_after == STALE for outcome in outcomes) == 99
        assert verify([entry async for entry in stores[0].audit_entries()]) is None
        for store in stores:
            await store.close()

    asyncio.run(test())


def test_what_a_crash_left_is_finished_by_the_same_request(run: Any, drafts: Any) -> None:
    async def test(store: SqlStore) -> None:
        invitation = drafts.invitation("pump-1", expires=drafts.now + SECOND)
        await store.invite([invitation], drafts.now, actor="op")
        one = drafts.linted(device="pump-1", token=invitation.token_sha256)
        other_key = drafts.linted(device="pump-1", token=invitation.token_sha256)
        intent = await begin(store, one, drafts.now)
        young, stale = drafts.now + STALE_TIME - SECOND, drafts.now + STALE_TIME
        for linted in (one, other_key):
            with pytest.raises(Conflict) as caught:
                await store.intend(drafts.again(linted), young)
            assert caught.value.retry_after == STALE
        with pytest.raises(Unauthenticated, match="another key"):
            await store.intend(drafts.again(other_key), stale)
        # The token has expired since; the request was in time. Of many that come back, one gets it.
        outcomes = await asyncio.gather(*[store.intend(drafts.again(one), stale) for _ in range(9)], return_exceptions=True)
        assert outcomes.count(intent) == 1
        assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 8
        with pytest.raises(Conflict):
            await store.intend(drafts.again(one), stale + STALE_TIME - SECOND)
        assert await store.intend(drafts.again(one), stale + STALE_TIME) == intent
        await store.record(intent, b"der", stale)
        with pytest.raises(Unauthenticated, match="used before"):
            await store.intend(drafts.again(one), stale + 2 * STALE_TIME)

    run(test)


def test_abandoning_frees_the_token_not_the_serial(run: Any, drafts: Any) -> None:
    async def test(store: SqlStore) -> None:
        invitation = drafts.invitation("pump-1")
        await store.invite([invitation], drafts.now, actor="op")
        one = drafts.linted(device="pump-1", token=invitation.token_sha256, idempotency=b"i" * 32)
        intent = await begin(store, one, drafts.now)
        await store.abandon(intent, drafts.now)
        await store.abandon(intent, drafts.now)
        status = await store.status(intent.authority, intent.serial)
        assert status is not None
        assert status.state is State.ABANDONED
        assert await store.unfinished(drafts.now + SECOND) == []
        with pytest.raises(Conflict, match="given up"):
            await store.record(intent, b"der", drafts.now)
        with pytest.raises(SerialTaken):
            await store.intend(one, drafts.now)
        await issue(store, drafts.again(one), drafts.now)
        (record,) = await store.revoke([intent.id], Reason.superseded, drafts.now, actor="op")
        assert record.revocation is not None
        assert (await actions(store)).count("certificate.abandoned") == 1

    run(test)


# Idempotency


def test_repeated_request_gets_what_the_first_got(run: Any, drafts: Any) -> None:
    async def test(store: SqlStore) -> None:
        invitation = drafts.invitation("pump-1")
        await store.invite([invitation], drafts.now, actor="op")
        one = drafts.linted(device="pump-1", token=invitation.token_sha256, idempotency=b"i" * 32)
        outcomes = await asyncio.gather(*[store.intend(drafts.again(one), drafts.now) for _ in range(30)], return_exceptions=True)
        (intent,) = [outcome for outcome in outcomes if isinstance(outcome, Intent)]
        assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 29
        assert await store.intend(drafts.again(one), drafts.now + STALE_TIME) == intent
        issued = await store.record(intent, b"der", drafts.now)
        assert await store.intend(drafts.again(one), drafts.now) == issued
        for other in ({"spki_sha256": secrets.token_bytes(32)}, {"identity": Identity("ecc-devices", "pump-2", Method.TOKEN, "")}):
            with pytest.raises(Conflict) as caught:
                await store.intend(drafts.again(one, **other), drafts.now + STALE_TIME)
            assert caught.value.retry_after is None

    run(test)


# Keys


def test_a_key_serves_one_identity(run: Any, drafts: Any) -> None:
    async def test(store: SqlStore) -> None:
        first = drafts.linted(device="pump-1")
        await store.intend(first, drafts.now)  # intended is enough
        key = {"spki_sha256": first.tbs.spki_sha256}
        await store.intend(drafts.again(first), drafts.now)  # the same device may renew with it
        with pytest.raises(Refused, match="another device"):
            await store.intend(drafts.linted(device="pump-2", **key), drafts.now)
        in_another_fleet = Identity("sm2-devices", "pump-1", Method.IDEVID, "")
        with pytest.raises(Refused, match="another device"):
            await store.intend(drafts.linted(identity=in_another_fleet, **key), drafts.now)
        shared = secrets.token_bytes(32)
        racing = [store.intend(drafts.linted(spki_sha256=shared), drafts.now) for _ in range(10)]
        outcomes = await asyncio.gather(*racing, return_exceptions=True)
        assert sum(isinstance(outcome, Intent) for outcome in outcomes) == 1
        assert sum(isinstance(outcome, Refused) for outcome in outcomes) == 9

    run(test)


def test_a_key_of_an_abandoned_request_is_free(run: Any, drafts: Any) -> None:
    async def test(store: SqlStore) -> None:
        first = drafts.linted(device="pump-1")
        intent = await begin(store, first, drafts.now)
        await store.abandon(intent, drafts.now)
        await store.intend(drafts.linted(device="pump-2", spki_sha256=first.tbs.spki_sha256), drafts.now)

    run(test)


@pytest.mark.parametrize("reason", [Reason.keyCompromise, Reason.superseded])
def test_a_compromised_key_is_never_certified_again(run: Any, drafts: Any, reason: Reason) -> None:
    async def test(store: SqlStore) -> None:
        linted = drafts.linted(device="pump-1")
        issued = await issue(store, linted, drafts.now)
        await issue(store, drafts.again(linted), drafts.now)  # a newer certificate of the same key, not revoked
        await store.revoke([issued.id], reason, drafts.now, actor="op")
        if reason is Reason.keyCompromise:
            with pytest.raises(Refused, match="Generate a new key"):
                await store.intend(drafts.again(linted), drafts.now)
        else:
            await store.intend(drafts.again(linted), drafts.now)

    run(test)


def authority(id: str, parent: Authority | None, key: Any, now: datetime) -> Authority:
    subject = name(("CN", id))
    issuer = parent.certificate.subject if parent else subject
    tbs = build_tbs(
        serial=7,
        issuer=issuer,
        subject=subject,
        not_before=now,
        not_after=now + timedelta(days=9),
        public_key=key.public_key,
        signature=SIGNATURES[KeyKind.P_256],
        extensions=[extensions.basic_constraints(True)],
    )
    certificate = parse_certificate(assemble(tbs, SIGNATURES[KeyKind.P_256], key.sign(tbs)))
    return Authority(id, certificate, id, parent.id if parent else id, (certificate, *(parent.chain if parent else ())))


def test_authorities_come_back_with_their_chains(run: Any, drafts: Any) -> None:
    async def test(store: SqlStore) -> None:
        key = generate(KeyKind.P_256)
        root = authority("z-root", None, generate(KeyKind.P_256), drafts.now)
        issuing = authority("ecc-issuing", root, key, drafts.now)
        below = authority("a-below", issuing, generate(KeyKind.P_256), drafts.now)
        assert await store.authorities() == {}
        with pytest.raises(Conflict):
            await store.add_authority(issuing, drafts.now)  # no parent yet
        for one in (root, issuing, below):
            await store.add_authority(one, drafts.now)
        with pytest.raises(Conflict):
            await store.add_authority(issuing, drafts.now)
        found = await store.authorities()
        assert list(found.items()) == [("z-root", root), ("ecc-issuing", issuing), ("a-below", below)]
        assert await actions(store) == ["authority.created"] * 3
        with pytest.raises(Refused, match="belongs to an authority"):
            await store.intend(drafts.linted(spki_sha256=key.public_key.sha256), drafts.now)
        await store.intend(drafts.linted(spki_sha256=key.public_key.sha256, key="ecc-issuing"), drafts.now)

    run(test)


# Revocation


def test_revoking_again_changes_nothing_unless_it_was_held(run: Any, drafts: Any) -> None:
    async def test(store: SqlStore) -> None:
        one, two = [await issue(store, drafts.linted(), drafts.now) for _ in range(2)]
        later, invalid = drafts.now + SECOND, drafts.now - timedelta(days=3)
        (first,) = await store.revoke([one.id], Reason.superseded, drafts.now, actor="op")
        assert await store.revoke([one.id], Reason.keyCompromise, later, actor="op") == [first]
        assert await store.revoke([one.id], Reason.certificateHold, later, actor="op") == [first]
        await store.revoke([two.id], Reason.certificateHold, drafts.now, actor="op")
        (final,) = await store.revoke([two.id], Reason.keyCompromise, later, actor="op", invalidity=invalid)
        assert final.revocation is not None
        assert (final.revocation.at, final.revocation.reason, final.revocation.invalidity) == (drafts.now, Reason.keyCompromise, invalid)
        assert (await actions(store)).count("certificate.revoked") == 3
        with pytest.raises(Conflict, match="for good"):
            await store.unhold([two.id], later, actor="op")
        with pytest.raises(Malformed):
            await store.revoke([one.id], Reason.removeFromCRL, later, actor="op")

    run(test)


def test_revocation_is_all_or_nothing(run: Any, drafts: Any) -> None:
    async def test(store: SqlStore) -> None:
        one, two, three = [await issue(store, drafts.linted(), drafts.now) for _ in range(3)]
        before = await actions(store)
        for missing in (999, 0, 1 << 70):
            with pytest.raises(NotFound, match=str(missing)):
                await store.revoke([one.id, missing], Reason.superseded, drafts.now, actor="op")
        assert await actions(store) == before
        await store.revoke([one.id], Reason.certificateHold, drafts.now, actor="op")
        await store.revoke([two.id], Reason.superseded, drafts.now, actor="op")
        with pytest.raises(Conflict):
            await store.unhold([one.id, two.id], drafts.now, actor="op")
        held = await store.get(one.id)
        assert held is not None
        assert held.revocation is not None
        lifted = await store.unhold([three.id, one.id, one.id], drafts.now, actor="op")
        assert [(record.id, record.revocation) for record in lifted] == [(three.id, None), (one.id, None), (one.id, None)]
        assert (await actions(store)).count("certificate.unheld") == 1
        assert await store.revoke([], Reason.superseded, drafts.now, actor="op") == []

    run(test)


def test_intended_and_expired_ones_can_be_revoked(run: Any, drafts: Any) -> None:
    async def test(store: SqlStore) -> None:
        intent = await begin(store, drafts.linted(), drafts.now)
        expired = await issue(store, drafts.linted(not_after=drafts.now - SECOND), drafts.now)
        await store.revoke([intent.id, expired.id], Reason.keyCompromise, drafts.now, actor="op")
        serials = [entry.serial async for entry in store.revocation_entries("ecc-issuing")]
        assert serials == sorted([intent.serial, expired.serial])
        issued = await store.record(intent, b"der", drafts.now)
        status = await store.status(issued.authority, issued.serial)
        assert status is not None
        assert status.state is State.ISSUED
        assert status.revocation is not None

    run(test)


def test_many_are_revoked_at_once(run: Any, drafts: Any) -> None:
    async def test(store: SqlStore) -> None:
        many = await asyncio.gather(*[issue(store, drafts.linted(), drafts.now) for _ in range(1100)])
        records = await store.revoke([one.id for one in many], Reason.cACompromise, drafts.now, actor="op")
        assert [record.id for record in records] == [one.id for one in many]
        entries = [entry async for entry in store.revocation_entries("ecc-issuing")]
        assert [entry.serial for entry in entries] == sorted(one.serial for one in many)
        assert {(entry.reason, entry.revoked_at) for entry in entries} == {(Reason.cACompromise, drafts.now)}

    run(test)


# CRLs


async def publish(store: Store, now: datetime, authority: str = "ecc-issuing") -> list[int]:
    number = await store.next_crl_number(authority)
    entries = [entry.serial async for entry in store.revocation_entries(authority)]
    await store.publish_crl(CrlRecord(authority, number, b"crl%d" % number, now, now + timedelta(days=1), len(entries)), now)
    return entries


def test_expired_entries_stay_for_one_more_crl(run: Any, drafts: Any) -> None:
    async def test(store: SqlStore) -> None:
        short = await issue(store, drafts.linted(not_after=drafts.now + 10 * SECOND), drafts.now)
        long = await issue(store, drafts.linted(), drafts.now)
        both = sorted([short.serial, long.serial])
        await store.revoke([short.id, long.id], Reason.superseded, drafts.now, actor="op")
        assert await publish(store, drafts.now) == both
        assert await publish(store, drafts.now + 10 * SECOND) == both  # its last good second
        assert await publish(store, drafts.now + 11 * SECOND) == both  # the one beyond
        assert await publish(store, drafts.now + 12 * SECOND) == [long.serial]
        # Revoked when long expired: on one CRL, then gone.
        old = await issue(store, drafts.linted(not_after=drafts.now), drafts.now)
        await store.revoke([old.id], Reason.keyCompromise, drafts.now + 20 * SECOND, actor="op")
        assert await publish(store, drafts.now + 20 * SECOND) == sorted([long.serial, old.serial])
        assert await publish(store, drafts.now + 21 * SECOND) == [long.serial]

    run(test)


def test_crl_goes_stale_with_every_change(run: Any, drafts: Any) -> None:
    async def test(store: SqlStore) -> None:
        assert await store.crl_is_stale("ecc-issuing")
        await publish(store, drafts.now)
        await publish(store, drafts.now, "sm2-issuing")
        issued = await issue(store, drafts.linted(), drafts.now)
        assert not await store.crl_is_stale("ecc-issuing")
        await store.revoke([issued.id], Reason.certificateHold, drafts.now, actor="op")
        assert await store.crl_is_stale("ecc-issuing")
        assert not await store.crl_is_stale("sm2-issuing")
        assert await publish(store, drafts.now) == [issued.serial]
        assert not await store.crl_is_stale("ecc-issuing")
        await store.unhold([issued.id], drafts.now, actor="op")
        assert await store.crl_is_stale("ecc-issuing")
        # A change while a CRL is being made: it may or may not be in it, so it is stale when it comes out.
        number = await store.next_crl_number("ecc-issuing")
        await store.revoke([issued.id], Reason.superseded, drafts.now, actor="op")
        await store.publish_crl(CrlRecord("ecc-issuing", number, b"crl", drafts.now, drafts.now, 0), drafts.now)
        assert await store.crl_is_stale("ecc-issuing")

    run(test)


def test_crl_numbers_rise_and_are_never_given_twice(url: str, drafts: Any, folder: Any) -> None:
    async def test() -> None:
        stores = [await SqlStore.open(url, lock_file=folder / "lock") for _ in range(2)]
        numbers = await asyncio.gather(*[stores[n % 2].next_crl_number("ecc-issuing") for n in range(20)])
        assert sorted(numbers) == list(range(1, 21))
        store = stores[0]

        def crl(number: int, this_update: datetime) -> CrlRecord:
            return CrlRecord("ecc-issuing", number, b"crl%d" % number, this_update, this_update + SECOND, 5)

        assert await store.latest_crl("ecc-issuing") is None
        assert await store.latest_crl_number("ecc-issuing") is None
        await store.publish_crl(crl(7, drafts.now), drafts.now)
        for late in (crl(7, drafts.now), crl(6, drafts.now + SECOND), crl(21, drafts.now)):
            with pytest.raises(Conflict):
                await store.publish_crl(late, drafts.now)
        assert await stores[1].latest_crl("ecc-issuing") == crl(7, drafts.now)
        await stores[1].publish_crl(crl(9, drafts.now - SECOND), drafts.now)  # the clock was ahead before: the number decides
        assert await store.latest_crl("ecc-issuing") == crl(9, drafts.now - SECOND)
        assert await store.latest_crl_number("ecc-issuing") == 9
        assert await store.next_crl_number("ecc-issuing") == 21
        assert await store.next_crl_number("sm2-issuing") == 1
        for one in stores:
            await one.close()

    asyncio.run(test())


# Look-ups


def test_look_ups(run: Any, drafts: Any) -> None:
    async def test(store: SqlStore) -> None:
        other_fleet = Identity("sm2-devices", "pump-1", Method.IDEVID, "")
        first = await issue(store, drafts.linted(device="pump-1"), drafts.now)
        second = await issue(store, drafts.linted(identity=other_fleet, authority="sm2-issuing"), drafts.now)
        third = await issue(store, drafts.linted(device="pump-1"), drafts.now)
        pending = await begin(store, drafts.linted(device="pump-1"), drafts.now)
        assert [record.id for record in await store.by_device("pump-1")] == [pending.id, third.id, second.id, first.id]
        assert [record.id for record in await store.by_device("pump-1", "sm2-devices")] == [second.id]
        assert [record.id for record in await store.page(limit=2)] == [first.id, second.id]
        assert [record.id for record in await store.page(after=second.id)] == [third.id, pending.id]
        assert [record.id for record in await store.page(fleet="sm2-devices")] == [second.id]
        assert [record.id for record in await store.page(authority="ecc-issuing", after=first.id, limit=1)] == [third.id]
        assert await store.page(after=1 << 80) == []
        newest = await store.newest("ecc-device", "pump-1")
        assert newest is not None
        assert newest.id == third.id
        assert await store.newest("ecc-platform", "pump-1") is None

    run(test)


def test_fingerprint_prefixes(run: Any, drafts: Any) -> None:
    async def test(store: SqlStore) -> None:
        for _ in range(100):
            await issue(store, drafts.linted(), drafts.now)
        records = await store.page(limit=100)
        for record in records[:20]:
            assert record.sha256 is not None
            text = record.sha256.hex()
            for length in (1, 2, 3, 63, 64):
                prefix = text[:length]
                found = await store.by_sha256(bytes.fromhex(prefix[: length // 2 * 2]), prefix[-1].upper() if length % 2 else "")
                assert [one.id for one in found] == [one.id for one in records if one.sha256 and one.sha256.hex().startswith(prefix)]
        assert len(await store.by_sha256(b"")) == 100
        assert await store.by_sha256(bytes(33)) == []
        with pytest.raises(Malformed):
            await store.by_sha256(b"", "g")

    run(test)


# Enrolment


def test_applications_wait_for_a_decision(run: Any, drafts: Any) -> None:
    async def test(store: SqlStore) -> None:
        identity = Identity("ecc-devices", "pump-1", Method.TOKEN, "e")
        made = await asyncio.gather(*[store.apply(identity, b"k" * 32, drafts.now) for _ in range(5)])
        assert set(made) == {made[0]}
        assert made[0].decision is Decision.PENDING
        other = await store.apply(identity, b"l" * 32, drafts.now)
        elsewhere = await store.apply(Identity("sm2-devices", "pump-1", Method.TOKEN, "e"), b"m" * 32, drafts.now)
        assert await store.applications(Decision.PENDING) == [made[0], other, elsewhere]
        third = await store.apply(identity, b"n" * 32, drafts.now)  # came after the administrator looked
        decided = await store.decide([other.id, made[0].id, other.id], Decision.APPROVED, drafts.now, actor="op:ana")
        assert [(one.id, one.decision, one.decided) for one in decided] == [
            (made[0].id, Decision.APPROVED, drafts.now),
            (other.id, Decision.APPROVED, drafts.now),
        ]
        assert await store.apply(identity, b"k" * 32, drafts.now) == decided[0]
        for gone in (made[0].id, 99, 0, 1 << 80):
            with pytest.raises(NotFound):
                await store.decide([elsewhere.id, gone], Decision.APPROVED, drafts.now, actor="op:ana")
        assert await store.applications(Decision.PENDING) == [elsewhere, third]
        (denied,) = await store.decide([elsewhere.id], Decision.DENIED, drafts.now, actor="op:ana")
        assert denied.decision is Decision.DENIED
        racing = [store.decide([third.id], decision, drafts.now, actor="op") for decision in (Decision.DENIED, Decision.APPROVED)]
        outcomes = await asyncio.gather(*racing, return_exceptions=True)
        assert sum(isinstance(outcome, NotFound) for outcome in outcomes) == 1
        assert await store.applications(Decision.PENDING) == []
        assert (await actions(store))[:-1] == ["device.applied"] * 4 + ["device.approved"] * 2 + ["device.denied"]

    run(test)


# Audit, leases


def test_one_audit_chain_over_many_writers(url: str, drafts: Any, folder: Any) -> None:
    async def test() -> None:
        stores = [await SqlStore.open(url, lock_file=folder / "lock") for _ in range(3)]
        await asyncio.gather(*[stores[n % 3].audit("op", "note", str(n), drafts.now, n=n) for n in range(90)])
        entries = [entry async for entry in stores[0].audit_entries()]
        assert sorted(entry.detail["n"] for entry in entries) == list(range(90))  # type: ignore[type-var]
        assert verify(entries) is None
        assert await stores[1].audit_head() == entries[-1]
        assert [entry.seq async for entry in stores[1].audit_entries(after=88)] == [89, 90]
        for store in stores:
            await store.close()

    asyncio.run(test())


def test_the_audit_chain_cannot_be_edited_by_sql(run: Any, drafts: Any, url: str) -> None:
    async def test(store: SqlStore) -> None:
        assert await store.audit_head() is None
        await store.audit("op", "note", "x", drafts.now)

    run(test)
    for statement in ("UPDATE audit SET actor = 'other'", "DELETE FROM audit"):
        with pytest.raises(DBAPIError, match="append-only"):
            execute(url, statement)


def test_checkpoints_are_of_this_chain(run: Any, drafts: Any) -> None:
    async def test(store: SqlStore) -> None:
        await store.audit("op", "note", "x", drafts.now)
        head = await store.audit_head()
        assert head is not None
        await store.add_checkpoint(1, head.digest, "audit", b"signature", drafts.now)
        assert await store.checkpoints() == [(1, head.digest, "audit", b"signature")]
        for seq, digest in ((1, head.digest), (1, bytes(32)), (2, head.digest)):
            with pytest.raises(Conflict):
                await store.add_checkpoint(seq, digest, "audit", b"signature", drafts.now)

    run(test)


def test_one_holds_a_lease(run: Any, drafts: Any) -> None:
    async def test(store: SqlStore) -> None:
        first = await asyncio.gather(*[store.lease("scheduler", f"host-{n}", 30, drafts.now) for n in range(10)])
        assert first.count(True) == 1
        holder = f"host-{first.index(True)}"
        assert await store.lease("scheduler", holder, 30, drafts.now + 20 * SECOND)
        assert not await store.lease("scheduler", "other", 30, drafts.now + 49 * SECOND)
        assert await store.lease("scheduler", "other", 30, drafts.now + 50 * SECOND)
        assert not await store.lease("scheduler", holder, 30, drafts.now + 51 * SECOND)
        assert await store.lease("presign", holder, 30, drafts.now)
        await store.ready()
        await store.ready()

    run(test)


def test_no_look_up_reads_a_whole_table(sqlite_url: str, drafts: Any) -> None:
    """What is asked while serving goes through an index, however many certificates there are."""
    scanned: list[str] = []

    def explain(_c: Any, cursor: Any, statement: str, parameters: Any, _x: Any, many: bool) -> None:
        if many or not statement.startswith(("SELECT", "UPDATE", "DELETE")):
            return
        plan = cursor.connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters).fetchall()
        scans = [
            row[3]
            for row in plan
            if row[3].split()[:2] in (["SCAN", table] for table in ("certificates", "revocations", "crls", "invitations", "applications"))
        ]
        scanned.extend(f"{scan}: {statement}" for scan in scans)

    async def test() -> None:
        store = await SqlStore.open(sqlite_url, lock_file=None)
        for engine in (store._database.reader, store._database.writer):
            sqlalchemy.event.listen(engine, "before_cursor_execute", explain)
        invitation = drafts.invitation("pump-1")
        await store.invite([invitation], drafts.now, actor="op")
        await store.invitation(invitation.token_sha256)
        issued = await issue(store, drafts.linted(device="pump-1", token=invitation.token_sha256, idempotency=b"i" * 32), drafts.now)
        await store.unfinished(drafts.now)
        record = await store.get(issued.id)
        assert record is not None
        assert record.sha256 is not None
        current = Identity("ecc-devices", "pump-1", Method.CERTIFICATE, record.sha256.hex())
        await issue(store, drafts.linted(identity=current), drafts.now)
        application = await store.apply(current, b"k" * 32, drafts.now)
        await store.decide([application.id], Decision.APPROVED, drafts.now, actor="op")
        await store.abandon(await begin(store, drafts.linted(device="pump-2", application=application.id), drafts.now), drafts.now)
        await store.status("ecc-issuing", issued.serial)
        await store.revoke([issued.id], Reason.certificateHold, drafts.now, actor="op")
        await publish(store, drafts.now)
        await store.crl_is_stale("ecc-issuing")
        await store.latest_crl("ecc-issuing")
        await store.latest_crl_number("ecc-issuing")
        await store.unhold([issued.id], drafts.now, actor="op")
        await store.get(issued.id)
        await store.by_serial(issued.serial)
        await store.by_sha256(b"a", "7")
        await store.by_device("pump-1", "ecc-devices")
        await store.page(after=7, fleet="ecc-devices")
        await store.newest("ecc-device", "pump-1")
        await store.audit_head()
        assert [entry async for entry in store.audit_entries(2)]
        await store.close()

    asyncio.run(test())
    assert scanned == []
