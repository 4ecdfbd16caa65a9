"""Backup of a partition, and its way into another simulator: every object with its attributes, under a key of its own.

    octets, shares = await backup(device, caller, needed=3, total=5)             # the key in five shares, of which three open it
    octets, _ = await backup(device, caller, recipient=theirs)                   # or for one other device: its transport certificate
    restored = await restore(other, caller, octets, shares=three_of_them)

    backup = CBOR {v, header, body, signature}
    body   = AEAD(HKDF(backup key), objects; associated data: header)
    signature over header and body by the device's attestation key, whose certificate is in the header

What is in a backup never leaves it in the clear: extractable or not, a key goes from one device into another. The SO may do that, with
approvals where the partition wants them. Formats: docs/hsm-trust.md.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import cbor2

from hsm_sim import transport
from hsm_sim.attest import HISTORY, history
from hsm_sim.audit import Event
from hsm_sim.errors import Code, Rejected
from hsm_sim.objects import Object
from hsm_sim.roles import Caller, Verb
from hsm_sim.seal import CIPHERS, derive, seal, unseal
from hsm_sim.shares import Share, combine, set_name, split
from hsm_sim.vault import KEYS
from hsm_sim.wire import decode
from pkix.attestation import check_device, device_serial
from pkix.certificate import parse_certificate
from pkix.errors import IronrootError, Malformed

if TYPE_CHECKING:
    from hsm_sim.device import Device

_DOMAIN = b"ironroot hsm backup 1\0"
_KINDS = {"id": bytes, "version": int, "origin": str, "created": str, "used": int, "secret": bytes}
_OBJECT = ("id", "version", "attributes", "origin", "created", "usage_limit", "used", "quorum", "not_before", "not_after", "secret")


@dataclass(frozen=True, slots=True)
class Header:
    """What a backup says of itself, legible without its key and signed.

    Attributes:
        device, partition: where it was made (serial number, name).
        certificate: the attestation certificate of that device, DER.
        time: when, UTC, ISO 8601.
        objects: how many there are in it.
        cipher: what the body is sealed with (``seal.CIPHERS``).
        shares: digests of the key's N shares, in order; empty for a transport.
        needed, set: M, and the number of the set of shares; 0 for a transport.
        recipient: SHA-256 of the certificate of the transport key that the key is wrapped to; empty with shares.
        wrapped: the key, wrapped to it (``hsm_sim.transport``); empty with shares.
    """

    device: str
    certificate: bytes
    partition: str
    time: str
    objects: int
    cipher: str
    shares: list[bytes]
    needed: int
    set: int
    recipient: bytes
    wrapped: bytes

    def to_bytes(self) -> bytes:
        return cbor2.dumps({name: getattr(self, name) for name in self.__slots__}, canonical=True)


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup as read, not checked yet. ``described``: the octets of the header."""

    header: Header
    described: bytes
    body: bytes
    signature: bytes


def read_backup(octets: bytes) -> Backup:
    """Raises Malformed: truncated, not a backup, or one of another version."""
    try:
        outer = decode(octets)
    except Malformed as error:
        raise Malformed("this is no backup, or not all of it: compare the file's length with the original's") from error
    if outer.get("v") != 1 or any(type(outer.get(name)) is not bytes for name in ("header", "body", "signature")):
        raise Malformed("this is no backup of version 1")
    described = decode(outer["header"])
    kinds = {name: str(kind).partition("[")[0] for name, kind in Header.__annotations__.items()}
    if {name: type(value).__name__ for name, value in described.items()} != kinds or described["cipher"] not in CIPHERS:
        raise Malformed("this is no backup of version 1: its header lacks something")
    return Backup(Header(**described), outer["header"], outer["body"], outer["signature"])


# --- making --------------------------------------------------------------------------------------------------------


