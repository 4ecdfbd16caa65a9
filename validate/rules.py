"""The rules that a complete path has to obey (RFC 5280 6.1.1, 6.1.3 to 6.1.5).

    upper = judge_authorities(path[1:], case)          # the CAs, anchor last: once for all that they certify
    faults = judge(path[0], upper, expected, now)      # the end entity below them, at a moment
    holds(upper, faults, now)                          # whether all of it is well; ``validate.account`` says it in words

A rule looks at one certificate and returns the sentence of what is wrong, or None; every rule looks at every certificate, also after one
has failed. The anchor's certificate obeys the same rules as the others, save for its signature (RFC 5937). Nothing in ``Upper`` depends on
the moment.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from datetime import datetime

from pkix import extensions
from pkix.algorithms import KeyKind
from pkix.certificate import Certificate
from pkix.constraints import NAME_CONSTRAINTS
from pkix.errors import Malformed, Unavailable
from validate import web_pki
from validate.constraints import NameConstraints, describe, read_name_constraints, violation
from validate.model import Anchor, Expected, Family, Policy, Purpose
from validate.names import all_names, covers, self_issued
from validate.policy_graph import Initial, acceptable, explicit_left, initial, required
from validate.profile import departure, unknown_critical
from validate.purposes import why_not, why_not_below
from validate.text import Text, say

STRENGTHS = {
    KeyKind.RSA_2048: 112,
    KeyKind.RSA_3072: 128,
    KeyKind.RSA_4096: 128,
    KeyKind.P_256: 128,
    KeyKind.P_384: 192,
    KeyKind.ED25519: 128,
    KeyKind.SM2: 128,
    KeyKind.ML_DSA_65: 192,
}
"""Security strength in bits by kind of key (NIST SP 800-57 part 1 table 2; ML-DSA by its category)."""

_MAX_COMPARISONS = 100_000


@dataclass(frozen=True, slots=True)
class Case:
    """What a path is judged for. ``anchor``: the one that its last certificate is."""

    policy: Policy
    anchor: Anchor
    purpose: Purpose


Faults = tuple[Text | None, ...]
"""What is wrong with one certificate, rule by rule, in the order of ``AUTHORITY`` or ``END_ENTITY``."""

AUTHORITY = (
    "key",
    "validity",
    "authority",
    "path-length",
    "profile",
    "critical-extensions",
    "purpose",
    "web-pki",
    "name-constraints",
)
END_ENTITY = (
    "key",
    "validity",
    "profile",
    "critical-extensions",
    "name-constraints",
    "certificate-policies",
    "purpose",
    "names",
    "web-pki",
)


@dataclass(frozen=True, slots=True)
class Upper:
    """The CAs of a path, judged but for the moment.

    Attributes:
        path: the end entity's issuer first, the anchor last; empty if the end entity is the anchor.
        faults: of each of these.
        sound: whether there are none.
        not_before, not_after: between these all of them are valid.
        families: of their keys.
        limits: name constraints above the end entity, with whom they are of.
        comparisons: of names with constraints, that are left for the end entity.
        asked, explicit: certificate policies asked for, and certificates to go until one is required; or why they cannot be read.
        case: what it was judged for.
    """

    path: tuple[Certificate, ...]
    faults: tuple[Faults, ...]
    sound: bool
    not_before: datetime
    not_after: datetime
    families: frozenset[Family]
    limits: tuple[tuple[Certificate, NameConstraints], ...]
    comparisons: int
    asked: Initial | Text
    explicit: int
    case: Case


# --- the authorities -----------------------------------------------------------------------------------------------


def judge_authorities(authorities: tuple[Certificate, ...], case: Case) -> Upper:
    """All rules but the moment on the CAs of a path, the end entity's issuer first, the anchor last."""
    faults: list[Faults] = []
    families: set[Family] = set()
    limits: list[tuple[Certificate, NameConstraints]] = []
    comparisons = _MAX_COMPARISONS
    # From the anchor down: each CA is held against what those above it say.
    for index in range(len(authorities), 0, -1):
        certificate, anchored = authorities[index - 1], case if index == len(authorities) else None
        key, family = _key(certificate, families, case.policy, ca=True)
        if family is not None:
            families.add(family)
        names = None
        if limits and not self_issued(certificate):
            names, comparisons = _outside(certificate, limits, comparisons)
        for value in constraints_of(certificate, anchored):
            unreadable = _limit(certificate, value, limits)
            names = names or unreadable
        faults.append(
            (
                key,
                None,  # depends on the moment
                _authority(certificate),
                _path_length(authorities[: index - 1], certificate, anchored),
                departure(certificate, anchor=anchored is not None, web_pki=case.policy.web_pki),
                unknown_critical(certificate),
                _purpose_below(certificate, anchored, case.purpose),
                web_pki.root(certificate) if anchored is not None and case.policy.web_pki else None,
                names,
            )
        )
    asked, explicit = _policies_above(authorities, case)
    anchor = case.anchor.certificate
    if not authorities and case.anchor.name_constraints is not None:
        _limit(anchor, case.anchor.name_constraints, limits)
    return Upper(
        path=authorities,
        faults=tuple(reversed(faults)),
        sound=not (any(map(any, faults)) or isinstance(asked, Text)),
        not_before=max([c.not_before for c in authorities], default=anchor.not_before),
        not_after=min([c.not_after for c in authorities], default=anchor.not_after),
        families=frozenset(families),
        limits=tuple(limits),
        comparisons=comparisons,
        asked=asked,
        explicit=explicit,
        case=case,
    )


