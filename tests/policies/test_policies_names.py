"""Which names a certificate gets: those vouched for, and never one that only the CSR asks for."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pkix.errors import Malformed, Refused
from policies.loader import DEFAULTS, load
from policies.model import Profile
from policies.names import check, choose, is_host

PLATFORM = load(DEFAULTS).profiles["ecc-platform"]
CHOOSING = Profile.model_validate(PLATFORM.model_dump() | {"csr_names": ("dns",)})
DEVICE = load(DEFAULTS).profiles["ecc-device"]
VOUCHED = ("dns:a.plant", "dns:b.plant", "ip:192.0.2.7")


@pytest.mark.parametrize(
    ("profile", "proposed", "wanted"),
    [
        (PLATFORM, (), VOUCHED),
        (PLATFORM, ("dns:evil.plant", "uri:urn:x"), VOUCHED),  # a CSR is not asked, whatever it says
        (PLATFORM, ("dns:a.plant",), VOUCHED),
        (CHOOSING, (), VOUCHED),
        (CHOOSING, ("dns:b.plant",), ("dns:b.plant", "ip:192.0.2.7")),
        (CHOOSING, ("dns:b.plant", "dns:a.plant", "dns:b.plant"), VOUCHED),
        (CHOOSING, ("ip:192.0.2.99", "email:a@b"), VOUCHED),  # kinds that it may not choose
    ],
)
def test_names_are_those_vouched_for(profile: Profile, proposed: tuple[str, ...], wanted: tuple[str, ...]) -> None:
    assert choose(profile, vouched=VOUCHED, proposed=proposed) == wanted


@pytest.mark.parametrize("proposed", ["dns:evil.plant", "dns:A.plant", "dns:*.plant"])
def test_a_csr_chooses_only_among_them(proposed: str) -> None:
    with pytest.raises(Refused, match="nobody vouched for"):
        choose(CHOOSING, vouched=VOUCHED, proposed=("dns:a.plant", proposed))


def test_repeated_names_stand_once() -> None:
    assert choose(PLATFORM, vouched=("dns:a", "ip:::1", "dns:a"), proposed=()) == ("dns:a", "ip:::1")


def test_a_device_has_no_other_names() -> None:
    assert choose(DEVICE, vouched=(), proposed=("dns:evil.plant",)) == ()
    with pytest.raises(Refused, match="writes no dns names"):
        choose(DEVICE, vouched=("dns:a.plant",), proposed=())


@pytest.mark.parametrize(
    "text", ["dns:*.a", "dns:a_b", "ip:10.0.0", "ip:fe80::1%eth0", "ip:2001:DB8::1", "uri:urn:x", "a", "", "dns:1", "dns:a.1"]
)
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(Malformed):
        check(text)
    with pytest.raises(Malformed):
        choose(PLATFORM, vouched=(text,), proposed=())


@pytest.mark.parametrize(
    "text", ["dns:localhost", "dns:xn--fiq228c.plant", "dns:1.a", "dns:" + "a" * 63, "ip:127.0.0.1", "ip:::1", "ip:fe80::1"]
)
def test_what_is_one(text: str) -> None:
    check(text)


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("a" * 64, False),
        (".".join(["a" * 63] * 3) + "." + "a" * 61, True),
        (".".join(["a" * 63] * 3) + "." + "a" * 62, False),
        *((text, False) for text in ("a.", "a\n", "0x1f", "-a", "a-", "", "A", "ü")),
        *((text, True) for text in ("1a", "a-b", "a1.b2")),
    ],
)
def test_host_names(text: str, host: bool) -> None:
    assert is_host(text) is host


@given(
    st.lists(st.sampled_from([*VOUCHED, "dns:evil.plant", "ip:192.0.2.8", "uri:urn:x"])), st.lists(st.sampled_from(VOUCHED)), st.booleans()
)
def test_nothing_comes_from_the_csr(proposed: list[str], vouched: list[str], choosing: bool) -> None:
    profile: Any = CHOOSING if choosing else PLATFORM
    try:
        chosen = choose(profile, vouched=vouched, proposed=proposed)
    except Refused:
        assert choosing
        return
    assert set(chosen) <= set(vouched)
    assert len(set(chosen)) == len(chosen)
