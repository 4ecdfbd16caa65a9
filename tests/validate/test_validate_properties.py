"""What holds for all inputs: order and company of certificates do not matter; nothing that is fed in raises or turns a no into a yes."""

from __future__ import annotations

from datetime import timedelta
from string import Formatter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pkix import der
from pkix.algorithms import KeyKind
from pkix.certificate import parse_certificate
from pkix.crl import CrlEntry
from pkix.errors import Malformed
from validate import Memory, Policy, anchors, validate_sync
from validate.status import Revocation
from validate.text import CATALOGUE, say

shared = Memory()
relaxed = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def crowd(pki):
    """A device that is good through one of two roots only, and certificates that help, mislead or have nothing to do with it."""
    good, bad = pki.issue(None, "good root", ca=True), pki.issue(None, "bad root", ca=True)
    issuing = pki.issue(good, "crossed", ca=True)
    expired = pki.issue(bad, "crossed", ca=True, not_before=pki.NOW - 9 * pki.DAY, not_after=pki.NOW - pki.DAY)
    device = pki.issue(issuing, "x")
    stranger = pki.issue(None, "stranger", ca=True)
    impostor = pki.issue(stranger, "crossed", ca=True, key_label="impostor")
    others = [expired, stranger, impostor, good, bad, device, pki.issue(stranger, "y"), pki.plant(KeyKind.SM2).issuing]
    return good, bad, issuing, device, [party.der for party in others]


@relaxed
@given(data=st.data())
def test_order_duplicates_and_strangers_change_nothing(pki, crowd, data):
    good, bad, issuing, device, others = crowd
    company = data.draw(st.lists(st.sampled_from([*others, b"rubbish", b""]), max_size=12))
    with_it = data.draw(st.permutations([*company, issuing.der]))
    trust = data.draw(st.permutations([good.der, bad.der, good.der]))
    memory = data.draw(st.sampled_from([None, Memory(), shared]))
    arguments = {"now": pki.NOW, "policy": Policy(anchors=anchors(*trust), status="none"), "purpose": "tls-client", "memory": memory}
    result = validate_sync([device.der, *with_it], **arguments)
    assert result.good
    assert [certificate.der for certificate in result.path] == [device.der, issuing.der, good.der]
    # Nor does what was remembered from that help where the issuing CA was not presented.
    without = validate_sync([device.der, *company], **arguments)
    assert not without.good


@relaxed
@given(data=st.data())
def test_no_order_changes_what_is_wrong(pki, crowd, data):
    good, bad, issuing, _device, others = crowd
    stale = pki.issue(issuing, "stale", not_before=pki.NOW - 9 * pki.DAY, not_after=pki.NOW - pki.DAY)
    rivals = [pki.issue(bad, "crossed", ca=True, key_label="crossed", usage=("cRLSign",)).der for _ in range(3)]
    order = data.draw(st.permutations([*others, *rivals, issuing.der]))
    policy = Policy(anchors=anchors(*data.draw(st.permutations([good.der, bad.der]))), status="none")
    first = validate_sync([stale.der, *sorted(order)], now=pki.NOW, policy=policy)
    result = validate_sync([stale.der, *order], now=pki.NOW, policy=policy)
    assert result.code == first.code == "expired"
    assert result.path == first.path
    assert (result.signatures, result.steps) == (first.signatures, first.steps)


def mutated(data, raw: bytes) -> bytes:
    changed = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(changed) - 1))
        match data.draw(st.sampled_from(["flip", "set", "cut", "grow"])):
            case "flip":
                changed[at] ^= 1 << data.draw(st.integers(0, 7))
            case "set":
                changed[at] = data.draw(st.integers(0, 255))
            case "cut":
                del changed[at : at + data.draw(st.integers(1, 8))]
            case "grow":
                changed[at:at] = data.draw(st.binary(min_size=1, max_size=8))
        if not changed:
            break
    return bytes(changed)


@pytest.fixture(scope="module", params=[KeyKind.P_256, KeyKind.SM2])
def revoked(pki, request):
    """A device that is revoked twice over: by staple and by CRL."""
    plant = pki.plant(request.param)
    return plant, {
        "leaf": plant.device.der,
        "issuing": plant.issuing.der,
        "staple": plant.issuing.ocsp(plant.device, "revoked", revoked_at=pki.NOW, reason=1, signer=plant.signer),
        "crl": plant.issuing.crl(CrlEntry(plant.device.certificate.serial, pki.NOW, 1)),
        "root crl": plant.root.crl(),
    }


@settings(relaxed, max_examples=400)
@given(data=st.data())
def test_no_mutation_of_anything_raises_or_makes_a_revoked_device_good(pki, revoked, data):
    plant, parts = revoked
    victim = data.draw(st.sampled_from(sorted(parts)))
    parts = parts | {victim: mutated(data, parts[victim])}
    result = validate_sync(
        [parts["leaf"], parts["issuing"]],
        staples=[parts["staple"]],
        crls=[parts["crl"], parts["root crl"]],
        policy=Policy(anchors=anchors(plant.root.der), status="offline"),
        purpose="tls-client",
        status=Revocation(),
        now=pki.NOW,
    )
    assert not result.good
    assert result.sentence().startswith("Not good: ")


@relaxed
@given(raw=st.binary(max_size=300), seconds=st.integers(-(10**9), 10**9))
def test_any_octets_at_any_time_are_a_verdict(pki, raw, seconds):
    plant = pki.plant()
    arguments = {
        "now": pki.NOW + timedelta(seconds=seconds),
        "policy": Policy(anchors=anchors(plant.root.der), status="offline"),
        "staples": [raw],
        "crls": [raw],
        "status": Revocation(),
    }
    assert not validate_sync([raw, raw], **arguments).good
    assert not validate_sync([plant.device.der, plant.issuing.der, raw], **arguments).good


@settings(relaxed, max_examples=300)
@given(data=st.data())
def test_a_certificate_that_is_read_would_have_passed_the_whole_scan(pki, data):
    """``parse_certificate`` scans in pieces and remembers what it has seen; what it takes is what ``der.prescan`` takes."""
    plant = pki.plant(data.draw(st.sampled_from([KeyKind.P_256, KeyKind.SM2])))
    raw = mutated(data, data.draw(st.sampled_from([plant.device, plant.issuing])).der)
    try:
        read = parse_certificate(raw)
    except Malformed:
        return
    der.prescan(raw)
    assert list(read.extensions) == list(dict.fromkeys(read.extensions))


def test_every_sentence_exists_in_both_languages_with_the_same_values():
    for code, (english, chinese) in CATALOGUE.items():
        fields = [sorted({field for _, field, _, _ in Formatter().parse(text) if field is not None}) for text in (english, chinese)]
        assert fields[0] == fields[1], code
        assert any("\u4e00" <= character <= "\u9fff" for character in chinese) or code in ("unusable_detail", "both")


def test_what_a_certificate_says_cannot_dress_up_a_sentence():
    shown = say("malformed", why="a\x1b[2Jb\r\n\u202e{who}" + "x" * 1000).en
    assert "\x1b" not in shown
    assert "\n" not in shown
    assert "{who}" in shown
    assert len(shown) < 300
