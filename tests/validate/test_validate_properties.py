"""What holds for all inputs: order and company of certificates do not matter; nothing that is fed in raises or turns a no into a yes."""

from __future__ import annotations

from datetime import timedelta
from string import Formatter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pkix.algorithms import KeyKind
from pkix.crl import CrlEntry
from validate import Policy, validate_sync
from validate.text import CATALOGUE, say

relaxed = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
OFFLINE = Policy(status="offline", purpose="client")


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
    arguments = {"now": pki.NOW, "policy": Policy(status="none", purpose="client")}
    result = validate_sync(device.der, chain=with_it, trust=trust, **arguments)
    assert result.good
    assert [certificate.der for certificate in result.path] == [device.der, issuing.der, good.der]
    without = validate_sync(device.der, chain=company, trust=[bad.der, good.der], **arguments)
    assert not without.good


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
        parts["leaf"],
        chain=[parts["issuing"]],
        trust=[plant.root.der],
        staples=[parts["staple"]],
        crls=[parts["crl"], parts["root crl"]],
        policy=OFFLINE,
        now=pki.NOW,
    )
    assert not result.good
    assert result.reason.startswith("Not good: ")


@relaxed
@given(raw=st.binary(max_size=300), seconds=st.integers(-(10**9), 10**9))
def test_any_octets_at_any_time_are_a_verdict(pki, raw, seconds):
    plant = pki.plant()
    now = pki.NOW + timedelta(seconds=seconds)
    assert not validate_sync(raw, chain=[raw], trust=[raw, plant.root.der], staples=[raw], crls=[raw], now=now).good
    assert not validate_sync(
        plant.device.der, chain=[plant.issuing.der, raw], trust=[plant.root.der], staples=[raw], crls=[raw], now=now
    ).good


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
