"""Payments: orders, what Stripe took back of them, its events as they came, and customers whose keys are frozen."""

from alembic import op

revision = "0005"
down_revision = "0004"

_TABLES = r"""
ALTER TABLE billing.customer
    ADD COLUMN frozen_at     timestamptz,
    ADD COLUMN frozen_by     text,
    ADD COLUMN frozen_reason text,
    ADD CONSTRAINT customer_frozen_by_somebody
        CHECK ((frozen_at IS NULL) = (frozen_by IS NULL) AND (frozen_at IS NULL) = (frozen_reason IS NULL));

CREATE TABLE billing.freeze_change (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer_id text COLLATE "C" NOT NULL REFERENCES billing.customer,
    frozen      boolean NOT NULL,
    reason      text NOT NULL,
    actor       text NOT NULL,
    changed_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX freeze_change_in_order ON billing.freeze_change (customer_id, id);

-- What is bought, at which price, is fixed before Stripe hears of it.
CREATE TABLE billing.payment_order (
    id                text COLLATE "C" PRIMARY KEY,
    customer_id       text COLLATE "C" NOT NULL REFERENCES billing.customer,
    plan              text NOT NULL,
    plan_name         text NOT NULL,
    price_cents       bigint NOT NULL CHECK (price_cents > 0),
    credit_nanos      bigint NOT NULL CHECK (credit_nanos > 0),
    cap_tokens        bigint NOT NULL CHECK (cap_tokens >= 0),
    created_by        text NOT NULL,
    created_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    state             text NOT NULL DEFAULT 'open'
                      CHECK (state IN ('open', 'processing', 'paid', 'failed', 'expired', 'review')),
    problem           text,
    session_id        text COLLATE "C" UNIQUE,
    payment_intent_id text COLLATE "C" UNIQUE,
    charge_id         text COLLATE "C" UNIQUE,
    receipt_url       text,
    tax_cents         bigint NOT NULL DEFAULT 0 CHECK (tax_cents >= 0),
    grant_id          uuid UNIQUE,
    granted_at        timestamptz,
    checked_at        timestamptz,
    CHECK ((state = 'paid') = (grant_id IS NOT NULL)),
    CHECK ((state = 'paid') = (granted_at IS NOT NULL))
);
CREATE INDEX payment_order_of_customer ON billing.payment_order (customer_id, id);
CREATE INDEX payment_order_unfinished ON billing.payment_order (id) WHERE state IN ('open', 'processing', 'review');

-- A refund or a dispute. What it took is fixed when it is taken, so that exactly that can be given back.
CREATE TABLE billing.payment_reversal (
    id              text COLLATE "C" PRIMARY KEY,
    kind            text NOT NULL CHECK (kind IN ('refund', 'dispute')),
    order_id        text COLLATE "C" NOT NULL REFERENCES billing.payment_order,
    customer_id     text COLLATE "C" NOT NULL REFERENCES billing.customer,
    amount_cents    bigint NOT NULL CHECK (amount_cents > 0),
    status          text NOT NULL,
    reason          text,
    created_at      timestamptz NOT NULL,
    evidence_due_at timestamptz,
    credit_cents    bigint CHECK (credit_cents >= 0),
    tax_cents       bigint CHECK (tax_cents >= 0),
    lost_cents      bigint CHECK (lost_cents >= 0),
    taken_at        timestamptz,
    returned_at     timestamptz CHECK (returned_at IS NULL OR taken_at IS NOT NULL),
    froze_at        timestamptz,
    CHECK ((taken_at IS NULL) = (credit_cents IS NULL)),
    CHECK ((taken_at IS NULL) = (tax_cents IS NULL)),
    CHECK ((taken_at IS NULL) = (lost_cents IS NULL))
);
CREATE INDEX payment_reversal_of_order ON billing.payment_reversal (order_id, created_at, id);
CREATE INDEX payment_reversal_of_kind ON billing.payment_reversal (kind, created_at, id);

CREATE TABLE billing.stripe_event (
    id              text COLLATE "C" PRIMARY KEY,
    type            text NOT NULL,
    object_id       text,
    api_version     text,
    created_at      timestamptz NOT NULL,
    received_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    source          text NOT NULL CHECK (source IN ('webhook', 'poll')),
    payload         text NOT NULL,
    state           text NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'done', 'ignored', 'dead')),
    attempts        integer NOT NULL DEFAULT 0,
    next_attempt_at timestamptz DEFAULT clock_timestamp(),
    error           text,
    order_id        text COLLATE "C",
    handled_at      timestamptz,
    CHECK ((state = 'waiting') = (next_attempt_at IS NOT NULL))
);
CREATE INDEX stripe_event_in_order ON billing.stripe_event (received_at, id);
CREATE INDEX stripe_event_waiting ON billing.stripe_event (next_attempt_at) WHERE state = 'waiting';
CREATE INDEX stripe_event_dead ON billing.stripe_event (received_at, id) WHERE state = 'dead';

-- Up to where Stripe was asked for what may have been missed.
CREATE TABLE billing.stripe_cursor (
    name      text PRIMARY KEY,
    polled_to timestamptz NOT NULL
);

REVOKE ALL ON billing.freeze_change, billing.payment_order, billing.payment_reversal, billing.stripe_event,
    billing.stripe_cursor FROM PUBLIC;
GRANT SELECT, INSERT ON billing.freeze_change, billing.payment_order, billing.payment_reversal, billing.stripe_event,
    billing.stripe_cursor TO darktree_billing;
GRANT UPDATE (state, problem, session_id, payment_intent_id, charge_id, receipt_url, tax_cents, grant_id, granted_at,
    checked_at) ON billing.payment_order TO darktree_billing;
GRANT UPDATE (status, reason, evidence_due_at, credit_cents, tax_cents, lost_cents, taken_at, returned_at, froze_at)
    ON billing.payment_reversal TO darktree_billing;
GRANT UPDATE (state, attempts, next_attempt_at, error, order_id, handled_at) ON billing.stripe_event
    TO darktree_billing;
GRANT UPDATE (polled_to) ON billing.stripe_cursor TO darktree_billing;
"""


def upgrade() -> None:
    op.execute(_TABLES)
