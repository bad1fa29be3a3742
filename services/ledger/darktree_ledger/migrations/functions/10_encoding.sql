-- The bytes that are hashed, version 2 (darktree_ledger/chain.py says the same in Python, docs/ledger-format.md in
-- words): each field as a four-byte big-endian length and its bytes, a missing one as the length ffffffff.
CREATE OR REPLACE FUNCTION ledger.field(value bytea) RETURNS bytea LANGUAGE sql IMMUTABLE PARALLEL SAFE AS
$$ SELECT coalesce(int4send(octet_length($1)) || $1, '\xffffffff') $$;

-- The database's encoding is UTF-8 (0003 asks), so a text has as many bytes here as there.
CREATE OR REPLACE FUNCTION ledger.field(value text) RETURNS bytea LANGUAGE sql STABLE PARALLEL SAFE AS
$$ SELECT coalesce(int4send(octet_length($1)) || convert_to($1, 'UTF8'), '\xffffffff') $$;

-- An integer that is never missing: `field(int8send(x))` for a third of the time.
CREATE OR REPLACE FUNCTION ledger.field(value bigint) RETURNS bytea LANGUAGE sql IMMUTABLE PARALLEL SAFE AS
$$ SELECT '\x00000008'::bytea || int8send($1) $$;

-- STABLE, because convert_to is: declared IMMUTABLE, it would not be inlined and cost ten times as much.
CREATE OR REPLACE FUNCTION ledger.entry_hash(e ledger.entry) RETURNS bytea LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT sha256('\x00000000116461726b747265652d656e7472792d7632'::bytea                -- 00, and "darktree-entry-v2" as a field
        || ledger.field(e.customer_id)
        || ledger.field(e.seq)
        || '\x00000010'::bytea || uuid_send(e.entry_id)
        || ledger.field(e.kind)
        || ledger.field(e.debit_account)
        || ledger.field(e.credit_account)
        || ledger.field(e.amount_nanos)
        || ledger.field(e.balance_after_nanos)
        || ledger.field(int4send(e.usage_day - date '1970-01-01'))
        || ledger.field(uuid_send(e.hold_id))
        || ledger.field(e.key_id)
        || ledger.field(e.model)
        || ledger.field(e.lane)
        || ledger.field(e.prompt_tokens)
        || ledger.field(e.completion_tokens)
        || ledger.field(e.prompt_price_nanos)
        || ledger.field(e.completion_price_nanos)
        || ledger.field(e.outcome)
        || ledger.field(e.reason)
        || ledger.field(e.actor)
        || ledger.field(e.reference)
        || ledger.field((extract(epoch FROM e.recorded_at) * 1000000)::bigint)
        || ledger.field(e.bonus_nanos)
        || e.prev_hash)
$$;

-- An entry as a JSON document, field for field what `EntryView` in schemas.py is.
CREATE OR REPLACE FUNCTION ledger.entry_document(e ledger.entry) RETURNS text LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT row_to_json(d)::text FROM (SELECT
        e.version, e.entry_id, e.customer_id, e.seq, e.kind, e.debit_account, e.credit_account, e.amount_nanos,
        e.bonus_nanos, e.balance_after_nanos, e.usage_day, e.hold_id, e.key_id, e.model, e.lane, e.prompt_tokens,
        e.completion_tokens, e.prompt_price_nanos, e.completion_price_nanos, e.outcome, e.reason, e.actor, e.reference,
        to_char(e.recorded_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS recorded_at,
        encode(e.prev_hash, 'hex') AS prev_hash, encode(e.hash, 'hex') AS hash
    ) d
$$;
