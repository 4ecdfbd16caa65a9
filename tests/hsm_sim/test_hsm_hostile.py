"""What somebody would try who has the socket, a role, or good timing, and wants more than he may have."""

from __future__ import annotations

import asyncio
import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cbor2 import dumps
from hsm_inside import NOW, Inside, code, pin_of, run, somebody

from hsm_sim import backup, cka, native_keys, trust_ops
from hsm_sim.audit import MAX_READ
from hsm_sim.errors import Code, Rejected
from hsm_sim.objects import Object
from hsm_sim.quorum import approve
from hsm_sim.roles import Role
from hsm_sim.sdf_ops import sdf
from hsm_sim.wire import MAX_FRAME
from pkix.algorithms import KeyKind
from pkix.privatekey import generate

SO_PIN, PASSWORD = "another partition", "sdf password"
PAD = cka.CKM_AES_KEY_WRAP_PAD


def lines(home: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (home / "audit.log").read_text().split("\n") if line]


async def wrapped(hsm: Inside, under: Object, key: Object) -> bytes:
    return await hsm.partition.wrap(hsm.caller, PAD, None, under, key)


async def unwrapped(hsm: Inside, under: Object, octets: bytes, approvals: list[bytes], **attributes: bool) -> Object:
    template: Any = {cka.CKA_CLASS: cka.CKO_PRIVATE_KEY, cka.CKA_KEY_TYPE: cka.CKK_EC, cka.CKA_LABEL: b"again", cka.CKA_TOKEN: True}
    template |= {getattr(cka, f"CKA_{name}"): value for name, value in attributes.items()}
    return await hsm.partition.unwrap(hsm.caller, PAD, None, under, octets, template, approvals)


# --- protection and limits are never taken back --------------------------------------------------------------------


