"""The rules that a complete path has to obey (RFC 5280 6.1.3 to 6.1.5), one function each, in the order in which they are reported.

    for check in judge(path, policy, now): ...

Each rule returns the sentence of what is wrong, or of what it saw; ``Fault`` marks the former. Paths are end entity first, anchor last; the
anchor's certificate obeys the same rules as the others (RFC 5937), save for its signature.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from itertools import pairwise
from typing import NamedTuple

from pkix import extensions
from pkix.algorithms import KeyKind
from pkix.certificate import Certificate
from pkix.errors import Malformed
from validate.constraints import describe, read_name_constraints, violation
from validate.model import Check, Policy
from validate.names import all_names, covers, self_issued
from validate.path import Path
from validate.policy_graph import acceptable
from validate.profile import NAME_CONSTRAINTS, UNDERSTOOD, departure
from validate.text import Text, say

_ANY_PURPOSE = extensions.EXTENDED_KEY_USAGES["anyExtendedKeyUsage"]
_PURPOSES = {
    "client": (extensions.EXTENDED_KEY_USAGES["clientAuth"], frozenset(("digitalSignature", "keyAgreement"))),
    "server": (extensions.EXTENDED_KEY_USAGES["serverAuth"], frozenset(("digitalSignature", "keyEncipherment", "keyAgreement"))),
}
"""Purpose → key purpose, and key usages of which the end entity needs one (RFC 5280 4.2.1.12)."""

_MAX_COMPARISONS = 100_000


class Fault(NamedTuple):
    """What is wrong."""

    text: Text


class Skip(NamedTuple):
    """That a rule had nothing to judge, and why."""

    text: Text


class Case(NamedTuple):
    """What a rule judges."""

    path: Path
    policy: Policy
    now: datetime


Finding = Text | Fault | Skip
Rule = Callable[[Case], Finding]


def judge(path: Path, policy: Policy, now: datetime) -> tuple[Check, ...]:
    """All rules on a complete path; all of them are looked at, also after one has failed."""
    case = Case(path, policy, now)
    return tuple(_check(name, clause, rule(case)) for name, clause, rule in RULES)


def _check(name: str, clause: str, finding: Finding) -> Check:
    if isinstance(finding, Fault):
        return Check(name, "fail", finding.text, clause)
    if isinstance(finding, Skip):
        return Check(name, "skipped", finding.text, clause)
    return Check(name, "pass", finding, clause)


def signatures(case: Case) -> Finding:
    """The search has verified them."""
    if len(case.path) == 1:
        return say("is_anchor", who=case.path[0])
    return say("path_found", count=len(case.path) - 1, anchor=case.path[-1])


def family_of(certificate: Certificate) -> str:
    """``sm2``, ``pq`` (ML-DSA) or ``ecc`` (RSA, NIST curves, Ed25519). Raises as ``Certificate.public_key``."""
    kind = certificate.public_key.kind
    return "sm2" if kind == KeyKind.SM2 else "pq" if kind == KeyKind.ML_DSA_65 else "ecc"


def keys(case: Case) -> Finding:
    """Every key, the end entity's too, passes the key policy, and all are of one algorithm family unless the policy lets them mix."""
    found = set()
    for certificate in case.path:
        try:
            found.add(family_of(certificate))
        except Malformed as error:
            return Fault(say("bad_key", who=certificate, why=error))
    if len(found) == 1 or case.policy.mixed_families:
        return say("keys_ok", families=", ".join(sorted(found)))
    return Fault(say("mixed_families", families=", ".join(sorted(found))))


def validity(case: Case) -> Finding:
    """Whole seconds, inclusive at both ends (RFC 5280 4.1.2.5)."""
    at = case.now.replace(microsecond=0)
    for certificate in case.path:
        if at > certificate.not_after:
            return Fault(say("expired", who=certificate, at=certificate.not_after))
        if at < certificate.not_before:
            return Fault(say("not_yet_valid", who=certificate, at=certificate.not_before))
    return say("validity_ok", at=at)


def profile(case: Case) -> Finding:
    """Each certificate by itself (``validate.profile``)."""
    for at, certificate in enumerate(case.path, 1):
        broken = departure(certificate, anchor=at == len(case.path) > 1)
        if broken is not None:
            return Fault(broken)
    return say("profile_ok")


def critical_extensions(case: Case) -> Finding:
    """Nothing critical that is not understood."""
    for certificate in case.path:
        for oid, extension in certificate.extensions.items():
            if extension.critical and oid not in UNDERSTOOD:
                return Fault(say("unknown_critical", who=certificate, oid=oid))
    return say("extensions_ok")


