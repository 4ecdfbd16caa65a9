"""M-of-N approvals for what one person alone must not do: export under wrap, destroy, key recovery, backup.

    request = await quorum.challenge(caller, "destroy", obj)          # canonical CBOR, good for ten minutes and one use
    approval = approve(load_private_key(pem), request)                # each approver, offline; read_request(request) says what it is
    await quorum.spend(caller, "destroy", obj, {}, [approval, …])     # the partition's part; returns who approved

A request is known to the device by its digest until it is used or expires. Using it means deleting that row, durably and before the
operation begins: whatever crashes afterwards, the approvals are spent. Formats: docs/hsm-trust.md.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import cbor2

from hsm_sim.audit import Event
from hsm_sim.errors import Code, Rejected
from hsm_sim.roles import Caller, Verb
from hsm_sim.wire import decode
from pkix.algorithms import KeyKind, load_public_key
from pkix.errors import BadSignature, IronrootError, Malformed
from pkix.privatekey import PrivateKey

if TYPE_CHECKING:
    from hsm_sim.device import Device
    from hsm_sim.objects import Object

LIFETIME = timedelta(minutes=10)
MAX_OPEN = 64  # requests of one device that are neither used nor expired
MAX_APPROVERS = 32
OPERATIONS: Mapping[str, Verb] = {"export": Verb.WRAP, "destroy": Verb.DESTROY, "recover": Verb.UNWRAP, "backup": Verb.BACKUP}
"""What can be marked, and who may ask for approvals of it: whoever may do it."""

_DOMAIN = b"ironroot hsm approval 1\0"
_KINDS = frozenset((KeyKind.P_256, KeyKind.ED25519, KeyKind.SM2))
_MAX_REQUEST, _MAX_APPROVAL = 2048, 4096


# --- the formats ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ApprovalRequest:
    """What an approver signs, and should read before.

    Attributes:
        device, partition: serial number and name.
        op: one of ``OPERATIONS``.
        object, label: id (16 octets; empty for a whole partition) and label of what it is done to.
        parameters: SHA-256 over the operation's parameters, canonical CBOR.
        about: the same parameters in words, made by the device.
        requester: who asks, as he named himself; may be empty.
        nonce: 16 octets.
        expires: UTC, ISO 8601 with seconds.
    """

    device: str
    partition: str
    op: str
    object: bytes
    label: str
    parameters: bytes
    about: str
    requester: str
    nonce: bytes
    expires: str

    def to_bytes(self) -> bytes:
        """Canonical CBOR (RFC 8949 4.2.1) of a map with these members and ``v``, 1."""
        return cbor2.dumps({"v": 1, **asdict(self)}, canonical=True)


def read_request(octets: bytes) -> ApprovalRequest:
    """Raises Malformed: not a request, or not in canonical form."""
    members = _members(octets, _MAX_REQUEST, ApprovalRequest.__annotations__, "an approval request")
    request = ApprovalRequest(**members)
    if request.to_bytes() != octets:
        raise Malformed("an approval request that is not in canonical form; ask for a new one")
    return request


def approve(key: PrivateKey, request: bytes) -> bytes:
    """An approver's signature over ``request``, together with it. Offline. Raises Malformed: no request, or a key of another kind."""
    read_request(request)
    if key.kind not in _KINDS:
        raise Malformed(f"approvers sign with keys of kind {', '.join(sorted(_KINDS))}, not {key.kind}")
    signature = key.sign(_DOMAIN + request)
    return cbor2.dumps({"v": 1, "request": request, "key": key.public_key.sha256, "signature": signature}, canonical=True)


def read_approval(octets: bytes) -> tuple[bytes, bytes, bytes]:
    """(request, SHA-256 of the approver's SubjectPublicKeyInfo, signature). Raises Malformed."""
    members = _members(octets, _MAX_APPROVAL, {"request": "bytes", "key": "bytes", "signature": "bytes"}, "an approval")
    return members["request"], members["key"], members["signature"]


