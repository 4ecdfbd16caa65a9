"""Strict DER: what the pre-scan refuses, what it costs, and that the encoders write what others read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from asn1crypto import core
from hypothesis import given, settings
from hypothesis import strategies as st

from pkix import der
from pkix.errors import Malformed

# --- what is refused -----------------------------------------------------------------------------------------------

BER_AND_BROKEN = {
    "nothing": "",
    "only a tag": "30",
    "indefinite length": "30800000",
    "length in two octets instead of one": "30810200",
    "long form with a leading zero": "3082000000",
    "length of length 5": "30850000000000",
    "reserved length ff": "30ff",
    "length runs past the end": "300305",
    "trailing octet": "300000",
    "child runs past its parent": "30030402aabb",
    "child header cut by its parent": "30010405",
    "high tag number": "3f8100",
    "high tag number in long form": "1f81808080" + "80" * 20 + "0100",
    "BOOLEAN true as 01": "3003010101",
    "BOOLEAN of two octets": "30040102ffff",
    "BOOLEAN of none": "30020100",
    "INTEGER of none": "30020200",
    "INTEGER padded with 00": "300402020001",
    "INTEGER padded with ff": "30040202ff80",
    "ENUMERATED padded with 00": "30040a020001",
    "OID of none": "30020600",
    "OID cut off in an arc": "300406022a86",
    "OID arc with leading zeros": "300506032a8001",
    "OID that begins with a leading zero": "300506038001aa",
    "OID of 65 octets": "3043" + "0641" + "2a" * 65,
    "NULL with contents": "3003050100",
    "BIT STRING of none": "30020300",
    "BIT STRING with 8 unused bits": "300403020800",
    "BIT STRING with unused bits and no octet": "3003030101",
    "BIT STRING with padding that is not zero": "300403020101",
    "constructed OCTET STRING": "3004240204 00".replace(" ", ""),
    "constructed BIT STRING": "300523030301 00".replace(" ", ""),
    "constructed UTF8String": "30022c00",
    "constructed TeletexString": "30023400",
    "constructed BMPString": "30023e00",
    "constructed INTEGER": "30022200",
    "primitive SEQUENCE": "30021000",
    "primitive SET": "30021100",
    "end-of-contents inside": "30020000",
}


@pytest.mark.parametrize("encoded", BER_AND_BROKEN.values(), ids=BER_AND_BROKEN.keys())
def test_ber_and_broken_encodings_are_refused(encoded: str) -> None:
    with pytest.raises(Malformed):
        der.prescan(bytes.fromhex(encoded))


@pytest.mark.parametrize(
    "encoded", ["0500", "3000", "a000", "8000", "02020080", "0202ff7f", "0101ff", "0a0101", "030100", "03020780", "06032a8648"]
)
def test_good_encodings_pass(encoded: str) -> None:
    raw = bytes.fromhex(encoded)
    assert der.prescan(raw) == der.read(raw)


def nested(depth: int) -> bytes:
    raw = b""
    for _ in range(depth):
        raw = der.tlv(0x30, raw)
    return raw


def test_the_limits_are_the_arguments() -> None:
    assert der.prescan(nested(20), max_depth=20)
    with pytest.raises(Malformed, match="deeper than 20"):
        der.prescan(nested(21), max_depth=20)
    assert der.prescan(der.sequence(*[der.null()] * 9), max_elements=10)
    with pytest.raises(Malformed, match="more than 10"):
        der.prescan(der.sequence(*[der.null()] * 10), max_elements=10)
    assert der.prescan(der.octet_string(bytes(98)), max_size=100)
    with pytest.raises(Malformed, match="at most 100"):
        der.prescan(der.octet_string(bytes(99)), max_size=100)


_ATTRIBUTE = der.sequence(der.oid("2.5.4.3"), der.utf8_string("x"))
COSTLY = {
    "5000 levels": nested(5000),
    "an OID arc of 64 KB": der.tlv(0x06, b"\x2a" + b"\xff" * 65536 + b"\x01"),
    "a tag of 100 KB": b"\x3f" + b"\xff" * 100_000 + b"\x01\x00",
    "an INTEGER of 64 KB": der.tlv(0x02, b"\x01" * 65536),
    "100 000 RDNs": der.sequence(*[der.tlv(der.SET, _ATTRIBUTE)] * 100_000),
    "200 000 names": der.sequence(*[der.context(2, b"a", constructed=False)] * 200_000),
}


@pytest.mark.parametrize("raw", COSTLY.values(), ids=COSTLY.keys())
def test_what_other_parsers_need_seconds_for_is_refused(raw: bytes) -> None:
    # Without the limit on size it is the other limits that have to hold.
    for size in (16384, 1 << 24):
        with pytest.raises(Malformed):
            der.prescan(raw, max_size=size)


# --- any octets ----------------------------------------------------------------------------------------------------


def trees(leaves: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    def grow(inner: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
        return st.builds(lambda tag, parts: der.tlv(tag, *parts), st.sampled_from((0x30, 0x31, 0xA0, 0xA3)), st.lists(inner, max_size=5))

    return st.recursive(leaves, grow, max_leaves=30)


LEAVES = st.one_of(
    st.integers(-(1 << 512), 1 << 512).map(der.integer),
    st.booleans().map(der.boolean),
    st.binary(max_size=300).map(der.octet_string),
    st.text(max_size=50).map(der.utf8_string),
    st.just(der.null()),
    st.lists(st.integers(0, 40), max_size=4).map(der.named_bits),
)


def rebuilt(raw: bytes, element: der.Tlv) -> bytes:
    if element.tag & 0x20:
        return der.tlv(element.tag, *(rebuilt(raw, child) for child in der.children(raw, element)))
    return der.tlv(element.tag, raw[element.body : element.end])


@settings(deadline=None)
@given(raw=trees(LEAVES))
def test_what_the_encoders_write_passes_and_reads_back(raw: bytes) -> None:
    assert rebuilt(raw, der.prescan(raw)) == raw


@settings(deadline=None)
@given(raw=st.binary(max_size=200) | trees(LEAVES), data=st.data())
def test_any_octets_pass_or_are_malformed_and_what_passes_is_der(raw: bytes, data: Any) -> None:
    if raw and data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw = raw[:at] + data.draw(st.binary(max_size=3)) + raw[at + data.draw(st.integers(0, 3)) :]
    try:
        root = der.prescan(raw)
    except Malformed:
        return
    # One way to write it: what was accepted is what we would have written.
    assert rebuilt(raw, root) == raw


# --- encoders, against another library ------------------------------------------------------------------------------


@settings(deadline=None)
@given(value=st.integers(-(1 << 200), 1 << 200))
def test_integers(value: int) -> None:
    assert der.integer(value) == core.Integer(value).dump()
    der.prescan(der.integer(value))


@settings(deadline=None)
@given(arcs=st.tuples(st.integers(0, 2), st.integers(0, 39), st.lists(st.integers(0, 1 << 40), max_size=6)))
def test_object_identifiers(arcs: tuple[int, int, list[int]]) -> None:
    dotted = ".".join(map(str, (arcs[0], arcs[1], *arcs[2])))
    encoded = der.oid(dotted)
    assert encoded == core.ObjectIdentifier(dotted).dump()
    assert der.decode_oid(encoded[2:]) == dotted


@pytest.mark.parametrize("text", ["", "1", "1.40", "3.1", "1.-2", "a.b", "1..2", "2.5.4.3 ", "2.5.4.+3", "2.5.4.1_0", "2.5.04", "2.5.٤"])
def test_text_that_is_no_object_identifier(text: str) -> None:
    with pytest.raises(Malformed):
        der.oid(text)


@settings(deadline=None)
@given(bits=st.sets(st.integers(0, 60)))
def test_named_bits_end_with_the_last_one_that_is_set(bits: set[int]) -> None:
    encoded = der.named_bits(bits)
    der.prescan(encoded)
    read = core.BitString.load(encoded).native
    assert {at for at, bit in enumerate(read) if bit} == bits
    assert not read or read[-1] == 1


@settings(deadline=None)
@given(parts=st.lists(LEAVES, max_size=6))
def test_a_set_of_is_sorted(parts: list[bytes]) -> None:
    raw = der.set_of(parts)
    found = [raw[child.start : child.end] for child in der.children(raw, der.read(raw))]
    assert found == sorted(parts)


# --- strings and times ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoded", "text"),
    [
        (der.utf8_string("压机 7"), "压机 7"),
        (der.tlv(0x1E, "压机".encode("utf-16-be")), "压机"),
        (der.tlv(0x14, b"B\xfccher"), "Bücher"),
        (der.printable_string("press-7"), "press-7"),
    ],
)
def test_strings_of_every_type_are_read(encoded: bytes, text: str) -> None:
    assert der.decode_string(encoded, der.read(encoded), "it") == text


@pytest.mark.parametrize("encoded", ["0c02c328", "0c03eda080", "1301ff", "1e0100", "1e02d800", "1c0400110000", "040161", "2400"])
def test_octets_that_are_no_string_of_their_type_are_refused(encoded: str) -> None:
    raw = bytes.fromhex(encoded)
    with pytest.raises(Malformed, match="the press"):
        der.decode_string(raw, der.read(raw), "the press")


@pytest.mark.parametrize(
    ("moment", "encoded"),
    [
        (datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC), b"\x17\x0d491231235959Z"),
        (datetime(2050, 1, 1, tzinfo=UTC), b"\x18\x0f20500101000000Z"),
        (datetime(1950, 1, 1, tzinfo=UTC), b"\x17\x0d500101000000Z"),
        (datetime(1949, 12, 31, 23, 59, 59, tzinfo=UTC), b"\x18\x0f19491231235959Z"),
        (datetime(2026, 3, 1, 1, 0, 0, tzinfo=timezone(timedelta(hours=8))), b"\x17\x0d260228170000Z"),
        (datetime(1, 1, 1, tzinfo=UTC), b"\x18\x0f00010101000000Z"),
        (datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC), b"\x18\x0f99991231235959Z"),
    ],
)
def test_times_change_their_type_in_2050(moment: datetime, encoded: bytes) -> None:
    assert der.time(moment) == encoded
    assert der.decode_time(encoded, der.read(encoded)) == moment


@pytest.mark.parametrize(
    "encoded",
    [
        b"\x17\x0b2601010000Z",  # no seconds
        b"\x17\x0d260230000000Z",  # 30 February
        b"\x17\x0d260101240000Z",
        b"\x17\x0d260101000060Z",  # a leap second has no place here
        b"\x17\x11260101000000+0800",
        b"\x17\x0d 60101000000Z",
        b"\x17\x0d+60101000000Z",
        b"\x17\x0d2601010000001",
        b"\x18\x1120260101000000.5Z",
        b"\x18\x0e20260101000000",
        b"\x18\x0f00000101000000Z",
        b"\x13\x0f20260101000000Z",
        b"\x17\x00",
    ],
)
def test_other_forms_of_times_are_refused(encoded: bytes) -> None:
    with pytest.raises(Malformed):
        der.decode_time(encoded, der.read(encoded))


def test_an_ia5_string_is_ascii() -> None:
    with pytest.raises(Malformed, match="outside ASCII"):
        der.ia5_string("压机")


@given(st.one_of(st.binary(max_size=40), st.lists(st.binary(max_size=300).map(der.octet_string), max_size=3).map(b"".join)))
def test_parts_are_the_children_in_octets(contents: bytes) -> None:
    element = der.sequence(contents)
    try:
        children = [element[child.start : child.end] for child in der.children(element, der.read(element))]
    except Malformed:
        children = None
    try:
        parts = der.parts(element)
    except Malformed:
        parts = None
    # High tag numbers are the caller's to see.
    assert parts == children or any(part[0] & 0x1F == 0x1F for part in parts or ())
    for raw in (element, element + b"\0", element[:-1], element[1:]):
        try:
            whole = der.parts_of(raw, der.SEQUENCE, "it")
        except Malformed:
            assert raw != element or parts is None
        else:
            assert (der.read(raw).end, der.read(raw).tag) == (len(raw), der.SEQUENCE)
            assert raw != element or whole == parts
