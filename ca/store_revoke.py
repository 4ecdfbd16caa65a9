"""The verbs of revocation and of CRLs. Each change raises its authority's ``revision``: a CRL begun before is then stale."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from ca import records
from ca.model import CrlRecord, Reason, Record
from ca.schema import crls, revisions, revocations
from ca.store_issue import US, subject_of
from ca.transaction import Transaction
from pkix.crl import CrlEntry
from pkix.errors import Conflict, Malformed, NotFound

_c, _r = crls.c, revocations.c
THIS_ROW = (_r.authority == bindparam("row_authority"), _r.serial == bindparam("row_serial"))
INSERT = insert(revocations)
FINAL = update(revocations).where(*THIS_ROW).values(reason=bindparam("why"), invalidity=bindparam("since"), revision=bindparam("change"))
LIFT = delete(revocations).where(*THIS_ROW)
LATEST = select(crls).where(_c.this_update.is_not(None)).order_by(_c.number.desc()).limit(1)
NEVER = datetime(1, 1, 1, tzinfo=UTC)


def revoke(
    transaction: Transaction, ids: Sequence[int], reason: Reason, now: datetime, *, actor: str, invalidity: datetime | None = None
) -> list[Record]:
    """See ``ca.ports.Store.revoke``. A hold that becomes final keeps its date: since then nobody was to rely on it."""
    if reason is Reason.removeFromCRL:
        raise Malformed("removeFromCRL is not a reason to revoke. To lift a hold, unhold the certificate.")
    found = _all_of(transaction.connection, ids)
    new = [record for record in found if record.revocation is None]
    final = [record for record in found if _becomes_final(record, reason)]
    changes = _raise_revisions(transaction.connection, new + final)
    if new:
        transaction.connection.execute(
            INSERT,
            [
                {
                    "authority": record.authority,
                    "serial": record.serial,
                    "at": now,
                    "reason": reason.value,
                    "invalidity": invalidity,
                    "not_after": record.not_after,
                    "revision": changes[record.authority],
                }
                for record in new
            ],
        )
    if final:
        own: dict[str, Any] = {"why": reason.value, "since": invalidity}
        transaction.connection.execute(FINAL, [{**_row(record), **own, "change": changes[record.authority]} for record in final])
    for record in new + final:
        since = {} if invalidity is None else {"invalidity": int(invalidity.timestamp())}
        _say(transaction, actor, "certificate.revoked", record, now, reason=reason.name, **since)
    return records.by_ids(transaction.connection, ids)


def unhold(transaction: Transaction, ids: Sequence[int], now: datetime, *, actor: str) -> list[Record]:
    """See ``ca.ports.Store.unhold``. One that is not revoked stays as it is."""
    found = _all_of(transaction.connection, ids)
    for record in found:
        if record.revocation is not None and record.revocation.reason is not Reason.certificateHold:
            reason = record.revocation.reason.name
            raise Conflict(f"Certificate {record.serial:x} is revoked for good ({reason}); only a hold can be lifted.")
    held = [record for record in found if record.revocation is not None]
    _raise_revisions(transaction.connection, held)
    if held:
        transaction.connection.execute(LIFT, [_row(record) for record in held])
    for record in held:
        _say(transaction, actor, "certificate.unheld", record, now)
    return records.by_ids(transaction.connection, ids)


def _all_of(connection: Connection, ids: Sequence[int]) -> list[Record]:
    wanted = list(dict.fromkeys(ids))
    found = records.by_ids(connection, wanted)
    if len(found) != len(wanted):
        missing = min(set(wanted) - {record.id for record in found})
        raise NotFound(f"There is no certificate number {missing}. Nothing was changed.")
    return found


def _becomes_final(record: Record, reason: Reason) -> bool:
    held = record.revocation is not None and record.revocation.reason is Reason.certificateHold
    return held and reason is not Reason.certificateHold


def _row(record: Record) -> dict[str, Any]:
    return {"row_authority": record.authority, "row_serial": record.serial}


def _say(transaction: Transaction, actor: str, action: str, record: Record, now: datetime, **detail: object) -> None:
    subject = subject_of(record.authority, record.serial)
    transaction.audit(actor, action, subject, now, id=record.id, fleet=record.fleet, device=record.device, **detail)


def _raise_revisions(connection: Connection, changed: Sequence[Record]) -> dict[str, int]:
    """Raises the revision of every authority of ``changed`` by one. Returns the new ones."""
    raised = {}
    for authority in sorted({record.authority for record in changed}):
        raised[authority] = revision(connection, authority) + 1
        statement = update(revisions).where(revisions.c.authority == authority).values(revision=raised[authority])
        if not connection.execute(statement).rowcount:
            connection.execute(insert(revisions).values(authority=authority, revision=raised[authority]))
    return raised


def revision(connection: Connection, authority: str) -> int:
    """How many times the revocations of ``authority`` changed."""
    return connection.execute(select(revisions.c.revision).where(revisions.c.authority == authority)).scalar() or 0


def next_crl_number(transaction: Transaction, authority: str) -> int:
    """Reserves the next number, and notes the revision: entries that are read after this show it, or a later one."""
    connection = transaction.connection
    last = connection.execute(select(func.max(_c.number)).where(_c.authority == authority)).scalar() or 0
    connection.execute(insert(crls).values(authority=authority, number=last + 1, revision=revision(connection, authority)))
    return int(last) + 1


def publish_crl(transaction: Transaction, crl: CrlRecord, now: datetime) -> None:
    """See ``ca.ports.Store.publish_crl``. The octets of the CRL before it go; its number, times and digest stay."""
    connection = transaction.connection
    latest = connection.execute(LATEST.where(_c.authority == crl.authority)).first()
    if latest is not None and crl.number <= latest.number:
        raise Conflict(f"CRL {crl.number} of {crl.authority} comes after {latest.number} was published. Make a new one.")
    digest = hashlib.sha256(crl.der).digest()
    fields = {"this_update": crl.this_update, "next_update": crl.next_update, "entries": crl.entries, "sha256": digest, "der": crl.der}
    reserved = (_c.authority == crl.authority, _c.number == crl.number)
    if not connection.execute(update(crls).where(*reserved).values(fields)).rowcount:
        raise Conflict(f"CRL number {crl.number} of {crl.authority} was never reserved. Ask for the next number first.")
    if latest is not None:
        connection.execute(update(crls).where(_c.authority == crl.authority, _c.number == latest.number).values(der=None))
    subject = f"{crl.authority}/crl/{crl.number}"
    detail: dict[str, object] = {"entries": crl.entries, "sha256": digest.hex()}
    if latest is not None and crl.this_update < latest.this_update:
        detail["dated_before"] = latest.number  # the clock was ahead, or is behind: number and revocations go on rising all the same
    transaction.audit(US, "crl.published", subject, now, **detail)


def latest_crl(connection: Connection, authority: str) -> CrlRecord | None:
    """The published CRL with the highest number."""
    row = connection.execute(LATEST.where(_c.authority == authority)).first()
    return None if row is None else CrlRecord(row.authority, row.number, row.der, row.this_update, row.next_update, row.entries)


def latest_crl_number(connection: Connection, authority: str) -> int | None:
    """Its number alone."""
    latest = select(func.max(_c.number)).where(_c.authority == authority, _c.this_update.is_not(None))
    number = connection.execute(latest).scalar()
    return None if number is None else int(number)


def crl_is_stale(connection: Connection, authority: str) -> bool:
    """Whether the published CRL was begun before the last change, or there is none."""
    shown = connection.execute(LATEST.with_only_columns(_c.revision).where(_c.authority == authority)).scalar()
    return shown is None or shown != revision(connection, authority)


def entries_after(connection: Connection, authority: str, serial: int, limit: int) -> list[CrlEntry]:
    """The next ``limit`` entries for a CRL with serials above ``serial``, ascending.

    Left out are certificates that expired and were on a CRL since (RFC 5280 3.3: an entry stays until one CRL after expiry).
    """
    latest = connection.execute(LATEST.with_only_columns(_c.this_update, _c.revision).where(_c.authority == authority)).first()
    this_update, shown = (latest.this_update, latest.revision) if latest else (NEVER, -1)
    statement = (
        select(_r.serial, _r.at, _r.reason, _r.invalidity)
        .where(_r.authority == authority, _r.serial > serial, (_r.not_after >= this_update) | (_r.revision > shown))
        .order_by(_r.serial)
        .limit(limit)
    )
    return [CrlEntry(row.serial, row.at, row.reason, row.invalidity) for row in connection.execute(statement)]
