"""Backup and restore: every key comes back as it was, nowhere but where it may, and nothing half."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cbor2
import pytest
from hsm_inside import NOW, Inside, code, refused, run

from hsm_sim import cka, initialise, trust_ops
from hsm_sim.attest import HISTORY, manufacture
from hsm_sim.backup import read_backup
from hsm_sim.errors import Code
from hsm_sim.objects import Object
from hsm_sim.roles import Role
from hsm_sim.shares import set_name
from hsm_sim.transport import unwrap, wrap
from pkix.algorithms import KeyKind
from pkix.attestation import verify_attestation
from pkix.errors import IronrootError, Malformed
from pkix.privatekey import generate

KINDS = ("p-256", "sm2", "ed25519", "rsa-2048", "ml-dsa-65")
_SIGNS = {
    **{"p-256": cka.CKM_ECDSA, "sm2": cka.CKM_ECDSA, "ed25519": cka.CKM_EDDSA, "rsa-2048": cka.CKM_SHA256_RSA_PKCS},
    "ml-dsa-65": cka.CKM_ML_DSA,
}


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """Another device, of another manufacturer, with SM algorithms and two partitions."""
    folder = Path(tempfile.mkdtemp(prefix="ir", dir="/tmp"))
    initialise(folder / "hsm", NOW, names=["ironroot", "spare"], cipher="sm4-gcm", digest="sm3")
    yield folder / "hsm"
    shutil.rmtree(folder)


async def filled(hsm: Inside) -> None:
    """One key of each kind, a secret key, a certificate, limits."""
    for kind in KINDS:
        await hsm.pair(kind, kind)
    await hsm.secret("aes", wrap=True, unwrap=True)
    certificate = {cka.CKA_CLASS: cka.CKO_CERTIFICATE, cka.CKA_TOKEN: True, cka.CKA_CERTIFICATE_TYPE: 0, cka.CKA_VALUE: b"0\x00"}
    await hsm.partition.create(hsm.caller, {**certificate, cka.CKA_LABEL: b"root certificate"})
    await hsm.partition.restrict(hsm.caller, hsm.partition.by_label(hsm.caller, "p-256"), usage_limit=200, quorum=["destroy"])


def facts(objects: list[Object]) -> dict[bytes, Any]:
    """Everything about objects but where they are."""
    return {
        obj.id: (
            {number: value for number, value in obj.attributes.items() if number != HISTORY},
            *(obj.origin, obj.created, obj.usage_limit, obj.quorum, obj.version, obj.value),
            obj.key.secret() if obj.key else None,
        )
        for obj in objects
    }


async def everything(hsm: Inside) -> list[Object]:
    return hsm.partition.find(hsm.caller, {})


async def backed_up(hsm: Inside, **arguments: Any) -> dict[str, Any]:
    so = await hsm.login(Role.SO)
    return await trust_ops.backup(hsm.device, so, arguments or {"needed": 2, "total": 3})


async def restored(hsm: Inside, made: dict[str, Any], which: slice = slice(1, 3), **arguments: Any) -> dict[str, Any]:
    partition = arguments.pop("partition", "ironroot")
    pin = "" if partition == "ironroot" else (hsm.home / f"so-pin.{partition}").read_text().strip()
    so = await hsm.login(Role.SO, pin, partition)
    shares = arguments.pop("shares", made["shares"][which])
    return await trust_ops.restore(hsm.device, so, {"backup": made["backup"], "shares": shares, **arguments})


def made_in(home: Path) -> tuple[dict[bytes, Any], dict[str, Any]]:
    async def story(hsm: Inside) -> tuple[dict[bytes, Any], dict[str, Any]]:
        await filled(hsm)
        return facts(await everything(hsm)), await backed_up(hsm)

    return run(home, story)


# --- shares --------------------------------------------------------------------------------------------------------


def test_everything_comes_back_in_another_device_and_signs_as_before(home: Path, elsewhere: Path) -> None:
    before, made = made_in(home)

    async def story(hsm: Inside) -> None:
        result = await restored(hsm, made)
        assert (result["restored"], result["present"], result["partition"]) == (len(before), 0, "ironroot")
        assert facts(await everything(hsm)) == before
        for kind in KINDS:
            key, shown = (hsm.partition.by_label(hsm.caller, kind, cls) for cls in (cka.CKO_PRIVATE_KEY, cka.CKO_PUBLIC_KEY))
            assert not key.extractable
            signature = await hsm.partition.sign(hsm.caller, key, _SIGNS[kind], None, bytes(32))
            hsm.partition.verify(hsm.caller, shown, _SIGNS[kind], None, bytes(32), signature)
            chain = await trust_ops.attest(hsm.device, hsm.caller, {"key": kind})
            assert key.key is not None
            said = verify_attestation(chain, hsm.device.identity.manufacturer_certificate, key.key.spki)
            assert (said.origin, said.history, said.made_here) == ("generated", (result["device"],), False)
        assert (await restored(hsm, made))["restored"] == 0, "what is there stays as it is"
        assert await code(hsm.partition.destroy(hsm.caller, hsm.partition.by_label(hsm.caller, "p-256"))) is Code.QUORUM_MISSING

    run(elsewhere, story)
    run(elsewhere, lambda hsm: restored(hsm, made))  # after a restart too


def test_the_uses_of_a_limited_key_are_not_given_twice(home: Path, elsewhere: Path) -> None:
    async def first(hsm: Inside) -> dict[str, Any]:
        await filled(hsm)
        await hsm.sign("p-256")
        return await backed_up(hsm)

    made = run(home, first)

    async def second(hsm: Inside) -> None:
        await restored(hsm, made)
        key = hsm.partition.by_label(hsm.caller, "p-256")
        assert key.used >= 1
        for _ in range(200 - key.used):
            await hsm.sign(key)
        assert await code(hsm.sign(key)) is Code.LIMIT_REACHED

    run(elsewhere, second)


def test_no_secret_stands_in_a_backup(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        await filled(hsm)
        octets = (await backed_up(hsm))["backup"]
        numbers = [value for obj in await everything(hsm) if obj.key for value in obj.key.revealed().values() if isinstance(value, bytes)]
        assert len(numbers) == 3 + 6 + 1, "three scalars, six numbers of RSA, and AES"
        for number in numbers:
            assert not any(number[at : at + 16] in octets for at in range(len(number) - 15))

    run(home, story)


def test_shares_that_do_not_fit_are_named(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        await hsm.pair("root")
        made, other = await backed_up(hsm), await backed_up(hsm)
        ours, theirs = (set_name(read_backup(one["backup"]).header.set) for one in (made, other))
        so = await hsm.login(Role.SO)
        checked = await trust_ops.shares(hsm.device, so, {"backup": made["backup"], "shares": made["shares"][:2]})
        assert checked == {"set": ours, "needed": 2, "total": 3}
        few = await refused(restored(hsm, made, slice(0, 1)))
        assert few.code is Code.WRAPPED_KEY_INVALID
        assert f"2 shares of set {ours} are needed" in few.text
        foreign = await refused(restored(hsm, made, shares=other["shares"][:2]))
        assert f"share 1 (of 3) of set {theirs} is none of this backup's" in foreign.text
        mixed = await refused(restored(hsm, made, shares=[made["shares"][0], other["shares"][1]]))
        assert f"share 2 (of 3) of set {theirs} does not belong with" in mixed.text
        typed = made["shares"][0].replace(made["shares"][0][-1], "0" if made["shares"][0][-1] != "0" else "1")
        assert await code(restored(hsm, made, shares=[typed, made["shares"][1]])) is Code.BAD_REQUEST
        assert await code(trust_ops.shares(hsm.device, hsm.caller, {})) is Code.PERMISSION_DENIED

    run(home, story)


def test_only_the_so_backs_up_and_restores(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        await hsm.pair("root")
        made = await backed_up(hsm)
        for caller in (hsm.caller, await hsm.login(Role.AUDITOR)):
            assert await code(trust_ops.backup(hsm.device, caller, {"needed": 2, "total": 3})) is Code.PERMISSION_DENIED
            assert await code(trust_ops.restore(hsm.device, caller, made)) is Code.PERMISSION_DENIED
        for needed, total in ((1, 1), (4, 3), (0, 0)):
            assert await code(backed_up(hsm, needed=needed, total=total)) is Code.BAD_REQUEST

    run(home, story)


# --- to one device -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backwards", [False, True])
def test_a_backup_for_one_device_opens_there_and_nowhere_else(home: Path, elsewhere: Path, backwards: bool) -> None:
    """From a P-256 device to an SM2 one, and the other way."""
    source, target = (elsewhere, home) if backwards else (home, elsewhere)
    theirs = run(target, lambda hsm: trust_ops.identity(hsm.device, hsm.caller, {}))

    async def leave(hsm: Inside) -> tuple[dict[str, Any], bytes, dict[bytes, Any]]:
        await filled(hsm)
        made = await backed_up(hsm, recipient=theirs["transport"], manufacturer=theirs["manufacturer"])
        assert made["shares"] == []
        assert await code(restored(hsm, made)) is Code.ACTION_PROHIBITED
        own = hsm.device.identity
        for wrong, voucher in ((theirs["transport"], own.manufacturer_certificate), (theirs["transport"][:-1], theirs["manufacturer"])):
            assert await code(backed_up(hsm, recipient=wrong, manufacturer=voucher)) is Code.BAD_REQUEST
        return made, own.manufacturer_certificate, facts(await everything(hsm))

    made, maker, before = run(source, leave)

    async def arrive(hsm: Inside) -> None:
        nobody = await refused(restored(hsm, made))
        assert nobody.code is Code.SIGNATURE_INVALID
        assert "manufacturer" in nobody.text
        assert await code(restored(hsm, made, manufacturer=hsm.device.identity.manufacturer_certificate)) is Code.SIGNATURE_INVALID
        assert (await restored(hsm, made, manufacturer=maker))["restored"] == len(before)
        assert facts(await everything(hsm)) == before

    run(target, arrive)


@pytest.mark.parametrize("kind", [KeyKind.P_256, KeyKind.SM2])
def test_a_wrapped_key_opens_for_its_recipient_alone(kind: KeyKind) -> None:
    key, other = generate(kind), generate(kind)
    wrapped = wrap(b"k" * 32, key.public_key)
    assert unwrap(wrapped, key) == b"k" * 32
    assert wrap(b"k" * 32, key.public_key) != wrapped
    changed = [bytes((*wrapped[:at], wrapped[at] ^ 1, *wrapped[at + 1 :])) for at in range(len(wrapped))]
    for wrong in (b"", b"\x01", b"\x03" + wrapped[1:], wrapped[:-1], wrapped[:40], *changed):
        with pytest.raises(IronrootError):
            unwrap(wrong, key)
    for stranger in (other, generate(KeyKind.SM2 if kind is KeyKind.P_256 else KeyKind.P_256)):
        with pytest.raises(IronrootError):
            unwrap(wrapped, stranger)
    with pytest.raises(Malformed, match="p-256 or sm2"):
        wrap(b"k" * 32, generate(KeyKind.ED25519).public_key)


# --- what is refused -----------------------------------------------------------------------------------------------


def test_a_changed_or_shortened_backup_is_refused(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        shown, hidden = await hsm.pair("root")
        made, own = await backed_up(hsm), hsm.device.identity.manufacturer_certificate
        for obj in (hidden, shown):
            await hsm.partition.destroy(hsm.caller, obj)
        octets = made["backup"]
        wrong = [octets[:length] for length in (0, 1, 100, len(octets) // 2, len(octets) - 1)] + [octets + b"\0"]
        wrong += [octets[:at] + bytes((octets[at] ^ 1 << at % 8,)) + octets[at + 1 :] for at in range(0, len(octets), 7)]
        for changed in wrong:
            for voucher in (b"", own):
                reason = await code(restored(hsm, {"backup": changed, "shares": made["shares"]}, manufacturer=voucher))
                assert reason in (Code.BAD_REQUEST, Code.SIGNATURE_INVALID)
        assert not await everything(hsm)
        assert (await restored(hsm, made))["restored"] == 2

    run(home, story)


def test_a_backup_signed_by_a_device_of_ones_own_making_is_refused(home: Path) -> None:
    """Whoever knows M shares could put other keys under an old header; the device's signature stands against it, if it is asked for."""

    async def story(hsm: Inside) -> None:
        await hsm.pair("root")
        made = await backed_up(hsm)
        outer = cbor2.loads(made["backup"])
        forger = manufacture(hsm.device.serial, "2.0.0", NOW)
        header = cbor2.loads(outer["header"]) | {"certificate": forger.device_certificate}
        outer["header"] = cbor2.dumps(header, canonical=True)
        domain = b"ironroot hsm backup 1\0" + len(outer["header"]).to_bytes(4)
        outer["signature"] = forger.device.sign(domain + outer["header"] + outer["body"])
        forged = {"backup": cbor2.dumps(outer, canonical=True), "shares": made["shares"]}
        assert await code(restored(hsm, forged)) is Code.SIGNATURE_INVALID

    run(home, story)


