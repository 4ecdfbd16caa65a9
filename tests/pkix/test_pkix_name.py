"""Distinguished names: values stay values, and the text is what RFC 4514 says."""

from __future__ import annotations

import unicodedata

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from pkix import der
from pkix.errors import Malformed
from pkix.name import Name, name, parse_name


def attribute(oid: str, value: bytes) -> bytes:
    return der.sequence(der.oid(oid), value)


def rdn(*attributes: bytes) -> bytes:
    return der.set_of(attributes)


# --- written -------------------------------------------------------------------------------------------------------


def test_a_name_is_encoded_as_another_library_encodes_it() -> None:
    ours = name(
        ("C", "CN"), ("ST", "广东"), ("L", "深圳"), ("O", "Example Plant"), ("OU", "Line 7"), ("CN", "press-7"), ("serialNumber", "press-7")
    )
    theirs = x509.Name(
        [
            x509.NameAttribute(NameOID.COUNTRY_NAME, "CN"),
            x509.NameAttribute(NameOID.STATE_OR_PROVINCE_NAME, "广东"),
            x509.NameAttribute(NameOID.LOCALITY_NAME, "深圳"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Example Plant"),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "Line 7"),
            x509.NameAttribute(NameOID.COMMON_NAME, "press-7"),
            x509.NameAttribute(NameOID.SERIAL_NUMBER, "press-7"),
        ]
    )
    assert ours.der == theirs.public_bytes()
    assert ours.text == "serialNumber=press-7,CN=press-7,OU=Line 7,O=Example Plant,L=深圳,ST=广东,C=CN"
    assert str(ours) == ours.text
    assert ours.attributes[0] == ("C", "CN")


INJECTIONS = [
    "dev1,O=Admin",
    "dev1+O=Admin",
    "dev1/O=Admin",
    "dev1;O=Admin",
    "dev1\\,O=Admin",
    '"dev1",O=Admin',
    "#0c0161",
    " dev1 ",
    "a=b",
    "\\",
    "<x>",
]


@pytest.mark.parametrize("value", INJECTIONS)
def test_nothing_in_a_value_is_read_as_a_name(value: str) -> None:
    made = name(("O", "Plant"), ("CN", value))
    assert made.get("CN") == [value]
    assert made.get("O") == ["Plant"]
    assert parse_name(made.der) == made
    theirs = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Plant"), x509.NameAttribute(NameOID.COMMON_NAME, value)])
    assert made.der == theirs.public_bytes()
    # The text reads back, by another library, as the same name.
    assert x509.Name.from_rfc4514_string(made.text) == theirs


@pytest.mark.parametrize(
    ("short", "value", "text"),
    [
        ("CN", "", "empty"),
        ("CN", "x" * 65, "at most 64"),
        ("O", "x" * 65, "at most 64"),
        ("serialNumber", "7" * 65, "at most 64"),
        ("L", "x" * 129, "at most 128"),
        ("C", "CHN", "at most 2"),
        ("C", "C", "two letters"),
        ("C", "C1", "two letters"),
        ("serialNumber", "press_7", "other than letters"),
        ("serialNumber", "压", "other than letters"),
        ("DC", "压", "outside ASCII"),
        ("CN", "a\0b", r"U\+0000"),
        ("CN", "a\r\nb", r"U\+000D"),
        ("CN", "a\x7fb", r"U\+007F"),
        ("CN", "a\x85b", r"U\+0085"),
        ("CN", "a\u202eb", r"U\+202E"),
        ("CN", "a\u2066b", r"U\+2066"),
        ("CN", "a\u2028b", r"U\+2028"),
        ("CN", "\ufeffab", r"U\+FEFF"),
        ("CN", "a\ud800b", r"U\+D800"),
        ("cn", "a", "not an attribute"),
        ("2.5.4.3", "a", "not an attribute"),
    ],
)
def test_values_that_are_not_written(short: str, value: str, text: str) -> None:
    with pytest.raises(Malformed, match=text):
        name((short, value))


def test_upper_bounds_are_in_characters() -> None:
    assert name(("CN", "压" * 64)).get("CN") == ["压" * 64]


# --- read ----------------------------------------------------------------------------------------------------------


def test_names_of_other_authorities() -> None:
    raw = der.sequence(
        rdn(attribute("2.5.4.6", der.printable_string("DE"))),
        rdn(attribute("2.5.4.10", der.tlv(0x14, b"B\xfccher")), attribute("2.5.4.11", der.tlv(0x1E, "压".encode("utf-16-be")))),
        rdn(attribute("1.2.3.4", der.utf8_string("#77"))),
        rdn(attribute("1.2.3.5", der.sequence(der.null()))),
        rdn(attribute("2.5.4.3", der.utf8_string("one"))),
        rdn(attribute("2.5.4.3", der.utf8_string("two"))),
    )
    read = parse_name(raw)
    assert read.der == raw
    assert read.text == r"CN=two,CN=one,1.2.3.5=#30020500,1.2.3.4=\#77,OU=压+O=Bücher,C=DE"
    assert read.get("CN") == ["one", "two"]
    assert read.get("O") == ["Bücher"]
    assert read.get("1.2.3.4") == ["#77"]
    assert read.get("none") == []
    assert parse_name(b"\x30\x00").text == ""


def test_names_are_the_same_if_their_octets_are() -> None:
    utf8, printable = (Name(der.sequence(rdn(attribute("2.5.4.3", string("x"))))) for string in (der.utf8_string, der.printable_string))
    assert utf8 != printable
    assert utf8.text == printable.text
    assert len({utf8, printable, parse_name(utf8.der)}) == 2


CN = attribute("2.5.4.3", der.utf8_string("x"))
BROKEN = {
    "not a SEQUENCE": b"\x31\x00",
    "empty": b"",
    "an empty RDN": der.sequence(der.tlv(der.SET)),
    "an RDN that is no SET": der.sequence(der.sequence(CN)),
    "RDN not in DER order": der.sequence(der.tlv(der.SET, *sorted((CN, attribute("2.5.4.4", der.utf8_string("x"))), reverse=True))),
    "an attribute twice in an RDN": der.sequence(der.tlv(der.SET, CN, CN)),
    "no value": der.sequence(rdn(der.sequence(der.oid("2.5.4.3")))),
    "two values": der.sequence(rdn(der.sequence(der.oid("2.5.4.3"), der.utf8_string("x"), der.utf8_string("y")))),
    "no type": der.sequence(rdn(der.sequence(der.utf8_string("x"), der.utf8_string("y")))),
    "CN is a number": der.sequence(rdn(attribute("2.5.4.3", der.integer(1)))),
    "not UTF-8": der.sequence(rdn(attribute("2.5.4.3", der.tlv(der.UTF8_STRING, b"\xff")))),
    "PrintableString with a semicolon": der.sequence(rdn(attribute("2.5.4.3", der.printable_string("a;b")))),
    "NUL": der.sequence(rdn(attribute("2.5.4.3", der.utf8_string("a\0b")))),
    "line break in an unknown attribute": der.sequence(rdn(attribute("1.2.3.4", der.utf8_string("a\nb")))),
    "text that runs backwards": der.sequence(rdn(attribute("2.5.4.3", der.utf8_string("a\u202eb")))),
    "a value of a thousand characters and one": der.sequence(rdn(attribute("2.5.4.3", der.utf8_string("x" * 1025)))),
    "33 RDNs": der.sequence(*[rdn(CN)] * 33),
    "100 000 RDNs": der.sequence(*[rdn(CN)] * 100_000),
    "trailing octet": name(("CN", "x")).der + b"\0",
}


@pytest.mark.parametrize("raw", BROKEN.values(), ids=BROKEN.keys())
def test_what_is_no_name_is_refused(raw: bytes) -> None:
    with pytest.raises(Malformed):
        parse_name(raw)


@pytest.mark.parametrize(
    ("oid", "value", "text"),
    [
        ("2.5.4.3", der.utf8_string("x" * 65), "at most 64"),
        ("2.5.4.3", der.utf8_string(""), "empty"),
        ("2.5.4.6", der.utf8_string("CHN"), "at most 2"),
        ("2.5.4.5", der.utf8_string("press_7"), "other than letters"),
        ("2.5.4.45", der.bit_string(b"x"), "no string"),
    ],
)
def test_requests_keep_the_bounds_that_others_certificates_may_break(oid: str, value: bytes, text: str) -> None:
    raw = der.sequence(rdn(attribute(oid, value)))
    assert parse_name(raw).der == raw
    with pytest.raises(Malformed, match=text):
        parse_name(raw, strict=True)


VALUES = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=16)  # the other library counts octets, 64 of them


