"""Operations of the native door on keys: making, looking, changing, using, destroying. Each is a line in ``native_ops.OPS``.

A key is named by its label. Mechanisms are called as in PKCS#11 (``CKM_AES_KEY_WRAP_PAD``); attributes have names of their own
(``_BOOLEANS``).
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from hsm_sim import cka, mechanisms
from hsm_sim.device import Device
from hsm_sim.errors import Code, Rejected
from hsm_sim.keys import CURVES, SECRET_LENGTHS
from hsm_sim.mechanisms import Ecdh1, Gcm, Mechanism, Oaep, Params
from hsm_sim.objects import Object, Template
from hsm_sim.partition import Partition
from hsm_sim.roles import Caller
from hsm_sim.wire import Request
from pkix.algorithms import KeyKind

_BOOLEANS = {
    "sensitive": cka.CKA_SENSITIVE,
    "extractable": cka.CKA_EXTRACTABLE,
    "always_sensitive": cka.CKA_ALWAYS_SENSITIVE,
    "never_extractable": cka.CKA_NEVER_EXTRACTABLE,
    "local": cka.CKA_LOCAL,
    "sign": cka.CKA_SIGN,
    "decrypt": cka.CKA_DECRYPT,
    "encrypt": cka.CKA_ENCRYPT,
    "wrap": cka.CKA_WRAP,
    "unwrap": cka.CKA_UNWRAP,
    "derive": cka.CKA_DERIVE,
    "trusted": cka.CKA_TRUSTED,
    "wrap_with_trusted": cka.CKA_WRAP_WITH_TRUSTED,
    "modifiable": cka.CKA_MODIFIABLE,
    "destroyable": cka.CKA_DESTROYABLE,
}
_LIMITS = ("usage_limit", "quorum", "not_before", "not_after")
_SECRET_MECHANISMS = {
    **dict.fromkeys(("aes-128", "aes-192", "aes-256"), cka.CKM_AES_KEY_GEN),
    "sm4": cka.CKM_SM4_KEY_GEN,
    "generic": cka.CKM_GENERIC_SECRET_KEY_GEN,
}
_CURVES = {str(kind): params for params, kind in reversed(CURVES.items())}
_SECRET_TYPES = {
    **dict.fromkeys(("aes-128", "aes-192", "aes-256"), cka.CKK_AES),
    "sm4": cka.CKK_SM4,
    "generic": cka.CKK_GENERIC_SECRET,
}
_PUBLIC_NUMBERS = frozenset((cka.CKA_KEY_TYPE, cka.CKA_MODULUS, cka.CKA_PUBLIC_EXPONENT, cka.CKA_EC_PARAMS, cka.CKA_EC_POINT))

Args = Mapping[str, Any]
# ruff: noqa: ARG001 - every handler takes the same three


# --- keys ----------------------------------------------------------------------------------------------------------


def _keys(partition: Partition, caller: Caller) -> list[Object]:
    return [obj for cls in (cka.CKO_PRIVATE_KEY, cka.CKO_SECRET_KEY) for obj in partition.find(caller, {cka.CKA_CLASS: cls})]


def _key(device: Device, caller: Caller, label: str) -> Object:
    """The private or else the secret key of this label. Raises Rejected."""
    partition = device.partition(caller.partition)
    try:
        return partition.by_label(caller, label)
    except Rejected as error:
        secret = partition.find(caller, {cka.CKA_CLASS: cka.CKO_SECRET_KEY, cka.CKA_LABEL: label.encode()})
        if error.code is not Code.KEY_NOT_FOUND or not secret:
            raise
        return secret[0]


def described(obj: Object) -> dict[str, Any]:
    """What whoever sees a key may know of it."""
    said: dict[str, Any] = {"label": obj.label, "kind": obj.kind, "origin": obj.origin, "created": obj.created, "id": obj.cka_id}
    said["public_key"] = obj.key.spki if obj.key else b""
    said |= {name: obj.attributes[number] for name, number in _BOOLEANS.items() if number in obj.attributes}
    limits = {"usage_limit": obj.usage_limit, "not_before": obj.not_before, "not_after": obj.not_after, "quorum": sorted(obj.quorum)}
    said |= {name: value for name, value in limits.items() if value}
    return said | ({"used": obj.used} if obj.usage_limit is not None else {})


async def keys(device: Device, caller: Caller, args: Args) -> list[dict[str, Any]]:
    return [described(obj) for obj in _keys(device.partition(caller.partition), caller)]


async def attributes(device: Device, caller: Caller, args: Args) -> dict[str, Any]:
    return described(_key(device, caller, Request.over(args).text("key")))


async def generate(device: Device, caller: Caller, args: Args) -> dict[str, Any]:
    request, partition = Request.over(args), device.partition(caller.partition)
    label, kind, wanted = request.text("key"), request.text("kind", 40), request.mapping("attributes")
    template, limits = _template(label, wanted), _limits(wanted)
    if kind in _SECRET_MECHANISMS:
        if kind != "sm4":
            template[cka.CKA_VALUE_LEN] = SECRET_LENGTHS.get(kind) or request.number("length", 1, 512, 32)
        obj = await partition.generate_secret(caller, _SECRET_MECHANISMS[kind], template, unique=True, limits=limits)
    else:
        mechanism, public = _pair(kind)
        public |= {cka.CKA_TOKEN: True, cka.CKA_LABEL: label.encode(), cka.CKA_ID: template[cka.CKA_ID]}
        obj = (await partition.generate_pair(caller, mechanism, public, template, unique=True, limits=limits))[1]
    return described(obj)


def _pair(kind: str) -> tuple[int, Template]:
    """How a pair of this kind is made. Raises Rejected."""
    if kind in _CURVES:
        mechanism = cka.CKM_EC_EDWARDS_KEY_PAIR_GEN if kind == KeyKind.ED25519 else cka.CKM_EC_KEY_PAIR_GEN
        return mechanism, {cka.CKA_EC_PARAMS: _CURVES[kind]}
    if kind in (KeyKind.RSA_2048, KeyKind.RSA_3072, KeyKind.RSA_4096):
        return cka.CKM_RSA_PKCS_KEY_PAIR_GEN, {cka.CKA_MODULUS_BITS: int(kind[4:]), cka.CKA_PUBLIC_EXPONENT: b"\x01\x00\x01"}
    if kind == KeyKind.ML_DSA_65:
        return cka.CKM_ML_DSA_KEY_PAIR_GEN, {cka.CKA_PARAMETER_SET: cka.CKP_ML_DSA_65}
    raise Rejected(Code.MECHANISM_INVALID, f"keys of kind {kind!r} cannot be made here")


def _template(label: str, wanted: Mapping[str, Any]) -> Template:
    """Attributes of a new key. Raises Rejected."""
    template: Template = {cka.CKA_TOKEN: True, cka.CKA_LABEL: label.encode(), cka.CKA_ID: secrets.token_bytes(16)}
    return template | _given(wanted)


def _given(wanted: Mapping[str, Any]) -> Template:
    """The attributes among what is ``wanted`` by name. Raises Rejected."""
    template: Template = {}
    for name, value in wanted.items():
        if name == "id" and type(value) is bytes and 0 < len(value) <= 64:
            template[cka.CKA_ID] = value
        elif name in _BOOLEANS and type(value) is bool:
            template[_BOOLEANS[name]] = value
        elif name not in _LIMITS:
            raise Rejected(Code.ATTRIBUTE_TYPE_INVALID, f"{name[:40]!r} is no attribute to be set here, or not to this value")
    return template


def _limits(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The limits among them, for ``Partition.restrict``. Raises Rejected."""
    request, limits = Request.over(wanted), dict[str, Any]()
    if "usage_limit" in wanted:
        limits["usage_limit"] = request.number("usage_limit", 0, 1 << 62)
    if "quorum" in wanted:
        limits["quorum"] = request.many("quorum", str)
    for name in ("not_before", "not_after"):
        if name in wanted:
            limits[name] = request.text(name, 40)
    return limits