def authorities(case: Case) -> Finding:
    """Every issuer is a CA and may sign certificates."""
    for certificate, issuer in pairwise(case.path):
        if not issuer.is_ca:
            return Fault(say("not_ca", who=certificate, issuer=issuer))
        if extensions.KEY_USAGE in issuer.extensions and "keyCertSign" not in issuer.key_usage:
            return Fault(say("no_cert_sign", issuer=issuer))
    return say("ca_ok")


def path_lengths(case: Case) -> Finding:
    """No CA has more CAs below it than it may; self-issued ones do not count, the end entity never does."""
    below = 0
    for certificate in case.path[1:]:
        limit = certificate.path_length
        if limit is not None and below > limit:
            return Fault(say("path_length", issuer=certificate, limit=limit, count=below))
        below += not self_issued(certificate)
    return say("path_length_ok")


def name_constraints(case: Case) -> Finding:
    """Every certificate's names against the constraints of every CA above it; self-issued CAs are exempt."""
    budget, constrained = _MAX_COMPARISONS, False
    for at, issuer in enumerate(case.path):
        extension = issuer.extensions.get(NAME_CONSTRAINTS)
        if at == 0 or extension is None:
            continue
        constrained = True
        try:
            limits = read_name_constraints(extension.value)
            for below, certificate in enumerate(case.path[:at]):
                if below and self_issued(certificate):
                    continue
                names = all_names(certificate)
                budget -= len(names) * len(limits)
                if budget < 0:
                    return Fault(say("too_many_names"))
                outside = violation(limits, names)
                if outside is not None:
                    return Fault(say("name_constraint", issuer=issuer, who=certificate, name=describe(outside)))
        except Malformed as error:
            return Fault(say("bad_constraint", issuer=issuer, why=error))
    return say("names_allowed") if constrained else Skip(say("no_name_constraints"))


def certificate_policies(case: Case) -> Finding:
    """Certificate policies, mappings and their constraints."""
    try:
        good = acceptable(case.path, case.policy.certificate_policies, case.policy.explicit_policy)
    except Malformed as error:
        return Fault(say("bad_policies", who=case.path[0], why=error))
    return say("policies_ok") if good else Fault(say("policy_missing"))


def purpose(case: Case) -> Finding:
    """Key usages of the end entity, and extended ones of every certificate below the anchor that has them.

    anyExtendedKeyUsage is enough in a CA, not in an end entity: an application may ask that its purpose be named (RFC 5280 4.2.1.12).
    """
    if case.policy.purpose == "any":
        return Skip(say("any_purpose"))
    oid, usages = _PURPOSES[case.policy.purpose]
    for at, certificate in enumerate(case.path):
        named = certificate.extended_key_usage
        if named and oid not in named and (at == 0 or _ANY_PURPOSE not in named):
            return Fault(say("wrong_purpose", who=certificate, purpose=case.policy.purpose, oid=oid))
    usage = case.path[0].key_usage
    if extensions.KEY_USAGE in case.path[0].extensions and not usage & usages:
        return Fault(say("wrong_usage", who=case.path[0], purpose=case.policy.purpose, usage=", ".join(sorted(usage)) or "-"))
    return say("purpose_ok", purpose=case.policy.purpose)


def expected_names(case: Case) -> Finding:
    """Each name that was asked for is one of the end entity's alternative names."""
    if not case.policy.names:
        return Skip(say("any_name"))
    names = case.path[0].names
    for expected in case.policy.names:
        if not covers(names, expected):
            return Fault(say("wrong_name", who=case.path[0], name=expected, names=", ".join(names) or "-"))
    return say("names_ok", names=", ".join(case.policy.names))


RULES: tuple[tuple[str, str, Rule], ...] = (
    ("signatures", "RFC 5280 6.1.3 (a)(1), (a)(4)", signatures),
    ("keys", "RFC 5280 6.1.4 (d); key and family policy", keys),
    ("validity", "RFC 5280 6.1.3 (a)(2)", validity),
    ("authorities", "RFC 5280 6.1.4 (k), (n)", authorities),
    ("path-length", "RFC 5280 6.1.4 (l), (m)", path_lengths),
    ("profile", "RFC 5280 4.1, 4.2", profile),
    ("critical-extensions", "RFC 5280 6.1.4 (o), 6.1.5 (f)", critical_extensions),
    ("name-constraints", "RFC 5280 6.1.3 (b), (c)", name_constraints),
    ("certificate-policies", "RFC 5280 6.1.3 (d)-(f); RFC 9618", certificate_policies),
    ("purpose", "RFC 5280 4.2.1.3, 4.2.1.12; RFC 8446 4.4.2.2", purpose),
    ("names", "RFC 9525 6", expected_names),
)
"""Name, clause and function of every rule."""
