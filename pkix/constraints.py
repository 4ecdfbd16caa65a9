"""Extensions by which a CA limits those below it: encoders (RFC 5280 4.2.1.5, 4.2.1.10, 4.2.1.11, 4.2.1.14).

    name_constraints(permitted=["dns:plant.example", "ip:10.20.0.0/16", name(("O", "Example Plant"))], excluded=["dns:lab.plant.example"])
    policy_mappings((ours, theirs))
    policy_constraints(explicit=0)

They are read in ``validate``, which is who obeys them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from pkix import der
from pkix.errors import Malformed
from pkix.extensions import Extension
from pkix.name import Name

NAME_CONSTRAINTS, POLICY_MAPPINGS, POLICY_CONSTRAINTS, INHIBIT_ANY_POLICY = "2.5.29.30", "2.5.29.33", "2.5.29.36", "2.5.29.54"
ANY_POLICY = "2.5.29.32.0"

_TEXT_KINDS = {"email": 1, "dns": 2, "uri": 6}


def name_constraints(permitted: Iterable[str | Name] = (), excluded: Iterable[str | Name] = ()) -> Extension:
    """NameConstraints, critical. Raises Malformed: no subtree at all, or one that is none (``subtree``)."""
    trees = [
        der.context(number, *(der.sequence(subtree(base)) for base in bases))
        for number, bases in enumerate((list(permitted), list(excluded)))
        if bases
    ]
    if not trees:
        raise Malformed("name constraints need at least one permitted or excluded subtree (RFC 5280 4.2.1.10)")
    return Extension(NAME_CONSTRAINTS, True, der.sequence(*trees))


def subtree(base: str | Name) -> bytes:
    """The GeneralName of a subtree.

    ``dns:plant.example`` (and everything below; ``dns:`` alone is every host), ``email:`` or ``uri:`` with a host, with ``.`` and a domain
    (everything below it), or, for mail, a whole address; ``ip:`` with a network in CIDR; a ``Name`` (and every name that begins with it).

    Raises:
        Malformed: another kind, characters outside ASCII, no network.
    """
    if isinstance(base, Name):
        return der.context(4, base.der)
    kind, _, value = base.partition(":")
    if kind == "ip":
        try:
            network = ipaddress.ip_network(value)
        except ValueError:
            raise Malformed(f"{base!r} is no network; it is written like ip:10.20.0.0/16") from None
        return der.context(7, network.network_address.packed + network.netmask.packed, constructed=False)
    if kind not in _TEXT_KINDS or not value.isascii() or not (value or kind == "dns"):
        raise Malformed(f"{base!r} is no subtree of names; it begins with dns:, ip:, email: or uri: and is ASCII")
    return der.context(_TEXT_KINDS[kind], value.encode("ascii"), constructed=False)


def policy_mappings(*pairs: tuple[str, str]) -> Extension:
    """PolicyMappings, critical: (policy of the issuer, policy of the subject that it considers the same). Raises Malformed on anyPolicy."""
    if not pairs or any(ANY_POLICY in pair for pair in pairs):
        raise Malformed("policy mappings are pairs of certificate policies, anyPolicy not among them (RFC 5280 4.2.1.5)")
    return Extension(POLICY_MAPPINGS, True, der.sequence(*(der.sequence(der.oid(ours), der.oid(theirs)) for ours, theirs in pairs)))


def policy_constraints(*, explicit: int | None = None, mapping: int | None = None) -> Extension:
    """PolicyConstraints, critical: after how many certificates a policy is required, and mapping no longer allowed."""
    counts = [(number, count) for number, count in enumerate((explicit, mapping)) if count is not None]
    if not counts or any(count < 0 for _, count in counts):
        raise Malformed("policy constraints need one of explicit and mapping, not negative (RFC 5280 4.2.1.11)")
    return Extension(
        POLICY_CONSTRAINTS,
        True,
        der.sequence(*(der.context(number, der.integer(count)[2:], constructed=False) for number, count in counts)),
    )


def inhibit_any_policy(skip: int) -> Extension:
    """InhibitAnyPolicy, critical: after how many certificates anyPolicy no longer counts."""
    if skip < 0:
        raise Malformed("inhibitAnyPolicy counts certificates and is not negative (RFC 5280 4.2.1.14)")
    return Extension(INHIBIT_ANY_POLICY, True, der.integer(skip))
