"""The tables, as SQLAlchemy Core sees them; ``ca/migrations`` makes them. The invariants are here, as constraints, not in code.

Times are BIGINT seconds since 1970 UTC; octets are BLOB/BYTEA. A serial number is 20 octets big-endian, so that octet order is numeric
order on both databases. Rows of ``certificates``, ``revocations`` and ``audit`` are never deleted, but for a hold that is lifted.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Dialect,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)

SERIAL_OCTETS = 20  # RFC 5280 4.1.2.2: conforming CAs use no more


class Moment(TypeDecorator[datetime]):
    """An aware datetime, kept as whole seconds since 1970 UTC."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:  # noqa: ARG002
        return None if value is None else int(value.timestamp())

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        return None if value is None else datetime.fromtimestamp(value, UTC)


class Serial(TypeDecorator[int]):
    """A certificate's serial number, kept as 20 octets."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: Dialect) -> bytes | None:  # noqa: ARG002
        return None if value is None else value.to_bytes(SERIAL_OCTETS, "big")

    def process_result_value(self, value: Any | None, dialect: Dialect) -> int | None:  # noqa: ARG002
        return None if value is None else int.from_bytes(value, "big")


class Names(TypeDecorator[tuple[str, ...]]):
    """A tuple of names, kept as a JSON array."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: tuple[str, ...] | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        return None if value is None else json.dumps(value, ensure_ascii=False) if value else "[]"

    def process_result_value(self, value: Any | None, dialect: Dialect) -> tuple[str, ...] | None:  # noqa: ARG002
        return None if value is None else () if value == "[]" else tuple(json.loads(value))


Id = BigInteger().with_variant(Integer, "sqlite")  # SQLite: INTEGER PRIMARY KEY is the row itself, BIGINT is an index beside it

metadata = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "ck": "%(table_name)s_%(constraint_name)s_check",
    }
)

authorities = Table(
    "authorities",
    metadata,
    Column("id", Text, primary_key=True),
    Column("certificate", LargeBinary, nullable=False),
    Column("spki_sha256", LargeBinary, nullable=False),
    Column("key", Text, nullable=False),
    Column("parent", Text, ForeignKey("authorities.id"), nullable=False),
    Column("created", Moment, nullable=False),
    Column("successor", Text, ForeignKey("authorities.id")),  # who issues in its place; set once
)

invitations = Table(
    "invitations",
    metadata,
    Column("token_sha256", LargeBinary, primary_key=True),
    Column("fleet", Text, nullable=False),
    Column("device", Text, nullable=False),
    Column("names", Names, nullable=False),
    Column("created", Moment, nullable=False),
    Column("expires", Moment, nullable=False),
    CheckConstraint("length(token_sha256) = 32", name="token_sha256"),
    sqlite_with_rowid=False,
)

# An approval (``used``) is good for one certificate, which names the application. Abandoning gives it back.
applications = Table(
    "applications",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=False),
    Column("fleet", Text, nullable=False),
    Column("device", Text, nullable=False),
    Column("spki_sha256", LargeBinary, nullable=False),
    Column("method", Text, nullable=False),
    Column("decision", Text, nullable=False),
    Column("created", Moment, nullable=False),
    Column("decided", Moment),
    UniqueConstraint("device", "fleet", "spki_sha256"),
    CheckConstraint("decision IN ('pending', 'approved', 'used', 'denied')", name="decision"),
    CheckConstraint("(decision = 'pending') = (decided IS NULL)", name="decided"),
)

