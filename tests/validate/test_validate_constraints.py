"""Name constraints and certificate policies, through whole paths."""

from __future__ import annotations

import pytest

from pkix import der, extensions
from pkix.extensions import Extension
from pkix.name import name


def mail(text: str) -> bytes:
    return der.context(1, text.encode(), constructed=False)


def uri(text: str) -> bytes:
    return der.context(6, text.encode(), constructed=False)


def net(text: str) -> bytes:
    return der.context(7, bytes.fromhex(text), constructed=False)


def directory(*attributes: tuple[str, str]) -> bytes:
    return der.context(4, name(*attributes).der)


def dns(text: str) -> bytes:
    return der.context(2, text.encode(), constructed=False)


def constrained(pki, permitted=(), excluded=(), *, names=("dns:plc-7.plant.example",), **leaf):
    plant = pki.plant()
    issuing = pki.issue(plant.root, "limited", ca=True, extra=(pki.name_constraints(tuple(permitted), tuple(excluded)),))
    return plant.validate(pki.issue(issuing, "plc-7", names=names, **leaf), chain=[issuing])


@pytest.mark.parametrize(
    ("permitted", "excluded", "names", "good"),
    [
        ([dns("plant.example")], [], ["dns:plc-7.plant.example"], True),
        ([dns("plant.example")], [], ["dns:plant.example"], True),
        ([dns("plant.example")], [], ["dns:implant.example"], False),
        ([dns("PLANT.example")], [], ["dns:plc-7.plant.example"], True),
        ([dns("a.example"), dns("plant.example")], [], ["dns:plc-7.plant.example", "dns:x.a.example"], True),
        ([dns("plant.example")], [dns("plc-7.plant.example")], ["dns:plc-7.plant.example"], False),
        ([], [dns("plant.example")], ["dns:elsewhere.example"], True),
        ([], [dns("plc-7.plant.example")], ["dns:*.plant.example"], False),
        ([dns("plc-7.plant.example")], [], ["dns:*.plant.example"], False),
        ([dns("plant.example")], [], ["dns:*.plant.example"], True),
        ([dns("plant.example")], [], ["ip:192.0.2.7"], True),  # a kind without constraints is free
        ([], [dns("")], ["dns:any.example"], False),
        ([net("c0000200ffffff00")], [], ["ip:192.0.2.7"], True),
        ([net("c0000200ffffff00")], [], ["ip:192.0.3.7"], False),
        ([net("c0000200ffffff00")], [], ["ip:2001:db8::7"], False),
        ([], [net("20010db8" + "00" * 12 + "ffffffff" + "00" * 12)], ["ip:2001:db8::7"], False),
        ([mail("plant.example")], [], ["email:op@plant.example"], True),
        ([mail("plant.example")], [], ["email:op@sub.plant.example"], False),
        ([mail(".plant.example")], [], ["email:op@sub.plant.example"], True),
        ([mail("op@plant.example")], [], ["email:Op@plant.example"], False),
        ([uri("plant.example")], [], ["uri:https://u@plant.example:8443/x?y#z"], True),
        ([uri("plant.example")], [], ["uri:https://plc-7.plant.example/"], False),
        ([uri(".plant.example")], [], ["uri:https://plc-7.plant.example/"], True),
        ([uri(".plant.example")], [], ["uri:urn:ironroot:device:x:plc-7"], False),  # has no host: RFC 5280 4.2.1.10 says reject
        ([uri(".plant.example")], [], ["uri:https://192.0.2.7/"], False),
        ([], [uri("evil.example")], ["uri:https://evil.example/"], False),
        ([directory(("O", "example plant"))], [], ["dns:a.example"], True),
        ([directory(("O", "Example Plant"), ("CN", "plc-8"))], [], ["dns:a.example"], False),
        ([], [directory(("O", "Example Plant"))], ["dns:a.example"], False),
    ],
)
def test_subtrees(pki, permitted, excluded, names, good):
    result = constrained(pki, permitted, excluded, names=tuple(names))
    assert result.good is good
    assert good or result.code == "name_constraint"


def test_constraints_of_all_cas_add_up_and_the_anchor_counts(pki):
    root = pki.issue(None, "narrow root", ca=True, extra=(pki.name_constraints((dns("example"),)),))
    issuing = pki.issue(root, "narrower", ca=True, extra=(pki.name_constraints((dns("plant.example"), dns("other.test"))),))
    plant = pki.plant()
    assert plant.validate(pki.issue(issuing, "x", names=("dns:a.plant.example",)), chain=[issuing], trust=[root]).good
    assert plant.validate(pki.issue(issuing, "x", names=("dns:a.example",)), chain=[issuing], trust=[root]).code == "name_constraint"
    assert plant.validate(pki.issue(issuing, "x", names=("dns:other.test",)), chain=[issuing], trust=[root]).code == "name_constraint"


