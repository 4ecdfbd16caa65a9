"""PINs and states of a partition, and its objects: how they are made, limited, changed, copied, wrapped and destroyed."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hsm_inside import NOW, Inside, code, pair_templates, pin_of, refused, run, somebody
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hsm_sim import access, cka, initialise, templates
from hsm_sim.access import FREE_CUTS, TRIES
from hsm_sim.errors import Code, Rejected
from hsm_sim.mechanisms import Ecdh1
from hsm_sim.objects import Template
from hsm_sim.roles import Role
from hsm_sim.store import RoleRow, put_role, role
from pkix.algorithms import KeyKind

NEW = "a PIN of their own"


def audited(home: Path, op: str) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, (home / "audit.log").read_text().splitlines()) if line["op"] == op]


def stored(hsm: Inside, name: Role) -> tuple[int, int]:
    """Wrong and cut-off tries, as they are on disk."""
    place = b"" if name is Role.AUDITOR else hsm.device.store.now(lambda db: db.execute("SELECT id FROM partitions").fetchone()[0])
    row = hsm.device.store.now(lambda db: role(db, place, name))
    assert row is not None
    return row.wrong, row.cut


def put(hsm: Inside, name: Role, wrong: int, cut: int) -> None:
    """Counters for the next start."""

    def change(db: Any) -> None:
        place = b"" if name is Role.AUDITOR else db.execute("SELECT id FROM partitions").fetchone()[0]
        row = role(db, place, name)
        assert isinstance(row, RoleRow)
        put_role(db, place, row._replace(wrong=wrong, cut=cut))

    hsm.device.store.now(change)


# --- PINs


def test_the_tenth_wrong_pin_locks_and_a_right_one_starts_afresh(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        for count in range(TRIES - 1):
            assert (await code(hsm.login(Role.OFFICER, "wrong PIN"))) is Code.PIN_INCORRECT
            assert (stored(hsm, Role.OFFICER), hsm.partition.tries_left()) == ((count + 1, 0), TRIES - count - 1)
        await hsm.login(Role.OFFICER)
        assert stored(hsm, Role.OFFICER) == (0, 0)
        codes = [await code(hsm.login(Role.OFFICER, "wrong PIN")) for _ in range(TRIES + 1)]
        assert codes == [Code.PIN_INCORRECT] * TRIES + [Code.PIN_LOCKED]
        assert (await code(hsm.login(Role.OFFICER))) is Code.PIN_LOCKED

    run(home, story)

    async def next_start(hsm: Inside) -> None:
        assert (await code(hsm.login(Role.OFFICER))) is Code.PIN_LOCKED

    run(home, next_start, role=None)
    wrong = [line for line in audited(home, "login") if line["result"] == "pin_incorrect"]
    assert sum(line.get("times", 1) for line in wrong) == 2 * TRIES - 1


@pytest.mark.parametrize("name", [Role.SO, Role.AUDITOR])
def test_each_role_has_tries_of_its_own(home: Path, name: Role) -> None:
    async def before(hsm: Inside) -> None:
        put(hsm, name, TRIES - 1, 0)

    run(home, before, role=None)

    async def story(hsm: Inside) -> None:
        assert (await code(hsm.login(name, "wrong PIN"))) is Code.PIN_INCORRECT
        assert (await code(hsm.login(name))) is Code.PIN_LOCKED
        await hsm.login(Role.OFFICER)

    run(home, story, role=None)


def test_the_so_unlocks_with_a_new_pin_and_whoever_was_logged_in_stays_so(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        _, key = await hsm.pair("k")
        for _ in range(TRIES):
            await code(hsm.login(Role.OFFICER, "wrong PIN"))
        assert (await code(hsm.login(Role.OFFICER))) is Code.PIN_LOCKED
        so = await hsm.login(Role.SO)
        await hsm.partition.set_pin(so, Role.OFFICER, NEW)
        assert await hsm.sign(key)
        assert (await code(hsm.login(Role.OFFICER))) is Code.PIN_INCORRECT
        await hsm.login(Role.OFFICER, NEW)

    run(home, story)

    async def next_start(hsm: Inside) -> None:
        hsm.caller = await hsm.login(Role.OFFICER, NEW)
        assert await hsm.sign("k")

    run(home, next_start, role=None)


def test_pins_are_changed_by_who_knows_the_old_one_and_set_by_the_so(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        nobody, so = somebody(), await hsm.login(Role.SO)
        set_pin = hsm.partition.set_pin
        assert (await code(hsm.login(Role.USER, NEW))) is Code.USER_PIN_NOT_INITIALIZED
        assert (await code(set_pin(nobody, Role.OFFICER, NEW))) is Code.USER_NOT_LOGGED_IN
        assert (await code(set_pin(hsm.caller, Role.USER, NEW))) is Code.PERMISSION_DENIED
        assert (await code(set_pin(so, Role.SO, NEW))) is Code.PERMISSION_DENIED  # not without the old one
        assert (await code(set_pin(nobody, Role.OFFICER, NEW, "wrong PIN"))) is Code.PIN_INCORRECT
        assert (await code(set_pin(so, Role.USER, "short"))) is Code.PIN_LEN_RANGE
        assert stored(hsm, Role.OFFICER) == (1, 0)
        await set_pin(nobody, Role.OFFICER, NEW, pin_of(hsm.home, Role.OFFICER))  # C_SetPIN in a public session
        await set_pin(so, Role.SO, "the SO's new one", pin_of(hsm.home, Role.SO))
        await set_pin(so, Role.USER, "the user's")
        await set_pin(so, Role.AUDITOR, "the auditor's")
        for name, pin in ((Role.OFFICER, NEW), (Role.SO, "the SO's new one"), (Role.USER, "the user's"), (Role.AUDITOR, "the auditor's")):
            await hsm.login(name, pin)
        assert (await code(hsm.login(Role.AUDITOR))) is Code.PIN_INCORRECT

    run(home, story)
    assert [line["of"] for line in audited(home, "set_pin") if line["result"] == "ok"] == ["officer", "so", "user", "auditor"]


def test_a_try_is_counted_on_disk_before_the_pin_is_looked_at(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    async def story(hsm: Inside) -> None:
        real = access.unwrapped
        loop_side: list[tuple[int, int]] = seen

        def look(row: RoleRow, *rest: Any) -> bytes:
            loop_side.append(asyncio.run_coroutine_threadsafe(_read(hsm), loop).result())
            return real(row, *rest)

        loop = asyncio.get_running_loop()
        monkeypatch.setattr(access, "unwrapped", look)
        await hsm.login(Role.OFFICER)
        assert stored(hsm, Role.OFFICER) == (0, 0)

    run(home, story, role=None)
    assert seen == [(0, 1)]


async def _read(hsm: Inside) -> tuple[int, int]:
    return stored(hsm, Role.OFFICER)


class Crash(BaseException):
    """The process ends here."""


def test_tries_that_a_crash_cut_off_do_not_lock_the_owner_out(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> bytes:
        raise Crash

    async def cut(hsm: Inside) -> tuple[int, int]:
        with pytest.raises(Crash):
            await hsm.login(Role.OFFICER)
        return stored(hsm, Role.OFFICER)

    for count in range(1, FREE_CUTS + 1):
        with monkeypatch.context() as patched:
            patched.setattr(access, "unwrapped", crash)
            assert run(home, cut, role=None) == (0, count)

    async def owner(hsm: Inside) -> tuple[int, int]:
        return stored(hsm, Role.OFFICER)

    assert run(home, owner) == (0, 0)


@pytest.mark.parametrize(("cut", "wait"), [(3, 2), (4, 4), (11, 300), (10**9, 300)])
def test_who_cuts_the_power_to_guess_waits_ever_longer(home: Path, monkeypatch: pytest.MonkeyPatch, cut: int, wait: int) -> None:
    async def before(hsm: Inside) -> None:
        put(hsm, Role.OFFICER, 7, cut)

    run(home, before, role=None)
    monkeypatch.setattr(access, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    clock = [1000.0]

    async def story(hsm: Inside) -> None:
        clock[0] += wait - 0.1
        error = await refused(hsm.login(Role.OFFICER, "wrong PIN"))
        assert (error.code, "cut off" in error.text, stored(hsm, Role.OFFICER)) == (Code.PIN_LOCKED, True, (7, cut))  # not even looked at
        await hsm.login(Role.SO)  # whose tries are his own
        clock[0] += 0.2
        assert (await code(hsm.login(Role.OFFICER, "wrong PIN"))) is Code.PIN_INCORRECT
        assert stored(hsm, Role.OFFICER) == (8, cut)
        await hsm.login(Role.OFFICER)
        assert stored(hsm, Role.OFFICER) == (0, 0)

    run(home, story, role=None)


def test_tries_at_the_same_time_are_counted_one_by_one(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        codes = await asyncio.gather(*(code(hsm.login(Role.OFFICER, "wrong PIN")) for _ in range(TRIES + 2)))
        assert (codes.count(Code.PIN_INCORRECT), codes.count(Code.PIN_LOCKED)) == (TRIES, 2)

    run(home, story)


def test_the_device_secret_is_needed_beside_the_pin(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        hsm.device.secret = bytes(32)
        assert (await code(hsm.login(Role.OFFICER))) is Code.PIN_INCORRECT

    run(home, story, role=None)


# --- the whole partition


def test_initialising_a_partition_takes_the_sos_pin_and_everything_else(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        _, key = await hsm.pair("k")
        assert (await code(hsm.partition.init_partition(somebody(), "wrong PIN", "fresh"))) is Code.PIN_INCORRECT
        for name in ("", " x", "x" * 33, "a/b"):
            assert (await code(hsm.partition.init_partition(somebody(), pin_of(home, Role.SO), name))) is Code.BAD_REQUEST
        assert await hsm.sign(key)
        await hsm.partition.init_partition(somebody(), pin_of(home, Role.SO), "fresh")
        assert list(hsm.device.partitions) == ["fresh"]
        assert (hsm.partition.state, hsm.partition.has_pin(Role.OFFICER), list(hsm.partition.everything())) == ("locked", False, [])
        assert (await code(hsm.sign(key))) is Code.LOCKED
        so = await hsm.login(Role.SO, partition="fresh")
        await hsm.partition.set_pin(so, Role.OFFICER, NEW)
        hsm.caller = await hsm.login(Role.OFFICER, NEW, partition="fresh")
        await hsm.pair("k")

    run(home, story)

    async def again(hsm: Inside) -> None:
        assert (hsm.partition.name, hsm.partition.rolled_back) == ("fresh", "")
        hsm.caller = await hsm.login(Role.OFFICER, NEW, partition="fresh")
        assert hsm.partition.incomplete == ""
        assert await hsm.sign("k")

    run(home, again, role=None)


def test_zeroisation_leaves_nothing_and_the_partition_can_begin_anew(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        await hsm.pair("k")
        await hsm.partition.zeroise(await hsm.login(Role.SO))
        assert hsm.partition.state == "tampered"
        for name in (Role.OFFICER, Role.SO):
            assert (await code(hsm.login(name))) is Code.TAMPERED
        await hsm.login(Role.AUDITOR)  # who wants to know what happened
        assert (await code(hsm.pair("new"))) is Code.TAMPERED

    run(home, story)
    assert _sealed(home) == []

    async def begin(hsm: Inside) -> None:
        assert hsm.partition.state == "tampered"
        await hsm.partition.init_partition(somebody(), NEW, "ironroot")
        await hsm.partition.set_pin(await hsm.login(Role.SO, NEW), Role.OFFICER, NEW)
        hsm.caller = await hsm.login(Role.OFFICER, NEW)
        await hsm.pair("k")

    run(home, begin, role=None)


def _sealed(home: Path) -> list[Any]:
    with closing(sqlite3.connect(home / "hsm.db")) as db:
        return [*db.execute("SELECT record FROM objects"), *db.execute("SELECT wrapped FROM roles WHERE length(partition) > 0")]


def test_what_was_destroyed_is_in_no_file_any_more(home: Path) -> None:
    records: list[bytes] = []

    async def story(hsm: Inside) -> None:
        _, key = await hsm.pair("k")
        await hsm.pair("other")
        records.extend(hsm.device.store.now(lambda db: db.execute("SELECT record FROM objects WHERE id = ?", (key.id,)).fetchone()))
        assert any(records[0] in path.read_bytes() for path in home.glob("hsm.db*"))
        await hsm.partition.destroy(hsm.caller, key)
        assert not any(records[0][20:] in path.read_bytes() for path in home.glob("hsm.db*"))
        assert (await code(hsm.sign(key))) is Code.OBJECT_HANDLE_INVALID

    run(home, story)


def test_partitions_know_nothing_of_each_other(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        second = await hsm.device.create_partition(await hsm.login(Role.SO), "second", NEW)
        assert (second.slot, second.serial != hsm.partition.serial) == (1, True)
        so = await hsm.login(Role.SO, NEW, "second")
        await second.set_pin(so, Role.OFFICER, NEW)
        assert (await code(second.set_pin(so, Role.AUDITOR, NEW))) is Code.PERMISSION_DENIED  # that is the first slot's
        there = await hsm.login(Role.OFFICER, NEW, "second")
        _, key = await hsm.pair("k")
        assert second.find(there, {}) == []
        assert (await code(second.sign(there, key, cka.CKM_ECDSA, None, bytes(32)))) is Code.OBJECT_HANDLE_INVALID
        mechanism, public, private = pair_templates("k")
        await second.generate_pair(there, mechanism, public, private, unique=True)  # the same label, elsewhere
        await hsm.partition.lock(hsm.caller)
        assert await second.sign(there, second.by_label(there, "k"), cka.CKM_ECDSA, None, bytes(32))
        auditor = await hsm.login(Role.AUDITOR, partition="second")
        assert auditor.role is Role.AUDITOR

    run(home, story)


# --- attributes


def test_a_key_is_born_sensitive_and_unextractable(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        for kind in [kind.value for kind in KeyKind if kind not in (KeyKind.RSA_3072, KeyKind.RSA_4096)]:
            public, private = await hsm.pair(kind, kind)
            for attribute in (
                cka.CKA_SENSITIVE,
                cka.CKA_ALWAYS_SENSITIVE,
                cka.CKA_NEVER_EXTRACTABLE,
                cka.CKA_LOCAL,
                cka.CKA_PRIVATE,
                cka.CKA_SIGN,
            ):
                assert private.attributes[attribute] is True, (kind, attribute)
            assert private.attributes[cka.CKA_EXTRACTABLE] is False
            assert private.attributes[cka.CKA_UNWRAP] is False
            assert (public.attributes[cka.CKA_VERIFY], public.private, private.kind) == (True, False, kind)
            assert public.attributes[cka.CKA_PUBLIC_KEY_INFO] == private.attributes[cka.CKA_PUBLIC_KEY_INFO]
            assert not cka.SECRETS & private.attributes.keys()
        aes = await hsm.secret("aes")
        assert (aes.closed, aes.kind, aes.attributes[cka.CKA_ENCRYPT], aes.attributes[cka.CKA_WRAP]) == (True, "aes-256", True, False)
        assert cka.CKA_VALUE not in aes.attributes

    run(home, story)


TOKEN: Template = {cka.CKA_TOKEN: True}
EC = {cka.CKA_EC_PARAMS: pair_templates("x")[1][cka.CKA_EC_PARAMS]}
REFUSED: list[tuple[str, Template, Template, Code]] = [
    ("unknown attribute", EC | {0x7FFFFFFF: b""}, {}, Code.ATTRIBUTE_TYPE_INVALID),
    ("a list of attributes", EC, {cka.CKA_UNWRAP_TEMPLATE: b""}, Code.ATTRIBUTE_TYPE_INVALID),
    ("the device's word", EC, {cka.CKA_LOCAL: True}, Code.ATTRIBUTE_READ_ONLY),
    ("the device's word too", EC, {cka.CKA_NEVER_EXTRACTABLE: True}, Code.ATTRIBUTE_READ_ONLY),
    ("a value", EC, {cka.CKA_VALUE: bytes(32)}, Code.TEMPLATE_INCONSISTENT),
    ("a public key's", EC, {cka.CKA_VERIFY: True}, Code.TEMPLATE_INCONSISTENT),
    ("another class", EC, {cka.CKA_CLASS: cka.CKO_SECRET_KEY}, Code.TEMPLATE_INCONSISTENT),
    ("another type", EC, {cka.CKA_KEY_TYPE: cka.CKK_RSA}, Code.TEMPLATE_INCONSISTENT),
    ("a number for a truth", EC, {cka.CKA_SIGN: 1}, Code.ATTRIBUTE_VALUE_INVALID),
    ("a truth for octets", EC, {cka.CKA_LABEL: True}, Code.ATTRIBUTE_VALUE_INVALID),
    ("no date", EC, {cka.CKA_START_DATE: b"tomorrow"}, Code.ATTRIBUTE_VALUE_INVALID),
    ("a PIN for each use", EC, {cka.CKA_ALWAYS_AUTHENTICATE: True}, Code.ATTRIBUTE_VALUE_INVALID),
    ("no curve", {}, {}, Code.TEMPLATE_INCOMPLETE),
    ("a curve that is not there", {cka.CKA_EC_PARAMS: b"\x06\x05\x2b\x81\x04\x00\x0a"}, {}, Code.CURVE_NOT_SUPPORTED),
    ("trusted", EC | {cka.CKA_TRUSTED: True}, {}, Code.PERMISSION_DENIED),
    ("too long", EC | {cka.CKA_LABEL: bytes(20_000)}, {}, Code.DEVICE_MEMORY),
]


def test_templates_that_are_refused_make_nothing(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        for what, public, private, expected in REFUSED:
            work = hsm.partition.generate_pair(hsm.caller, cka.CKM_EC_KEY_PAIR_GEN, TOKEN | public, TOKEN | private)
            assert (await code(work)) is expected, what
        assert (await code(hsm.partition.generate_pair(hsm.caller, 0x999, TOKEN, TOKEN))) is Code.MECHANISM_INVALID
        assert list(hsm.partition.everything()) == []

    run(home, story)


def test_private_and_secret_keys_do_not_come_in_in_the_clear(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        for cls, key_type in ((cka.CKO_PRIVATE_KEY, cka.CKK_EC), (cka.CKO_SECRET_KEY, cka.CKK_AES)):
            for token in (True, False):
                template: Template = {cka.CKA_CLASS: cls, cka.CKA_KEY_TYPE: key_type, cka.CKA_TOKEN: token, cka.CKA_VALUE: bytes(32)}
                error = await refused(hsm.partition.create(hsm.caller, template))
                assert (error.code, "wrap" in error.text) == (Code.TEMPLATE_INCONSISTENT, True)

    run(home, story)


def test_certificates_data_and_public_keys_are_kept_and_found(home: Path) -> None:
    certificate: Template = {
        cka.CKA_CLASS: cka.CKO_CERTIFICATE,
        cka.CKA_TOKEN: True,
        cka.CKA_CERTIFICATE_TYPE: 0,
        cka.CKA_VALUE: b"\x30\x00",
    }
    data: Template = {cka.CKA_CLASS: cka.CKO_DATA, cka.CKA_TOKEN: True, cka.CKA_PRIVATE: True, cka.CKA_VALUE: b"between us"}

    async def make(hsm: Inside) -> None:
        public, _ = await hsm.pair("k")
        numbers = {name: public.attributes[name] for name in (cka.CKA_KEY_TYPE, cka.CKA_EC_PARAMS, cka.CKA_EC_POINT)}
        await hsm.partition.create(hsm.caller, {cka.CKA_CLASS: cka.CKO_PUBLIC_KEY, cka.CKA_TOKEN: True, cka.CKA_LABEL: b"again", **numbers})
        await hsm.partition.create(hsm.caller, certificate)
        await hsm.partition.create(hsm.caller, data)
        session = await hsm.partition.create(somebody(), {**certificate, cka.CKA_TOKEN: False})
        assert session not in hsm.partition.find(hsm.caller, {})
        assert (await code(hsm.partition.create(somebody(), certificate))) is Code.USER_NOT_LOGGED_IN

    run(home, make)

    async def find(hsm: Inside) -> None:
        (kept,) = hsm.partition.find(hsm.caller, {cka.CKA_VALUE: b"between us"})
        assert kept.value == b"between us"
        assert hsm.partition.find(somebody(), {cka.CKA_VALUE: b"between us"}) == []
        (seen,) = hsm.partition.find(somebody(), {cka.CKA_CLASS: cka.CKO_CERTIFICATE})
        assert seen.value == b"\x30\x00"
        (again,) = hsm.partition.find(somebody(), {cka.CKA_LABEL: b"again"})
        signature = await hsm.sign("k")
        hsm.partition.verify(somebody(), again, cka.CKM_ECDSA, None, b"\x07" * 32, signature)
        with pytest.raises(Rejected) as caught:
            hsm.partition.verify(somebody(), again, cka.CKM_ECDSA, None, b"\x08" * 32, signature)
        assert caught.value.code is Code.SIGNATURE_INVALID

    run(home, find)
    assert b"between us" not in b"".join(path.read_bytes() for path in home.iterdir() if path.is_file())


def test_protection_is_only_ever_raised(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        _, loose = await hsm.pair("loose", sensitive=False, extractable=True)
        change = hsm.partition.set_attributes
        assert (loose.attributes[cka.CKA_ALWAYS_SENSITIVE], loose.attributes[cka.CKA_NEVER_EXTRACTABLE]) == (False, False)
        await change(
            hsm.caller, loose, {cka.CKA_SENSITIVE: True, cka.CKA_EXTRACTABLE: False, cka.CKA_LABEL: b"tight", cka.CKA_DECRYPT: True}
        )
        assert (loose.closed, loose.label, loose.version) == (True, "tight", 2)
        assert loose.attributes[cka.CKA_ALWAYS_SENSITIVE] is False
        for template in ({cka.CKA_SENSITIVE: False}, {cka.CKA_EXTRACTABLE: True}, {cka.CKA_CLASS: cka.CKO_DATA}, {cka.CKA_TOKEN: False}):
            assert (await code(change(hsm.caller, loose, template))) is Code.ATTRIBUTE_READ_ONLY
        assert (await code(change(hsm.caller, loose, {cka.CKA_LOCAL: True}))) is Code.ATTRIBUTE_READ_ONLY
        copied = await hsm.partition.copy(
            hsm.caller, loose, {cka.CKA_LABEL: b"copy", cka.CKA_MODIFIABLE: False, cka.CKA_DESTROYABLE: False}
        )
        assert (copied.id != loose.id, copied.closed, hsm.partition.by_label(hsm.caller, "copy") is copied) == (True, True, True)
        assert (await code(hsm.partition.copy(hsm.caller, loose, {cka.CKA_EXTRACTABLE: True}))) is Code.ATTRIBUTE_READ_ONLY
        assert (await code(change(hsm.caller, copied, {cka.CKA_LABEL: b"x"}))) is Code.ACTION_PROHIBITED
        assert (await code(hsm.partition.destroy(hsm.caller, copied))) is Code.ACTION_PROHIBITED

    run(home, story)

    async def kept(hsm: Inside) -> None:
        assert hsm.partition.by_label(hsm.caller, "tight").attributes[cka.CKA_DECRYPT] is True
        assert await hsm.sign("copy")

    run(home, kept)


VALUES = st.one_of(st.booleans(), st.integers(0, 2**64 - 1), st.binary(max_size=12), st.just((1, 2)))
ATTRIBUTES = st.one_of(st.sampled_from([value for name, value in vars(cka).items() if name.startswith("CKA_")]), st.integers(0, 2**32 - 1))


def test_any_template_is_taken_or_refused_and_never_loosens_a_key(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        _, key = await hsm.pair("k")

        @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.dictionaries(ATTRIBUTES, VALUES, max_size=3), st.booleans())
        def any_template(template: Template, copy: bool) -> None:
            try:
                after = templates.changed(key, template, copy=copy)
            except Rejected:
                return
            assert after[cka.CKA_SENSITIVE] is after[cka.CKA_PRIVATE] is True
            assert after[cka.CKA_EXTRACTABLE] is False
            for attribute in (cka.CKA_CLASS, cka.CKA_KEY_TYPE, cka.CKA_PUBLIC_KEY_INFO, cka.CKA_LOCAL, cka.CKA_ALLOWED_MECHANISMS):
                assert after.get(attribute) == key.attributes.get(attribute)

        await asyncio.to_thread(any_template)

    run(home, story)


# --- what a key may


def test_uses_that_were_not_given_are_refused(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        _, signer = await hsm.pair("signer", "rsa-2048", sign=True)
        _, picky = await hsm.pair("picky", "rsa-2048", sign=True, allowed_mechanisms=(cka.CKM_SHA256_RSA_PKCS,))
        sign, decrypt = hsm.partition.sign, hsm.partition.decrypt
        assert len(await sign(hsm.caller, picky, cka.CKM_SHA256_RSA_PKCS, None, b"message")) == 256
        assert (await code(sign(hsm.caller, picky, cka.CKM_RSA_PKCS, None, bytes(32)))) is Code.MECHANISM_INVALID
        assert (await code(sign(hsm.caller, signer, cka.CKM_ECDSA, None, bytes(32)))) is Code.KEY_TYPE_INCONSISTENT
        assert (await code(sign(hsm.caller, signer, cka.CKM_SHA_1, None, bytes(32)))) is Code.MECHANISM_INVALID
        assert (await code(decrypt(hsm.caller, signer, cka.CKM_RSA_PKCS, None, bytes(256)))) is Code.KEY_FUNCTION_NOT_PERMITTED
        data = await hsm.partition.create(hsm.caller, {cka.CKA_CLASS: cka.CKO_DATA, cka.CKA_TOKEN: True})
        assert (await code(sign(hsm.caller, data, cka.CKM_ECDSA, None, bytes(32)))) is Code.KEY_HANDLE_INVALID

    run(home, story)
    assert [line["key"] for line in audited(home, "decrypt")] == ["signer"]


def test_a_usage_limit_holds_across_crashes(home: Path) -> None:
    made = 0

    async def limit(hsm: Inside) -> None:
        _, key = await hsm.pair("k")
        await hsm.partition.restrict(hsm.caller, key, usage_limit=100)
        assert (await code(hsm.partition.restrict(hsm.caller, key, usage_limit=101))) is Code.ACTION_PROHIBITED

    run(home, limit)

    async def use(hsm: Inside) -> int:
        count = 0
        while True:
            try:
                await hsm.sign("k")
            except Rejected as error:
                assert error.code is Code.LIMIT_REACHED  # noqa: PT017 - the next call may succeed
                return count
            count += 1
            if count == 10 and not made:
                return count  # the process ends here, with uses reserved

    made += run(home, use)
    made += run(home, use)
    assert (made, run(home, use)) == (10 + 36, 0)

    async def at_once(hsm: Inside) -> None:
        _, key = await hsm.pair("many")
        await hsm.partition.restrict(hsm.caller, key, usage_limit=70)
        answers = await asyncio.gather(*(hsm.sign(key) for _ in range(100)), return_exceptions=True)
        assert sum(isinstance(answer, bytes) for answer in answers) == 70
        _, batch = await hsm.pair("batch")
        await hsm.partition.restrict(hsm.caller, batch, usage_limit=70)
        await hsm.partition.reserve(batch, 69)
        assert (await code(hsm.partition.reserve(batch, 2))) is Code.LIMIT_REACHED
        await hsm.partition.reserve(batch, 1)

    run(home, at_once)


def test_a_key_is_used_within_its_dates(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        _, key = await hsm.pair("k")
        await hsm.partition.restrict(hsm.caller, key, not_before="2026-11-23T00:00:00+00:00", not_after="2026-11-24T00:00:00+00:00")
        await hsm.sign(key)
        assert (await code(hsm.partition.restrict(hsm.caller, key, not_after="2027-01-01T00:00:00+00:00"))) is Code.ACTION_PROHIBITED

    run(home, story)
    for shift in (timedelta(days=-1), timedelta(days=1, seconds=1)):
        with pytest.raises(Rejected) as caught:
            run(home, lambda hsm: hsm.sign("k"), now=NOW + shift)
        assert caught.value.code is Code.KEY_FUNCTION_NOT_PERMITTED


def test_a_label_is_given_once_however_many_ask_at_once(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        answers = await asyncio.gather(*(hsm.pair("one") for _ in range(5)), return_exceptions=True)
        assert sorted(type(answer).__name__ for answer in answers) == ["Rejected"] * 4 + ["tuple"]
        assert (await code(hsm.pair("one"))) is Code.KEY_EXISTS
        mechanism, public, private = pair_templates("one")
        await hsm.partition.generate_pair(hsm.caller, mechanism, public, private)  # PKCS#11 does not mind

    run(home, story)


def test_who_goes_away_while_a_key_is_made_leaves_it_whole(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        for number in range(12):
            task = asyncio.create_task(hsm.pair(f"k{number}"))
            for _ in range(number):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        if hsm.device.running:
            await asyncio.wait(hsm.device.running)
        for obj in hsm.partition.everything():
            if obj.secret:
                await hsm.sign(obj)

    run(home, story)
    assert run(home, _labels) is not None


async def _labels(hsm: Inside) -> set[str]:
    assert (hsm.partition.incomplete, hsm.partition.damaged) == ("", {})
    return {obj.label for obj in hsm.partition.everything()}


def test_a_personality_has_its_own_pins_curves_and_attributes(tmp_path: Path) -> None:
    initialise(tmp_path / "yubihsm", NOW, personality="yubihsm")

    async def poor(hsm: Inside) -> None:
        await hsm.pair("k")
        assert (await code(hsm.pair("sm2", "sm2"))) is Code.CURVE_NOT_SUPPORTED
        assert (
            await code(hsm.partition.set_pin(hsm.caller, Role.OFFICER, "elevenchars", pin_of(hsm.home, Role.OFFICER)))
        ) is Code.PIN_LEN_RANGE
        for number in range(2, hsm.device.personality.objects // 2 + 1):
            await hsm.pair(f"k{number}")
        assert (await code(hsm.pair("one too many"))) is Code.DEVICE_MEMORY

    run(tmp_path / "yubihsm", poor)
    initialise(tmp_path / "sansec", NOW, personality="sansec", digest="sm3")
    assert len(pin_of(tmp_path / "sansec", Role.OFFICER)) == 16

    async def chinese(hsm: Inside) -> None:
        public, private = await hsm.pair("k", "sm2")
        assert private.attributes[cka.CKA_EC_POINT] == public.attributes[cka.CKA_EC_POINT]

    run(tmp_path / "sansec", chinese)
    run(tmp_path / "sansec", lambda hsm: hsm.sign("k"))


# --- in and out


def test_only_what_is_extractable_leaves_and_only_wrapped(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        wrapping = await hsm.secret("wrapping", wrap=True, unwrap=True)
        _, kept = await hsm.pair("kept")
        _, loose = await hsm.pair("loose", extractable=True)
        _, trusting = await hsm.pair("trusting", extractable=True, wrap_with_trusted=True)
        wrap, kwp = hsm.partition.wrap, cka.CKM_AES_KEY_WRAP_KWP
        assert (await code(wrap(hsm.caller, kwp, None, wrapping, kept))) is Code.KEY_UNEXTRACTABLE
        assert (await code(wrap(hsm.caller, kwp, None, wrapping, trusting))) is Code.KEY_NOT_WRAPPABLE
        assert (await code(wrap(hsm.caller, kwp, None, loose, wrapping))) is Code.KEY_TYPE_INCONSISTENT
        octets = await wrap(hsm.caller, kwp, None, wrapping, loose)
        template: Template = {cka.CKA_CLASS: cka.CKO_PRIVATE_KEY, cka.CKA_KEY_TYPE: cka.CKK_EC, cka.CKA_TOKEN: True, cka.CKA_LABEL: b"back"}
        back = await hsm.partition.unwrap(hsm.caller, kwp, None, wrapping, octets, template)
        assert (back.origin, back.attributes[cka.CKA_LOCAL], back.attributes[cka.CKA_NEVER_EXTRACTABLE], back.closed) == (
            "unwrapped",
            False,
            False,
            True,
        )
        assert back.attributes[cka.CKA_PUBLIC_KEY_INFO] == loose.attributes[cka.CKA_PUBLIC_KEY_INFO]
        broken = octets[:-1] + bytes([octets[-1] ^ 1])
        assert (await code(hsm.partition.unwrap(hsm.caller, kwp, None, wrapping, broken, template))) is Code.WRAPPED_KEY_INVALID

    run(home, story)
    assert run(home, lambda hsm: hsm.sign("back"))
    assert [line["under"] for line in audited(home, "wrap") if line["result"] == "ok"] == ["wrapping"]


def test_the_so_says_which_key_is_trusted(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        wrapping, _ = await hsm.pair("wrapping", "rsa-2048", unwrap=True)
        await hsm.partition.set_attributes(hsm.caller, wrapping, {cka.CKA_WRAP: True})
        aes = await hsm.secret("aes", extractable=True, wrap_with_trusted=True)
        assert (await code(hsm.partition.wrap(hsm.caller, cka.CKM_RSA_PKCS, None, wrapping, aes))) is Code.KEY_NOT_WRAPPABLE
        so = await hsm.login(Role.SO)
        await hsm.partition.set_attributes(so, wrapping, {cka.CKA_TRUSTED: True})
        assert len(await hsm.partition.wrap(hsm.caller, cka.CKM_RSA_PKCS, None, wrapping, aes)) == 256
        assert (
            await code(hsm.partition.set_attributes(so, wrapping, {cka.CKA_TRUSTED: True, cka.CKA_WRAP: False}))
        ) is Code.PERMISSION_DENIED

    run(home, story)


def test_a_derived_key_inherits_what_was_promised_of_its_base(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        _, base = await hsm.pair("base", derive=True)
        public, _ = await hsm.pair("other")
        point = public.attributes[cka.CKA_EC_POINT]
        assert isinstance(point, bytes)
        params = Ecdh1(cka.CKD_NULL, b"", point)
        template: Template = {cka.CKA_CLASS: cka.CKO_SECRET_KEY, cka.CKA_KEY_TYPE: cka.CKK_AES, cka.CKA_VALUE_LEN: 32}
        derived = await hsm.partition.derive(hsm.caller, base, cka.CKM_ECDH1_DERIVE, params, template)
        assert (derived.token, derived.origin, derived.closed, derived.attributes[cka.CKA_LOCAL]) == (False, "derived", True, False)
        assert derived.attributes[cka.CKA_ALWAYS_SENSITIVE] is derived.attributes[cka.CKA_NEVER_EXTRACTABLE] is True
        assert derived not in hsm.partition.everything()
        box = await hsm.partition.encrypt(hsm.caller, derived, cka.CKM_AES_ECB, None, bytes(16))
        assert await hsm.partition.decrypt(hsm.caller, derived, cka.CKM_AES_ECB, None, box) == bytes(16)

    run(home, story)


def test_contents_go_back_once_and_what_is_damaged_is_replaced(home: Path) -> None:
    async def take(hsm: Inside) -> Any:
        for label in ("one", "two"):
            await hsm.pair(label)
        return await hsm.partition.contents(await hsm.login(Role.SO))

    contents = run(home, take)
    assert len(contents) == 4

    async def back(hsm: Inside) -> None:
        so = await hsm.login(Role.SO)
        assert await hsm.partition.put_back(so, contents) == 0
        await hsm.partition.destroy(hsm.caller, hsm.partition.by_label(hsm.caller, "one"))
        assert await hsm.partition.put_back(so, contents) == 1
        assert await hsm.sign("one")
        await hsm.partition.destroy(hsm.caller, hsm.partition.by_label(hsm.caller, "two"))
        await hsm.pair("two")
        assert (await code(hsm.partition.put_back(so, contents))) is Code.KEY_EXISTS

    run(home, back)
    assert run(home, _labels) == {"one", "two"}
