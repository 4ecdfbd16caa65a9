"""Places where a test makes this process fail: ``IRONROOT_FAILPOINT=name:kill|raise|hang`` in the environment at start.

    failpoint("store.intend.committed")     # what holds if we crash here: the intent is durable, nobody was told

With ``IRONROOT_FAILPOINT_ONCE=FILE`` it happens once, to the process that makes FILE, and not again to the one that is started after it.
Without the variable a failpoint is one comparison with None. ``raise`` before a commit is *failed and not kept*, after it *failed
but kept*.
"""

from __future__ import annotations

import os
import signal
import threading

from pkix.errors import Fatal, Unavailable

VARIABLE = "IRONROOT_FAILPOINT"
ONCE = "IRONROOT_FAILPOINT_ONCE"
ACTIONS = ("kill", "raise", "hang")


def _armed(text: str | None) -> tuple[str, str] | None:
    if not text:
        return None
    name, separator, action = text.rpartition(":")
    if not separator or action not in ACTIONS:
        raise Fatal(f"{VARIABLE} is not NAME:{'|'.join(ACTIONS)}. Correct it, or unset it.")
    return name, action


_ARMED = _armed(os.environ.get(VARIABLE))
_MARK = os.environ.get(ONCE)


def failpoint(name: str) -> None:
    """Does nothing, unless the environment named this point when the process started.

    ``kill``: SIGKILL to ourselves, as a power cut would. ``raise``: Unavailable. ``hang``: this thread never goes on.

    Raises:
        Unavailable: the point is armed with ``raise``.
    """
    if _ARMED is None or _ARMED[0] != name or not _first():
        return
    if _ARMED[1] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif _ARMED[1] == "raise":
        raise Unavailable(f"Stopped at failpoint {name}.", retry_after=1)
    threading.Event().wait()


def _first() -> bool:
    if _MARK is None:
        return True
    try:
        os.close(os.open(_MARK, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return False
    return True