def test_names_of_cas_count_too_except_self_issued_ones(pki):
    limits = pki.name_constraints((dns("plant.example"),))
    top = pki.issue(pki.plant().root, "limiting", ca=True, extra=(limits,))
    inside = pki.issue(top, "inside", ca=True, names=("dns:ca.plant.example",))
    outside = pki.issue(top, "outside", ca=True, names=("dns:ca.elsewhere.example",))
    rolled = pki.issue(top, "rolled", ca=True, subject=top.certificate.subject, names=("dns:ca.elsewhere.example",))
    for lower, good in ((inside, True), (outside, False), (rolled, True)):
        leaf = pki.issue(lower, "x", names=("dns:a.plant.example",))
        assert pki.plant().validate(leaf, chain=[lower, top]).good is good


def test_mail_in_the_subject_counts_when_there_are_no_alternative_names(pki):
    who = name(("O", "Example Plant"), ("CN", "op"), ("emailAddress", "op@elsewhere.example"))
    assert constrained(pki, [mail("plant.example")], names=(), subject=who).code == "name_constraint"
    assert constrained(pki, [mail("elsewhere.example")], names=(), subject=who).good
    assert constrained(pki, [mail("plant.example")], names=("dns:a.example",), subject=who).good


@pytest.mark.parametrize(
    "bases",
    [[dns(".plant.example")], [dns("*.plant.example")], [net("c0000207ff00ff00")], [net("c0000207")], [mail("a@b@c")], [uri("*")]],
)
def test_unsound_constraints_are_refused(pki, bases):
    assert constrained(pki, bases).code == "bad_constraint"


def test_minimum_and_maximum_are_refused(pki):
    plant = pki.plant()
    tree = der.sequence(dns("plant.example"), der.context(0, b"\x01", constructed=False))
    odd = Extension("2.5.29.30", True, der.sequence(der.context(0, tree)))
    issuing = pki.issue(plant.root, "odd", ca=True, extra=(odd,))
    assert plant.validate(pki.issue(issuing, "x"), chain=[issuing]).code == "bad_constraint"


def test_constraints_explode_into_a_refusal(pki):
    bases = tuple(dns(f"x{n}.example") for n in range(1000))
    names = tuple(f"dns:a.x{n}.example" for n in range(1000))
    assert constrained(pki, bases, names=names).code == "too_many_names"


# --- certificate policies ------------------------------------------------------------------------------------------

GOLD, SILVER, ANY = "1.3.6.1.4.1.55738.1.1", "1.3.6.1.4.1.55738.1.2", "2.5.29.32.0"


def policies(*oids: str) -> Extension:
    return extensions.certificate_policies(*oids)


def mappings(*pairs: tuple[str, str]) -> Extension:
    return Extension("2.5.29.33", True, der.sequence(*(der.sequence(der.oid(a), der.oid(b)) for a, b in pairs)))


def limits(explicit: int | None = None, mapping: int | None = None) -> Extension:
    parts = [der.context(at, bytes((value,)), constructed=False) for at, value in ((0, explicit), (1, mapping)) if value is not None]
    return Extension("2.5.29.36", True, der.sequence(*parts))


def inhibit_any(skip: int) -> Extension:
    return Extension("2.5.29.54", True, der.integer(skip))


ROLLED = Extension("0.0", False, b"")


def with_policies(pki, *levels, wanted=(), explicit=False):
    """A path whose CAs, from the top, and at last the end entity, carry these extensions."""
    plant = pki.plant()
    party, chain = plant.root, []
    for number, extra in enumerate(levels[:-1]):
        # A level that begins with ROLLED is the CA above it again, self-issued with a new key.
        subject = party.certificate.subject if ROLLED in extra else None
        extra = tuple(extension for extension in extra if extension is not ROLLED)
        party = pki.issue(party, f"policy ca {number}", ca=True, extra=extra, subject=subject)
        chain.append(party)
    leaf = pki.issue(party, "x", extra=levels[-1])
    return plant.validate(leaf, chain=chain, certificate_policies=frozenset(wanted), explicit_policy=explicit)


