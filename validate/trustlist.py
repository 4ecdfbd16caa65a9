"""Trust lists: what a plant trusts, as one signed, versioned and expiring message that validators follow.

    content = encode(TrustList(name="plant-a", version=7, issued=now, expires=now + 30 * day, anchors=anchors(root)))
    raw = sign_data(content, key, certificate, now=now)               # CMS SignedData (RFC 5652); openssl cms reads it
    received = accept(raw, pins=frozenset((pin,)), held=None, now=now)
    received.list.anchors, received.signer                            # the signer's key is the pin from now on

The content is JSON (RFC 8259), so that a person can read what is trusted. Who may sign is known by the SHA-256 of a public key, never by a
certificate's path: the list is what paths start from. A new key is introduced by the old one (``introduction``), and the introductions
travel in the list, so that a validator that slept through the change finds its way.

Rules: the version never goes down, and one version has one content; a list that is over is not used; the name stays.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar, get_args

from pkix import cms
from pkix.certificate import Certificate, parse_certificate
from pkix.errors import Malformed, NotValid, Refused, Unsupported
from validate.constraints import read_name_constraints
from validate.model import Anchor, Purpose

MAX_LIST = 1 << 20
"""Octets of a signed list."""
CONTENT_TYPE = "application/pkcs7-mime; smime-type=signed-data"
"""Media type of a signed list (RFC 8551 3.2)."""
SKEW = timedelta(minutes=5)
"""How far ahead of ours the publisher's clock may be."""

_LIST, _INTRODUCTION = "ironroot-trust-list/1", "ironroot-trust-list-signer/1"
_MAX_INTRODUCTIONS = 16
_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")
_URL = re.compile(r"https?://[\x21-\x7e]{1,500}")
_FLAGS = ("explicit_policy", "inhibit_mapping", "inhibit_any")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StatusSource:
    """Where the status of an authority's certificates is found, for those who fetch it ahead. ``issuer``: SHA-256 of its certificate."""

    issuer: bytes
    ocsp: tuple[str, ...] = ()
    crl: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustList:
    """What a list says.

    Attributes:
        name: whose list it is; lower-case letters, digits, dots, hyphens.
        version: 1 and up, one more each time.
        issued, expires: aware, UTC, whole seconds.
        anchors: with their constraints (``validate.model.Anchor``).
        intermediates: CA certificates that help to find paths, trusted for nothing.
        status: where status is.
        introductions: signed messages by which older signers name newer ones, oldest first.
    """

    name: str
    version: int
    issued: datetime
    expires: datetime
    anchors: tuple[Anchor, ...]
    intermediates: tuple[Certificate, ...] = ()
    status: tuple[StatusSource, ...] = ()
    introductions: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Received:
    """A list whose signature held. ``signer``: SHA-256 of the key that made it. ``raw``: as it came."""

    list: TrustList
    signer: bytes
    raw: bytes


def pin(certificate: Certificate) -> bytes:
    """What a signer is known by: SHA-256 of its SubjectPublicKeyInfo (as RFC 7469 2.4)."""
    return hashlib.sha256(certificate.spki).digest()


# --- rules ---------------------------------------------------------------------------------------------------------


def accept(raw: bytes, *, pins: frozenset[bytes], held: Received | None, now: datetime) -> Received:
    """Whether a list that came in may take the place of ``held``.

    Args:
        pins: keys that are trusted to sign before any list is held; afterwards only the key of the held one counts.
        held: what was accepted last, however old.
    Raises:
        Malformed, Unsupported, BadSignature: no signed list.
        Refused: signed by a key that nobody introduced; older than what is held, or another content under its version; another name.
        NotValid: over, or from the future.
    """
    received = read(raw)
    known = pins if held is None else frozenset((held.signer,))
    if received.signer not in _introduced(received.list, known):
        raise Refused(f"the trust list is signed by the key {received.signer.hex()}, which is not the one pinned; ask the publisher")
    if held is not None:
        _succeeds(received, held)
    if received.list.issued > now + SKEW:
        raise NotValid(f"the trust list is from the future, {received.list.issued:%F %TZ}; look at both clocks")
    if received.list.expires <= now:
        raise NotValid(f"the trust list was good until {received.list.expires:%F %TZ}; publish it again")
    return received


def _succeeds(new: Received, held: Received) -> None:
    if new.list.name != held.list.name:
        raise Refused(f"the trust list is {new.list.name!r}, and {held.list.name!r} is followed there")
    if new.list.version < held.list.version:
        raise Refused(f"the trust list has version {new.list.version}, and {held.list.version} was seen already: no way back")
    if new.list.version == held.list.version and encode(new.list) != encode(held.list):
        raise Refused(f"there are two trust lists of version {held.list.version}; the publisher has to say which holds, with a new version")


def _introduced(found: TrustList, known: frozenset[bytes]) -> frozenset[bytes]:
    """``known`` and whom they introduced, and those in turn; strangers introduce nobody. Raises as ``accept``."""
    for raw in found.introductions:
        signed = cms.parse_signed_data(raw, max_size=MAX_LIST)
        said = _Fields(_object(signed.content), "the introduction of a signer")
        if said.take("type", str) != _INTRODUCTION or said.take("name", str) != found.name:
            raise Refused("an introduction of another kind, or for another trust list")
        successor = _hex(said.take("signer", str))
        said.end()
        if pin(signed.certificate) in known:
            known |= {successor}
    return known


def read(raw: bytes) -> Received:
    """The list in a signed message, its signature checked; whether to believe its signer is for ``accept``.

    Raises:
        Malformed, Unsupported, BadSignature: not such a message.
    """
    signed = cms.parse_signed_data(raw, max_size=MAX_LIST)
    return Received(decode(signed.content), pin(signed.certificate), raw)


