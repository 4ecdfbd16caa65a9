"""Names as path validation compares them: distinguished names (RFC 5280 7.1), general names, and expected names (RFC 9525).

Internationalised names come as RFC 9549 and 9598 have them: hosts in A-labels wherever they stand, mail addresses whose local part is not
ASCII as SmtpUTF8Mailbox.

    canonical(issuer_der) == canonical(subject_der)      # case, spacing and string type do not count
    covers(certificate.names, "dns:plc-7.plant")         # wildcards included

Names of certificates come in the canonical text of ``pkix.extensions``, or as octets where constraints need them exact.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

from pkix import der, extensions
from pkix.certificate import Certificate
from pkix.errors import Malformed

EMAIL, DNS, DIRECTORY, URI, IP = 0x81, 0x82, 0xA4, 0x86, 0x87
"""Identifier octets of the GeneralName kinds that we compare (RFC 5280 4.2.1.6)."""

Canonical = tuple[str, ...]
"""A distinguished name in comparable form: one text for each RDN."""

_ENCODINGS = {0x0C: "utf-8", 0x13: "ascii", 0x16: "ascii", 0x14: "latin-1", 0x1E: "utf-16-be", 0x1C: "utf-32-be"}
_EMAIL_ADDRESS = der.oid("1.2.840.113549.1.9.1")[2:]
_SMTP_UTF8 = der.oid("1.3.6.1.5.5.7.8.9")[2:]
_UNSEEN = frozenset("\u034f\u180b\u180c\u180d\ufffc") | frozenset(map(chr, range(0xFE00, 0xFE10)))  # and category Cf (RFC 4518 2.2)
_SHARED = 512
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class GeneralName(NamedTuple):
    """One name: identifier octet of its kind and contents octets. Hosts and URIs are ASCII, checked by ``pkix``; addresses are UTF-8."""

    kind: int
    value: bytes

    @property
    def text(self) -> str:
        return self.value.decode("utf-8", "replace")


def canonical(name: bytes) -> Canonical:
    """The comparable form of a Name's DER. Raises Malformed."""
    return _shared_canonical(name) if len(name) <= _SHARED else _canonical(name)


def _canonical(name: bytes) -> Canonical:
    rdns = der.parts_of(name, der.SEQUENCE, "a name")
    return tuple([_shared_rdn(rdn) if len(rdn) <= der.SHARED else _rdn(rdn) for rdn in rdns])


def _rdn(rdn: bytes) -> str:
    pairs = []
    for attribute in der.parts(rdn):
        parts = der.parts(attribute)
        if len(parts) != 2:
            raise Malformed("a name attribute that is not a type and a value")
        kind, value = parts
        prepared = _prepared(value[0], der.contents(value))
        pairs.append(f"{kind[2:].hex()}:{len(prepared)}:{prepared}")
    return "".join(sorted(pairs))


_shared_rdn = lru_cache(maxsize=2048)(_rdn)


_shared_canonical = lru_cache(maxsize=4096)(_canonical)
"""Most names come again; long ones are not kept: strangers write them."""


def _attribute(name: bytes, attribute: der.Tlv) -> list[der.Tlv]:
    parts = der.children(name, attribute)
    if len(parts) != 2:
        raise Malformed("a name attribute that is not a type and a value")
    return parts


def _prepared(tag: int, value: bytes) -> str:
    # LDAP StringPrep (RFC 4518) as far as RFC 5280 7.1 leans on it: what is not seen does not count, normal form, case, runs of spaces.
    # What is no text is compared as octets; no text begins with U+0000.
    encoding = _ENCODINGS.get(tag)
    if encoding is None:
        return f"\0{tag:02x}{value.hex()}"
    try:
        text = value.decode(encoding)
    except UnicodeDecodeError:
        return f"\0{tag:02x}{value.hex()}"
    if not text.isascii():
        text = unicodedata.normalize("NFKC", "".join([c for c in text if not (unicodedata.category(c) == "Cf" or c in _UNSEEN)]))
    return " ".join(text.casefold().split())


def subject(certificate: Certificate) -> Canonical:
    """The subject, comparable."""
    return canonical(certificate.subject.der)


def issuer(certificate: Certificate) -> Canonical:
    """The issuer's name, comparable."""
    return canonical(certificate.issuer.der)


def self_issued(certificate: Certificate) -> bool:
    """Whether subject and issuer are the same name (RFC 5280 6.1: key roll-over and roots)."""
    return subject(certificate) == issuer(certificate)


