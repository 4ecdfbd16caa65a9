"""Certificate policies of a path (RFC 5280 6.1 with the policy graph of RFC 9618, which cannot grow exponentially).

    acceptable(path, wanted=frozenset(), explicit=False)     # path: end entity first, anchor last

Without constraints in the certificates and without wishes of the caller every path is acceptable.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from pkix import der, extensions
from pkix.certificate import Certificate
from pkix.errors import Malformed
from validate.names import self_issued

ANY_POLICY = "2.5.29.32.0"
POLICY_MAPPINGS, POLICY_CONSTRAINTS, INHIBIT_ANY_POLICY = "2.5.29.33", "2.5.29.36", "2.5.29.54"


@dataclass(slots=True)
class _Node:
    """A valid policy at one depth. ``parents`` are policies of the depth above; ``expected`` is what a child must assert."""

    expected: set[str]
    parents: set[str]


_Level = dict[str, _Node]


def acceptable(path: Sequence[Certificate], wanted: frozenset[str], explicit: bool) -> bool:
    """Whether certificate policy processing ends well.

    Args:
        path: end entity first, trust anchor last. Constraints of the anchor count (RFC 5937 3.2).
        wanted: policies of which one must hold; empty: any.
        explicit: whether one must hold at all.
    Raises:
        Malformed: one of the policy extensions cannot be read.
    """
    count = len(path) - 1
    state = _State(count + 1, explicit)
    if count:
        state.constrain(path[-1])
    graph: list[_Level] | None = [{ANY_POLICY: _Node({ANY_POLICY}, set())}]
    for depth, certificate in enumerate(reversed(path[:-1]), 1):
        last = depth == count
        inner = self_issued(certificate) and not last
        graph = _extend(graph, certificate, any_allowed=state.inhibit_any > 0 or inner)
        if last:
            break
        graph = _map(graph, certificate, allowed=state.inhibit_mapping > 0)
        if not inner:
            state.step()
        state.constrain(certificate)
    state.explicit = max(state.explicit - 1, 0)
    if _integers(path[0], POLICY_CONSTRAINTS).get(0) == 0:
        state.explicit = 0
    return state.explicit > 0 or _any_left(graph, wanted)


class _State:
    """The three counters: certificates to go until the rule bites; 0: it does."""

    def __init__(self, never: int, explicit: bool) -> None:
        self.explicit = 0 if explicit else never
        self.inhibit_mapping = never
        self.inhibit_any = never

    def step(self) -> None:
        self.explicit = max(self.explicit - 1, 0)
        self.inhibit_mapping = max(self.inhibit_mapping - 1, 0)
        self.inhibit_any = max(self.inhibit_any - 1, 0)

    def constrain(self, certificate: Certificate) -> None:
        """RFC 5280 6.1.4 (i) and (j)."""
        limits = _integers(certificate, POLICY_CONSTRAINTS)
        self.explicit = min(self.explicit, limits.get(0, self.explicit))
        self.inhibit_mapping = min(self.inhibit_mapping, limits.get(1, self.inhibit_mapping))
        any_policy = certificate.extensions.get(INHIBIT_ANY_POLICY)
        if any_policy is not None:
            self.inhibit_any = min(self.inhibit_any, _skip_certs(any_policy.value))


def _extend(graph: list[_Level] | None, certificate: Certificate, *, any_allowed: bool) -> list[_Level] | None:
    """RFC 9618 5.3: 6.1.3 (d) and (e)."""
    extension = certificate.extensions.get(extensions.CERTIFICATE_POLICIES)
    if graph is None or extension is None:
        return None
    policies = _policies(extension.value)
    expecting: dict[str, set[str]] = defaultdict(set)
    for policy, node in graph[-1].items():
        for expected in node.expected:
            expecting[expected].add(policy)
    level: _Level = {}
    for policy in policies - {ANY_POLICY}:
        parents = expecting.get(policy) or ({ANY_POLICY} & graph[-1].keys())
        if parents:
            level[policy] = _Node({policy}, set(parents))
    if ANY_POLICY in policies and any_allowed:
        for policy, parents in expecting.items():
            level.setdefault(policy, _Node({policy}, set(parents)))
    return _pruned([*graph, level])


def _map(graph: list[_Level] | None, certificate: Certificate, *, allowed: bool) -> list[_Level] | None:
    """RFC 9618 5.4: 6.1.4 (a) and (b)."""
    extension = certificate.extensions.get(POLICY_MAPPINGS)
    mappings = {} if extension is None else _mappings(extension.value)
    if graph is None or not mappings:
        return graph
    level = graph[-1]
    for policy, subjects in mappings.items():
        if not allowed:
            level.pop(policy, None)
        elif policy in level:
            level[policy].expected = set(subjects)
        elif ANY_POLICY in level:
            level[policy] = _Node(set(subjects), set(level[ANY_POLICY].parents))
    return _pruned(graph)


def _pruned(graph: list[_Level]) -> list[_Level] | None:
    for above, below in zip(reversed(graph[:-1]), reversed(graph[1:]), strict=True):
        needed = {parent for node in below.values() for parent in node.parents}
        for policy in above.keys() - needed:
            del above[policy]
    return graph if graph[0] and graph[-1] else None


def _any_left(graph: list[_Level] | None, wanted: frozenset[str]) -> bool:
    """RFC 9618 5.5: whether the user-constrained policy set is not empty."""
    if graph is None:
        return False
    if not wanted or ANY_POLICY in wanted or ANY_POLICY in graph[-1]:
        return True
    domain = {policy for level in graph[1:] for policy, node in level.items() if ANY_POLICY in node.parents}
    return bool(domain & wanted)


@lru_cache(maxsize=256)
def _policies(value: bytes) -> frozenset[str]:
    found = [_oid(value, der.children(value, item)) for item in der.children(value, der.prescan(value))]
    if not found:
        raise Malformed("certificate policies with no policy in them")
    return frozenset(found)


@lru_cache(maxsize=256)
def _mappings(value: bytes) -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for item in der.children(value, der.prescan(value)):
        parts = der.children(value, item)
        issuer, subject = _oid(value, parts[:1]), _oid(value, parts[1:])
        if ANY_POLICY in (issuer, subject):
            raise Malformed("a policy mapping from or to anyPolicy (RFC 5280 6.1.4 (a))")
        found[issuer].add(subject)
    return {policy: frozenset(subjects) for policy, subjects in found.items()}


def _oid(value: bytes, parts: Sequence[der.Tlv]) -> str:
    if not parts:
        raise Malformed("a certificate policy without its identifier")
    return der.decode_oid(der.expect(value, parts[0], der.OID, "a certificate policy"))


def _integers(certificate: Certificate, oid: str) -> dict[int, int]:
    """PolicyConstraints: [0] requireExplicitPolicy, [1] inhibitPolicyMapping."""
    extension = certificate.extensions.get(oid)
    if extension is None:
        return {}
    found = {item.tag: extension.value[item.body : item.end] for item in der.children(extension.value, der.prescan(extension.value))}
    if not found or not found.keys() <= {0x80, 0x81}:
        raise Malformed("policy constraints that are empty or have other fields than RFC 5280 4.2.1.11")
    return {tag - 0x80: _count(octets) for tag, octets in found.items()}


def _skip_certs(value: bytes) -> int:
    return _count(der.expect(value, der.prescan(value), der.INTEGER, "inhibitAnyPolicy"))


def _count(octets: bytes) -> int:
    number = int.from_bytes(octets, signed=True)
    if not octets or number < 0:
        raise Malformed("a count of certificates that is negative or empty")
    return number
