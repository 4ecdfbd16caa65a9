"""Who gets into a partition: PINs, logins, states.

    LOCKED ── login ──> OPERATIONAL ── lock ──> LOCKED;   zeroise ──> TAMPERED ── init_partition ──> LOCKED

Every start begins locked; the first right PIN of SO, officer or user opens the partition's KEK, and every connection has to give a PIN for
itself. A try is counted durably before the PIN is looked at, and settled before it is answered. Ten wrong ones in a row lock the PIN of
that role until the SO sets a new one (of the SO: for good). A try that a crash left unsettled does not lock, since it may have been the
owner's: two are free, with more the next start takes no PIN for 2 s, 4 s, 8 s … up to 5 minutes, so pulling the plug buys one guess in
that time.
"""

from __future__ import annotations

import asyncio
import hmac
import itertools
import secrets
import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from hsm_sim.audit import Event
from hsm_sim.errors import Code, Rejected
from hsm_sim.roles import Caller, Role, Verb, permit
from hsm_sim.seal import Ring, pin_key, seal, unseal
from hsm_sim.store import PartitionRow, RoleRow, put_role, role
from pkix.errors import Malformed

if TYPE_CHECKING:
    from hsm_sim.device import Device

T = TypeVar("T")
TRIES = 10
FREE_CUTS = 2  # tries that were cut off and cost nothing; each one more doubles the wait after a start, from 2 s
LONGEST_WAIT = 300.0  # seconds
_EPOCHS = itertools.count()
ROLES = (Role.SO, Role.OFFICER, Role.USER, Role.AUDITOR)
_REFUSALS = frozenset((Code.PERMISSION_DENIED, Code.KEY_FUNCTION_NOT_PERMITTED, Code.ACTION_PROHIBITED, Code.KEY_UNEXTRACTABLE))
"""What is written to the log when it is refused: somebody wants more than he may."""


