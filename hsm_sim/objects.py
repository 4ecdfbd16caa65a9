"""Objects: what a partition holds. Keys, certificates and data, with attributes as PKCS#11 has them.

    root = partition.by_label(caller, "root")          # the private key
    root.attributes[CKA_EXTRACTABLE]                   # False
    root.key.sign(...)                                 # usable material, in memory only

An ``Object`` stays the same Python object for as long as it exists, so that a door can give out handles for it; a change of attributes
changes it in place and raises ``version``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from hsm_sim.cka import (
    CKA_CLASS,
    CKA_EXTRACTABLE,
    CKA_ID,
    CKA_LABEL,
    CKA_PRIVATE,
    CKA_SENSITIVE,
    CKA_TOKEN,
    CKO_PRIVATE_KEY,
    CKO_SECRET_KEY,
)

if TYPE_CHECKING:
    from hsm_sim.keys import Key

Value = bytes | bool | int | tuple[int, ...]
"""An attribute's value: octets, CK_BBOOL, CK_ULONG, or a list of mechanism numbers (CKA_ALLOWED_MECHANISMS)."""
Template = dict[int, Value]
"""Attribute values by CKA number (``hsm_sim.cka``)."""


@dataclass(slots=True, eq=False)
class Object:
    """One object. Compared by identity.

    Attributes:
        id: 16 random octets; never given twice.
        version: 1, and one more with each change.
        partition: name of the partition that it belongs to.
        attributes: everything that a caller who sees the object may read. Secret values (a key's CKA_VALUE, CKA_PRIME_1 …) are not here.
        origin: "generated", "imported", "unwrapped", "derived" or "restored".
        created: UTC, ISO 8601 with seconds.
        usage_limit: how many private or secret operations it may do, counted from when the limit is set; None for any number.
        used: how many of them are taken (in the store: reserved in advance, so never less than were done).
        quorum: operations that need approvals: "export", "destroy", "recover".
        not_before, not_after: times (UTC, ISO 8601) outside of which it is not used.
        key: usable material of a key; None for certificates and data.
        value: contents of a certificate or data object.
    """

    id: bytes
    version: int
    partition: str
    attributes: Template
    origin: str
    created: str
    usage_limit: int | None = None
    used: int = 0
    quorum: frozenset[str] = frozenset()
    not_before: str | None = None
    not_after: str | None = None
    key: Key | None = field(default=None, repr=False)
    value: bytes | None = field(default=None, repr=False)

    @property
    def cls(self) -> int:
        """CKA_CLASS."""
        return int(self._number(CKA_CLASS))

    @property
    def label(self) -> str:
        """CKA_LABEL as text; "" if it has none."""
        value = self.attributes.get(CKA_LABEL, b"")
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else ""

    @property
    def cka_id(self) -> bytes:
        """CKA_ID, which a private key and its public one share."""
        value = self.attributes.get(CKA_ID, b"")
        return value if isinstance(value, bytes) else b""

    @property
    def kind(self) -> str:
        """A ``KeyKind``, "aes-128|192|256", "sm4" or "generic" for keys; "" for other objects."""
        return "" if self.key is None else str(self.key.kind)

    @property
    def token(self) -> bool:
        """Whether it outlives its session (CKA_TOKEN)."""
        return self.attributes.get(CKA_TOKEN) is True

    @property
    def private(self) -> bool:
        """Whether only officer and user see it (CKA_PRIVATE)."""
        return self.attributes.get(CKA_PRIVATE) is True

    @property
    def secret(self) -> bool:
        """Whether it is a private or secret key."""
        return self.attributes.get(CKA_CLASS) in (CKO_PRIVATE_KEY, CKO_SECRET_KEY)

    @property
    def extractable(self) -> bool:
        """Whether it may leave, wrapped (CKA_EXTRACTABLE)."""
        return self.attributes.get(CKA_EXTRACTABLE) is True

    @property
    def limited(self) -> bool:
        """Whether it has limits that PKCS#11 knows nothing of: another copy of it would get round them."""
        return self.usage_limit is not None or bool(self.quorum or self.not_before or self.not_after)

    @property
    def closed(self) -> bool:
        """Whether its secret values may not be read, wrapped or not: sensitive, or not extractable."""
        return self.secret and (self.attributes.get(CKA_SENSITIVE) is not False or not self.extractable)

    def _number(self, attribute: int) -> int:
        value = self.attributes[attribute]
        if not isinstance(value, int):
            raise TypeError(attribute)
        return value

    def usable(self, now: datetime) -> bool:
        """Whether ``now`` lies within not_before and not_after."""
        moment = now.isoformat(timespec="seconds")
        return (self.not_before is None or self.not_before <= moment) and (self.not_after is None or moment <= self.not_after)
