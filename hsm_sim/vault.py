"""The objects of a partition: found and made; in memory as usable keys, in the store as sealed records.

What everybody may see is there from the start; private objects come with the first login, and with them the proof that none is missing,
added or out of date. One that was damaged is refused by name and the others go on; if the set itself is not what it was, no key is used
until the SO restores a backup or accepts what is there.

A change is durable in the store first, then in the audit log, then answered. A crash in between leaves a whole object that nobody was
told of.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from hsm_sim import cka, mechanisms, templates
from hsm_sim.access import Access
from hsm_sim.audit import Event
from hsm_sim.errors import Code, Rejected
from hsm_sim.failpoint import failpoint
from hsm_sim.keys import CURVES, Key, public_from
from hsm_sim.limits import tightened
from hsm_sim.objects import Object, Template
from hsm_sim.records import read_record, record, supposed_label
from hsm_sim.roles import Caller, Role, Verb
from hsm_sim.seal import Ring
from hsm_sim.store import ObjectRow, PartitionRow, change, marks, objects, open_marks, put_setting
from pkix.errors import Malformed

if TYPE_CHECKING:
    from hsm_sim.device import Device

_PRIVATE_SEERS = frozenset((Role.OFFICER, Role.USER))
_CURVES = frozenset(kind.value for kind in CURVES.values())
Limits = Mapping[str, Any]
NO_LIMITS: Limits = MappingProxyType({})
KEYS = (cka.CKO_PRIVATE_KEY, cka.CKO_SECRET_KEY)
"""Classes whose secret does not come in or go out in the clear."""


class Vault(Access):
    """The objects of one partition; ``Upkeep`` adds what happens to them later, ``Partition`` what is done with keys.

    Attributes:
        damaged: label (or hex id) → what is wrong with the object; known of private ones from the first login on.
        incomplete: why the set of objects cannot be trusted; "" if it can.
    """

    def __init__(self, device: Device, row: PartitionRow) -> None:
        super().__init__(device, row)
        self.damaged: dict[str, str] = {}
        self.incomplete = ""
        self._objects: dict[bytes, Object] = {}
        self._by_label: dict[tuple[int, str], Object] = {}
        self._making: set[str] = set()
        self._generating = asyncio.Lock()  # one pair at a time: RSA takes seconds, and others want threads for PINs and decryption
        self._public = Ring.public(device.secret, self._id, device.cipher)
        self._take(device.store.now(lambda db: objects(db, self._id)), None)

    # --- from the store

    async def _open(self, ring: Ring) -> None:
        rows = await self.device.store.read(lambda db: objects(db, self._id))
        counter, sealed = await self.device.store.read(lambda db: marks(db, self._id))
        try:
            total = open_marks(ring, self._id, counter, sealed)
            missing = (total - sum(ring.mark(row.id, row.version) for row in rows)) % (1 << 256) != 0
            self.incomplete = "objects were taken away, put in, or exchanged for older ones" if missing else ""
        except Rejected as error:
            self.incomplete = error.text
        await asyncio.to_thread(self._take, rows, ring)
        self._ring = ring

    def _take(self, rows: Iterable[ObjectRow], ring: Ring | None) -> None:
        """Reads what can be read: without ``ring`` the public objects. Those that are there already stay the same Python objects."""
        found: dict[bytes, Object] = {}
        damaged: dict[str, str] = {}
        for row in rows:
            if not row.open and ring is None:
                continue
            known = self._objects.get(row.id)
            if known is not None and known.version == row.version:
                found[row.id] = known
                continue
            try:
                found[row.id] = read_record(row, self._public if row.open or ring is None else ring, self._id, self.name)
            except (Malformed, KeyError, TypeError, ValueError) as error:
                why = str(error) if isinstance(error, Malformed) else "its record is torn"
                damaged[supposed_label(row)] = f"{why}; restore it from a backup"
        self._objects, self.damaged = found, damaged
        self._index()

    def _index(self) -> None:
        index: dict[tuple[int, str], Object] = {}
        for obj in self._objects.values():
            index.setdefault((obj.cls, obj.label), obj)
        self._by_label = index

    def _close(self) -> None:
        super()._close()
        self._objects = {id_: obj for id_, obj in self._objects.items() if not obj.private}
        self._index()

    def _whole(self) -> None:
        """Raises Rejected(TAMPERED) unless the set of objects is what it should be."""
        if self.incomplete or self.rolled_back:
            raise Rejected(Code.TAMPERED, f"{self.incomplete or self.rolled_back}: the security officer restores a backup, or accepts it")

    # --- looking

    def sees(self, caller: Caller, obj: Object) -> bool:
        """Whether the object exists for this caller."""
        return not obj.private or (caller.role in _PRIVATE_SEERS and caller.epoch == self.epoch)

    def find(self, caller: Caller, template: Template) -> list[Object]:
        """The token objects that match, oldest first."""
        self.check(caller, Verb.LOOK)
        return [obj for obj in self._objects.values() if self.sees(caller, obj) and templates.matches(obj, template)]

    def everything(self) -> Iterable[Object]:
        """All token objects in memory, whoever may see them: for housekeeping."""
        return self._objects.values()

    def get(self, caller: Caller, id: bytes) -> Object:
        """By id. Raises Rejected(OBJECT_HANDLE_INVALID)."""
        obj = self._objects.get(id)
        if obj is None or not self.sees(caller, obj):
            raise Rejected(Code.OBJECT_HANDLE_INVALID, "there is no such object")
        return obj

    def by_label(self, caller: Caller, label: str, cls: int = cka.CKO_PRIVATE_KEY) -> Object:
        """The oldest object of this class and label. Raises Rejected: KEY_NOT_FOUND, KEY_DAMAGED, and as ``check``."""
        obj = self._by_label.get((cls, label))
        if obj is not None and self.sees(caller, obj):
            return obj
        self.check(caller, Verb.LIST_KEYS)
        if trouble := self.damaged.get(label):
            raise Rejected(Code.KEY_DAMAGED, f"the key {label} cannot be used: {trouble}")
        raise Rejected(Code.KEY_NOT_FOUND, f"there is no key {label}")

    def alive(self, caller: Caller, obj: Object) -> None:
        """Raises Rejected(OBJECT_HANDLE_INVALID) for what was destroyed or is not this caller's to see."""
        if not self.sees(caller, obj) or (obj.token and self._objects.get(obj.id) is not obj):
            raise Rejected(Code.OBJECT_HANDLE_INVALID, "the object is not there any more")

    # --- making

    async def generate_pair(
        self,
        caller: Caller,
        mechanism: int,
        public: Template,
        private: Template,
        params: Any = None,
        *,
        unique: bool = False,
        limits: Limits = NO_LIMITS,
    ) -> tuple[Object, Object]:
        """A new key pair: the public and the private object.

        Args:
            unique: KEY_EXISTS if a private or secret key of this label is there, is being made, or is damaged.
            limits: that it is born with (``limits.tightened``).
        Raises:
            Rejected: as ``check``, ``templates.checked`` and ``mechanisms.generate_pair``; KEY_EXISTS, DEVICE_MEMORY, LOG_FULL, STORAGE.
        """
        with self._making_one(caller, Verb.GENERATE, private, unique=unique) as label:
            templates.checked(private, cka.CKO_PRIVATE_KEY)
            self._trusting(caller, templates.checked(public, cka.CKO_PUBLIC_KEY))
            name = self._mechanism(mechanism)
            await self.device.before("generate", label, caller)
            async with self._generating:
                key = await asyncio.to_thread(mechanisms.generate_pair, mechanism, params, public, private)
            if key.kind in _CURVES and key.kind not in self.device.personality.curves:
                raise Rejected(Code.CURVE_NOT_SUPPORTED, f"a device of {self.device.personality.manufacturer} makes no {key.kind} keys")
            hidden, said = limited(self._new_key(key, private, "generated", mechanism=mechanism), limits)
            shown = self._new_key(key.public(), public, "generated", mechanism=mechanism)
            event = Event("generate", caller, key=label, mech=name, more={"kind": key.kind, "id": hidden.id.hex(), **said})
            await self.finish(self._add([hidden, shown], event))
            return shown, hidden

    async def generate_secret(
        self, caller: Caller, mechanism: int, template: Template, params: Any = None, *, unique: bool = False, limits: Limits = NO_LIMITS
    ) -> Object:
        """A new secret key. Raises Rejected as ``generate_pair``."""
        with self._making_one(caller, Verb.GENERATE, template, unique=unique) as label:
            self._trusting(caller, templates.checked(template, cka.CKO_SECRET_KEY))
            name = self._mechanism(mechanism)
            await self.device.before("generate", label, caller)
            key = mechanisms.generate_secret(mechanism, params, template)
            obj, said = limited(self._new_key(key, template, "generated", mechanism=mechanism), limits)
            event = Event("generate", caller, key=label, mech=name, more={"kind": key.kind, "id": obj.id.hex(), **said})
            await self.finish(self._add([obj], event))
            return obj

    async def create(self, caller: Caller, template: Template) -> Object:
        """C_CreateObject: a certificate, data, or a public key in numbers.

        Raises Rejected: TEMPLATE_INCONSISTENT for private and secret keys, which come in wrapped; TEMPLATE_INCOMPLETE; and as
        ``generate_pair``.
        """
        cls = template.get(cka.CKA_CLASS)
        if cls in KEYS:
            raise Rejected(Code.TEMPLATE_INCONSISTENT, "private and secret keys do not come in in the clear: wrap it, and unwrap it here")
        if cls not in (cka.CKO_PUBLIC_KEY, cka.CKO_CERTIFICATE, cka.CKO_DATA):
            raise Rejected(Code.TEMPLATE_INCOMPLETE, "CKA_CLASS has to be a certificate's, data's or a public key's")
        verb = Verb.CREATE if template.get(cka.CKA_TOKEN) is True or template.get(cka.CKA_PRIVATE) is True else Verb.CREATE_SESSION_OBJECT
        self._trusting(caller, templates.checked(template, cls))
        with self._making_one(caller, verb, template) as label:
            await self.device.before("create", label, caller)
            obj = self._imported(template, cls)
            await self.finish(self._add([obj], Event("create", caller, key=label, more={"class": cls, "id": obj.id.hex()})))
            return obj

    def _imported(self, template: Template, cls: int) -> Object:
        if cls == cka.CKO_PUBLIC_KEY:
            return self._new_key(public_from(template), template, "imported")
        id_ = secrets.token_bytes(16)
        attributes, value = templates.stored(template, id_)
        return Object(id_, 1, self.name, attributes, "imported", self._now(), value=value)

    async def copy(self, caller: Caller, obj: Object, template: Template) -> Object:
        """C_CopyObject: the same material once more, never less protected. Raises Rejected: ACTION_PROHIBITED, ATTRIBUTE_READ_ONLY …"""
        with self._making_one(caller, Verb.COPY, {**obj.attributes, **template}) as label:
            self.alive(caller, obj)
            await self.device.before("copy", label, caller)
            if obj.limited:
                raise Rejected(Code.ACTION_PROHIBITED, f"{obj.label} has limits, which a copy would get round")
            id_ = secrets.token_bytes(16)
            attributes = {**templates.changed(obj, template, copy=True), cka.CKA_UNIQUE_ID: id_.hex().encode()}
            made = replace(obj, id=id_, version=1, attributes=attributes, created=self._now())
            await self.finish(self._add([made], Event("copy", caller, key=label, more={"of": obj.label, "id": id_.hex()})))
            return made

    def _new_key(self, key: Key, template: Template, origin: str, *, mechanism: int | None = None, base: Object | None = None) -> Object:
        id_ = secrets.token_bytes(16)
        attributes = templates.born(template, key, id_, mechanism=mechanism, base=base)
        if key.kind in _CURVES and key.cls == cka.CKO_PRIVATE_KEY and self.device.personality.ec_point_on_private:
            attributes[cka.CKA_EC_POINT] = key.point()
        return Object(id_, 1, self.name, attributes, origin, self._now(), key=key)

    def _now(self) -> str:
        return self.device.now().isoformat(timespec="seconds")

    def _mechanism(self, number: int) -> str:
        """A mechanism's name, if this device has it. Raises Rejected(MECHANISM_INVALID)."""
        entry = mechanisms.TABLE.get(number)
        if entry is None or not self.device.personality.allows(entry.name):
            raise Rejected(Code.MECHANISM_INVALID, f"this device does not have mechanism 0x{number:X}")
        return entry.name

    @contextmanager
    def _making_one(self, caller: Caller, verb: Verb, template: Template, *, unique: bool = False) -> Iterator[str]:
        """What is checked before an object is made; its label, kept free for it meanwhile. Raises Rejected."""
        value = template.get(cka.CKA_LABEL, b"")
        label = value.decode("utf-8", "replace") if isinstance(value, bytes) else ""
        self.check(caller, verb)
        if verb is not Verb.CREATE_SESSION_OBJECT:
            self._whole()
            self.device.audit.permit()
        if template.get(cka.CKA_TOKEN) is True and len(self._objects) >= self.device.personality.objects:
            raise Rejected(Code.DEVICE_MEMORY, f"the partition has its {self.device.personality.objects} objects")
        taken = label in self._making or label in self.damaged or any((cls, label) in self._by_label for cls in KEYS)
        if unique and taken:
            raise Rejected(Code.KEY_EXISTS, f"there is a key {label} already")
        reserved = unique and label not in self._making
        if reserved:
            self._making.add(label)
        try:
            yield label
        except Rejected as error:
            self._note(verb, caller, label, error)
            raise
        finally:
            if reserved:
                self._making.discard(label)

    def _trusting(self, caller: Caller, template: Template) -> None:
        """CKA_TRUSTED is the SO's to give. Raises Rejected(PERMISSION_DENIED …)."""
        if template.get(cka.CKA_TRUSTED) is True:
            self.check(caller, Verb.SET_TRUSTED)

    async def _add(self, made: Sequence[Object], event: Event) -> None:
        """Keeps those that outlive their session, and has it written down."""
        kept = [obj for obj in made if obj.token]
        if not kept and not any(obj.secret for obj in made):
            return  # a session's own: nothing has changed, and strangers can make any number of them
        more = dict(event.more)
        async with self._changing:
            if kept:
                if event.caller.epoch != self.epoch:  # it took a while, and may be another's partition now
                    raise Rejected(Code.LOCKED, "the login has ended meanwhile: log in again")
                more["counter"] = await self._change("generate", put=kept)
            for obj in kept:
                self._objects[obj.id] = obj
                self._by_label.setdefault((obj.cls, obj.label), obj)
        await self.device.audit.write(replace(event, more=more))
        failpoint("hsm.generate.audited")

    async def _change(self, name: str, put: Sequence[Object] = (), drop: Sequence[Object] = ()) -> int:
        """One transaction; the caller holds ``_changing``. Returns the new counter."""
        ring = self._opened()
        rows = [record(obj, ring if obj.private else self._public, self._id) for obj in put]
        gone = [obj.id for obj in drop]
        seq = self.device.audit.head.seq

        def transact(db: Any) -> int:
            put_setting(db, "audit_seq", seq)
            return change(db, self._id, ring, rows, gone)

        self.counter = await self.device.store.write(transact, name)
        return self.counter


def limited(obj: Object, limits: Limits) -> tuple[Object, dict[str, Any]]:
    """A new object with limits, so that it never is without them, and what the log says of these. Raises Rejected as ``tightened``."""
    if not limits:
        return obj, {}
    changes, said = tightened(obj, limits)
    return replace(obj, **changes), said
