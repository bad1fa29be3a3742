"""Bonus credits apart from paid ones, the kinds of entries that books need, the log of everything, closed months."""

from darktree_ledger.migrations.statements import run_sql

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    run_sql("0003_books_and_log.sql")
