"""The checks of a path in words: every rule on every certificate with its outcome, why, and by which clause.

    checks_of(path[0], upper, expected, now, faults)   # of what ``validate.rules`` has found
    failed(checks)                                     # the one that a person should hear of first first

Put together only when somebody looks: most verdicts are only asked whether they are good.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from pkix.algorithms import KeyKind
from pkix.certificate import Certificate
from validate.model import Check, Expected, Outcome
from validate.names import self_issued
from validate.policy_graph import required
from validate.purposes import USES
from validate.rules import AUTHORITY, END_ENTITY, Faults, Upper, constraints_of, family_of, validity
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


def failed(checks: Iterable[Check]) -> list[Check]:
    """Those that failed, the one that a person should hear of first first: by rule, then from the end entity up."""
    return sorted([check for check in checks if check.outcome == "failed"], key=lambda check: (_RANK[check.name], check.index or 0))


def checks_of(certificate: Certificate, upper: Upper, expected: Expected, now: datetime, faults: Faults) -> tuple[Check, ...]:
    """Every rule with its outcome, from the end entity up; ``faults`` are those of ``judge``."""
    checks = [_signature(certificate, 0, upper)]
    checks += [_check(rule, fault, certificate, 0, upper, expected) for rule, fault in zip(END_ENTITY, faults, strict=True)]
    for index, (authority, found) in enumerate(zip(upper.path, upper.faults, strict=True), 1):
        found = (found[0], validity(authority, now), *found[2:])
        checks.append(_signature(authority, index, upper))
        checks += [_check(rule, fault, authority, index, upper, expected) for rule, fault in zip(AUTHORITY, found, strict=True)]
    return tuple([check for check in checks if check is not None])


def _signature(certificate: Certificate, index: int, upper: Upper) -> Check | None:
    """The search has verified it."""
    if index == len(upper.path):
        return Check("signature", "skipped", say("is_anchor", who=certificate), CLAUSES["signature"], index)
    issuer = upper.path[index]
    clause = _SM2_SIGNATURE if issuer.public_key.kind is KeyKind.SM2 else CLAUSES["signature"]
    return Check("signature", "ok", say("signed_by", issuer=issuer), clause, index)


def _check(rule: str, fault: Text | None, certificate: Certificate, index: int, upper: Upper, expected: Expected) -> Check | None:
    """One rule with its outcome; None: there is nothing to be said."""
    outcome: Outcome = "ok"
    detail = fault or _in_order(rule, certificate, index, upper, expected)
    if detail is None:
        return None
    if fault is not None:
        outcome = "failed"
    elif detail.code in _NOTHING_TO_JUDGE:
        outcome = "skipped"
    purpose = upper.case.purpose
    clause = USES[purpose].clause if rule == "purpose" and index == 0 and purpose != "any" else CLAUSES[rule]
    return Check(rule, outcome, detail, clause, None if rule == "certificate-policies" else index)


_IN_ORDER = {"authority": "ca_ok", "path-length": "path_length_ok", "profile": "profile_ok", "critical-extensions": "extensions_ok"}
_NOTHING_TO_JUDGE = frozenset(("no_name_constraints", "any_purpose", "any_name"))


def _in_order(rule: str, certificate: Certificate, index: int, upper: Upper, expected: Expected) -> Text | None:
    """What is said where nothing is wrong."""
    case = upper.case
    match rule:
        case "key":
            return say(f"key_{family_of(certificate)}")
        case "validity":
            return say("valid_until", at=certificate.not_after)
        case "name-constraints":
            if index == 0:
                return say("names_allowed" if upper.limits else "no_name_constraints")
            above = any(constraints_of(issuer, case if issuer is upper.path[-1] else None) for issuer in upper.path[index:])
            return say("names_allowed") if above and not self_issued(certificate) else None
        case "certificate-policies":
            return say("policies_ok" if required(certificate, upper.explicit) else "policies_free")
        case "purpose":
            return say("any_purpose" if case.purpose == "any" else f"may_{case.purpose}")
        case "names":
            return say("names_ok", names=", ".join(expected.names)) if expected.names else say("any_name")
        case "web-pki":
            return say("web_ok") if case.policy.web_pki and index in (0, len(upper.path)) else None
        case _:
            return say(_IN_ORDER[rule])
