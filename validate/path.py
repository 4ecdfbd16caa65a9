"""Finding certification paths: from a certificate up to a trust anchor, over any number of cross-certificates, within bounds (RFC 4158).

    search = Search(pool_of(policy), presented, policy, budget, memory, now)
    for path in search.paths(certificate):     # tuples, certificate first, anchor last; the likeliest first
        ...
    search.dead_end()                          # if there was none: why

A path that comes out is complete and every signature in it was verified; everything else about it is for ``validate.rules``. Which paths
come out, and in which order, does not depend on the order of what goes in.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from functools import lru_cache

from pkix.certificate import Certificate
from pkix.errors import BadSignature, Malformed, Unavailable
from validate.memory import Memory
from validate.model import Anchor, Monotonic, Policy
from validate.names import Canonical, issuer, self_issued, subject
from validate.text import Text, say

Path = tuple[Certificate, ...]

_MAX_LENGTH = 32
_STEPS_BETWEEN_LOOKS = 64
_NONE: Sequence[Certificate] = ()


class Exhausted(Exception):
    """A bound of the policy is reached; ``text`` says which. Never leaves this room."""

    def __init__(self, text: Text) -> None:
        super().__init__(text.code)
        self.text = text


class Budget:
    """How much work one validation may be, and has been.

    Args:
        policy: the bounds.  monotonic: the clock for its time budget, read now and then.  deadline: its moment at which time is up.
    """

    def __init__(self, policy: Policy, monotonic: Monotonic, deadline: float) -> None:
        self.signatures = 0
        self.steps = 0
        self.paths = 0
        self._policy = policy
        self._monotonic = monotonic
        self._deadline = deadline

    def step(self) -> None:
        """One candidate tried. Raises Exhausted."""
        self.steps += 1
        if self.steps > self._policy.max_steps:
            raise Exhausted(say("too_complex"))
        if self.steps % _STEPS_BETWEEN_LOOKS == 0:
            self.look()

    def signature(self) -> None:
        """One signature is about to be verified. Raises Exhausted."""
        self.signatures += 1
        if self.signatures > self._policy.max_signatures:
            raise Exhausted(say("too_complex"))
        if self.signatures > 2:
            self.look()

    def path(self) -> None:
        """One complete path is about to be judged. Raises Exhausted."""
        self.paths += 1
        if self.paths > self._policy.max_paths:
            raise Exhausted(say("too_complex"))
        if self.paths > 1:
            self.look()

    def look(self) -> None:
        """Raises Exhausted if time is up."""
        if self._monotonic() > self._deadline:
            raise Exhausted(say("out_of_time", seconds=f"{self._policy.budget.total_seconds():g}"))


class Pool:
    """Anchors and intermediates by subject: made once for a policy."""

    def __init__(self, policy: Policy) -> None:
        self.anchors: dict[bytes, list[Anchor]] = defaultdict(list)
        """By the DER of their certificates."""
        for anchor in policy.anchors:
            self.anchors[anchor.certificate.der].append(anchor)
        self.by_subject: dict[Canonical, list[Certificate]] = defaultdict(list)
        for certificate in {*(anchor.certificate for anchor in policy.anchors), *policy.intermediates}:
            self.by_subject[subject(certificate)].append(certificate)


@lru_cache(maxsize=64)
def pool_of(policy: Policy) -> Pool:
    """The pool of a policy."""
    return Pool(policy)


class Search:
    """One search; its bounds are for its whole life.

    Args:
        pool: anchors and intermediates of the policy.
        presented: certificates that may help, trusted for nothing; in any order, duplicates and strangers welcome.
        budget: what it may cost.
        memory: signatures that have verified before.
        now: only to try valid certificates first.
        unreadable: what was wrong with certificates that were given and did not parse, for the explanation.
    """

    def __init__(
        self,
        pool: Pool,
        presented: Iterable[Certificate],
        policy: Policy,
        budget: Budget,
        memory: Memory,
        now: datetime,
        *,
        unreadable: str = "",
    ) -> None:
        self._pool = pool
        self._by_subject: dict[Canonical, list[Certificate]] = {}
        for certificate in presented:
            self._by_subject.setdefault(subject(certificate), []).append(certificate)
        self._buckets: dict[Canonical, list[Certificate]] = {}
        self._budget = budget
        self._memory = memory
        self._now = now
        self._max_intermediates = policy.max_intermediates
        self._unreadable = unreadable
        self._obstacles: dict[tuple[bytes, bytes], Text] = {}
        self._dead_ends: list[tuple[int, Text]] = []
        self._choices = False

    def paths(self, certificate: Certificate) -> Iterator[Path]:
        """Complete paths, depth first. Raises Exhausted when a bound is reached."""
        if certificate.der in self._pool.anchors:
            yield (certificate,)
        # Each level: a path that leads up from the certificate, its CAs that are not self-issued, and what may come next.
        start: Path = (certificate,)
        levels = [(start, 0, self._candidates(start))]
        while levels:
            path, intermediates, candidates = levels[-1]
            candidate = next(candidates, None)
            if candidate is None:
                levels.pop()
                continue
            self._budget.step()
            obstacle = self._signed_by(path[-1], candidate)
            if obstacle is not None:
                self._dead_ends.append((len(path), obstacle))
                continue
            longer = (*path, candidate)
            if candidate.der in self._pool.anchors:
                self._choices |= len(self._pool.anchors[candidate.der]) > 1
                yield longer
                continue
            deeper = intermediates + (not self_issued(candidate))
            if deeper > self._max_intermediates or len(path) >= _MAX_LENGTH:
                self._dead_ends.append((len(path), say("path_too_long", limit=self._max_intermediates, who=path[0])))
                continue
            levels.append((longer, deeper, self._candidates(longer)))

    def dead_end(self) -> Text:
        """Why no path came out: the obstacle that was met highest up."""
        return max(self._dead_ends, key=lambda end: end[0])[1]

    @property
    def only_one(self) -> bool:
        """Whether there was nothing to choose from so far: one certificate at most of each name, and of its anchor."""
        return not self._choices

    def _candidates(self, path: Path) -> Iterator[Certificate]:
        """Certificates with the right name, those with the right key identifier first; lazily, there may be thousands."""
        top = path[-1]
        bucket = self._bucket(issuer(top))
        none = True
        for candidate in bucket if len(bucket) < 2 else _closest_first(bucket, top.aki):
            # The same CA (name and key) twice in a path adds nothing but length (RFC 4158 5.2).
            if not _repeated(candidate, path):
                none = False
                yield candidate
        if none:
            self._dead_ends.append((len(path), self._no_candidate(top)))

    def _bucket(self, name: Canonical) -> list[Certificate]:
        """All certificates of one subject, likeliest first."""
        bucket = self._buckets.get(name)
        if bucket is None:
            given, kept = self._by_subject.get(name, _NONE), self._pool.by_subject.get(name, _NONE)
            bucket = list(given or kept)
            if len(given) + len(kept) > 1:
                self._choices = True
                bucket = sorted({*given, *kept}, key=self._rank)
            self._buckets[name] = bucket
        return bucket

    def _rank(self, candidate: Certificate) -> tuple[bool, bool, bool, bytes]:
        """Likeliest first; the fingerprint makes the order the same however the certificates came in."""
        valid = candidate.not_before <= self._now <= candidate.not_after
        return candidate.der not in self._pool.anchors, not valid, not candidate.is_ca, candidate.sha256

    def _signed_by(self, certificate: Certificate, by: Certificate) -> Text | None:
        key = by.spki, certificate.sha256
        obstacle = self._obstacles.get(key)
        if obstacle is None:
            obstacle = signed_by(certificate, by, self._memory, self._budget)
            if obstacle is not None:
                self._obstacles[key] = obstacle
        return obstacle

    def _no_candidate(self, top: Certificate) -> Text:
        if not issuer(top):
            return say("empty_issuer", who=top)
        if self_issued(top):
            return say("untrusted_root", who=top)
        if self._bucket(issuer(top)):
            return say("circle", who=top)
        if self._unreadable:
            return say("unreadable_issuer", who=top, issuer=top.issuer, why=self._unreadable)
        return say("unknown_issuer", who=top, issuer=top.issuer)


def _repeated(candidate: Certificate, path: Path) -> bool:
    return any(candidate.spki == other.spki and subject(candidate) == subject(other) for other in path)


def _closest_first(bucket: list[Certificate], wanted: bytes | None) -> list[Certificate]:
    return bucket if wanted is None else sorted(bucket, key=lambda candidate: candidate.ski != wanted)


def signed_by(certificate: Certificate, by: Certificate, memory: Memory, budget: Budget) -> Text | None:
    """``verify``, unless that went well before. Raises Exhausted."""
    key = by.spki, certificate.sha256
    if memory.signatures.get(key):
        return None
    budget.signature()
    obstacle = verify(certificate, by)
    if obstacle is None:
        memory.signatures.put(key, True)
    return obstacle


def verify(certificate: Certificate, by: Certificate) -> Text | None:
    """None if the key of ``by`` signed ``certificate`` (RFC 5280 6.1.3 (a)(1)); else what is wrong."""
    try:
        by.public_key.verify(certificate.signature, certificate.tbs, certificate.signature_algorithm)
    except BadSignature:
        return say("bad_signature", who=certificate, issuer=by)
    except (Malformed, Unavailable) as error:
        return say("unsupported_signature", who=certificate, why=error)
    return None
