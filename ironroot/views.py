"""How records are shown: the stable JSON that commands print."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from ca.model import Application, Authority, CrlRecord, Reason, Record, State
from pkix import pem


def moment(value: datetime | None) -> str | None:
    """ISO 8601 in UTC, to the second."""
    return None if value is None else value.strftime("%Y-%m-%dT%H:%M:%SZ")


def authority(value: Authority) -> dict[str, Any]:
    """An authority, certificate included."""
    certificate = value.certificate
    return {
        "id": value.id,
        "subject": certificate.subject.text,
        "algorithm": str(certificate.public_key.kind),
        "issuer": value.parent,
        "key": value.key,
        "successor": value.successor,
        "serial": serial(certificate.serial),
        "not_before": moment(certificate.not_before),
        "not_after": moment(certificate.not_after),
        "sha256": certificate.sha256.hex(),
        "certificate": pem.encode("CERTIFICATE", certificate.der),
    }


def serial(value: int) -> str:
    """A certificate's serial number: lower-case hex, whole octets."""
    digits = f"{value:x}"
    return digits if len(digits) % 2 == 0 else "0" + digits


def status(record: Record, now: datetime) -> str:
    """One word: good, held, revoked, expired, intended, abandoned."""
    if record.revocation is not None:
        return "held" if record.revocation.reason is Reason.certificateHold else "revoked"
    if record.state is not State.ISSUED:
        return str(record.state)
    return "expired" if now > record.not_after else "good"


def certificate(record: Record, now: datetime, *, full: bool = False) -> dict[str, Any]:
    """A certificate; with its PEM where ``full``."""
    revocation = record.revocation
    shown: dict[str, Any] = {
        "serial": serial(record.serial),
        "status": status(record, now),
        "fleet": record.fleet,
        "device": record.device,
        "subject": record.subject,
        "authority": record.authority,
        "profile": record.profile,
        "method": str(record.method),
        "not_before": moment(record.not_before),
        "not_after": moment(record.not_after),
        "issued": moment(record.created),
        "names": list(record.names),
        "sha256": None if record.sha256 is None else record.sha256.hex(),
        "revoked_at": None if revocation is None else moment(revocation.at),
        "reason": None if revocation is None else revocation.reason.name,
        "invalidity_date": None if revocation is None else moment(revocation.invalidity),
    }
    if full:
        shown["certificate"] = None if record.der is None else pem.encode("CERTIFICATE", record.der)
    return shown


def application(value: Application) -> dict[str, Any]:
    """A request that waits, or waited, for an administrator."""
    return {
        "id": value.id,
        "fleet": value.fleet,
        "device": value.device,
        "decision": str(value.decision),
        "method": str(value.method),
        "spki_sha256": value.spki_sha256.hex(),
        "created": moment(value.created),
        "decided": moment(value.decided),
    }


def crl(value: CrlRecord) -> dict[str, Any]:
    """A published CRL, its DER as PEM."""
    return {
        "authority": value.authority,
        "number": value.number,
        "this_update": moment(value.this_update),
        "next_update": moment(value.next_update),
        "entries": value.entries,
        "crl": pem.encode("X509 CRL", value.der),
    }
