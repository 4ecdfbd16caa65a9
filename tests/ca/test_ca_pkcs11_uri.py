"""PKCS#11 URIs, as RFC 7512 has them and as an installation may use them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ca.pkcs11_uri import Pkcs11Uri, beside, fits, one, parse, parse_store
from pkix.errors import Malformed, NotFound

MODULE = "module-path=/lib/p11.so"
words = st.text(st.characters(blacklist_categories=("C", "Z")), min_size=1, max_size=40)
uris = st.builds(
    Pkcs11Uri,
    token=st.none() | words,
    manufacturer=st.none() | words,
    serial=st.none() | words,
    model=st.none() | words,
    library_version=st.none() | st.tuples(st.integers(0, 255), st.integers(0, 255)),
    slot_id=st.none() | st.integers(0, 2**63),
    object=st.none() | words,
    id=st.none() | st.binary(min_size=1, max_size=40),
    module_path=words,
    pin_source=st.none() | words.filter(lambda text: not text.startswith(("/", "|"))) | words.map(lambda text: "/" + text.lstrip("/")),
    server_address=st.none() | words.map("unix:path=".__add__),
)


@given(uris)
def test_what_is_written_is_read(uri: Pkcs11Uri) -> None:
    assert parse(str(uri)) == uri
    assert str(uri).isascii()


@given(st.text(max_size=200) | st.text("pkcs11:token=obj;?&%2F", max_size=60).map("pkcs11:".__add__))
def test_whatever_is_given_is_read_or_refused(text: str) -> None:
    try:
        uri = parse(text)
    except Malformed:
        return
    assert parse(str(uri)) == uri


def test_the_examples_of_the_standard() -> None:
    assert parse(f"pkcs11:?{MODULE}") == Pkcs11Uri(module_path="/lib/p11.so")
    token = "token=The%20Software%20PKCS%2311%20Softtoken;manufacturer=Snake%20Oil,%20Inc.;model=1.0"
    uri = parse(f"PKCS11:{token};object=my-certificate;id=%69%95%3E?{MODULE}")
    assert uri.token == "The Software PKCS#11 Softtoken"
    assert uri.manufacturer == "Snake Oil, Inc."
    assert (uri.model, uri.object, uri.id) == ("1.0", "my-certificate", b"\x69\x95\x3e")
    assert parse(f"pkcs11:library-version=3;slot-id=327?{MODULE}").library_version == (3, 0)
    assert parse(f"pkcs11:token=a;x-muster=zwei%3Bdrei?{MODULE}&x-a=1&x-a=2") == parse(f"pkcs11:token=a?{MODULE}")  # vendors' own
    assert parse(f"pkcs11:token=%E6%A0%B9?{MODULE}").token == "根"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("token=a", "PKCS#11 URI"),
        ("file:/etc/passwd", "PKCS#11 URI"),
        ("pkcs11:token=a", "module-path"),
        (f"pkcs11:token=a;token=b?{MODULE}", "twice"),
        (f"pkcs11:x-a=1;x-a=2?{MODULE}", "twice"),
        (f"pkcs11:token=a?{MODULE}&{MODULE}", "twice"),
        (f"pkcs11:token=a?{MODULE}&pin-value=1234", "pin-source"),
        (f"pkcs11:token=a?{MODULE}&pin-source=%7Ccat%20pin", "program"),
        (f"pkcs11:token=a?{MODULE}&pin-source=https:/pin", "file"),
        (f"pkcs11:token=a?{MODULE}&pin-source=file://elsewhere/pin", "another machine"),
        (f"pkcs11:token=a/b?{MODULE}", "percent-encode"),
        (f"pkcs11:token=a b?{MODULE}", "percent-encode"),
        (f"pkcs11:token?{MODULE}", "percent-encode"),
        (f"pkcs11:token=%FF?{MODULE}", "UTF-8"),
        (f"pkcs11:token=%0A?{MODULE}", "printable"),
        (f"pkcs11:type=public?{MODULE}", "private"),
        (f"pkcs11:slot-id=-1?{MODULE}", "number"),
        (f"pkcs11:library-version=1.2.3?{MODULE}", "number"),
        (f"pkcs11:token={'a' * 5000}?{MODULE}", "4096"),
    ],
)
def test_what_is_refused_is_told_why(text: str, said: str) -> None:
    with pytest.raises(Malformed) as caught:
        parse(text)
    assert said in str(caught.value)
    assert "1234" not in str(caught.value)


def test_pin_files() -> None:
    for source, path in (
        ("file:hsm.pin", "hsm.pin"),
        ("file:/etc/pin", "/etc/pin"),
        ("file:///etc/pin", "/etc/pin"),
        ("/etc/pin", "/etc/pin"),
    ):
        assert parse(f"pkcs11:?{MODULE}&pin-source={source}").pin_source == path


def test_a_token_is_chosen_by_all_that_is_said_of_it() -> None:
    there = [Pkcs11Uri(token="a", serial="1"), Pkcs11Uri(token="a", serial="2"), Pkcs11Uri(token="b", serial="1")]
    assert one(there, parse(f"pkcs11:token=a;serial=2;object=k?{MODULE}")) == 1
    with pytest.raises(NotFound, match="several"):
        one(there, parse(f"pkcs11:token=a?{MODULE}"))
    with pytest.raises(NotFound, match="'a', 'a', 'b'"):
        one(there, parse(f"pkcs11:token=c?{MODULE}"))
    assert not fits(Pkcs11Uri(token="a"), parse(f"pkcs11:token=a;model=m?{MODULE}"))


def test_keys_beside_each_other() -> None:
    reference = f"pkcs11:token=a;object=issuing;id=%01?{MODULE}&pin-source=file:pin"
    assert beside(reference, "issuing ocsp") == f"pkcs11:token=a;object=issuing%20ocsp?{MODULE}&pin-source=file:pin"
    assert beside("ecc-issuing", "ecc-issuing-ocsp") == "ecc-issuing-ocsp"
    with pytest.raises(Malformed, match="token alone"):
        parse_store(reference)
