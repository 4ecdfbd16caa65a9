"""Certificate revocation lists, version 2 (RFC 5280 5).

crl = TbsCrl(issuer=…, signature=…, this_update=…, next_update=…, number=7, authority_key_identifier=…)
for entry in cursor: crl.add(entry)           # entry by entry: a million need no million objects
assemble(crl.finish(), algorithm, signature)

crl = parse_crl(raw); verify_signed(raw, issuer.public_key)
crl.entries.get(serial)

Delta and indirect lists, and lists of millions, are for ``pkix.crl_index``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache

from pkix import der, extensions
from pkix.algorithms import SignatureAlgorithm
from pkix.errors import Malformed, Unsupported
from pkix.extensions import CRL_NUMBER, CRL_REASON, INVALIDITY_DATE, ISSUING_DISTRIBUTION_POINT, Extension
from pkix.name import Name, parse_name

_REASONS = frozenset((0, 1, 2, 3, 4, 5, 6, 8, 9, 10))
_CERTIFICATE_ISSUER = "2.5.29.29"


@dataclass(frozen=True, slots=True)
class CrlEntry:
    """One revoked certificate: CRLReason ``reason``, and since when its key may have been in other hands, if that is known."""

    serial: int
    revoked_at: datetime
    reason: int = 0
    invalidity: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CrlHead:
    """Everything of a CRL but its entries; its signature is checked by ``pkix.certificate.verify_signed``.

    ``number`` is its CRL number, ``aki`` the key identifier of its issuer, both None where absent (foreign ones of version 1).
    ``extensions`` are all of them by OID. With an issuing distribution point among them the list covers only part of the issuer's
    certificates: who relies on it has to look.
    """

    issuer: Name
    algorithm: bytes
    signature: bytes = field(repr=False)
    this_update: datetime
    next_update: datetime | None
    number: int | None
    aki: bytes | None
    extensions: Mapping[str, Extension] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Crl(CrlHead):
    """A CRL that parsed: the whole, its signed part, and its entries by serial number in the order of the list."""

    der: bytes = field(repr=False)
    tbs: bytes = field(repr=False)
    entries: Mapping[int, CrlEntry] = field(repr=False)


# --- writing -----------------------------------------------------------------------------------------------------


class TbsCrl:
    """A TBSCertList that grows by one entry at a time, in one buffer; lengths and the fields before the entries come last.

    Args:
        next_update: always written: RFC 5280 5.1.2.5 and GM/T 0015 demand it.
        number: cRLNumber, rising.
        authority_key_identifier: as in the certificates of the same issuer.
        extra: further CRL extensions, after these two.
    """

    def __init__(
        self,
        *,
        issuer: Name,
        signature: SignatureAlgorithm,
        this_update: datetime,
        next_update: datetime,
        number: int,
        authority_key_identifier: Extension,
        extra: Iterable[Extension] = (),
    ) -> None:
        self._before = b"".join((der.integer(1), signature.der, issuer.der, der.time(this_update), der.time(next_update)))
        listed = (authority_key_identifier, Extension(CRL_NUMBER, False, der.integer(number)), *extra)
        self._after = der.context(0, der.sequence(*(extension.der for extension in listed)))
        self._entries = bytearray()

    def add(self, entry: CrlEntry) -> None:
        """Appends one entry. Raises Malformed on a serial that is negative or over 20 octets, or an unknown reason."""
        number = entry.serial
        if number < 0 or number.bit_length() >= 160:
            raise Malformed("CRL: a serial number that is negative or has more than 20 octets (RFC 5280 4.1.2.2)")
        serial = number.to_bytes(number.bit_length() // 8 + 1)
        tail = _reason(entry.reason) if entry.invalidity is None else _entry_extensions(entry.reason, entry.invalidity)
        moment = _time(entry.revoked_at)
        # At most 2+20 for the serial, 17 for the time and 40 for extensions: every length here is one octet.
        self._entries += b"\x30%c\x02%c%b%b%b" % (2 + len(serial) + len(moment) + len(tail), len(serial), serial, moment, tail)

    def finish(self) -> bytes:
        """DER of the TBSCertList; revokedCertificates is left out if there is none."""
        size = len(self._entries)
        revoked = _header(size) if size else b""
        header = _header(len(self._before) + len(revoked) + size + len(self._after))
        return b"".join((header, self._before, revoked, self._entries, self._after))


def build_tbs_crl(
    *,
    issuer: Name,
    signature: SignatureAlgorithm,
    this_update: datetime,
    next_update: datetime,
    number: int,
    authority_key_identifier: Extension,
    entries: Iterable[CrlEntry],
    extra: Iterable[Extension] = (),
) -> bytes:
    """DER of a TBSCertList with ``entries`` in their order, taken one at a time; see ``TbsCrl``."""
    crl = TbsCrl(
        issuer=issuer,
        signature=signature,
        this_update=this_update,
        next_update=next_update,
        number=number,
        authority_key_identifier=authority_key_identifier,
        extra=extra,
    )
    for entry in entries:
        crl.add(entry)
    return crl.finish()


def _header(size: int) -> bytes:
    """Identifier and length octets of a SEQUENCE whose contents stand elsewhere."""
    if size < 0x80:
        return bytes((der.SEQUENCE, size))
    octets = (size.bit_length() + 7) // 8
    return bytes((der.SEQUENCE, 0x80 | octets)) + size.to_bytes(octets)


def _time(moment: datetime) -> bytes:
    """``der.time``, four times as fast for the usual case: with a million entries this is what takes the time."""
    if moment.tzinfo is not UTC or not 1950 <= moment.year < 2050:
        return der.time(moment)
    fields = (moment.year % 100, moment.month, moment.day, moment.hour, moment.minute, moment.second)
    return b"\x17\x0d%02d%02d%02d%02d%02d%02dZ" % fields


@lru_cache(maxsize=16)
def _reason(reason: int) -> bytes:
    return _entry_extensions(reason, None)


def _entry_extensions(reason: int, invalidity: datetime | None) -> bytes:
    """crlEntryExtensions; the reason is left out when unspecified (RFC 5280 5.3.1), everything when there is nothing to say."""
    if reason not in _REASONS:
        raise Malformed(f"CRL: no reason code {reason} (RFC 5280 5.3.1)")
    listed = [Extension(CRL_REASON, False, der.enumerated(reason)).der] if reason else []
    if invalidity is not None:
        listed.append(Extension(INVALIDITY_DATE, False, der.generalized_time(invalidity)).der)
    return der.sequence(*listed) if listed else b""


# --- reading -----------------------------------------------------------------------------------------------------

PLAIN = frozenset((ISSUING_DISTRIBUTION_POINT, CRL_NUMBER, extensions.AUTHORITY_KEY_IDENTIFIER))
"""CRL extensions that may be critical in a complete list of an issuer's own certificates."""


