-- Texts are hashed as UTF-8, and measured as what the database keeps.
DO $$ BEGIN
    IF current_setting('server_encoding') <> 'UTF8' THEN
        RAISE EXCEPTION 'the ledger needs a database whose encoding is UTF8, not %', current_setting('server_encoding');
    END IF;
END $$;

-- Bonus credits are part of the balance, used before paid ones and never revenue.
ALTER TABLE ledger.account
    ADD COLUMN bonus_nanos bigint NOT NULL DEFAULT 0,
    ADD COLUMN recorded_at timestamptz NOT NULL DEFAULT 'epoch',    -- its newest change: no entry is recorded before it
    ADD COLUMN next_expiry timestamptz,   -- no open hold expires before: most operations need not look for expired ones
    ADD CONSTRAINT bonus_is_part_of_the_balance CHECK (bonus_nanos >= 0 AND bonus_nanos <= balance_nanos);

UPDATE ledger.account SET next_expiry = opened_at;
UPDATE ledger.account a SET recorded_at = e.newest
FROM (SELECT customer_id, max(recorded_at) AS newest FROM ledger.entry GROUP BY 1) e WHERE e.customer_id = a.customer_id;

-- Entries of version 1 knew no bonus: what they granted counts as paid.
ALTER TABLE ledger.entry
    ADD COLUMN version smallint NOT NULL DEFAULT 1,
    ADD COLUMN bonus_nanos bigint NOT NULL DEFAULT 0,
    ADD CONSTRAINT bonus_is_part_of_the_amount CHECK (bonus_nanos >= 0 AND bonus_nanos <= amount_nanos),
    DROP CONSTRAINT entry_kind_check,
    ADD CONSTRAINT entry_kind_check CHECK (kind IN ('grant', 'usage', 'absorbed', 'adjustment', 'refund', 'dispute',
                                                    'reinstatement', 'posting'));

-- In this order the sealer reads; and what is not usage is little and read often.
CREATE INDEX entry_visibility ON ledger.entry (xid, customer_id, seq);
CREATE INDEX entry_not_usage ON ledger.entry (customer_id, seq) WHERE kind <> 'usage';
CREATE INDEX operation_of_customer ON ledger.operation (customer_id, applied_at);

ALTER TYPE ledger.result ADD ATTRIBUTE rest_nanos bigint;

-- What one administrative operation leaves behind: the customer's rows as they are then, and its answer.
CREATE TYPE ledger.step AS (a ledger.account, d ledger.day_usage, r ledger.result);

-- The house's own chain: what concerns no customer, such as fees and payouts.
INSERT INTO ledger.account (customer_id, cap_tokens, today, head, opened_by, opened_at)
VALUES ('_house', 0, '1970-01-01', sha256('\x000000136461726b747265652d6163636f756e742d7631000000065f686f757365'),
        '00000000-0000-0000-0000-000000000000', '1970-01-01');

-- The log: every entry at its position, the roots of complete subtrees, and what was signed (docs/ledger-format.md).
CREATE TABLE ledger.sealed (
    "position"  bigint PRIMARY KEY CHECK ("position" >= 0),
    customer_id text COLLATE "C" NOT NULL,
    seq         bigint NOT NULL,
    hash        bytea NOT NULL CHECK (octet_length(hash) = 32),
    xid         xid8 NOT NULL,
    UNIQUE (customer_id, seq)
);

CREATE TABLE ledger.subtree (
    level smallint NOT NULL CHECK (level > 0),
    index bigint NOT NULL CHECK (index >= 0),
    hash  bytea NOT NULL CHECK (octet_length(hash) = 32),
    PRIMARY KEY (level, index)
);

CREATE TABLE ledger.checkpoint (
    size      bigint PRIMARY KEY,
    root      bytea NOT NULL CHECK (octet_length(root) = 32),
    note      text NOT NULL,
    signed_at timestamptz NOT NULL
);

CREATE TABLE ledger.log_key (
    vkey        text PRIMARY KEY,
    endorsement text,                      -- a note signed by the key before; null for the first
    first_size  bigint NOT NULL,
    added_at    timestamptz NOT NULL
);

-- Closed months: how much of the log they cover, what moved, and where every customer stood.
CREATE TABLE ledger.closed_month (
    month     date PRIMARY KEY CHECK (extract(day FROM month) = 1),
    tree_size bigint NOT NULL REFERENCES ledger.checkpoint (size),
    closed_at timestamptz NOT NULL
);

CREATE TABLE ledger.month_total (
    month             date NOT NULL,
    customer_id       text COLLATE "C" NOT NULL,
    day               date NOT NULL,
    kind              text NOT NULL,
    debit_account     text NOT NULL,
    credit_account    text NOT NULL,
    model             text,
    entries           bigint NOT NULL,
    amount_nanos      bigint NOT NULL,
    bonus_nanos       bigint NOT NULL,
    prompt_tokens     bigint NOT NULL,
    completion_tokens bigint NOT NULL,
    UNIQUE NULLS NOT DISTINCT (month, customer_id, day, kind, debit_account, credit_account, model)
);

CREATE TABLE ledger.month_balance (
    month                 date NOT NULL,
    customer_id           text COLLATE "C" NOT NULL,
    closing_nanos         bigint NOT NULL,
    closing_bonus_nanos   bigint NOT NULL,
    PRIMARY KEY (month, customer_id)
);

-- Entries that were recorded in a month and sealed after it was closed: they belong to the month open by then.
CREATE TABLE ledger.late_entry (
    "position"  bigint PRIMARY KEY,
    recorded_at timestamptz NOT NULL,
    customer_id text COLLATE "C" NOT NULL,
    seq         bigint NOT NULL,
    book_month  date NOT NULL
);
CREATE INDEX late_entry_of_month ON ledger.late_entry (book_month);

CALL ledger.make_append_only('sealed');
CALL ledger.make_append_only('subtree');
CALL ledger.make_append_only('checkpoint');
CALL ledger.make_append_only('log_key');
CALL ledger.make_append_only('closed_month');
CALL ledger.make_append_only('month_total');
CALL ledger.make_append_only('month_balance');
CALL ledger.make_append_only('late_entry');
