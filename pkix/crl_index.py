"""CRLs for relying parties: complete, delta and indirect ones, millions of entries in a compact index (RFC 5280 5).

    index = index_crl(raw)                         # in a thread if ``raw`` is long
    verify_signed(raw, issuer.public_key)          # ``raw`` need not be kept after that
    index.entries.find(serial)                     # CrlEntry, or None

An entry takes 28 octets whatever the list writes; a million take 28 MB, a lookup some microseconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from pkix import der, extensions
from pkix.crl import PLAIN, CrlEntry, CrlHead, read_entry_extensions, read_head, scan_entries
from pkix.errors import Malformed, TooLarge
from pkix.extensions import DELTA_CRL_INDICATOR

FRESHEST_CRL = "2.5.29.46"
MAX_OCTETS, MAX_ENTRIES = 128 << 20, 5_000_000
"""Octets and entries of a list that is taken at most."""

_PROCESSED = PLAIN | {DELTA_CRL_INDICATOR}
_MAX_ISSUERS = 10_000
_BEGIN = datetime(1, 1, 1, tzinfo=UTC)
_SERIAL, _KEY, _WIDTH = 20, 22, 28  # serial; serial and issuer; and the reason in one octet, and seconds since the year 1 in five
_LIGHT = frozenset((6, 8))  # reasons that are not for ever, certificateHold and removeFromCRL: written with 0x80, they sort last


class Entries:
    """The entries of one list: fixed-width records, sorted within buckets by the last octet of the serial number."""

    __slots__ = ("_buckets", "_count", "issuers")

    def __init__(self, buckets: dict[int, bytes], count: int, issuers: tuple[bytes, ...]) -> None:
        self._buckets = buckets
        self._count = count
        self.issuers = issuers
        """Values of the certificateIssuer extensions, by number; the first is empty: the list's own issuer."""

    def __len__(self) -> int:
        return self._count

    @property
    def octets(self) -> int:
        """Memory that the records take."""
        return self._count * _WIDTH + sum(map(len, self.issuers))

    def find(self, serial: int, issuer: int = 0) -> CrlEntry | None:
        """The entry of ``serial`` of the issuer with this number; of several one that is for good, if there is."""
        if serial < 0 or serial.bit_length() > 8 * _SERIAL:
            return None
        bucket = self._buckets.get(serial & 0xFF, b"")
        key = serial.to_bytes(_SERIAL) + issuer.to_bytes(2)
        low, high = 0, len(bucket) // _WIDTH
        while low < high:
            middle = (low + high) // 2
            if bucket[middle * _WIDTH : middle * _WIDTH + _KEY] < key:
                low = middle + 1
            else:
                high = middle
        record = bucket[low * _WIDTH : (low + 1) * _WIDTH]
        if record[:_KEY] != key:
            return None
        return CrlEntry(serial, _BEGIN + timedelta(seconds=int.from_bytes(record[_KEY + 1 :])), record[_KEY] & 0x7F)


@dataclass(frozen=True, slots=True, kw_only=True)
class CrlIndex(CrlHead):
    """A CRL without its octets. ``base`` is BaseCRLNumber of a delta list (RFC 5280 5.2.4), None if the list is complete.

    ``signed`` says where in the octets the TBSCertList stands.
    """

    base: int | None
    entries: Entries = field(repr=False)
    signed: der.Tlv = field(repr=False)


def index_crl(raw: bytes, *, max_octets: int = MAX_OCTETS, max_entries: int = MAX_ENTRIES) -> CrlIndex:
    """Reads one DER CRL. Takes about a second for a million entries and no more memory than the index; serials below 0 are left out.

    Raises:
        TooLarge: more octets, entries or issuers than are taken.
        Malformed: no CRL, or BER instead of DER.
        Unsupported: an extension that is critical and unknown: such a list must not be used (RFC 5280 5.2, 5.3).
    """
    if len(raw) > max_octets:
        raise TooLarge(f"CRL: {len(raw)} octets, at most {max_octets} are taken here")
    head, signed, revoked = read_head(raw, _PROCESSED)
    base = head.extensions.get(DELTA_CRL_INDICATOR)
    if base is not None and not base.critical:
        raise Malformed("CRL: a delta list whose indicator is not critical (RFC 5280 5.2.4)")
    return CrlIndex(
        base=None if base is None else extensions.read_integer(base.value),
        entries=_index(scan_entries(raw, revoked), max_entries),
        signed=signed,
        **{name: getattr(head, name) for name in CrlHead.__dataclass_fields__},
    )


def _index(scanned: Iterator[tuple[bytes, bytes, bytes]], max_entries: int) -> Entries:
    buckets: dict[int, bytearray] = {}
    issuers: dict[bytes, int] = {b"": 0}
    count, of = 0, b"\0\0"
    for octets, moment, tail in scanned:
        count += 1
        if count > max_entries:
            raise TooLarge(f"CRL: more than {max_entries} entries")
        reason = b"\0"
        if tail:
            code, _, issuer = read_entry_extensions(tail)
            reason = (code | 0x80 if code in _LIGHT else code).to_bytes()
            if issuer is not None:
                # It holds for the entries that follow, too, until the next one (RFC 5280 5.3.3).
                of = issuers.setdefault(issuer, len(issuers)).to_bytes(2)
                if len(issuers) > _MAX_ISSUERS:
                    raise TooLarge(f"CRL: entries of more than {_MAX_ISSUERS} issuers")
        at = _seconds(moment)
        if octets[0] >= 0x80:
            continue  # no certificate that is good for anything has it (RFC 5280 4.1.2.2)
        record = octets.rjust(_SERIAL, b"\0") + of + reason + at
        last = octets[-1]
        if last in buckets:
            buckets[last] += record
        else:
            buckets[last] = bytearray(record)
    return Entries({last: _sorted(bucket) for last, bucket in buckets.items()}, count, tuple(issuers))


def _sorted(bucket: bytearray) -> bytes:
    return b"".join(sorted(bytes(bucket[at : at + _WIDTH]) for at in range(0, len(bucket), _WIDTH)))


def _seconds(moment: bytes) -> bytes:
    """Seconds since the year 1, five octets; days are few, so that only the clock is worked out each time."""
    clock = moment[8:14]
    if moment[:2] != b"\x17\x0d" or not clock.isdigit() or moment[14:] != b"Z":
        return _count(der.decode_time(moment, der.read(moment)))
    minutes, seconds = divmod(int(clock), 100)
    hours, minutes = divmod(minutes, 100)
    if hours > 23 or minutes > 59 or seconds > 59:
        raise Malformed(f"{moment[2:].decode('ascii', 'replace')} is no moment of the calendar")
    return (_midnight(moment[:8]) + hours * 3600 + minutes * 60 + seconds).to_bytes(5)


@lru_cache(maxsize=4096)
def _midnight(date: bytes) -> int:
    octets = date + b"000000Z"
    return int.from_bytes(_count(der.decode_time(octets, der.read(octets))))


def _count(moment: datetime) -> bytes:
    elapsed = moment - _BEGIN
    return (elapsed.days * 86400 + elapsed.seconds).to_bytes(5)
