"""Time on a device that may have no battery behind its clock.

The system clock can be far behind (1970 after a power cut) but time itself never runs backwards, so every authentic moment that we have
seen is a lower bound: the date of our own package, the last date of a server that we verified, the notBefore of our certificate.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path


class Clock:
    """The system clock, or the highest lower bound plus the time since we learnt it, whichever is later."""

    def __init__(self, *bounds: datetime | None) -> None:
        self._floor = datetime.fromtimestamp(0, UTC)
        self._learnt = _elapsed()
        for bound in (package_date(), *bounds):
            self.learn(bound)

    def now(self) -> datetime:
        """The best estimate of the time, aware, UTC."""
        return max(datetime.now(UTC), self.floor)

    @property
    def floor(self) -> datetime:
        """The time is at least this."""
        return self._floor + timedelta(seconds=_elapsed() - self._learnt)

    @property
    def behind(self) -> bool:
        """Whether the system clock is known to be wrong, by more than a minute."""
        return datetime.now(UTC) < self.floor - timedelta(minutes=1)

    def learn(self, moment: datetime | None) -> None:
        """Take ``moment``, from an authentic source, as a lower bound. Does nothing if we knew better."""
        if moment is not None and moment > self.floor:
            self._floor, self._learnt = moment, _elapsed()


def _elapsed() -> float:
    """Seconds since some moment in the past; goes on while the device sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def package_date() -> datetime:
    """When this package was put on the device: the modification time of its own file."""
    return datetime.fromtimestamp(int(Path(__file__).stat().st_mtime), UTC)
