"""The books: Stripe's balance transactions, and the months that are closed. Neither can be changed or taken away."""

from alembic import op

revision = "0003"
down_revision = "0002"

_TABLES = r"""
CREATE TABLE billing.balance_transaction (
    id           text COLLATE "C" PRIMARY KEY,
    type         text NOT NULL,
    category     text NOT NULL,
    amount_cents bigint NOT NULL,
    fee_cents    bigint NOT NULL,
    net_cents    bigint NOT NULL CHECK (net_cents = amount_cents - fee_cents),
    currency     text NOT NULL,
    created      timestamptz NOT NULL,
    available_on timestamptz,
    payout       text COLLATE "C",
    source       text COLLATE "C",
    description  text,
    known_as     text[] NOT NULL,
    book_month   text COLLATE "C" NOT NULL CHECK (book_month ~ '^\d{4}-\d\d$'),
    payout_month text COLLATE "C" CHECK ((payout IS NULL) = (payout_month IS NULL)),
    imported_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX balance_transaction_of_month ON billing.balance_transaction (book_month, created, id);
CREATE INDEX balance_transaction_of_payout ON billing.balance_transaction (payout) WHERE payout IS NOT NULL;

CREATE TABLE billing.closed_month (
    month           text COLLATE "C" PRIMARY KEY CHECK (month ~ '^\d{4}-\d\d$'),
    config          jsonb NOT NULL,
    carried         jsonb NOT NULL,
    manifest_sha256 text NOT NULL,
    pack            bytea NOT NULL,
    closed_at       timestamptz NOT NULL DEFAULT clock_timestamp()
);

REVOKE ALL ON billing.balance_transaction, billing.closed_month FROM PUBLIC;
GRANT SELECT, INSERT ON billing.balance_transaction, billing.closed_month TO darktree_billing;
-- Stripe tells only later with which payout something left, and one file tells what another leaves out.
GRANT UPDATE (available_on, source, payout, payout_month, known_as) ON billing.balance_transaction TO darktree_billing;
"""


def upgrade() -> None:
    op.execute(_TABLES)
