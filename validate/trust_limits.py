"""Taking over somebody else's anchors for less than they offer: a second plant's trust list, imported under constraints.

    limits = Limits(permitted=("dns:plant-b.example", "ip:10.2.0.0/16"), purposes=frozenset(("tls-client",)))
    mine = [narrowed for anchor in theirs.anchors if (narrowed := narrow(anchor, limits)) is not None]

Names are written as in ``pkix.constraints.subtree``; names of directories as ``dirname:C=CN,O=Plant B``, in the order encoded.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, replace

from pkix import constraints, der
from pkix.errors import Refused
from pkix.name import name
from validate.constraints import NameConstraints, describe, read_name_constraints
from validate.model import FAMILIES, Anchor, Family, Purpose
from validate.names import DIRECTORY, DNS, IP, GeneralName, canonical
from validate.rules import family_of


@dataclass(frozen=True, slots=True)
class Limits:
    """What an importer leaves of somebody else's anchors. The defaults leave everything.

    Attributes:
        permitted, excluded: names that end entities and CAs below may carry and may not, as text; kinds that are not permitted by name
            are free.
        families: anchors of other algorithm families are left out.
        purposes: empty: any.
        path_length: CAs below the anchor at most.

    Raises:
        Malformed: a name that is none.
    """

    permitted: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    families: frozenset[Family] = FAMILIES
    purposes: frozenset[Purpose] = frozenset()
    path_length: int | None = None

    def __post_init__(self) -> None:
        for text in (*self.permitted, *self.excluded):
            subtree(text)


def narrow(anchor: Anchor, limits: Limits) -> Anchor | None:
    """The anchor under its own constraints and ``limits``; None if nothing is left of it.

    Raises:
        Refused: the names that both sides permit have nothing in common; the anchor would be good for nothing.
        Malformed, WeakKey: the anchor's key or constraints cannot be read.
    """
    if family_of(anchor.certificate) not in limits.families:
        return None
    purposes = anchor.purposes & limits.purposes if anchor.purposes and limits.purposes else anchor.purposes or limits.purposes
    if not purposes and (anchor.purposes or limits.purposes):
        return None
    own = read_name_constraints(anchor.name_constraints) if anchor.name_constraints is not None else NameConstraints((), ())
    permitted = _common(own.permitted, tuple(map(subtree, limits.permitted)))
    excluded = (*own.excluded, *map(subtree, limits.excluded))
    lengths = [length for length in (anchor.path_length, limits.path_length) if length is not None]
    return replace(
        anchor,
        name_constraints=name_constraints(permitted, excluded) if permitted or excluded else None,
        purposes=purposes,
        path_length=min(lengths, default=None),
    )


def subtree(text: str) -> GeneralName:
    """The base of a subtree from its text. Raises Malformed."""
    kind, _, value = text.partition(":")
    if kind == "dirname":
        pairs = [part.partition("=") for part in value.split(",")]
        raw = constraints.subtree(name(*((short.strip(), inner.strip()) for short, _, inner in pairs)))
    else:
        raw = constraints.subtree(text)
    root = der.read(raw)
    base = GeneralName(root.tag, raw[root.body : root.end])
    read_name_constraints(name_constraints((base,), ()))
    return base


def name_constraints(permitted: tuple[GeneralName, ...], excluded: tuple[GeneralName, ...]) -> bytes:
    """DER of a NameConstraints (RFC 5280 4.2.1.10)."""
    trees = ((0, permitted), (1, excluded))
    return der.sequence(
        *(der.context(number, *(der.sequence(der.tlv(base.kind, base.value)) for base in bases)) for number, bases in trees if bases)
    )


def _common(one: tuple[GeneralName, ...], other: tuple[GeneralName, ...]) -> tuple[GeneralName, ...]:
    """What two sets of permitted subtrees have in common, kind by kind (RFC 5280 6.1.4 (g)); a kind in one of them only stands as it is."""
    found: dict[GeneralName, None] = {}
    for kind in dict.fromkeys(base.kind for base in (*one, *other)):
        ours, theirs = [b for b in one if b.kind == kind], [b for b in other if b.kind == kind]
        if ours and theirs:
            both = [a if _within(a, b) else b for a in ours for b in theirs if _within(a, b) or _within(b, a)]
            if not both:
                raise Refused(f"the list permits {_shown(ours)} and you permit {_shown(theirs)}: nothing is in both; permit some of theirs")
        else:
            both = ours or theirs
        found |= dict.fromkeys(both)
    return tuple(found)


def _within(inner: GeneralName, outer: GeneralName) -> bool:
    """Whether every name in the subtree ``inner`` is in ``outer``; both of one kind."""
    if inner == outer:
        return True
    if inner.kind == DIRECTORY:
        prefix = canonical(outer.value)
        return canonical(inner.value)[: len(prefix)] == prefix
    if inner.kind == IP:
        first, second = _network(inner), _network(outer)
        return first.version == second.version and first.network_address in second and first.prefixlen >= second.prefixlen
    small, large = inner.value.lower(), outer.value.lower()
    if inner.kind == DNS:
        return not large or small.endswith(b"." + large)
    return large.startswith(b".") and small.rpartition(b"@")[2].endswith(large)


def _network(base: GeneralName) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    half = len(base.value) // 2
    return ipaddress.ip_network((base.value[:half], int.from_bytes(base.value[half:]).bit_count()), strict=False)


def _shown(bases: list[GeneralName]) -> str:
    return ", ".join(str(_network(base)) if base.kind == IP else describe(base) for base in bases)