class Access:
    """The doors of one partition; ``Vault`` and ``Partition`` build on it.

    Attributes:
        device: what it is part of.
        name: its name, and the token label.  slot: its PKCS#11 slot number.  serial: 16 hex digits.
        epoch: another number after each locking, so that a login is good until the next one; no two partitions ever have the same, so
            that it is good for none that comes under this one's name later.
        locked_on_request: the last lock was asked for, and neither officer nor user have logged in since (every start begins locked, too).
        rolled_back: why the database is not the latest one; "" if it is.
        counter: how often it has changed.  logged_counter: the same as the audit log had it at the start.
    """

    def __init__(self, device: Device, row: PartitionRow) -> None:
        self.device = device
        self.slot, self._id, self.name, self.serial = row.slot, row.id, row.name, row.serial
        self.epoch = next(_EPOCHS)
        self.locked_on_request = False
        self.rolled_back = ""
        self._zeroised = not row.marks
        self._ring: Ring | None = None
        self._known: dict[Role, bytes] = {}
        self._boot_key = secrets.token_bytes(32)
        self.counter, self.logged_counter = row.counter, 0
        self._changing = asyncio.Lock()
        self._roles: dict[Role, RoleRow] = {}
        self._opens_at: dict[Role, float] = {}
        for name in ROLES:
            found = device.store.now(lambda db, name=name: role(db, self._place(name), name))  # type: ignore[misc]
            if found is not None:
                self._roles[name] = found
                if found.cut > FREE_CUTS:
                    self._opens_at[name] = time.monotonic() + min(2.0 ** min(found.cut - FREE_CUTS, 20), LONGEST_WAIT)

    def _place(self, name: Role) -> bytes:
        """Where a role's row is: the auditor is the device's."""
        return b"" if name is Role.AUDITOR else self._id

    # --- what anybody may ask

    @property
    def state(self) -> str:
        """ "locked", "operational" or "tampered"."""
        return "tampered" if self._zeroised else "locked" if self._ring is None else "operational"

    def tries_left(self, name: Role = Role.OFFICER) -> int:
        """How many wrong PINs of this role are left before it locks; 0 if it has none."""
        row = self._roles.get(name)
        return 0 if row is None else max(0, TRIES - row.wrong)

    def has_pin(self, name: Role) -> bool:
        """Whether anybody can log in as this."""
        return name in self._roles

    def check(self, caller: Caller, verb: Verb) -> None:
        """Returns if the caller may do this, here and now. A login that the partition's lock has ended is forgotten.

        Raises Rejected: LOCKED, USER_NOT_LOGGED_IN, PERMISSION_DENIED, TAMPERED.
        """
        if caller.epoch != self.epoch and caller.role is not Role.PUBLIC:
            caller.role = Role.PUBLIC
        try:
            permit(caller, verb)
        except Rejected as error:
            if self._zeroised:
                raise _zeroised(self.name) from None
            if self._ring is None and caller.role is Role.PUBLIC:
                raise Rejected(Code.LOCKED, "the HSM is locked: log in with its PIN") from None
            self._note(verb, caller, "", error)
            raise

    def _note(self, verb: Verb, caller: Caller, key: str, error: Rejected) -> None:
        """Has a refusal written down if it says that somebody wanted more than he may."""
        if error.code in _REFUSALS:
            self.device.audit.write_soon(Event(verb.value, caller, key=key, result=error.code.value))

    # --- logging in and out

    async def login(self, caller: Caller, name: Role, pin: str) -> None:
        """Makes the caller's role ``name``, if the PIN is right.

        Raises Rejected: PIN_INCORRECT, PIN_LOCKED (after ten wrong ones in a row, or for a while after cut-off ones),
        USER_PIN_NOT_INITIALIZED, USER_TYPE_INVALID, TAMPERED, STORAGE (the try cannot be counted).
        """
        await self.device.before("login", "", caller)
        if self.rolled_back and name in (Role.OFFICER, Role.USER):
            raise Rejected(Code.TAMPERED, f"{self.rolled_back}; the security officer decides")
        try:
            await self.finish(self._enter(name, pin))
        except Rejected as error:
            self.device.audit.write_soon(Event("login", caller, result=error.code.value, more={"as": name.value}))
            raise
        caller.partition, caller.role, caller.epoch = self.name, name, self.epoch
        self.device.audit.write_soon(Event("login", caller, more={"as": name.value}))

    async def _enter(self, name: Role, pin: str) -> None:
        async with self.device.entering:
            secret = await self._checked(name, pin)
            if name is not Role.AUDITOR and self._ring is None:
                await self._open(Ring(secret, self.device.cipher))
            if name in (Role.OFFICER, Role.USER):
                self.locked_on_request = False

    def logout(self, caller: Caller) -> None:
        """The caller is nobody again. Raises Rejected(USER_NOT_LOGGED_IN)."""
        if caller.role is Role.PUBLIC or caller.epoch != self.epoch:
            caller.role = Role.PUBLIC
            raise Rejected(Code.USER_NOT_LOGGED_IN, "nobody is logged in on this connection")
        self.device.audit.write_soon(Event("logout", caller))
        caller.role = Role.PUBLIC

    async def lock(self, caller: Caller) -> None:
        """Closes the partition: all logins end, nothing that a PIN opened is kept."""
        self.check(caller, Verb.LOCK)
        await self.device.audit.write(Event("lock", caller))
        self.locked_on_request = True
        self._close()

    def _close(self) -> None:
        self._ring, self._known = None, {}
        self.epoch = next(_EPOCHS)

    async def _open(self, ring: Ring) -> None:
        """What the first login does; ``Vault`` loads the objects."""
        self._ring = ring

    # --- PINs

    async def set_pin(self, caller: Caller, name: Role, new: str, old: str | None = None) -> None:
        """With ``old``: for whoever knows it. Without: the SO sets, resets or unlocks officer and user (the first slot's the auditor too).

        Raises Rejected as ``login``, PIN_LEN_RANGE, PERMISSION_DENIED.
        """
        self._long_enough(new)
        await self.device.before("set_pin", "", caller)
        if old is None:
            self.check(caller, Verb.SET_PIN)
            if name not in (Role.OFFICER, Role.USER) and not (name is Role.AUDITOR and self.slot == 0):
                raise Rejected(Code.PERMISSION_DENIED, f"the PIN of {name.value} cannot be set from here without the old one")
        else:
            self.check(caller, Verb.SET_OWN_PIN)
        try:
            await self.finish(self._renew(name, new, old))
        except Rejected as error:
            self.device.audit.write_soon(Event("set_pin", caller, result=error.code.value, more={"of": name.value}))
            raise
        await self.device.audit.write(Event("set_pin", caller, more={"of": name.value}))

    async def _renew(self, name: Role, new: str, old: str | None) -> None:
        async with self.device.entering:
            if old is not None:
                secret = await self._checked(name, old)
            elif name is Role.AUDITOR:
                secret = secrets.token_bytes(32)
            else:
                secret = self._opened().kek
            await self._keep(await self._wrapped(name, new, secret))
            self._known.pop(name, None)

    def _long_enough(self, pin: str) -> None:
        shortest, longest = self.device.personality.pin
        if not shortest <= len(pin) <= longest:
            raise Rejected(Code.PIN_LEN_RANGE, f"a PIN has {shortest} to {longest} characters here")

    def _opened(self) -> Ring:
        """Raises Rejected(LOCKED): it was locked after the caller was checked."""
        if self._ring is None:
            raise Rejected(Code.LOCKED, "the HSM was locked meanwhile: log in with its PIN")
        return self._ring

    async def _wrapped(self, name: Role, pin: str, secret: bytes) -> RoleRow:
        return await asyncio.to_thread(wrapped, name, pin, secret, self.device.secret, self._place(name))

    async def _checked(self, name: Role, pin: str) -> bytes:
        """What the PIN opens: the KEK, or the auditor's nothing. Counts, then checks, then settles; the caller holds ``_login``.

        A power cut in between is found at the next start, which makes the next try wait.
        """
        row = self._roles.get(name)
        if row is None:
            if self._zeroised and name is not Role.AUDITOR:
                raise _zeroised(self.name)
            if name not in ROLES:
                raise Rejected(Code.USER_TYPE_INVALID, f"nobody logs in as {name.value}")
            raise Rejected(Code.USER_PIN_NOT_INITIALIZED, f"{name.value} has no PIN yet: the security officer sets it")
        if (wait := self._opens_at.get(name, 0) - time.monotonic()) > 0:
            raise Rejected(Code.PIN_LOCKED, f"tries were cut off before they were answered, so no PIN is taken for another {wait:.0f} s")
        if row.wrong >= TRIES:
            raise Rejected(
                Code.PIN_LOCKED, f"the PIN of {name.value} is locked after {TRIES} wrong ones: the security officer sets a new one"
            )
        await self._keep(row._replace(cut=row.cut + 1))
        secret = await self._opened_by(name, row, pin)
        if secret is None:
            await self._keep(row._replace(wrong=row.wrong + 1))
            raise Rejected(Code.PIN_INCORRECT, f"the PIN is wrong; {TRIES - row.wrong - 1} tries are left")
        await self._keep(row._replace(wrong=0, cut=0))
        return secret

    async def _opened_by(self, name: Role, row: RoleRow, pin: str) -> bytes | None:
        """The secret, or None if the PIN is wrong. One that was right since the last lock is known by its fingerprint and costs no KDF."""
        fingerprint = hmac.digest(self._boot_key, pin.encode(), "sha256")
        known = self._known.get(name)
        if known is not None and self._ring is not None and name is not Role.AUDITOR:
            return self._ring.kek if hmac.compare_digest(fingerprint, known) else None
        try:
            secret = await asyncio.to_thread(unwrapped, row, pin, self.device.secret, self._place(name))
        except Malformed:
            return None
        self._known[name] = fingerprint
        return secret

    async def _keep(self, row: RoleRow) -> None:
        """Makes a role's row durable. Raises Rejected(STORAGE)."""
        name = Role(row.role)
        await self.device.store.write(lambda db: put_role(db, self._place(name), row), "pin")
        self._roles[name] = row
        if name is Role.AUDITOR:
            for other in self.device.partitions.values():
                other._roles[name] = row

    async def finish(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs it to its end even if nobody waits for it any more, so that memory and disk say the same."""
        task = asyncio.ensure_future(work)
        self.device.running.add(task)
        task.add_done_callback(self.device.running.discard)
        return await asyncio.shield(task)


def wrapped(name: Role, pin: str, secret: bytes, device_secret: bytes, place: bytes) -> RoleRow:
    """A role's row for a new PIN, with no tries counted. 0.15 s."""
    salt = secrets.token_bytes(16)
    return RoleRow(name.value, salt, seal(pin_key(pin, salt, device_secret), secret, b"pin" + place + name.value.encode()), 0, 0)


def unwrapped(row: RoleRow, pin: str, device_secret: bytes, place: bytes) -> bytes:
    """The secret that the PIN opens. 0.15 s. Raises Malformed: another PIN, or device secret."""
    return unseal(pin_key(pin, row.salt, device_secret), row.wrapped, b"pin" + place + row.role.encode())


def _zeroised(name: str) -> Rejected:
    return Rejected(Code.TAMPERED, f"the partition {name} was zeroised: initialise it, and restore its keys from a backup")
