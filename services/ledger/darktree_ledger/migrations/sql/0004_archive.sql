-- Old months leave `entry` for `archived_entry`: nothing on a request's path, and no round of checks, reads them any
-- more. Where every customer stood by then is their base; exports, old statements and claw-backs read both.
CREATE TABLE ledger.archived_entry (
    LIKE ledger.entry INCLUDING DEFAULTS INCLUDING CONSTRAINTS,
    PRIMARY KEY (entry_id, recorded_at),
    UNIQUE (customer_id, seq, recorded_at)
) PARTITION BY RANGE (recorded_at);

CREATE VIEW ledger.every_entry AS
    SELECT * FROM ledger.entry UNION ALL SELECT * FROM ledger.archived_entry;

CREATE TABLE ledger.archived_month (
    month          date PRIMARY KEY REFERENCES ledger.closed_month (month),
    entries        bigint NOT NULL,
    sha256         bytea NOT NULL CHECK (octet_length(sha256) = 32),   -- of the file
    last_usage_day date,
    archived_at    timestamptz NOT NULL
);

CREATE TABLE ledger.archive_base (
    customer_id   text COLLATE "C" NOT NULL,
    month         date NOT NULL,
    seq           bigint NOT NULL,
    head          bytea NOT NULL CHECK (octet_length(head) = 32),
    balance_nanos bigint NOT NULL,
    bonus_nanos   bigint NOT NULL,
    PRIMARY KEY (customer_id, month)
);

-- The newest base of each customer.
CREATE VIEW ledger.base AS
    SELECT DISTINCT ON (customer_id) * FROM ledger.archive_base ORDER BY customer_id, month DESC;

CALL ledger.make_append_only('archived_entry');
CALL ledger.make_append_only('archived_month');
CALL ledger.make_append_only('archive_base');

-- For exports and sums over old times: a range of recorded_at reads only what it must.
CREATE INDEX entry_recorded ON ledger.entry USING brin (recorded_at);
-- For a statement's opening: what is left of bonus credits is the sum of what moved them.
CREATE INDEX entry_bonus ON ledger.entry (customer_id, seq) WHERE bonus_nanos > 0;