async def backup(
    device: Device,
    caller: Caller,
    *,
    needed: int = 0,
    total: int = 0,
    recipient: bytes = b"",
    manufacturer: bytes = b"",
    approvals: Sequence[bytes] = (),
) -> tuple[bytes, list[Share]]:
    """Everything in the caller's partition, and the shares of the key (none with a ``recipient``).

    Args:
        needed, total: M and N, if the key is to be shared.
        recipient: DER of another device's transport certificate, if it is to go there.
        manufacturer: DER of that device's manufacturer's certificate, which the caller vouches for.
        approvals: where the partition's policy, or an object in it, wants some for ``backup`` or ``export``.
    Raises:
        Rejected: BAD_REQUEST, QUORUM_MISSING, and what ``Partition.contents`` raises.
    """
    partition = device.partition(caller.partition)
    partition.check(caller, Verb.BACKUP)
    contents = await partition.contents(caller)
    await _approved(device, caller, [obj for obj, _ in contents], parameters(needed, total, recipient), approvals)
    key = secrets.token_bytes(32)
    objects = [_described(obj, secret, device.quorum.policy(caller.partition).operations) for obj, secret in contents]
    try:
        shares = [] if recipient else split(key, needed, total)
        wrapped = _wrapped(key, recipient, manufacturer) if recipient else b""
    except IronrootError as error:
        raise Rejected(Code.BAD_REQUEST, str(error)) from error
    described = Header(
        device=device.serial,
        certificate=device.identity.device_certificate,
        partition=caller.partition,
        time=device.now().isoformat(timespec="seconds"),
        objects=len(objects),
        cipher=device.cipher,
        shares=[share.digest for share in shares],
        needed=needed if shares else 0,
        set=shares[0].set if shares else 0,
        recipient=sha256(recipient).digest() if recipient else b"",
        wrapped=wrapped,
    ).to_bytes()
    body = seal(derive(key, b"backup"), cbor2.dumps(objects), described, device.cipher)
    signature = device.identity.device.sign(_signed(described, body))
    octets = cbor2.dumps({"v": 1, "header": described, "body": body, "signature": signature}, canonical=True)
    to = {"shares": f"{needed} of {total}", "set": set_name(shares[0].set)} if shares else {"recipient": sha256(recipient).hexdigest()}
    more = {"objects": len(objects), "sha256": sha256(octets).hexdigest(), **to}
    await device.audit.write(Event("backup", caller, more=more))
    return octets, shares


def _wrapped(key: bytes, recipient: bytes, manufacturer: bytes) -> bytes:
    """``key`` for the device of the certificate ``recipient``. Raises IronrootError."""
    theirs = parse_certificate(recipient)
    check_device(theirs, device_serial(theirs), parse_certificate(manufacturer))
    return transport.wrap(key, theirs.public_key)


def parameters(needed: int, total: int, recipient: bytes) -> dict[str, Any]:
    """What approvals of a backup are for."""
    return {"needed": needed, "total": total, "recipient": sha256(recipient).digest() if recipient else b""}


async def _approved(
    device: Device, caller: Caller, objects: Sequence[Object], about: Mapping[str, Any], approvals: Sequence[bytes]
) -> None:
    """One request for the whole partition; an object that must not be exported alone makes it necessary too. Raises Rejected."""
    exports = [device.quorum.needed(caller.partition, "export", obj) for obj in objects]
    await device.quorum.spend(caller, "backup", None, about, approvals, at_least=max(exports, default=0))


def _described(obj: Object, secret: bytes, operations: frozenset[str]) -> list[Any]:
    """An object as it stands in a backup. What its partition asks approvals for goes along with it, wherever it is restored."""
    quorum = sorted(obj.quorum | (operations if obj.secret else frozenset()))
    attributes = {number: list(value) if isinstance(value, tuple) else value for number, value in obj.attributes.items()}
    limits = [obj.usage_limit, obj.used, quorum, obj.not_before, obj.not_after]
    return [obj.id, obj.version, attributes, obj.origin, obj.created, *limits, secret]


# --- restoring -----------------------------------------------------------------------------------------------------


async def restore(
    device: Device, caller: Caller, octets: bytes, *, shares: Sequence[Share] = (), manufacturer: bytes = b""
) -> dict[str, Any]:
    """Puts a backup's objects into the caller's partition, all in one transaction or none; those that are there already stay as they are.

    Args:
        shares: M of the shares, unless it was made for this device.
        manufacturer: DER of the manufacturer's certificate of the device that made it. It may be left out with shares, whose holders
            vouch for the backup, and for one of this very device.
    Returns:
        ``{device, partition, time, restored, present}``: where it comes from, and how many objects were put back and were there.
    Raises:
        Rejected: BAD_REQUEST (no backup), SIGNATURE_INVALID (changed, or of a device that nobody vouches for), WRAPPED_KEY_INVALID (shares
            that do not fit), ACTION_PROHIBITED (made for another device), KEY_EXISTS (another key has the label, or another partition
            the key), and what
            ``Partition.put_back`` raises.
    """
    partition = device.partition(caller.partition)
    partition.check(caller, Verb.RESTORE)
    try:
        found = read_backup(octets)
    except Malformed as error:
        raise Rejected(Code.BAD_REQUEST, str(error)) from error
    _check_origin(device, found, manufacturer, shared=bool(shares))
    key = _key(device, found.header, shares)
    try:
        plain = unseal(derive(key, b"backup"), found.body, found.described, found.header.cipher)
    except Malformed as error:
        raise Rejected(Code.SIGNATURE_INVALID, f"the backup cannot be opened: {error}") from error
    try:
        contents = [_object(item, caller.partition, found.header.device) for item in cbor2.loads(plain)]
    except (cbor2.CBORDecodeError, TypeError, ValueError, AttributeError, KeyError) as error:
        raise Rejected(Code.BAD_REQUEST, "the backup holds other things than objects; it was made by another version") from error
    await _only_here(device, caller, [obj for obj, _ in contents])
    restored = await partition.put_back(caller, contents)
    origin = {"device": found.header.device, "partition": found.header.partition, "time": found.header.time}
    return {**origin, "restored": restored, "present": len(contents) - restored}


