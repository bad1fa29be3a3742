"""${message}."""

from darktree_ledger.migrations.statements import run_sql

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade() -> None:
    run_sql("${up_revision}_${slug if slug else 'change'}.sql")
