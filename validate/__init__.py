"""Is this peer certificate good, now, for this purpose, and if not, why?

    from datetime import UTC, datetime
    from pathlib import Path

    from pkix.pem import certificates
    from validate import Policy, validate_sync
    from validate.fetch import HttpFetcher

    def read(file: str) -> list[bytes]:
        return certificates(Path(file).read_bytes())

    result = validate_sync(
        read("device.pem")[0],
        chain=read("chain.pem"),
        trust=read("trust.pem"),
        policy=Policy(purpose="client", names=("uri:urn:ironroot:device:ecc-devices:plc-7",)),
        now=datetime.now(UTC),
        fetch=HttpFetcher(),
    )
    print(result.good, result.reason)          # True  Good: CN=plc-7,…; not revoked (OCSP of http://…)
    print(result.text("zh"))
    for check in result.checks:
        print(check.outcome, check.name, check.text, check.clause)

``validate`` is the same for async code. A verdict is a value; nothing that a certificate or a responder does raises.
``validate.fetch`` is apart, because aiohttp takes its time to import.
"""

from __future__ import annotations

from validate.model import Check, Fetcher, Policy, Purpose, Result, StatusEvidence
from validate.validator import validate, validate_sync

__all__ = ["Check", "Fetcher", "Policy", "Purpose", "Result", "StatusEvidence", "validate", "validate_sync"]
