"""Distinguished names (X.501, RFC 5280 4.1.2.4): made from values, read from DER, shown as RFC 4514 text.

    plant = name(("O", "Example Plant"), ("CN", "press-7"))     # the order given is the order encoded
    plant.text                                                  # 'CN=press-7,O=Example Plant'
    plant.get("CN")                                             # ['press-7']

A value is only ever a value: nothing in it is read as the syntax of a name. Names are compared by their DER.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

from pkix import der
from pkix.errors import Malformed

# Short name: OID, upper bound in characters (RFC 5280 appendix A.1, X.520), whether PrintableString.
_ATTRIBUTES: dict[str, tuple[str, int, bool]] = {
    "CN": ("2.5.4.3", 64, False),
    "SN": ("2.5.4.4", 64, False),
    "serialNumber": ("2.5.4.5", 64, True),
    "C": ("2.5.4.6", 2, True),
    "L": ("2.5.4.7", 128, False),
    "ST": ("2.5.4.8", 128, False),
    "street": ("2.5.4.9", 128, False),
    "O": ("2.5.4.10", 64, False),
    "OU": ("2.5.4.11", 64, False),
    "title": ("2.5.4.12", 64, False),
    "GN": ("2.5.4.42", 64, False),
    "dnQualifier": ("2.5.4.46", 64, True),
    "pseudonym": ("2.5.4.65", 128, False),
    "organizationIdentifier": ("2.5.4.97", 128, False),
    "UID": ("0.9.2342.19200300.100.1.1", 256, False),
    "DC": ("0.9.2342.19200300.100.1.25", 63, False),
    "emailAddress": ("1.2.840.113549.1.9.1", 255, False),
}
_SHORT = {oid: short for short, (oid, _, _) in _ATTRIBUTES.items()}
_IA5 = frozenset(("DC", "emailAddress"))
_PRINTABLE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 '()+,-./:=?")
_TOLERATED = frozenset("*@&_")  # seen in PrintableStrings of deployed CAs; harmless
_MAX_SIZE = 16384
_MAX_RDNS = 32
_MAX_VALUE = 1024

# Besides controls: line and paragraph separators, and what reorders the text around it (Unicode TR 9, TR 36).
_DECEIVING = frozenset("\u2028\u2029\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff")


Rdn = Sequence[tuple[str, str, bool]]
"""Attributes of one RDN: short name or dotted OID, value, whether the value is a string."""


@dataclass(frozen=True, slots=True)
class Name:
    """A distinguished name; equal if the DER is."""

    der: bytes
    _rdns: Sequence[Rdn] | None = field(default=None, compare=False, repr=False)

    @property
    def rdns(self) -> Sequence[Rdn]:
        """The RDNs in the order encoded."""
        return [_rdn_of(octets) for octets in _parts(self.der)] if self._rdns is None else self._rdns

    @property
    def attributes(self) -> list[tuple[str, str]]:
        """(short name or dotted OID, value) in the order encoded; a value that is no string as ``#`` and the hex of its DER."""
        return [(short, value) for rdn in self.rdns for short, value, _ in rdn]

    @property
    def text(self) -> str:
        """RFC 4514: the last RDN first, special characters escaped."""
        rdns = ("+".join(f"{short}={_escape(value) if string else value}" for short, value, string in rdn) for rdn in self.rdns)
        return ",".join(reversed(list(rdns)))

    def get(self, short: str) -> list[str]:
        """Values of the attribute ``short`` (``CN``, ``serialNumber``, … or a dotted OID), in the order encoded."""
        return [value for attribute, value in self.attributes if attribute == short]

    def __str__(self) -> str:
        return self.text


def name(*attributes: tuple[str, str]) -> Name:
    """A name with one RDN for each (short name, value), in this order.

    C, serialNumber and dnQualifier are written as PrintableString, DC and emailAddress as IA5String, the others as UTF8String.

    Raises:
        Malformed: an attribute we do not write, a value that is empty, too long (RFC 5280), holds a control character or a character
            that reorders text, or does not fit the string type.
    """
    return Name(der.sequence(*[_rdn(short, value) for short, value in attributes]), [[(*attribute, True)] for attribute in attributes])


@lru_cache(maxsize=256)
def _rdn(short: str, value: str) -> bytes:
    if short not in _ATTRIBUTES:
        raise Malformed(f"{short!r} is not an attribute of a name that is written here; use one of {', '.join(_ATTRIBUTES)}")
    if not value:
        raise Malformed(f"the attribute {short} of a name is empty; leave it out instead")
    oid, _, printable = _ATTRIBUTES[short]
    _check_characters(short, value)
    _check_bounds(short, value)
    string = der.printable_string if printable else der.ia5_string if short in _IA5 else der.utf8_string
    return der.tlv(der.SET, der.sequence(der.oid(oid), string(value)))


def parse_name(encoded: bytes, *, strict: bool = False) -> Name:
    """The name in ``encoded`` (DER of Name).

    Args:
        strict: refuse what ``name`` would not write either: values that are empty, no string or over RFC 5280's upper bounds, C or
            serialNumber with characters outside PrintableString. Other CAs' certificates break these; requests to us may not.
    Raises:
        Malformed: no Name, an RDN that is empty or not in DER order, a string with invalid, control or reordering characters.
    """
    if len(encoded) > _MAX_SIZE:
        raise Malformed(f"a name of {len(encoded)} octets, at most {_MAX_SIZE} are taken")
    for octets in _parts(encoded):
        if not _is_plain(octets):
            _rdn_of(octets)
    read = Name(encoded)
    for rdn in read.rdns if strict else ():
        for short, value, string in rdn:
            if not (value and string):
                raise Malformed(f"the attribute {short} of a name is empty or no string; leave it out instead")
            if short in _ATTRIBUTES:
                _check_bounds(short, value)
    return read