def test_another_key_under_the_label_stops_the_whole_restore(home: Path, elsewhere: Path) -> None:
    _, made = made_in(home)

    async def story(hsm: Inside) -> None:
        await hsm.pair("sm2", "sm2")
        there = facts(await everything(hsm))
        error = await refused(restored(hsm, made))
        assert error.code is Code.KEY_EXISTS
        assert "another key sm2" in error.text
        assert facts(await everything(hsm)) == there

    run(elsewhere, story)


def test_a_key_is_in_one_partition_of_a_device(elsewhere: Path) -> None:
    async def story(hsm: Inside) -> None:
        await hsm.pair("root")
        made = await backed_up(hsm)
        error = await refused(restored(hsm, made, partition="spare"))
        assert error.code is Code.KEY_EXISTS
        assert "another partition" in error.text
        await hsm.sign("root")

    run(elsewhere, story)
    run(elsewhere, lambda hsm: hsm.sign("root"))


def test_a_restore_that_is_cut_off_leaves_all_or_nothing(home: Path, hsm: Any) -> None:
    client = hsm.login()
    for label in ("one", "two"):
        client.call("generate", key=label, kind="p-256")
    so = hsm.login(Role.SO)
    made = so.call("backup", needed=2, total=2)
    for label in ("one", "two"):
        client.call("destroy", key=label)
    hsm.stop()
    for point, there in (("committing", set()), ("committed", {"one", "two"})):
        hsm.start(env={**os.environ, "IRONROOT_FAILPOINT": f"hsm.generate.{point}:kill"})
        with pytest.raises(ConnectionError):
            hsm.login(Role.SO).call("restore", backup=made["backup"], shares=made["shares"])
        hsm.process.communicate()
        assert hsm.process.returncode == -signal.SIGKILL
        hsm.start()
        assert {key["label"] for key in hsm.login().call("keys")} == there
        hsm.stop()