def family_of(certificate: Certificate) -> Family:
    """``sm2``, ``pq`` (ML-DSA) or ``ecc`` (RSA, NIST curves, Ed25519). Raises as ``Certificate.public_key``."""
    return _family(certificate.key_kind)


def _family(kind: KeyKind) -> Family:
    return "sm2" if kind is KeyKind.SM2 else "pq" if kind is KeyKind.ML_DSA_65 else "ecc"


def _key(certificate: Certificate, above: Set[Family], policy: Policy, *, ca: bool) -> tuple[Text | None, Family | None]:
    """The key passes the key policy, is strong enough, and of one algorithm family with those above; and the family."""
    try:
        # The keys of CAs are ready already: they have verified something.
        kind = certificate.public_key.kind if ca else certificate.key_kind
    except (Malformed, Unavailable) as error:
        return say("bad_key", who=certificate, why=error), None
    family, strength, fault = _family(kind), STRENGTHS[kind], None
    if above and family not in above and not policy.mixed_families:
        fault = say("mixed_families", families=", ".join(sorted({family, *above})))
    elif family not in policy.families:
        fault = say("family_not_taken", who=certificate, family=family)
    elif strength < policy.minimum_strength:
        fault = say("too_weak", who=certificate, strength=strength, minimum=policy.minimum_strength)
    return fault, family


def validity(certificate: Certificate, now: datetime) -> Text | None:
    """Whole seconds, inclusive at both ends (RFC 5280 4.1.2.5)."""
    if now > certificate.not_after:
        return say("expired", who=certificate, at=certificate.not_after)
    if now < certificate.not_before:
        return say("not_yet_valid", who=certificate, at=certificate.not_before)
    return None


def _authority(certificate: Certificate) -> Text | None:
    if not certificate.is_ca:
        return say("not_ca", issuer=certificate)
    if extensions.KEY_USAGE in certificate.extensions and "keyCertSign" not in certificate.key_usage:
        return say("no_cert_sign", issuer=certificate)
    return None


def _path_length(below: Sequence[Certificate], certificate: Certificate, anchored: Case | None) -> Text | None:
    """No CA has more CAs below it than it may; self-issued ones do not count, the end entity never does."""
    limit = certificate.path_length
    if anchored is not None and anchored.anchor.path_length is not None:
        limit = anchored.anchor.path_length if limit is None else min(limit, anchored.anchor.path_length)
    if limit is None:
        return None
    count = sum([not self_issued(c) for c in below])
    return None if count <= limit else say("path_length", issuer=certificate, limit=limit, count=count)


def constraints_of(certificate: Certificate, anchored: Case | None) -> list[bytes]:
    """Name constraints of a CA, and of who trusts it: DER."""
    own = certificate.extensions.get(NAME_CONSTRAINTS)
    found = [] if own is None else [own.value]
    if anchored is not None and anchored.anchor.name_constraints is not None:
        found.append(anchored.anchor.name_constraints)
    return found


