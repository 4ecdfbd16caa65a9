"""The device: one home, one process; its identity, its partitions, its audit log and signing threads.

    device = await Device.open(home, clock)               # the caller holds the home's lock
    await device.partition().login(caller, Role.OFFICER, pin)
    await device.close()

In the home: ``device.key`` (the device secret), ``hsm.db`` (``store``), ``audit.log`` (``audit``), ``manufacturer.pem``, and PIN files for
those who log in. How it is made: ``factory``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from hsm_sim import files
from hsm_sim.attest import Identity
from hsm_sim.audit import AuditLog, AuditSigner, Event
from hsm_sim.errors import Code, Rejected
from hsm_sim.factory import MAX_PARTITIONS, NAME, NAME_RULE, check_home, new_partition
from hsm_sim.lab.lab import Call, Lab
from hsm_sim.logged import logged
from hsm_sim.objects import Object
from hsm_sim.partition import Partition
from hsm_sim.personality import Personality
from hsm_sim.personality import load as load_personality
from hsm_sim.quorum import Quorum
from hsm_sim.roles import Caller, Role, Verb
from hsm_sim.seal import derive, unseal
from hsm_sim.signing import Signing
from hsm_sim.store import Store, partitions, put_setting, settings
from hsm_sim.upkeep import Upkeep
from pkix.errors import Fatal, Malformed

ITSELF = Caller("internal", 0, "")
"""What the device does of its own accord, for the log."""


class Device:
    """See the module. Made by ``open``.

    Attributes:
        home, serial (16 hex digits), personality, cipher ("aes-256-gcm", "sm4-gcm"), hash ("sha256", "sm3").
        identity: its own keys and certificates.  secret: the device secret.
        partitions: name → partition, in slot order.
        audit, signing, quorum, store: its parts.  lab: the laboratory, with ``--lab`` only.
        running: changes under way, which ``close`` waits for.  entering: held while a PIN is checked, one at a time.
    """

    def __init__(self, home: Path, clock: Callable[[], datetime], store: Store, secret: bytes) -> None:
        self.home, self._clock, self.store, self.secret = home, clock, store, secret
        self._settings = store.now(settings)
        about = self._settings["device"]
        self.serial, self.cipher, self.hash = str(about["serial"]), str(about["cipher"]), str(about["hash"])
        self.personality: Personality = load_personality(about["personality"])
        try:
            self.identity = Identity.from_bytes(unseal(derive(secret, b"identity"), self._settings["identity"], self.serial.encode()))
        except Malformed as error:
            raise Fatal(
                f"{home / 'hsm.db'} and {home / 'device.key'} do not belong together ({error}): restore both from one backup"
            ) from error
        self.running: set[asyncio.Task[Any]] = set()
        self.entering = asyncio.Lock()
        self.lab: Lab | None = None
        self.quorum = Quorum(self)
        self.partitions = {row.name: Partition(self, row) for row in store.now(partitions)}

    @classmethod
    async def open(
        cls, home: Path, clock: Callable[[], datetime], *, on_failure: Callable[[Exception], None] = lambda _: None, lab: bool = False
    ) -> Device:
        """The device in ``home``, all partitions locked. ``on_failure`` hears when the audit log cannot be trusted any more.

        Raises NotFound (not initialised), Fatal (damaged, or made by an earlier version), OSError.
        """
        check_home(home)
        try:
            secret = (home / "device.key").read_bytes()
        except FileNotFoundError as error:
            raise Fatal(f"{home / 'device.key'} is missing: restore it from a backup, no key can be opened without it") from error
        files.sweep(home)
        store = Store(home / "hsm.db")
        try:
            device = cls(home, clock, store, secret)
            device._watch(on_failure, lab=lab)
        except BaseException:
            await store.close()
            raise
        return device

    def _watch(self, on_failure: Callable[[Exception], None], *, lab: bool) -> None:
        """Starts the log, and compares with it what the database says."""
        signer = AuditSigner(self.identity.audit.sign, (self.identity.audit_certificate, self.identity.manufacturer_certificate))
        said = logged(self.home)
        self.audit = AuditLog(self.home, self.now, algorithm=self.hash, signer=signer, on_failure=on_failure)
        self.audit.limit, self.audit.acknowledged = self.setting("audit_limit"), self.setting("audit_acknowledged", 0)
        self.signing = Signing(self.audit)
        self._compare(said)
        self.audit.write_soon(Event("counters", ITSELF, more={"counters": {**said, **self.counters()}, "lab": lab}))
        if lab:
            self.lab = Lab(zeroise=self.zeroise, log=self._staged)

    def _compare(self, said: dict[str, int]) -> None:
        """A database that is older than the log, or the other way round, was put back by somebody: destroyed keys may be in it."""
        seen, head = self.setting("audit_seq", 0), self.audit.head.seq
        gone = ", ".join(sorted(said.keys() - self.partitions.keys()))
        for name, partition in self.partitions.items():
            known = partition.logged_counter = said.get(name, 0)
            if partition.counter < known:
                partition.rolled_back = f"hsm.db is older than the audit log: {name} has change {partition.counter}, the log {known}"
            elif gone:
                partition.rolled_back = f"hsm.db is older than the audit log, which knows of {gone}"
            elif seen > head:
                partition.rolled_back = f"the audit log is older than hsm.db: it ends with line {head}, and hsm.db knows of line {seen}"

    async def close(self) -> None:
        """Waits for the changes under way, and writes what is due. Raises OSError, SyncFailed."""
        if self.lab is not None:
            await self.lab.close()
        if self.running:
            await asyncio.wait(self.running)
        try:
            await self.signing.close()
            await self.audit.close()
        finally:
            await self.store.close()

    # --- what everybody may ask

    def now(self) -> datetime:
        """The device's time, UTC."""
        return self._clock() if self.lab is None else self.lab.now(self._clock())

    def partition(self, name: str = "") -> Partition:
        """By name; "" is the first. Raises Rejected(SLOT_ID_INVALID)."""
        found = self.partitions.get(name) if name else next(iter(self.partitions.values()))
        if found is None:
            raise Rejected(Code.SLOT_ID_INVALID, f"there is no partition {name[:40]!r}; there are {', '.join(self.partitions)}")
        return found

    def counters(self) -> dict[str, int]:
        """How often each partition has changed; of one that was rolled back, how often it had before."""
        return {name: max(partition.counter, partition.logged_counter) for name, partition in self.partitions.items()}

    def setting(self, name: str, default: Any = None) -> Any:
        """A durable setting; lists are lists, whatever they were when they were set."""
        return self._settings.get(name, default)

    async def set(self, name: str, value: object) -> None:
        """Sets it, durably; None removes it. Raises Rejected(STORAGE)."""
        await self.store.write(lambda db: put_setting(db, name, value))
        self.forget_setting(name)
        if value is not None:
            self._settings[name] = value

    def forget_setting(self, name: str) -> None:
        """What ``set(name, None)`` does, for who has removed it from the store already."""
        self._settings.pop(name, None)

    # --- partitions

    def check_name(self, name: str, owner: Upkeep | None = None) -> None:
        """Raises Rejected: BAD_REQUEST (no name for a partition), KEY_EXISTS (another one has it)."""
        if not NAME.fullmatch(name):
            raise Rejected(Code.BAD_REQUEST, NAME_RULE)
        if self.partitions.get(name, owner) is not owner:
            raise Rejected(Code.KEY_EXISTS, f"there is a partition {name} already")

    async def create_partition(self, caller: Caller, name: str, so_pin: str) -> Partition:
        """A new, empty partition with a PIN for its SO. The SO of any partition may. Raises Rejected as ``check_name``; DEVICE_MEMORY …"""
        mine = self.partition(caller.partition)
        mine.check(caller, Verb.CREATE_PARTITION)
        self.check_name(name)
        shortest, longest = self.personality.pin
        if not shortest <= len(so_pin) <= longest:
            raise Rejected(Code.PIN_LEN_RANGE, f"a PIN has {shortest} to {longest} characters here")
        return await mine.finish(self._create(caller, name, so_pin))

    async def _create(self, caller: Caller, name: str, so_pin: str) -> Partition:
        async with self.entering:
            self.check_name(name)
            if len(self.partitions) >= MAX_PARTITIONS:
                raise Rejected(Code.DEVICE_MEMORY, f"the device has its {MAX_PARTITIONS} partitions")
            slot = 1 + max(partition.slot for partition in self.partitions.values())
            add = await asyncio.to_thread(new_partition, slot, name, {Role.SO: so_pin}, self.secret, self.cipher)
            row = await self.store.write(add, "create_partition")
            made = self.partitions[name] = Partition(self, row)
        await self.audit.write(Event("create_partition", caller, more={"label": name, "counters": self.counters()}))
        return made

    def rename(self, partition: Upkeep, name: str) -> None:
        """After a partition was initialised under another name; its slot stays."""
        partition.name = name
        self.partitions = {other.name: other for other in self.partitions.values()}

    async def zeroise(self) -> None:
        """Tamper: everything in all partitions is gone."""
        for partition in self.partitions.values():
            await partition.finish(partition.destroy_all(replace(ITSELF, partition=partition.name)))

    # --- the laboratory: nothing happens here without one

    async def before(self, op: str, key: str, caller: Caller) -> None:
        """The personality's latency, and the faults that this call is due. Raises Rejected, SessionLost."""
        if self.lab is not None:
            if op == "sign" and self.personality.latency_ms:
                await asyncio.sleep(self.personality.latency_ms / 1000)
            await self.lab.before(Call(op, key, caller.door, caller.partition))

    def after(self, op: str, key: str, caller: Caller, signature: bytes) -> bytes:
        """The signature as it leaves."""
        return signature if self.lab is None else self.lab.after(Call(op, key, caller.door, caller.partition), signature)

    def substitute(self, op: str, obj: Object, caller: Caller) -> Object:
        """The key that is used in place of the one that was asked for."""
        other = None if self.lab is None else self.lab.substitute(Call(op, obj.label, caller.door, caller.partition))
        return obj if other is None else self.partition(caller.partition).by_label(caller, other)

    async def _staged(self, fault: str, call: Call) -> None:
        caller = Caller(call.door, 0, call.partition)
        await self.audit.write(Event("fault", caller, key=call.key, more={"fault": fault, "on": call.op}))
