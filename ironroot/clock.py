"""The ``Clock`` adapter: the one place where the time of day is read."""

from __future__ import annotations

from datetime import UTC, datetime


class SystemClock:
    """The machine's clock, cut to whole seconds, which is all that X.509 knows."""

    def now(self) -> datetime:
        return datetime.now(UTC).replace(microsecond=0)
