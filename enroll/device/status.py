"""``ironroot-device status``: what the folder holds, and whether it is good. Reads only; asks nobody."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any

from enroll.device.agent import Agent
from enroll.device.credential import Credential, find_path, load_certificates
from enroll.device.folder import ENROLL, Folder
from enroll.device.log import Log
from pkix import pem
from pkix.errors import IronrootError, NotFound, NotValid, Pending


def report(folder: Folder) -> tuple[dict[str, Any], int]:
    """The state as plain values, and the exit code: 0 good, 3 nothing set up, 6 not enrolled yet, 8 the certificate is not good.

    ``state`` is ``none``, ``pending`` (set up, no certificate yet), ``enrolled`` or ``invalid`` (``problem`` says why; an expired one too).
    """
    if folder.settings is None:
        return {"state": "none", "problem": "nothing is set up here; begin with `ironroot-device up`"}, NotFound.exit_code
    agent = Agent(folder, Log(as_json=True))
    found: dict[str, Any] = {
        "state": "pending",
        "problem": None,
        "url": agent.settings.url,
        "fleet": agent.settings.fleet,
        "serial": agent.settings.serial,
        "algorithm": str(agent.settings.algorithm),
        "certificate": None,
        "renew_at": None,
        "renewal_due": False,
        "unfinished": _unfinished(folder),
        "ca_sha256": [hashlib.sha256(der).hexdigest() for der in pem.certificates(folder.tls_trust)] if folder.tls_trust else [],
        "clock_behind": agent.clock.behind,
    }
    credential, now = agent.credential(), agent.clock.now()
    if credential is None:
        return found, Pending.exit_code
    due = agent.renewal_of(credential)
    found |= {"state": "enrolled", "certificate": _described(credential), "renew_at": _text(due), "renewal_due": now >= due}
    try:
        roots = load_certificates(credential.certificate_file.with_name("trust.pem"))
        find_path(credential.certificate, credential.chain, roots, now)
    except IronrootError as problem:
        return found | {"state": "invalid", "problem": str(problem)}, NotValid.exit_code
    return found, 0


def _unfinished(folder: Folder) -> str | None:
    request = folder.next.request if folder.next else None
    if request is None:
        return "enrolment" if folder.token else None
    return "enrolment" if request.operation == ENROLL else "renewal"


def _described(credential: Credential) -> dict[str, Any]:
    certificate = credential.certificate
    return {
        "serial": f"{certificate.serial:x}",
        "subject": certificate.subject.text,
        "issuer": certificate.issuer.text,
        "names": list(certificate.names),
        "not_before": _text(certificate.not_before),
        "not_after": _text(certificate.not_after),
        "sha256": certificate.sha256.hex(),
        "key_sha256": certificate.public_key.sha256.hex(),
    }


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
