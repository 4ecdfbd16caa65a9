"""What may be remembered from one validation to the next, bounded: so that what is dear is done once.

    memory = Memory()      # for the life of the program; pass it to every ``validate``

Nothing in it can turn a no into a yes. Only what went well is kept: issuers of paths that led to an anchor, signatures that verified, by
the key that verified them and the whole certificate, the way from an issuer's name up to an anchor where what was presented leaves no
other, verdicts that were good, by everything that was presented and asked. What depends on ``now`` or on revocation is looked at again each
time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from datetime import datetime
from typing import Generic, NamedTuple, TypeVar

from pkix.certificate import Certificate
from validate.model import Policy, Purpose, Result
from validate.rules import Upper

_K = TypeVar("_K")
_V = TypeVar("_V")
_MAX_OCTETS = 32768
"""Of all that was presented: strangers must not fill the memory."""

Given = bytes | Certificate
Way = tuple[bytes, tuple[Given, ...], Policy, Purpose]
"""The name of an end entity's issuer, what was presented beside it, and what it was judged for."""
Asked = tuple[tuple[Given, ...], Purpose, tuple[str, ...], Policy]
"""What was presented, and what was asked about it."""


class Lru(Generic[_K, _V]):
    """A mapping of at most ``size`` entries; the one not asked for the longest goes first. Any number of threads may use it."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: OrderedDict[_K, _V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: _K) -> _V | None:
        """The value, or None."""
        entries = self._entries
        value = entries.get(key)
        if value is not None:
            try:  # noqa: SIM105 (a context manager takes longer than the call)
                entries.move_to_end(key)
            except KeyError:
                pass  # another thread has let go of it; what we hold is as good as it was
        return value

    def put(self, key: _K, value: _V) -> None:
        """Keeps ``value``."""
        entries = self._entries
        entries[key] = value
        while len(entries) > self._size:
            try:
                entries.popitem(last=False)
            except KeyError:
                break

    def clear(self) -> None:
        """Forgets everything."""
        self._entries.clear()


class Verdict(NamedTuple):
    """A good result: good again between these moments (whole seconds, inclusive), if its status is."""

    result: Result
    not_before: datetime
    not_after: datetime


class Memory:
    """Caches of validation.

    Args:
        issuers: CA certificates kept parsed.  signatures: (key, certificate) pairs kept as verified.  verdicts: good verdicts kept.
    """

    def __init__(self, *, issuers: int = 1024, signatures: int = 16384, verdicts: int = 4096) -> None:
        self.issuers: Lru[bytes, Certificate] = Lru(issuers)
        self.signatures: Lru[tuple[bytes, bytes], bool] = Lru(signatures)
        self.uppers: Lru[object, Upper] = Lru(issuers)
        self.ways: Lru[Way, Upper] = Lru(issuers)
        self.verdicts: Lru[Asked, Verdict] = Lru(verdicts)
        self._once: Lru[int, bool] = Lru(4 * verdicts)

    def keep_way(self, way: Way, upper: Upper, *, only: bool) -> None:
        """Keeps the CA certificates of a path that led to an anchor; and that this is the way there, if it is the ``only`` one."""
        for certificate in upper.path:
            if len(certificate.der) <= _MAX_OCTETS:
                self.issuers.put(certificate.der, certificate)
        if only and upper.path and _octets(way[1]) <= _MAX_OCTETS:
            self.ways.put(way, upper)

    def keep_verdict(self, asked: Asked, verdict: Verdict) -> None:
        """Keeps a good verdict."""
        if _octets(asked[0]) <= _MAX_OCTETS:
            self.verdicts.put(asked, verdict)

    def seen_before(self, key: Asked) -> bool:
        """Whether a good verdict comes for the second time. Most certificates are seen once, and would only push out those that come
        often."""
        mark = hash(key)
        seen = self._once.get(mark) is not None
        if not seen:
            self._once.put(mark, True)
        return seen

    def clear(self) -> None:
        """Forgets everything."""
        for cache in (self.issuers, self.signatures, self.uppers, self.ways, self.verdicts, self._once):
            cache.clear()


def _octets(given: Iterable[Given]) -> int:
    return sum([len(one) if isinstance(one, bytes) else len(one.der) for one in given])
