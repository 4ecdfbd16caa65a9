"""Named points at which a test cuts the power: ``IRONROOT_DEVICE_FAILPOINT=swapped:kill`` dies there by SIGKILL."""

from __future__ import annotations

import os
import signal

VARIABLE = "IRONROOT_DEVICE_FAILPOINT"

POINTS = (
    "settings-saved",  # url, fleet, serial are on disk; nothing else is
    "token-saved",
    "trust-saved",  # the server's root is pinned
    "key-made",  # the new key is on disk, but no ``next`` names it: it is swept
    "staged",  # ``next`` exists with key, CSR and idempotency key; no request was sent
    "asked",  # the request was answered and the answer is lost
    "answer-half-stored",  # chain and trust are in ``next``, the certificate is not
    "answer-stored",
    "tried",  # the new credential has been tried; the old one is still current
    "previous-set",
    "swapped",  # the new one is current; the token and the traces of the request remain
    "token-removed",
)


def reached(name: str) -> None:
    """Die here, as if the power went, when the environment names this point. Does nothing otherwise."""
    if os.environ.get(VARIABLE) == f"{name}:kill":
        os.kill(os.getpid(), signal.SIGKILL)
