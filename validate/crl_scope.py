"""Which certificates a CRL speaks for: its issuing distribution point (RFC 5280 5.2.5, 6.3.3 (b))."""

from __future__ import annotations

from functools import lru_cache

from pkix import der, extensions
from pkix.certificate import Certificate
from pkix.crl import Crl
from pkix.errors import Malformed
from validate.text import Text, say

_POINT, _USERS, _CAS, _REASONS, _INDIRECT, _ATTRIBUTES = 0xA0, 0x81, 0x82, 0x83, 0x84, 0x85


def out_of_scope(crl: Crl, certificate: Certificate, *, listed: bool) -> Text | None:
    """Why ``crl`` says nothing of ``certificate``, or None if it does. ``listed``: it is on the list; then partial reasons are enough."""
    extension = crl.extensions.get(extensions.ISSUING_DISTRIBUTION_POINT)
    if extension is None:
        return None
    try:
        fields, urls = _read(extension.value)
    except Malformed as error:
        return say("crl_scope", why=error)
    if _INDIRECT in fields or _ATTRIBUTES in fields or (_REASONS in fields and not listed):
        return say("crl_scope", why="indirect, for attribute certificates, or for some reasons only")
    if (_CAS if not certificate.is_ca else _USERS) in fields:
        return say("crl_scope", why="for CA certificates only" if _CAS in fields else "for end entity certificates only")
    if _POINT in fields and not urls & frozenset(certificate.crl_urls):
        return say("crl_scope", why="for another distribution point")
    return None


@lru_cache(maxsize=256)
def _read(value: bytes) -> tuple[frozenset[int], frozenset[str]]:
    """Tags of the fields that are there (and not FALSE), and the URLs of the distribution point's fullName. Raises Malformed."""
    root = der.prescan(value)
    parts = der.children(value, root)
    known = (_POINT, _USERS, _CAS, _REASONS, _INDIRECT, _ATTRIBUTES)
    if root.tag != der.SEQUENCE or any(part.tag not in known for part in parts):
        raise Malformed("an issuing distribution point with other fields than RFC 5280 5.2.5")
    fields = frozenset(part.tag for part in parts if part.tag in (_POINT, _REASONS) or value[part.body : part.end] != b"\x00")
    urls = set()
    for point in (part for part in parts if part.tag == _POINT):
        for full_name in (inner for inner in der.children(value, point) if inner.tag == 0xA0):
            for name in der.children(value, full_name):
                text = extensions.read_general_name(value, name)
                if text.startswith("uri:"):
                    urls.add(text[4:])
    return fields, frozenset(urls)