# --- approvals -----------------------------------------------------------------------------------------------------


def test_a_backup_needs_approvals_where_an_export_does(home: Path) -> None:
    from hsm_sim.quorum import approve

    people = {name: generate(KeyKind.P_256) for name in ("ana", "bo")}

    async def story(hsm: Inside) -> dict[str, Any]:
        so, device = await hsm.login(Role.SO), hsm.device
        for name, key in people.items():
            await trust_ops.approvers(device, so, {"add": name, "public_key": key.public_key.spki})
        _, root = await hsm.pair("root")
        await backed_up(hsm)
        await hsm.partition.restrict(hsm.caller, root, quorum=["export"])
        assert await code(backed_up(hsm)) is Code.QUORUM_MISSING
        await trust_ops.quorum(device, so, {"needed": 2, "operations": ["destroy"]})
        request = await trust_ops.challenge(device, so, {"for": "backup", "needed": 2, "total": 3, "requester": "so"})
        approvals = [approve(key, request) for key in people.values()]
        assert await code(backed_up(hsm, needed=2, total=2, approvals=approvals)) is Code.QUORUM_MISSING
        return await backed_up(hsm, needed=2, total=3, approvals=approvals)

    made = run(home, story)

    async def without_policy(hsm: Inside) -> frozenset[str]:
        await restored(hsm, made)
        return hsm.partition.by_label(hsm.caller, "root").quorum

    with tempfile.TemporaryDirectory(prefix="ir", dir="/tmp") as name:
        initialise(Path(name) / "hsm", NOW)
        assert run(Path(name) / "hsm", without_policy) == {"export", "destroy"}, "what the partition wanted goes with the key"
