"""Is this peer certificate good, now, for this purpose, and if not, why?

    from datetime import UTC, datetime
    from pathlib import Path

    from pkix.pem import certificates
    from validate import Expected, Memory, Policy, anchors, validate_sync

    policy = Policy(anchors=anchors(*certificates(Path("trust.pem").read_bytes())), status="none")   # both for the life
    memory = Memory()                                                                                # of the program
    result = validate_sync(
        certificates(Path("device.pem").read_bytes()),         # the end entity first, then whatever came with it, in any order
        purpose="tls-client",
        expected=Expected("device:ecc-devices/plc-7"),
        now=datetime.now(UTC),
        policy=policy,
        memory=memory,
    )
    print(result.good, result.sentence("en"))                  # True  Good: CN=plc-7,…, issued by …
    for check in result.checks:
        print(check.outcome, check.name, check.index, check.detail.en, check.clause)

``validate`` is the same for async code. A verdict is a value; nothing that a certificate or a responder does raises.
``validate.status.Revocation`` finds out about revocation; it is given as ``status``, and ``Policy.status`` says what is asked of it.
"""

from __future__ import annotations

from validate.memory import Memory
from validate.model import (
    ANYBODY,
    Anchor,
    Basis,
    Check,
    Expected,
    Fetcher,
    Policy,
    Purpose,
    Question,
    Result,
    Status,
    anchors,
)
from validate.validator import validate, validate_sync

__all__ = [
    "ANYBODY",
    "Anchor",
    "Basis",
    "Check",
    "Expected",
    "Fetcher",
    "Memory",
    "Policy",
    "Purpose",
    "Question",
    "Result",
    "Status",
    "anchors",
    "validate",
    "validate_sync",
]