@pytest.mark.parametrize(
    ("levels", "wanted", "good"),
    [
        ([(policies(GOLD),), (policies(GOLD),)], [GOLD], True),
        ([(policies(GOLD),), (policies(GOLD),)], [SILVER], False),
        ([(policies(GOLD),), (policies(SILVER),)], [], False),
        ([(policies(ANY),), (policies(GOLD),)], [GOLD], True),
        ([(policies(GOLD),), (policies(ANY),)], [GOLD], True),
        ([(policies(ANY),), (policies(ANY),)], [GOLD], True),
        ([(), (policies(GOLD),)], [], False),
        ([(policies(GOLD),), ()], [], False),
        ([(policies(GOLD, SILVER),), (policies(SILVER),)], [GOLD], False),
        # Mapped: what the CA calls gold its subject calls silver.
        ([(policies(GOLD), mappings((GOLD, SILVER))), (policies(SILVER),)], [GOLD], True),
        ([(policies(GOLD), mappings((GOLD, SILVER))), (policies(SILVER),)], [SILVER], False),
        ([(policies(GOLD), mappings((GOLD, SILVER))), (policies(GOLD),)], [GOLD], False),
        ([(policies(ANY), mappings((GOLD, SILVER))), (policies(SILVER),)], [GOLD], True),
        ([(policies(GOLD), limits(mapping=0)), (policies(GOLD), mappings((GOLD, SILVER))), (policies(SILVER),)], [], False),
        ([(policies(GOLD), limits(mapping=0)), (policies(GOLD), mappings((GOLD, SILVER))), (policies(GOLD),)], [], False),
        # anyPolicy inhibited, save for self-issued certificates.
        ([(policies(GOLD), inhibit_any(0)), (policies(ANY),)], [], False),
        ([(policies(GOLD), inhibit_any(1)), (policies(ANY),), (policies(GOLD),)], [GOLD], True),
        ([(policies(GOLD), inhibit_any(1)), (policies(ANY),), (policies(ANY),)], [], False),
    ],
)
def test_policies_when_one_is_required(pki, levels, wanted, good):
    result = with_policies(pki, *levels, wanted=wanted, explicit=True)
    assert result.good is good
    assert good or result.code == "policy_missing"


def test_policies_bind_only_where_somebody_requires_one(pki):
    assert with_policies(pki, (), (policies(GOLD),)).good
    assert with_policies(pki, (limits(explicit=0),), ()).code == "policy_missing"
    assert with_policies(pki, (policies(GOLD), limits(explicit=0)), (policies(GOLD),)).good
    assert with_policies(pki, (policies(GOLD), limits(explicit=2)), ()).good
    assert with_policies(pki, (policies(GOLD), limits(explicit=1)), ()).code == "policy_missing"
    assert with_policies(pki, (policies(GOLD), limits(explicit=1)), (policies(GOLD),), ()).code == "policy_missing"


def test_self_issued_cas_do_not_count_for_policies(pki):
    explicit = (policies(GOLD), limits(explicit=2))
    assert with_policies(pki, explicit, (policies(GOLD),), ()).code == "policy_missing"
    assert with_policies(pki, explicit, (ROLLED, policies(GOLD)), ()).good
    inhibited = (policies(GOLD), inhibit_any(0))
    assert with_policies(pki, inhibited, (policies(ANY),), (policies(GOLD),), explicit=True).code == "policy_missing"
    assert with_policies(pki, inhibited, (ROLLED, policies(ANY)), (policies(GOLD),), explicit=True).good


def test_policy_constraints_of_the_anchor_count(pki):
    root = pki.issue(None, "demanding root", ca=True, extra=(limits(explicit=0),))
    leaf, asserting = pki.issue(root, "x"), pki.issue(root, "y", extra=(policies(GOLD),))
    assert pki.plant().validate(leaf, chain=[], trust=[root]).code == "policy_missing"
    assert pki.plant().validate(asserting, chain=[], trust=[root]).good


def test_broken_policy_extensions(pki):
    empty = Extension("2.5.29.32", False, der.sequence())
    assert with_policies(pki, (empty,), (policies(GOLD),)).code == "bad_policies"
    assert with_policies(pki, (policies(GOLD), mappings((ANY, GOLD))), (policies(GOLD),)).code == "bad_policies"
    assert with_policies(pki, (Extension("2.5.29.36", True, der.sequence()),), ()).code == "bad_policies"


def test_many_mappings_stay_small(pki):
    """The policy tree of RFC 5280 would double at each level (RFC 9618 1.2)."""
    both = policies(GOLD, SILVER)
    crossed = mappings((GOLD, GOLD), (GOLD, SILVER), (SILVER, GOLD), (SILVER, SILVER))
    levels = [(both, crossed)] * 8
    assert with_policies(pki, *levels, (policies(GOLD),), wanted=[SILVER], explicit=True).good
