"""Many signatures in one line of the log: what is asked for by strangers, at any rate they like, must not fill a disk.

    summary = Summary(now)
    summary.add("ecc-issuing-ocsp", signing_input, now)
    summary.fields()    # {"purpose": "ocsp", "count": 1, "inputs": "5c…", "first": "…Z", "last": "…Z", "keys": {"ecc-issuing-ocsp": 1}}

``inputs`` is the hex SHA-256 over the SHA-256 digests of all signing inputs, one after the other in the order of signing.
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from hashlib import sha256

SUMMARISED = "ocsp"  # the purpose whose signatures have no line each


def stamp(time: datetime) -> str:
    """How the log writes a time (UTC)."""
    return time.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Summary:
    """Signatures of one purpose since ``first``. At least one has to be added before ``fields``."""

    def __init__(self, first: datetime) -> None:
        self._first = self._last = first
        self._keys: Counter[str] = Counter()
        self._inputs = sha256()

    def add(self, key: str, data: bytes, now: datetime) -> None:
        """Counts a signature with ``key`` over the signing input ``data``."""
        self._last = now
        self._keys[key] += 1
        self._inputs.update(sha256(data).digest())

    def fields(self) -> dict[str, object]:
        """What the line says of them."""
        return {
            "purpose": SUMMARISED,
            "count": self._keys.total(),
            "inputs": self._inputs.hexdigest(),
            "first": stamp(self._first),
            "last": stamp(self._last),
            "keys": dict(self._keys),
        }
