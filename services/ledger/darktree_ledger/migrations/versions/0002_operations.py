"""What an operation answers."""

from darktree_ledger.migrations.statements import run_sql

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    run_sql("0002_operations.sql")
