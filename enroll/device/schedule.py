"""When to renew, and how long to wait before trying again."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from random import SystemRandom
from typing import TypeVar

from pkix.certificate import Certificate
from pkix.errors import Conflict, IronrootError, Limited, Pending, Unavailable

LONGEST_WAIT = 3600.0
_SHORTEST_WAIT = 0.2

_random = SystemRandom()
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Renewal:
    """From ``after`` of a certificate's life on a fleet renews, spread over the next ``window`` of it. Both are fractions.

    The defaults are for a server that does not say.
    """

    after: float = 2 / 3
    window: float = 0.05

    def __str__(self) -> str:
        return f"{self.after} {self.window}"


def parse_renewal(text: str) -> Renewal:
    """What the server says (header ``Ironroot-Renew: <after> <window>``); the defaults if that is nothing, nonsense, or unsafe.

    Unsafe is what would renew all the time, or so late that a fleet runs out of certificates; the server's own fleets are held to the same.
    """
    try:
        after, window = map(float, text.split())
    except ValueError:
        return Renewal()
    sane = 0.1 <= after <= 0.9 and 0 < window <= 0.5 and round(after + window, 6) <= 0.95
    return Renewal(after, window) if sane else Renewal()


def renew_at(certificate: Certificate, serial: str, renewal: Renewal) -> datetime:
    """The moment from which this device renews: ``after`` of the lifetime, plus the part of ``window`` that a hash of its serial gives.

    The spread is fixed per device, so that a fleet enrolled in one shift does not come back in one second, and stays flat over the years.
    """
    position = int.from_bytes(hashlib.sha256(serial.encode()).digest()[:8]) / 2**64
    lifetime = certificate.not_after - certificate.not_before
    moment: datetime = certificate.not_before + lifetime * (renewal.after + renewal.window * position)
    return moment.replace(microsecond=0)


class Backoff:
    """Waiting times: what the server asks for (plus a tenth of spread), else exponential with full jitter; never above an hour."""

    def __init__(self, first: float = 1.0, cap: float = LONGEST_WAIT) -> None:
        self._first, self._cap, self._failures = first, cap, 0

    def next(self, retry_after: int | None) -> float:
        """Seconds to wait after one more failure."""
        if retry_after is not None:
            wait = retry_after * (1 + _random.uniform(0, 0.1))
        else:
            wait = _random.uniform(0, min(self._cap, self._first * 2 ** min(self._failures, 20)))
            self._failures += 1
        return min(self._cap, max(_SHORTEST_WAIT, wait))


def persist(
    action: Callable[[], T],
    *,
    seconds: float,
    approval: bool,
    tell: Callable[[IronrootError, float], None],
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Repeat ``action`` while it fails for reasons that pass, for ``seconds`` at most.

    Args:
        action: must be safe to repeat: all its state is on disk.
        seconds: 0 tries once. A wait that would end later than this is not begun.
        approval: whether to wait for an administrator's approval, too.
        tell: called before each wait with the reason and the seconds.

    Raises:
        Unavailable, Limited, Pending, a Conflict that the server said would pass (``retry_after``): still so at the end.
        Everything else at once.
    """
    passing = (Unavailable, Limited, Conflict, Pending) if approval else (Unavailable, Limited, Conflict)
    backoff, end = Backoff(), time.monotonic() + seconds
    while True:
        try:
            return action()
        except passing as reason:
            if isinstance(reason, Conflict) and reason.retry_after is None:
                raise
            wait = backoff.next(reason.retry_after)
            if time.monotonic() + wait > end:
                raise
            tell(reason, wait)
        sleep(wait)