async def set_attributes(device: Device, caller: Caller, args: Args) -> dict[str, Any]:
    request, partition = Request.over(args), device.partition(caller.partition)
    obj, wanted = _key(device, caller, request.text("key")), request.mapping("attributes")
    if limits := _limits(wanted):
        await partition.restrict(caller, obj, **limits)
    if template := _given(wanted):
        await partition.set_attributes(caller, obj, template)
    return described(obj)


async def destroy(device: Device, caller: Caller, args: Args) -> dict[str, Any]:
    """The key first: what a crash leaves of the pair is its public half, which nobody misses."""
    request, partition = Request.over(args), device.partition(caller.partition)
    obj = _key(device, caller, request.text("key"))
    await partition.destroy(caller, obj, request.many("approvals", bytes))
    same: Template = {cka.CKA_CLASS: cka.CKO_PUBLIC_KEY, cka.CKA_LABEL: obj.label.encode(), cka.CKA_ID: obj.cka_id}
    for public in partition.find(caller, same):
        await partition.destroy(caller, public)
    return {}


# --- what is done with them ----------------------------------------------------------------------------------------


def _way(request: Request) -> tuple[Mechanism, Params]:
    """The argument ``mechanism`` (CKM_…) and its parameter: ``iv`` and ``aad``, or ``public``. OAEP is with SHA-256. Raises Rejected."""
    name = request.text("mechanism", 40)
    entry = mechanisms.BY_NAME.get(name)
    if entry is None:
        raise Rejected(Code.MECHANISM_INVALID, f"there is no mechanism {name!r}; write it as CKM_AES_KEY_WRAP_PAD")
    if entry.params is Gcm:
        return entry, Gcm(request.octets("iv", 1, 256), request.octets("aad", 0))
    if entry.params is Oaep:
        return entry, Oaep(cka.CKM_SHA256, cka.CKG_MGF1_SHA256)
    if entry.params is Ecdh1:
        return entry, Ecdh1(cka.CKD_NULL, b"", request.octets("public", 32, 200))
    return entry, request.octets("iv", 0, 256) or None


