"""One line per event on stderr: for a person, or JSON for a collector."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime


class Log:
    """``event(name, text, **facts)``: ``name`` is stable and for machines, ``text`` for people. No secret is ever a fact.

    Args:
        as_json: one JSON object a line.
        stamped: prefix lines for people with the time (for ``run``, whose lines are read later).
    """

    def __init__(self, *, as_json: bool, stamped: bool = False) -> None:
        self._json, self._stamped = as_json, stamped

    def event(self, name: str, text: str, **facts: object) -> None:
        """Write one line and flush it."""
        moment = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        if self._json:
            line = json.dumps({"time": moment, "event": name, "text": text, **facts}, ensure_ascii=False, default=str)
        else:
            line = f"{moment} {name}: {text}" if self._stamped else text
        print(line, file=sys.stderr, flush=True)
