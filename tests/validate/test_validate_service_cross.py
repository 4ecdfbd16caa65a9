"""Two hierarchies that know each other: cross-certificates, a bridge authority, and trust lists that say how far."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pkix import cms
from pkix.constraints import name_constraints, policy_constraints, policy_mappings
from pkix.extensions import certificate_policies
from validate import Anchor
from validate.trust_limits import Limits, narrow
from validate.trustlist import TrustList, accept, encode, pin

A_POLICY, B_POLICY = "1.3.6.1.4.1.99999.1", "1.3.6.1.4.1.99999.2"


@pytest.fixture(scope="module")
def world(pki):
    """Plants A and B, each with its root, its issuing authority and its device; nothing between them yet."""

    class World:
        def __init__(self) -> None:
            self.a_root = pki.issue(None, "A root", ca=True)
            self.a_issuing = pki.issue(self.a_root, "A issuing", ca=True, path_length=0, extra=(certificate_policies(A_POLICY),))
            self.a_device = pki.issue(self.a_issuing, "a-1", names=("dns:a-1.plant-a.example",), extra=(certificate_policies(A_POLICY),))
            self.b_root = pki.issue(None, "B root", ca=True)
            self.b_issuing = pki.issue(self.b_root, "B issuing", ca=True, path_length=0, extra=(certificate_policies(B_POLICY),))
            self.b_device = pki.issue(self.b_issuing, "b-1", names=("dns:b-1.plant-b.example",), extra=(certificate_policies(B_POLICY),))
            self.b_spy = pki.issue(self.b_issuing, "spy", names=("dns:scada.plant-a.example",), extra=(certificate_policies(B_POLICY),))
            self.any = pki.plant()

        def cross(self, by, about, **more):
            """``by`` certifies the key of ``about``'s authority under its own name."""
            name = about.certificate.subject.get("CN")[0]
            return pki.issue(by, name, ca=True, subject=about.certificate.subject, key_label=name, **more)

        def judged(self, leaf, *chain, trust, **more):
            return self.any.validate(leaf, chain=list(chain), trust=list(trust), **more)

    return World()


def names(*permitted: str):
    return name_constraints(permitted=[f"dns:{name}" for name in permitted])


def test_strangers_at_first(world) -> None:
    assert not world.judged(world.b_device, world.b_issuing, trust=[world.a_root]).good


def test_a_cross_certificate_with_limits(world) -> None:
    """A's root certifies B's root: A's platforms take B's devices, under B's names alone; not the other way round."""
    crossed = world.cross(world.a_root, world.b_root, extra=(names("plant-b.example"),))
    result = world.judged(world.b_device, world.b_issuing, crossed, trust=[world.a_root])
    assert [c.subject.get("CN")[0] for c in result.path] == ["b-1", "B issuing", "B root", "A root"]
    assert result.good
    assert world.judged(world.b_spy, world.b_issuing, crossed, trust=[world.a_root]).code == "name_constraint"
    assert not world.judged(world.a_device, world.a_issuing, crossed, trust=[world.b_root]).good
    # A relying party that trusts both has two ways, of which the one without limits is the shorter.
    assert len(world.judged(world.b_device, world.b_issuing, crossed, trust=[world.a_root, world.b_root]).path) == 3


def test_both_cross_each_other(world) -> None:
    """A circle of cross-certificates ends the search like any other."""
    ab, ba = world.cross(world.a_root, world.b_root), world.cross(world.b_root, world.a_root)
    for leaf, issuing, root in ((world.b_device, world.b_issuing, world.a_root), (world.a_device, world.a_issuing, world.b_root)):
        assert world.judged(leaf, issuing, ab, ba, trust=[root]).good
    assert not world.judged(world.a_device, world.a_issuing, ab, ba, trust=[world.any.root]).good


def test_a_bridge(pki, world) -> None:
    """Neither plant certifies the other: a bridge does both, and each says how far it goes."""
    bridge = pki.issue(None, "Bridge", ca=True)
    to_bridge = world.cross(world.a_root, bridge, extra=(names("plant-a.example", "plant-b.example"),))
    to_b = world.cross(bridge, world.b_root, extra=(names("plant-b.example"),))
    to_a = world.cross(bridge, world.a_root, extra=(names("plant-a.example"),))
    chain = (world.b_issuing, to_b, to_bridge, to_a)
    result = world.judged(world.b_device, *chain, trust=[world.a_root])
    assert [c.subject.get("CN")[0] for c in result.path] == ["b-1", "B issuing", "B root", "Bridge", "A root"]
    assert result.good
    assert world.judged(world.b_spy, *chain, trust=[world.a_root]).code == "name_constraint"
    # Who never met the bridge is not led over it.
    assert not world.judged(world.b_device, world.b_issuing, to_b, trust=[world.a_root]).good


def test_policies_are_mapped_over_the_bridge(pki, world) -> None:
    """B's policy counts as A's where A's cross-certificate says so, and A's platform asks for A's."""
    policies = (certificate_policies(A_POLICY), policy_mappings((A_POLICY, B_POLICY)), policy_constraints(explicit=0))
    mapped = world.cross(world.a_root, world.b_root, extra=policies)
    unmapped = world.cross(world.a_root, world.b_root, extra=policies[::2])
    wanted = {"certificate_policies": frozenset((A_POLICY,)), "explicit_policy": True}
    b_root_policies = world.judged(world.b_device, world.b_issuing, mapped, trust=[world.a_root], **wanted)
    assert b_root_policies.code == "good", b_root_policies.sentence()
    assert world.judged(world.b_device, world.b_issuing, unmapped, trust=[world.a_root], **wanted).code != "good"


def test_a_bridge_as_a_list(pki, world) -> None:
    """The same without cross-certificates: a list with both anchors, each under its names; a validator takes one of them, for clients."""
    signer = pki.issue(None, "bridge list")
    said = TrustList(
        name="bridge",
        version=1,
        issued=pki.NOW,
        expires=pki.NOW + pki.DAY,
        anchors=(
            Anchor(world.a_root.certificate, name_constraints=names("plant-a.example").value),
            Anchor(world.b_root.certificate, name_constraints=names("plant-b.example").value),
        ),
        intermediates=(world.a_issuing.certificate, world.b_issuing.certificate),
    )
    raw = cms.sign_data(encode(said), signer.key, signer.certificate, now=pki.NOW)
    found = accept(raw, pins=frozenset((pin(signer.certificate),)), held=None, now=pki.NOW).list
    helpers = [replace(world.a_issuing, certificate=c) for c in found.intermediates]
    assert world.judged(world.a_device, *helpers, trust=found.anchors).good
    assert world.judged(world.b_device, *helpers, trust=found.anchors).good
    assert world.judged(world.b_spy, *helpers, trust=found.anchors).code == "name_constraint"
    limits = Limits(permitted=("dns:plant-b.example",), purposes=frozenset(("tls-client",)))
    only_b = [narrow(found.anchors[1], limits)]
    assert world.judged(world.b_device, *helpers, trust=only_b, purpose="tls-client").good
    assert not world.judged(world.b_device, *helpers, trust=only_b, purpose="data-signature").good
