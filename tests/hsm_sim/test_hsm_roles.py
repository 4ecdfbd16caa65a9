"""Who may do what: every role and every verb, in the table and on a device."""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hsm_inside import Inside, code, pair_templates, refused, run, somebody

from hsm_sim import cka
from hsm_sim.errors import Code, Rejected
from hsm_sim.roles import CKU, PERMISSIONS, Caller, Role, Verb, permit

# The contract, written down a second time and the other way round: what each role may beyond what everybody may.
EVERYBODY = "status random digest look verify encrypt create_session_object set_own_pin init_partition"
MAY = {
    Role.PUBLIC: "",
    Role.SO: "audit_head lab lock create_partition set_pin set_trusted approvers accept_damage zeroise backup restore shares",
    Role.OFFICER: "audit_head lab lock sign decrypt list_keys attest generate create copy set_attributes destroy wrap unwrap derive",
    Role.USER: "audit_head lab sign decrypt list_keys attest",
    Role.AUDITOR: "audit_head lab audit_read audit_ack force_audit",
}
MATRIX = [(role, verb, verb.value in f"{EVERYBODY} {MAY[role]}".split()) for role in Role for verb in Verb]
DENIALS = (Code.USER_NOT_LOGGED_IN, Code.PERMISSION_DENIED)


def test_every_role_and_every_verb() -> None:
    assert PERMISSIONS.keys() == set(Verb)
    for role, verb, may in MATRIX:
        caller = Caller("native", 1, "ironroot", role)
        if may:
            permit(caller, verb)
            continue
        with pytest.raises(Rejected) as caught:
            permit(caller, verb)
        assert caught.value.code is (Code.USER_NOT_LOGGED_IN if role is Role.PUBLIC else Code.PERMISSION_DENIED), (role, verb)


def test_pkcs11_user_types() -> None:
    assert CKU == {cka.CKU_SO: Role.SO, cka.CKU_USER: Role.OFFICER, cka.CKU_CRYPTO_USER: Role.USER, cka.CKU_AUDITOR: Role.AUDITOR}


DATA = {cka.CKA_CLASS: cka.CKO_DATA, cka.CKA_TOKEN: True, cka.CKA_VALUE: b"v"}
ACTIONS: dict[Verb, Callable[[Inside, Caller], Awaitable[object]]] = {
    Verb.SIGN: lambda hsm, who: hsm.partition.sign(who, key(hsm, "ec"), cka.CKM_ECDSA, None, bytes(32)),
    Verb.DECRYPT: lambda hsm, who: hsm.partition.decrypt(who, key(hsm, "aes"), cka.CKM_AES_ECB, None, bytes(16)),
    Verb.GENERATE: lambda hsm, who: hsm.partition.generate_pair(who, *pair_templates("new")),
    Verb.CREATE: lambda hsm, who: hsm.partition.create(who, DATA),
    Verb.COPY: lambda hsm, who: hsm.partition.copy(who, key(hsm, "public"), {cka.CKA_LABEL: b"copy"}),
    Verb.SET_ATTRIBUTES: lambda hsm, who: hsm.partition.set_attributes(who, key(hsm, "public"), {cka.CKA_LABEL: b"public"}),
    Verb.DESTROY: lambda hsm, who: hsm.partition.destroy(who, key(hsm, "gone")),
    Verb.WRAP: lambda hsm, who: hsm.partition.wrap(who, cka.CKM_AES_KEY_WRAP_KWP, None, key(hsm, "aes"), key(hsm, "out")),
    Verb.DERIVE: lambda hsm, who: hsm.partition.derive(who, key(hsm, "ec"), cka.CKM_ECDH1_DERIVE, None, {}),
    Verb.UNWRAP: lambda hsm, who: hsm.partition.unwrap(who, cka.CKM_AES_KEY_WRAP_KWP, None, key(hsm, "aes"), bytes(24), {}),
    Verb.SET_PIN: lambda hsm, who: hsm.partition.set_pin(who, Role.USER, "a new PIN"),
    Verb.SET_TRUSTED: lambda hsm, who: hsm.partition.set_attributes(who, key(hsm, "public"), {cka.CKA_TRUSTED: True}),
    Verb.CREATE_PARTITION: lambda hsm, who: hsm.device.create_partition(who, f"of {who.role}", "a PIN for it"),
    Verb.BACKUP: lambda hsm, who: hsm.partition.contents(who),
    Verb.RESTORE: lambda hsm, who: hsm.partition.put_back(who, []),
    Verb.ACCEPT_DAMAGE: lambda hsm, who: hsm.partition.accept_damage(who),
    Verb.LOCK: lambda hsm, who: hsm.partition.lock(who),
    Verb.ZEROISE: lambda hsm, who: hsm.partition.zeroise(who),
}


