"""Trust lists: what followers take and what they refuse, and what is left of anchors that are taken over under limits."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from programs import openssl

from pkix import cms
from pkix.algorithms import KeyKind
from pkix.constraints import name_constraints
from pkix.errors import BadSignature, IronrootError, Malformed, NotValid, Refused, Unsupported
from validate.constraints import read_name_constraints
from validate.model import Anchor
from validate.trust_limits import Limits, narrow
from validate.trustlist import StatusSource, TrustList, accept, decode, encode, introduction, pin, read


@pytest.fixture(scope="module")
def plant(pki):
    return pki.plant()


@pytest.fixture(scope="module")
def made(pki, plant):
    """A full list."""
    constrained = Anchor(
        plant.root.certificate,
        name_constraints=name_constraints(permitted=["dns:plant-a.example"]).value,
        path_length=1,
        purposes=frozenset(("tls-client", "tls-server")),
        certificate_policies=frozenset(("1.2.3.4",)),
        explicit_policy=True,
    )
    return TrustList(
        name="plant-a",
        version=7,
        issued=pki.NOW,
        expires=pki.NOW + 30 * pki.DAY,
        anchors=(constrained, Anchor(pki.plant(KeyKind.SM2).root.certificate)),
        intermediates=(plant.issuing.certificate,),
        status=(StatusSource(plant.root.certificate.sha256, ("http://pki/ocsp",), ("http://pki/root.crl",)),),
    )


@pytest.fixture(scope="module")
def signers(pki):
    """Four keys that sign lists, one of them SM2."""
    kinds = (KeyKind.P_256, KeyKind.P_256, KeyKind.SM2, KeyKind.P_256)
    return [pki.issue(None, f"trust list signer {n}", kind) for n, kind in enumerate(kinds)]


@pytest.fixture(scope="module")
def signed(pki):
    def sign(found: TrustList | bytes, by) -> bytes:
        return cms.sign_data(found if isinstance(found, bytes) else encode(found), by.key, by.certificate, now=pki.NOW)

    return sign


@pytest.fixture(scope="module")
def taken(pki):
    def take(raw: bytes, *pinned, held=None, now=pki.NOW):
        return accept(raw, pins=frozenset(pin(one.certificate) for one in pinned), held=held, now=now)

    return take


def test_what_is_written_is_read(made) -> None:
    assert decode(encode(made)) == made
    assert encode(decode(encode(made))) == encode(made)


@pytest.mark.parametrize("number", [0, 2])
def test_a_pinned_signer_is_believed(made, signed, taken, signers, number) -> None:
    received = taken(signed(made, signers[number]), signers[number])
    assert (received.list, received.signer) == (made, pin(signers[number].certificate))


def test_openssl_reads_it(made, signed, signers, tmp_path) -> None:
    (tmp_path / "list.p7m").write_bytes(signed(made, signers[0]))
    said = openssl("cms", "-verify", "-noverify", "-inform", "DER", "-in", tmp_path / "list.p7m")
    assert '"type": "ironroot-trust-list/1"' in said
    assert '"subject": "CN=p-256 root,O=Example Plant"' in said


def test_a_stranger_is_refused(made, signed, taken, signers) -> None:
    with pytest.raises(Refused, match="not the one pinned"):
        taken(signed(made, signers[1]), signers[0])


def test_a_changed_list_is_refused(made, signed, taken, signers) -> None:
    raw = signed(made, signers[0])
    with pytest.raises(BadSignature):
        taken(raw.replace(b'"version": 7', b'"version": 8'), signers[0])


def test_no_way_back(made, signed, taken, signers) -> None:
    held = taken(signed(made, signers[0]), signers[0])
    newer = taken(signed(replace(made, version=8), signers[0]), held=held)
    assert newer.list.version == 8
    assert taken(signed(made, signers[0]), held=held).list == made  # the same again
    with pytest.raises(Refused, match="no way back"):
        taken(signed(made, signers[0]), held=newer)
    with pytest.raises(Refused, match="two trust lists of version 7"):
        taken(signed(replace(made, intermediates=()), signers[0]), held=held)
    with pytest.raises(Refused, match="'plant-a' is followed"):
        taken(signed(replace(made, name="plant-b", version=9), signers[0]), held=held)


def test_a_list_has_its_time(pki, made, signed, taken, signers) -> None:
    raw = signed(made, signers[0])
    assert taken(raw, signers[0], now=made.expires - timedelta(seconds=1)).list == made
    with pytest.raises(NotValid, match="was good until 2026-12-23"):
        taken(raw, signers[0], now=made.expires)
    with pytest.raises(NotValid, match="from the future"):
        taken(raw, signers[0], now=pki.NOW - pki.DAY)


def test_the_key_changes_and_sleepers_follow(made, signed, taken, signers) -> None:
    first, second, third, stranger = signers
    to_second = signed(introduction("plant-a", second.certificate), first)
    to_third = signed(introduction("plant-a", third.certificate), second)
    slept = taken(signed(made, first), first)
    eighth = taken(signed(replace(made, version=8, introductions=(to_second,)), second), held=slept)
    assert eighth.signer == pin(second.certificate)
    ninth = replace(made, version=9, introductions=(to_second, to_third))
    assert taken(signed(ninth, third), held=slept).signer == pin(third.certificate)  # one that missed version 8
    assert taken(signed(ninth, third), first).list == ninth  # one that begins with an old pin
    # From then on the old key is nobody's: not for lists, and not to introduce others.
    with pytest.raises(Refused, match="not the one pinned"):
        taken(signed(replace(made, version=10, introductions=(to_second,)), first), held=eighth)
    back = signed(introduction("plant-a", stranger.certificate), first)
    with pytest.raises(Refused, match="not the one pinned"):
        taken(signed(replace(made, version=10, introductions=(to_second, back)), stranger), held=eighth)


def test_an_introduction_counts_for_its_list_and_from_its_signer(made, signed, taken, signers) -> None:
    first, second, _, stranger = signers
    held = taken(signed(made, first), first)
    by_itself = signed(introduction("plant-a", stranger.certificate), stranger)
    for_another = signed(introduction("plant-b", second.certificate), first)
    with pytest.raises(Refused, match="not the one pinned"):
        taken(signed(replace(made, version=8, introductions=(by_itself,)), stranger), held=held)
    with pytest.raises(Refused, match="for another trust list"):
        taken(signed(replace(made, version=8, introductions=(for_another,)), second), held=held)
    with pytest.raises(Refused, match="of another kind"):
        taken(signed(replace(made, version=8, introductions=(signed(made, first),)), first), held=held)


def changed(made, **members) -> bytes:
    said = json.loads(encode(made))
    anchor = members.pop("anchor", {})
    said["anchors"][0] |= anchor
    said |= members
    return json.dumps({name: value for name, value in said.items() if value is not ...}).encode()


@pytest.mark.parametrize(
    ("members", "kind"),
    [
        ({"anchors": []}, Malformed),
        ({"anchors": "x"}, Malformed),
        ({"version": 0}, Malformed),
        ({"version": True}, Malformed),
        ({"version": "7"}, Malformed),
        ({"name": "../x"}, Malformed),
        ({"name": ...}, Malformed),
        ({"expires": "soon"}, Malformed),
        ({"intermediates": ["AAAA"]}, Malformed),
        ({"intermediates": [7]}, Malformed),
        ({"introductions": ["?"]}, Malformed),
        ({"status": [{"issuer": "00", "ocsp": [], "crl": []}]}, Malformed),
        ({"status": [{"issuer": "0" * 64, "ocsp": ["file:///etc/passwd"], "crl": []}]}, Malformed),
        ({"type": "ironroot-trust-list/2"}, Unsupported),
        ({"more": 1}, Unsupported),
        ({"anchor": {"not_for": ["monday"]}}, Unsupported),
        ({"anchor": {"purposes": ["world-peace"]}}, Unsupported),
        ({"anchor": {"name_constraints": "MAA="}}, Malformed),
        ({"anchor": {"path_length": "1"}}, Malformed),
    ],
)
def test_what_is_no_list_is_refused(made, members, kind) -> None:
    with pytest.raises(kind):
        decode(changed(made, **members))


@given(content=st.binary(max_size=300) | st.recursive(st.none() | st.text(max_size=5), st.lists).map(lambda x: json.dumps(x).encode()))
def test_any_octets_are_read_or_refused(content: bytes) -> None:
    with pytest.raises(Malformed):
        decode(content)


@pytest.fixture(scope="module")
def one(made, signed, signers) -> bytes:
    return signed(made, signers[0])


@given(where=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
def test_any_damage_is_refused(made, one, where, change) -> None:
    raw = bytearray(one)
    raw[int(where * len(raw))] ^= change
    try:
        received = read(bytes(raw))
    except IronrootError:
        return
    # What is not signed is the envelope; what it says of itself does not matter.
    assert received.list == made


# Limits


def subtrees(anchor: Anchor | None) -> tuple[list[bytes], list[bytes]]:
    assert anchor is not None
    if anchor.name_constraints is None:
        return [], []
    limits = read_name_constraints(anchor.name_constraints)
    return [base.value for base in limits.permitted], [base.value for base in limits.excluded]


@pytest.mark.parametrize(
    ("theirs", "ours", "left"),
    [
        ([], ["dns:b.example"], [b"b.example"]),
        (["dns:b.example"], [], [b"b.example"]),
        (["dns:b.example"], ["dns:b.example"], [b"b.example"]),
        (["dns:example"], ["dns:b.example"], [b"b.example"]),
        (["dns:b.example"], ["dns:example"], [b"b.example"]),
        (["dns:example"], ["dns:b.example", "dns:c.example", "dns:x.test"], [b"b.example", b"c.example"]),
        (["uri:.example"], ["uri:.b.example", "uri:c.example"], [b".b.example", b"c.example"]),
        (["email:.example"], ["email:ops@x.example"], [b"ops@x.example"]),
        (["dns:b.example"], ["ip:10.2.0.0/16"], [b"b.example", bytes((10, 2, 0, 0, 255, 255, 0, 0))]),
        (["ip:10.0.0.0/8"], ["ip:10.2.0.0/16"], [bytes((10, 2, 0, 0, 255, 255, 0, 0))]),
    ],
)
def test_both_sides_limits_hold(plant, theirs, ours, left) -> None:
    anchor = Anchor(plant.root.certificate, name_constraints=name_constraints(permitted=theirs).value if theirs else None)
    assert subtrees(narrow(anchor, Limits(permitted=tuple(ours)))) == (left, [])


def test_exclusions_add_up(plant) -> None:
    anchor = Anchor(plant.root.certificate, name_constraints=name_constraints(excluded=["dns:lab.example"]).value)
    assert subtrees(narrow(anchor, Limits(excluded=("dns:b.example",)))) == ([], [b"lab.example", b"b.example"])


@pytest.mark.parametrize(("theirs", "ours"), [("dns:a.example", "dns:b.example"), ("ip:10.0.0.0/8", "ip:2001:db8::/32")])
def test_limits_with_nothing_in_common_are_refused(plant, theirs, ours) -> None:
    anchor = Anchor(plant.root.certificate, name_constraints=name_constraints(permitted=[theirs]).value)
    with pytest.raises(Refused, match="nothing is in both"):
        narrow(anchor, Limits(permitted=(ours,)))


def test_families_purposes_and_lengths(pki, plant) -> None:
    anchor = Anchor(plant.root.certificate, purposes=frozenset(("tls-client", "code")), path_length=2)
    found = narrow(anchor, Limits(purposes=frozenset(("tls-client", "tls-server")), path_length=1))
    assert found is not None
    assert (found.purposes, found.path_length) == (frozenset(("tls-client",)), 1)
    assert narrow(anchor, Limits(purposes=frozenset(("time-stamp",)))) is None
    assert narrow(anchor, Limits(families=frozenset(("sm2",)))) is None
    assert narrow(Anchor(pki.plant(KeyKind.SM2).root.certificate), Limits(families=frozenset(("sm2",)))) is not None
    assert narrow(anchor, Limits()) == anchor


@pytest.mark.parametrize("text", ["dns:", "plant", "ip:10.0.0.1/8", "dirname:O", "dirname:=x", "email:", "uri:http://x/"])
def test_a_limit_that_is_none(text) -> None:
    if text == "dns:":  # every host: of no use, and no error
        Limits(excluded=(text,))
        return
    with pytest.raises(Malformed):
        Limits(permitted=(text,))


def test_directory_names(plant) -> None:
    """A second plant's devices under O=Example Plant, and nobody else's."""
    for organization, code in (("Example Plant", "good"), ("Plant C", "name_constraint")):
        anchor = narrow(Anchor(plant.root.certificate), Limits(permitted=(f"dirname:O={organization}",)))
        assert plant.validate(trust=[anchor]).code == code
