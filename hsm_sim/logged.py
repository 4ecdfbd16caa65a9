"""What the audit log says of the database: how often each partition had changed, so that an older copy of ``hsm.db`` is known for one.

Every change's line has its ``counter``, and each start's line "counters" has those of all partitions; so only what came after the last
start is searched.
"""

from __future__ import annotations

import json
from pathlib import Path

from hsm_sim.audit import LOG
from hsm_sim.chain import chain_files

_ALL, _ONE = b',"counters":{', b',"counter":'  # as they stand in a line; in a text the quotes would be escaped


def logged(home: Path) -> dict[str, int]:
    """The last counter of each partition by name; {} where there is no log. Raises OSError."""
    found: dict[str, int] = {}
    for file in reversed(chain_files(home / LOG)):
        octets = file.read_bytes()
        place = octets.rfind(_ALL)
        start = octets.rfind(b"\n", 0, place) + 1 if place >= 0 else 0
        said: dict[str, int] = {}
        for line in octets[start:].split(b"\n"):
            if _ONE in line or _ALL in line:
                _add(line, said)
        found = said | found
        if place >= 0:
            break
    return found


def _add(line: bytes, said: dict[str, int]) -> None:
    """What one line says, over what those before it said. A torn line is no line."""
    try:
        members = json.loads(line)
        if "counters" in members:
            said.clear()
            said.update({str(name): int(counter) for name, counter in members["counters"].items()})
        else:
            said[str(members["partition"])] = int(members["counter"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return
