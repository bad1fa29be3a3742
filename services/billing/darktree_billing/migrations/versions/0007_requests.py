"""What customers ask the platform team for: another daily cap, a lane of their own. A decision is kept for good."""

from alembic import op

revision = "0007"
down_revision = "0006"

_TABLES = r"""
CREATE TABLE billing.cap_request (
    id                 text COLLATE "C" PRIMARY KEY,
    customer_id        text COLLATE "C" NOT NULL REFERENCES billing.customer,
    asked_cap_tokens   bigint NOT NULL CHECK (asked_cap_tokens > 0),
    reason             text NOT NULL,
    asked_by           text NOT NULL,
    asked_at           timestamptz NOT NULL DEFAULT clock_timestamp(),
    state              text NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'approved', 'declined')),
    decided_cap_tokens bigint CHECK ((decided_cap_tokens IS NOT NULL) = (state = 'approved')),
    decided_by         text CHECK ((decided_by IS NULL) = (state = 'open')),
    decided_at         timestamptz CHECK ((decided_at IS NULL) = (state = 'open')),
    note               text CHECK (note IS NULL OR state <> 'open')
);
CREATE INDEX cap_request_of_customer ON billing.cap_request (customer_id, id);
CREATE INDEX cap_request_open ON billing.cap_request (id) WHERE state = 'open';

CREATE TABLE billing.lane_request (
    id                       text COLLATE "C" PRIMARY KEY,
    customer_id              text COLLATE "C" NOT NULL REFERENCES billing.customer,
    model                    text NOT NULL,
    tokens_per_day           bigint NOT NULL CHECK (tokens_per_day > 0),
    first_token_milliseconds integer CHECK (first_token_milliseconds > 0),
    reason                   text NOT NULL,
    asked_by                 text NOT NULL,
    asked_at                 timestamptz NOT NULL DEFAULT clock_timestamp(),
    state                    text NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'accepted', 'declined')),
    decided_by               text CHECK ((decided_by IS NULL) = (state = 'open')),
    decided_at               timestamptz CHECK ((decided_at IS NULL) = (state = 'open')),
    note                     text CHECK (note IS NULL OR state <> 'open')
);
CREATE INDEX lane_request_of_customer ON billing.lane_request (customer_id, id);
CREATE INDEX lane_request_open ON billing.lane_request (id) WHERE state = 'open';

REVOKE ALL ON billing.cap_request, billing.lane_request FROM PUBLIC;
GRANT SELECT, INSERT ON billing.cap_request, billing.lane_request TO darktree_billing;
-- What was asked stays as it was asked; the rest is the decision.
GRANT UPDATE (state, decided_cap_tokens, decided_by, decided_at, note) ON billing.cap_request TO darktree_billing;
GRANT UPDATE (state, decided_by, decided_at, note) ON billing.lane_request TO darktree_billing;
"""


def upgrade() -> None:
    op.execute(_TABLES)
