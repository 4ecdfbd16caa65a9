"""The rules that a complete path has to obey (RFC 5280 6.1.1, 6.1.3 to 6.1.5).

    upper = judge_authorities(path[1:], case)     # the CAs, anchor last: once for all that they certify
    checks = judge(path[0], upper, expected, now) # the end entity below them, at a moment

A rule looks at one certificate and returns a Check; every rule looks at every certificate, also after one has failed. The anchor's
certificate obeys the same rules as the others, save for its signature (RFC 5937). Nothing in ``Upper`` depends on the moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from pkix import extensions
from pkix.algorithms import KeyKind
from pkix.certificate import Certificate
from pkix.constraints import NAME_CONSTRAINTS
from pkix.errors import Malformed, Unavailable
from validate import web_pki
from validate.constraints import NameConstraints, describe, read_name_constraints, violation
from validate.model import Anchor, Check, Expected, Family, Policy, Purpose
from validate.names import all_names, covers, self_issued
from validate.policy_graph import Initial, acceptable, explicit_left, initial, required
from validate.profile import departure, unknown_critical
from validate.purposes import USES, why_not, why_not_below
from validate.text import Text, say

CLAUSES = {
    "signature": "RFC 5280 6.1.3 (a)(1), (a)(4)",
    "key": "RFC 5280 6.1.4 (d); strength and family by local policy",
    "validity": "RFC 5280 6.1.3 (a)(2)",
    "authority": "RFC 5280 6.1.4 (k), (n)",
    "path-length": "RFC 5280 6.1.4 (l), (m)",
    "profile": "RFC 5280 4.1, 4.2",
    "critical-extensions": "RFC 5280 6.1.4 (o), 6.1.5 (f)",
    "name-constraints": "RFC 5280 6.1.3 (b), (c)",
    "certificate-policies": "RFC 5280 6.1.3 (d)-(f); RFC 9618",
    "purpose": "RFC 5280 4.2.1.3, 4.2.1.12",
    "names": "RFC 9525 6",
    "web-pki": "CA/Browser Forum BR 7.1",
    "status": "RFC 5280 6.1.3 (a)(3)",
    "path": "RFC 5280 6.1",
}
"""Every check by name, in the order in which failures are reported, and its clause."""
_RANK = {name: rank for rank, name in enumerate(CLAUSES)}
_SM2_SIGNATURE = "RFC 5280 6.1.3 (a)(1), (a)(4); GM/T 0009 10 (default id)"

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


@dataclass(frozen=True, slots=True)
class Upper:
    """The CAs of a path, judged but for the moment.

    Attributes:
        path: the end entity's issuer first, the anchor last; empty if the end entity is the anchor.
        checks: of these certificates; those of validity as they are between ``not_before`` and ``not_after``.
        families: of their keys.
        limits: name constraints above the end entity, with whom they are of.
        comparisons: of names with constraints, that are left for the end entity.
        signed: the check that the issuer's key signed the end entity.
        asked, explicit: certificate policies asked for (None: they cannot be read), and certificates to go until one is required.
        case: what it was judged for.
    """

    path: tuple[Certificate, ...]
    checks: tuple[Check, ...]
    not_before: datetime
    not_after: datetime
    families: frozenset[Family]
    limits: tuple[tuple[Certificate, NameConstraints], ...]
    comparisons: int
    signed: Check
    asked: Initial | None
    explicit: int
    case: Case


def failed(checks: Sequence[Check]) -> Check | None:
    """The failure that a person should hear of first: by rule, then from the end entity up."""
    found = [check for check in checks if check.outcome == "failed"]
    return min(found, key=lambda check: (_RANK[check.name], check.index or 0)) if found else None


@lru_cache(maxsize=1024)
def _passed(name: str, index: int | None, code: str) -> Check:
    return Check(name, "ok", say(code), CLAUSES[name], index)


@lru_cache(maxsize=1024)
def _skipped(name: str, index: int | None, code: str) -> Check:
    return Check(name, "skipped", say(code), CLAUSES[name], index)


def _judged(name: str, index: int | None, fault: Text | None, passed: str) -> Check:
    return _passed(name, index, passed) if fault is None else Check(name, "failed", fault, CLAUSES[name], index)


# --- the authorities -----------------------------------------------------------------------------------------------


def judge_authorities(authorities: tuple[Certificate, ...], case: Case) -> Upper:
    """All rules but the moment on the CAs of a path, the end entity's issuer first, the anchor last."""
    checks: list[Check] = []
    families: set[Family] = set()
    limits: list[tuple[Certificate, NameConstraints]] = []
    comparisons = _MAX_COMPARISONS
    # From the anchor down: each CA is held against what those above it say.
    for index in range(len(authorities), 0, -1):
        certificate = authorities[index - 1]
        own = _by_itself(authorities, index, families, case)
        if limits and not self_issued(certificate):
            check, comparisons = _within(certificate, index, limits, comparisons)
            own.append(check)
        extension = certificate.extensions.get(NAME_CONSTRAINTS)
        if extension is not None:
            own += _limits_of(certificate, index, extension.value, limits)
        if index == len(authorities) and case.anchor.name_constraints is not None:
            own += _limits_of(certificate, index, case.anchor.name_constraints, limits)
        checks = own + checks
    asked, left, problem = _policies_above(authorities, case)
    anchored = case.anchor.certificate
    if not authorities and case.anchor.name_constraints is not None:
        problem = [*_limits_of(anchored, 0, case.anchor.name_constraints, limits), *problem]
    return Upper(
        path=authorities,
        checks=(*checks, *problem),
        not_before=max((c.not_before for c in authorities), default=anchored.not_before),
        not_after=min((c.not_after for c in authorities), default=anchored.not_after),
        families=frozenset(families),
        limits=tuple(limits),
        comparisons=comparisons,
        signed=_signature(anchored, 0, authorities[0] if authorities else None),
        asked=asked,
        explicit=left,
        case=case,
    )


