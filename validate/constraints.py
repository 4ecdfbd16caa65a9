"""Name constraints (RFC 5280 4.2.1.10, 6.1.3 (b) and (c); RFC 9549, RFC 9598 6 for mail): what a CA may certify.

    limits = read_name_constraints(extension.value)
    violation(limits, all_names(certificate))      # None, or the first name that is outside

Instead of intersecting permitted subtrees on the way down, every certificate is held against the constraints of every CA above it: the
same set of certificates passes, and nothing has to be represented that a single CA did not write.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from functools import lru_cache

from pkix import der
from pkix.errors import Malformed
from pkix.name import parse_name
from validate.names import DIRECTORY, DNS, EMAIL, IP, URI, GeneralName, canonical, host_name

_MAPPED = bytes(10) + b"\xff\xff"  # RFC 4291 2.5.5.2
_OTHER = frozenset((0xA0, 0xA3, 0xA5, 0x88))


@dataclass(frozen=True, slots=True)
class NameConstraints:
    """Subtrees by kind. ``permitted`` and ``excluded`` are never both empty."""

    permitted: tuple[GeneralName, ...]
    excluded: tuple[GeneralName, ...]

    def __len__(self) -> int:
        return len(self.permitted) + len(self.excluded)


@lru_cache(maxsize=1024)
def read_name_constraints(value: bytes) -> NameConstraints:
    """The contents of the extension. Raises Malformed: not that structure, empty, or a base that its kind does not allow."""
    root = der.prescan(value)
    found: dict[int, tuple[GeneralName, ...]] = {}
    for part in der.children(value, root):
        if part.tag not in (0xA0, 0xA1) or part.tag in found or part.tag < max(found, default=0):
            raise Malformed("name constraints that are not permitted and excluded subtrees (RFC 5280 4.2.1.10)")
        found[part.tag] = tuple(_subtree(value, item) for item in der.children(value, part))
    limits = NameConstraints(found.get(0xA0, ()), found.get(0xA1, ()))
    if root.tag != der.SEQUENCE or not found or not all(found.values()):
        raise Malformed("name constraints without a subtree (RFC 5280 4.2.1.10)")
    return limits


def _subtree(value: bytes, item: der.Tlv) -> GeneralName:
    parts = der.children(value, item)
    if item.tag != der.SEQUENCE or len(parts) != 1:
        raise Malformed("a name constraint with a minimum or maximum, which RFC 5280 4.2.1.10 does not use")
    base = GeneralName(parts[0].tag, value[parts[0].body : parts[0].end])
    if not _sound(base):
        raise Malformed("a name constraint whose base is not well formed (RFC 5280 4.2.1.10)")
    return base


def _sound(base: GeneralName) -> bool:
    if base.kind in (DNS, EMAIL, URI):
        if not base.value.isascii():
            return False
        text = base.text
        if base.kind == DNS:
            return not text or host_name(text)
        if base.kind == EMAIL and "@" in text:
            local, _, host = text.partition("@")
            return bool(local) and host_name(host)
        return host_name(text.removeprefix("."))
    if base.kind == IP:
        half = len(base.value) // 2
        mask = int.from_bytes(base.value[half:])
        inverse = mask ^ (1 << 8 * half) - 1
        return len(base.value) in (8, 32) and inverse & inverse + 1 == 0
    if base.kind == DIRECTORY:
        canonical(base.value)
        return True
    return base.kind in _OTHER


def violation(limits: NameConstraints, names: tuple[GeneralName, ...]) -> GeneralName | None:
    """The first of ``names`` that is excluded, not permitted where its kind is, or of a kind that is constrained and not understood."""
    for name in names:
        excluded = [base for base in limits.excluded if base.kind == name.kind]
        permitted = [base for base in limits.permitted if base.kind == name.kind]
        if not excluded and not permitted:
            continue
        # What has no host, or none that can be compared, cannot be shown to be outside of what is excluded.
        if name.kind in _OTHER or (name.kind in (URI, EMAIL) and not host_name(_host(name))):
            return name
        if any(_within(name, base) or _reaches(name, base) for base in excluded):
            return name
        if permitted and not any(_within(name, base) for base in permitted):
            return name
    return None


def _within(name: GeneralName, base: GeneralName) -> bool:
    if name.kind == DIRECTORY:
        prefix = canonical(base.value)
        return canonical(name.value)[: len(prefix)] == prefix
    if name.kind == IP:
        half = len(base.value) // 2
        network, mask = base.value[:half], base.value[half:]
        return len(name.value) == half and all((a ^ b) & m == 0 for a, b, m in zip(name.value, network, mask, strict=True))
    text, limit = name.text, base.text
    if name.kind == DNS:
        return not limit or f".{text.lower()}".endswith(f".{limit.lower()}")
    host = _host(name)
    if name.kind == EMAIL and "@" in limit:
        local, _, wanted = limit.rpartition("@")
        return (text.rpartition("@")[0], host.lower()) == (local, wanted.lower())
    return _host_within(host, limit)


def _host_within(host: str, limit: str) -> bool:
    # Mail and URI: ".plant" is everything below, "plant" that host alone.
    return host.lower().endswith(limit.lower()) if limit.startswith(".") else host.lower() == limit.lower()


def _reaches(name: GeneralName, base: GeneralName) -> bool:
    # "*.example.com" may stand for the excluded "bar.example.com" (CVE-2025-61727), "::ffff:192.0.2.7" for the excluded 192.0.2.7.
    if name.kind == DNS:
        return name.value.startswith(b"*.") and base.value.lower().partition(b".")[2] == name.value[2:].lower()
    return name.kind == IP and name.value.startswith(_MAPPED) and _within(GeneralName(IP, name.value[12:]), base)


# RFC 3986 3.1, 3.2: scheme, user information, host, port, and nothing that readers of URIs disagree about.
_AUTHORITY = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://(?:[A-Za-z0-9._~!$&'()*+,;=:%-]*@)?([A-Za-z0-9.-]+)(?::[0-9]*)?(?:[/?#].*)?")


@lru_cache(maxsize=64)
def _host(name: GeneralName) -> str:
    """The host of a URI or of a mail address; nothing if there is none."""
    if name.kind == EMAIL:
        return name.text.rpartition("@")[2]
    found = _AUTHORITY.fullmatch(name.text)
    return found[1] if found is not None else ""


def describe(name: GeneralName) -> str:
    """The name for a person."""
    if name.kind == IP and len(name.value) in (4, 16):
        return str(ipaddress.ip_address(name.value))
    if name.kind in (DNS, EMAIL, URI):
        return name.text
    if name.kind == DIRECTORY:
        return parse_name(name.value).text
    return f"other name {name.value.hex()[:40]}"
