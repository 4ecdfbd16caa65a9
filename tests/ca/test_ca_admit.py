"""What an intent is refused for though its credential is in order: the histories of devices, approvals and repeated requests."""

from __future__ import annotations

import asyncio
import secrets
from datetime import datetime, timedelta
from typing import Any

import pytest

from ca.model import Application, Decision, Identity, Intent, Issued, Linted, Method, Reason
from ca.ports import PATIENCE, STALE, SerialTaken, Store
from ca.store_sql import SqlStore
from pkix.errors import Conflict, Refused

SECOND = timedelta(seconds=1)
FLEET = "ecc-devices"


async def begin(store: Store, linted: Linted, now: datetime) -> Intent:
    intent = await store.intend(linted, now)
    assert isinstance(intent, Intent)
    return intent


async def issue(store: Store, linted: Linted, now: datetime) -> Issued:
    intent = await begin(store, linted, now)
    return await store.record(intent, b"certificate" + intent.tbs_der, now)


async def invited(store: Store, drafts: Any, device: str, **fields: Any) -> Linted:
    invitation = drafts.invitation(device)
    await store.invite([invitation], drafts.now, actor="op")
    linted: Linted = drafts.linted(device=device, token=invitation.token_sha256, **fields)
    return linted


def idevid(evidence: str, device: str = "pump-1") -> Identity:
    return Identity(FLEET, device, Method.IDEVID, evidence)


async def renewal(store: Store, drafts: Any, issued: Issued) -> Linted:
    """A request by whoever has the key of ``issued``."""
    record = await store.get(issued.id)
    assert record is not None
    assert record.sha256 is not None
    linted: Linted = drafts.linted(identity=Identity(FLEET, record.device, Method.CERTIFICATE, record.sha256.hex()))
    return linted


# The manufacturer's certificate


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason is not Reason.removeFromCRL])
def test_an_idevid_does_not_undo_a_revocation(run: Any, drafts: Any, reason: Reason) -> None:
    async def test(store: SqlStore) -> None:
        first = await issue(store, drafts.linted(device="pump-1"), drafts.now)
        await issue(store, drafts.linted(device="pump-1"), drafts.now)  # a newer one that is in order
        await store.revoke([first.id], reason, drafts.now, actor="op")
        if reason in (Reason.superseded, Reason.cessationOfOperation):
            await issue(store, drafts.linted(device="pump-1"), drafts.now)
            return
        with pytest.raises(Refused, match="invitation"):
            await store.intend(drafts.linted(device="pump-1"), drafts.now)
        await issue(store, drafts.linted(device="pump-2"), drafts.now)
        await issue(store, await invited(store, drafts, "pump-1"), drafts.now)  # an administrator brings it back
        if reason is Reason.certificateHold:
            await store.unhold([first.id], drafts.now, actor="op")
            await issue(store, drafts.linted(device="pump-1"), drafts.now)

    run(test)


def test_two_makers_do_not_share_their_serial_numbers(run: Any, drafts: Any) -> None:
    async def test(store: SqlStore) -> None:
        await issue(store, drafts.linted(identity=idevid("aa")), drafts.now)
        await issue(store, drafts.linted(identity=idevid("aa")), drafts.now)  # a reset
        with pytest.raises(Refused, match="administrator invites it"):
            await store.intend(drafts.linted(identity=idevid("bb")), drafts.now)
        elsewhere = Identity("sm2-devices", "pump-1", Method.IDEVID, "bb")
        await issue(store, drafts.linted(identity=elsewhere), drafts.now)
        # Who was invited is not the manufacturer's, be it only begun; given up, it leaves the serial number free.
        intent = await begin(store, await invited(store, drafts, "pump-2"), drafts.now)
        with pytest.raises(Refused, match="another credential"):
            await store.intend(drafts.linted(identity=idevid("bb", "pump-2")), drafts.now)
        await store.abandon(intent, drafts.now)
        await issue(store, drafts.linted(identity=idevid("bb", "pump-2")), drafts.now)
        # Renewed since, and brought back by an administrator: the maker's certificate that it began with stays its own.
        first = await issue(store, drafts.linted(identity=idevid("cc", "pump-3")), drafts.now)
        await issue(store, await renewal(store, drafts, first), drafts.now)
        await issue(store, await invited(store, drafts, "pump-3"), drafts.now)
        await issue(store, drafts.linted(identity=idevid("cc", "pump-3")), drafts.now)

    run(test)


def test_two_makers_at_the_same_moment(run: Any, drafts: Any) -> None:
    async def test(store: SqlStore) -> None:
        racing = [store.intend(drafts.linted(identity=idevid(f"{number:02x}")), drafts.now) for number in range(10)]
        outcomes = await asyncio.gather(*racing, return_exceptions=True)
        assert sum(isinstance(outcome, Intent) for outcome in outcomes) == 1
        assert sum(isinstance(outcome, Refused) for outcome in outcomes) == 9

    run(test)


# Renewal


@pytest.mark.parametrize("reason", [Reason.superseded, Reason.certificateHold])
def test_a_renewal_that_was_let_in_loses_against_a_revocation(run: Any, drafts: Any, reason: Reason) -> None:
    async def test(store: SqlStore) -> None:
        issued = await issue(store, await invited(store, drafts, "pump-1"), drafts.now)
        late = await renewal(store, drafts, issued)
        await issue(store, await renewal(store, drafts, issued), drafts.now)
        await store.revoke([issued.id], reason, drafts.now, actor="op")
        with pytest.raises(Refused, match="revoked or on hold"):
            await store.intend(late, drafts.now)

    run(test)


