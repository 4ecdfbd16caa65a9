"""Issuers' certificates that a peer did not send, from where its certificates say they are (RFC 5280 4.2.2.1).

    chain = await with_issuers(presented, policy, fetcher)
    result = await validate(chain, policy=policy, …)

The URLs are those of a peer whose path is not verified yet: a stranger chooses them. What may be asked is the fetcher's to say; how
often, is bounded here. What comes back is trusted for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pkix import cms, pem
from pkix.certificate import MAX_SIZE, Certificate, parse_certificate
from pkix.errors import IronrootError, Malformed
from validate.fetched import Fetch
from validate.model import Policy
from validate.names import issuer, subject

_MAX_BUNDLE = 16
_MAX_URLS = 2


async def with_issuers(chain: Sequence[bytes | Certificate], policy: Policy, fetch: Fetch, *, limit: int = 4) -> list[bytes | Certificate]:
    """``chain``, and what was found of the issuers that are missing in it and in the policy; at most ``limit`` requests.

    Never raises for what is in certificates or answers: the chain then stays as it is.
    """
    found: list[bytes | Certificate] = list(chain)
    presented = list(_parsed(chain))
    if not presented:
        return found
    anchors = {anchor.certificate for anchor in policy.anchors}
    known = [*presented, *policy.intermediates, *anchors]
    climbed: set[Certificate] = set()
    top = presented[0]
    while top not in anchors and top not in climbed:
        climbed.add(top)
        above = _above(top, known)
        for url in top.issuer_urls[:_MAX_URLS] if not above else ():
            if limit <= 0:
                return found
            limit -= 1
            fetched = [certificate for certificate in await _fetched(url, fetch) if certificate not in known]
            known += fetched
            found += fetched
            above = _above(top, known)
            if above:
                break
        if not above:
            break
        top = next((certificate for certificate in above if certificate in anchors), above[0])
    return found


async def _fetched(url: str, fetch: Fetch) -> list[Certificate]:
    try:
        body = (await fetch.fetch(url)).body
        return list(_parsed(_unpacked(body)))[:_MAX_BUNDLE]
    except IronrootError:
        return []


def _unpacked(body: bytes) -> list[bytes]:
    """One certificate in DER, or a certs-only CMS bundle; PEM, which occurs, too. Raises Malformed."""
    if len(body) > MAX_SIZE * _MAX_BUNDLE:
        raise Malformed("more octets than a bundle of certificates has")
    try:
        return [body] if _is_certificate(body) else cms.parse_certs_only(body)
    except Malformed:
        return pem.certificates(body) if body[:1] != b"\x30" else []


def _is_certificate(body: bytes) -> bool:
    try:
        parse_certificate(body)
    except Malformed:
        return False
    return True


def _parsed(certificates: Iterable[bytes | Certificate]) -> Iterable[Certificate]:
    for certificate in certificates:
        try:
            yield certificate if isinstance(certificate, Certificate) else parse_certificate(certificate)
        except Malformed:
            continue


def _above(certificate: Certificate, known: Iterable[Certificate]) -> list[Certificate]:
    """Those of the right name, and with the right key identifier where both say one."""
    return [
        other
        for other in known
        if subject(other) == issuer(certificate)
        and other != certificate
        and (certificate.aki == other.ski or certificate.aki is None or other.ski is None)
    ]
