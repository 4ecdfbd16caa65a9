"""Places where a test ends this process as a power cut would: ``IRONROOT_FAILPOINT=name:kill`` in the environment at start.

    failpoint("hsm.generate.committed")     # what holds if we crash here: the key is on disk, nobody was told

The services have their own (``ca.failpoint``), under the same variable and with other names. Without it this is one comparison.
"""

from __future__ import annotations

import os
import signal

_ARMED = os.environ.get("IRONROOT_FAILPOINT", "")


def failpoint(name: str) -> None:
    """Does nothing, unless the environment named this point: then SIGKILL to ourselves."""
    if _ARMED and f"{name}:kill" == _ARMED:
        os.kill(os.getpid(), signal.SIGKILL)
