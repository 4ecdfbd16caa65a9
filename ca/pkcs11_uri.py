"""PKCS#11 URIs (RFC 7512): which token, which key on it, through which library, and where its PIN is kept.

    uri = parse("pkcs11:token=ironroot;object=ecc-root?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:hsm.pin")
    uri.token, uri.object                      # 'ironroot', 'ecc-root'
    str(uri.key("sm2-root"))                   # the same token, another key
    parse(str(uri)) == uri

The only text here that is not the RFC's own is the query attribute ``x-server-address``: where ``p11-kit-client.so`` finds the token
(p11-kit server(8)). A PIN in the URI (``pin-value``) is refused: URIs stand in settings, arguments and databases, where no secret belongs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from urllib.parse import quote, unquote_to_bytes

from pkix.errors import Malformed, NotFound

SCHEME = "pkcs11:"
MAX_SIZE = 4096
SERVER_ADDRESS = "x-server-address"

_COMMON = r"A-Za-z0-9._~:\[\]@!$'()*+,=\-"
_PATH_VALUE = re.compile(rf"(?:[{_COMMON}&]|%[0-9A-Fa-f]{{2}})*")
_QUERY_VALUE = re.compile(rf"(?:[{_COMMON}/?|]|%[0-9A-Fa-f]{{2}})*")
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_TEXTS = {  # path attributes that are text, and the fields they are kept in
    "token": "token",
    "manufacturer": "manufacturer",
    "serial": "serial",
    "model": "model",
    "library-manufacturer": "library_manufacturer",
    "library-description": "library_description",
    "slot-manufacturer": "slot_manufacturer",
    "slot-description": "slot_description",
    "object": "object",
}
_PATHS = {*_TEXTS, "library-version", "slot-id", "id", "type"}
_QUERIES = {"pin-source", "pin-value", "module-name", "module-path", SERVER_ADDRESS}


@dataclass(frozen=True, slots=True)
class Pkcs11Uri:
    """A parsed URI. What it does not say is None; what it says, a token, slot, library or key has to be exactly.

    ``id`` is CKA_ID, octets; ``library_version`` major and minor; ``module_path`` the library to load; ``pin_source`` the path of the file
    with the PIN, ``file:`` taken off; ``server_address`` a p11-kit address (``unix:path=…``).
    """

    token: str | None = None
    manufacturer: str | None = None
    serial: str | None = None
    model: str | None = None
    library_manufacturer: str | None = None
    library_description: str | None = None
    library_version: tuple[int, int] | None = None
    slot_manufacturer: str | None = None
    slot_description: str | None = None
    slot_id: int | None = None
    object: str | None = None
    id: bytes | None = None
    module_path: str | None = None
    pin_source: str | None = None
    server_address: str | None = None

    def __str__(self) -> str:
        """The URI in one form: attributes in one order, percent-encoded only where they must be; vendors' own attributes are gone."""
        path = [f"{name}={quote(value, safe=_SAFE)}" for name, field in _TEXTS.items() if (value := getattr(self, field)) is not None]
        if self.library_version is not None:
            path.append("library-version={}.{}".format(*self.library_version))
        if self.slot_id is not None:
            path.append(f"slot-id={self.slot_id}")
        if self.id is not None:
            path.append("id=" + "".join(f"%{octet:02X}" for octet in self.id))
        queries = (("module-path", self.module_path), ("pin-source", self.pin_source and "file:" + self.pin_source))
        query = [f"{name}={quote(value, safe=_SAFE + '/')}" for name, value in (*queries, (SERVER_ADDRESS, self.server_address)) if value]
        return SCHEME + ";".join(path) + ("?" + "&".join(query) if query else "")

    @property
    def store(self) -> Pkcs11Uri:
        """The token alone: what this is without its key."""
        return replace(self, object=None, id=None)

    def key(self, label: str) -> Pkcs11Uri:
        """The key ``label`` on the same token."""
        return replace(self, object=label, id=None)


_SAFE = ":[]@!$'()*+,="


def is_uri(reference: str) -> bool:
    """Whether a key reference is a URI of its own, and not a name on the default token."""
    return reference[: len(SCHEME)].lower() == SCHEME


def beside(reference: str, label: str) -> str:
    """The reference of a key ``label`` that lives where the key of ``reference`` does."""
    return str(parse(reference).key(label)) if is_uri(reference) else label


