"""One call of SDF inside the device: who asks, with which arguments; what his connection holds; the way to a key.

Rights that a password gave, and session keys, belong to one login of one connection, are kept in memory, and end with it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from hsm_sim import cka
from hsm_sim.errors import Code, Rejected
from hsm_sim.keys import Key
from hsm_sim.roles import Caller, Verb
from hsm_sim.wire import Request
from pkix import sm2
from pkix.algorithms import SM2_FRAME, load_public_key
from pkix.errors import IronrootError

if TYPE_CHECKING:
    from hsm_sim.device import Device
    from hsm_sim.objects import Object
    from hsm_sim.partition import Partition

CKM_SDF = 0xC9520018
"""The only mechanism that keys of an index, and KEKs, allow. It is in no table: what it does is in this package."""
MAX_INDEX = 4096
MAX_KEYS = 256  # session keys of one connection


@dataclass
class Session:
    """What one login of one connection holds: the indices whose password it gave, and its session keys by handle."""

    epoch: int
    rights: set[int] = field(default_factory=set)
    keys: dict[int, bytes] = field(default_factory=dict, repr=False)
    last: int = 0

    def keep(self, key: bytes) -> int:
        """A handle for a session key. Raises Rejected(DEVICE_MEMORY)."""
        if len(self.keys) >= MAX_KEYS:
            raise Rejected(Code.DEVICE_MEMORY, f"a session has at most {MAX_KEYS} keys; destroy some")
        self.last += 1
        self.keys[self.last] = key
        return self.last


_SESSIONS: WeakKeyDictionary[Caller, Session] = WeakKeyDictionary()  # gone with the connection, whose caller nobody else keeps
_COUNTING: WeakKeyDictionary[Device, asyncio.Lock] = WeakKeyDictionary()


@dataclass
class Call:
    """One call, permitted for its verb."""

    device: Device
    caller: Caller
    request: Request

    @property
    def partition(self) -> Partition:
        return self.device.partition(self.caller.partition)

    @property
    def counting(self) -> asyncio.Lock:
        """Held while a password is counted and checked."""
        return _COUNTING.setdefault(self.device, asyncio.Lock())

    @property
    def session(self) -> Session:
        """Of this connection since its last login."""
        if self.caller not in _SESSIONS or _SESSIONS[self.caller].epoch != self.caller.epoch:
            _SESSIONS[self.caller] = Session(self.caller.epoch)
        return _SESSIONS[self.caller]

    @cached_property
    def index(self) -> int:
        """The argument ``index``. Raises Rejected(BAD_REQUEST)."""
        return self.request.number("index", 1, MAX_INDEX)

    def key(self, label: str, cls: int = cka.CKO_PRIVATE_KEY) -> tuple[Object, Key]:
        """Object and material. Raises Rejected: KEY_NOT_FOUND, KEY_DAMAGED."""
        obj = self.partition.by_label(self.caller, label, cls)
        if obj.key is None:
            raise Rejected(Code.KEY_NOT_FOUND, f"there is no key {label}")
        return obj, obj.key

    async def private(self, use: str) -> tuple[Object, Key]:
        """The private key of the index for ``use`` ("sign" or "enc"), whose password this connection gave.

        Raises Rejected: USER_NOT_LOGGED_IN (it did not), KEY_NOT_FOUND, KEY_FUNCTION_NOT_PERMITTED, and as ``take``.
        """
        found = self.key(f"sdf.{self.index}.{use}")
        if found[0].attributes.get(cka.CKA_SIGN if use == "sign" else cka.CKA_DECRYPT) is not True:
            raise Rejected(Code.KEY_FUNCTION_NOT_PERMITTED, f"the attributes of {found[0].label} do not permit this")
        if self.index not in self.session.rights:
            raise Rejected(Code.USER_NOT_LOGGED_IN, f"get the access right to key index {self.index} with its password first")
        await self.take(found[0], "sign" if use == "sign" else "decrypt")
        return found

    async def take(self, obj: Object, op: str) -> None:
        """One use of a key of ours, within its limits. A key of another make that was only given our label is none.

        Raises Rejected: MECHANISM_INVALID, and as ``Partition.in_force`` and ``Partition.reserve``.
        """
        if obj.attributes.get(cka.CKA_ALLOWED_MECHANISMS) != (CKM_SDF,):
            raise Rejected(Code.MECHANISM_INVALID, f"{obj.label} was not made for SDF")
        self.partition.in_force(obj)
        await self.device.before(op, obj.label, self.caller)
        await self.partition.reserve(obj)

    def public(self) -> sm2.Key:
        """The key of the argument ``point``, 04 ‖ X ‖ Y. Raises Rejected: BAD_REQUEST, DATA_INVALID."""
        try:
            handle: sm2.Key = load_public_key(SM2_FRAME + self.request.octets("point", 65, 65)).handle
        except IronrootError as error:
            raise Rejected(Code.DATA_INVALID, str(error)) from error
        return handle

    def session_key(self) -> bytes:
        """The session key of the argument ``handle``. Raises Rejected(KEY_HANDLE_INVALID)."""
        handle = self.request.number("handle", 1, 1 << 62)
        if handle not in self.session.keys:
            raise Rejected(Code.KEY_HANDLE_INVALID, "there is no session key of this handle")
        return self.session.keys[handle]


def permitted(device: Device, caller: Caller, request: Request, verb: Verb) -> Call:
    """Raises Rejected as ``Partition.check``."""
    device.partition(caller.partition).check(caller, verb)
    return Call(device, caller, request)


def point(key: Key) -> bytes:
    """04 ‖ X ‖ Y of an SM2 key."""
    return key.spki[-65:]
