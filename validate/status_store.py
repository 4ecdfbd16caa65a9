"""What is known about revocation between one validation and the next: pushed revocations, answers until they lapse, CRLs; all bounded.

    store = StatusStore()
    store.push(issuer_key(issuer), serial, revoked_at, "keyCompromise", now)    # honoured by the next validation, in any thread
    store.push(issuer_key(issuer), serial, released_at, "removeFromCRL", now)   # off hold
    await store.pull(feed, now)                                                 # what has changed since the last pull

Pushes are a delta on top of whatever else is known: a revocation is final, holds and releases go by their time, not by when they arrive.
Pushes that no longer fit are forgotten, the oldest first, and with them every statement of that issuer that may not know of them yet.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from threading import Lock
from typing import Generic, NamedTuple, Protocol, TypeVar

from pkix.certificate import Certificate
from validate.crl_load import LoadedCrl
from validate.model import Basis, Policy
from validate.text import Text

K = TypeVar("K")
V = TypeVar("V")

HOLD, RELEASE = "certificateHold", "removeFromCRL"
"""The reasons (RFC 5280 5.3.1) that are not for ever."""


class Pushed(NamedTuple):
    """One change of status, as who keeps it tells it.

    ``issuer_key`` is ``issuer_key(issuer)``; ``reason`` a name of RFC 5280 5.3.1, where ``removeFromCRL`` releases from hold; ``at`` when
    it was revoked, put on hold or released; ``received`` when it was pushed here.
    """

    issuer_key: bytes
    serial: int
    at: datetime
    reason: str
    received: datetime


class Feed(Protocol):
    """Somebody who tells of changes: our own service, by whatever adapter."""

    async def changes(self) -> Iterable[tuple[bytes, int, datetime, str]]:
        """What has changed since it was asked last, at first all that counts: (issuer key, serial, at, reason) as ``StatusStore.push``
        takes them. Raises IronrootError."""


class Bounded(Generic[K, V]):
    """A mapping of limited weight; the oldest entries give way. Safe in threads; reading takes no lock."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: dict[K, tuple[V, int]] = {}
        self._weight = 0
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._items)

    def get(self, key: K) -> V | None:
        found = self._items.get(key)
        return None if found is None else found[0]

    def put(self, key: K, value: V, weight: int = 1) -> list[tuple[K, V]]:
        """Keeps ``value`` unless it is heavier than everything may be; returns what gave way."""
        gone: list[tuple[K, V]] = []
        with self._lock:
            old = self._items.pop(key, None)
            self._weight -= old[1] if old is not None else 0
            if weight > self._limit:
                return [(key, value)]
            self._items[key] = value, weight
            self._weight += weight
            while self._weight > self._limit:
                oldest = next(iter(self._items))
                lost, heavy = self._items.pop(oldest)
                self._weight -= heavy
                gone.append((oldest, lost))
        return gone

    def drop(self, key: K) -> None:
        with self._lock:
            old = self._items.pop(key, None)
            self._weight -= old[1] if old is not None else 0


@dataclass(frozen=True, slots=True)
class Kept:
    """An answer, and until when it is used without looking again: its own ``until``, or less if HTTP says so.

    ``lists`` is ``StatusStore.lists`` when it was worked out: CRLs that come later may say more. ``signer`` is the serial number of a
    delegated OCSP signer. ``under`` is the policy for which alone it counts, if it took a signer that another policy might not.
    """

    basis: Basis
    fresh_until: datetime
    lists: int = -1
    signer: int | None = None
    under: Policy | None = None


@dataclass(frozen=True, slots=True)
class KeptCrl:
    """A list whose signature is verified, and until when it is used without looking again."""

    crl: LoadedCrl
    fresh_until: datetime


Link = tuple[bytes, bytes]
"""A certificate by SHA-256, and the key of its issuer by SHA-256."""


