"""The verbs around enrolment: invitations (one-time tokens), applications that wait for an administrator, authorities, leases."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from ca.group_commit import Verb
from ca.model import Application, Authority, Decision, Identity, Invitation, Method, State
from ca.records import LAST_ID, among, each
from ca.schema import applications, authorities, certificates, invitations, leases, revocations
from ca.store_issue import US, actor_of
from ca.transaction import Transaction
from pkix.certificate import parse_certificate
from pkix.errors import Conflict, Fatal, NotFound

_a, _l, _i = applications.c, leases.c, invitations.c
OF_IT = (certificates.c.token == _i.token_sha256) & (certificates.c.state == State.ISSUED.value)
REVOKED_AUTHORITIES = (
    select(revocations.c.authority, revocations.c.serial)
    .join(certificates, (certificates.c.authority == revocations.c.authority) & (certificates.c.serial == revocations.c.serial))
    .join(authorities, authorities.c.spki_sha256 == certificates.c.spki_sha256)
)
INVITED = among(select(invitations, certificates.c.issued).select_from(invitations.outerjoin(certificates, OF_IT)), _i.token_sha256)
BY_ID = among(select(applications), _a.id)
PENDING = BY_ID.where(_a.decision == Decision.PENDING.value)


def add_authority(transaction: Transaction, authority: Authority, now: datetime) -> None:
    """See ``ca.ports.Store.add_authority``."""
    certificate = authority.certificate
    row = {
        "id": authority.id,
        "certificate": certificate.der,
        "spki_sha256": certificate.public_key.sha256,
        "key": authority.key,
        "parent": authority.parent,
        "created": now,
    }
    try:
        transaction.connection.execute(insert(authorities), row)
    except IntegrityError as error:
        raise Conflict(f"There is an authority {authority.id} already, or none called {authority.parent}.") from error
    detail = {"parent": authority.parent, "sha256": certificate.sha256.hex(), "serial": f"{certificate.serial:x}"}
    transaction.audit(US, "authority.created", authority.id, now, **detail)


def read_authorities(connection: Connection) -> dict[str, Authority]:
    """All authorities by id, parents before children."""
    revoked = {(row.authority, row.serial) for row in connection.execute(REVOKED_AUTHORITIES)}
    waiting = {row.id: row for row in connection.execute(select(authorities).order_by(authorities.c.created, authorities.c.id))}
    found: dict[str, Authority] = {}
    while waiting:
        ready = [row for row in waiting.values() if row.parent == row.id or row.parent in found]
        if not ready:
            raise Fatal("The authorities in the database form a ring: none of " + ", ".join(sorted(waiting)) + " leads to a root.")
        for row in ready:
            del waiting[row.id]
            certificate = parse_certificate(row.certificate)
            above = None if row.parent == row.id else found[row.parent]
            chain = (certificate, *(above.chain if above else ()))
            ended = (row.parent, certificate.serial) in revoked or (above is not None and above.revoked)
            found[row.id] = Authority(row.id, certificate, row.key, row.parent, chain, ended, row.successor)
    return found


def supersede(transaction: Transaction, authority: str, successor: str, now: datetime, *, actor: str) -> None:
    """See ``ca.ports.Store.supersede``."""
    statement = update(authorities).where(authorities.c.id == authority, authorities.c.successor.is_(None)).values(successor=successor)
    if not transaction.connection.execute(statement).rowcount:
        raise Conflict(f"There is no authority {authority}, or it has a successor already.")
    transaction.audit(actor, "authority.superseded", authority, now, successor=successor)


def move_key(transaction: Transaction, authority: Authority, key: str, now: datetime, *, actor: str) -> None:
    """See ``ca.ports.Store.move_key``."""
    statement = update(authorities).where(authorities.c.id == authority.id, authorities.c.key == authority.key).values(key=key)
    if not transaction.connection.execute(statement).rowcount:
        raise Conflict(f"The key of {authority.id} was moved by somebody else meanwhile. Look again where it is.")
    transaction.audit(actor, "authority.moved", authority.id, now, was=authority.key, key=key)


def invite(transaction: Transaction, given: Sequence[Invitation], now: datetime, *, actor: str) -> None:
    """Stores one-time tokens (their hashes). Raises Conflict if one of them is there already."""
    if not given:
        return
    columns = ("token_sha256", "fleet", "device", "names", "created", "expires")
    try:
        transaction.connection.execute(insert(invitations), [{column: getattr(one, column) for column in columns} for one in given])
    except IntegrityError as error:
        raise Conflict("A token like this exists already. Draw another one.") from error
    for one in given:
        detail = {"expires": int(one.expires.timestamp()), "names": list(one.names)}
        transaction.audit(actor, "token.invited", f"{one.fleet}/{one.device}", now, **detail)


def _invitations(connection: Connection, tokens: Sequence[bytes]) -> list[Invitation | Exception | None]:
    found = {
        row.token_sha256: Invitation(row.token_sha256, row.fleet, row.device, row.names, row.created, row.expires, row.issued)
        for row in each(connection, INVITED, tokens)
    }
    return [found.get(token) for token in tokens]


invitation: Verb[Connection, bytes, Invitation | None] = Verb("invitation", _invitations)
"""The invitation of a token; ``used`` is when its certificate was recorded."""


def apply(transaction: Transaction, identity: Identity, spki_sha256: bytes, now: datetime) -> Application:
    """See ``ca.ports.Store.apply``."""
    connection = transaction.connection
    same = (_a.fleet == identity.fleet, _a.device == identity.device, _a.spki_sha256 == spki_sha256)
    row = connection.execute(select(applications).where(*same)).first()
    if row is not None:
        return _application(row)
    number = (connection.execute(select(func.max(_a.id))).scalar() or 0) + 1
    values: dict[str, Any] = {
        "id": number,
        "fleet": identity.fleet,
        "device": identity.device,
        "spki_sha256": spki_sha256,
        "method": identity.method.value,
        "decision": Decision.PENDING.value,
        "created": now,
    }
    connection.execute(insert(applications), values)
    subject = f"{identity.fleet}/{identity.device}"
    transaction.audit(actor_of(identity), "device.applied", subject, now, application=number, spki_sha256=spki_sha256.hex())
    return _application(connection.execute(select(applications).where(_a.id == number)).one())


def decide(transaction: Transaction, ids: Sequence[int], decision: Decision, now: datetime, *, actor: str) -> list[Application]:
    """See ``ca.ports.Store.decide``."""
    connection = transaction.connection
    possible = {number for number in ids if 0 < number <= LAST_ID}
    pending = {row.id: row for row in each(connection, PENDING, possible)}
    if not pending.keys() >= set(ids):
        raise NotFound("A request does not wait for a decision any more. Look again at which do, then decide.")
    for number, row in sorted(pending.items()):
        connection.execute(update(applications).where(_a.id == number).values(decision=decision.value, decided=now))
        subject = f"{row.fleet}/{row.device}"
        transaction.audit(actor, f"device.{decision.value}", subject, now, application=number, spki_sha256=row.spki_sha256.hex())
    return sorted((_application(row) for row in each(connection, BY_ID, pending)), key=lambda one: one.id)


def read_applications(connection: Connection, decision: Decision | None) -> list[Application]:
    """All applications, oldest first, or those with one decision."""
    statement = select(applications).order_by(_a.id)
    if decision is not None:
        statement = statement.where(_a.decision == decision.value)
    return [_application(row) for row in connection.execute(statement)]


def _application(row: Any) -> Application:
    decision, method = Decision(row.decision), Method(row.method)
    return Application(row.id, row.fleet, row.device, row.spki_sha256, method, decision, row.created, row.decided)


def lease(transaction: Transaction, name: str, holder: str, seconds: int, now: datetime) -> bool:
    """See ``ca.ports.Store.lease``."""
    connection = transaction.connection
    values: dict[str, Any] = {"holder": holder, "expires": now + timedelta(seconds=seconds)}
    # One that ends later than a new one would was taken by a clock that stood ahead: nobody can be meant to wait for that.
    free = (_l.holder == holder) | (_l.expires <= now) | (_l.expires > now + timedelta(seconds=seconds))
    if connection.execute(update(leases).where(_l.name == name, free).values(values)).rowcount:
        return True
    if connection.execute(select(_l.name).where(_l.name == name)).first() is not None:
        return False
    connection.execute(insert(leases).values(name=name, **values))
    return True
