"""Where a certificate says its CRLs are, and which certificates a CRL says it covers (RFC 5280 4.2.1.13, 4.2.1.15, 5.2.5).

    for point in points(certificate): point.urls, point.reasons, point.authorities
    scope = scope_of(crl)
    scope.indirect, scope.reasons

Names are comparable: a URI by its octets, a directory name as ``validate.names.canonical`` makes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from pkix import der, extensions
from pkix.certificate import Certificate
from pkix.crl import CrlHead
from pkix.crl_index import FRESHEST_CRL
from pkix.errors import Malformed
from validate.names import DIRECTORY, URI, Canonical, canonical

PointName = tuple[int, Canonical | bytes]
"""Identifier octet of the kind of general name, and its value."""

ALL_REASONS = 0b111111110
"""Bits of ReasonFlags: every reason that a list can be limited to; bit 0 is unused (RFC 5280 4.2.1.13)."""

_MAX_POINTS = 16


@dataclass(frozen=True, slots=True)
class Point:
    """One distribution point of a certificate.

    Attributes:
        names: of the point; empty if it has none of its own. urls: those of them that are http or https, in order.
        reasons: the bits of the reasons for which it has the revocations.
        authorities: the names of who signs its lists (cRLIssuer); empty: the certificate's own issuer.
    """

    names: frozenset[PointName]
    urls: tuple[str, ...]
    reasons: int
    authorities: frozenset[Canonical]


@dataclass(frozen=True, slots=True)
class Scope:
    """What a CRL covers. ``names`` None: every distribution point of its issuer; ``reasons``: bits."""

    names: frozenset[PointName] | None = None
    users_only: bool = False
    cas_only: bool = False
    attributes_only: bool = False
    indirect: bool = False
    reasons: int = ALL_REASONS


def points(certificate: Certificate) -> tuple[Point, ...]:
    """The points of the certificate's cRLDistributionPoints; without any, the one that RFC 5280 6.3.3 assumes: the issuer's own name."""
    extension = certificate.extensions.get(extensions.CRL_DISTRIBUTION_POINTS)
    if extension is None:
        return (_assumed(certificate.issuer.der),)
    return _read_points(extension.value, certificate.issuer.der)


def freshest(holder: Certificate | CrlHead) -> tuple[str, ...]:
    """URLs of delta CRLs that a certificate or a complete CRL names (RFC 5280 4.2.1.15, 5.2.6). Raises Malformed."""
    extension = holder.extensions.get(FRESHEST_CRL)
    if extension is None:
        return ()
    return tuple(url for point in _read_points(extension.value, holder.issuer.der) for url in point.urls)


def issuer_urls(crl: CrlHead) -> tuple[str, ...]:
    """Where the certificate of the CRL's issuer is found (RFC 5280 5.2.7). Raises Malformed."""
    extension = crl.extensions.get(extensions.AUTHORITY_INFO_ACCESS)
    return () if extension is None else extensions.read_information_access(extension.value)[1]


def scope_of(crl: CrlHead) -> Scope:
    """The CRL's issuing distribution point. Raises Malformed."""
    extension = crl.extensions.get(extensions.ISSUING_DISTRIBUTION_POINT)
    return Scope() if extension is None else _read_scope(extension.value, crl.issuer.der)


def directory_names(value: bytes) -> frozenset[Canonical]:
    """The directory names of a GeneralNames value: a certificateIssuer (RFC 5280 5.3.3). Raises Malformed."""
    return _directories(value, der.children(value, der.prescan(value)))


@lru_cache(maxsize=256)
def _assumed(issuer: bytes) -> Point:
    return Point(frozenset({(DIRECTORY, canonical(issuer))}), (), ALL_REASONS, frozenset())


@lru_cache(maxsize=4096)
def _read_points(value: bytes, issuer: bytes) -> tuple[Point, ...]:
    root = der.prescan(value)
    listed = der.children(value, root)
    if root.tag != der.SEQUENCE or not 0 < len(listed) <= _MAX_POINTS:
        raise Malformed(f"CRL distribution points that are not 1 to {_MAX_POINTS} in a SEQUENCE")
    return tuple(_read_point(value, item, issuer) for item in listed)


