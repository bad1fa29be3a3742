"""An index by which holds that expired are counted."""

from darktree_ledger.migrations.statements import run_sql

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    run_sql("0005_expired_holds.sql")