def _parts(encoded: bytes) -> list[bytes]:
    rdns = der.parts_of(encoded, der.SEQUENCE, "a name")
    if len(rdns) > _MAX_RDNS:
        raise Malformed(f"a name with more than {_MAX_RDNS} parts")
    return rdns


_LETTERS = {der.UTF8_STRING: bytes(range(0x20, 0x7F)), der.PRINTABLE_STRING: "".join(_PRINTABLE | _TOLERATED).encode()}
"""The octets of each string type that are plain."""
_PLAIN = {size: bytes((der.SET, size - 2, der.SEQUENCE, size - 4, der.OID, 3, 0x55, 4)) for size in range(11, 0x80)}
"""How an RDN of so many octets begins if it is a single attribute of X.520."""


def _is_plain(octets: bytes) -> bool:
    """Whether an RDN is a single attribute of X.520 in printable ASCII: there is nothing wrong with it then, and nothing to read yet."""
    size = len(octets)
    if octets[:8] != _PLAIN.get(size) or octets[8] >= 0x80 or octets[10] != size - 11:
        return False
    letters = _LETTERS.get(octets[9])
    return letters is not None and not octets[11:].translate(None, letters)


def _parse_rdn(octets: bytes) -> Rdn:
    """One RDN of bytes from outside. Raises Malformed."""
    rdn = _read_rdn(octets, der.prescan(octets, max_depth=5, max_elements=8 * _MAX_RDNS))
    for short, value, _ in rdn:
        _check_characters(short, value)
    return rdn


_shared_rdn = lru_cache(maxsize=2048)(_parse_rdn)
"""Most RDNs of a hierarchy are the same."""


def _rdn_of(octets: bytes) -> Rdn:
    return _shared_rdn(octets) if len(octets) <= der.SHARED else _parse_rdn(octets)


def _check_characters(short: str, value: str) -> None:
    if len(value) > _MAX_VALUE:
        raise Malformed(f"the attribute {short} of a name has more than {_MAX_VALUE} characters")
    if value.isascii() and value.isprintable():
        return
    for character in value:
        if unicodedata.category(character) in ("Cc", "Cs") or character in _DECEIVING:
            raise Malformed(f"the attribute {short} of a name holds U+{ord(character):04X}, a control or text-reordering character")


def _check_bounds(short: str, value: str) -> None:
    _, bound, printable = _ATTRIBUTES[short]
    if len(value) > bound:
        raise Malformed(f"the attribute {short} of a name has {len(value)} characters, at most {bound} are allowed (RFC 5280 A.1)")
    if printable and not _PRINTABLE.issuperset(value):
        raise Malformed(f"the attribute {short} of a name holds a character other than letters, digits, space and '()+,-./:=?")
    if short == "C" and not (len(value) == 2 and value.isascii() and value.isalpha()):
        raise Malformed("the attribute C of a name is a country code of two letters (ISO 3166)")


def _read_rdn(encoded: bytes, rdn: der.Tlv) -> Rdn:
    der.expect(encoded, rdn, der.SET, "a part of a name")
    attributes = der.children(encoded, rdn)
    if not attributes:
        raise Malformed("a part of a name without an attribute")
    if len(attributes) > 1:
        octets = [encoded[attribute.start : attribute.end] for attribute in attributes]
        if any(first >= second for first, second in pairwise(octets)):
            raise Malformed("a part of a name whose attributes are not in DER order, or repeated")
    return tuple([_attribute(encoded, attribute) for attribute in attributes])


def _attribute(encoded: bytes, attribute: der.Tlv) -> tuple[str, str, bool]:
    parts = der.children(encoded, attribute)
    if attribute.tag != der.SEQUENCE or len(parts) != 2:
        raise Malformed("an attribute of a name is a SEQUENCE of type and value")
    oid = der.decode_oid(der.expect(encoded, parts[0], der.OID, "the type of an attribute"))
    value = parts[1]
    short = _SHORT.get(oid, oid)
    if short == oid and value.tag not in der.STRINGS:
        return oid, "#" + encoded[value.start : value.end].hex(), False
    text = der.decode_string(encoded, value, f"the attribute {short} of a name")
    if value.tag == der.PRINTABLE_STRING and not _PRINTABLE.issuperset(text) and not _TOLERATED.issuperset(set(text) - _PRINTABLE):
        raise Malformed(f"the attribute {short} of a name holds a character outside PrintableString")
    return short, text, True


def _escape(value: str) -> str:
    """A string as RFC 4514 2.4 writes it."""
    escaped = "".join("\\" + character if character in '\\"+,;<>=' else character for character in value)
    if escaped[:1] == "#" or escaped[:1] == " ":
        escaped = "\\" + escaped
    if escaped[-1:] == " " and len(escaped) > 1 and escaped[-2:] != "\\ ":
        escaped = escaped[:-1] + "\\ "
    return escaped