# Approvals


async def approved(store: Store, key: bytes, now: datetime) -> Application:
    application = await store.apply(idevid("aa"), key, now)
    (decided,) = await store.decide([application.id], Decision.APPROVED, now, actor="op")
    return decided


def test_an_approval_is_good_for_one_certificate(run: Any, drafts: Any) -> None:
    async def test(store: SqlStore) -> None:
        application = await approved(store, b"k" * 32, drafts.now)
        fields = {"identity": idevid("aa"), "spki_sha256": b"k" * 32, "application": application.id}
        racing = [store.intend(drafts.linted(**fields, idempotency=bytes([number]) * 32), drafts.now) for number in range(10)]
        outcomes = await asyncio.gather(*racing, return_exceptions=True)
        (intent,) = [outcome for outcome in outcomes if isinstance(outcome, Intent)]
        assert sum("was used" in str(outcome) for outcome in outcomes if isinstance(outcome, Refused)) == 9
        assert (await store.apply(idevid("aa"), b"k" * 32, drafts.now)).decision is Decision.USED
        # What the approval was used for is finished and fetched without another.
        request = drafts.linted(**fields, idempotency=bytes([outcomes.index(intent)]) * 32)
        assert await store.intend(request, drafts.now + STALE * SECOND) == intent
        issued = await store.record(intent, b"der", drafts.now)
        assert await store.intend(drafts.again(request), drafts.now) == issued
        with pytest.raises(Refused, match="new key"):
            await store.intend(drafts.linted(**fields), drafts.now)

    run(test)


def test_only_an_approval_opens(run: Any, drafts: Any) -> None:
    async def test(store: SqlStore) -> None:
        application = await store.apply(idevid("aa"), b"k" * 32, drafts.now)
        with pytest.raises(Refused):
            await store.intend(drafts.linted(application=application.id), drafts.now)
        await store.decide([application.id], Decision.DENIED, drafts.now, actor="op")
        with pytest.raises(Refused):
            await store.intend(drafts.linted(application=application.id), drafts.now)

    run(test)


def test_what_was_not_signed_gives_the_approval_back(run: Any, drafts: Any) -> None:
    async def test(store: SqlStore) -> None:
        application = await approved(store, b"k" * 32, drafts.now)
        taken = await issue(store, drafts.linted(), drafts.now)
        with pytest.raises(SerialTaken):
            await store.intend(drafts.linted(serial=taken.serial, application=application.id), drafts.now)
        intent = await begin(store, drafts.linted(application=application.id), drafts.now)
        await store.abandon(intent, drafts.now)
        assert await store.apply(idevid("aa"), b"k" * 32, drafts.now) == application
        await issue(store, drafts.linted(application=application.id), drafts.now)
        await store.abandon(intent, drafts.now)
        assert (await store.apply(idevid("aa"), b"k" * 32, drafts.now)).decision is Decision.USED

    run(test)


# The same request once more


@pytest.mark.parametrize("end", [Reason.superseded, Reason.certificateHold, None])
def test_a_repeated_request_does_not_get_what_is_no_longer_good(run: Any, drafts: Any, end: Reason | None) -> None:
    async def test(store: SqlStore) -> None:
        one = await invited(store, drafts, "pump-1", idempotency=b"i" * 32)
        issued = await issue(store, one, drafts.now)
        later = one.tbs.not_after
        assert await store.intend(drafts.again(one), later) == issued
        if end is None:
            later += SECOND
        else:
            await store.revoke([issued.id], end, later, actor="op")
        with pytest.raises(Conflict, match="revoked or expired") as caught:
            await store.intend(drafts.again(one), later)
        assert caught.value.retry_after is None

    run(test)


def test_an_intent_that_was_revoked_is_not_finished_for_its_device(run: Any, drafts: Any) -> None:
    async def test(store: SqlStore) -> None:
        one = await invited(store, drafts, "pump-1")
        intent = await begin(store, one, drafts.now)
        await store.revoke([intent.id], Reason.keyCompromise, drafts.now, actor="op")
        with pytest.raises(Conflict, match="revoked"):
            await store.intend(drafts.again(one), drafts.now + STALE * SECOND)

    run(test)


def test_an_intent_of_a_clock_that_was_ahead_is_nobodys(run: Any, drafts: Any) -> None:
    async def test(store: SqlStore) -> None:
        one = await invited(store, drafts, "pump-1")
        intent = await begin(store, one, drafts.now)
        with pytest.raises(Conflict):  # of another machine, a little behind
            await store.intend(drafts.again(one), drafts.now - (STALE - 1) * SECOND)
        assert await store.intend(drafts.again(one), drafts.now - STALE * SECOND) == intent

    run(test)


def test_recovery_leaves_tokens_to_their_devices_for_a_while(run: Any, drafts: Any) -> None:
    async def test(store: SqlStore) -> None:
        with_token = await begin(store, await invited(store, drafts, "pump-1"), drafts.now)
        without = await begin(store, drafts.linted(spki_sha256=secrets.token_bytes(32)), drafts.now)
        assert await store.unfinished(drafts.now + SECOND) == [without]
        assert await store.unfinished(drafts.now + PATIENCE * SECOND) == [without]
        assert await store.unfinished(drafts.now + (PATIENCE + 1) * SECOND) == [with_token, without]

    run(test)