def key(hsm: Inside, label: str):  # type: ignore[no-untyped-def]
    return next(obj for obj in hsm.partition.everything() if obj.label == label)


@pytest.mark.parametrize("role", Role)
def test_each_role_is_let_to_what_it_may_and_to_nothing_else(home: Path, role: Role) -> None:
    async def story(hsm: Inside) -> None:
        await hsm.pair("ec", sign=True, derive=True)
        await hsm.secret("aes", encrypt=True, decrypt=True, wrap=True, unwrap=True)
        await hsm.secret("out", extractable=True)
        await hsm.partition.create(hsm.caller, {**DATA, cka.CKA_LABEL: b"gone"})
        public, _ = await hsm.pair("pair")  # CKA_TRUSTED is for public keys, not for data
        await hsm.partition.set_attributes(hsm.caller, public, {cka.CKA_LABEL: b"public"})
        await hsm.partition.set_pin(await hsm.login(Role.SO), Role.USER, "PIN of the user")
        for verb, action in ACTIONS.items():
            who = somebody()
            if role is not Role.PUBLIC:
                who = await hsm.login(role, "PIN of the user" if role is Role.USER else "")
            elif hsm.partition.state == "locked":
                await hsm.login(Role.OFFICER)
            try:
                await action(hsm, who)
                denied = False
            except Rejected as error:
                denied = error.code in DENIALS or (error.code is Code.OBJECT_HANDLE_INVALID and role not in (Role.OFFICER, Role.USER))
            assert denied is not (role in PERMISSIONS[verb]), verb

    run(home, story)


def test_private_objects_are_there_for_officer_and_user_alone(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        public, private = await hsm.pair("k")
        await hsm.partition.set_pin(await hsm.login(Role.SO), Role.USER, "PIN of the user")
        for role in Role:
            who = somebody() if role is Role.PUBLIC else await hsm.login(role, "PIN of the user" if role is Role.USER else "")
            seen = hsm.partition.find(who, {})
            assert public in seen
            assert (private in seen) is (role in (Role.OFFICER, Role.USER))
            if private not in seen:
                with pytest.raises(Rejected) as caught:
                    hsm.partition.get(who, private.id)
                assert caught.value.code is Code.OBJECT_HANDLE_INVALID

    run(home, story)


def test_a_lock_ends_every_login_and_says_so(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        public, private = await hsm.pair("k")
        other = await hsm.login(Role.OFFICER)
        await hsm.partition.lock(other)
        assert (hsm.partition.state, hsm.partition.locked_on_request) == ("locked", True)
        for who in (hsm.caller, other):
            assert (await code(hsm.partition.sign(who, private, cka.CKM_ECDSA, None, bytes(32)))) is Code.LOCKED
            assert who.role is Role.PUBLIC
        assert hsm.partition.find(hsm.caller, {}) == [public]
        await hsm.login(Role.SO)  # opens it for himself, not for the services
        assert (hsm.partition.state, hsm.partition.locked_on_request) == ("operational", True)
        error = await refused(hsm.partition.sign(hsm.caller, private, cka.CKM_ECDSA, None, bytes(32)))
        assert error.code is Code.USER_NOT_LOGGED_IN
        await hsm.login(Role.OFFICER)
        assert not hsm.partition.locked_on_request

    run(home, story)


def test_who_wants_more_than_he_may_is_written_down(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        so = await hsm.login(Role.SO)
        with pytest.raises(Rejected):
            hsm.partition.by_label(so, "k")
        assert (await code(hsm.partition.generate_pair(so, *pair_templates("k")))) is Code.PERMISSION_DENIED

    run(home, story)
    lines = [json.loads(line) for line in (home / "audit.log").read_text().splitlines()]
    refusals = [(line["op"], line["role"]) for line in lines if line.get("result") == "permission_denied"]
    assert sorted(refusals) == [("generate", "so"), ("list_keys", "so")]


def test_the_check_of_a_batch_costs_next_to_nothing(home: Path) -> None:
    """Counted in Python function calls: a look-up, a permission, a capability."""

    async def story(hsm: Inside) -> int:
        await hsm.pair("k")
        calls = 0

        def count(_frame: object, event: str, _arg: object) -> None:
            nonlocal calls
            calls += event == "call"

        sys.setprofile(count)
        hsm.partition.usable(hsm.caller, Verb.SIGN, hsm.partition.by_label(hsm.caller, "k"), cka.CKM_ECDSA)
        sys.setprofile(None)
        return calls

    assert 3 < run(home, story) < 25