async def _only_here(device: Device, caller: Caller, objects: Sequence[Object]) -> None:
    """An object is in one partition of a device: a second copy would have uses of its own. Raises Rejected(KEY_EXISTS)."""
    place = device.partition(caller.partition).serial
    query = "SELECT objects.id FROM objects JOIN partitions ON partitions.id = objects.partition WHERE partitions.serial <> ?"
    elsewhere = {row[0] for row in await device.store.read(lambda db: db.execute(query, (place,)).fetchall())}
    for obj in objects:
        if obj.id in elsewhere:
            raise Rejected(Code.KEY_EXISTS, f"{obj.label} is in another partition of this device; destroy it there first")


def check_shares(octets: bytes, shares: Sequence[Share]) -> dict[str, Any]:
    """Whether these shares open this backup: ``{set, needed, total}``; nothing is restored. Raises Rejected as ``restore`` does."""
    try:
        found = read_backup(octets)
    except Malformed as error:
        raise Rejected(Code.BAD_REQUEST, str(error)) from error
    key = _joined(found.header, shares)
    try:
        unseal(derive(key, b"backup"), found.body, found.described, found.header.cipher)
    except Malformed as error:
        raise Rejected(Code.SIGNATURE_INVALID, f"the backup cannot be opened: {error}") from error
    return {"set": set_name(found.header.set), "needed": found.header.needed, "total": len(found.header.shares)}


def _check_origin(device: Device, found: Backup, manufacturer: bytes, *, shared: bool) -> None:
    """The signature, and whose it is. Raises Rejected(SIGNATURE_INVALID)."""
    try:
        maker = parse_certificate(found.header.certificate)
        maker.public_key.verify(found.signature, _signed(found.described, found.body))
        anchor = manufacturer or (device.identity.manufacturer_certificate if found.header.device == device.serial else b"")
        if anchor:
            check_device(maker, found.header.device, parse_certificate(anchor))
        elif not shared:
            raise Malformed("it was made by another device: give the certificate of that one's manufacturer along")
    except IronrootError as error:
        raise Rejected(Code.SIGNATURE_INVALID, f"the backup was changed, or nobody vouches for it: {error}") from error


def _key(device: Device, header: Header, shares: Sequence[Share]) -> bytes:
    """The backup key. Raises Rejected: WRAPPED_KEY_INVALID, ACTION_PROHIBITED."""
    if not header.recipient:
        return _joined(header, shares)
    if header.recipient != sha256(device.identity.transport_certificate).digest():
        raise Rejected(Code.ACTION_PROHIBITED, "the backup was made for another device, which alone can open it")
    try:
        return transport.unwrap(header.wrapped, device.identity.transport)
    except IronrootError as error:
        raise Rejected(Code.WRAPPED_KEY_INVALID, f"the backup's key cannot be unwrapped: {error}") from error


def _joined(header: Header, shares: Sequence[Share]) -> bytes:
    if not header.shares:
        raise Rejected(Code.BAD_REQUEST, "this backup was made for one device and has no shares")
    try:
        if shares and shares[0].set != header.set:
            raise Malformed(f"{shares[0].name} is none of this backup's, which are of set {set_name(header.set)}")
        return combine(shares, header.shares)
    except Malformed as error:
        raise Rejected(Code.WRAPPED_KEY_INVALID, str(error)) from error


def _object(item: Sequence[Any], partition: str, device: str) -> tuple[Object, bytes]:
    """An object of a backup by ``device``, as it is in this device: the same but for its history and the partition's name.

    Raises TypeError, ValueError, AttributeError, KeyError: whoever makes shares of his own can write anything into a backup.
    """
    members = dict(zip(_OBJECT, item, strict=True))
    if any(type(members[name]) is not kind for name, kind in _KINDS.items()) or not isinstance(members["usage_limit"], int | None):
        raise TypeError
    secret = members.pop("secret")
    attributes = {number: tuple(value) if isinstance(value, list) else value for number, value in members.pop("attributes").items()}
    obj = Object(partition=partition, attributes=attributes, quorum=frozenset(members.pop("quorum")), **members)
    if obj.cls in KEYS and not obj.private:
        raise ValueError  # its record would be sealed as one that everybody may see
    obj.attributes[HISTORY] = ",".join((*history(obj), device)).encode()
    return obj, secret


def _signed(described: bytes, body: bytes) -> bytes:
    return _DOMAIN + len(described).to_bytes(4) + described + body