def _by_itself(authorities: tuple[Certificate, ...], index: int, families: set[Family], case: Case) -> list[Check]:
    """What does not depend on the names and policies above. Adds to ``families``."""
    certificate, last = authorities[index - 1], index == len(authorities)
    checks = [
        _signature(certificate, index, None if last else authorities[index]),
        _key(certificate, index, families, case.policy),
        _validity(certificate, index, None),
        _authority(certificate, index),
        _path_length(authorities[: index - 1], certificate, index, case if last else None),
        _judged("profile", index, departure(certificate, anchor=last, web_pki=case.policy.web_pki), "profile_ok"),
        _judged("critical-extensions", index, unknown_critical(certificate), "extensions_ok"),
        _purpose_below(certificate, index, case if last else None, case.purpose),
    ]
    if last and case.policy.web_pki:
        checks.append(_judged("web-pki", index, web_pki.root(certificate), "web_ok"))
    return checks


def _signature(certificate: Certificate, index: int, issuer: Certificate | None) -> Check:
    """The search has verified it."""
    if issuer is None:
        return Check("signature", "skipped", say("is_anchor", who=certificate), CLAUSES["signature"], index)
    clause = _SM2_SIGNATURE if issuer.public_key.kind is KeyKind.SM2 else CLAUSES["signature"]
    return Check("signature", "ok", say("signed_by", issuer=issuer), clause, index)


def family_of(certificate: Certificate) -> Family:
    """``sm2``, ``pq`` (ML-DSA) or ``ecc`` (RSA, NIST curves, Ed25519). Raises as ``Certificate.public_key``."""
    return _family(certificate.key_kind)


def _family(kind: KeyKind) -> Family:
    return "sm2" if kind is KeyKind.SM2 else "pq" if kind is KeyKind.ML_DSA_65 else "ecc"


