"""A partition: one PKCS#11 token with its own PINs, its own key-encrypting key and its own objects; here, what is done with keys.

    root = partition.by_label(caller, "root")
    signature = await partition.sign(caller, root, CKM_ECDSA, None, digest, "certificate")

``Access`` (PINs, states), ``Vault`` and ``Upkeep`` (objects) are the rest of it. Every verb takes the caller first, checks what he may,
asks the laboratory, is written to the audit log before its result is released, and raises ``Rejected``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from hsm_sim import cka, mechanisms, templates
from hsm_sim.audit import Event
from hsm_sim.errors import Code, Rejected
from hsm_sim.keys import Key
from hsm_sim.objects import Object, Template
from hsm_sim.roles import Caller, Verb
from hsm_sim.store import PartitionRow
from hsm_sim.upkeep import Upkeep
from hsm_sim.vault import NO_LIMITS, Limits, limited
from pkix.algorithms import KeyKind

if TYPE_CHECKING:
    from hsm_sim.device import Device

RESERVED = 64  # uses of a limited key that are taken from the store at once; a crash may lose them, never give one too many
FAST = frozenset((KeyKind.P_256.value, KeyKind.ED25519.value))
"""Kinds of key that sign in microseconds: handing them to a thread costs more than signing."""
_FUNCTIONS = {
    Verb.SIGN: cka.CKF_SIGN,
    Verb.VERIFY: cka.CKF_VERIFY,
    Verb.ENCRYPT: cka.CKF_ENCRYPT,
    Verb.DECRYPT: cka.CKF_DECRYPT,
    Verb.WRAP: cka.CKF_WRAP,
    Verb.UNWRAP: cka.CKF_UNWRAP,
    Verb.DERIVE: cka.CKF_DERIVE,
}


class Partition(Upkeep):
    """See the module and the classes under it."""

    def __init__(self, device: Device, row: PartitionRow) -> None:
        super().__init__(device, row)
        self._ready: dict[bytes, int] = {}  # uses of limited keys that the store counts as done and that are still to be had

    # --- what is checked before

    def usable(self, caller: Caller, verb: Verb, obj: Object, mechanism: int, params: Any = None) -> Object:
        """``obj``, if this caller may do this with it, this way, now: checked once for any number of signatures that follow at once.

        If it has a ``usage_limit``, ``reserve`` comes before each use.

        Raises Rejected: as ``check`` and ``mechanisms.check``; OBJECT_HANDLE_INVALID, KEY_FUNCTION_NOT_PERMITTED (outside of its dates),
        TAMPERED, LOG_FULL.
        """
        self.check(caller, verb)
        self.alive(caller, obj)
        try:
            self._mechanism(mechanism)
            if obj.key is None:
                raise Rejected(Code.KEY_HANDLE_INVALID, "the object is no key")
            mechanisms.check(_FUNCTIONS[verb], mechanism, params, obj.attributes)
            self.in_force(obj)
        except Rejected as error:
            self._note(verb, caller, obj.label, error)
            raise
        return obj

    def in_force(self, obj: Object) -> None:
        """Returns if the key may be used at this moment, for whatever it is for.

        Raises Rejected: KEY_FUNCTION_NOT_PERMITTED (outside of its dates), TAMPERED, LOG_FULL.
        """
        if (obj.not_before or obj.not_after) and not obj.usable(self.device.now()):
            raise Rejected(Code.KEY_FUNCTION_NOT_PERMITTED, f"{obj.label} is for use from {obj.not_before} to {obj.not_after}")
        if obj.secret:
            self._whole()
            self.device.audit.permit()

    async def reserve(self, obj: Object, count: int = 1) -> None:
        """Takes ``count`` uses of a key that has a limit, all or none. Raises Rejected(LIMIT_REACHED)."""
        if obj.usage_limit is not None:
            await self.finish(self._reserve(obj, count))

    async def _reserve(self, obj: Object, count: int) -> None:
        async with self._changing:
            ready, limit = self._ready.get(obj.id, 0), obj.usage_limit or 0
            left = limit - (obj.used - ready)  # the limit may have been lowered below what is reserved
            if count > left:
                raise Rejected(Code.LIMIT_REACHED, f"{obj.label} may be used {limit} times, of which {max(0, left)} are left")
            lacking = count - ready
            if lacking > 0:
                used = min(limit, obj.used + max(lacking, RESERVED))
                more = used - obj.used
                await self._set("reserve", obj, used=used)
                # A crash here loses the uses that were reserved and not made.
                self._ready[obj.id] = self._ready.get(obj.id, 0) + more
            self._ready[obj.id] -= count

    # --- signatures

    async def sign(self, caller: Caller, obj: Object, mechanism: int, params: Any, data: bytes, purpose: str = "") -> bytes:
        """A signature or MAC as PKCS#11 writes it (r || s for ECDSA and SM2)."""
        obj = self.device.substitute("sign", self.usable(caller, Verb.SIGN, obj, mechanism, params), caller)
        await self.device.before("sign", obj.label, caller)
        await self.reserve(obj)
        key = _key(obj)
        make = mechanisms.signer(key, mechanism, params)
        name = mechanisms.TABLE[mechanism].name
        signature = await self.device.signing.one(caller, obj.label, name, purpose or caller.door, make, data, fast=key.kind in FAST)
        return self.device.after("sign", obj.label, caller, signature)

    def verify(self, caller: Caller, obj: Object, mechanism: int, params: Any, data: bytes, signature: bytes) -> None:
        """Returns if the signature is right. Raises Rejected: SIGNATURE_INVALID, SIGNATURE_LEN_RANGE, DATA_LEN_RANGE."""
        self.usable(caller, Verb.VERIFY, obj, mechanism, params)
        if obj.secret:
            self.device.audit.write_soon(Event("verify", caller, key=obj.label, mech=mechanisms.TABLE[mechanism].name))
        mechanisms.verify(_key(obj), mechanism, params, data, signature)

    # --- ciphers

    async def encrypt(self, caller: Caller, obj: Object, mechanism: int, params: Any, data: bytes) -> bytes:
        """With a public key nobody is told; with a secret one the log is."""
        self.usable(caller, Verb.ENCRYPT, obj, mechanism, params)
        await self.device.before("encrypt", obj.label, caller)
        await self.reserve(obj)
        done = mechanisms.encrypt(_key(obj), mechanism, params, data)
        if obj.secret:
            await self._logged("encrypt", caller, obj, mechanism)
        return done

    async def decrypt(self, caller: Caller, obj: Object, mechanism: int, params: Any, data: bytes) -> bytes:
        """Raises Rejected: ENCRYPTED_DATA_INVALID, ENCRYPTED_DATA_LEN_RANGE."""
        self.usable(caller, Verb.DECRYPT, obj, mechanism, params)
        await self.device.before("decrypt", obj.label, caller)
        await self.reserve(obj)
        done: bytes = await self._tried("decrypt", caller, obj, mechanism, lambda: mechanisms.decrypt(_key(obj), mechanism, params, data))
        await self._logged("decrypt", caller, obj, mechanism)
        return done

    # --- keys in and out

    async def wrap(
        self, caller: Caller, mechanism: int, params: Any, wrapping: Object, target: Object, approvals: Sequence[bytes] = ()
    ) -> bytes:
        """``target``, sealed under ``wrapping``. ``approvals`` are for ``export_parameters``.

        Raises Rejected: KEY_UNEXTRACTABLE, KEY_NOT_WRAPPABLE (only under a trusted key), QUORUM_MISSING, WRAPPING_KEY_TYPE_INCONSISTENT …
        """
        self.usable(caller, Verb.WRAP, wrapping, mechanism, params)
        self.alive(caller, target)
        try:
            _may_leave(wrapping, target)
            if target.limited and not self.device.quorum.needed(caller.partition, "export", target):
                raise Rejected(
                    Code.ACTION_PROHIBITED, f"{target.label} has limits, which do not go along: it leaves only where exports take approvals"
                )
        except Rejected as error:
            self._note(Verb.WRAP, caller, target.label, error)
            raise
        await self.device.before("wrap", target.label, caller)
        self._whole()
        self.device.audit.permit()
        approved = await self.device.quorum.spend(caller, "export", target, export_parameters(mechanism, wrapping), approvals)
        await self.reserve(wrapping)
        done = await asyncio.to_thread(mechanisms.wrap, _key(wrapping), mechanism, params, _key(target))
        await self._logged(
            "wrap", caller, target, mechanism, {"under": wrapping.label} | ({"approvals": list(approved)} if approved else {})
        )
        return done

    async def unwrap(
        self,
        caller: Caller,
        mechanism: int,
        params: Any,
        unwrapping: Object,
        wrapped: bytes,
        template: Template,
        approvals: Sequence[bytes] = (),
        limits: Limits = NO_LIMITS,
    ) -> Object:
        """A private or secret key that comes in sealed. With a private key, its public object is the caller's to create.

        Raises Rejected: WRAPPED_KEY_INVALID, QUORUM_MISSING (``recover_parameters``), and as ``generate_pair``.
        """
        self.usable(caller, Verb.UNWRAP, unwrapping, mechanism, params)
        cls = template.get(cka.CKA_CLASS)
        if cls not in (cka.CKO_PRIVATE_KEY, cka.CKO_SECRET_KEY):
            raise Rejected(Code.TEMPLATE_INCOMPLETE, "CKA_CLASS says whether a private or a secret key is unwrapped")
        self._trusting(caller, templates.checked(template, cls))
        with self._making_one(caller, Verb.UNWRAP, template) as label:
            await self.device.before("unwrap", label, caller)
            approved = await self.device.quorum.spend(
                caller, "recover", unwrapping, recover_parameters(mechanism, wrapped, template), approvals
            )
            await self.reserve(unwrapping)
            key = await self._tried(
                "unwrap", caller, unwrapping, mechanism, lambda: mechanisms.unwrap(_key(unwrapping), mechanism, params, wrapped, template)
            )
            obj, said = limited(self._new_key(key, template, "unwrapped"), limits)
            more = {"under": unwrapping.label, "kind": key.kind, "id": obj.id.hex(), **said}
            more |= {"approvals": list(approved)} if approved else {}
            await self.finish(self._add([obj], Event("unwrap", caller, key=label, mech=mechanisms.TABLE[mechanism].name, more=more)))
            return obj

    async def derive(
        self, caller: Caller, obj: Object, mechanism: int, params: Any, template: Template, limits: Limits = NO_LIMITS
    ) -> Object:
        """A secret key from a private one and another's public point (ECDH). Raises Rejected as ``generate_pair``."""
        self.usable(caller, Verb.DERIVE, obj, mechanism, params)
        self._trusting(caller, templates.checked(template, cka.CKO_SECRET_KEY))
        with self._making_one(caller, Verb.DERIVE, template) as label:
            await self.device.before("derive", obj.label, caller)
            await self.reserve(obj)
            key = await self._tried("derive", caller, obj, mechanism, lambda: mechanisms.derive(_key(obj), mechanism, params, template))
            made, said = limited(self._new_key(key, template, "derived", base=obj), limits)
            more = {"from": obj.label, "kind": key.kind, "id": made.id.hex(), **said}
            await self.finish(self._add([made], Event("derive", caller, key=label, mech=mechanisms.TABLE[mechanism].name, more=more)))
            return made

    async def _tried(self, op: str, caller: Caller, obj: Object, mechanism: int, work: Callable[[], Any]) -> Any:
        """Runs it in a thread. That it failed is written down: many failures in a row are somebody's experiment."""
        try:
            return await asyncio.to_thread(work)
        except Rejected as error:
            name = mechanisms.TABLE[mechanism].name
            self.device.audit.write_soon(Event(op, caller, key=obj.label, mech=name, result=error.code.value))
            raise

    async def _logged(self, op: str, caller: Caller, obj: Object, mechanism: int, more: dict[str, Any] | None = None) -> None:
        await self.device.audit.write(Event(op, caller, key=obj.label, mech=mechanisms.TABLE[mechanism].name, more=more or {}))


