"""Many signatures in one line of the log: what is asked for by strangers, at any rate they like, must not fill a disk.

    summary = Summary("ironroot", now)
    summary.add("ecc-issuing-ocsp", [signing_input], now)
    summary.members()    # {"op": "sign", "partition": "ironroot", "purpose": "ocsp", "count": 1, "sha256": "5c…", "first": "…Z", …}

``sha256`` is the hex SHA-256 over the SHA-256 digests of all signing inputs, one after the other in the order of signing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from hashlib import sha256

SUMMARISED = "ocsp"  # the purpose whose signatures have no line each


def stamp(time: datetime) -> str:
    """How the log writes a time (UTC)."""
    return f"{time.isoformat(timespec='microseconds')[:26]}Z"


class Summary:
    """Signatures of one purpose in one partition since ``first``. At least one has to be added before ``members``."""

    def __init__(self, partition: str, first: datetime) -> None:
        self._partition = partition
        self._first = self._last = first
        self._keys: Counter[str] = Counter()
        self._inputs = sha256()

    def add(self, key: str, inputs: Iterable[bytes], now: datetime) -> None:
        """Counts signatures with ``key`` over signing inputs."""
        digests = [sha256(data).digest() for data in inputs]
        self._last = now
        self._keys[key] += len(digests)
        self._inputs.update(b"".join(digests))

    def members(self) -> dict[str, object]:
        """What the line says of them."""
        return {
            "op": "sign",
            "partition": self._partition,
            "purpose": SUMMARISED,
            "count": self._keys.total(),
            "sha256": self._inputs.hexdigest(),
            "first": stamp(self._first),
            "last": stamp(self._last),
            "keys": dict(self._keys),
            "result": "ok",
        }
