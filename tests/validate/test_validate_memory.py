"""What is remembered makes the next validation faster and never different."""

from __future__ import annotations

from datetime import timedelta

import pytest

from pkix.algorithms import KeyKind
from validate import Expected, Memory, Policy, anchors, validate_sync
from validate.memory import Lru
from validate.status import Revocation
from validate.status_store import issuer_key


@pytest.fixture
def asked(pki):
    """A validation that shares one memory; the policy is one object."""
    plant = pki.plant()
    policy, memory = Policy(anchors=anchors(plant.root.der), status="none"), Memory()

    def run(leaf=None, *others, now=pki.NOW, policy=policy, expected=(), **more):
        chain = [(leaf or plant.device).der, *(party.der for party in others or (plant.issuing,))]
        return validate_sync(chain, policy=policy, now=now, expected=Expected(*expected), **{"memory": memory, **more})

    return run


def test_the_work_is_done_once(pki, asked):
    plant = pki.plant()
    assert asked().signatures == 2
    assert asked(pki.issue(plant.issuing, "another")).signatures == 1
    assert asked().signatures == 0
    first, second = asked(), asked(now=pki.NOW + timedelta(hours=1))
    assert first.good
    assert second.checks is first.checks
    assert second.message is first.message
    assert second.at == pki.NOW + timedelta(hours=1)


def test_the_moment_is_looked_at_each_time(pki, asked):
    last = pki.plant().device.certificate.not_after
    for _ in range(3):
        assert asked(now=last).good
        assert asked(now=last + timedelta(seconds=1)).code == "expired"
        assert asked(now=pki.plant().device.certificate.not_before - timedelta(seconds=1)).code == "not_yet_valid"


def test_everything_that_is_asked_counts(pki, asked):
    name = "uri:urn:ironroot:device:x:plc-7"
    for _ in range(3):
        assert asked(expected=(name,), purpose="tls-client").good
        assert asked(expected=("dns:plc-7",)).code == "wrong_name"
        assert asked(purpose="tls-server").code == "wrong_purpose"
        assert asked(policy=Policy(anchors=(), status="none")).code == "unknown_issuer"


def test_a_signature_counts_for_the_key_that_made_it_alone(pki, asked):
    plant = pki.plant()
    for _ in range(3):
        assert asked().good
    stranger = pki.issue(None, "stranger", ca=True)
    impostor = pki.issue(stranger, "impostor", ca=True, subject=plant.issuing.certificate.subject)
    result = asked(plant.device, impostor, policy=Policy(anchors=anchors(stranger.der), status="none"))
    assert result.code == "bad_signature"
    forged = pki.issue(plant.issuing, "plc-7", signed_by=impostor)
    assert asked(forged).code == "bad_signature"


def test_nobody_is_helped_by_what_others_presented(pki, asked):
    plant = pki.plant()
    for _ in range(3):
        assert asked().good
    assert asked(plant.device, plant.root).code == "unknown_issuer"


def test_a_device_of_a_known_issuer_has_to_obey_every_rule(pki, asked):
    """Where there is one way up, it is not searched again; nothing else is left out."""
    plant = pki.plant()
    assert asked().good
    assert asked(pki.issue(plant.issuing, "new")).good
    impostor = pki.issue(None, "impostor", ca=True)
    past = {"not_before": pki.NOW - 9 * pki.DAY, "not_after": pki.NOW - pki.DAY}
    wrong = {
        "bad_signature": pki.issue(plant.issuing, "plc-8", signed_by=impostor),
        "expired": pki.issue(plant.issuing, "plc-8", **past),
        "wrong_purpose": pki.issue(plant.issuing, "plc-8", purposes=("codeSigning",)),
        "wrong_usage": pki.issue(plant.issuing, "plc-8", usage=("keyEncipherment",)),
    }
    for code, leaf in wrong.items():
        result = asked(leaf, purpose="tls-client")
        assert (result.good, result.code) == (False, code)
        fresh = asked(leaf, purpose="tls-client", memory=Memory())
        assert [(c.name, c.code, c.index) for c in fresh.checks] == [(c.name, c.code, c.index) for c in result.checks]
    last = plant.issuing.certificate.not_after
    assert asked(pki.issue(plant.issuing, "x", not_after=last + pki.DAY), now=last + timedelta(seconds=1)).code == "expired"


def test_a_way_is_known_only_if_there_is_no_other(pki):
    """Two CAs of one name: which of them issued a device is found out each time."""
    root, memory = pki.issue(None, "root", ca=True), Memory()
    twins = [pki.issue(root, "twin", ca=True, key_label=f"twin {n}") for n in range(2)]
    policy = Policy(anchors=anchors(root.der), status="none")
    for _ in range(3):
        for twin in twins:
            leaf = pki.issue(twin, "x")
            result = validate_sync([leaf.der, *(one.der for one in twins)], policy=policy, now=pki.NOW, memory=memory)
            assert result.path == (leaf.certificate, twin.certificate, root.certificate)
    assert len(memory.ways) == 0


def test_much_that_is_presented_is_not_remembered(pki):
    plant, memory = pki.plant(), Memory()
    policy = Policy(anchors=anchors(plant.root.der), status="none")
    chain = [plant.device.der, plant.issuing.der, *(bytes(1000 + n) for n in range(40))]
    for _ in range(3):
        assert validate_sync(chain, policy=policy, now=pki.NOW, memory=memory).good
    assert len(memory.verdicts) == len(memory.ways) == 0
    assert len(memory.issuers) > 0


@pytest.mark.parametrize("kind", [KeyKind.P_256, KeyKind.SM2])
def test_a_pushed_revocation_is_honoured_by_the_next_call(pki, kind):
    plant, memory, status = pki.plant(kind), Memory(), Revocation()
    policy = Policy(anchors=anchors(plant.root.der), status="offline")
    crls = [plant.root.crl(), plant.issuing.crl()]

    def run():
        chain = [plant.device.der, plant.issuing.der]
        return validate_sync(chain, policy=policy, now=pki.NOW, memory=memory, status=status, crls=crls)

    for _ in range(4):
        assert run().good
    issuing, device = plant.issuing.certificate, plant.device.certificate
    status.store.push(issuer_key(issuing), device.serial, pki.NOW, "keyCompromise", pki.NOW)
    assert run().code == "revoked"
    assert run().basis[0].source == "push"


def test_it_stays_as_small_as_it_is_asked_to(pki):
    plant, memory = pki.plant(), Memory(issuers=2, signatures=3, verdicts=2)
    policy = Policy(anchors=anchors(plant.root.der), status="none")
    issuers = [pki.issue(plant.root, f"many {n}", ca=True) for n in range(6)]
    for _ in range(3):
        for issuer in issuers:
            assert validate_sync([pki.issue(issuer, "x").der, issuer.der], policy=policy, now=pki.NOW, memory=memory).good
    assert len(memory.issuers) == 2
    assert len(memory.signatures) == 3
    assert len(memory.verdicts) <= 2
    memory.clear()
    assert len(memory.issuers) == len(memory.signatures) == 0


def test_the_one_not_asked_for_the_longest_goes_first():
    cache: Lru[str, int] = Lru(2)
    cache.put("a", 1)
    cache.put("b", 2)
    assert cache.get("a") == 1
    cache.put("c", 3)
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == (1, None, 3)