def _key(certificate: Certificate, index: int, families: set[Family], policy: Policy) -> Check:
    """The key passes the key policy, is strong enough, and of one algorithm family with those above. Adds to ``families``."""
    try:
        # The keys of CAs are ready already: they have verified something.
        kind = certificate.public_key.kind if index else certificate.key_kind
    except (Malformed, Unavailable) as error:
        return _judged("key", index, say("bad_key", who=certificate, why=error), "")
    family, strength, fault = _family(kind), STRENGTHS[kind], None
    if families and family not in families and not policy.mixed_families:
        fault = say("mixed_families", families=", ".join(sorted({family, *families})))
    elif family not in policy.families:
        fault = say("family_not_taken", who=certificate, family=family)
    elif strength < policy.minimum_strength:
        fault = say("too_weak", who=certificate, strength=strength, minimum=policy.minimum_strength)
    families.add(family)
    return _judged("key", index, fault, f"key_{family}")


def _validity(certificate: Certificate, index: int, now: datetime | None) -> Check:
    """Whole seconds, inclusive at both ends (RFC 5280 4.1.2.5). ``now`` None: some moment within."""
    if now is not None and now > certificate.not_after:
        return _judged("validity", index, say("expired", who=certificate, at=certificate.not_after), "")
    if now is not None and now < certificate.not_before:
        return _judged("validity", index, say("not_yet_valid", who=certificate, at=certificate.not_before), "")
    return Check("validity", "ok", say("valid_until", at=certificate.not_after), CLAUSES["validity"], index)


def _authority(certificate: Certificate, index: int) -> Check:
    fault = None
    if not certificate.is_ca:
        fault = say("not_ca", issuer=certificate)
    elif extensions.KEY_USAGE in certificate.extensions and "keyCertSign" not in certificate.key_usage:
        fault = say("no_cert_sign", issuer=certificate)
    return _judged("authority", index, fault, "ca_ok")


def _path_length(below: Sequence[Certificate], certificate: Certificate, index: int, anchored: Case | None) -> Check:
    """No CA has more CAs below it than it may; self-issued ones do not count, the end entity never does."""
    limits = [certificate.path_length, None if anchored is None else anchored.anchor.path_length]
    limit = min((limit for limit in limits if limit is not None), default=None)
    count = sum(not self_issued(c) for c in below)
    fault = None if limit is None or count <= limit else say("path_length", issuer=certificate, limit=limit, count=count)
    return _judged("path-length", index, fault, "path_length_ok")


def _limits_of(certificate: Certificate, index: int, value: bytes, limits: list[tuple[Certificate, NameConstraints]]) -> list[Check]:
    """Adds what a CA, or who trusts it, limits to ``limits``; a check only if that cannot be read."""
    try:
        limits.append((certificate, read_name_constraints(value)))
    except Malformed as error:
        return [_judged("name-constraints", index, say("bad_constraint", issuer=certificate, why=error), "")]
    return []


def _within(
    certificate: Certificate, index: int, limits: Sequence[tuple[Certificate, NameConstraints]], comparisons: int
) -> tuple[Check, int]:
    """The certificate's names against the constraints of every CA above it; how many comparisons are left then."""
    if not limits:
        return _skipped("name-constraints", index, "no_name_constraints"), comparisons
    try:
        names = all_names(certificate)
        for issuer, limit in limits:
            comparisons -= len(names) * len(limit)
            if comparisons < 0:
                return _judged("name-constraints", index, say("too_many_names"), ""), 0
            outside = violation(limit, names)
            if outside is not None:
                fault = say("name_constraint", issuer=issuer, who=certificate, name=describe(outside))
                return _judged("name-constraints", index, fault, ""), comparisons
    except Malformed as error:
        return _judged("name-constraints", index, say("bad_name", who=certificate, name=error), ""), comparisons
    return _passed("name-constraints", index, "names_allowed"), comparisons


def _purpose_below(certificate: Certificate, index: int, anchored: Case | None, purpose: Purpose) -> Check:
    untrusted = None if anchored is None else _untrusted(anchored.anchor, purpose)
    if untrusted is not None:
        return _judged("purpose", index, untrusted, "")
    if purpose == "any":
        return _skipped("purpose", index, "any_purpose")
    return _judged("purpose", index, why_not_below(certificate, purpose), f"may_{purpose}")