def _read_point(value: bytes, element: der.Tlv, issuer: bytes) -> Point:
    parts = {part.tag: part for part in der.children(value, element)}
    if element.tag != der.SEQUENCE or not parts.keys() <= {0xA0, 0x81, 0xA2} or parts.keys() <= {0x81}:
        raise Malformed("a CRL distribution point without a name or an issuer, or with other fields than RFC 5280 4.2.1.13")
    authorities, relative_to = frozenset[Canonical](), issuer
    if 0xA2 in parts:
        named = der.children(value, parts[0xA2])
        authorities = _directories(value, named)
        if not authorities:
            raise Malformed("a CRL distribution point whose CRL issuer has no directory name")
        relative_to = next(value[name.body : name.end] for name in named if name.tag == DIRECTORY)
    names, urls = _point_name(value, parts[0xA0], relative_to) if 0xA0 in parts else (frozenset[PointName](), ())
    return Point(names, urls, _mask(value, parts[0x81]) if 0x81 in parts else ALL_REASONS, authorities)


@lru_cache(maxsize=1024)
def _read_scope(value: bytes, issuer: bytes) -> Scope:
    root = der.prescan(value)
    listed = der.children(value, root)
    parts = {part.tag: part for part in listed}
    if root.tag != der.SEQUENCE or len(parts) != len(listed) or not parts.keys() <= {0xA0, 0x81, 0x82, 0x83, 0x84, 0x85}:
        raise Malformed("an issuing distribution point with other fields than RFC 5280 5.2.5")

    def flag(tag: int) -> bool:
        return tag in parts and value[parts[tag].body : parts[tag].end] != b"\0"

    scope = Scope(
        names=_point_name(value, parts[0xA0], issuer)[0] if 0xA0 in parts else None,
        users_only=flag(0x81),
        cas_only=flag(0x82),
        attributes_only=flag(0x85),
        indirect=flag(0x84),
        reasons=_mask(value, parts[0x83]) if 0x83 in parts else ALL_REASONS,
    )
    if scope.users_only + scope.cas_only + scope.attributes_only > 1:
        raise Malformed("an issuing distribution point that is limited to two kinds of certificates at once (RFC 5280 5.2.5)")
    return scope


def _point_name(value: bytes, element: der.Tlv, relative_to: bytes) -> tuple[frozenset[PointName], tuple[str, ...]]:
    """DistributionPointName: fullName, or an RDN below the CRL issuer's name."""
    inner = der.children(value, element)
    if len(inner) != 1 or inner[0].tag not in (0xA0, 0xA1):
        raise Malformed("a distribution point name that is neither a full name nor relative to the issuer")
    if inner[0].tag == 0xA1:
        parent = der.expect(relative_to, der.read(relative_to), der.SEQUENCE, "a name")
        rdn = der.tlv(der.SET, value[inner[0].body : inner[0].end])
        return frozenset({(DIRECTORY, canonical(der.sequence(parent, rdn)))}), ()
    names: set[PointName] = set()
    urls = []
    for name in der.children(value, inner[0]):
        body = value[name.body : name.end]
        names.add((name.tag, canonical(body) if name.tag == DIRECTORY else body))
        if name.tag == URI and body[:8].lower().startswith((b"http://", b"https://")):
            urls.append(extensions.read_general_name(value, name)[4:])
    return frozenset(names), tuple(urls)


def _directories(value: bytes, names: Sequence[der.Tlv]) -> frozenset[Canonical]:
    return frozenset(canonical(value[name.body : name.end]) for name in names if name.tag == DIRECTORY)


def _mask(value: bytes, element: der.Tlv) -> int:
    """ReasonFlags as bits, bit 0 cleared. Raises Malformed if no reason is left."""
    octets = value[element.body : element.end]
    if not octets:
        raise Malformed("reason flags that are no BIT STRING")
    mask = sum(1 << at for at in range(9) if at // 8 + 1 < len(octets) and octets[at // 8 + 1] & 0x80 >> at % 8)
    if not mask & ALL_REASONS:
        raise Malformed("reason flags without a reason (RFC 5280 4.2.1.13)")
    return mask & ALL_REASONS
