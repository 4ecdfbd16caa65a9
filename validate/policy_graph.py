"""Certificate policies of a path (RFC 5280 6.1 with the policy graph of RFC 9618, which cannot grow exponentially).

    acceptable(path, asked)         # path: end entity first, anchor last; asked: ``Initial`` of policy and anchor

Without constraints in the certificates and without wishes of the caller every path is acceptable.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from pkix import der, extensions
from pkix.certificate import Certificate
from pkix.constraints import ANY_POLICY, INHIBIT_ANY_POLICY, POLICY_CONSTRAINTS, POLICY_MAPPINGS
from pkix.errors import Malformed
from validate.model import Anchor, Policy
from validate.names import self_issued

_MAX_ENTRIES = 20000
_EXTENSIONS = frozenset((extensions.CERTIFICATE_POLICIES, POLICY_MAPPINGS, POLICY_CONSTRAINTS, INHIBIT_ANY_POLICY))


@dataclass(frozen=True, slots=True)
class Initial:
    """Inputs of RFC 5280 6.1.1 (c), (e) to (g). ``wanted`` None: any policy will do."""

    wanted: frozenset[str] | None
    explicit: bool
    inhibit_mapping: bool
    inhibit_any: bool


def initial(policy: Policy, anchor: Anchor) -> Initial:
    """What the relying party asks, narrowed by what its anchor is trusted for, and by what that certificate says (RFC 5937 3).

    Raises Malformed: the anchor's certificate policies cannot be read.
    """
    extension = anchor.certificate.extensions.get(extensions.CERTIFICATE_POLICIES)
    own = frozenset((ANY_POLICY,)) if extension is None else _policies(extension.value)
    wanted: frozenset[str] | None = None
    for limit in (policy.certificate_policies, anchor.certificate_policies, own):
        if limit and ANY_POLICY not in limit:
            wanted = limit if wanted is None else wanted & limit
    return Initial(
        wanted,
        policy.explicit_policy or anchor.explicit_policy,
        policy.inhibit_mapping or anchor.inhibit_mapping,
        policy.inhibit_any or anchor.inhibit_any,
    )


@dataclass(slots=True)
class _Node:
    """A valid policy at one depth. ``parents`` are policies of the depth above; ``expected`` is what a child must assert."""

    expected: set[str]
    parents: set[str]


_Level = dict[str, _Node]


def acceptable(path: Sequence[Certificate], asked: Initial) -> bool:
    """Whether certificate policy processing ends well. ``path``: end entity first, trust anchor last; its constraints count (RFC 5937 3.2).

    Raises:
        Malformed: one of the policy extensions cannot be read, or there are more policies and mappings than anybody needs.
    """
    if not required(path[0], explicit_left(path[1:], asked)):
        return True
    if asked.wanted == frozenset():
        return False
    state = _State(len(path), asked)
    if len(path) > 1:
        state.constrain(path[-1])
    graph: list[_Level] = [{ANY_POLICY: _Node({ANY_POLICY}, set())}]
    for certificate in reversed(path[:-1] or path):
        last = certificate is path[0]
        inner = self_issued(certificate) and not last
        extension = certificate.extensions.get(extensions.CERTIFICATE_POLICIES)
        if extension is None:
            return False
        graph.append(_extended(graph[-1], _policies(extension.value), any_allowed=state.inhibit_any > 0 or inner))
        if not last:
            _map(graph[-1], certificate, allowed=state.inhibit_mapping > 0)
            if not inner:
                state.step()
            state.constrain(certificate)
        if not graph[-1]:
            return False
        if sum(len(level) + sum(len(node.parents) for node in level.values()) for level in graph) > _MAX_ENTRIES:
            raise Malformed(f"more than {_MAX_ENTRIES} certificate policies and mappings along one path")
    _prune(graph)
    return _any_left(graph, asked.wanted)


def explicit_left(authorities: Sequence[Certificate], asked: Initial) -> int:
    """How many more certificates may come before a policy is required. ``authorities``: the end entity's issuer first, the anchor last.

    Raises:
        Malformed: one of their policy extensions cannot be read.
    """
    never = len(authorities) + 2
    left = 0 if asked.explicit else never
    for certificate in reversed(authorities):
        if certificate is authorities[-1]:
            pass  # the anchor only constrains
        elif left < never and not self_issued(certificate):
            left = max(left - 1, 0)
        if _EXTENSIONS.isdisjoint(certificate.extensions):
            continue
        left = min(left, _integers(certificate, POLICY_CONSTRAINTS).get(0, left))
        _readable(certificate)
    return left


def required(certificate: Certificate, left: int) -> bool:
    """Whether the path that ends with ``certificate`` needs a policy (RFC 5280 6.1.5 (a), (b)); ``left``: of ``explicit_left``.

    Raises:
        Malformed: one of its policy extensions cannot be read.
    """
    if _EXTENSIONS.isdisjoint(certificate.extensions):
        return left <= 1
    _readable(certificate)
    return left <= 1 or _integers(certificate, POLICY_CONSTRAINTS).get(0) == 0


def _readable(certificate: Certificate) -> None:
    policies = certificate.extensions.get(extensions.CERTIFICATE_POLICIES)
    if policies is not None:
        _policies(policies.value)
    mappings = certificate.extensions.get(POLICY_MAPPINGS)
    if mappings is not None:
        _mappings(mappings.value)
    any_policy = certificate.extensions.get(INHIBIT_ANY_POLICY)
    if any_policy is not None:
        _skip_certs(any_policy.value)


class _State:
    """The three counters: certificates to go until the rule bites; 0: it does."""

    def __init__(self, never: int, asked: Initial) -> None:
        self.explicit = 0 if asked.explicit else never + 1
        self.inhibit_mapping = 0 if asked.inhibit_mapping else never + 1
        self.inhibit_any = 0 if asked.inhibit_any else never + 1

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


def _extended(above: _Level, policies: frozenset[str], *, any_allowed: bool) -> _Level:
    """The next level: RFC 9618 5.3 (RFC 5280 6.1.3 (d))."""
    expecting: dict[str, set[str]] = defaultdict(set)
    for policy, node in above.items():
        for expected in node.expected:
            expecting[expected].add(policy)
    level: _Level = {}
    for policy in policies - {ANY_POLICY}:
        parents = expecting.get(policy) or ({ANY_POLICY} & above.keys())
        if parents:
            level[policy] = _Node({policy}, set(parents))
    if ANY_POLICY in policies and any_allowed:
        for policy, parents in expecting.items():
            level.setdefault(policy, _Node({policy}, set(parents)))
    return level


def _map(level: _Level, certificate: Certificate, *, allowed: bool) -> None:
    """RFC 9618 5.4 (RFC 5280 6.1.4 (a), (b))."""
    extension = certificate.extensions.get(POLICY_MAPPINGS)
    for policy, subjects in ({} if extension is None else _mappings(extension.value)).items():
        if not allowed:
            level.pop(policy, None)
        elif policy in level:
            level[policy].expected = set(subjects)
        elif ANY_POLICY in level:
            level[policy] = _Node(set(subjects), set(level[ANY_POLICY].parents))


def _prune(graph: list[_Level]) -> None:
    for above, below in zip(reversed(graph[:-1]), reversed(graph[1:]), strict=True):
        needed = {parent for node in below.values() for parent in node.parents}
        for policy in above.keys() - needed:
            del above[policy]


def _any_left(graph: list[_Level], wanted: frozenset[str] | None) -> bool:
    """RFC 9618 5.5: whether the user-constrained policy set is not empty."""
    if wanted is None or ANY_POLICY in graph[-1]:
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
