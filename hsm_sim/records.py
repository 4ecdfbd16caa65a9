"""Objects as rows of the store: what is secret sealed, everything else in the clear beside it and authenticated by the seal.

    row = record(obj, ring, partition_id)
    obj = read_record(row, ring, partition_id, "ironroot")       # Malformed if an octet of it was changed

The description is canonical CBOR, so that one object has one; the octets that were stored are what the seal is checked with.
"""

from __future__ import annotations

from typing import Any

import cbor2

from hsm_sim import cka
from hsm_sim.errors import Code, Rejected
from hsm_sim.keys import load_private, load_public, secret_key, secret_kind
from hsm_sim.objects import Object
from hsm_sim.seal import Ring
from hsm_sim.store import ObjectRow
from pkix.errors import Malformed

_FIELDS = ("id", "version", "attributes", "origin", "created", "usage_limit", "used", "not_before", "not_after")


def described(obj: Object, partition: bytes) -> bytes:
    """Everything about ``obj`` but its secret."""
    fields = {name: getattr(obj, name) for name in _FIELDS}
    return cbor2.dumps({**fields, "quorum": sorted(obj.quorum), "partition": partition}, canonical=True)


def secret_of(obj: Object) -> bytes:
    """What is sealed: the key's secret octets, or the contents of a certificate or data object."""
    if obj.key is not None:
        return obj.key.secret()
    return obj.value or b""


def record(obj: Object, ring: Ring, partition: bytes) -> ObjectRow:
    """The row of ``obj``. ``ring``: the partition's, or the public one for an object without CKA_PRIVATE."""
    text = described(obj, partition)
    return ObjectRow(obj.id, obj.version, not obj.private, text, ring.seal(obj.id, obj.version, secret_of(obj), text))


def read_record(row: ObjectRow, ring: Ring, partition: bytes, name: str) -> Object:
    """The object in a row of the partition ``name``. Raises Malformed."""
    secret = ring.unseal(row.id, row.version, row.record, row.described)
    fields: dict[str, Any] = cbor2.loads(row.described)
    if (fields["id"], fields["version"], fields.pop("partition")) != (row.id, row.version, partition):
        raise Malformed("it is the record of another object")
    quorum = frozenset(fields.pop("quorum"))
    fields["attributes"] = {number: tuple(value) if isinstance(value, list) else value for number, value in fields["attributes"].items()}
    obj = Object(partition=name, quorum=quorum, **fields)
    if obj.private is row.open:
        raise Malformed("it is sealed as an object of the other kind")
    try:
        return loaded(obj, secret)
    except Rejected as error:
        raise Malformed(error.text) from error


def loaded(obj: Object, secret: bytes) -> Object:
    """``obj``, made ready for use with what ``secret_of`` gave. Raises Rejected: WRAPPED_KEY_INVALID, ATTRIBUTE_VALUE_INVALID."""
    match obj.cls:
        case cka.CKO_PRIVATE_KEY:
            obj.key = load_private(secret)
        case cka.CKO_SECRET_KEY:
            obj.key = secret_key(secret_kind(_number(obj, cka.CKA_KEY_TYPE), len(secret)), secret)
        case cka.CKO_PUBLIC_KEY:
            obj.key = load_public(_octets(obj, cka.CKA_PUBLIC_KEY_INFO))
        case _:
            obj.value = secret
    if obj.cls == cka.CKO_PRIVATE_KEY and obj.key is not None and obj.key.spki != _octets(obj, cka.CKA_PUBLIC_KEY_INFO):
        raise Rejected(Code.WRAPPED_KEY_INVALID, "the secret key does not belong to the public key beside it")
    return obj


def _octets(obj: Object, attribute: int) -> bytes:
    value = obj.attributes.get(attribute)
    return value if isinstance(value, bytes) else b""


def _number(obj: Object, attribute: int) -> int:
    value = obj.attributes.get(attribute)
    return value if isinstance(value, int) else -1


def supposed_label(row: ObjectRow) -> str:
    """The label that a damaged row seems to have; the object's id if that cannot be read either. For messages only."""
    try:
        label = cbor2.loads(row.described)["attributes"][cka.CKA_LABEL].decode()
    except (cbor2.CBORDecodeError, KeyError, TypeError, ValueError, AttributeError, IndexError):
        return row.id.hex()
    return label or row.id.hex()