# No foreign key to authorities: an authority's own certificate is intended before there is an authority.
# ``token`` is what burns an invitation: UNIQUE, so that of all that ask with it one row can stand. Abandoning lets go of it.
certificates = Table(
    "certificates",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=False),
    Column("authority", Text, nullable=False),
    Column("serial", Serial, nullable=False),
    Column("state", Text, nullable=False),
    Column("spki_sha256", LargeBinary, nullable=False),
    Column("subject", Text, nullable=False),
    Column("fleet", Text, nullable=False),
    Column("device", Text, nullable=False),
    Column("method", Text, nullable=False),
    Column("evidence", Text, nullable=False),
    Column("names", Names, nullable=False),
    Column("profile", Text, nullable=False),
    Column("profile_hash", LargeBinary, nullable=False),
    Column("not_before", Moment, nullable=False),
    Column("not_after", Moment, nullable=False),
    Column("created", Moment, nullable=False),
    Column("taken", Moment, nullable=False),  # when somebody last set out to finish it
    Column("issued", Moment),
    Column("key", Text),
    Column("token", LargeBinary, ForeignKey("invitations.token_sha256")),
    Column("idempotency", LargeBinary),
    Column("application", Id, ForeignKey("applications.id")),
    Column("tbs_sha256", LargeBinary, nullable=False),  # of what was linted; outlives tbs
    Column("tbs", LargeBinary),
    Column("sha256", LargeBinary),
    Column("der", LargeBinary),
    UniqueConstraint("serial", "authority"),  # in this order: look-ups may know the serial alone
    UniqueConstraint("token"),
    UniqueConstraint("idempotency"),
    CheckConstraint("state IN ('intended', 'abandoned', 'issued')", name="state"),
    CheckConstraint("(state = 'intended') = (tbs IS NOT NULL)", name="tbs"),
    CheckConstraint("(state = 'issued') = (der IS NOT NULL AND sha256 IS NOT NULL AND issued IS NOT NULL)", name="der"),
    CheckConstraint("length(serial) = 20", name="serial"),
    Index(None, "spki_sha256"),
    Index(None, "sha256"),
    Index(None, "device", "fleet"),
    Index(None, "fleet", "id"),
    Index(
        "certificates_unfinished_idx",
        "created",
        sqlite_where=text("state = 'intended'"),
        postgresql_where=text("state = 'intended'"),
    ),
)

# ``not_after`` is the certificate's; ``revision`` that of its authority when this row was last changed.
revocations = Table(
    "revocations",
    metadata,
    Column("authority", Text, nullable=False),
    Column("serial", Serial, nullable=False),
    Column("at", Moment, nullable=False),
    Column("reason", Integer, nullable=False),
    Column("invalidity", Moment),
    Column("not_after", Moment, nullable=False),
    Column("revision", BigInteger, nullable=False),
    PrimaryKeyConstraint("authority", "serial"),
    ForeignKeyConstraint(["authority", "serial"], ["certificates.authority", "certificates.serial"]),
    CheckConstraint("reason IN (0, 1, 2, 3, 4, 5, 6, 9, 10)", name="reason"),
    sqlite_with_rowid=False,
)

# How many times an authority's revocations changed.
revisions = Table(
    "revisions",
    metadata,
    Column("authority", Text, primary_key=True),
    Column("revision", BigInteger, nullable=False),
)

# One row per number ever reserved; ``revision`` is the authority's at that moment: what this CRL shows at least.
# The octets of a CRL go when the next one is published; number, times and digest stay.
crls = Table(
    "crls",
    metadata,
    Column("authority", Text, nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("this_update", Moment),
    Column("next_update", Moment),
    Column("entries", BigInteger),
    Column("sha256", LargeBinary),
    Column("der", LargeBinary),
    PrimaryKeyConstraint("authority", "number"),
)

leases = Table(
    "leases",
    metadata,
    Column("name", Text, primary_key=True),
    Column("holder", Text, nullable=False),
    Column("expires", Moment, nullable=False),
)

# Append-only: triggers refuse UPDATE and DELETE.
audit = Table(
    "audit",
    metadata,
    Column("seq", Id, primary_key=True, autoincrement=False),
    Column("at", BigInteger, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    CheckConstraint("length(digest) = 32", name="digest"),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("seq", Id, ForeignKey("audit.seq"), nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("key", Text, nullable=False),
    Column("signature", LargeBinary, nullable=False),
    Column("created", Moment, nullable=False),
    PrimaryKeyConstraint("seq", "key"),
)
