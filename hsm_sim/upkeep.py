"""What happens to the objects of a partition later, and to the partition as a whole: changed, limited, destroyed, zeroised, restored."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from hsm_sim import cka, templates
from hsm_sim.audit import Event
from hsm_sim.errors import Code, Rejected
from hsm_sim.failpoint import failpoint
from hsm_sim.limits import tightened
from hsm_sim.objects import Object, Template
from hsm_sim.records import loaded, secret_of, supposed_label
from hsm_sim.roles import Caller, Role, Verb
from hsm_sim.seal import Ring
from hsm_sim.store import ObjectRow, RoleRow, drop_roles, marks, objects, put_marks, put_role, put_setting
from hsm_sim.vault import KEYS, Vault

Changes = Callable[[], tuple[dict[str, Any], dict[str, Any]]]
"""What changes of an object and what the log says of it: asked for when nobody else changes it, so that no other change is taken back."""


class Upkeep(Vault):
    """See the module."""

    # --- changing

    async def set_attributes(self, caller: Caller, obj: Object, template: Template) -> None:
        """C_SetAttributeValue. Raises Rejected: ACTION_PROHIBITED, ATTRIBUTE_READ_ONLY, ATTRIBUTE_TYPE_INVALID …"""
        trusting = caller.role is Role.SO and template.keys() == {cka.CKA_TRUSTED}
        self.check(caller, Verb.SET_TRUSTED if trusting else Verb.SET_ATTRIBUTES if obj.token else Verb.CREATE_SESSION_OBJECT)
        self.alive(caller, obj)
        self._trusting(caller, template)
        await self.device.before("set_attributes", obj.label, caller)
        about = {"attributes": [f"0x{attribute:X}" for attribute in template]}
        await self.finish(self._replace(caller, "set_attributes", obj, lambda: ({"attributes": templates.changed(obj, template)}, about)))

    async def restrict(self, caller: Caller, obj: Object, **limits: Any) -> None:
        """Limits that PKCS#11 has no attribute for: ``usage_limit``, ``quorum``, ``not_before``, ``not_after`` (``limits.tightened``).

        Raises Rejected: ACTION_PROHIBITED (it would loosen one), BAD_REQUEST, and as ``set_attributes``.
        """
        self.check(caller, Verb.SET_ATTRIBUTES)
        self.alive(caller, obj)
        await self.finish(self._replace(caller, "restrict", obj, lambda: tightened(obj, limits)))

    async def _replace(self, caller: Caller, op: str, obj: Object, change: Changes) -> None:
        async with self._changing:
            changes, about = change()
            counter = await self._set(op, obj, **changes)
        if not obj.token and not obj.secret:
            return  # a session's own, as in ``_add``
        more = about if counter is None else {**about, "counter": counter}
        await self.device.audit.write(Event(op, caller, key=obj.label, more=more))
        failpoint(f"hsm.{op}.audited")

    async def _set(self, op: str, obj: Object, **changes: Any) -> int | None:
        """Changes the object in the store, then in place; the caller holds ``_changing``. The new counter, if the store has the object."""
        if obj.token and self._objects.get(obj.id) is not obj:
            raise Rejected(Code.OBJECT_HANDLE_INVALID, "the object is not there any more")
        counter = None
        if obj.token:
            self._whole()
            counter = await self._change(op, put=[replace(obj, version=obj.version + 1, **changes)])
        for name, value in (changes | {"version": obj.version + 1}).items():
            setattr(obj, name, value)
        self._index()
        return counter

    async def destroy(self, caller: Caller, obj: Object, approvals: Sequence[bytes] = ()) -> None:
        """Takes the object away, for good: its record is overwritten in the files too.

        Raises Rejected: ACTION_PROHIBITED (CKA_DESTROYABLE is false), QUORUM_MISSING, OBJECT_HANDLE_INVALID, STORAGE.
        """
        self.check(caller, Verb.DESTROY if obj.token else Verb.CREATE_SESSION_OBJECT)
        self.alive(caller, obj)
        if obj.attributes.get(cka.CKA_DESTROYABLE) is False:
            error = Rejected(Code.ACTION_PROHIBITED, f"{obj.label} may not be destroyed (CKA_DESTROYABLE)")
            self._note(Verb.DESTROY, caller, obj.label, error)
            raise error
        await self.device.before("destroy", obj.label, caller)
        approved = await self.device.quorum.spend(caller, "destroy", obj, {}, approvals) if obj.secret and obj.token else ()
        await self.finish(self._remove(caller, obj, approved))

    async def _remove(self, caller: Caller, obj: Object, approved: Sequence[str]) -> None:
        more: dict[str, Any] = {"id": obj.id.hex()} | ({"approvals": list(approved)} if approved else {})
        if obj.token:
            async with self._changing:
                self.alive(caller, obj)
                self._whole()
                more["counter"] = await self._change("destroy", drop=[obj])
                del self._objects[obj.id]
                self._index()
            await self._forget()
        await self.device.audit.write(Event("destroy", caller, key=obj.label, more=more))
        failpoint("hsm.destroy.audited")

    async def _forget(self) -> None:
        with suppress(Rejected):  # it is deleted already; this only makes it unreadable a little earlier
            await self.device.store.forget()

    # --- the whole partition

    async def init_partition(self, caller: Caller, so_pin: str, name: str) -> None:
        """C_InitToken: all objects and all PINs but the SO's are gone, and the partition is called ``name``.

        The SO's PIN decides; after zeroisation there is none left, and the one given becomes it. Raises Rejected as ``login``, and
        BAD_REQUEST (name), KEY_EXISTS (another partition has it).
        """
        self.device.check_name(name, self)
        self._long_enough(so_pin)
        self.check(caller, Verb.INIT_PARTITION)
        await self.device.before("init_partition", "", caller)
        try:
            await self.finish(self._begin_anew(caller, so_pin, name))
        except Rejected as error:
            self.device.audit.write_soon(Event("init_partition", caller, result=error.code.value))
            raise

    async def _begin_anew(self, caller: Caller, so_pin: str, name: str) -> None:
        async with self.device.entering, self._changing:
            if self.has_pin(Role.SO):
                await self._checked(Role.SO, so_pin)
            kek = secrets.token_bytes(32)
            ring, row = Ring(kek, self.device.cipher), await self._wrapped(Role.SO, so_pin, kek)
            self.counter = await self.device.store.write(lambda db: self._empty(db, ring, row, name), "init_partition")
            self.device.forget_setting(f"quorum {self.serial}")
            self._roles = {role: kept for role, kept in self._roles.items() if role is Role.AUDITOR} | {Role.SO: row}
            self._objects, self._by_label, self.damaged, self.incomplete, self.rolled_back = {}, {}, {}, "", ""
            self._zeroised = False
            self._close()
            self.device.rename(self, name)
        await self._forget()
        await self.device.audit.write(Event("init_partition", caller, more={"label": name, "counters": self.device.counters()}))

    def _empty(self, db: Any, ring: Ring, row: RoleRow, name: str) -> int:
        db.execute("DELETE FROM objects WHERE partition = ?", (self._id,))
        drop_roles(db, self._id)
        put_role(db, self._id, row)
        db.execute("DELETE FROM approvers WHERE partition = ?", (self.serial,))
        put_setting(db, f"quorum {self.serial}", None)
        db.execute("UPDATE partitions SET name = ? WHERE id = ?", (name, self._id))
        return put_marks(db, ring, self._id, self._next(db), 0)

    def _next(self, db: Any) -> int:
        """The counter of a change that leaves what was before behind, also what only the log knows of."""
        put_setting(db, "audit_seq", self.device.audit.head.seq)
        return max(marks(db, self._id)[0], self.logged_counter) + 1

    async def zeroise(self, caller: Caller) -> None:
        """Everything in the partition is gone, its PINs and its KEK first. It can be initialised again."""
        self.check(caller, Verb.ZEROISE)
        await self.finish(self.destroy_all(caller))

    async def destroy_all(self, caller: Caller) -> None:
        """``zeroise`` by the device itself, which asks nobody."""
        async with self.device.entering, self._changing:  # a login under way would put its role's row, and the KEK in it, back
            self.counter = await self.device.store.write(self._zero, "zeroise")
            self._roles = {role: kept for role, kept in self._roles.items() if role is Role.AUDITOR}
            self._objects, self._by_label, self.damaged, self.incomplete = {}, {}, {}, ""
            self._zeroised = True
            self._close()
        await self._forget()
        await self.device.audit.write(Event("zeroise", caller, more={"counter": self.counter}))

    def _zero(self, db: Any) -> int:
        counter = self._next(db)
        drop_roles(db, self._id)
        db.execute("DELETE FROM objects WHERE partition = ?", (self._id,))
        db.execute("UPDATE partitions SET counter = ?, marks = ? WHERE id = ?", (counter, b"", self._id))
        return counter

    async def accept_damage(self, caller: Caller) -> None:
        """What is there now is the set of objects; what is damaged is dropped. The SO's decision, written to the log."""
        self.check(caller, Verb.ACCEPT_DAMAGE)
        await self.finish(self._accept(caller))

    async def _accept(self, caller: Caller) -> None:
        async with self._changing:
            ring, there = self._ring, set(self._objects)
            if ring is None:
                raise Rejected(Code.LOCKED, "the HSM was locked meanwhile: log in with its PIN")

            def transact(db: Any) -> tuple[int, list[ObjectRow]]:
                rows = objects(db, self._id)
                dropped = [row for row in rows if row.id not in there]
                for row in dropped:
                    db.execute("DELETE FROM objects WHERE id = ?", (row.id,))
                total = sum(ring.mark(row.id, row.version) for row in rows if row.id in there)
                return put_marks(db, ring, self._id, self._next(db), total), dropped

            self.counter, dropped = await self.device.store.write(transact, "accept_damage")
            why, self.incomplete, self.rolled_back, self.damaged = self.incomplete or self.rolled_back, "", "", {}
        about = {"counters": self.device.counters(), "why": why, "dropped": [supposed_label(row) for row in dropped]}
        await self.device.audit.write(Event("accept_damage", caller, more=about))

    # --- for backups

    async def contents(self, caller: Caller) -> list[tuple[Object, bytes]]:
        """All objects with what is secret of them, for a backup that leaves sealed. Raises Rejected as ``check``; TAMPERED, LOG_FULL."""
        self.check(caller, Verb.BACKUP)
        self._whole()
        self.device.audit.permit()
        return await asyncio.to_thread(lambda: [(obj, secret_of(obj)) for obj in list(self._objects.values())])

    async def put_back(self, caller: Caller, contents: Sequence[tuple[Object, bytes]]) -> int:
        """Objects of a backup, in one transaction; those that are there already stay as they are. Returns how many were put back.

        Raises Rejected: KEY_EXISTS (another key has the label of one), DEVICE_MEMORY, WRAPPED_KEY_INVALID.
        """
        self.check(caller, Verb.RESTORE)
        fresh = [loaded(obj, secret) for obj, secret in contents if obj.id not in self._objects]
        for obj in fresh:
            if obj.secret and any((cls, obj.label) in self._by_label for cls in KEYS):
                raise Rejected(
                    Code.KEY_EXISTS, f"there is another key {obj.label} here: destroy it first, or restore into another partition"
                )
        if len(self._objects) + len(fresh) > self.device.personality.objects:
            raise Rejected(Code.DEVICE_MEMORY, f"a partition has at most {self.device.personality.objects} objects")
        labels = [obj.label for obj in fresh]
        await self.finish(self._add(fresh, Event("restore", caller, more={"keys": labels})))
        return len(fresh)
