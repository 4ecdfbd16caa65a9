"""Operations of the native door around trust: attestation, approvals, backup. Each takes device, caller and the request's arguments.

``OPS`` is what the door's table takes over; docs/hsm-trust.md says what goes in and out.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hsm_sim import attest as attestation
from hsm_sim import backup as backups
from hsm_sim.audit import Event
from hsm_sim.cka import CKA_CLASS, CKA_EXTRACTABLE, CKA_LABEL, CKA_SENSITIVE, CKO_PRIVATE_KEY, CKO_PUBLIC_KEY, CKO_SECRET_KEY
from hsm_sim.errors import Code, Rejected
from hsm_sim.mechanisms import BY_NAME, Mechanism
from hsm_sim.objects import Object, Template
from hsm_sim.partition import export_parameters, recover_parameters
from hsm_sim.quorum import Policy
from hsm_sim.roles import Caller, Verb
from hsm_sim.shares import Share
from hsm_sim.wire import MAX_FRAME, Request
from pkix.errors import Malformed

if TYPE_CHECKING:
    from hsm_sim.device import Device

Handler = Callable[["Device", Caller, Mapping[str, Any]], Awaitable[Any]]


async def attest(device: Device, caller: Caller, args: Mapping[str, Any]) -> list[bytes]:
    """``{key}``: its attestation, as a list of certificates (DER). Raises Rejected."""
    partition = device.partition(caller.partition)
    partition.check(caller, Verb.ATTEST)
    obj = partition.by_label(caller, Request.over(args).text("key"))
    chain = attestation.attest(device.identity, obj, device.now())
    await device.audit.write(Event("attest", caller, key=obj.label))
    return chain


async def identity(device: Device, caller: Caller, args: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG001 - open to all, takes nothing
    """``{serial, firmware, manufacturer, device, audit, transport}``: the device's own certificates (DER)."""
    own = device.identity
    certificates = {"device": own.device_certificate, "audit": own.audit_certificate, "transport": own.transport_certificate}
    return {"serial": own.serial, "firmware": own.firmware, "manufacturer": own.manufacturer_certificate, **certificates}


async def approvers(device: Device, caller: Caller, args: Mapping[str, Any]) -> list[dict[str, Any]]:
    """``{}``, ``{add, public_key}`` or ``{remove}``: the approvers afterwards, as ``{name, public_key, added}``. Raises Rejected."""
    request = Request.over(args)
    if "add" in args:
        await device.quorum.add(caller, request.text("add", 64), request.octets("public_key", longest=4096))
    if "remove" in args:
        await device.quorum.remove(caller, request.text("remove", 64))
    device.partition(caller.partition).check(caller, Verb.LOOK)
    return await device.quorum.approvers(caller)


async def quorum(device: Device, caller: Caller, args: Mapping[str, Any]) -> dict[str, Any]:
    """``{}`` or ``{needed, operations, others}``: the partition's policy afterwards. Raises Rejected."""
    if args.keys() & {"needed", "operations", "others"}:
        request, before = Request.over(args), device.quorum.policy(caller.partition)
        operations = frozenset(request.many("operations", str)) if "operations" in args else before.operations
        policy = Policy(request.number("needed", 1, 32, before.needed), operations, args.get("others", before.others) is True)
        await device.quorum.set_policy(caller, policy)
    device.partition(caller.partition).check(caller, Verb.LOOK)
    policy = device.quorum.policy(caller.partition)
    return {"needed": policy.needed, "operations": sorted(policy.operations), "others": policy.others}


async def challenge(device: Device, caller: Caller, args: Mapping[str, Any]) -> bytes:
    """``{for, requester, …}``: a request for approvals of one operation, as octets to be signed. Raises Rejected.

    With what the operation will be asked with: ``key`` (destroy), ``key, wrapping, mechanism`` (export), ``key, data, mechanism``
    (recover; ``key`` unwraps; ``attributes`` if what comes out is to be extractable, or not sensitive),
    ``needed, total`` or ``recipient`` (backup). Keys are named by label, mechanisms as CKM_….
    """
    request = Request.over(args)
    op, requester = request.text("for", 16), request.text_or("requester", "")
    obj = None if op == "backup" else _key(device, caller, request.text("key"), _SECRET)
    parameters, about = _PARAMETERS[op](device, caller, request) if op in _PARAMETERS else ({}, "")
    return await device.quorum.challenge(caller, op, obj, parameters, about=about, requester=requester)


