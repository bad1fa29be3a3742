-- The ledger's tables. Everything belongs to darktree_owner, who cannot log in; the service's role may only read
-- and execute (0002). `entry`, `operation` and `cap_change` are insert-only for everybody.

CREATE TABLE ledger.account (
    customer_id   text COLLATE "C" PRIMARY KEY,
    balance_nanos bigint NOT NULL DEFAULT 0,
    held_nanos    bigint NOT NULL DEFAULT 0,
    cap_tokens    bigint NOT NULL CHECK (cap_tokens >= 0),
    today         date NOT NULL,               -- the newest UTC day seen: a clock that steps back reopens no day
    seq           bigint NOT NULL DEFAULT 0,   -- of the newest entry; dense from 1
    head          bytea NOT NULL CHECK (octet_length(head) = 32),
    opened_by     uuid NOT NULL,
    opened_at     timestamptz NOT NULL,
    CONSTRAINT never_past_the_balance CHECK (held_nanos >= 0 AND held_nanos <= balance_nanos)
) WITH (fillfactor = 50);

CREATE TABLE ledger.day_usage (
    customer_id       text COLLATE "C" NOT NULL,
    day               date NOT NULL,
    cap_tokens        bigint NOT NULL,         -- the cap that was last in effect on this day
    requests          bigint NOT NULL DEFAULT 0,
    prompt_tokens     bigint NOT NULL DEFAULT 0,
    completion_tokens bigint NOT NULL DEFAULT 0,
    amount_nanos      bigint NOT NULL DEFAULT 0,
    held_tokens       bigint NOT NULL DEFAULT 0 CHECK (held_tokens >= 0),
    absorbed_tokens   bigint NOT NULL DEFAULT 0,
    refused_requests  bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (customer_id, day)
) WITH (fillfactor = 50);

CREATE TABLE ledger.hold (
    hold_id                uuid PRIMARY KEY,
    customer_id            text COLLATE "C" NOT NULL,
    key_id                 text NOT NULL,
    model                  text NOT NULL,
    lane                   text NOT NULL,
    prompt_tokens          bigint NOT NULL,
    asked_tokens           bigint NOT NULL,
    step_tokens            bigint NOT NULL,
    exact                  boolean NOT NULL,
    prompt_price_nanos     bigint NOT NULL,
    completion_price_nanos bigint NOT NULL,
    ttl_seconds            integer NOT NULL,
    completion_tokens      bigint NOT NULL,    -- granted: asked, or what was left
    amount_nanos           bigint NOT NULL,
    usage_day              date NOT NULL,
    placed_at              timestamptz NOT NULL,
    expires_at             timestamptz NOT NULL,
    state                  text NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'settled', 'voided', 'expired')),
    resolved_at            timestamptz,
    -- How it was settled, so that a repeated settlement gets the same answer.
    entry_id               uuid,
    entry_seq              bigint,
    used_prompt_tokens     bigint,
    used_completion_tokens bigint,
    outcome                text,
    charged_tokens         bigint,
    absorbed_tokens        bigint,
    charged_nanos          bigint
) WITH (fillfactor = 70);

CREATE INDEX hold_open ON ledger.hold (customer_id, expires_at) WHERE state = 'open';

CREATE TABLE ledger.operation (
    operation_id uuid PRIMARY KEY,
    customer_id  text COLLATE "C" NOT NULL,
    body         jsonb NOT NULL,
    entry_id     uuid,
    entry_seq    bigint,
    applied_at   timestamptz NOT NULL
);

CREATE TABLE ledger.cap_change (
    operation_id        uuid PRIMARY KEY,
    customer_id         text COLLATE "C" NOT NULL,
    cap_tokens          bigint NOT NULL,
    previous_cap_tokens bigint,
    reason              text NOT NULL,
    actor               text NOT NULL,
    changed_at          timestamptz NOT NULL
);

CREATE INDEX cap_change_of_customer ON ledger.cap_change (customer_id, changed_at);

CREATE TABLE ledger.entry (
    entry_id               uuid NOT NULL,
    customer_id            text COLLATE "C" NOT NULL,
    seq                    bigint NOT NULL CHECK (seq > 0),
    kind                   text NOT NULL CHECK (kind IN ('grant', 'usage', 'absorbed')),
    debit_account          text NOT NULL,
    credit_account         text NOT NULL,
    amount_nanos           bigint NOT NULL CHECK (amount_nanos >= 0),
    balance_after_nanos    bigint NOT NULL CHECK (balance_after_nanos >= 0),
    usage_day              date,
    hold_id                uuid,
    key_id                 text,
    model                  text,
    lane                   text,
    prompt_tokens          bigint NOT NULL,
    completion_tokens      bigint NOT NULL,
    prompt_price_nanos     bigint NOT NULL,
    completion_price_nanos bigint NOT NULL,
    outcome                text,
    reason                 text,
    actor                  text,
    reference              text,
    recorded_at            timestamptz NOT NULL,
    xid                    xid8 NOT NULL DEFAULT pg_current_xact_id(),
    prev_hash              bytea NOT NULL CHECK (octet_length(prev_hash) = 32),
    hash                   bytea NOT NULL CHECK (octet_length(hash) = 32),
    PRIMARY KEY (entry_id, recorded_at),
    UNIQUE (customer_id, seq, recorded_at)
) PARTITION BY RANGE (recorded_at);

-- Insert-only, whoever asks, and also under session_replication_role = replica.
CREATE FUNCTION ledger.refuse_change() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION '% on %.% is refused: the ledger is append-only', TG_OP, TG_TABLE_SCHEMA, TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege';
END $$;

CREATE PROCEDURE ledger.make_append_only(table_name text) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = format('ledger.%I', table_name)::regclass
                   AND tgname = 'refuse_change') THEN
        EXECUTE format('CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE ON ledger.%I
                        FOR EACH ROW EXECUTE FUNCTION ledger.refuse_change()', table_name);
    END IF;
    EXECUTE format('CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON ledger.%I
                    FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse_change()', table_name);
    EXECUTE format('ALTER TABLE ledger.%I ENABLE ALWAYS TRIGGER refuse_change', table_name);
    EXECUTE format('ALTER TABLE ledger.%I ENABLE ALWAYS TRIGGER refuse_truncate', table_name);
END $$;

CALL ledger.make_append_only('operation');
CALL ledger.make_append_only('cap_change');
CALL ledger.make_append_only('entry');

-- The clock that everything about money goes by. Tests replace this function to move it.
CREATE FUNCTION ledger.clock_now() RETURNS timestamptz LANGUAGE sql VOLATILE AS 'SELECT clock_timestamp()';

-- Makes the partitions of this month and the next three; the service calls it when it starts and once a day.
CREATE FUNCTION ledger.prepare_months() RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
DECLARE
    month date;
    name text;
    made integer := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('ledger.prepare_months'));
    FOR month IN SELECT generate_series(date_trunc('month', ledger.clock_now()),
                                        date_trunc('month', ledger.clock_now()) + interval '3 months', '1 month') LOOP
        name := 'entry_' || to_char(month, 'YYYY_MM');
        CONTINUE WHEN to_regclass('ledger.' || name) IS NOT NULL;
        EXECUTE format('CREATE TABLE ledger.%I PARTITION OF ledger.entry FOR VALUES FROM (%L) TO (%L)',
                       name, month::timestamptz, (month + interval '1 month')::timestamptz);
        CALL ledger.make_append_only(name);
        made := made + 1;
    END LOOP;
    RETURN made;
END $$;

SELECT ledger.prepare_months();
