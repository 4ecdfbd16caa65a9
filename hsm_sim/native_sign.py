"""``sign_many`` of the native door: from what a request says to an order, and from its outcomes to an answer.

    sign_many(caller, device, request, answer)      # answer(list) is called once, now or later; raises Rejected for the whole request

The lean form ``{key, purpose, data: [octets, …]}`` is the quick one, and its answer a list of signatures. The other form,
``{items: [{key, data, purpose}, …]}``, mixes keys and purposes, and its answer is a list of ``{signature}``. What cannot be signed has
``{error, text}`` in its place. Inputs are digests (SHA-256; SHA-384 for P-384; e = SM3(Z || M) for SM2) or, for Ed25519 and ML-DSA-65, the
message; signatures are encoded as X.509 has them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple

from hsm_sim.cka import CKM_ECDSA, CKM_EDDSA, CKM_ML_DSA, CKM_SHA256_RSA_PKCS
from hsm_sim.device import Device
from hsm_sim.errors import Code, Rejected
from hsm_sim.mechanisms import TABLE, Digested, signer
from hsm_sim.objects import Object
from hsm_sim.roles import Caller, Verb
from hsm_sim.signing import Order, Outcome
from hsm_sim.wire import Request, printable
from pkix.algorithms import KeyKind

MAX_ITEMS = 1024
MAX_PURPOSE = 32

Answer = Callable[[list[Any]], None]
Later = Callable[[Coroutine[Any, Any, None], int], object]


class _Way(NamedTuple):
    """How a kind of key signs: with which mechanism, over how many octets (None: a message), and whether in microseconds."""

    mechanism: int
    length: int | None = 32
    fast: bool = False


_RSA = _Way(CKM_SHA256_RSA_PKCS)
_WAYS: dict[str, _Way] = {
    KeyKind.P_256: _Way(CKM_ECDSA, 32, fast=True),
    KeyKind.P_384: _Way(CKM_ECDSA, 48),
    KeyKind.SM2: _Way(CKM_ECDSA, 32),
    KeyKind.ED25519: _Way(CKM_EDDSA, None, fast=True),
    KeyKind.ML_DSA_65: _Way(CKM_ML_DSA, None),
    **dict.fromkeys((KeyKind.RSA_2048, KeyKind.RSA_3072, KeyKind.RSA_4096), _RSA),
}


def failure(error: Rejected) -> dict[str, str]:
    """How an error looks in an answer."""
    return {"error": error.code.value, "text": error.text}


def sign_many(caller: Caller, device: Device, request: Request, answer: Answer, later: Later) -> int:
    """Begins it; ``later`` runs what has to wait for more than the signatures. The number of inputs. Raises Rejected: nothing was begun."""
    device.partition(caller.partition).check(caller, Verb.SIGN)
    lean = "data" in request.args
    inputs = request.args.get("data" if lean else "items")
    if type(inputs) is not list or not 0 < len(inputs) <= MAX_ITEMS:
        raise Rejected(Code.BAD_REQUEST, f'"data" (or "items") has to be a list of 1 to {MAX_ITEMS}')
    if not lean:
        later(_mixed(caller, device, inputs, answer), len(inputs))
        return len(inputs)
    label, purpose = request.text("key"), request.text("purpose", MAX_PURPOSE)
    obj = _usable(caller, device, label)
    if device.lab is None and obj.usage_limit is None:
        _order(caller, device, obj, purpose, inputs, lambda outcomes: answer(_lean(outcomes)))
    else:
        later(_slowly(caller, device, obj, purpose, inputs, lambda outcomes: answer(_lean(outcomes))), len(inputs))
    return len(inputs)


def _lean(outcomes: Sequence[Outcome]) -> list[Any]:
    if set(map(type, outcomes)) == {bytes}:
        return list(outcomes)
    return [failure(outcome) if isinstance(outcome, Rejected) else outcome for outcome in outcomes]


async def _mixed(caller: Caller, device: Device, items: list[Any], answer: Answer) -> None:
    """One order for each key and purpose; all go to the log together."""
    answers: list[Any] = [None] * len(items)
    groups: dict[tuple[str, str], list[int]] = {}
    for index, item in enumerate(items):
        try:
            groups.setdefault(_key_and_purpose(item), []).append(index)
        except Rejected as error:
            answers[index] = failure(error)

    async def sign(label: str, purpose: str, places: list[int]) -> None:
        outcomes: list[Outcome] = []
        try:
            obj = _usable(caller, device, label)
            await _slowly(caller, device, obj, purpose, [items[place].get("data") for place in places], outcomes.extend)
        except Rejected as error:
            outcomes = [error] * len(places)
        for place, outcome in zip(places, outcomes, strict=True):
            answers[place] = {"signature": outcome} if type(outcome) is bytes else failure(outcome)  # type: ignore[arg-type]

    await asyncio.gather(*(sign(*group, places) for group, places in groups.items()))
    answer(answers)


def _key_and_purpose(item: object) -> tuple[str, str]:
    if type(item) is not dict:
        raise Rejected(Code.BAD_REQUEST, 'an item is a map of "key", "data" and "purpose"')
    return printable(item.get("key"), "key"), printable(item.get("purpose"), "purpose", MAX_PURPOSE)


def _usable(caller: Caller, device: Device, label: str) -> Object:
    """The private key ``label``, if the caller may sign with it now. Raises Rejected."""
    partition = device.partition(caller.partition)
    obj = partition.by_label(caller, label)
    return device.substitute("sign", partition.usable(caller, Verb.SIGN, obj, _WAYS[obj.kind].mechanism), caller)


async def _slowly(
    caller: Caller, device: Device, obj: Object, purpose: str, inputs: list[Any], done: Callable[[Sequence[Outcome]], None]
) -> None:
    """``_order`` with all that may have to be waited for before: the laboratory, and a usage limit that is counted on disk."""
    await device.before("sign", obj.label, caller)
    if obj.usage_limit is not None:
        await device.partition(caller.partition).reserve(obj, len(inputs))
    signed: asyncio.Future[Sequence[Outcome]] = asyncio.get_running_loop().create_future()
    _order(caller, device, obj, purpose, inputs, signed.set_result)
    outcomes = await signed
    done([device.after("sign", obj.label, caller, outcome) if type(outcome) is bytes else outcome for outcome in outcomes])


def _order(caller: Caller, device: Device, obj: Object, purpose: str, inputs: list[Any], done: Callable[[Sequence[Outcome]], None]) -> None:
    """Has them signed; what is no input for this key gets its error."""
    if obj.key is None:
        raise Rejected(Code.KEY_TYPE_INCONSISTENT, f"{obj.label} is no key")
    way = _WAYS[obj.kind]
    sign = signer(obj.key, way.mechanism, der=True)
    if way is _RSA:
        sign = _over_digest(sign)
    if set(map(type, inputs)) != {bytes} or set(map(len, inputs)) != {way.length}:
        sign = _looking(sign, obj.kind, way.length)
    device.signing.submit(Order(caller, obj.label, TABLE[way.mechanism].name, purpose, sign, inputs, done, fast=way.fast))


def _over_digest(sign: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    return lambda data: sign(Digested(data))


def _looking(sign: Callable[[bytes], bytes], kind: str, length: int | None) -> Callable[[bytes], bytes]:
    """``sign`` after a look at each input, of which some may be anything."""

    def checked(data: object) -> bytes:
        if type(data) is not bytes or not data:
            raise Rejected(Code.BAD_REQUEST, '"data" has to be octets')
        if length is not None and len(data) != length:
            raise Rejected(Code.DATA_LEN_RANGE, f"a {kind} key signs {length} octets, not {len(data)}")
        return sign(data)

    return checked
