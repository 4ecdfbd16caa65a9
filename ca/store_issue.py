"""The verbs of issuance: ``intend``, ``record``, ``abandon``. Batched: each is a handful of statements for any number of items.

What decides: UNIQUE(token) and UNIQUE(idempotency) on certificates, UNIQUE(authority, serial), ``WHERE state = 'intended'`` and
``WHERE decision = 'approved'``, and the history of key and device, read under the same lock (``ca.store_admit``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from ca import records
from ca.group_commit import Verb
from ca.model import Decision, Identity, Intent, Issued, Linted, Method, State, Tbs
from ca.ports import SerialTaken
from ca.records import among, each
from ca.schema import applications, certificates
from ca.store_admit import Known, decide, look_up
from ca.transaction import Transaction
from pkix.errors import Conflict, Fatal, IronrootError, Refused

_c = certificates.c
Intending = tuple[Linted, datetime]
Recording = tuple[Intent, bytes, datetime]

LAST_ID = select(func.coalesce(func.max(_c.id), 0))
INSERT = insert(certificates)
TAKE = update(certificates).where(_c.id == bindparam("row")).values(taken=bindparam("now"))
SPEND = (
    update(applications)
    .where(applications.c.id == bindparam("application"), applications.c.decision == Decision.APPROVED.value)
    .values(decision=Decision.USED.value)
)
GIVE_BACK = (
    update(applications)
    .where(
        applications.c.id == select(_c.application).where(_c.id == bindparam("row")).scalar_subquery(),
        applications.c.decision == Decision.USED.value,
    )
    .values(decision=Decision.APPROVED.value)
)
FINISHED = among(select(_c.id, _c.authority, _c.serial, _c.state, _c.der), _c.id)
RECORD = (
    update(certificates)
    .where(_c.id == bindparam("row"), _c.state == State.INTENDED.value)
    .values(state=State.ISSUED.value, tbs=None, der=bindparam("bytes"), sha256=bindparam("digest"), issued=bindparam("now"))
)
ABANDON = (
    update(certificates)
    .where(_c.id == bindparam("row"), _c.state == State.INTENDED.value)
    .values(state=State.ABANDONED.value, tbs=None, token=None, idempotency=None)
)


US = "ironroot"  # the actor of what nobody asked for


def actor_of(identity: Identity) -> str:
    """How the audit calls whoever was authenticated."""
    return US if identity.method is Method.SERVICE else f"device:{identity.fleet}/{identity.device}"


def subject_of(authority: str, serial: int) -> str:
    """How the audit calls a certificate."""
    return f"{authority}/{serial:x}"


def _intend(transaction: Transaction, items: Sequence[Intending]) -> list[Intent | Issued | Exception]:
    connection = transaction.connection
    known = look_up(connection, [linted.tbs for linted, _ in items])
    number = connection.execute(LAST_ID).scalar_one()
    outcomes: list[Intent | Issued | Exception] = []
    new: list[dict[str, Any]] = []
    again: list[dict[str, Any]] = []
    for linted, now in items:
        try:
            earlier = decide(known, linted.tbs, now)
            if earlier is None:
                _spend(connection, linted.tbs)
        except IronrootError as error:
            outcomes.append(error)
            continue
        if earlier is None:
            number += 1
            outcomes.append(_begin(transaction, known, number, linted.tbs, now, new))
        elif earlier.state == State.ISSUED:
            outcomes.append(records.issued_of(earlier))
        else:
            outcomes.append(records.intent_of(earlier))
            again.append({"row": earlier.id, "now": now})
    if new:
        try:
            connection.execute(INSERT, new)
        except IntegrityError as error:
            if len(items) > 1:
                raise  # each is done alone then
            raise SerialTaken("This serial number is taken. Draw another one.", retry_after=0) from error
    if again:
        connection.execute(TAKE, again)
    return outcomes


def _spend(connection: Connection, tbs: Tbs) -> None:
    """Uses up the approval of a request that had to have one: each is good for one certificate."""
    if tbs.application is not None and not connection.execute(SPEND, {"application": tbs.application}).rowcount:
        raise Refused("The approval for this key was used for a certificate before. Make a new key and ask again.")


def _begin(transaction: Transaction, known: Known, number: int, tbs: Tbs, now: datetime, new: list[dict[str, Any]]) -> Intent:
    """A new intent: its row for ``new``, its audit entry, and its claims for the rest of the batch."""
    identity = tbs.identity
    now = now.replace(microsecond=0)
    tbs_sha256 = hashlib.sha256(tbs.der).digest()
    new.append(
        {
            "id": number,
            "authority": tbs.authority,
            "serial": tbs.serial,
            "state": State.INTENDED.value,
            "spki_sha256": tbs.spki_sha256,
            "subject": tbs.subject,
            "fleet": identity.fleet,
            "device": identity.device,
            "method": identity.method.value,
            "evidence": identity.evidence,
            "names": identity.names,
            "profile": tbs.profile,
            "profile_hash": tbs.profile_hash,
            "not_before": tbs.not_before,
            "not_after": tbs.not_after,
            "created": now,
            "taken": now,
            "key": tbs.key,
            "token": tbs.token,
            "idempotency": tbs.idempotency,
            "application": tbs.application,
            "tbs_sha256": tbs_sha256,
            "tbs": tbs.der,
        }
    )
    approval = {} if tbs.application is None else {"application": tbs.application}
    transaction.audit(
        actor_of(identity),
        "certificate.intended",
        subject_of(tbs.authority, tbs.serial),
        now,
        id=number,
        fleet=identity.fleet,
        device=identity.device,
        method=identity.method.value,
        evidence=identity.evidence,
        profile=tbs.profile,
        profile_sha256=tbs.profile_hash.hex(),
        tbs_sha256=tbs_sha256.hex(),
        **approval,
    )
    known.begin(tbs, now)
    return Intent(number, tbs.authority, tbs.serial, tbs.der, identity, now)


def _record(transaction: Transaction, items: Sequence[Recording]) -> list[Issued | Exception]:
    connection = transaction.connection
    rows = {row.id: row for row in each(connection, FINISHED, (intent.id for intent, _, _ in items))}
    outcomes: list[Issued | Exception] = []
    done: dict[int, Issued] = {}
    changes: list[dict[str, Any]] = []
    for intent, der, now in items:
        row = rows.get(intent.id)
        if intent.id in done:
            outcomes.append(done[intent.id])
        elif row is None:
            outcomes.append(Fatal("A certificate was signed whose intent is not in the database. Was it restored from a backup?"))
        elif row.state == State.ISSUED:
            outcomes.append(records.issued_of(row))
        elif row.state == State.ABANDONED:
            outcomes.append(Conflict("This request was given up in the meantime; its certificate must not be used. Make a new request."))
        else:
            digest = hashlib.sha256(der).digest()
            changes.append({"row": intent.id, "bytes": der, "digest": digest, "now": now})
            subject = subject_of(row.authority, row.serial)
            transaction.audit(actor_of(intent.identity), "certificate.issued", subject, now, id=row.id, sha256=digest.hex())
            done[intent.id] = Issued(intent.id, row.authority, row.serial, der)
            outcomes.append(done[intent.id])
    if changes and connection.execute(RECORD, changes).rowcount != len(changes):
        raise Fatal("An intent changed under the lock that guards it: somebody else writes to the database.")
    return outcomes


intend: Verb[Transaction, Intending, Intent | Issued] = Verb("intend", _intend)
record: Verb[Transaction, Recording, Issued] = Verb("record", _record)


def abandon(transaction: Transaction, intent: Intent, now: datetime) -> None:
    """Ends an intent that was never signed. Its serial stays dead; token, name and approval are good again.

    Does nothing if it is not unfinished.
    """
    if transaction.connection.execute(ABANDON, {"row": intent.id}).rowcount:
        transaction.connection.execute(GIVE_BACK, {"row": intent.id})
        subject = subject_of(intent.authority, intent.serial)
        transaction.audit(actor_of(intent.identity), "certificate.abandoned", subject, now, id=intent.id)
