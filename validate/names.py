"""Names as path validation compares them: distinguished names (RFC 5280 7.1), general names, and expected names (RFC 9525).

    canonical(issuer_der) == canonical(subject_der)      # case, spacing and string type do not count
    covers(certificate.names, "dns:plc-7.plant")         # wildcards included

Names of certificates come in the canonical text of ``pkix.extensions``, or as octets where constraints need them exact.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from pkix import der, extensions
from pkix.certificate import Certificate
from pkix.errors import Malformed

EMAIL, DNS, DIRECTORY, URI, IP = 0x81, 0x82, 0xA4, 0x86, 0x87
"""Identifier octets of the GeneralName kinds that we compare (RFC 5280 4.2.1.6)."""

Canonical = tuple[frozenset[tuple[bytes, str]], ...]
"""A distinguished name in comparable form: one set of (type, value) for each RDN."""

_ENCODINGS = {0x0C: "utf-8", 0x13: "ascii", 0x16: "ascii", 0x14: "latin-1", 0x1E: "utf-16-be", 0x1C: "utf-32-be"}
_EMAIL_ADDRESS = der.oid("1.2.840.113549.1.9.1")[2:]
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class GeneralName(NamedTuple):
    """One name: identifier octet of its kind and contents octets. Text kinds are ASCII, checked by ``pkix``."""

    kind: int
    value: bytes

    @property
    def ascii(self) -> str:
        return self.value.decode("ascii")


@lru_cache(maxsize=4096)
def canonical(name: bytes) -> Canonical:
    """The comparable form of a Name's DER. Raises Malformed."""
    rdns = []
    for rdn in der.children(name, der.prescan(name)):
        pairs = []
        for attribute in der.children(name, rdn):
            kind, value = _attribute(name, attribute)
            pairs.append((name[kind.body : kind.end], _prepared(value.tag, name[value.body : value.end])))
        rdns.append(frozenset(pairs))
    return tuple(rdns)


def _attribute(name: bytes, attribute: der.Tlv) -> list[der.Tlv]:
    parts = der.children(name, attribute)
    if len(parts) != 2:
        raise Malformed("a name attribute that is not a type and a value")
    return parts


def _prepared(tag: int, value: bytes) -> str:
    # LDAP StringPrep as far as RFC 5280 7.1 leans on it: normal form, case, runs of spaces. What is no text is compared as octets.
    encoding = _ENCODINGS.get(tag)
    if encoding is None:
        return f"#{tag:02x}{value.hex()}"
    try:
        text = value.decode(encoding)
    except UnicodeDecodeError:
        return f"#{tag:02x}{value.hex()}"
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


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
    return tuple(GeneralName(item.tag, value[item.body : item.end]) for item in der.children(value, der.prescan(value)))


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
                found.append(GeneralName(EMAIL, name[value.body : value.end]))
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


def covers(names: Iterable[str], expected: str) -> bool:
    """Whether one of a certificate's ``names`` is the ``expected`` one (canonical text both).

    ``*.example.com`` covers exactly one more label (RFC 9525 6.3); a wildcard right above a top-level name covers nothing. Hosts compare
    without case, everything else octet by octet. The subject's common name is never looked at.
    """
    kind, _, value = expected.partition(":")
    if kind == "dns":
        host = value.lower().removesuffix(".")
        _, _, parent = host.partition(".")
        wildcard = f"dns:*.{parent}" if "." in parent else ""
        return any(name in (f"dns:{host}", wildcard) for name in names)
    if kind == "email":
        return any(name.startswith("email:") and _mailbox(name[6:]) == _mailbox(value) for name in names)
    return expected in names


def _mailbox(text: str) -> tuple[str, str]:
    local, _, host = text.rpartition("@")
    return local, host.lower()