def _open_key(device: Device, caller: Caller, label: str) -> Object:
    """A key that something can be put under: the secret or else the public one of this label. Raises Rejected."""
    partition = device.partition(caller.partition)
    for cls in (cka.CKO_SECRET_KEY, cka.CKO_PUBLIC_KEY):
        if found := partition.find(caller, {cka.CKA_CLASS: cls, cka.CKA_LABEL: label.encode()}):
            return found[0]
    raise Rejected(Code.KEY_NOT_FOUND, f"there is no secret or public key {label}")


async def encrypt(device: Device, caller: Caller, args: Args) -> bytes:
    request = Request.over(args)
    entry, params = _way(request)
    key = _open_key(device, caller, request.text("key"))
    return await device.partition(caller.partition).encrypt(caller, key, entry.number, params, request.octets("data", 0))


async def decrypt(device: Device, caller: Caller, args: Args) -> bytes:
    request = Request.over(args)
    entry, params = _way(request)
    key = _key(device, caller, request.text("key"))
    return await device.partition(caller.partition).decrypt(caller, key, entry.number, params, request.octets("data", 0))


async def wrap(device: Device, caller: Caller, args: Args) -> bytes:
    request = Request.over(args)
    entry, params = _way(request)
    wrapping, target = _open_key(device, caller, request.text("wrapping")), _key(device, caller, request.text("key"))
    partition, approvals = device.partition(caller.partition), request.many("approvals", bytes)
    return await partition.wrap(caller, entry.number, params, wrapping, target, approvals)


async def unwrap(device: Device, caller: Caller, args: Args) -> dict[str, Any]:
    """``key`` opens ``data``; what comes out is called ``label`` and is of ``kind``."""
    request, partition = Request.over(args), device.partition(caller.partition)
    entry, params = _way(request)
    template, limits = _new(request, request.text("label"))
    key, approvals = _key(device, caller, request.text("key")), request.many("approvals", bytes)
    obj = await partition.unwrap(caller, entry.number, params, key, request.octets("data"), template, approvals, limits)
    if obj.cls == cka.CKO_PRIVATE_KEY and obj.key is not None:
        numbers = {name: value for name, value in obj.key.public().attributes().items() if name in _PUBLIC_NUMBERS}
        await partition.create(caller, {cka.CKA_CLASS: cka.CKO_PUBLIC_KEY, **_named(obj), **numbers})
    return described(obj)


async def derive(device: Device, caller: Caller, args: Args) -> dict[str, Any]:
    """A secret key ``label`` of ``kind`` from the private ``key`` and the ``public`` point of the other side."""
    request = Request.over(args)
    template, limits = _new(request, request.text("label"))
    key, params = _key(device, caller, request.text("key")), Ecdh1(cka.CKD_NULL, b"", request.octets("public", 32, 200))
    partition = device.partition(caller.partition)
    obj = await partition.derive(caller, key, cka.CKM_ECDH1_DERIVE, params, template, limits)
    return described(obj)


def _named(obj: Object) -> Template:
    """The attributes by which a public key belongs to its private one."""
    return {cka.CKA_TOKEN: True, cka.CKA_LABEL: obj.label.encode(), cka.CKA_ID: obj.cka_id}


def _new(request: Request, label: str) -> tuple[Template, dict[str, Any]]:
    """Template and limits of a key that comes in: of ``kind``, with ``attributes``. Raises Rejected."""
    kind, wanted = request.text("kind", 40), request.mapping("attributes")
    template = _template(label, wanted)
    if kind in _SECRET_TYPES:
        template |= {cka.CKA_CLASS: cka.CKO_SECRET_KEY, cka.CKA_KEY_TYPE: _SECRET_TYPES[kind]}
        if kind in SECRET_LENGTHS:
            template[cka.CKA_VALUE_LEN] = SECRET_LENGTHS[kind]
    else:
        template |= {cka.CKA_CLASS: cka.CKO_PRIVATE_KEY, cka.CKA_KEY_TYPE: _private_type(kind)}
    return template, _limits(wanted)


def _private_type(kind: str) -> int:
    if kind in (KeyKind.RSA_2048, KeyKind.RSA_3072, KeyKind.RSA_4096):
        return cka.CKK_RSA
    if kind in _CURVES:
        return cka.CKK_EC_EDWARDS if kind == KeyKind.ED25519 else cka.CKK_EC
    raise Rejected(Code.MECHANISM_INVALID, f"keys of kind {kind!r} cannot come in")
