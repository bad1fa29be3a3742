"""Customers and their API keys. The service reads, inserts and updates; it never deletes or defines."""

from alembic import op

revision = "0001"
down_revision = None

_TABLES = """
CREATE TABLE billing.customer (
    id         text COLLATE "C" PRIMARY KEY,
    name       text NOT NULL,
    email      text,
    plan       text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE billing.api_key (
    id          text COLLATE "C" PRIMARY KEY,
    customer_id text COLLATE "C" NOT NULL REFERENCES billing.customer,
    name        text NOT NULL,
    last4       text NOT NULL,
    digest      bytea NOT NULL CHECK (octet_length(digest) = 32),
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at  timestamptz,
    revoked_at  timestamptz
);
CREATE INDEX api_key_in_order ON billing.api_key (customer_id, created_at, id);

REVOKE ALL ON billing.customer, billing.api_key FROM PUBLIC;
GRANT USAGE ON SCHEMA billing TO darktree_billing;
GRANT SELECT, INSERT, UPDATE ON billing.customer, billing.api_key TO darktree_billing;
"""


def upgrade() -> None:
    op.execute(_TABLES)
