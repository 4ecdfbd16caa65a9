"""Certificates made to keep a validator busy: a verdict or a refusal, with the work counted."""

from __future__ import annotations

from datetime import timedelta
from itertools import count, permutations

import pytest

from pkix import extensions
from pkix.algorithms import SIGNATURES, KeyKind
from pkix.certificate import assemble, build_tbs
from pkix.constraints import policy_mappings
from pkix.name import name
from validate import Memory, Policy, anchors, validate_sync

DEFAULTS = Policy(anchors=())


@pytest.fixture(scope="module")
def crowd(pki):
    """10,000 CA certificates with the name and the key identifier of the one that is needed, under five other keys."""
    plant = pki.plant()
    root, issuing = plant.root, plant.issuing.certificate
    keys = [pki.key(KeyKind.P_256, f"crowd {n}").public_key for n in range(5)]
    listed = [
        extensions.basic_constraints(True),
        extensions.key_usage("keyCertSign"),
        extensions.subject_key_identifier(issuing.public_key),
        extensions.authority_key_identifier(root.certificate),
    ]
    algorithm, found = SIGNATURES[KeyKind.P_256], []
    for number in range(10_000):
        tbs = build_tbs(
            serial=number + 1,
            issuer=root.certificate.subject,
            subject=issuing.subject,
            not_before=pki.NOW - pki.DAY,
            not_after=pki.NOW + pki.DAY,
            public_key=keys[number % 5],
            signature=algorithm,
            extensions=listed,
        )
        found.append(assemble(tbs, algorithm, root.key.sign(tbs)))
    return found


def judged(pki, leaf, chain, *, trust=None, monotonic=None, **policy):
    plant = pki.plant()
    policy = Policy(anchors=anchors(*(p.der for p in (trust or [plant.root]))), status="none", **policy)
    clock = {} if monotonic is None else {"monotonic": monotonic}
    return validate_sync([leaf.der, *chain], policy=policy, now=pki.NOW, **clock)


def test_more_certificates_than_anybody_needs_are_refused_unread(pki, crowd):
    result = judged(pki, pki.plant().device, crowd)
    assert result.code == "too_many_certificates"
    assert (result.signatures, result.steps) == (0, 0)
    assert "10000" in result.sentence()


def test_ten_thousand_issuers_of_one_name_cost_no_more_than_the_bounds(pki, crowd):
    """Same name, same key identifier, five keys: no index tells them apart, only signatures do."""
    device, issuing = pki.plant().device, pki.plant().issuing.der
    still = iter(lambda: 0.0, None).__next__  # time stands still: it is the work that is bounded here
    result = judged(pki, device, crowd, max_certificates=20_000, monotonic=still)
    assert result.code in ("bad_signature", "too_complex")
    assert result.signatures == 5  # one for each key: a key that did not sign is not asked again
    assert result.steps <= DEFAULTS.max_steps + 1
    result = judged(pki, device, [*crowd[:900], issuing], monotonic=still)
    assert result.good
    assert result.steps <= DEFAULTS.max_steps


def test_duplicates_do_not_count(pki, crowd):
    assert judged(pki, pki.plant().device, [crowd[0]] * 5000 + [pki.plant().issuing.der]).good


def test_time_is_up_also_while_certificates_are_read(pki, crowd):
    ticks = count()
    result = judged(pki, pki.plant().device, crowd[:1000], monotonic=lambda: next(ticks) * 0.5, budget=timedelta(seconds=2))
    assert result.code == "out_of_time"
    assert (result.signatures, result.steps) == (0, 0)
    assert "2 s" in result.sentence()


def mesh(pki, size: int):
    """CAs that have all certified each other: paths grow with the factorial."""
    names = [name(("CN", f"mesh {n}")) for n in range(size)]
    tops = [pki.issue(None, f"mesh {n}", ca=True, subject=names[n]) for n in range(size)]
    return tops, [pki.issue(tops[by], f"mesh {of}", ca=True, subject=names[of]).der for by, of in permutations(range(size), 2)]


def test_a_mesh_of_cross_certificates_without_an_anchor(pki):
    tops, crossed = mesh(pki, 9)
    result = judged(pki, pki.issue(tops[0], "x"), crossed, max_intermediates=30)
    assert result.code == "too_complex"
    assert result.signatures <= DEFAULTS.max_signatures + 1
    assert result.steps <= DEFAULTS.max_steps + 1


def test_a_mesh_with_an_anchor_and_something_wrong_at_its_foot(pki):
    """Every path fails in the same place; after so many the answer is that of the closest."""
    tops, crossed = mesh(pki, 6)
    late = pki.issue(tops[0], "late", not_before=pki.NOW - 9 * pki.DAY, not_after=pki.NOW - pki.DAY)
    result = judged(pki, late, crossed, trust=[tops[5]], max_intermediates=30)
    assert result.code == "expired"
    assert result.steps <= DEFAULTS.max_steps + 1
    assert judged(pki, pki.issue(tops[0], "x"), crossed, trust=[tops[5]], max_intermediates=30).good


def test_a_mesh_remembered_is_judged_alike(pki):
    tops, crossed = mesh(pki, 9)
    memory, leaf = Memory(), pki.issue(tops[0], "x")
    policy = Policy(anchors=anchors(pki.plant().root.der), status="none", max_intermediates=30)
    for _ in range(3):
        result = validate_sync([leaf.der, *crossed], policy=policy, now=pki.NOW, memory=memory)
        assert result.code == "too_complex"
        assert result.steps <= DEFAULTS.max_steps + 1


@pytest.mark.parametrize(("levels", "code"), [(12, "good"), (14, "bad_policies")])
def test_policy_mappings_that_would_double_a_tree_at_each_level(pki, levels, code):
    """40 policies, each mapped to each, at every level: 40^levels leaves in the tree of RFC 5280, 1,600 edges a level in a graph."""
    oids = [f"1.3.6.1.4.1.55738.2.{n}" for n in range(40)]
    crossed = policy_mappings(*((ours, theirs) for ours in oids for theirs in oids))
    party, chain = pki.plant().root, []
    for number in range(levels):
        party = pki.issue(party, f"mapping {number}", ca=True, extra=(extensions.certificate_policies(*oids), crossed))
        chain.append(party.der)
    leaf = pki.issue(party, "x", extra=(extensions.certificate_policies(oids[7]),))
    result = judged(pki, leaf, chain, max_intermediates=20, explicit_policy=True, certificate_policies=frozenset(oids[:1]))
    assert result.code == code
