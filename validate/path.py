"""Finding certification paths: from a certificate up to a trust anchor, over any number of cross-certificates, within bounds (RFC 4158).

    search = Search(anchors, intermediates, now, max_intermediates=8)
    for path in search.paths(certificate):     # tuples, certificate first, anchor last; the likeliest first
        ...
    search.dead_end(certificate)               # if there was none: why

A path that comes out is complete and every signature in it was verified; everything else about it is for ``validate.rules``. Which paths
come out, and in which order, does not depend on the order of what goes in.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import chain

from pkix.certificate import Certificate
from pkix.errors import BadSignature, Malformed
from validate.names import Canonical, issuer, self_issued, subject
from validate.text import Text, say

Path = tuple[Certificate, ...]

_MAX_SIGNATURES = 128
_MAX_STEPS = 2048
_MAX_LENGTH = 32


class _Bucket:
    """All certificates of one subject, likeliest first, and the same by subject key identifier."""

    def __init__(self, certificates: list[Certificate]) -> None:
        self.all = certificates
        self.by_identifier: dict[bytes, list[Certificate]] = defaultdict(list)
        for certificate in certificates:
            if certificate.ski is not None:
                self.by_identifier[certificate.ski].append(certificate)


class Search:
    """One search; its bounds (signatures, steps) are for its whole life.

    Args:
        anchors: certificates that are trusted.
        intermediates: certificates that may help, trusted for nothing; in any order, duplicates and strangers welcome.
        now: only to try valid certificates first.
        max_intermediates: CAs that are not self-issued between anchor and end entity.
        unreadable: what was wrong with certificates that were given and did not parse, for the explanation.
    """

    def __init__(
        self,
        anchors: Iterable[Certificate],
        intermediates: Iterable[Certificate],
        now: datetime,
        *,
        max_intermediates: int,
        unreadable: str = "",
    ) -> None:
        self._anchors = frozenset(anchors)
        self._by_subject: dict[Canonical, list[Certificate]] = defaultdict(list)
        for certificate in self._anchors | frozenset(intermediates):
            self._by_subject[subject(certificate)].append(certificate)
        self._buckets: dict[Canonical, _Bucket] = {}
        self._now = now
        self._max_intermediates = max_intermediates
        self._unreadable = unreadable
        self._signatures: dict[tuple[bytes, bytes], Text | None] = {}
        self._steps = 0
        self._dead_ends: list[tuple[int, Text]] = []

    def paths(self, certificate: Certificate) -> Iterator[Path]:
        """Complete paths. Ends early, and says so in ``dead_end``, when a bound is reached."""
        if certificate in self._anchors:
            yield (certificate,)
        yield from self._above((certificate,), 0)

    def dead_end(self) -> Text:
        """Why no path came out: the obstacle that was met highest up."""
        return max(self._dead_ends, key=lambda end: end[0])[1]

    def _above(self, path: Path, intermediates: int) -> Iterator[Path]:
        top = path[-1]
        candidate = None
        for candidate in self._candidates(path):
            self._steps += 1
            if self._steps > _MAX_STEPS or len(self._signatures) > _MAX_SIGNATURES:
                self._dead_ends.append((_MAX_LENGTH, say("too_complex")))
                return
            obstacle = self._signed_by(top, candidate)
            if obstacle is not None:
                self._dead_ends.append((len(path), obstacle))
                continue
            if candidate in self._anchors:
                yield (*path, candidate)
                continue
            deeper = intermediates + (not self_issued(candidate))
            if deeper > self._max_intermediates or len(path) >= _MAX_LENGTH:
                self._dead_ends.append((len(path), say("path_too_long", limit=self._max_intermediates, who=path[0])))
                continue
            yield from self._above((*path, candidate), deeper)
        if candidate is None:
            self._dead_ends.append((len(path), self._no_candidate(top)))

    def _candidates(self, path: Path) -> Iterator[Certificate]:
        """Certificates with the right name, those with the right key identifier first; lazily, there may be thousands."""
        # The same CA (name and key) twice in a path adds nothing but length (RFC 4158 5.2).
        seen = {(subject(certificate), certificate.spki) for certificate in path}
        bucket = self._bucket(issuer(path[-1]))
        wanted = path[-1].aki
        matching = bucket.by_identifier.get(wanted, ()) if wanted is not None else ()
        others = (candidate for candidate in bucket.all if wanted is None or candidate.ski != wanted)
        return (candidate for candidate in chain(matching, others) if (subject(candidate), candidate.spki) not in seen)

    def _bucket(self, name: Canonical) -> _Bucket:
        if name not in self._buckets:
            self._buckets[name] = _Bucket(sorted(self._by_subject.get(name, ()), key=self._rank))
        return self._buckets[name]

    def _rank(self, candidate: Certificate) -> tuple[bool, bool, bool, bytes]:
        """Likeliest first; the fingerprint makes the order the same however the certificates came in."""
        valid = candidate.not_before <= self._now <= candidate.not_after
        return candidate not in self._anchors, not valid, not candidate.is_ca, candidate.sha256

    def _signed_by(self, certificate: Certificate, by: Certificate) -> Text | None:
        key = certificate.sha256, by.spki
        if key not in self._signatures:
            self._signatures[key] = verify(certificate, by)
        return self._signatures[key]

    def _no_candidate(self, top: Certificate) -> Text:
        if not issuer(top):
            return say("empty_issuer", who=top)
        if self_issued(top):
            return say("untrusted_root", who=top)
        if self._bucket(issuer(top)).all:
            return say("circle", who=top)
        if self._unreadable:
            return say("unreadable_issuer", who=top, issuer=top.issuer, why=self._unreadable)
        return say("unknown_issuer", who=top, issuer=top.issuer)


def verify(certificate: Certificate, by: Certificate) -> Text | None:
    """None if the key of ``by`` signed ``certificate`` (RFC 5280 6.1.3 (a)(1)); else what is wrong."""
    try:
        by.public_key.verify(certificate.signature, certificate.tbs, certificate.signature_algorithm)
    except BadSignature:
        return say("bad_signature", who=certificate, issuer=by)
    except Malformed as error:
        return say("unsupported_signature", who=certificate, why=error)
    return None
