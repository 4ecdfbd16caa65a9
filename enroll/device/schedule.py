"""When to renew, and how long to wait before trying again."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from datetime import datetime
from random import SystemRandom
from typing import TypeVar

from pkix.certificate import Certificate
from pkix.errors import IronrootError, Limited, Pending, Unavailable

AFTER, WIDTH = 2 / 3, 0.05
LONGEST_WAIT = 3600.0
_SHORTEST_WAIT = 0.2

_random = SystemRandom()
T = TypeVar("T")


def renew_at(certificate: Certificate, serial: str) -> datetime:
    """The moment from which this device renews: two thirds of the lifetime, plus up to a twentieth by a hash of its serial.

    The spread is fixed per device, so that a fleet enrolled in one shift does not come back in one second, and stays flat over the years.
    """
    position = int.from_bytes(hashlib.sha256(serial.encode()).digest()[:8]) / 2**64
    lifetime = certificate.not_after - certificate.not_before
    moment: datetime = certificate.not_before + lifetime * (AFTER + WIDTH * position)
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
        Unavailable, Limited, Pending: still so at the end. Everything else at once.
    """
    passing = (Unavailable, Limited, Pending) if approval else (Unavailable, Limited)
    backoff, end = Backoff(), time.monotonic() + seconds
    while True:
        try:
            return action()
        except passing as reason:
            wait = backoff.next(reason.retry_after)
            if time.monotonic() + wait > end:
                raise
            tell(reason, wait)
        sleep(wait)
