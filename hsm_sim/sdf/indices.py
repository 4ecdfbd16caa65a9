"""Key indices: their two pairs of keys, and the password that gives the right to use them (GM/T 0018 6.2.6)."""

from __future__ import annotations

import asyncio
import hmac
import secrets
from typing import TYPE_CHECKING

from hsm_sim import cka
from hsm_sim.audit import Event
from hsm_sim.errors import Code, Rejected
from hsm_sim.keys import SM2_PARAMS
from hsm_sim.sdf.call import CKM_SDF, Call, point
from hsm_sim.seal import pin_key

if TYPE_CHECKING:
    from hsm_sim.objects import Object, Template

TRIES = 10
SHORTEST, LONGEST = 8, 64  # characters of a password


async def make_key_pair(call: Call) -> dict[str, bytes]:
    """``{index, password}``: both pairs of an index, and its password. Returns their points by use."""
    password, points = _new_password(call), {}
    for use in ("sign", "enc"):
        label = f"sdf.{call.index}.{use}".encode()
        public: Template = {cka.CKA_TOKEN: True, cka.CKA_LABEL: label, cka.CKA_EC_PARAMS: SM2_PARAMS}
        private: Template = {cka.CKA_TOKEN: True, cka.CKA_LABEL: label, cka.CKA_SIGN: use == "sign", cka.CKA_DECRYPT: use == "enc"}
        private[cka.CKA_ALLOWED_MECHANISMS] = (CKM_SDF,)
        _, made = await call.partition.generate_pair(call.caller, cka.CKM_EC_KEY_PAIR_GEN, public, private, unique=True)
        if made.key is not None:
            points[use] = point(made.key)
    await _keep(call, password)
    return points


async def make_kek(call: Call) -> None:
    """``{index}``: an SM4 key that session keys are wrapped under."""
    template: Template = {cka.CKA_TOKEN: True, cka.CKA_LABEL: f"sdf.kek.{call.index}".encode(), cka.CKA_ALLOWED_MECHANISMS: (CKM_SDF,)}
    await call.partition.generate_secret(call.caller, cka.CKM_SM4_KEY_GEN, template, unique=True)


async def set_password(call: Call) -> None:
    """``{index, password}``: a new one, with all its tries."""
    await _keep(call, _new_password(call))


def _new_password(call: Call) -> str:
    password = call.request.text("password", LONGEST)
    if len(password) < SHORTEST:
        raise Rejected(Code.PIN_LEN_RANGE, f"the password of a key index has {SHORTEST} to {LONGEST} characters")
    return password


async def _keep(call: Call, password: str) -> None:
    signing, _ = call.key(f"sdf.{call.index}.sign")
    salt = secrets.token_bytes(16)
    known = await asyncio.to_thread(pin_key, password, salt, call.device.secret)
    async with call.counting:
        await call.device.set(_record(signing), {"salt": salt, "known": known, "wrong": 0})
    await call.device.audit.write(Event("sdf_password", call.caller, key=signing.label))


def _record(signing: Object) -> str:
    return f"sdf password {signing.id.hex()}"


async def get_access(call: Call) -> None:
    """``{index, password}``. Counts durably, then checks: a try that a crash cuts off stays counted as a wrong one.

    Raises Rejected: PIN_INCORRECT, PIN_LOCKED, USER_PIN_NOT_INITIALIZED (no password here: keys that were restored), KEY_NOT_FOUND.
    """
    password, (signing, _) = call.request.text("password", LONGEST), call.key(f"sdf.{call.index}.sign")
    async with call.counting:
        record = call.device.setting(_record(signing))
        if record is None:
            raise Rejected(Code.USER_PIN_NOT_INITIALIZED, f"key index {call.index} has no password here; the officer sets one")
        if record["wrong"] >= TRIES:
            raise Rejected(Code.PIN_LOCKED, f"the password of key index {call.index} is locked; the officer sets a new one")
        wrong = record["wrong"] + 1
        await call.device.set(_record(signing), {**record, "wrong": wrong})
        known = await asyncio.to_thread(pin_key, password, record["salt"], call.device.secret)
        if not hmac.compare_digest(known, record["known"]):
            call.device.audit.write_soon(Event("sdf_access", call.caller, key=signing.label, result=Code.PIN_INCORRECT))
            raise Rejected(Code.PIN_INCORRECT, f"the password is wrong; {TRIES - wrong} tries are left")
        await call.device.set(_record(signing), {**record, "wrong": 0})
    call.session.rights.add(call.index)
    call.device.audit.write_soon(Event("sdf_access", call.caller, key=signing.label))


async def release_access(call: Call) -> None:
    """``{index}``."""
    call.session.rights.discard(call.index)


async def public_key(call: Call) -> bytes:
    """``{index, use}``: the point of the pair for ``use``, sign or enc."""
    use = call.request.text("use")
    if use not in ("sign", "enc"):
        raise Rejected(Code.BAD_REQUEST, '"use" is sign or enc')
    return point(call.key(f"sdf.{call.index}.{use}", cka.CKO_PUBLIC_KEY)[1])
