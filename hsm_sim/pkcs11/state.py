"""What one connection, an application in the words of PKCS#11, has open: sessions, logins, handles, objects of its own, operations.

    application = Application(device, connection=7, numbers=itertools.count(1))
    session = application.open(slot, flags)
    key = application.object(session, handle)
    application.begin(session, CKF_SIGN, (CKM_ECDSA, None), handle)

No I/O. Handles come from one series for all connections, so that those of another one mean nothing here. Whatever a client can make us
keep is counted against ``MEMORY``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from hsm_sim import cka
from hsm_sim.cka import CKF_DECRYPT, CKF_DIGEST, CKF_ENCRYPT, CKF_SIGN, CKF_UNWRAP, CKF_VERIFY, CKF_WRAP
from hsm_sim.device import Device
from hsm_sim.errors import Code, Rejected
from hsm_sim.mechanisms import Mechanism, check, hasher, mechanism
from hsm_sim.objects import Object, Template
from hsm_sim.partition import Partition
from hsm_sim.pkcs11.rpc import NO_MECHANISM
from hsm_sim.pkcs11.rpc import Mechanism as Asked
from hsm_sim.roles import Caller, Role, Verb
from hsm_sim.templates import matches

MEMORY = 8 << 20
"""Octets that a connection may have kept for it: session objects, parts of a message, results that wait, what a search has found."""
FIND = 0x40
"""CKF_FIND_OBJECTS (v3.0): the search as an operation."""
_OBJECT = 1024  # octets that an object counts for besides its values
_SWEEP = 1024  # handles more than at the last sweep, before those of destroyed objects are looked for
_VERBS = {CKF_SIGN: Verb.SIGN, CKF_VERIFY: Verb.VERIFY, CKF_ENCRYPT: Verb.ENCRYPT, CKF_DECRYPT: Verb.DECRYPT}
_OTHERWISE = {CKF_WRAP: Code.WRAPPING_KEY_TYPE_INCONSISTENT, CKF_UNWRAP: Code.UNWRAPPING_KEY_TYPE_INCONSISTENT}


@dataclass(slots=True, eq=False)
class Operation:
    """One that C_…Init has begun.

    Attributes:
        entry: its mechanism; None for a search.  params: the mechanism's parameter.  obj: its key; None for digests and searches.
        hash: state of the hash that takes the parts; None where the mechanism takes the message as it is.
        parts: the message as far as it has come, for mechanisms that need all of it.
        started: whether parts have come.
        result: what did not fit into the caller's room and waits, with the input it belongs to.
        found: what a search has found and not handed out, last first.
        kept: octets that this is counted for.
    """

    entry: Mechanism | None = None
    params: Any = None
    obj: Object | None = None
    hash: Any = None
    parts: bytearray = field(default_factory=bytearray)
    started: bool = False
    result: tuple[bytes, bytes] | None = None
    found: list[Object] = field(default_factory=list)
    kept: int = 0


@dataclass(slots=True, eq=False)
class Session:
    """One session. ``operations`` by CKF_ of the function; ``objects`` are its own, gone with it."""

    handle: int
    partition: Partition
    caller: Caller
    writable: bool
    operations: dict[int, Operation] = field(default_factory=dict)
    objects: dict[bytes, Object] = field(default_factory=dict)
    open: bool = True


class Application:
    """The state of one connection."""

    def __init__(self, device: Device, connection: int, numbers: Iterator[int]) -> None:
        """``numbers``: where handles come from."""
        self.device = device
        self.initialised = False
        self.sessions: dict[int, Session] = {}
        self.connection, self._numbers = connection, numbers
        self.logging_in = asyncio.Lock()
        self._logins: dict[Partition, tuple[Role, int]] = {}
        self._objects: dict[int, Object] = {}
        self._handles: dict[Object, int] = {}
        self._sweep_at = _SWEEP
        self._kept = 0

    # --- slots and sessions

    @property
    def present(self) -> bool:
        """Whether the device is there; the laboratory can take it away."""
        return self.device.lab is None or bool(self.device.lab.present)

    def slot(self, number: int) -> Partition:
        """Raises Rejected: SLOT_ID_INVALID, TOKEN_NOT_PRESENT."""
        for partition in self.device.partitions.values():
            if partition.slot == number:
                if not self.present:
                    self.close_all()
                    raise Rejected(Code.TOKEN_NOT_PRESENT, "the device is not there")
                return partition
        raise Rejected(Code.SLOT_ID_INVALID, f"there is no slot {number}")

    def open(self, slot: int, flags: int) -> Session:
        """A new session. Raises Rejected: SESSION_PARALLEL_NOT_SUPPORTED, SESSION_COUNT, SESSION_READ_WRITE_SO_EXISTS, and as ``slot``."""
        partition = self.slot(slot)
        if not flags & cka.CKF_SERIAL_SESSION:
            raise Rejected(Code.SESSION_PARALLEL_NOT_SUPPORTED, "sessions are opened with CKF_SERIAL_SESSION")
        if len(self.sessions) >= self.device.personality.sessions:
            raise Rejected(Code.SESSION_COUNT, f"a connection has at most {self.device.personality.sessions} sessions; close some")
        role, epoch = self.login(partition)
        writable = bool(flags & cka.CKF_RW_SESSION)
        if role is Role.SO and not writable:
            raise Rejected(Code.SESSION_READ_WRITE_SO_EXISTS, "while the security officer is logged in, sessions are read-write")
        number = next(self._numbers)
        session = Session(number, partition, Caller("pkcs11", self.connection, partition.name, role, epoch, number), writable)
        self.sessions[number] = session
        return session

    def session(self, handle: int) -> Session:
        """Raises Rejected: SESSION_HANDLE_INVALID, DEVICE_REMOVED."""
        if not self.present:
            self.close_all()
            raise Rejected(Code.DEVICE_REMOVED, "the device is not there")
        session = self.sessions.get(handle)
        if session is None:
            raise Rejected(Code.SESSION_HANDLE_INVALID, "there is no such session on this connection")
        return session

    def close(self, session: Session) -> None:
        """Closes a session, with what it has; the last one of a token logs out."""
        del self.sessions[session.handle]
        session.open = False
        for operation in list(session.operations):
            self.cancel(session, operation)
        for obj in list(session.objects.values()):
            self.drop(session, obj)
        if not any(other.partition is session.partition for other in self.sessions.values()):
            if self.login(session.partition)[0] is not Role.PUBLIC:
                session.partition.logout(session.caller)
            self.set_login(session.partition, Role.PUBLIC, -1)

    def close_all(self, partition: Partition | None = None) -> None:
        """Closes all sessions, or those of one token."""
        for session in [s for s in self.sessions.values() if partition in (None, s.partition)]:
            self.close(session)

    # --- logins, which hold for all sessions of a token

    def login(self, partition: Partition) -> tuple[Role, int]:
        """Role and epoch of the application on this token; PUBLIC once the partition was locked behind our back."""
        role, epoch = self._logins.get(partition, (Role.PUBLIC, -1))
        if role is not Role.PUBLIC and epoch != partition.epoch:
            self.set_login(partition, Role.PUBLIC, -1)
            return Role.PUBLIC, -1
        return role, epoch

    def set_login(self, partition: Partition, role: Role, epoch: int) -> None:
        """Logs all sessions of the token in or, with PUBLIC, out: then their private objects and operations with keys are gone."""
        if role is Role.PUBLIC:
            self._logins.pop(partition, None)
        else:
            self._logins[partition] = role, epoch
        for session in self.sessions.values():
            if session.partition is not partition:
                continue
            session.caller.role, session.caller.epoch = role, epoch
            if role is Role.PUBLIC:
                for obj in [obj for obj in session.objects.values() if obj.private]:
                    self.drop(session, obj)
                for function, operation in list(session.operations.items()):
                    if function == FIND or (operation.obj is not None and operation.obj.private):
                        self.cancel(session, function)
        if role is Role.PUBLIC:
            for obj in [obj for obj in self._handles if obj.private and obj.partition == partition.name]:
                self.forget(obj)

    def ckr(self, error: Rejected) -> int:
        """The number to answer with. To the security officer, who may do nothing with keys, PKCS#11 says that the user is not logged in."""
        so = any(role is Role.SO for role, _ in self._logins.values())
        return (Code.USER_NOT_LOGGED_IN if so and error.code is Code.PERMISSION_DENIED else error.code).ckr

    # --- objects

    def handle(self, obj: Object) -> int:
        """The handle of an object, the same each time."""
        handle = self._handles.get(obj)
        if handle is None:
            if len(self._handles) >= self._sweep_at:
                self._sweep()
            handle = self._handles[obj] = next(self._numbers)
            self._objects[handle] = obj
        return handle

    def object(self, session: Session, handle: int, otherwise: Code = Code.OBJECT_HANDLE_INVALID) -> Object:
        """The object behind a handle, if this session sees it. Raises Rejected with ``otherwise``."""
        obj = self._objects.get(handle)
        if obj is not None and obj.partition == session.partition.name and (obj.token or self._is_ours(obj)):
            try:
                session.partition.alive(session.caller, obj)
                return obj
            except Rejected:
                pass  # it is told as what the call says of a handle without an object
        raise Rejected(otherwise, "there is no such object, or it is private and nobody is logged in")

    def find(self, session: Session, template: Template) -> list[Object]:
        """What the session sees and the template fits: objects of the token, and those of all of our sessions on it."""
        ours = (obj for other in self.sessions.values() if other.partition is session.partition for obj in other.objects.values())
        return session.partition.find(session.caller, template) + [obj for obj in ours if matches(obj, template)]

    def keep(self, session: Session, obj: Object) -> int:
        """The handle of a new object; one that is not the token's lives as long as the session.

        Raises Rejected: DEVICE_MEMORY, SESSION_CLOSED.
        """
        if not obj.token:
            if not session.open:
                raise Rejected(Code.SESSION_CLOSED, "the session was closed meanwhile, and the object is gone with it")
            self.charge(size(obj))
            session.objects[obj.id] = obj
        return self.handle(obj)

    def drop(self, session: Session, obj: Object) -> None:
        """Forgets an object of a session's own, whichever session of the token has it."""
        for owner in (session, *self.sessions.values()):
            if owner.objects.pop(obj.id, None) is not None:
                self.charge(-size(obj))
        self.forget(obj)

    def forget(self, obj: Object) -> None:
        """Its handle means nothing from here on."""
        self._objects.pop(self._handles.pop(obj, 0), None)

    def resized(self, obj: Object, before: int) -> None:
        """Counts a session object anew after a change of its attributes."""
        if not obj.token:
            self._kept += size(obj) - before

    def _sees(self, session: Session, handle: int) -> bool:
        try:
            return self.object(session, handle) is not None
        except Rejected:
            return False

    def _is_ours(self, obj: Object) -> bool:
        return any(obj.id in session.objects for session in self.sessions.values())

    def _sweep(self) -> None:
        """Forgets handles of objects that others have destroyed, so that a long life does not fill the memory."""
        for handle, obj in list(self._objects.items()):
            if not any(self._sees(session, handle) for session in self.sessions.values() if session.partition.name == obj.partition):
                self.forget(obj)
        self._sweep_at = len(self._handles) + _SWEEP

    # --- operations

    def begin(self, session: Session, function: int, asked: Asked, key: int) -> None:
        """Begins an operation with a key, or with the NULL mechanism ends the one that is active (v3.0, 5.1).

        Raises Rejected: OPERATION_ACTIVE, KEY_HANDLE_INVALID, USER_NOT_LOGGED_IN, and as ``mechanisms.check``.
        """
        number, params = asked
        if number == NO_MECHANISM:
            return self.cancel(session, function)
        self.idle(session, function)
        obj = self.object(session, key, Code.KEY_HANDLE_INVALID)
        session.partition.check(session.caller, _VERBS[function])
        entry = self.check(function, asked, obj)
        state = hasher(_DIGESTS[entry.hash]) if entry.hash else None
        session.operations[function] = Operation(entry, params, obj, state)
        return None

    def begin_digest(self, session: Session, asked: Asked) -> None:
        """The same for a digest."""
        number, params = asked
        if number == NO_MECHANISM:
            return self.cancel(session, CKF_DIGEST)
        self.idle(session, CKF_DIGEST)
        entry = self.offered(number, CKF_DIGEST)
        if params is not None:
            raise Rejected(Code.MECHANISM_PARAM_INVALID, "digests have no parameter")
        session.operations[CKF_DIGEST] = Operation(entry, hash=hasher(number))
        return None

    def check(self, function: int, asked: Asked, obj: Object) -> Mechanism:
        """The mechanism, if the key may be used so. Raises Rejected as ``mechanisms.check``."""
        number, params = asked
        self.offered(number, function)
        try:
            return check(function, number, params, obj.attributes)
        except Rejected as error:
            if error.code is Code.KEY_TYPE_INCONSISTENT and function in _OTHERWISE:
                raise Rejected(_OTHERWISE[function], error.text) from error
            raise

    def offered(self, number: int, function: int) -> Mechanism:
        """The mechanism, if this device has it for the function. Raises Rejected: MECHANISM_INVALID."""
        entry = mechanism(number, function)
        if not self.device.personality.allows(entry.name):
            raise Rejected(Code.MECHANISM_INVALID, f"this device does not have {entry.name}")
        return entry

    def idle(self, session: Session, function: int) -> None:
        """Raises Rejected: OPERATION_ACTIVE."""
        if function in session.operations:
            raise Rejected(Code.OPERATION_ACTIVE, "an operation of this sort is active in this session; end it first")

    def operation(self, session: Session, function: int) -> Operation:
        """The active operation. Raises Rejected: OPERATION_NOT_INITIALIZED."""
        operation = session.operations.get(function)
        if operation is None:
            raise Rejected(Code.OPERATION_NOT_INITIALIZED, "no operation of this sort is active in this session; begin with C_…Init")
        return operation

    def cancel(self, session: Session, function: int) -> None:
        """Ends an operation, if it is active."""
        operation = session.operations.pop(function, None)
        if operation is not None and operation.kept:
            self.charge(-operation.kept)
            operation.kept = 0

    def retain(self, operation: Operation, octets: int) -> None:
        """Counts more memory for an operation. Raises Rejected: DEVICE_MEMORY."""
        self.charge(octets)
        operation.kept += octets

    def charge(self, octets: int) -> None:
        """Counts memory that is kept for this connection. Raises Rejected: DEVICE_MEMORY."""
        if octets > 0 and self._kept + octets > MEMORY:
            raise Rejected(Code.DEVICE_MEMORY, f"a connection is given {MEMORY} octets of memory, and they are used")
        self._kept += octets


_DIGESTS = {"sha1": cka.CKM_SHA_1, "sha256": cka.CKM_SHA256, "sha384": cka.CKM_SHA384, "sha512": cka.CKM_SHA512}


def size(obj: Object) -> int:
    """Octets that an object counts for."""
    values = sum(len(value) for value in obj.attributes.values() if isinstance(value, bytes))
    return _OBJECT + values + len(obj.value or b"")
