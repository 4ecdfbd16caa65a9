"""The verbs of issuance: ``intend``, ``record``, ``abandon``. Batched: each is a handful of statements for any number of items.

What decides: UNIQUE(token) and UNIQUE(idempotency) on certificates, UNIQUE(authority, serial), and ``WHERE state = 'intended'``. The
look-ups before are there for the sentence that the caller gets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, bindparam, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from ca import records
from ca.group_commit import Verb
from ca.model import Identity, Intent, Issued, Linted, Method, Reason, State, Tbs
from ca.ports import STALE, SerialTaken
from ca.records import among, each
from ca.schema import authorities, certificates, invitations, revocations
from ca.transaction import Transaction
from pkix.errors import Conflict, Fatal, IronrootError, Refused, Unauthenticated

_c = certificates.c
Intending = tuple[Linted, datetime]
Recording = tuple[Intent, bytes, datetime]

LAST_ID = select(func.coalesce(func.max(_c.id), 0))
INVITED = among(select(invitations), invitations.c.token_sha256)
EARLIER = select(
    _c.id,
    _c.authority,
    _c.serial,
    _c.state,
    _c.spki_sha256,
    _c.fleet,
    _c.device,
    _c.method,
    _c.evidence,
    _c.names,
    _c.created,
    _c.taken,
    _c.token,
    _c.idempotency,
    _c.tbs,
    _c.der,
)
BY_TOKEN, BY_IDEMPOTENCY = among(EARLIER, _c.token), among(EARLIER, _c.idempotency)
KEY_USES = among(
    select(_c.spki_sha256, _c.fleet, _c.device, _c.state, revocations.c.reason).select_from(records.JOINED).distinct(), _c.spki_sha256
)
OWN_KEYS = among(select(authorities.c.spki_sha256, authorities.c.key), authorities.c.spki_sha256)
INSERT = insert(certificates)
TAKE = update(certificates).where(_c.id == bindparam("row")).values(taken=bindparam("now"))
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


@dataclass(slots=True)
class Claim:
    """What holds a token or an idempotency value: a certificate of this key and device. ``row`` is None while the batch decides on it."""

    state: str
    spki_sha256: bytes
    device: tuple[str, str]
    taken: datetime
    row: Row[Any] | None


@dataclass(slots=True)
class Known:
    """What the database says about everything that a batch of requests mentions, kept up to date while the batch is decided."""

    invitations: dict[bytes, Row[Any]] = field(default_factory=dict)
    tokens: dict[bytes, Claim] = field(default_factory=dict)
    idempotencies: dict[bytes, Claim] = field(default_factory=dict)
    devices: dict[bytes, set[tuple[str, str]]] = field(default_factory=dict)  # by key
    compromised: set[bytes] = field(default_factory=set)
    own: dict[bytes, set[str | None]] = field(default_factory=dict)


def _known(connection: Connection, wanted: Sequence[Tbs]) -> Known:
    known = Known()

    tokens = [tbs.token for tbs in wanted]
    for row in each(connection, INVITED, tokens):
        known.invitations[row.token_sha256] = row
    for row in each(connection, BY_TOKEN, tokens):
        known.tokens[row.token] = _claim(row)
    for row in each(connection, BY_IDEMPOTENCY, (tbs.idempotency for tbs in wanted)):
        known.idempotencies[row.idempotency] = _claim(row)
    keys = [tbs.spki_sha256 for tbs in wanted]
    for row in each(connection, KEY_USES, keys):
        if row.reason == Reason.keyCompromise:
            known.compromised.add(row.spki_sha256)
        if row.state != State.ABANDONED:
            known.devices.setdefault(row.spki_sha256, set()).add((row.fleet, row.device))
    for row in each(connection, OWN_KEYS, keys):
        known.own.setdefault(row.spki_sha256, set()).add(row.key)
    return known


def _claim(row: Row[Any]) -> Claim:
    return Claim(row.state, row.spki_sha256, (row.fleet, row.device), row.taken, row)


def _intend(transaction: Transaction, items: Sequence[Intending]) -> list[Intent | Issued | Exception]:
    connection = transaction.connection
    known = _known(connection, [linted.tbs for linted, _ in items])
    number = connection.execute(LAST_ID).scalar_one()
    outcomes: list[Intent | Issued | Exception] = []
    new: list[dict[str, Any]] = []
    again: list[dict[str, Any]] = []
    for linted, now in items:
        try:
            earlier = _decide(known, linted.tbs, now)
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


def _decide(known: Known, tbs: Tbs, now: datetime) -> Row[Any] | None:
    """None: go ahead. A row: the certificate, or the intent to finish, that this request had made before."""
    claim = None
    if tbs.idempotency is not None:
        claim = _repeated(known, tbs)
    if claim is None and tbs.token is not None:
        claim = _invited(known, tbs, now)
    if claim is not None and claim.state == State.ISSUED:
        return claim.row
    if claim is not None:
        if now - claim.taken < timedelta(seconds=STALE):
            raise Conflict("The same request is being worked on. Repeat it in a moment.", retry_after=STALE)
        if claim.spki_sha256 != tbs.spki_sha256:
            raise Unauthenticated("This token was used before, with another key. Ask for a new token.")
    _check_key(known, tbs)
    if claim is None:
        return None
    claim.taken = now
    return claim.row


def _repeated(known: Known, tbs: Tbs) -> Claim | None:
    claim = known.idempotencies.get(tbs.idempotency or b"")
    if claim is None:
        return None
    if claim.spki_sha256 != tbs.spki_sha256 or claim.device != (tbs.identity.fleet, tbs.identity.device):
        raise Conflict("A request of this name was made before, for another key or device. Give the new one a name of its own.")
    return claim


def _invited(known: Known, tbs: Tbs, now: datetime) -> Claim | None:
    """The claim on the token of ``tbs``, if there is one. Who does not hold the token learns nothing of it."""
    token, identity = tbs.token or b"", tbs.identity
    invitation = known.invitations.get(token)
    if invitation is None or invitation.fleet != identity.fleet:
        raise Unauthenticated("This token is not known in this fleet. Check that both were copied whole, or ask for a new token.")
    if invitation.device != identity.device:
        raise Unauthenticated("This token was made for another device. Use the one that was made for this serial number.")
    claim = known.tokens.get(token)
    if claim is not None and claim.state == State.ISSUED:
        raise Unauthenticated("This token was used before; each is good for one certificate. Ask for a new token.")
    if claim is None and invitation.expires <= now:
        raise Unauthenticated("This token has expired. Ask for a new token.")
    return claim


def _check_key(known: Known, tbs: Tbs) -> None:
    key, device = tbs.spki_sha256, (tbs.identity.fleet, tbs.identity.device)
    if key in known.compromised:
        raise Refused("This key was revoked because it may be in other hands. Generate a new key.")
    if known.own.get(key, {tbs.key}) != {tbs.key}:  # an authority's key may be certified anew for itself, by its own reference
        raise Refused("This key belongs to an authority. Generate a key of your own.")
    if known.devices.get(key, {device}) != {device}:
        raise Refused("This key is certified for another device. Generate a key for each device, on the device.")


def _begin(transaction: Transaction, known: Known, number: int, tbs: Tbs, now: datetime, new: list[dict[str, Any]]) -> Intent:
    """A new intent: its row for ``new``, its audit entry, and its claims on token, name and key for the rest of the batch."""
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
            "tbs_sha256": tbs_sha256,
            "tbs": tbs.der,
        }
    )
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
    )
    device = (identity.fleet, identity.device)
    claim = Claim(State.INTENDED, tbs.spki_sha256, device, now, None)
    if tbs.token is not None:
        known.tokens[tbs.token] = claim
    if tbs.idempotency is not None:
        known.idempotencies[tbs.idempotency] = claim
    known.devices.setdefault(tbs.spki_sha256, set()).add(device)
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
    """Ends an intent that was never signed. Its serial stays dead; token and name are good again. Does nothing if it is not unfinished."""
    if transaction.connection.execute(ABANDON, {"row": intent.id}).rowcount:
        subject = subject_of(intent.authority, intent.serial)
        transaction.audit(actor_of(intent.identity), "certificate.abandoned", subject, now, id=intent.id)
