"""Who may do what: one table.

    caller = Caller("native", connection=7, partition="ironroot")
    permit(caller, Verb.SIGN)        # Rejected(USER_NOT_LOGGED_IN): nobody has logged in on this connection yet

The roles are those of network HSMs; PKCS#11 knows two of them (CKU_SO is SO, CKU_USER is OFFICER), the others have vendor numbers. SO,
officer and user belong to a partition, the auditor to the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from hsm_sim.errors import Code, Rejected


class Role(StrEnum):
    """What a connection has logged in as."""

    PUBLIC = "public"
    SO = "so"
    OFFICER = "officer"
    USER = "user"
    AUDITOR = "auditor"


CKU: Mapping[int, Role] = MappingProxyType({0: Role.SO, 1: Role.OFFICER, 0x80000001: Role.USER, 0x80000002: Role.AUDITOR})
"""PKCS#11 user types (v3.0, 3.4; the last two are ours, in the vendor range)."""


class Verb(StrEnum):
    """What can be asked of the HSM. ``LOOK`` is at objects that are open to the caller (private ones: officer and user)."""

    STATUS = "status"
    RANDOM = "random"
    DIGEST = "digest"
    LOOK = "look"
    VERIFY = "verify"
    ENCRYPT = "encrypt"
    CREATE_SESSION_OBJECT = "create_session_object"
    SET_OWN_PIN = "set_own_pin"
    LOCK = "lock"
    SIGN = "sign"
    DECRYPT = "decrypt"
    LIST_KEYS = "list_keys"
    ATTEST = "attest"
    GENERATE = "generate"
    CREATE = "create"
    COPY = "copy"
    SET_ATTRIBUTES = "set_attributes"
    DESTROY = "destroy"
    WRAP = "wrap"
    UNWRAP = "unwrap"
    DERIVE = "derive"
    INIT_PARTITION = "init_partition"
    CREATE_PARTITION = "create_partition"
    SET_PIN = "set_pin"
    SET_TRUSTED = "set_trusted"
    APPROVERS = "approvers"
    BACKUP = "backup"
    RESTORE = "restore"
    SHARES = "shares"
    ACCEPT_DAMAGE = "accept_damage"
    ZEROISE = "zeroise"
    LAB = "lab"
    AUDIT_HEAD = "audit_head"
    AUDIT_READ = "audit_read"
    AUDIT_ACK = "audit_ack"
    FORCE_AUDIT = "force_audit"


_ALL = frozenset(Role)
_LOGGED_IN = _ALL - {Role.PUBLIC}
_OFFICER, _SO, _AUDITOR = frozenset((Role.OFFICER,)), frozenset((Role.SO,)), frozenset((Role.AUDITOR,))
_KEYS = frozenset((Role.OFFICER, Role.USER))

PERMISSIONS: Mapping[Verb, frozenset[Role]] = MappingProxyType(
    dict.fromkeys((Verb.STATUS, Verb.RANDOM, Verb.DIGEST, Verb.LOOK, Verb.VERIFY, Verb.ENCRYPT, Verb.CREATE_SESSION_OBJECT), _ALL)
    | dict.fromkeys((Verb.SET_OWN_PIN, Verb.INIT_PARTITION), _ALL)
    | dict.fromkeys((Verb.AUDIT_HEAD, Verb.LAB), _LOGGED_IN)
    | dict.fromkeys((Verb.SIGN, Verb.DECRYPT, Verb.LIST_KEYS, Verb.ATTEST), _KEYS)
    | dict.fromkeys((Verb.GENERATE, Verb.CREATE, Verb.COPY, Verb.SET_ATTRIBUTES, Verb.DESTROY), _OFFICER)
    | dict.fromkeys((Verb.WRAP, Verb.UNWRAP, Verb.DERIVE), _OFFICER)
    | dict.fromkeys((Verb.CREATE_PARTITION, Verb.SET_PIN, Verb.SET_TRUSTED, Verb.APPROVERS, Verb.ACCEPT_DAMAGE, Verb.ZEROISE), _SO)
    | dict.fromkeys((Verb.BACKUP, Verb.RESTORE, Verb.SHARES), _SO)
    | dict.fromkeys((Verb.AUDIT_READ, Verb.AUDIT_ACK, Verb.FORCE_AUDIT), _AUDITOR)
    | {Verb.LOCK: _SO | _OFFICER}
)
"""Which roles may what. Open to all are VERIFY and ENCRYPT, for the objects that the caller can see (a public key needs no login), and
SET_OWN_PIN and INIT_PARTITION, where the PIN that comes with them decides (PKCS#11 has no login before C_InitToken)."""


@dataclass(slots=True, eq=False, weakref_slot=True)
class Caller:
    """Who asks: a connection, and what it has logged in as. The door makes one per connection and hands it to every call.

    Attributes:
        door: "native", "pkcs11" or "internal".
        connection: number of the connection, for the log.
        partition: name of the partition that it talks to.
        role: PUBLIC until ``Partition.login``.
        epoch: the partition's epoch at login; an older one means that the partition was locked since, so the login is over.
        session: PKCS#11 session number, for the log; 0 elsewhere.
    """

    door: str
    connection: int
    partition: str
    role: Role = Role.PUBLIC
    epoch: int = -1
    session: int = 0


def permit(caller: Caller, verb: Verb) -> None:
    """Returns if the caller's role may do this. Raises Rejected: USER_NOT_LOGGED_IN, PERMISSION_DENIED."""
    allowed = PERMISSIONS[verb]
    if caller.role in allowed:
        return
    others = " or ".join(sorted(role.value for role in allowed))
    if caller.role is Role.PUBLIC:
        raise Rejected(Code.USER_NOT_LOGGED_IN, f"log in with the PIN first: {verb.value} is for {others}")
    raise Rejected(Code.PERMISSION_DENIED, f"{verb.value} is for {others}, and this connection has logged in as {caller.role.value}")
