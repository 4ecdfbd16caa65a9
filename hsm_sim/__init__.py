"""The simulated HSM: a process of its own in which keys are born and which they never leave.

    python -m hsm_sim init --home DIR      # once: device secret, PINs, an empty partition; harmless when repeated
    python -m hsm_sim serve --home DIR     # serves DIR/native.sock and DIR/pkcs11.sock, prints "ready"

``initialise(home)`` is the first of the two as a function. What is where: ``device`` the whole, ``partition`` (on ``access``, ``vault`` and
``upkeep``) PINs, objects and keys, ``store`` and ``seal`` what is on disk, ``mechanisms`` what can be done with keys, ``signing``
micro-batches, ``audit`` the record, ``native`` and ``pkcs11`` the doors, ``lab`` faults on purpose. See docs/hsm.md.
"""

from hsm_sim.factory import initialise

__all__ = ["initialise"]
