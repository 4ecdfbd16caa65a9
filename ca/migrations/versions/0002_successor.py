"""Authorities may have a successor: a new key and certificate, which issues in their place."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision: str | None = "0001"


def upgrade() -> None:
    """Adds the column. In words that both databases take, since alembic cannot add a constraint to a table of SQLite's."""
    op.execute("ALTER TABLE authorities ADD COLUMN successor TEXT CONSTRAINT authorities_successor_fkey REFERENCES authorities (id)")
