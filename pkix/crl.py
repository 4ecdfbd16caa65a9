"""Certificate revocation lists, version 2 (RFC 5280 5).

crl = TbsCrl(issuer=…, signature=…, this_update=…, next_update=…, number=7, authority_key_identifier=…)
for entry in cursor: crl.add(entry)           # entry by entry: a million need no million objects
assemble(crl.finish(), algorithm, signature)

crl = parse_crl(raw); verify_signed(raw, issuer.public_key)
crl.entries.get(serial)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache

from pkix import der, extensions
from pkix.algorithms import SignatureAlgorithm
from pkix.certificate import split
from pkix.errors import Malformed, Unsupported
from pkix.extensions import CRL_NUMBER, CRL_REASON, INVALIDITY_DATE, ISSUING_DISTRIBUTION_POINT, Extension
from pkix.name import Name, parse_name

_REASONS = frozenset((0, 1, 2, 3, 4, 5, 6, 8, 9, 10))


@dataclass(frozen=True, slots=True)
class CrlEntry:
    """One revoked certificate: CRLReason ``reason``, and since when its key may have been in other hands, if that is known."""

    serial: int
    revoked_at: datetime
    reason: int = 0
    invalidity: datetime | None = None


@dataclass(frozen=True, slots=True)
class Crl:
    """A CRL that parsed; its signature is checked by ``pkix.certificate.verify_signed``.

    ``number`` is its CRL number, ``aki`` the key identifier of its issuer, both None where absent (foreign ones of version 1).
    ``extensions`` are all of them by OID. With an issuing distribution point among them the list covers only part of the issuer's
    certificates: who relies on it has to look.
    """

    der: bytes = field(repr=False)
    tbs: bytes = field(repr=False)
    issuer: Name
    algorithm: bytes
    signature: bytes = field(repr=False)
    this_update: datetime
    next_update: datetime | None
    number: int | None
    aki: bytes | None
    extensions: Mapping[str, Extension] = field(repr=False)
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


def parse_crl(raw: bytes, *, max_size: int = 64 << 20) -> Crl:
    """Reads one DER CRL in one pass; of a serial that is listed twice the first entry counts.

    Raises:
        Malformed: no CRL, or BER instead of DER.
        Unsupported: a delta or indirect CRL, or another critical extension that we do not know: such a list must not be used
            (RFC 5280 5.2, 5.3).
    """
    if len(raw) > max_size:
        raise Malformed(f"CRL: {len(raw)} octets, at most {max_size} are taken here")
    tbs, outer, signature = split(raw)
    fields = der.children(tbs, der.read(tbs))
    if fields and fields[0].tag == der.INTEGER and _scanned(tbs, fields.pop(0)) != der.integer(1):
        raise Unsupported("CRL: a version other than 1 and 2")
    tags = [element.tag for element in fields]
    times = sum(tag in _TIMES for tag in tags[2:4])
    if tags[:2] != [der.SEQUENCE, der.SEQUENCE] or not times or tags[2 + times :] not in _REST:
        raise Malformed("not a CRL: its fields are not those of RFC 5280 5.1")
    if _scanned(tbs, fields[0]) != outer:
        raise Malformed("CRL: the signature algorithm inside differs from the one outside (RFC 5280 5.1.1.2)")
    found = _read_extensions(tbs, fields[-1]) if tags[-1] == 0xA0 else {}
    number, aki = found.get(CRL_NUMBER), found.get(extensions.AUTHORITY_KEY_IDENTIFIER)
    return Crl(
        der=raw,
        tbs=tbs,
        issuer=parse_name(tbs[fields[1].start : fields[1].end]),
        algorithm=outer,
        signature=signature,
        this_update=der.decode_time(tbs, fields[2]),
        next_update=der.decode_time(tbs, fields[3]) if times == 2 else None,
        number=extensions.read_integer(number.value) if number is not None else None,
        aki=extensions.read_authority_key_identifier(aki.value) if aki is not None else None,
        extensions=found,
        entries=_read_entries(tbs, fields[2 + times]) if der.SEQUENCE in tags[2:] else {},
    )


_TIMES = frozenset((der.UTC_TIME, der.GENERALIZED_TIME))
_REST: tuple[list[int], ...] = ([], [der.SEQUENCE], [0xA0], [der.SEQUENCE, 0xA0])


def _scanned(data: bytes, element: der.Tlv) -> bytes:
    """The octets of an element, scanned: the list as a whole is too long for that, its entries have a reader of their own."""
    octets = data[element.start : element.end]
    der.prescan(octets)
    return octets


def _read_extensions(tbs: bytes, element: der.Tlv) -> dict[str, Extension]:
    octets = _scanned(tbs, element)
    inner = der.children(octets, der.read(octets))
    if len(inner) != 1:
        raise Malformed("CRL: its extensions are not one SEQUENCE")
    found = extensions.read_extensions(octets, inner[0])
    for extension in found.values():
        if extension.critical and extension.oid not in (ISSUING_DISTRIBUTION_POINT, CRL_NUMBER, extensions.AUTHORITY_KEY_IDENTIFIER):
            raise Unsupported(f"CRL: extension {extension.oid} is critical and not known here; this list must not be used")
    return found


def _read_entries(tbs: bytes, revoked: der.Tlv) -> dict[int, CrlEntry]:
    entries: dict[int, CrlEntry] = {}
    read = der.read
    position, end = revoked.body, revoked.end
    while position < end:
        entry = read(tbs, position, end)
        serial = read(tbs, entry.body, entry.end)
        moment = read(tbs, serial.end, entry.end)
        octets = tbs[serial.body : serial.end]
        if entry.tag != der.SEQUENCE or serial.tag != der.INTEGER or not 0 < len(octets) <= 20:
            raise Malformed("CRL: an entry that does not begin with a serial number of at most 20 octets")
        if len(octets) > 1 and ((octets[0] == 0 and octets[1] < 0x80) or (octets[0] == 0xFF and octets[1] >= 0x80)):
            raise Malformed("CRL: a serial number in more octets than it needs")
        reason, invalidity = _read_entry_extensions(tbs[moment.end : entry.end]) if moment.end < entry.end else (0, None)
        number = int.from_bytes(octets, signed=True)
        entries.setdefault(number, CrlEntry(number, _read_time(tbs[moment.start : moment.end]), reason, invalidity))
        position = entry.end
    return entries


@lru_cache(maxsize=4096)
def _read_time(octets: bytes) -> datetime:
    return der.decode_time(octets, der.read(octets))


@lru_cache(maxsize=4096)
def _read_entry_extensions(octets: bytes) -> tuple[int, datetime | None]:
    found = extensions.read_extensions(octets, der.prescan(octets))
    reason = invalidity = None
    for extension in found.values():
        if extension.oid == CRL_REASON:
            reason = extensions.read_reason(extension.value)
        elif extension.oid == INVALIDITY_DATE:
            invalidity = der.decode_time(extension.value, der.prescan(extension.value))
        elif extension.critical:
            raise Unsupported(f"CRL: entry extension {extension.oid} is critical and not known here; this list must not be used")
    return reason or 0, invalidity
