"""Operations of the native door on the device: status, PINs, partitions, audit log, laboratory. Each is a line in ``native_ops.OPS``."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from typing import Any

from hsm_sim import cka
from hsm_sim.audit import Event
from hsm_sim.device import Device
from hsm_sim.errors import Code, Rejected
from hsm_sim.lab import scenario
from hsm_sim.roles import Caller, Role
from hsm_sim.wire import Request
from pkix import digest as digests
from pkix.errors import Malformed

PROTOCOL = 2
MAX_RANDOM, MAX_LINES, MAX_SCENARIO = 1 << 16, 1000, 1 << 16

Args = Mapping[str, Any]
# ruff: noqa: ARG001 - every handler takes the same three

# --- the device ----------------------------------------------------------------------------------------------------


async def status(device: Device, caller: Caller, args: Args) -> dict[str, Any]:
    partition = device.partition(caller.partition)
    status: dict[str, Any] = {
        "serial": device.serial,
        "personality": device.personality.name,
        "partition": partition.name,
        "partitions": {each.name: each.state for each in device.partitions.values()},
        "state": partition.state,
        "locked_on_request": partition.locked_on_request,
        "tries_left": partition.tries_left(Role.OFFICER),
        "lab": device.lab is not None,
        "role": caller.role.value if caller.epoch == partition.epoch else Role.PUBLIC.value,
    }
    if status["role"] != Role.PUBLIC:
        status |= {
            "keys": sum(len(partition.find(caller, {cka.CKA_CLASS: cls})) for cls in (cka.CKO_PRIVATE_KEY, cka.CKO_SECRET_KEY)),
            "damaged": partition.damaged,
            "incomplete": partition.incomplete,
            "rolled_back": partition.rolled_back,
            "pins": {role.value: partition.tries_left(role) for role in Role if partition.has_pin(role)},
            "log_lines": device.audit.head.seq,
            "log_acknowledged": device.audit.acknowledged,
            "force_audit": device.audit.limit,
        }
    return status


async def hello(device: Device, caller: Caller, args: Args) -> dict[str, Any]:
    return {"protocol": PROTOCOL, "product": "ironroot hsm_sim", **await status(device, caller, args)}


async def random(device: Device, caller: Caller, args: Args) -> bytes:
    return secrets.token_bytes(Request.over(args).number("length", 1, MAX_RANDOM))


async def digest(device: Device, caller: Caller, args: Args) -> bytes:
    request = Request.over(args)
    name = request.text("hash", 16)
    if name not in digests.OIDS:
        raise Rejected(Code.MECHANISM_INVALID, f"digests here are {', '.join(digests.OIDS)}")
    return digests.compute(name, request.octets("data", 0))


# --- logins and partitions -----------------------------------------------------------------------------------------


async def logout(device: Device, caller: Caller, args: Args) -> dict[str, Any]:
    device.partition(caller.partition).logout(caller)
    return {}


async def lock(device: Device, caller: Caller, args: Args) -> dict[str, Any]:
    await device.partition(caller.partition).lock(caller)
    return {}


async def set_pin(device: Device, caller: Caller, args: Args) -> dict[str, Any]:
    request = Request.over(args)
    old = request.text("old", 255) if args.get("old") is not None else None
    await device.partition(caller.partition).set_pin(caller, role_of(request), request.text("new", 255), old)
    return {}


def role_of(request: Request) -> Role:
    """The argument ``role``; the officer when it is left out. Raises Rejected."""
    name = request.text_or("role", Role.OFFICER)
    if name not in tuple(Role) or name == Role.PUBLIC:
        raise Rejected(Code.USER_TYPE_INVALID, "a role is so, officer, user or auditor")
    return Role(name)


async def create_partition(device: Device, caller: Caller, args: Args) -> dict[str, Any]:
    request = Request.over(args)
    made = await device.create_partition(caller, request.text("name", 32), request.text("so_pin", 255))
    return {"partition": made.name, "slot": made.slot, "serial": made.serial}


async def init_partition(device: Device, caller: Caller, args: Args) -> dict[str, Any]:
    request = Request.over(args)
    await device.partition(caller.partition).init_partition(caller, request.text("so_pin", 255), request.text_or("name", caller.partition))
    return {}


async def zeroise(device: Device, caller: Caller, args: Args) -> dict[str, Any]:
    await device.partition(caller.partition).zeroise(caller)
    return {}


async def accept_damage(device: Device, caller: Caller, args: Args) -> dict[str, Any]:
    await device.partition(caller.partition).accept_damage(caller)
    return {}


# --- the audit log -------------------------------------------------------------------------------------------------


async def log_head(device: Device, caller: Caller, args: Args) -> dict[str, Any]:
    return {"seq": device.audit.head.seq, "digest": device.audit.head.digest, "hash": device.hash}


async def audit_read(device: Device, caller: Caller, args: Args) -> list[str]:
    request = Request.over(args)
    after, limit = request.number("after", 0, 1 << 62, 0), request.number("limit", 1, MAX_LINES, MAX_LINES)
    return await asyncio.to_thread(device.audit.read, after, limit)


async def audit_ack(device: Device, caller: Caller, args: Args) -> dict[str, Any]:
    seq = Request.over(args).number("seq", 0, device.audit.head.seq)
    if seq > device.audit.acknowledged:
        await device.audit.write(Event("audit_ack", caller, more={"through": seq}))
        await device.set("audit_acknowledged", seq)
        device.audit.acknowledged = max(device.audit.acknowledged, seq)
    return {"acknowledged": device.audit.acknowledged}


async def force_audit(device: Device, caller: Caller, args: Args) -> dict[str, Any]:
    limit = None if args.get("limit") is None else Request.over(args).number("limit", 1, 1 << 62)
    await device.audit.write(Event("force_audit", caller, more={"limit": limit}))
    await device.set("audit_limit", limit)
    device.audit.limit = limit
    return {"force_audit": limit}


# --- the laboratory ------------------------------------------------------------------------------------------------


async def lab(device: Device, caller: Caller, args: Args) -> list[dict[str, object]]:
    """``{}``, ``{scenario: TOML}`` or ``{clear: true}``: the faults that are loaded afterwards."""
    if device.lab is None:
        raise Rejected(Code.FUNCTION_NOT_SUPPORTED, "faults are for a simulator that was started with --lab")
    text = args.get("scenario")
    if text is not None:
        if type(text) is not str or len(text) > MAX_SCENARIO:
            raise Rejected(Code.BAD_REQUEST, f'"scenario" has to be a text of at most {MAX_SCENARIO} characters')
        try:
            found = scenario.parse(text)
        except Malformed as error:
            raise Rejected(Code.BAD_REQUEST, str(error)) from error
        await device.audit.write(Event("lab", caller, more={"faults": len(found.fault), "seed": found.seed}))
        device.lab.load(found)
    elif args.get("clear") is True:
        await device.audit.write(Event("lab", caller, more={"faults": 0}))
        device.lab.clear()
    return device.lab.status()