@settings(deadline=None)
@given(values=st.lists(st.tuples(st.sampled_from(("CN", "O", "OU", "L", "UID")), VALUES), max_size=8))
def test_whatever_is_written_reads_back(values: list[tuple[str, str]]) -> None:
    try:
        made = name(*values)
    except Malformed as refused:
        assert "reordering" in str(refused)  # noqa: PT017
        return
    read = parse_name(made.der, strict=True)
    assert read.attributes == values
    theirs = x509.Name.from_rfc4514_string(read.text) if values else x509.Name([])
    assert [(attribute.rfc4514_attribute_name, attribute.value) for attribute in theirs] == values


@settings(deadline=None)
@given(values=st.lists(st.tuples(st.sampled_from(("CN", "O")), st.text(max_size=70)), max_size=3))
def test_any_text_is_a_name_or_malformed(values: list[tuple[str, str]]) -> None:
    try:
        made = name(*values)
    except Malformed:
        return
    assert made.attributes == values
    assert made.text.isprintable() or any(not character.isprintable() for _, value in values for character in value)


@settings(deadline=None)
@given(data=st.data())
def test_any_octets_are_a_name_or_malformed(data: st.DataObject) -> None:
    raw = data.draw(st.binary(max_size=80) | st.just(name(("C", "CN"), ("O", "Plant"), ("CN", "压机 7")).der))
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, max(0, len(raw) - 1)))
        raw = raw[:at] + data.draw(st.binary(max_size=2)) + raw[at + data.draw(st.integers(0, 2)) :]
    try:
        read = parse_name(raw)
    except Malformed:
        return
    assert read.der == raw
    assert "\n" not in read.text
    assert "\0" not in read.text


@settings(deadline=None, max_examples=400)
@given(data=st.data())
def test_a_name_that_is_taken_can_be_read(data: st.DataObject) -> None:
    """What is plain is not read until somebody asks; there is nothing wrong with it then."""
    value = data.draw(st.sampled_from(("plc-7", "压", "x" * 64)))
    raw = bytearray(data.draw(st.sampled_from((name(("O", "Example Plant"), ("CN", value)), name(("C", "DE"))))).der)
    for _ in range(data.draw(st.integers(0, 2))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        read = parse_name(bytes(raw))
    except Malformed:
        return
    der.prescan(bytes(raw))
    assert all(unicodedata.category(character) not in ("Cc", "Cs") for _, value in read.attributes for character in value)
