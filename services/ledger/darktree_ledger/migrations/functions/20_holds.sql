-- What the operations on holds share.

-- How many of the tokens fit into the limits: prompt first, then completion.
CREATE OR REPLACE FUNCTION ledger.fitting(wanted bigint, price_nanos bigint, limit_tokens bigint, limit_nanos bigint)
RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT greatest(0, least(wanted, limit_tokens, CASE WHEN price_nanos > 0 THEN limit_nanos / price_nanos END))
$$;

-- Releases what expired holds of these customers had reserved, and says anew when the next of theirs may expire. The
-- caller holds the customers' rows.
CREATE OR REPLACE FUNCTION ledger.reap(customer_ids text[], at timestamptz) RETURNS void
LANGUAGE sql SET search_path = ledger, pg_temp AS $$
    WITH reaped AS (
        UPDATE hold SET state = 'expired', resolved_at = at
        WHERE customer_id = ANY (customer_ids) AND state = 'open' AND expires_at <= at
        RETURNING customer_id, usage_day, amount_nanos, prompt_tokens + completion_tokens AS tokens
    ), days AS (
        UPDATE day_usage d SET held_tokens = d.held_tokens - r.tokens
        FROM (SELECT customer_id, usage_day, sum(tokens)::bigint AS tokens FROM reaped GROUP BY 1, 2) r
        WHERE d.customer_id = r.customer_id AND d.day = r.usage_day
    )
    UPDATE account a SET
        held_nanos = a.held_nanos - coalesce((SELECT sum(r.amount_nanos) FROM reaped r
                                              WHERE r.customer_id = a.customer_id), 0),
        next_expiry = (SELECT min(h.expires_at) FROM hold h
                       WHERE h.customer_id = a.customer_id AND h.state = 'open' AND h.expires_at > at)
    WHERE a.customer_id = ANY (customer_ids) AND a.next_expiry <= at
$$;

-- What a hold's body differs in from the first time, or null: the contract of a client-made id.
CREATE OR REPLACE FUNCTION ledger.hold_difference(
    h ledger.hold, customer_id text, key_id text, model text, lane text, prompt_tokens bigint, asked_tokens bigint,
    step_tokens bigint, exact boolean, prompt_price_nanos bigint, completion_price_nanos bigint, ttl_seconds integer
) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE
        WHEN h.customer_id <> $2 THEN 'customer_id'
        WHEN h.key_id <> $3 THEN 'key_id'
        WHEN h.model <> $4 THEN 'model'
        WHEN h.lane <> $5 THEN 'lane'
        WHEN h.prompt_tokens <> $6 THEN 'prompt_tokens'
        WHEN h.asked_tokens <> $7 THEN 'completion_tokens'
        WHEN h.step_tokens <> $8 THEN 'step_tokens'
        WHEN h.exact <> $9 THEN 'exact'
        WHEN h.prompt_price_nanos <> $10 THEN 'prompt_price_nanos'
        WHEN h.completion_price_nanos <> $11 THEN 'completion_price_nanos'
        WHEN h.ttl_seconds <> $12 THEN 'ttl_seconds'
    END
$$;