def _backup_of(device: Device, caller: Caller, request: Request) -> tuple[dict[str, Any], str]:  # noqa: ARG001 - as the others
    needed, total = request.number("needed", 0, 16, 0), request.number("total", 0, 16, 0)
    recipient = request.octets("recipient", 0, 16384)
    parameters = backups.parameters(needed, total, recipient)
    return parameters, f"for the device with certificate {parameters['recipient'].hex()}" if recipient else f"{needed} of {total} shares"


def _export_of(device: Device, caller: Caller, request: Request) -> tuple[dict[str, Any], str]:
    wrapping, mechanism = _key(device, caller, request.text("wrapping"), _WRAPPING), _mechanism(request)
    return export_parameters(mechanism.number, wrapping), f"under {wrapping.label} ({wrapping.id.hex()}) with {mechanism.name}"


def _recovery_of(device: Device, caller: Caller, request: Request) -> tuple[dict[str, Any], str]:  # noqa: ARG001
    wanted, mechanism = request.mapping("attributes"), _mechanism(request)
    template: Template = {CKA_EXTRACTABLE: wanted.get("extractable") is True, CKA_SENSITIVE: wanted.get("sensitive") is not False}
    parameters = recover_parameters(mechanism.number, request.octets("data"), template)
    kept = f"{'' if parameters['sensitive'] else 'not '}sensitive, {'' if parameters['extractable'] else 'not '}extractable"
    return parameters, f"of what has SHA-256 {parameters['sha256'].hex()}, with {mechanism.name}, into a key that is {kept}"


_PARAMETERS = {"backup": _backup_of, "export": _export_of, "recover": _recovery_of}
_SECRET, _WRAPPING = (CKO_PRIVATE_KEY, CKO_SECRET_KEY), (CKO_SECRET_KEY, CKO_PUBLIC_KEY)


def _mechanism(request: Request) -> Mechanism:
    name = request.text("mechanism", 40)
    if name not in BY_NAME:
        raise Rejected(Code.MECHANISM_INVALID, f"there is no mechanism {name!r}; they are called as in PKCS#11: CKM_AES_KEY_WRAP_PAD")
    return BY_NAME[name]


def _key(device: Device, caller: Caller, label: str, classes: Sequence[int]) -> Object:
    """The key of this label that is of one of these classes. Raises Rejected(KEY_NOT_FOUND)."""
    for cls in classes:
        if found := device.partition(caller.partition).find(caller, {CKA_CLASS: cls, CKA_LABEL: label.encode()}):
            return found[0]
    raise Rejected(Code.KEY_NOT_FOUND, f"there is no key {label} for this")


async def backup(device: Device, caller: Caller, args: Mapping[str, Any]) -> dict[str, Any]:
    """``{needed, total}`` or ``{recipient, manufacturer}``, with ``approvals``: ``{backup, shares}``, shares as text. Raises Rejected."""
    request = Request.over(args)
    octets, shares = await backups.backup(
        device,
        caller,
        needed=request.number("needed", 0, 16, 0),
        total=request.number("total", 0, 16, 0),
        recipient=request.octets("recipient", 0, 16384),
        manufacturer=request.octets("manufacturer", 0, 16384),
        approvals=request.many("approvals", bytes),
    )
    if len(octets) > MAX_FRAME - 16384:
        raise Rejected(Code.DEVICE_MEMORY, f"the backup has {len(octets)} octets, more than goes over this socket in one piece")
    return {"backup": octets, "shares": [share.text for share in shares]}


async def restore(device: Device, caller: Caller, args: Mapping[str, Any]) -> dict[str, Any]:
    """``{backup, shares, manufacturer}``: where it came from and what was put back (``backup.restore``). Raises Rejected."""
    request = Request.over(args)
    shares, manufacturer = _shares(request), request.octets("manufacturer", 0, 16384)
    return await backups.restore(device, caller, request.octets("backup"), shares=shares, manufacturer=manufacturer)


async def shares(device: Device, caller: Caller, args: Mapping[str, Any]) -> dict[str, Any]:
    """``{backup, shares}``: whether these shares open it; nothing is restored (``backup.check_shares``). Raises Rejected."""
    device.partition(caller.partition).check(caller, Verb.SHARES)
    request = Request.over(args)
    found = backups.check_shares(request.octets("backup"), _shares(request))
    await device.audit.write(Event("shares", caller, more={"set": found["set"]}))
    return found


def _shares(request: Request) -> list[Share]:
    try:
        return [Share.parse(text) for text in request.many("shares", str, 16)]
    except Malformed as error:
        raise Rejected(Code.BAD_REQUEST, str(error)) from error


OPS: Mapping[str, Handler] = {
    "attest": attest,
    "identity": identity,
    "approvers": approvers,
    "quorum": quorum,
    "challenge": challenge,
    "backup": backup,
    "restore": restore,
    "shares": shares,
}