def _untrusted(anchor: Anchor, purpose: Purpose) -> Text | None:
    if not anchor.purposes or purpose in anchor.purposes:
        return None
    return say("anchor_purpose", who=anchor.certificate, purpose=say(f"for_{purpose}"))


def _policies_above(authorities: tuple[Certificate, ...], case: Case) -> tuple[Initial | None, int, list[Check]]:
    try:
        asked = initial(case.policy, case.anchor)
        return asked, explicit_left(authorities, asked), []
    except Malformed as error:
        return None, 0, [_judged("certificate-policies", None, say("bad_policies", why=error), "")]


# --- the end entity ------------------------------------------------------------------------------------------------


def judge(certificate: Certificate, upper: Upper, expected: Expected, now: datetime) -> tuple[Check, ...]:
    """All rules on the end entity, and the checks of the CAs above it at this moment (whole seconds)."""
    policy = upper.case.policy
    return (
        upper.signed,
        _key(certificate, 0, set(upper.families), policy),
        _validity(certificate, 0, now),
        _judged("profile", 0, departure(certificate, anchor=False, web_pki=policy.web_pki), "profile_ok"),
        _judged("critical-extensions", 0, unknown_critical(certificate), "extensions_ok"),
        _within(certificate, 0, upper.limits, upper.comparisons)[0],
        _policies(certificate, upper),
        _purpose(certificate, upper),
        _expected_names(certificate, expected),
        *([_judged("web-pki", 0, web_pki.subscriber(certificate, policy.public_suffixes), "web_ok")] if policy.web_pki else ()),
        *authorities_at(upper, now),
    )


def authorities_at(upper: Upper, now: datetime) -> tuple[Check, ...]:
    """The checks of the CAs at a moment (whole seconds)."""
    if upper.not_before <= now <= upper.not_after:
        return upper.checks
    return tuple(
        _validity(upper.path[check.index - 1], check.index, now) if check.name == "validity" and check.index else check
        for check in upper.checks
    )


def _policies(certificate: Certificate, upper: Upper) -> Check:
    """Certificate policies, mappings and their constraints, for the path as a whole."""
    if upper.asked is None:
        return _skipped("certificate-policies", 0, "policies_unread")
    try:
        if not required(certificate, upper.explicit):
            return _passed("certificate-policies", None, "policies_free")
        good = acceptable((certificate, *upper.path), upper.asked)
    except Malformed as error:
        return _judged("certificate-policies", None, say("bad_policies", why=error), "")
    return _judged("certificate-policies", None, None if good else say("policy_missing"), "policies_ok")


def _purpose(certificate: Certificate, upper: Upper) -> Check:
    purpose = upper.case.purpose
    # An anchor that is itself the peer is good only for what it is trusted for.
    untrusted = None if upper.path else _untrusted(upper.case.anchor, purpose)
    if untrusted is not None:
        return _judged("purpose", 0, untrusted, "")
    if purpose == "any":
        return _skipped("purpose", 0, "any_purpose")
    fault = why_not(certificate, purpose)
    return _purpose_ok(purpose) if fault is None else Check("purpose", "failed", fault, USES[purpose].clause, 0)


@lru_cache
def _purpose_ok(purpose: Purpose) -> Check:
    return Check("purpose", "ok", say(f"may_{purpose}"), USES[purpose].clause, 0)


def _expected_names(certificate: Certificate, expected: Expected) -> Check:
    """Each name that was asked for is one of the end entity's alternative names."""
    if not expected.names:
        return _skipped("names", 0, "any_name")
    names = certificate.names
    for name in expected.names:
        if not covers(names, name):
            fault = say("wrong_name", who=certificate, name=name, names=", ".join(names) or "-")
            return Check("names", "failed", fault, CLAUSES["names"], 0)
    return _names_ok(expected.names)


@lru_cache(maxsize=1024)
def _names_ok(names: tuple[str, ...]) -> Check:
    return Check("names", "ok", say("names_ok", names=", ".join(names)), CLAUSES["names"], 0)
