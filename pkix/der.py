"""Strict DER: a bounded pre-scan for bytes from outside, a reader of TLVs, and encoders (X.690 clauses 8, 10, 11).

    prescan(raw)                       # raises Malformed; O(n), before any other parser sees the bytes
    root = read(raw)                   # Tlv(tag, start, body, end): offsets, nothing copied
    for child in children(raw, root):  # one level
        raw[child.body:child.end]

    sequence(integer(2), utf8_string("plant"))   # encoders return bytes

Tags are the identifier octet itself (0x30 SEQUENCE, 0xA0 [0] constructed). High tag numbers do not occur in PKIX and are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from pkix.errors import Malformed

BOOLEAN, INTEGER, BIT_STRING, OCTET_STRING, NULL, OID = 0x01, 0x02, 0x03, 0x04, 0x05, 0x06
ENUMERATED, UTF8_STRING, PRINTABLE_STRING, IA5_STRING = 0x0A, 0x0C, 0x13, 0x16
UTC_TIME, GENERALIZED_TIME, SEQUENCE, SET = 0x17, 0x18, 0x30, 0x31

STRINGS = {
    UTF8_STRING: "utf-8",
    PRINTABLE_STRING: "ascii",
    IA5_STRING: "ascii",
    0x12: "ascii",  # NumericString
    0x14: "latin-1",  # TeletexString, as everyone writes it
    0x1A: "ascii",  # VisibleString
    0x1C: "utf-32-be",  # UniversalString
    0x1E: "utf-16-be",  # BMPString
}
"""The string types, and the codec of each."""

SHARED = 256
"""Pieces of this many octets at most are worth remembering: what many certificates have in common is short."""

_MAX_OID_BODY = 64
_DOTTED = re.compile(r"[0-2](\.(0|[1-9][0-9]{0,38}))+")
_MAX_INTEGER_BODY = 2080


class Tlv(NamedTuple):
    """One element: identifier octet, and offsets into the buffer of its first octet, its contents, and its end."""

    tag: int
    start: int
    body: int
    end: int


def read(data: bytes, pos: int = 0, end: int | None = None) -> Tlv:
    """The element that starts at ``pos``.

    Raises:
        Malformed: truncated, an indefinite or non-minimal length (X.690 10.1), a high tag number.
    """
    limit = len(data) if end is None else end
    if pos + 2 > limit:
        raise Malformed("DER: the data ends where an element should begin; it is truncated")
    tag = data[pos]
    if tag & 0x1F == 0x1F:
        raise Malformed("DER: a high tag number, which no PKIX structure uses")
    length = data[pos + 1]
    body = pos + 2
    if length >= 0x80:
        octets = length & 0x7F
        if octets == 0:
            raise Malformed("DER: an indefinite length; this is BER, encode the object as DER")
        if octets > 4 or body + octets > limit:
            raise Malformed("DER: a length that is longer than the data")
        length = int.from_bytes(data[body : body + octets])
        if length < 0x80 or length >> (8 * (octets - 1)) == 0:
            raise Malformed("DER: a length in more octets than it needs; this is BER, encode the object as DER")
        body += octets
    if body + length > limit:
        raise Malformed("DER: an element runs past the end of the data; it is truncated")
    return _tlv(Tlv, (tag, pos, body, body + length))


_tlv: Callable[[type[Tlv], tuple[int, int, int, int]], Tlv] = tuple.__new__


def children(data: bytes, parent: Tlv) -> list[Tlv]:
    """The elements directly inside a constructed one, in order; one level. Raises Malformed as ``read``."""
    found = []
    _, _, pos, end = parent
    while pos < end:
        # The common case of read(), in line: a low tag and a length in one octet.
        if pos + 2 <= end and (length := data[pos + 1]) < 0x80 and (after := pos + 2 + length) <= end and data[pos] & 0x1F != 0x1F:
            found.append(_tlv(Tlv, (data[pos], pos, pos + 2, after)))
            pos = after
        else:
            child = read(data, pos, end)
            found.append(child)
            pos = child.end
    return found


def parts(element: bytes) -> list[bytes]:
    """What is directly inside one whole constructed element, each as octets of its own: to be looked up, or kept.

    High tag numbers are not looked for: whoever takes an element compares its tag. Raises Malformed as ``read`` of anything else.
    """
    found = []
    pos, end = 2 if element[1] < 0x80 else element[1] - 0x7E, len(element)
    try:
        while pos < end:
            length = element[pos + 1]
            after = pos + 2 + length if length < 0x80 else _after(element, pos, end)
            found.append(element[pos:after])
            pos = after
    except IndexError:
        raise Malformed("DER: the data ends where an element should begin; it is truncated") from None
    if pos != end:
        raise Malformed("DER: an element runs past the end of the one around it")
    return found


def _after(data: bytes, pos: int, end: int) -> int:
    """Where an element ends whose length is in several octets, in two as a rule."""
    if data[pos + 1] == 0x82 and data[pos + 2]:
        return pos + 4 + (data[pos + 2] << 8 | data[pos + 3])
    return read(data, pos, end).end


def parts_of(raw: bytes, tag: int, what: str) -> list[bytes]:
    """``parts`` of bytes from outside that are to be one element with ``tag`` and nothing behind it; else Malformed naming ``what``."""
    size = len(raw)
    if size < 4 or raw[0] != tag or size != (2 + raw[1] if raw[1] < 0x80 else _after(raw, 0, size)):
        root = read(raw)
        if root.end != size:
            raise Malformed(f"DER: {size - root.end} octets behind the end of {what}")
        if root.tag != tag:
            raise Malformed(f"DER: {what} has tag 0x{root.tag:02x}, not 0x{tag:02x}")
    return parts(raw)


def contents(element: bytes) -> bytes:
    """The contents octets of one whole element."""
    return element[2:] if element[1] < 0x80 else element[element[1] - 0x7E :]


def expect(data: bytes, tlv: Tlv, tag: int, what: str) -> bytes:
    """The contents of ``tlv`` if it carries ``tag``; else Malformed naming ``what``."""
    if tlv.tag != tag:
        raise Malformed(f"DER: {what} has tag 0x{tlv.tag:02x}, not 0x{tag:02x}")
    return data[tlv.body : tlv.end]


def prescan(data: bytes, *, max_size: int = 65536, max_depth: int = 20, max_elements: int = 20000) -> Tlv:
    """Refuses whatever a later parser could choke on, in one pass over the bytes.

    Checks: one element and nothing behind it, definite minimal lengths, nesting, number of elements, primitive types
    that are constructed, OID and INTEGER size and form, BOOLEAN values. It does not look inside OCTET and BIT STRINGs.

    Args:
        data: the whole object.
        max_size: octets.  max_depth: levels of nesting.  max_elements: TLVs in all.
    Returns:
        The outermost element.
    Raises:
        Malformed: with the rule that was broken.
    """
    size = len(data)
    if size > max_size:
        raise Malformed(f"DER: {size} octets, at most {max_size} are taken here")
    root = read(data)
    if root.end != size:
        raise Malformed(f"DER: {size - root.end} octets behind the end of the object")
    ends = [size]
    pos, count = 0, 0
    while pos < size:
        # The loop below is read() unrolled: this runs for every octet string from the network.
        limit = ends[-1]
        count += 1
        if count > max_elements:
            raise Malformed(f"DER: more than {max_elements} elements")
        if pos + 2 > limit:
            raise Malformed("DER: an element is cut off by the end of the one around it")
        tag = data[pos]
        length = data[pos + 1]
        if tag & 0x1F == 0x1F or length >= 0x80:
            element = read(data, pos, limit)
            body, end = element.body, element.end
        else:
            body = pos + 2
            end = body + length
            if end > limit:
                raise Malformed("DER: an element runs past the end of the one around it")
        if tag & 0x20:
            if tag < 0x40 and tag not in (SEQUENCE, SET):
                raise Malformed(f"DER: tag 0x{tag:02x} is a constructed form of a primitive type; this is BER")
            if end > body:
                if len(ends) >= max_depth:
                    raise Malformed(f"DER: nested deeper than {max_depth} levels")
                ends.append(end)
            pos = body
        else:
            if tag < 0x07 or tag == ENUMERATED:
                _check_primitive(data, tag, body, end)
            elif tag in (SEQUENCE & 0xDF, SET & 0xDF):
                raise Malformed("DER: a SEQUENCE or SET that is not constructed")
            pos = end
        while ends and pos == ends[-1] and pos < size:
            ends.pop()
    return root


def check_primitive(element: bytes) -> None:
    """What ``prescan`` checks of one whole element that is no SEQUENCE or SET or tagged. Raises Malformed, also for a constructed form."""
    if element[0] & 0x20:
        raise Malformed(f"DER: tag 0x{element[0]:02x} is constructed where a primitive type stands")
    _check_primitive(element, element[0], 2 if element[1] < 0x80 else element[1] - 0x7E, len(element))


def _check_primitive(data: bytes, tag: int, body: int, end: int) -> None:
    length = end - body
    if tag in (INTEGER, ENUMERATED):
        if length == 0 or length > _MAX_INTEGER_BODY:
            raise Malformed("DER: an INTEGER of no octets, or of more than any key needs")
        if length > 1 and ((data[body] == 0 and data[body + 1] < 0x80) or (data[body] == 0xFF and data[body + 1] >= 0x80)):
            raise Malformed("DER: an INTEGER in more octets than it needs")
    elif tag == OID:
        if not 0 < length <= _MAX_OID_BODY or data[end - 1] & 0x80:
            raise Malformed("DER: an OBJECT IDENTIFIER that is empty, cut off, or too long")
        contents = data[body:end]
        if 0x80 in contents and (contents[0] == 0x80 or any(b == 0x80 and a < 0x80 for a, b in pairwise(contents))):
            raise Malformed("DER: an OBJECT IDENTIFIER arc with leading zeros")
    elif tag == BOOLEAN:
        if length != 1 or data[body] not in (0x00, 0xFF):
            raise Malformed("DER: a BOOLEAN must be one octet, 00 or FF")
    elif tag == NULL:
        if length:
            raise Malformed("DER: a NULL with contents")
    elif tag == BIT_STRING:
        if length == 0 or data[body] > 7 or (length == 1 and data[body]):
            raise Malformed("DER: a BIT STRING without a valid count of unused bits")
        if data[body] and data[end - 1] & ((1 << data[body]) - 1):
            raise Malformed("DER: a BIT STRING whose unused bits are not zero")
    elif tag == 0 and length == 0:
        raise Malformed("DER: end-of-contents octets; this is BER, encode the object as DER")


# --- encoders ----------------------------------------------------------------------------------------------------


def tlv(tag: int, *parts: bytes) -> bytes:
    """An element with identifier octet ``tag`` and the concatenated ``parts`` as contents."""
    body = b"".join(parts)
    length = len(body)
    if length < 0x80:
        return bytes((tag, length)) + body
    octets = (length.bit_length() + 7) // 8
    return bytes((tag, 0x80 | octets)) + length.to_bytes(octets) + body


def sequence(*parts: bytes) -> bytes:
    """SEQUENCE of encoded parts."""
    return tlv(SEQUENCE, *parts)


def set_of(parts: Iterable[bytes]) -> bytes:
    """SET OF, elements in DER order (X.690 11.6)."""
    return tlv(SET, *sorted(parts))


def context(number: int, *parts: bytes, constructed: bool = True) -> bytes:
    """Context-specific [number]; constructed unless it stands for an implicit primitive."""
    return tlv((0xA0 if constructed else 0x80) | number, *parts)


def integer(value: int) -> bytes:
    """INTEGER, minimal two's complement."""
    return tlv(INTEGER, value.to_bytes((value + (value < 0)).bit_length() // 8 + 1, signed=True))


def enumerated(value: int) -> bytes:
    """ENUMERATED, non-negative."""
    return tlv(ENUMERATED, value.to_bytes(value.bit_length() // 8 + 1, signed=True))


def boolean(value: bool) -> bytes:
    """BOOLEAN: 00 or FF (X.690 11.1)."""
    return b"\x01\x01\xff" if value else b"\x01\x01\x00"


def null() -> bytes:
    """NULL."""
    return b"\x05\x00"


def octet_string(value: bytes) -> bytes:
    """OCTET STRING."""
    return tlv(OCTET_STRING, value)


def bit_string(value: bytes, unused: int = 0) -> bytes:
    """BIT STRING of whole octets, ``unused`` bits of the last one not counted."""
    return tlv(BIT_STRING, bytes((unused,)), value)


def named_bits(bits: Iterable[int]) -> bytes:
    """BIT STRING with named bits set, trailing zero bits cut (X.690 11.2.2). Bit 0 is the most significant."""
    chosen = frozenset(bits)
    if not chosen:
        return bit_string(b"")
    top = max(chosen)
    value = bytearray(top // 8 + 1)
    for bit in chosen:
        value[bit // 8] |= 0x80 >> bit % 8
    return bit_string(bytes(value), 7 - top % 8)


@lru_cache(maxsize=1024)
def oid(dotted: str) -> bytes:
    """OBJECT IDENTIFIER from its dotted form. Raises Malformed on anything else."""
    arcs = [int(arc) for arc in dotted.split(".")] if _DOTTED.fullmatch(dotted) else []
    if len(arcs) < 2 or (arcs[0] < 2 and arcs[1] > 39):
        raise Malformed(f"{dotted!r} is no object identifier; it is written like 1.2.840.113549")
    body = bytearray()
    for arc in (arcs[0] * 40 + arcs[1], *arcs[2:]):
        octets = [arc & 0x7F]
        while arc := arc >> 7:
            octets.append(0x80 | arc & 0x7F)
        body += bytes(reversed(octets))
    return tlv(OID, bytes(body))


@lru_cache(maxsize=1024)
def decode_oid(body: bytes) -> str:
    """Dotted form of the contents octets of an OBJECT IDENTIFIER (form checked by ``prescan``)."""
    arcs: list[int] = []
    value = 0
    for octet in body:
        value = value << 7 | octet & 0x7F
        if octet < 0x80:
            arcs.append(value)
            value = 0
    if not arcs:
        raise Malformed("DER: an empty OBJECT IDENTIFIER")
    first = min(arcs[0] // 40, 2)
    return ".".join(str(arc) for arc in (first, arcs[0] - 40 * first, *arcs[1:]))


def utf8_string(text: str) -> bytes:
    """UTF8String."""
    return tlv(UTF8_STRING, text.encode())


def printable_string(text: str) -> bytes:
    """PrintableString; the caller has checked the alphabet (X.680 41.4)."""
    return tlv(PRINTABLE_STRING, text.encode("ascii"))


def ia5_string(text: str) -> bytes:
    """IA5String. Raises Malformed on characters outside ASCII."""
    try:
        return tlv(IA5_STRING, text.encode("ascii"))
    except UnicodeEncodeError:
        raise Malformed(f"{text!r} has characters outside ASCII where an IA5String stands") from None


def generalized_time(moment: datetime) -> bytes:
    """GeneralizedTime in UTC to the second, no fraction (RFC 5280 4.1.2.5.2)."""
    return tlv(GENERALIZED_TIME, moment.astimezone(UTC).strftime("%Y%m%d%H%M%SZ").rjust(15, "0").encode())


def time(moment: datetime) -> bytes:
    """Time as PKIX wants it: UTCTime to the end of 2049, GeneralizedTime from 2050 (RFC 5280 4.1.2.5)."""
    moment = moment.astimezone(UTC)
    if 1950 <= moment.year < 2050:
        return tlv(UTC_TIME, moment.strftime("%y%m%d%H%M%SZ").encode())
    return generalized_time(moment)


def decode_string(data: bytes, element: Tlv, what: str) -> str:
    """The characters of any ASN.1 string type. Raises Malformed, naming ``what``, on another type or octets its encoding does not allow."""
    codec = STRINGS.get(element.tag)
    if codec is None:
        raise Malformed(f"DER: {what} has tag 0x{element.tag:02x}, which is no string")
    try:
        return data[element.body : element.end].decode(codec)
    except UnicodeDecodeError:
        raise Malformed(f"DER: {what} is not in the characters of its string type") from None


def decode_time(data: bytes, element: Tlv) -> datetime:
    """The UTCTime or GeneralizedTime at ``element``. Raises Malformed as ``moment``."""
    return moment(data[element.start : element.end])


def moment(element: bytes) -> datetime:
    """A whole UTCTime or GeneralizedTime, in the one form that PKIX allows each (RFC 5280 4.1.2.5.1 and .2). Raises Malformed."""
    head, text = element[:2], element[2:]
    if head == b"\x17\x0d" and len(text) == 13:
        text = (b"19" if text >= b"50" else b"20") + text
    elif head != b"\x18\x0f" or len(text) != 15:
        raise Malformed("a time that is neither UTCTime with seconds nor GeneralizedTime without a fraction")
    if text[14] != 0x5A or not text[:14].isdigit():
        raise Malformed("a time that does not end in Z or has other characters than digits")
    try:
        if text[8:10] == b"24":  # which some versions of ISO 8601 allow at midnight
            raise ValueError
        return datetime.fromisoformat((text[:8] + b"T" + text[8:]).decode())
    except ValueError:
        raise Malformed(f"{text[:14].decode()} is no moment of the calendar") from None