def parse(text: str) -> Pkcs11Uri:
    """Reads a URI that names at least a library.

    Raises:
        Malformed: no PKCS#11 URI, an attribute twice, a PIN in it, no ``module-path``, or a ``type`` that cannot sign.
    """
    if not is_uri(text) or len(text) > MAX_SIZE:
        raise Malformed(f"a key store is named by a PKCS#11 URI of at most {MAX_SIZE} characters: pkcs11:token=…?module-path=…")
    path, _, query = text[len(SCHEME) :].partition("?")
    fields: dict[str, object] = {}
    for name, raw in _attributes(path, ";", _PATH_VALUE, _PATHS):
        fields |= _path_field(name, raw)
    said = dict(_attributes(query, "&", _QUERY_VALUE, _QUERIES))
    if "pin-value" in said:
        raise Malformed(
            "pin-value would put the PIN into settings and logs; put it into a file that only the service reads: pin-source=file:…"
        )
    if "module-path" not in said:
        raise Malformed("module-path is missing: the path of the PKCS#11 library, like ?module-path=/usr/lib/softhsm/libsofthsm2.so")
    fields["module_path"] = _text("module-path", said["module-path"])
    if "pin-source" in said:
        fields["pin_source"] = _file(_text("pin-source", said["pin-source"]))
    if SERVER_ADDRESS in said:
        fields["server_address"] = _text(SERVER_ADDRESS, said[SERVER_ADDRESS])
    return Pkcs11Uri(**fields)  # type: ignore[arg-type]


def parse_store(text: str) -> Pkcs11Uri:
    """A URI that names a token and no key on it. Raises Malformed."""
    uri = parse(text)
    if uri.object is not None or uri.id is not None:
        raise Malformed("name the token alone here, without object and id: the keys on it are named by what uses them")
    return uri


def one(candidates: list[Pkcs11Uri], wanted: Pkcs11Uri) -> int:
    """The index of the only candidate that has everything that ``wanted`` says of token, slot and library.

    Raises:
        NotFound: none, or several; the sentence says which there are.
    """
    fitting = [number for number, there in enumerate(candidates) if fits(there, wanted)]
    if len(fitting) == 1:
        return fitting[0]
    there = ", ".join(repr(candidate.token) for candidate in candidates) or "none"
    if fitting:
        raise NotFound(f"several tokens fit the URI; say more of it (serial=…, slot-id=…). There are: {there}")
    raise NotFound(f"no token fits the URI; there are: {there}")


def fits(there: Pkcs11Uri, wanted: Pkcs11Uri) -> bool:
    """Whether a token, described by a URI of its own, is one that ``wanted`` names (RFC 7512 section 2.5: every attribute matches)."""
    names = (*_TEXTS.values(), "library_version", "slot_id")
    said = ((name, getattr(wanted, name)) for name in names if name != "object")
    return all(value is None or value == getattr(there, name) for name, value in said)


def _attributes(part: str, separator: str, value: re.Pattern[str], known: set[str]) -> Iterator[tuple[str, str]]:
    """Names and raw values. Vendors' own attributes are passed over: in the path each may stand once, in the query more often."""
    seen = set()
    for item in part.split(separator) if part else ():
        name, equals, raw = item.partition("=")
        if not equals or not _NAME.fullmatch(name) or not value.fullmatch(raw):
            raise Malformed(
                f"no attribute of a PKCS#11 URI (RFC 7512 section 2.3): {_shown(name)}; percent-encode what is not a letter or digit"
            )
        if name in seen and (name in known or separator == ";"):
            raise Malformed(f"{name} stands twice in the PKCS#11 URI")
        seen.add(name)
        if name in known:
            yield name, raw


def _path_field(name: str, raw: str) -> dict[str, object]:
    match name:
        case "id":
            return {"id": unquote_to_bytes(raw)}
        case "slot-id":
            if not re.fullmatch("[0-9]{1,19}", raw):
                raise Malformed("slot-id is a number")
            return {"slot_id": int(raw)}
        case "library-version":
            if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,3})?", raw):
                raise Malformed("library-version is a number, or two with a dot between them")
            major, _, minor = raw.partition(".")
            return {"library_version": (int(major), int(minor or 0))}
        case "type":
            if raw != "private":
                raise Malformed("type: an authority signs with a private key; write type=private, or leave it out")
            return {}
        case _:
            return {_TEXTS[name]: _text(name, raw)}


def _text(name: str, raw: str) -> str:
    try:
        text = unquote_to_bytes(raw).decode("utf-8")
    except UnicodeDecodeError:
        raise Malformed(f"{name} in the PKCS#11 URI is not UTF-8") from None
    if not text or not text.isprintable():
        raise Malformed(f"{name} in the PKCS#11 URI is empty, or not printable")
    return text


def _file(source: str) -> str:
    """The path in a ``pin-source``: a file URI, also a relative one, or a bare path."""
    if source.startswith("|"):
        raise Malformed("pin-source names a program; name a file: pin-source=file:/etc/ironroot/hsm.pin")
    scheme, colon, path = source.partition(":")
    if not colon:
        return source
    if scheme != "file" or not path:
        raise Malformed("pin-source names no file; write pin-source=file:/etc/ironroot/hsm.pin, or file:hsm.pin in the home folder")
    if path.startswith("//"):
        host, slash, rest = path[2:].partition("/")
        if host not in ("", "localhost") or not slash:
            raise Malformed("pin-source names a file of another machine; name one of this: pin-source=file:///etc/ironroot/hsm.pin")
        return "/" + rest
    return path


def _shown(name: str) -> str:
    return repr(name[:40])