class StatusStore:
    """One for the life of a program; any number of threads and event loops may share it.

    Args:
        max_answers: OCSP answers and results of CRLs kept; about 600 octets each.
        max_octets: memory of the CRLs kept (28 octets an entry).
        max_pushed: pushes kept; about 400 octets each.
    """

    def __init__(self, *, max_answers: int = 100_000, max_octets: int = 256 << 20, max_pushed: int = 500_000) -> None:
        self.answers: Bounded[Link, Kept] = Bounded(max_answers)
        self.crls: Bounded[str | bytes, KeptCrl] = Bounded(max_octets)
        self.refusals: Bounded[tuple[str, bytes], tuple[float, Text]] = Bounded(10_000)
        self.changes = 0
        """Rises with every push that changed something: who keeps verdicts looks at it."""
        self.lists = 0
        """Rises with every CRL that is fetched."""
        self._pushed: Bounded[tuple[bytes, int], Pushed] = Bounded(max_pushed)
        self._forgotten: dict[bytes, datetime] = {}
        self._lock = Lock()

    def keep_list(self, url: str, crl: LoadedCrl, fresh_until: datetime) -> None:
        """Keeps the CRL of ``url`` in place of the one that was there."""
        self.crls.put(url, KeptCrl(crl, fresh_until), crl.octets)
        with self._lock:
            self.lists += 1

    def keep_answer(self, link: Link, kept: Kept) -> None:
        """Keeps an answer about a certificate; a revocation gives way to nothing: it is for ever."""
        known = self.answers.get(link)
        if known is None or known.basis.standing != "revoked" or kept.basis.standing == "revoked":
            self.answers.put(link, kept)

    def push(self, issuer_key: bytes, serial: int, at: datetime, reason: str, now: datetime) -> bool:
        """Takes in one change; False if it was known, or older than what is known."""
        key = issuer_key, serial
        with self._lock:
            known = self._pushed.get(key)
            if known is not None:
                final = known.reason not in (HOLD, RELEASE)
                if final or (reason in (HOLD, RELEASE) and at <= known.at):
                    return False
            for _, lost in self._pushed.put(key, Pushed(issuer_key, serial, at, reason, now)):
                # What was said before it was pushed here may not know of it, whenever it is said to have taken effect.
                latest = max(lost.at, lost.received)
                self._forgotten[lost.issuer_key] = max(latest, self._forgotten.get(lost.issuer_key, latest))
            self.changes += 1
        return True

    async def pull(self, feed: Feed, now: datetime) -> int:
        """Asks ``feed`` for what it has had since the last time and takes it in; how many changes that were. Raises as ``feed``."""
        return sum([self.push(*change, now) for change in await feed.changes()])

    def pushed(self, issuer_key: bytes, serial: int) -> Pushed | None:
        """The change that holds for a certificate, if there was one."""
        return self._pushed.get((issuer_key, serial))

    def overlay(self, basis: Basis | None, issuer_key: bytes, serial: int) -> Basis | None:
        """``basis`` with what was pushed on top of it; None if nothing is left."""
        change = self._pushed.get((issuer_key, serial))
        if change is None and not self._forgotten:
            return basis
        floor = self._forgotten.get(issuer_key)
        if floor is not None and basis is not None and basis.this_update is not None and basis.this_update <= floor:
            basis = basis if basis.standing == "revoked" else None
        if change is None or (basis is not None and basis.standing == "revoked"):
            return basis
        newer = basis is not None and basis.this_update is not None and basis.this_update > change.at
        if change.reason == RELEASE:
            released = basis is not None and basis.standing == "held" and not newer
            return replace(basis, standing="good", revoked_at=None, reason=None) if basis is not None and released else basis
        if change.reason == HOLD and newer:
            return basis
        return Basis(
            standing="held" if change.reason == HOLD else "revoked",
            source="push",
            produced_at=change.received,
            this_update=change.received,
            revoked_at=change.at,
            reason=change.reason,
        )


@lru_cache(maxsize=1024)
def issuer_key(issuer: Certificate) -> bytes:
    """How a push names an authority: SHA-256 of its key bits, the issuerKeyHash of an OCSP CertID (RFC 6960 4.1.1)."""
    return hashlib.sha256(issuer.public_key.key_bits).digest()
