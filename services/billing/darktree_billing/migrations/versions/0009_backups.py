"""Backups that succeeded, as whoever made them told: so that an alert knows when the last one was."""

from alembic import op

revision = "0009"
down_revision = "0008"

_TABLES = r"""
CREATE TABLE billing.backup (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    started_at  timestamptz NOT NULL,
    finished_at timestamptz NOT NULL DEFAULT clock_timestamp() CHECK (finished_at >= started_at),
    made_by     text NOT NULL,
    size_bytes  bigint CHECK (size_bytes >= 0),
    log_entries bigint CHECK (log_entries >= 0)
);
CREATE INDEX backup_by_start ON billing.backup (started_at);

REVOKE ALL ON billing.backup FROM PUBLIC;
GRANT SELECT, INSERT ON billing.backup TO darktree_billing;
"""


def upgrade() -> None:
    op.execute(_TABLES)