def parse_crl(raw: bytes, *, max_size: int = 64 << 20) -> Crl:
    """Reads one DER CRL in one pass; of a serial that is listed twice the first entry counts.

    Raises:
        Malformed: no CRL, or BER instead of DER.
        Unsupported: a delta or indirect CRL, or another critical extension that we do not know: such a list must not be used
            (RFC 5280 5.2, 5.3).
    """
    if len(raw) > max_size:
        raise Malformed(f"CRL: {len(raw)} octets, at most {max_size} are taken here")
    head, signed, revoked = read_head(raw, PLAIN)
    entries: dict[int, CrlEntry] = {}
    for octets, moment, tail in scan_entries(raw, revoked):
        reason, invalidity, issuer = read_entry_extensions(tail) if tail else (0, None, None)
        if issuer is not None:
            raise Unsupported("CRL: entry extension 2.5.29.29 is critical: an indirect list, which must not be used here")
        number = int.from_bytes(octets, signed=True)
        entries.setdefault(number, CrlEntry(number, _read_time(moment), reason, invalidity))
    return Crl(
        der=raw, tbs=raw[signed.start : signed.end], entries=entries, **{name: getattr(head, name) for name in CrlHead.__dataclass_fields__}
    )


def read_head(raw: bytes, processed: frozenset[str]) -> tuple[CrlHead, der.Tlv, der.Tlv | None]:
    """Everything but the entries: the head, where the signed part stands in ``raw``, and where revokedCertificates, if it is there.

    Args:
        processed: CRL extensions that the caller will process; another one that is critical is refused (RFC 5280 5.2).
    Raises:
        Malformed, Unsupported: as ``parse_crl``.
    """
    root = der.read(raw)
    parts = _first(raw, root)
    if root.end != len(raw) or root.tag != der.SEQUENCE or [part.tag for part in parts] != [der.SEQUENCE, der.SEQUENCE, der.BIT_STRING]:
        raise Malformed("not a CRL: a SEQUENCE of content, algorithm and signature, and nothing behind it, is expected")
    signed, algorithm, signature = parts
    outer, bits = raw[algorithm.start : algorithm.end], raw[signature.body : signature.end]
    if not bits or bits[0]:
        raise Malformed("a signature that is not whole octets")
    fields = _first(raw, signed)
    if fields and fields[0].tag == der.INTEGER and _scanned(raw, fields.pop(0)) != der.integer(1):
        raise Unsupported("CRL: a version other than 1 and 2")
    tags = [element.tag for element in fields]
    times = sum(tag in _TIMES for tag in tags[2:4])
    if tags[:2] != [der.SEQUENCE, der.SEQUENCE] or not times or tags[2 + times :] not in _REST:
        raise Malformed("not a CRL: its fields are not those of RFC 5280 5.1")
    if _scanned(raw, fields[0]) != outer:
        raise Malformed("CRL: the signature algorithm inside differs from the one outside (RFC 5280 5.1.1.2)")
    found = _read_extensions(raw, fields[-1], processed) if tags[-1] == 0xA0 else {}
    number, aki = found.get(CRL_NUMBER), found.get(extensions.AUTHORITY_KEY_IDENTIFIER)
    head = CrlHead(
        issuer=parse_name(raw[fields[1].start : fields[1].end]),
        algorithm=outer,
        signature=bits[1:],
        this_update=der.decode_time(raw, fields[2]),
        next_update=der.decode_time(raw, fields[3]) if times == 2 else None,
        number=extensions.read_integer(number.value) if number is not None else None,
        aki=extensions.read_authority_key_identifier(aki.value) if aki is not None else None,
        extensions=found,
    )
    return head, signed, fields[2 + times] if der.SEQUENCE in tags[2:] else None