def test_two_changes_at_once_do_not_take_each_other_back(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        _, key = await hsm.pair("root", EXTRACTABLE=True)
        await asyncio.gather(
            hsm.partition.set_attributes(hsm.caller, key, {cka.CKA_EXTRACTABLE: False}),
            hsm.partition.set_attributes(hsm.caller, key, {cka.CKA_SUBJECT: b"0"}),
        )
        assert key.attributes[cka.CKA_EXTRACTABLE] is False
        await asyncio.gather(
            hsm.partition.restrict(hsm.caller, key, quorum=["destroy"]),
            hsm.partition.restrict(hsm.caller, key, usage_limit=5),
            hsm.partition.restrict(hsm.caller, key, usage_limit=9),
            return_exceptions=True,
        )
        assert (key.quorum, key.usage_limit) == (frozenset({"destroy"}), 5)

    run(home, story)


def test_a_limit_that_is_lowered_holds_at_once(home: Path) -> None:
    """Also over the uses that were reserved under the old one."""

    async def story(hsm: Inside) -> None:
        _, key = await hsm.pair("root")
        await hsm.partition.restrict(hsm.caller, key, usage_limit=1000)
        await hsm.sign(key)
        await hsm.partition.restrict(hsm.caller, key, usage_limit=2)
        await hsm.sign(key)
        assert await code(hsm.sign(key)) is Code.LIMIT_REACHED

    run(home, story)


def test_a_limit_counts_encryption_and_wrapping(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        key = await hsm.secret("kek", ENCRYPT=True, WRAP=True)
        other = await hsm.secret("other", EXTRACTABLE=True)
        await hsm.partition.restrict(hsm.caller, key, usage_limit=2)
        await hsm.partition.encrypt(hsm.caller, key, cka.CKM_AES_ECB, None, bytes(16))
        await wrapped(hsm, key, other)
        assert await code(wrapped(hsm, key, other)) is Code.LIMIT_REACHED
        assert await code(hsm.partition.encrypt(hsm.caller, key, cka.CKM_AES_ECB, None, bytes(16))) is Code.LIMIT_REACHED

    run(home, story)


@pytest.mark.parametrize("limits", [{"usage_limit": 3}, {"not_after": "2027-01-01T00:00:00+00:00"}, {"quorum": ["recover"]}])
def test_no_limit_is_lost_by_wrapping_and_unwrapping(home: Path, limits: dict[str, Any]) -> None:
    async def story(hsm: Inside) -> None:
        under = await hsm.secret("under", WRAP=True, UNWRAP=True)
        _, key = await hsm.pair("root", EXTRACTABLE=True)
        await wrapped(hsm, under, key)
        await hsm.partition.restrict(hsm.caller, key, **limits)
        assert await code(wrapped(hsm, under, key)) is Code.ACTION_PROHIBITED
        assert await code(hsm.partition.copy(hsm.caller, key, {})) is Code.ACTION_PROHIBITED

    run(home, story)


@pytest.mark.parametrize(
    "limits",
    [{"quorum": ["exprot"]}, {"not_after": "tomorrow"}, {"not_before": "2027-01-01T00:00:00"}, {"not_after": "0001-01-01T00:00+09:00"}],
)
def test_a_limit_that_would_not_work_is_refused(home: Path, limits: dict[str, Any]) -> None:
    async def story(hsm: Inside) -> None:
        assert (
            await code(native_keys.generate(hsm.device, hsm.caller, {"key": "k", "kind": "p-256", "attributes": limits}))
            is Code.BAD_REQUEST
        )
        assert await native_keys.keys(hsm.device, hsm.caller, {}) == []

    run(home, story)


def test_times_are_compared_as_times(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        _, key = await hsm.pair("root")
        await hsm.partition.restrict(hsm.caller, key, not_after="2026-11-23T07:59:00+08:00")
        assert key.not_after == "2026-11-22T23:59:00+00:00"
        assert await code(hsm.sign(key)) is Code.KEY_FUNCTION_NOT_PERMITTED

    run(home, story)


def test_a_key_is_born_with_its_limits(home: Path) -> None:
    """One transaction: whoever is quick, and whatever crash comes, finds no key without them."""

    async def story(hsm: Inside) -> None:
        limits = {"usage_limit": 1, "quorum": ["destroy"]}
        await native_keys.generate(hsm.device, hsm.caller, {"key": "k", "kind": "p-256", "attributes": limits})
        key = hsm.partition.by_label(hsm.caller, "k")
        assert (key.version, key.usage_limit, key.quorum) == (1, 1, frozenset({"destroy"}))

    run(home, story)
    (made,) = [line for line in lines(home) if line["op"] == "generate"]
    assert (made["usage_limit"], made["quorum"]) == (1, ["destroy"])


def test_approved_octets_do_not_come_back_open(home: Path) -> None:
    people = {name: generate(KeyKind.ED25519) for name in ("ana", "bo")}

    async def story(hsm: Inside) -> None:
        so = await hsm.login(Role.SO)
        for name, key in people.items():
            await trust_ops.approvers(hsm.device, so, {"add": name, "public_key": key.public_key.spki})
        under = await hsm.secret("under", WRAP=True, UNWRAP=True)
        octets = await wrapped(hsm, under, (await hsm.pair("root", EXTRACTABLE=True))[1])
        await hsm.partition.restrict(hsm.caller, under, quorum=["recover"])

        async def approvals(**attributes: bool) -> list[bytes]:
            asked = {"for": "recover", "key": "under", "data": octets, "mechanism": "CKM_AES_KEY_WRAP_PAD", "requester": "dora"}
            request = await trust_ops.challenge(hsm.device, hsm.caller, {**asked, "attributes": attributes})
            return [approve(key, request) for key in people.values()]

        closed = await approvals()
        assert await code(unwrapped(hsm, under, octets, closed, EXTRACTABLE=True)) is Code.QUORUM_MISSING
        assert await code(unwrapped(hsm, under, octets, closed, SENSITIVE=False)) is Code.QUORUM_MISSING
        assert not (await unwrapped(hsm, under, octets, closed)).extractable
        assert (await unwrapped(hsm, under, octets, await approvals(extractable=True), EXTRACTABLE=True)).extractable

    run(home, story)


# --- SDF is no way round -------------------------------------------------------------------------------------------


async def sdf_sign(hsm: Inside) -> Any:
    return await sdf(hsm.device, hsm.caller, {"call": "sign", "index": 1, "e": bytes(31) + b"\1"})


async def sdf_index(hsm: Inside) -> Object:
    await sdf(hsm.device, hsm.caller, {"call": "make_key_pair", "index": 1, "password": PASSWORD})
    await sdf(hsm.device, hsm.caller, {"call": "get_access", "index": 1, "password": PASSWORD})
    return hsm.partition.by_label(hsm.caller, "sdf.1.sign")


def test_sdf_keeps_to_the_limits_of_a_key(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        key = await sdf_index(hsm)
        await hsm.partition.restrict(hsm.caller, key, usage_limit=1)
        await sdf_sign(hsm)
        assert await code(sdf_sign(hsm)) is Code.LIMIT_REACHED
        await hsm.partition.restrict(hsm.caller, key, not_after=(NOW - timedelta(days=1)).isoformat())
        assert await code(sdf_sign(hsm)) is Code.KEY_FUNCTION_NOT_PERMITTED

    run(home, story)


def test_sdf_uses_no_key_of_a_set_that_was_tampered_with(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        await sdf_index(hsm)
        hsm.partition.incomplete = "objects were taken away"
        assert await code(sdf_sign(hsm)) is Code.TAMPERED

    run(home, story)


def test_a_label_does_not_make_a_key_one_of_sdf(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        key = await sdf_index(hsm)
        await hsm.partition.set_attributes(hsm.caller, key, {cka.CKA_LABEL: b"gone"})
        _, other = await hsm.pair("other", "sm2", SIGN=True)
        await hsm.partition.set_attributes(hsm.caller, other, {cka.CKA_LABEL: b"sdf.1.sign"})
        assert await code(sdf_sign(hsm)) is Code.MECHANISM_INVALID

    run(home, story)


# --- partitions and logins -----------------------------------------------------------------------------------------


def test_a_login_is_good_for_no_other_partition_of_the_name(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        so = await hsm.login(Role.SO)
        await hsm.device.create_partition(so, "a", SO_PIN)
        first = await hsm.login(Role.SO, SO_PIN, "a")
        await hsm.device.partition("a").init_partition(first, SO_PIN, "a")
        old = await hsm.login(Role.SO, SO_PIN, "a")
        await hsm.device.create_partition(so, "b", SO_PIN)
        officer = await hsm.login(Role.SO, SO_PIN, "b")
        assert old.role is Role.SO
        await hsm.device.partition("b").init_partition(somebody("b"), SO_PIN, "c")
        await hsm.device.create_partition(so, "b", "the PIN of somebody else")
        new = hsm.device.partition("b")
        assert new.epoch != officer.epoch
        assert await code(new.lock(officer)) in (Code.LOCKED, Code.USER_NOT_LOGGED_IN)

    run(home, story)


def test_what_is_made_while_the_partition_changes_hands_is_not_kept(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        async with hsm.partition._changing:
            making = asyncio.ensure_future(hsm.pair("late"))
            await asyncio.sleep(0)
            hsm.partition._close()
            await hsm.login(Role.SO)
        assert await code(making) is Code.LOCKED
        assert all(obj.label != "late" for obj in hsm.partition.everything())

    run(home, story)


def test_a_new_pin_never_opens_another_kek(home: Path) -> None:
    """The partition is locked while the SO's new PIN for the officer waits its turn."""

    async def story(hsm: Inside) -> None:
        so = await hsm.login(Role.SO)
        await hsm.pair("root")
        async with hsm.device.entering:
            setting = asyncio.ensure_future(hsm.partition.set_pin(so, Role.OFFICER, "a new officer's PIN"))
            await asyncio.sleep(0)
            await hsm.partition.lock(hsm.caller)
        assert await code(setting) is Code.LOCKED
        officer = await hsm.login(Role.OFFICER)
        assert (hsm.partition.incomplete, hsm.partition.damaged) == ("", {})
        assert hsm.partition.by_label(officer, "root")

    run(home, story)


def test_zeroising_waits_for_no_pin_and_leaves_none(home: Path) -> None:
    """A login that is being checked does not write its role's row, with the KEK in it, back."""

    async def story(hsm: Inside) -> None:
        entering = asyncio.ensure_future(hsm.login(Role.SO))
        await asyncio.sleep(0)
        await hsm.device.zeroise()
        await asyncio.gather(entering, return_exceptions=True)
        rows = await hsm.device.store.read(lambda db: db.execute("SELECT role FROM roles").fetchall())
        assert rows == [("auditor",)]

    run(home, story)


def test_initialising_forgets_approvers_and_policy(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        so = await hsm.login(Role.SO)
        key = generate(KeyKind.ED25519)
        await trust_ops.approvers(hsm.device, so, {"add": "ana", "public_key": key.public_key.spki})
        await trust_ops.quorum(hsm.device, so, {"needed": 1, "operations": ["destroy"]})
        await hsm.partition.init_partition(somebody(), pin_of(home, Role.SO), "ironroot")
        assert await hsm.device.quorum.approvers(somebody()) == []
        assert hsm.device.quorum.policy("ironroot").operations == frozenset()

    run(home, story)


def test_guesses_at_the_so_pin_are_in_the_log_whichever_way_they_come(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        left = hsm.partition.tries_left(Role.SO)
        assert await code(hsm.partition.init_partition(somebody(), "not the SO's PIN", "ironroot")) is Code.PIN_INCORRECT
        assert hsm.partition.tries_left(Role.SO) == left - 1

    run(home, story)
    assert ("init_partition", "pin_incorrect") in [(line["op"], line.get("result")) for line in lines(home)]


def test_a_backup_in_two_partitions_at_once_damages_neither(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        so = await hsm.login(Role.SO)
        await hsm.pair("root")
        octets, shares = await backup.backup(hsm.device, so, needed=2, total=2)
        await native_keys.destroy(hsm.device, hsm.caller, {"key": "root"})
        await hsm.device.create_partition(so, "b", SO_PIN)
        other = await hsm.login(Role.SO, SO_PIN, "b")
        done = await asyncio.gather(
            backup.restore(hsm.device, so, octets, shares=shares),
            backup.restore(hsm.device, other, octets, shares=shares),
            return_exceptions=True,
        )
        assert sum(isinstance(outcome, Rejected) for outcome in done) == 1

    run(home, story)
    run(home, _unharmed)


async def _unharmed(hsm: Inside) -> None:
    assert (hsm.partition.incomplete, hsm.partition.damaged) == ("", {})


@pytest.mark.parametrize(
    "change", [{cka.CKA_PRIVATE: False}, {cka.CKA_CLASS: None}, {"used": "0"}, {"secret": None}, {"usage_limit": b"9"}]
)
def test_a_backup_that_its_shareholders_made_up_is_refused(home: Path, change: dict[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Who knows a backup's key can write what he likes into it, and sign it with a device of his own."""
    true = backup._described

    def forged(*arguments: Any) -> list[Any]:
        members = dict(zip(backup._OBJECT, true(*arguments), strict=True))
        for name, value in change.items():
            (members if isinstance(name, str) else members["attributes"])[name] = value
        return list(members.values())

    async def story(hsm: Inside) -> None:
        so = await hsm.login(Role.SO)
        await hsm.pair("root")
        monkeypatch.setattr(backup, "_described", forged)
        octets, shares = await backup.backup(hsm.device, so, needed=2, total=2)
        await native_keys.destroy(hsm.device, hsm.caller, {"key": "root"})
        assert await code(backup.restore(hsm.device, so, octets, shares=shares)) is Code.BAD_REQUEST

    run(home, story)


# --- the log -------------------------------------------------------------------------------------------------------


def test_strangers_do_not_fill_the_log(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        stranger: Any = somebody()
        made = await hsm.partition.create(stranger, {cka.CKA_CLASS: cka.CKO_DATA, cka.CKA_VALUE: b"x"})
        await hsm.partition.set_attributes(stranger, made, {cka.CKA_LABEL: b"y"})
        assert made.label == "y"

    run(home, story, role=None)
    assert not [line for line in lines(home) if line["op"] in ("create", "set_attributes")]


def test_a_backup_is_a_use_of_keys_that_force_audit_holds_up(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        so = await hsm.login(Role.SO)
        await hsm.pair("root")
        hsm.device.audit.limit, hsm.device.audit.acknowledged = 1, 0
        assert await code(backup.backup(hsm.device, so, needed=2, total=2)) is Code.LOG_FULL

    run(home, story)


def test_checking_a_mac_is_a_use_of_the_key(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        template: Any = {cka.CKA_TOKEN: True, cka.CKA_LABEL: b"mac", cka.CKA_VALUE_LEN: 32}
        key = await hsm.partition.generate_secret(hsm.caller, cka.CKM_GENERIC_SECRET_KEY_GEN, template)
        with pytest.raises(Rejected):
            hsm.partition.verify(hsm.caller, key, cka.CKM_SHA256_HMAC, None, b"message", bytes(32))

    run(home, story)
    assert [line["key"] for line in lines(home) if line["op"] == "verify"] == ["mac"]


def test_long_lines_are_read_in_answers_that_fit(hsm: Any) -> None:
    officer, auditor = hsm.login(), hsm.login(Role.AUDITOR)
    officer.call("generate", key="k", kind="p-256")
    for number in range(80):
        officer.call("sign_many", key="k", purpose="test", data=[number.to_bytes(4) * 8] * 1024)
    found = auditor.call("audit_read", after=0)
    assert len(found) > 1
    assert sum(map(len, found)) <= MAX_READ + (1 << 18) < MAX_FRAME
    rest = auditor.call("audit_read", after=json.loads(found[-1])["seq"])
    assert rest
    assert json.loads(rest[0])["seq"] == json.loads(found[-1])["seq"] + 1


# --- the socket ----------------------------------------------------------------------------------------------------


def resident(hsm: Any) -> int:
    assert hsm.process is not None
    pages = Path(f"/proc/{hsm.process.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def test_small_questions_with_large_answers_do_not_fill_the_memory(hsm: Any) -> None:
    """Somebody who never logs in and never reads asks for 64 KiB of random octets, thousands of times."""
    stranger, other = hsm.connect(), hsm.connect()
    other.call("hello")
    before = resident(hsm)
    one = dumps({"id": 1, "op": "random", "length": 1 << 16})
    stranger.socket.setblocking(False)
    asked = (len(one).to_bytes(4) + one) * 8000
    sent = 0
    try:
        while sent < len(asked):
            sent += stranger.socket.send(asked[sent:])
    except BlockingIOError:
        pass
    for _ in range(20):
        other.call("hello")
    assert resident(hsm) - before < 64 << 20


def test_places_that_strangers_take_are_given_to_others(hsm: Any) -> None:
    officer = hsm.login()
    strangers = [hsm.connect() for _ in range(600) if not hsm.clients or hsm.clients[-1].call("status")]
    assert hsm.login().call("status")["role"] == "officer"
    assert officer.call("status")["role"] == "officer"
    assert strangers


def test_making_large_keys_does_not_keep_others_from_their_pins(hsm: Any) -> None:
    officer = hsm.login()
    for number in range(16):
        officer.send("generate", key=f"k{number}", kind="rsa-4096")
    other = hsm.login(Role.SO)
    assert other.call("status")["keys"] == 0
    officer.socket.setblocking(False)
    try:
        answers = len(officer.socket.recv(1 << 20))
    except BlockingIOError:
        answers = 0
    assert answers < 6 * 550, "each answer has the public key of a pair, 550 octets"
