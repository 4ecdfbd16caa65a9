"""The simulated HSM: a process of its own in which keys are born and which they never leave.

    python -m hsm_sim init --home DIR      # once: device secret, PIN, empty token; harmless when repeated
    python -m hsm_sim --home DIR           # serves DIR/native.sock, prints "ready"

``initialise(home)`` is the first of the two as a function. What is where: ``wire`` frames, ``token`` PIN and state, ``vault`` keys and
their files, ``signlog`` the record of signatures, ``signing`` micro-batches, ``native`` the socket. See docs/hsm.md.
"""

from hsm_sim.token import initialise

__all__ = ["initialise"]