_TIMES = frozenset((der.UTC_TIME, der.GENERALIZED_TIME))
_REST: tuple[list[int], ...] = ([], [der.SEQUENCE], [0xA0], [der.SEQUENCE, 0xA0])


_MOST = 8
"""One more than a CertificateList or a TBSCertList has elements."""


def _first(data: bytes, parent: der.Tlv) -> list[der.Tlv]:
    """``der.children``, of which so many at most: what is 128 MiB long could have sixty million."""
    found: list[der.Tlv] = []
    position = parent.body
    while position < parent.end and len(found) < _MOST:
        found.append(der.read(data, position, parent.end))
        position = found[-1].end
    return found


def _scanned(data: bytes, element: der.Tlv) -> bytes:
    """The octets of an element, scanned: the list as a whole is too long for that, its entries have a reader of their own."""
    octets = data[element.start : element.end]
    der.prescan(octets)
    return octets


def _read_extensions(raw: bytes, element: der.Tlv, processed: frozenset[str]) -> dict[str, Extension]:
    octets = _scanned(raw, element)
    inner = der.children(octets, der.read(octets))
    if len(inner) != 1:
        raise Malformed("CRL: its extensions are not one SEQUENCE")
    found = extensions.read_extensions(octets, inner[0])
    for extension in found.values():
        if extension.critical and extension.oid not in processed:
            raise Unsupported(f"CRL: extension {extension.oid} is critical and not known here; this list must not be used")
    return found


def scan_entries(data: bytes, revoked: der.Tlv | None) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Each entry of ``revoked`` as (contents of the serial number, DER of the revocation date, DER of the extensions or nothing).

    Raises:
        Malformed: an entry whose fields are not those of RFC 5280 5.1, or a serial number of more than 20 octets or not minimal.
    """
    if revoked is None:
        return
    position, end = revoked.body, revoked.end
    while position < end:
        # Nearly all entries have lengths of one octet and a UTCTime; with millions of them this is what takes the time.
        tag, length, kind, size = data[position : position + 4].ljust(4, b"\0")
        middle = position + 4 + size
        stop = position + 2 + length
        if tag != 0x30 or length >= 0x80 or kind != 0x02 or data[middle : middle + 2] != b"\x17\x0d" or middle + 15 > stop:
            entry = der.read(data, position, end)
            serial = der.read(data, entry.body, entry.end)
            if entry.tag != der.SEQUENCE or serial.tag != der.INTEGER:
                raise Malformed("CRL: an entry that does not begin with a serial number")
            moment = der.read(data, serial.end, entry.end)
            octets, middle, after, stop = data[serial.body : serial.end], moment.start, moment.end, entry.end
        else:
            octets, after = data[position + 4 : middle], middle + 15
        if stop > end or not 0 < len(octets) <= 20:
            raise Malformed("CRL: an entry that runs past the end of the list, or a serial number that has not 1 to 20 octets")
        if len(octets) > 1 and ((octets[0] == 0 and octets[1] < 0x80) or (octets[0] == 0xFF and octets[1] >= 0x80)):
            raise Malformed("CRL: a serial number in more octets than it needs")
        yield octets, data[middle:after], data[after:stop]
        position = stop


@lru_cache(maxsize=4096)
def _read_time(octets: bytes) -> datetime:
    return der.decode_time(octets, der.read(octets))


EntryExtensions = tuple[int, datetime | None, bytes | None]
"""CRLReason (0 where absent), invalidity date, value of certificateIssuer (RFC 5280 5.3)."""


def read_entry_extensions(octets: bytes) -> EntryExtensions:
    """What the crlEntryExtensions say. Raises Malformed, or Unsupported if one that is not known here is critical."""
    return _shared_entry_extensions(octets) if len(octets) <= der.SHARED else _read_entry_extensions(octets)


def _read_entry_extensions(octets: bytes) -> EntryExtensions:
    found = extensions.read_extensions(octets, der.prescan(octets))
    reason = invalidity = issuer = None
    for extension in found.values():
        if extension.oid == CRL_REASON:
            reason = extensions.read_reason(extension.value)
        elif extension.oid == INVALIDITY_DATE:
            invalidity = der.decode_time(extension.value, der.prescan(extension.value))
        elif extension.oid == _CERTIFICATE_ISSUER:
            issuer = extension.value
        elif extension.critical:
            raise Unsupported(f"CRL: entry extension {extension.oid} is critical and not known here; this list must not be used")
    return reason or 0, invalidity, issuer


_shared_entry_extensions = lru_cache(maxsize=4096)(_read_entry_extensions)
"""Nearly all entries of a list say the same few things; long ones are not kept, whoever wrote them."""