def _limit(certificate: Certificate, value: bytes, limits: list[tuple[Certificate, NameConstraints]]) -> Text | None:
    """Adds what a CA, or who trusts it, limits to ``limits``; why that cannot be read."""
    try:
        limits.append((certificate, read_name_constraints(value)))
    except Malformed as error:
        return say("bad_constraint", issuer=certificate, why=error)
    return None


def _outside(certificate: Certificate, limits: Sequence[tuple[Certificate, NameConstraints]], comparisons: int) -> tuple[Text | None, int]:
    """The certificate's names against the constraints of every CA above it; how many comparisons are left then."""
    try:
        names = all_names(certificate)
        for issuer, limit in limits:
            comparisons -= len(names) * len(limit)
            if comparisons < 0:
                return say("too_many_names"), 0
            outside = violation(limit, names)
            if outside is not None:
                return say("name_constraint", issuer=issuer, who=certificate, name=describe(outside)), comparisons
    except Malformed as error:
        return say("bad_name", who=certificate, name=error), comparisons
    return None, comparisons


def _purpose_below(certificate: Certificate, anchored: Case | None, purpose: Purpose) -> Text | None:
    untrusted = None if anchored is None else _untrusted(anchored.anchor, purpose)
    return untrusted or why_not_below(certificate, purpose)


def _untrusted(anchor: Anchor, purpose: Purpose) -> Text | None:
    if not anchor.purposes or purpose in anchor.purposes:
        return None
    return say("anchor_purpose", who=anchor.certificate, purpose=say(f"for_{purpose}"))


def _policies_above(authorities: tuple[Certificate, ...], case: Case) -> tuple[Initial | Text, int]:
    try:
        asked = initial(case.policy, case.anchor)
        return asked, explicit_left(authorities, asked)
    except Malformed as error:
        return say("bad_policies", why=error), 0


# --- the end entity ------------------------------------------------------------------------------------------------


def judge(certificate: Certificate, upper: Upper, expected: Expected, now: datetime) -> Faults:
    """All rules on the end entity, at this moment (whole seconds)."""
    policy = upper.case.policy
    return (
        _key(certificate, upper.families, policy, ca=False)[0],
        validity(certificate, now),
        departure(certificate, anchor=False, web_pki=policy.web_pki),
        unknown_critical(certificate),
        _within(certificate, upper),
        _policies(certificate, upper),
        _purpose(certificate, upper),
        _expected_names(certificate, expected),
        web_pki.subscriber(certificate, policy.public_suffixes) if policy.web_pki else None,
    )


def _within(certificate: Certificate, upper: Upper) -> Text | None:
    """The names against the constraints of every CA, or of who trusts the end entity itself as an anchor."""
    if upper.limits:
        return _outside(certificate, upper.limits, upper.comparisons)[0]
    value = None if upper.path else upper.case.anchor.name_constraints
    return None if value is None else _limit(certificate, value, [])


def _purpose(certificate: Certificate, upper: Upper) -> Text | None:
    # An anchor that is itself the peer is good only for what it is trusted for.
    untrusted = None if upper.path else _untrusted(upper.case.anchor, upper.case.purpose)
    return untrusted or why_not(certificate, upper.case.purpose)


def _policies(certificate: Certificate, upper: Upper) -> Text | None:
    """Certificate policies, mappings and their constraints, for the path as a whole."""
    if isinstance(upper.asked, Text):
        return upper.asked
    try:
        if not required(certificate, upper.explicit) or acceptable((certificate, *upper.path), upper.asked):
            return None
    except Malformed as error:
        return say("bad_policies", why=error)
    return say("policy_missing")


def _expected_names(certificate: Certificate, expected: Expected) -> Text | None:
    """Each name that was asked for is one of the end entity's alternative names."""
    names = certificate.names
    for name in expected.names:
        if not covers(names, name):
            return say("wrong_name", who=certificate, name=name, names=", ".join(names) or "-")
    return None


def holds(upper: Upper, faults: Faults, now: datetime) -> bool:
    """Whether no rule is broken, on the end entity or above it, at this moment (whole seconds)."""
    return upper.sound and upper.not_before <= now <= upper.not_after and not any(faults)
