"""What engines say that they processed, and what each lane's engines had said at earlier moments."""

from alembic import op

revision = "0004"
down_revision = "0003"

_TABLES = r"""
-- One row for each start of an engine: its counters only grow, so the greatest reading is the newest, whoever sent it.
-- What an engine that is old had counted when it was first seen was for somebody else.
CREATE TABLE billing.engine_run (
    lane                   text COLLATE "C" NOT NULL,
    endpoint               text COLLATE "C" NOT NULL,
    started_at             timestamptz NOT NULL,
    prompt_tokens          bigint NOT NULL,
    completion_tokens      bigint NOT NULL,
    base_prompt_tokens     bigint NOT NULL,
    base_completion_tokens bigint NOT NULL,
    read_at                timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (lane, endpoint, started_at)
);

CREATE TABLE billing.lane_reading (
    lane              text COLLATE "C" NOT NULL,
    read_at           timestamptz NOT NULL,
    prompt_tokens     bigint NOT NULL,
    completion_tokens bigint NOT NULL,
    PRIMARY KEY (lane, read_at)
);

REVOKE ALL ON billing.engine_run, billing.lane_reading FROM PUBLIC;
GRANT SELECT, INSERT ON billing.engine_run, billing.lane_reading TO darktree_billing;
GRANT UPDATE (prompt_tokens, completion_tokens, read_at) ON billing.engine_run TO darktree_billing;
GRANT DELETE ON billing.lane_reading TO darktree_billing;
"""


def upgrade() -> None:
    op.execute(_TABLES)
