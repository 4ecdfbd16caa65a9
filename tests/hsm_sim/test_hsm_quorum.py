"""Approvals: nothing that is marked happens with fewer than M of them, whatever anybody calls in whatever order."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import cbor2
import pytest
from hsm_inside import NOW, Inside, code, pin_of, refused, run, somebody
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule, run_state_machine_as_test

from hsm_sim import cka, trust_ops
from hsm_sim.device import Device
from hsm_sim.errors import Code, Rejected
from hsm_sim.quorum import LIFETIME, MAX_OPEN, approve, read_approval, read_request
from hsm_sim.roles import Role
from pkix.algorithms import KeyKind
from pkix.errors import Malformed
from pkix.privatekey import PrivateKey, generate

PEOPLE: dict[str, PrivateKey] = {
    "ana": generate(KeyKind.P_256),
    "bo": generate(KeyKind.ED25519),
    "chen": generate(KeyKind.SM2),
    "dora": generate(KeyKind.P_256),
}


async def prepared(hsm: Inside, *, operations: tuple[str, ...] = ("destroy",), needed: int = 2, others: bool = True) -> None:
    """Ana, Bo and Chen are approvers; the partition wants ``needed`` of them for ``operations``."""
    so = await hsm.login(Role.SO)
    for name in ("ana", "bo", "chen"):
        await trust_ops.approvers(hsm.device, so, {"add": name, "public_key": PEOPLE[name].public_key.spki})
    await trust_ops.quorum(hsm.device, so, {"needed": needed, "operations": list(operations), "others": others})


async def asked(hsm: Inside, **arguments: Any) -> bytes:
    return await trust_ops.challenge(hsm.device, hsm.caller, {"for": "destroy", "key": "root", "requester": "dora", **arguments})


async def destroyed(hsm: Inside, *approvals: bytes) -> None:
    await hsm.partition.destroy(hsm.caller, hsm.partition.by_label(hsm.caller, "root"), approvals)


def signed(request: bytes, *names: str) -> list[bytes]:
    return [approve(PEOPLE[name], request) for name in names]


# --- the flow ------------------------------------------------------------------------------------------------------


def test_two_of_three_approve_and_it_happens_once(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        await prepared(hsm)
        await hsm.pair("root")
        assert await code(destroyed(hsm)) is Code.QUORUM_MISSING
        request = await asked(hsm)
        said = read_request(request)
        assert (said.op, said.label, said.partition, said.device) == ("destroy", "root", "ironroot", hsm.device.serial)
        assert said.expires == (NOW + LIFETIME).isoformat(timespec="seconds")
        approvals = signed(request, "bo", "chen")
        assert await code(destroyed(hsm, approvals[0])) is Code.QUORUM_MISSING
        await destroyed(hsm, *approvals)
        await hsm.pair("root")
        assert await code(destroyed(hsm, *approvals)) is Code.QUORUM_MISSING, "another key, under the same label"

    run(home, story)
    log = (home / "audit.log").read_text()
    assert '"approvals":["bo","chen"]' in log
    assert '"op":"quorum_challenge"' in log
    assert '"result":"quorum_missing"' in log


def test_export_and_recovery_are_for_one_way_of_doing_it(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        await prepared(hsm, operations=())
        _, root = await hsm.pair("root", extractable=True)
        under, other = [await hsm.secret(label, wrap=True, unwrap=True) for label in ("under", "other")]
        await hsm.partition.restrict(hsm.caller, root, quorum=["export"])

        async def wrapped(wrapping: Any, mechanism: int, *approvals: bytes) -> bytes:
            return await hsm.partition.wrap(hsm.caller, mechanism, None, wrapping, root, approvals)

        asked_for = {"for": "export", "key": "root", "wrapping": "under", "mechanism": "CKM_AES_KEY_WRAP_PAD", "requester": "dora"}
        request = await trust_ops.challenge(hsm.device, hsm.caller, asked_for)
        assert read_request(request).about == f"under under ({under.id.hex()}) with CKM_AES_KEY_WRAP_PAD"
        approvals = signed(request, "ana", "bo")
        assert await code(wrapped(other, cka.CKM_AES_KEY_WRAP_PAD, *approvals)) is Code.QUORUM_MISSING
        assert await code(wrapped(under, cka.CKM_AES_KEY_WRAP_KWP, *approvals)) is Code.QUORUM_MISSING
        octets = await wrapped(under, cka.CKM_AES_KEY_WRAP_PAD, *approvals)

        await hsm.partition.restrict(hsm.caller, under, quorum=["recover"])
        template: Any = {cka.CKA_CLASS: cka.CKO_PRIVATE_KEY, cka.CKA_KEY_TYPE: cka.CKK_EC, cka.CKA_LABEL: b"back"}

        async def unwrapped(*approvals: bytes) -> Any:
            return await hsm.partition.unwrap(hsm.caller, cka.CKM_AES_KEY_WRAP_PAD, None, under, octets, template, approvals)

        assert await code(unwrapped()) is Code.QUORUM_MISSING
        recovery = {"for": "recover", "key": "under", "data": octets, "mechanism": "CKM_AES_KEY_WRAP_PAD", "requester": "dora"}
        request = await trust_ops.challenge(hsm.device, hsm.caller, recovery)
        assert (await unwrapped(*signed(request, "chen", "ana"))).label == "back"

    run(home, story)


@pytest.mark.parametrize(
    ("people", "requester", "counted"),
    [
        (("ana", "ana"), "dora", False),
        (("ana",), "dora", False),
        (("ana", "dora"), "bo", False),
        (("ana", "bo"), "bo", False),
        (("ana", "bo"), "dora", True),
        (("ana", "bo", "chen"), "bo", True),
        (("ana", "bo"), "", False),
    ],
)
def test_who_counts(home: Path, people: tuple[str, ...], requester: str, counted: bool) -> None:
    """Nobody twice, no stranger, not who asks; and who asks says his name."""

    async def story(hsm: Inside) -> None:
        await prepared(hsm)
        await hsm.pair("root")
        request = await asked(hsm, requester=requester or None)
        if counted:
            await destroyed(hsm, *signed(request, *people))
        else:
            assert await code(destroyed(hsm, *signed(request, *people))) is Code.QUORUM_MISSING

    run(home, story)


def test_who_asks_may_approve_if_the_policy_lets_him(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        await prepared(hsm, others=False)
        await hsm.pair("root")
        await destroyed(hsm, *signed(await asked(hsm, requester="ana"), "ana", "bo"))

    run(home, story)


def test_an_approver_who_was_removed_does_not_count_any_more(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        await prepared(hsm)
        await hsm.pair("root")
        approvals = signed(await asked(hsm), "ana", "bo")
        so = await hsm.login(Role.SO)
        assert [one["name"] for one in await trust_ops.approvers(hsm.device, so, {"remove": "bo"})] == ["ana", "chen"]
        assert (await refused(destroyed(hsm, *approvals))).text == "destroy of root takes 2 approvals, and has 1 that count"
        assert await code(trust_ops.approvers(hsm.device, so, {"remove": "bo"})) is Code.KEY_NOT_FOUND

    run(home, story)


def test_approvals_expire_and_requests_are_forgotten(home: Path) -> None:
    async def story(hsm: Inside) -> bytes:
        await prepared(hsm)
        await hsm.pair("root")
        return await asked(hsm)

    request = run(home, story)

    async def later(hsm: Inside) -> None:
        assert "expired" in (await refused(destroyed(hsm, *signed(request, "ana", "bo")))).text
        await asked(hsm)
        assert (await hsm.device.store.read(lambda db: db.execute("SELECT count(*) FROM approvals").fetchone())) == (1,)

    run(home, later, now=NOW + LIFETIME)


def test_a_restart_keeps_what_was_asked_and_what_was_used(home: Path) -> None:
    async def first(hsm: Inside) -> tuple[bytes, bytes]:
        await prepared(hsm)
        await hsm.pair("root")
        await hsm.pair("other")
        used, still_open = await asked(hsm), await asked(hsm, key="other")
        root = hsm.partition.by_label(hsm.caller, "root")
        await hsm.device.quorum.spend(hsm.caller, "destroy", root, {}, signed(used, "ana", "bo"))
        return used, still_open  # spent, and the power fails before the key is destroyed

    used, still_open = run(home, first)

    async def second(hsm: Inside) -> None:
        assert "used before" in (await refused(destroyed(hsm, *signed(used, "ana", "bo")))).text
        await hsm.partition.destroy(hsm.caller, hsm.partition.by_label(hsm.caller, "other"), signed(still_open, "ana", "bo"))

    run(home, second)


def test_a_request_that_the_device_never_made_is_worth_nothing(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        await prepared(hsm)
        await hsm.pair("root")
        request = read_request(await asked(hsm))
        for forged in (replace(request, nonce=bytes(16)), replace(request, expires=(NOW + 2 * LIFETIME).isoformat(timespec="seconds"))):
            text = (await refused(destroyed(hsm, *signed(forged.to_bytes(), "ana", "bo")))).text
            assert "never asked for" in text
        for forged in (replace(request, device="0" * 16), replace(request, partition="other"), replace(request, op="export")):
            assert "not for this" in (await refused(destroyed(hsm, *signed(forged.to_bytes(), "ana", "bo")))).text

    run(home, story)


def test_the_so_sets_the_policy_and_nobody_else(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        so, device = await hsm.login(Role.SO), hsm.device
        ana, bo = (PEOPLE[name].public_key.spki for name in ("ana", "bo"))
        assert await code(trust_ops.approvers(device, hsm.caller, {"add": "ana", "public_key": ana})) is Code.PERMISSION_DENIED
        assert await code(trust_ops.quorum(device, hsm.caller, {"needed": 1})) is Code.PERMISSION_DENIED
        assert await code(trust_ops.challenge(device, so, {"for": "destroy", "key": "root"})) is not Code.GENERAL_ERROR
        assert await code(trust_ops.quorum(device, so, {"needed": 1, "operations": ["destroy"]})) is Code.QUORUM_MISSING
        await trust_ops.approvers(device, so, {"add": "ana", "public_key": ana})
        for again in ({"add": "ana", "public_key": bo}, {"add": "bo", "public_key": ana}):
            assert await code(trust_ops.approvers(device, so, again)) is Code.KEY_EXISTS
        for wrong in (b"", b"\x30\x00", generate(KeyKind.RSA_2048).public_key.spki):
            assert await code(trust_ops.approvers(device, so, {"add": "eve", "public_key": wrong})) is Code.BAD_REQUEST
        assert await code(trust_ops.quorum(device, so, {"operations": ["sign"]})) is Code.BAD_REQUEST
        await trust_ops.quorum(device, so, {"needed": 1, "operations": ["destroy", "export"]})
        assert await trust_ops.quorum(device, hsm.caller, {}) == {"needed": 1, "operations": ["destroy", "export"], "others": True}

    run(home, story)


def test_requests_do_not_pile_up(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        await hsm.pair("root")
        for _ in range(MAX_OPEN):
            await asked(hsm)
        assert await code(asked(hsm)) is Code.DEVICE_MEMORY

    run(home, story)


# --- the formats ---------------------------------------------------------------------------------------------------


def request_octets() -> bytes:
    return cbor2.dumps(
        {
            **{"v": 1, "device": "d", "partition": "p", "op": "destroy", "object": bytes(16), "label": "l", "parameters": bytes(32)},
            **{"about": "", "requester": "r", "nonce": bytes(16), "expires": "2026-11-23T00:10:00+00:00"},
        },
        canonical=True,
    )


def test_a_request_has_one_form() -> None:
    octets = request_octets()
    assert read_request(octets).to_bytes() == octets
    shuffled = cbor2.dumps(dict(reversed(cbor2.loads(octets).items())))
    for wrong in (shuffled, octets[:-1], octets + b"\0", cbor2.dumps({**cbor2.loads(octets), "more": 1}, canonical=True)):
        with pytest.raises(Malformed):
            read_request(wrong)
    with pytest.raises(Malformed, match="wrong type"):
        read_request(cbor2.dumps({**cbor2.loads(octets), "nonce": "text"}, canonical=True))
    with pytest.raises(Malformed, match="approvers sign with"):
        approve(generate(KeyKind.RSA_2048), octets)
    with pytest.raises(Malformed):
        approve(PEOPLE["ana"], octets[:-1])


@given(st.binary(max_size=300))
def test_any_octets_are_refused_in_words(octets: bytes) -> None:
    for reader in (read_request, read_approval):
        with pytest.raises(Malformed):
            reader(octets)


def test_a_changed_approval_does_not_count(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        await prepared(hsm)
        await hsm.pair("root")
        first, second = signed(await asked(hsm), "ana", "bo")
        for at in range(len(second)):
            changed = bytearray(second)
            changed[at] ^= 1 << at % 8
            assert await code(destroyed(hsm, first, bytes(changed))) is Code.QUORUM_MISSING, at
        await destroyed(hsm, first, second)

    run(home, story)


# --- no sequence of calls gets round it ----------------------------------------------------------------------------


class Approvals(RuleBasedStateMachine):
    """One device, keys that need two approvals to be destroyed, and a model of which approvals ought to be good."""

    made_home: Path
    folder: Path
    requests = Bundle("requests")
    given_out = Bundle("given_out")

    @initialize()
    def start(self) -> None:
        self.now = NOW
        self.runner = asyncio.Runner()
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.made_home, self.folder)
        self.keys: set[str] = set()
        self.present = {"ana", "bo"}
        self.unused: dict[bytes, tuple[str, str, datetime]] = {}
        self.open()
        self.run(prepared(self.hsm))
        so = self.run(self.hsm.login(Role.SO))
        self.run(trust_ops.approvers(self.hsm.device, so, {"remove": "chen"}))
        for label in ("one", "two"):
            self.run(self.hsm.pair(label))
            self.keys.add(label)

    def open(self) -> None:
        device = self.run(Device.open(self.folder, lambda: self.now))
        self.hsm = Inside(device, device.partition(), somebody(), self.folder)
        self.run(self.hsm.partition.login(self.hsm.caller, Role.OFFICER, pin_of(self.folder, Role.OFFICER)))

    def run(self, work: Any) -> Any:
        return self.runner.run(work)

    @rule(target=requests, label=st.sampled_from(["one", "two"]), requester=st.sampled_from(["ana", "dora", ""]))
    def ask(self, label: str, requester: str) -> bytes:
        try:
            request = self.run(asked(self.hsm, key=label, requester=requester or None))
        except Rejected:
            assert label not in self.keys
            return b""
        self.unused[request] = label, requester, self.now + LIFETIME
        return bytes(request)

    @rule(target=given_out, request=requests, name=st.sampled_from(sorted(PEOPLE)))
    def sign(self, request: bytes, name: str) -> tuple[bytes, str, bytes]:
        return (request, name, approve(PEOPLE[name], request)) if request else (b"", "", b"")

    @rule(label=st.sampled_from(["one", "two"]), chosen=st.lists(given_out, max_size=4))
    def destroy(self, label: str, chosen: list[tuple[bytes, str, bytes]]) -> None:
        chosen = [one for one in chosen if one[0]]
        good = self.good(label, chosen)
        try:
            obj = self.hsm.partition.by_label(self.hsm.caller, label)
            self.run(self.hsm.partition.destroy(self.hsm.caller, obj, [approval for _, _, approval in chosen]))
        except Rejected:
            assert not good
            return
        assert good
        self.keys.discard(label)
        del self.unused[chosen[0][0]]

    def good(self, label: str, chosen: list[tuple[bytes, str, bytes]]) -> bool:
        """What the approvals are worth, said in another way than the device says it."""
        requests = {request for request, _, _ in chosen}
        if label not in self.keys or len(requests) != 1 or not requests <= self.unused.keys():
            return False
        wanted, requester, expires = self.unused[next(iter(requests))]
        people = {name for _, name, _ in chosen} & self.present - {requester}
        return wanted == label and requester != "" and self.now < expires and len(people) >= 2

    @rule(target=given_out, label=st.sampled_from(["one", "two"]), names=st.permutations(sorted(PEOPLE)))
    def do_it_right(self, label: str, names: list[str]) -> Any:
        """So that it does happen now and then, and approvals lie about that were used."""
        people = [name for name in names if name in self.present][:2]
        if label not in self.keys or len(people) < 2:
            return multiple()
        request = self.ask(label, "dora")
        approvals = [(request, name, approve(PEOPLE[name], request)) for name in people]
        self.destroy(label, approvals)
        assert label not in self.keys
        return multiple(*approvals)

    @rule(name=st.sampled_from(["ana", "bo", "chen"]))
    def change_approvers(self, name: str) -> None:
        so = self.run(self.hsm.login(Role.SO))
        arguments = {"remove": name} if name in self.present else {"add": name, "public_key": PEOPLE[name].public_key.spki}
        self.run(trust_ops.approvers(self.hsm.device, so, arguments))
        self.present ^= {name}

    @rule(minutes=st.sampled_from([1, 6, 10]))
    def wait(self, minutes: int) -> None:
        self.now += timedelta(minutes=minutes)

    @rule()
    def restart(self) -> None:
        self.run(self.hsm.device.close())
        self.open()

    @invariant()
    def what_is_there_is_there(self) -> None:
        if hasattr(self, "hsm"):
            found = {obj.label for obj in self.hsm.partition.find(self.hsm.caller, {cka.CKA_CLASS: cka.CKO_PRIVATE_KEY})}
            assert found == self.keys

    def teardown(self) -> None:
        if hasattr(self, "hsm"):
            self.run(self.hsm.device.close())
            self.runner.close()


@pytest.mark.parametrize("examples", [5, pytest.param(50, marks=pytest.mark.nightly)])
def test_no_sequence_of_calls_gets_round_the_quorum(made_home: Path, home: Path, examples: int) -> None:
    machine = type("Machine", (Approvals,), {"made_home": made_home, "folder": home.parent / "machine"})
    run_state_machine_as_test(machine, settings=settings(max_examples=examples, stateful_step_count=25, deadline=None))


def test_the_flow_over_the_native_socket(hsm: Any) -> None:
    so, officer = hsm.login(Role.SO), hsm.login()
    for name in ("ana", "bo"):
        so.call("approvers", add=name, public_key=PEOPLE[name].public_key.spki)
    assert so.call("quorum", needed=2, operations=["destroy"]) == {"needed": 2, "operations": ["destroy"], "others": True}
    officer.call("generate", key="root", kind="p-256")
    assert officer.code("destroy", key="root") == "quorum_missing"
    request = officer.call("challenge", requester="dora", key="root", **{"for": "destroy"})
    assert officer.call("destroy", key="root", approvals=signed(request, "ana", "bo")) == {}
    assert officer.call("keys") == []
