"""Rows of ``certificates`` as the core's types, and the statements that read them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection, Row, Select, bindparam, select

from ca.model import Identity, Intent, Issued, Method, Reason, Record, Revocation, State, Status
from ca.schema import certificates, revocations

T = TypeVar("T")
CHUNK = 500  # values in one IN list: below the databases' limits
LAST_ID = 2**63 - 1
LAST_SERIAL = 2**160 - 1

_c, _r = certificates.c, revocations.c
JOINED = certificates.outerjoin(revocations, (_r.authority == _c.authority) & (_r.serial == _c.serial))
RECORDS: Select[Any] = select(
    _c.id,
    _c.authority,
    _c.serial,
    _c.state,
    _c.der,
    _c.sha256,
    _c.spki_sha256,
    _c.subject,
    _c.fleet,
    _c.device,
    _c.names,
    _c.profile,
    _c.method,
    _c.not_before,
    _c.not_after,
    _c.created,
    _c.key,
    _r.at,
    _r.reason,
    _r.invalidity,
).select_from(JOINED)
INTENTS = select(_c.id, _c.authority, _c.serial, _c.tbs, _c.fleet, _c.device, _c.method, _c.evidence, _c.names, _c.created)
ISSUED = select(_c.id, _c.authority, _c.serial, _c.der)
STATUS = select(_c.authority, _c.serial, _c.state, _c.not_after, _r.at, _r.reason, _r.invalidity).select_from(JOINED)


def chunks(values: Iterable[T]) -> Iterator[Sequence[T]]:
    """``values`` in lists that fit into one statement."""
    every = list(values)
    for start in range(0, len(every), CHUNK):
        yield every[start : start + CHUNK]


def revocation_of(row: Any) -> Revocation | None:
    """The revocation in a joined row."""
    return None if row.at is None else Revocation(row.at, Reason(row.reason), row.invalidity)


def record_of(row: Any) -> Record:
    """A row of ``RECORDS``."""
    return Record(
        id=row.id,
        authority=row.authority,
        serial=row.serial,
        state=State(row.state),
        der=row.der,
        sha256=row.sha256,
        spki_sha256=row.spki_sha256,
        subject=row.subject,
        fleet=row.fleet,
        device=row.device,
        names=row.names,
        profile=row.profile,
        method=Method(row.method),
        not_before=row.not_before,
        not_after=row.not_after,
        created=row.created,
        key=row.key,
        revocation=revocation_of(row),
    )


def intent_of(row: Any) -> Intent:
    """A row of ``INTENTS``."""
    identity = Identity(row.fleet, row.device, Method(row.method), row.evidence, row.names)
    return Intent(row.id, row.authority, row.serial, row.tbs, identity, row.created)


def issued_of(row: Any) -> Issued:
    """A row of ``ISSUED``."""
    return Issued(row.id, row.authority, row.serial, row.der)


def among(statement: Select[Any], column: Any) -> Select[Any]:
    """``statement`` where ``column`` is one of the values given to ``each`` later. Built once: building costs more than running it."""
    return statement.where(column.in_(bindparam("some", expanding=True)))


def each(connection: Connection, statement: Select[Any], values: Iterable[Any]) -> Iterator[Row[Any]]:
    """The rows of an ``among`` statement for all ``values`` that are not None."""
    for some in chunks({value for value in values if value is not None}):
        yield from connection.execute(statement, {"some": some})


def status_of(row: Any) -> Status:
    """A row of ``STATUS``."""
    return Status(State(row.state), revocation_of(row), row.not_after)


def records(connection: Connection, statement: Select[Any]) -> list[Record]:
    """The records that a narrowed ``RECORDS`` selects."""
    return [record_of(row) for row in connection.execute(statement)]


def by_ids(connection: Connection, ids: Sequence[int]) -> list[Record]:
    """The records with ``ids``, in that order; those that are not there are left out."""
    possible = {number for number in ids if 0 < number <= LAST_ID}
    found = {record.id: record for some in chunks(possible) for record in records(connection, RECORDS.where(_c.id.in_(some)))}
    return [found[number] for number in ids if number in found]
