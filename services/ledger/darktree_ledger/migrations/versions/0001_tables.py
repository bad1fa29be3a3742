"""The tables, insert-only where they are history."""

from darktree_ledger.migrations.statements import run_sql

revision = "0001"
down_revision = None


def upgrade() -> None:
    run_sql("0001_tables.sql")
