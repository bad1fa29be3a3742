"""Old months that have left for the archive, and where every customer stood by then."""

from darktree_ledger.migrations.statements import run_sql

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    run_sql("0004_archive.sql")