# --- codec ---------------------------------------------------------------------------------------------------------


def introduction(name: str, successor: Certificate) -> bytes:
    """The content to be signed with the old key: who signs the list ``name`` from now on."""
    return _json({"type": _INTRODUCTION, "name": name, "signer": pin(successor).hex()})


def encode(found: TrustList) -> bytes:
    """The content to be signed. The same list gives the same octets."""
    return _json(
        {
            "type": _LIST,
            "name": found.name,
            "version": found.version,
            "issued": _moment(found.issued),
            "expires": _moment(found.expires),
            "anchors": [_anchor(anchor) for anchor in found.anchors],
            "intermediates": [_base64(c.der) for c in found.intermediates],
            "status": [{"issuer": s.issuer.hex(), "ocsp": list(s.ocsp), "crl": list(s.crl)} for s in found.status],
            "introductions": [_base64(raw) for raw in found.introductions],
        }
    )


def decode(content: bytes) -> TrustList:
    """What ``encode`` wrote.

    Raises:
        Malformed: not that, or something in it does not parse.
        Unsupported: a list of a later format.
    """
    said = _Fields(_object(content), "the trust list")
    if said.take("type", str) != _LIST:
        raise Unsupported(f"a trust list of another format than {_LIST}; update this program")
    found = TrustList(
        name=said.take("name", str),
        version=said.take("version", int),
        issued=_time(said.take("issued", str)),
        expires=_time(said.take("expires", str)),
        anchors=said.each("anchors", dict, _read_anchor),
        intermediates=said.each("intermediates", str, _certificate),
        status=said.each("status", dict, _read_source),
        introductions=said.each("introductions", str, _octets),
    )
    said.end()
    if not _NAME.fullmatch(found.name) or found.version < 1 or not found.anchors or len(found.introductions) > _MAX_INTRODUCTIONS:
        raise Malformed("the trust list has no proper name, no version, no anchor, or too many introductions")
    return found


def _anchor(anchor: Anchor) -> dict[str, object]:
    """Only what is said: a list is read by people too."""
    said: dict[str, object] = {"subject": anchor.certificate.subject.text, "certificate": _base64(anchor.certificate.der)}
    if anchor.name_constraints is not None:
        said["name_constraints"] = _base64(anchor.name_constraints)
    if anchor.path_length is not None:
        said["path_length"] = anchor.path_length
    for some in ("purposes", "certificate_policies"):
        if getattr(anchor, some):
            said[some] = sorted(getattr(anchor, some))
    return said | {flag: True for flag in _FLAGS if getattr(anchor, flag)}


def _read_anchor(value: dict[str, Any]) -> Anchor:
    said = _Fields(value, "an anchor of the trust list")
    said.take("subject", str)  # for the reader; the certificate says it too
    certificate = _certificate(said.take("certificate", str))
    constraints = said.take("name_constraints", str, "")
    length = said.take("path_length", int, -1)
    purposes = frozenset(said.each("purposes", str, str, ()))
    if purposes - set(get_args(Purpose)):
        raise Unsupported("an anchor of the trust list is for a purpose that is not known here; update this program")
    if constraints:
        read_name_constraints(_octets(constraints))
    anchor = Anchor(
        certificate,
        name_constraints=_octets(constraints) if constraints else None,
        certificate_policies=frozenset(said.each("certificate_policies", str, str, ())),
        path_length=None if length < 0 else length,
        purposes=purposes,  # type: ignore[arg-type]
        **{flag: said.take(flag, bool, False) for flag in _FLAGS},
    )
    # A constraint that we do not know must not be passed over: the anchor would be trusted for more than its publisher meant.
    said.end()
    return anchor


def _read_source(value: dict[str, Any]) -> StatusSource:
    said = _Fields(value, "a status source of the trust list")
    source = StatusSource(_hex(said.take("issuer", str)), said.each("ocsp", str, _url), said.each("crl", str, _url))
    said.end()
    return source


class _Fields:
    """A JSON object that is read strictly: every member by name and type, none left over."""

    def __init__(self, members: dict[str, Any], what: str) -> None:
        self._members, self._what = dict(members), what

    def take(self, name: str, kind: type[T], default: T | None = None) -> T:
        value = self._members.pop(name, default)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise Malformed(f"{self._what}: {name} is missing or of the wrong type")
        return value

    def each(self, name: str, kind: type[Any], read: Callable[[Any], T], default: Iterable[Any] | None = None) -> tuple[T, ...]:
        values = self.take(name, list, None if default is None else list(default))
        if not all(isinstance(value, kind) for value in values):
            raise Malformed(f"{self._what}: {name} holds something of the wrong type")
        return tuple(map(read, values))

    def end(self) -> None:
        if self._members:
            raise Unsupported(f"{self._what}: {min(self._members)!r} is not known here; update this program")


def _object(content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        raise Malformed("the content of a trust list is JSON; this is none") from None
    if not isinstance(value, dict):
        raise Malformed("the content of a trust list is a JSON object")
    return value


def _json(value: dict[str, object]) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False).encode()


def _base64(octets: bytes) -> str:
    return base64.b64encode(octets).decode()


def _octets(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Malformed("the trust list holds something that is no base64") from None


def _hex(text: str) -> bytes:
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise Malformed("the trust list holds something that is no SHA-256 in lower-case hex")
    return bytes.fromhex(text)


def _certificate(text: str) -> Certificate:
    return parse_certificate(_octets(text))


def _url(text: str) -> str:
    if not _URL.fullmatch(text):
        raise Malformed("the trust list holds a status source that is no http(s) URL")
    return text


def _moment(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _time(text: str) -> datetime:
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError:
        raise Malformed("the trust list holds a time that is not written 2026-11-23T10:00:00Z") from None
