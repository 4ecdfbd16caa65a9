"""The first tables. What they mean is said in ``ca/schema.py``; a test compares the two."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy import BigInteger, CheckConstraint, ForeignKeyConstraint, Integer, LargeBinary, PrimaryKeyConstraint, Text, UniqueConstraint

revision = "0001"
down_revision: str | None = None

ID = BigInteger().with_variant(Integer(), "sqlite")


def upgrade() -> None:
    """Makes the tables, their indexes, and the triggers that keep the audit chain append-only."""
    _authorities_and_invitations()
    _applications_and_leases()
    _certificates()
    _revocations()
    _audit()
    if op.get_bind().dialect.name == "sqlite":
        _append_only_sqlite()
    else:
        _append_only_postgresql()


def _some(name: str, kind: sa.types.TypeEngine[Any] | type[sa.types.TypeEngine[Any]]) -> sa.Column[Any]:
    return sa.Column(name, kind, nullable=False)


def _maybe(name: str, kind: sa.types.TypeEngine[Any] | type[sa.types.TypeEngine[Any]]) -> sa.Column[Any]:
    return sa.Column(name, kind, nullable=True)


def _authorities_and_invitations() -> None:
    op.create_table(
        "authorities",
        _some("id", Text),
        _some("certificate", LargeBinary),
        _some("spki_sha256", LargeBinary),
        _some("key", Text),
        _some("parent", Text),
        _some("created", BigInteger),
        PrimaryKeyConstraint("id", name="authorities_pkey"),
        ForeignKeyConstraint(["parent"], ["authorities.id"], name="authorities_parent_fkey"),
    )
    op.create_table(
        "invitations",
        _some("token_sha256", LargeBinary),
        _some("fleet", Text),
        _some("device", Text),
        _some("names", Text),
        _some("created", BigInteger),
        _some("expires", BigInteger),
        PrimaryKeyConstraint("token_sha256", name="invitations_pkey"),
        CheckConstraint("length(token_sha256) = 32", name="invitations_token_sha256_check"),
        sqlite_with_rowid=False,
    )


def _applications_and_leases() -> None:
    op.create_table(
        "applications",
        sa.Column("id", ID, autoincrement=False, nullable=False),
        _some("fleet", Text),
        _some("device", Text),
        _some("spki_sha256", LargeBinary),
        _some("method", Text),
        _some("decision", Text),
        _some("created", BigInteger),
        _maybe("decided", BigInteger),
        PrimaryKeyConstraint("id", name="applications_pkey"),
        UniqueConstraint("device", "fleet", "spki_sha256", name="applications_device_fleet_spki_sha256_key"),
        CheckConstraint("decision IN ('pending', 'approved', 'used', 'denied')", name="applications_decision_check"),
        CheckConstraint("(decision = 'pending') = (decided IS NULL)", name="applications_decided_check"),
    )
    op.create_table(
        "leases",
        _some("name", Text),
        _some("holder", Text),
        _some("expires", BigInteger),
        PrimaryKeyConstraint("name", name="leases_pkey"),
    )


def _certificates() -> None:
    op.create_table(
        "certificates",
        sa.Column("id", ID, autoincrement=False, nullable=False),
        _some("authority", Text),
        _some("serial", LargeBinary),
        _some("state", Text),
        _some("spki_sha256", LargeBinary),
        _some("subject", Text),
        _some("fleet", Text),
        _some("device", Text),
        _some("method", Text),
        _some("evidence", Text),
        _some("names", Text),
        _some("profile", Text),
        _some("profile_hash", LargeBinary),
        _some("not_before", BigInteger),
        _some("not_after", BigInteger),
        _some("created", BigInteger),
        _some("taken", BigInteger),
        _maybe("issued", BigInteger),
        _maybe("key", Text),
        _maybe("token", LargeBinary),
        _maybe("idempotency", LargeBinary),
        _maybe("application", ID),
        _some("tbs_sha256", LargeBinary),
        _maybe("tbs", LargeBinary),
        _maybe("sha256", LargeBinary),
        _maybe("der", LargeBinary),
        PrimaryKeyConstraint("id", name="certificates_pkey"),
        UniqueConstraint("serial", "authority", name="certificates_serial_authority_key"),
        UniqueConstraint("token", name="certificates_token_key"),
        UniqueConstraint("idempotency", name="certificates_idempotency_key"),
        ForeignKeyConstraint(["token"], ["invitations.token_sha256"], name="certificates_token_fkey"),
        ForeignKeyConstraint(["application"], ["applications.id"], name="certificates_application_fkey"),
        CheckConstraint("state IN ('intended', 'abandoned', 'issued')", name="certificates_state_check"),
        CheckConstraint("(state = 'intended') = (tbs IS NOT NULL)", name="certificates_tbs_check"),
        CheckConstraint(
            "(state = 'issued') = (der IS NOT NULL AND sha256 IS NOT NULL AND issued IS NOT NULL)",
            name="certificates_der_check",
        ),
        CheckConstraint("length(serial) = 20", name="certificates_serial_check"),
    )
    for columns in (["spki_sha256"], ["sha256"], ["device", "fleet"], ["fleet", "id"]):
        op.create_index(f"certificates_{'_'.join(columns)}_idx", "certificates", columns)
    unfinished = sa.text("state = 'intended'")
    op.create_index("certificates_unfinished_idx", "certificates", ["created"], sqlite_where=unfinished, postgresql_where=unfinished)


def _revocations() -> None:
    op.create_table(
        "revocations",
        _some("authority", Text),
        _some("serial", LargeBinary),
        _some("at", BigInteger),
        _some("reason", Integer),
        _maybe("invalidity", BigInteger),
        _some("not_after", BigInteger),
        _some("revision", BigInteger),
        PrimaryKeyConstraint("authority", "serial", name="revocations_pkey"),
        ForeignKeyConstraint(
            ["authority", "serial"],
            ["certificates.authority", "certificates.serial"],
            name="revocations_authority_serial_fkey",
        ),
        CheckConstraint("reason IN (0, 1, 2, 3, 4, 5, 6, 9, 10)", name="revocations_reason_check"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "revisions",
        _some("authority", Text),
        _some("revision", BigInteger),
        PrimaryKeyConstraint("authority", name="revisions_pkey"),
    )
    op.create_table(
        "crls",
        _some("authority", Text),
        _some("number", BigInteger),
        _some("revision", BigInteger),
        _maybe("this_update", BigInteger),
        _maybe("next_update", BigInteger),
        _maybe("entries", BigInteger),
        _maybe("sha256", LargeBinary),
        _maybe("der", LargeBinary),
        PrimaryKeyConstraint("authority", "number", name="crls_pkey"),
    )


def _audit() -> None:
    op.create_table(
        "audit",
        sa.Column("seq", ID, autoincrement=False, nullable=False),
        _some("at", BigInteger),
        _some("actor", Text),
        _some("action", Text),
        _some("subject", Text),
        _some("detail", Text),
        _some("digest", LargeBinary),
        PrimaryKeyConstraint("seq", name="audit_pkey"),
        CheckConstraint("length(digest) = 32", name="audit_digest_check"),
    )
    op.create_table(
        "checkpoints",
        _some("seq", ID),
        _some("digest", LargeBinary),
        _some("key", Text),
        _some("signature", LargeBinary),
        _some("created", BigInteger),
        PrimaryKeyConstraint("seq", "key", name="checkpoints_pkey"),
        ForeignKeyConstraint(["seq"], ["audit.seq"], name="checkpoints_seq_fkey"),
    )


def _append_only_sqlite() -> None:
    for act in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER audit_refuses_{act.lower()} BEFORE {act} ON audit "
            "BEGIN SELECT RAISE(ABORT, 'the audit chain is append-only'); END"
        )


def _append_only_postgresql() -> None:
    op.execute(
        "CREATE FUNCTION audit_refuses() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'the audit chain is append-only'; END $$"
    )
    op.execute(
        "CREATE TRIGGER audit_refuses_change BEFORE UPDATE OR DELETE OR TRUNCATE ON audit "
        "FOR EACH STATEMENT EXECUTE FUNCTION audit_refuses()"
    )