def export_parameters(mechanism: int, wrapping: Object) -> dict[str, Any]:
    """What the approvals of an export are for: this mechanism, under this key."""
    return {"mechanism": mechanism, "wrapping": wrapping.id}


def recover_parameters(mechanism: int, wrapped: bytes, template: Template) -> dict[str, Any]:
    """What the approvals of a recovery are for: these octets, unwrapped by this mechanism, into a key that is no less closed than said."""
    open_ = {"extractable": template.get(cka.CKA_EXTRACTABLE) is True, "sensitive": template.get(cka.CKA_SENSITIVE) is not False}
    return {"mechanism": mechanism, "sha256": sha256(wrapped).digest(), **open_}


def _may_leave(wrapping: Object, target: Object) -> None:
    """Raises Rejected: KEY_UNEXTRACTABLE, KEY_NOT_WRAPPABLE."""
    if not target.secret:
        raise Rejected(Code.KEY_NOT_WRAPPABLE, "private and secret keys are wrapped, nothing else")
    if not target.extractable:
        raise Rejected(Code.KEY_UNEXTRACTABLE, f"{target.label} is not extractable")
    if target.attributes.get(cka.CKA_WRAP_WITH_TRUSTED) is True and wrapping.attributes.get(cka.CKA_TRUSTED) is not True:
        raise Rejected(Code.KEY_NOT_WRAPPABLE, f"{target.label} leaves under a trusted key only (CKA_WRAP_WITH_TRUSTED)")


def _key(obj: Object) -> Key:
    if obj.key is None:
        raise Rejected(Code.KEY_HANDLE_INVALID, "the object is no key")
    return obj.key