@lru_cache(maxsize=1024)
def general_names(value: bytes) -> tuple[GeneralName, ...]:
    """The GeneralNames of a SubjectAltName value that ``pkix`` has read before. Raises Malformed."""
    found = []
    for item in der.children(value, der.prescan(value)):
        found.append(GeneralName(item.tag, value[item.body : item.end]))
        other = read_other_name(value[item.start : item.end]) if item.tag == 0xA0 else None
        if other is not None and other[0] == _SMTP_UTF8:
            found.append(GeneralName(EMAIL, other[1].encode()))  # RFC 9598 6: constraints on mail addresses bind these too
    return tuple(found)


def read_other_name(name: bytes) -> tuple[bytes, str] | None:
    """(octets of the type's OID, text) of an otherName in DER whose value is a string; None if it is none."""
    try:
        parts = der.children(name, der.prescan(name))
        if [part.tag for part in parts] != [der.OID, 0xA0]:
            return None
        inner = der.children(name, parts[1])
        return (name[parts[0].body : parts[0].end], der.decode_string(name, inner[0], "an otherName")) if len(inner) == 1 else None
    except Malformed:
        return None


def all_names(certificate: Certificate) -> tuple[GeneralName, ...]:
    """Every name that name constraints apply to (RFC 5280 4.2.1.10): the subject, its alternatives, and mail addresses inside the subject
    if there are no alternatives."""
    alternatives = certificate.extensions.get(extensions.SUBJECT_ALT_NAME)
    own = () if not subject(certificate) else (GeneralName(DIRECTORY, certificate.subject.der),)
    if alternatives is not None:
        return own + general_names(alternatives.value)
    name = certificate.subject.der
    found = []
    for rdn in der.children(name, der.read(name)):
        for attribute in der.children(name, rdn):
            kind, value = _attribute(name, attribute)
            if name[kind.body : kind.end] == _EMAIL_ADDRESS:
                found.append(GeneralName(EMAIL, der.decode_string(name, value, "a mail address").encode()))
    return own + tuple(found)


def well_formed(name: str) -> bool:
    """Whether a name in canonical text is what its kind says: RFC 1034 labels in ``dns:`` (a wildcard only as the whole first label), no
    address dressed up as a host, one ``@`` in ``email:``."""
    kind, _, value = name.partition(":")
    if kind == "email":
        local, at, host = value.partition("@")
        return bool(local and at) and host_name(host)
    if kind == "dns":
        return host_name(value.removeprefix("*."))
    return True


def host_name(text: str) -> bool:
    """Whether ``text`` is a host name in preferred syntax (RFC 1034 3.5), case aside, and no IPv4 address."""
    if len(text) > 253 or not all(_LABEL.fullmatch(label) for label in text.lower().split(".")):
        return False
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return True
    return False


def covers(names: Collection[str], expected: str) -> bool:
    """Whether one of a certificate's ``names`` (canonical text) is the ``expected`` one (of ``Expected.names``).

    ``*.example.com`` covers exactly one more label (RFC 9525 6.3); a wildcard right above a top-level name covers nothing. Hosts compare
    without case, everything else octet by octet. The subject's common name is never looked at.
    """
    if expected in names:
        return True
    kind, _, value = expected.partition(":")
    if kind == "dns":
        host = value.lower().removesuffix(".")
        _, _, parent = host.partition(".")
        wildcard = f"dns:*.{parent}" if "." in parent else ""
        return any(name in (f"dns:{host}", wildcard) for name in names)
    if kind == "email":
        wanted = _mailbox(value)
        return any(_mailbox(address) == wanted for address in _addresses(names))
    if kind == "id":
        written = {f"uri:{prefix}{value}" for prefix in ("", "hdl:", "info:hdl/", "urn:oid:")}
        return any(name in written or _other_text(name) == value for name in names)
    return False


def _addresses(names: Iterable[str]) -> Iterator[str]:
    for name in names:
        if name.startswith("email:"):
            yield name[6:]
        elif name.startswith("other:a0"):
            other = read_other_name(bytes.fromhex(name[6:]))
            if other is not None and other[0] == _SMTP_UTF8:
                yield other[1]


def _other_text(name: str) -> str | None:
    other = read_other_name(bytes.fromhex(name[6:])) if name.startswith("other:a0") else None
    return None if other is None else other[1]


def _mailbox(text: str) -> tuple[str, str]:
    local, _, host = text.rpartition("@")
    return local, host.lower()