def _members(octets: bytes, longest: int, expected: Mapping[str, str], what: str) -> dict[str, Any]:
    found = decode(octets) if len(octets) <= longest else {}
    if found.keys() != {"v", *expected} or found.pop("v") != 1:
        raise Malformed(f"this is not {what} of version 1")
    if any(type(found[name]).__name__ != kind for name, kind in expected.items()):
        raise Malformed(f"this is not {what}: a member has the wrong type")
    return found


# --- the device's side ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Policy:
    """A partition's, set by its SO.

    Attributes:
        needed: how many approvals (M).
        operations: those that need them for every object, beside what single objects are marked with.
        others: whoever asks (``requester``) does not count as an approver; a requester has to be named then.
    """

    needed: int = 2
    operations: frozenset[str] = frozenset()
    others: bool = True


class Quorum:
    """Approvers, policies and open requests of a device."""

    def __init__(self, device: Device) -> None:
        self._device = device

    # approvers and policy: the SO's

    async def add(self, caller: Caller, name: str, spki: bytes) -> None:
        """Registers an approver of the caller's partition. Raises Rejected: BAD_REQUEST, KEY_EXISTS (name or key), PERMISSION_DENIED …"""
        self._check(caller, Verb.APPROVERS)
        try:
            key = load_public_key(spki)
        except IronrootError as error:
            raise Rejected(Code.BAD_REQUEST, f"the approver's key cannot be used: {error}") from error
        if key.kind not in _KINDS:
            raise Rejected(Code.BAD_REQUEST, f"approvers have keys of kind {', '.join(sorted(_KINDS))}, not {key.kind}")
        if not 0 < len(name) <= 64 or not name.isprintable():
            raise Rejected(Code.BAD_REQUEST, "an approver's name has 1 to 64 printable characters")
        present = await self.approvers(caller)
        if any(approver["name"] == name or approver["public_key"] == key.spki for approver in present):
            raise Rejected(Code.KEY_EXISTS, "there is an approver of this name, or with this key, already; remove that one first")
        if len(present) >= MAX_APPROVERS:
            raise Rejected(Code.DEVICE_MEMORY, f"a partition has at most {MAX_APPROVERS} approvers")
        row = (self._place(caller.partition), name, key.spki, self._stamp())
        await self._device.store.write(lambda db: db.execute("INSERT INTO approvers VALUES (?, ?, ?, ?)", row))
        await self._audit(caller, "approver_add", name=name, key=key.sha256.hex())

    async def remove(self, caller: Caller, name: str) -> None:
        """His approvals count no more, also those that he gave. Raises Rejected(KEY_NOT_FOUND)."""
        self._check(caller, Verb.APPROVERS)
        if all(approver["name"] != name for approver in await self.approvers(caller)):
            raise Rejected(Code.KEY_NOT_FOUND, f"there is no approver {name[:64]!r}")
        row = (self._place(caller.partition), name)
        await self._device.store.write(lambda db: db.execute("DELETE FROM approvers WHERE partition = ? AND name = ?", row))
        await self._audit(caller, "approver_remove", name=name)

    async def approvers(self, caller: Caller) -> list[dict[str, Any]]:
        """``[{name, public_key, added}]`` of the caller's partition."""
        rows = await self._device.store.read(
            lambda db: db.execute(
                "SELECT name, spki, added FROM approvers WHERE partition = ? ORDER BY name", (self._place(caller.partition),)
            ).fetchall()
        )
        return [{"name": name, "public_key": spki, "added": added} for name, spki, added in rows]

    def policy(self, partition: str) -> Policy:
        needed, operations, others = self._device.setting(f"quorum {self._place(partition)}") or (2, (), True)
        return Policy(needed, frozenset(operations), others)

    async def set_policy(self, caller: Caller, policy: Policy) -> None:
        """Raises Rejected: BAD_REQUEST, QUORUM_MISSING (fewer approvers than it needs: nobody could do anything), PERMISSION_DENIED."""
        self._check(caller, Verb.APPROVERS)
        if not 1 <= policy.needed <= MAX_APPROVERS or not policy.operations <= OPERATIONS.keys():
            raise Rejected(Code.BAD_REQUEST, f"a policy has 1 to {MAX_APPROVERS} approvals for some of {', '.join(OPERATIONS)}")
        present = len(await self.approvers(caller))
        if policy.operations and present < policy.needed:
            raise Rejected(Code.QUORUM_MISSING, f"{policy.needed} approvals of {present} approvers: register the approvers first")
        value = (policy.needed, tuple(sorted(policy.operations)), policy.others)
        await self._device.set(f"quorum {self._place(caller.partition)}", value)
        await self._audit(caller, "quorum_policy", needed=policy.needed, operations=sorted(policy.operations), others=policy.others)

    # requests and their use

    def needed(self, partition: str, op: str, obj: Object | None) -> int:
        """How many approvals ``op`` on ``obj`` (None: the whole partition) takes; 0 for none."""
        policy = self.policy(partition)
        return policy.needed if op in policy.operations or (obj is not None and op in obj.quorum) else 0

    async def challenge(
        self, caller: Caller, op: str, obj: Object | None, parameters: Mapping[str, Any], *, about: str = "", requester: str = ""
    ) -> bytes:
        """A request for approvals, known to the device from now on. Raises Rejected: BAD_REQUEST, DEVICE_MEMORY (too many are open)."""
        if op not in OPERATIONS:
            raise Rejected(Code.BAD_REQUEST, f"there are no approvals for {op[:40]!r}, but for {', '.join(OPERATIONS)}")
        self._check(caller, OPERATIONS[op])
        if len(requester) > 64 or len(about) > 500:
            raise Rejected(Code.BAD_REQUEST, "a requester's name has at most 64 characters")
        now = self._device.now()
        request = ApprovalRequest(
            self._device.serial,
            caller.partition,
            op,
            b"" if obj is None else obj.id,
            "" if obj is None else obj.label,
            _digest(parameters),
            about,
            requester,
            secrets.token_bytes(16),
            _seconds(now + LIFETIME),
        )
        octets = request.to_bytes()
        known = await self._device.store.write(lambda db: _open(db, octets, request.expires, _seconds(now)))
        if not known:
            raise Rejected(Code.DEVICE_MEMORY, f"{MAX_OPEN} requests are waiting for approvals; use them or let them expire")
        await self._audit(caller, "quorum_challenge", request.label, request=sha256(octets).hexdigest(), for_op=op, requester=requester)
        return octets

    async def spend(
        self, caller: Caller, op: str, obj: Object | None, parameters: Mapping[str, Any], approvals: Sequence[bytes], *, at_least: int = 0
    ) -> tuple[str, ...]:
        """Who approved, if enough did; from here on their request is used, whatever happens. () if ``op`` needs no approvals.

        ``at_least``: approvals that it takes even if neither policy nor object ask for them.
        Raises Rejected(QUORUM_MISSING) saying what is missing; the request stays open then.
        """
        needed = max(at_least, self.needed(caller.partition, op, obj))
        if needed == 0:
            return ()
        label = "" if obj is None else obj.label
        try:
            request, names = await self._counted(caller, op, obj, parameters, approvals)
            if len(names) < needed:
                raise Rejected(
                    Code.QUORUM_MISSING, f"{op} of {label or 'the partition'} takes {needed} approvals, and has {len(names)} that count"
                )
            gone = await self._device.store.write(lambda db: _use(db, request))
            if not gone:
                raise Rejected(Code.QUORUM_MISSING, "these approvals were used before, or never asked for; ask for new ones")
        except Rejected as error:
            self._device.audit.write_soon(Event("quorum", caller, key=label, result=error.code, more={"for_op": op}))
            raise
        await self._audit(caller, "quorum", label, request=sha256(request).hexdigest(), for_op=op, approvals=list(names))
        return names

    async def _counted(
        self, caller: Caller, op: str, obj: Object | None, parameters: Mapping[str, Any], approvals: Sequence[bytes]
    ) -> tuple[bytes, tuple[str, ...]]:
        """The request that all approvals are for, and the names of the approvers that count, each once. Raises Rejected."""
        if not approvals:
            raise Rejected(
                Code.QUORUM_MISSING, f"{op} needs approvals here: ask for a request, have it signed, and send the approvals along"
            )
        try:
            read = [read_approval(octets) for octets in approvals[: 2 * MAX_APPROVERS]]
            request = read_request(read[0][0])
        except Malformed as error:
            raise Rejected(Code.QUORUM_MISSING, str(error)) from error
        asked = (self._device.serial, caller.partition, op, b"" if obj is None else obj.id, "" if obj is None else obj.label)
        if (request.device, request.partition, request.op, request.object, request.label) != asked:
            raise Rejected(Code.QUORUM_MISSING, f"the approvals are for {request.op} of {request.label or request.partition}, not for this")
        if request.parameters != _digest(parameters):
            raise Rejected(Code.QUORUM_MISSING, "the approvals are for other parameters; ask for a new request")
        if request.expires <= self._stamp():
            raise Rejected(Code.QUORUM_MISSING, f"the request expired at {request.expires}; ask for a new one")
        if any(other != read[0][0] for other, _, _ in read):
            raise Rejected(Code.QUORUM_MISSING, "the approvals are for different requests; send those of one request")
        others = self.policy(caller.partition).others
        if others and not request.requester:
            raise Rejected(
                Code.QUORUM_MISSING, "the request does not name its requester, whom this partition wants to know; ask for a new one"
            )
        present = {sha256(approver["public_key"]).digest(): approver for approver in await self.approvers(caller)}
        names = [
            present[key]["name"]
            for octets, key, signature in read
            if key in present and not (others and present[key]["name"] == request.requester) and _signed(present[key], octets, signature)
        ]
        return read[0][0], tuple(dict.fromkeys(names))

    def _place(self, partition: str) -> str:
        """What its rows are found under: the serial number, which stays when the partition is renamed."""
        return self._device.partition(partition).serial

    def _check(self, caller: Caller, verb: Verb) -> None:
        self._device.partition(caller.partition).check(caller, verb)

    def _stamp(self) -> str:
        return _seconds(self._device.now())

    async def _audit(self, caller: Caller, op: str, key: str = "", **more: Any) -> None:
        await self._device.audit.write(Event(op, caller, key=key, more=more))


def _signed(approver: Mapping[str, Any], request: bytes, signature: bytes) -> bool:
    try:
        load_public_key(approver["public_key"]).verify(signature, _DOMAIN + request)
    except BadSignature:
        return False
    return True


def _open(db: Any, request: bytes, expires: str, now: str) -> bool:
    """Remembers a request, forgets those that have expired; False if too many are open."""
    db.execute("DELETE FROM approvals WHERE expires <= ?", (now,))
    if db.execute("SELECT count(*) FROM approvals").fetchone()[0] >= MAX_OPEN:
        return False
    db.execute("INSERT INTO approvals VALUES (?, ?)", (sha256(request).digest(), expires))
    return True


def _use(db: Any, request: bytes) -> bool:
    """Whether the request was open. It is not any more."""
    return bool(db.execute("DELETE FROM approvals WHERE nonce = ?", (sha256(request).digest(),)).rowcount)


def _digest(parameters: Mapping[str, Any]) -> bytes:
    return sha256(cbor2.dumps(dict(parameters), canonical=True)).digest()


def _seconds(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds")
