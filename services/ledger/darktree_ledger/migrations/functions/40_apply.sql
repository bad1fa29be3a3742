-- Applies a batch. Every customer's row is locked, in order of their ids, before anything is decided; decisions are
-- made in memory, one customer after another; everything is written at the end, set by set. Each id may be touched once a
-- call: what touches it again is not seen, or fails the call (the service sends such operations in a call of their own).
CREATE OR REPLACE FUNCTION ledger.apply(operations jsonb) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = ledger, pg_temp
SET timezone = 'UTC'
SET datestyle = 'ISO'    -- as which the answer's dates are told
-- Tables grow from empty under plans made when they were: always go by the index.
SET plan_cache_mode = 'force_generic_plan'
SET enable_seqscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
DECLARE
    at            timestamptz;
    utc_day       date;
    reset_seconds integer;
    customer_ids  text[];
    next_expiry   timestamptz;
    current_id    text;
    a             account;      -- of the current customer, as it will be
    d             day_usage;    -- their day, likewise
    e             entry;
    r             result;
    o             record;
    minimum       bigint;
    target        bigint;
    day_left      bigint;
    tokens        bigint;
    limit_tokens  bigint;
    limit_nanos   bigint;
    amount        bigint;
    bonus         bigint;
    written       bigint;
    done          step;
    used_prompt   bigint;
    used_complete bigint;
    old_day       day_usage;
    changed       boolean := false;
    results       text[];
    new_holds     hold[] := '{}';
    done_holds    hold[] := '{}';
    new_entries   entry[] := '{}';
    new_accounts  account[] := '{}';
    new_days      day_usage[] := '{}';
    h             hold;
BEGIN
    IF operations @> '[{"op": "open"}]' THEN
        at := clock_now();
        INSERT INTO account (customer_id, cap_tokens, today, head, opened_by, opened_at, recorded_at)
        SELECT DISTINCT ON (x.customer_id) x.customer_id, x.cap_tokens, at::date,
               sha256(field('darktree-account-v1'::text) || field(x.customer_id)), x.operation_id, at,
               coalesce((SELECT month_start((max(c.month) + interval '1 month')::date) FROM closed_month c), 'epoch')
        FROM jsonb_to_recordset(operations) AS x (op text, customer_id text COLLATE "C", cap_tokens bigint,
                                                  operation_id uuid)
        WHERE x.op = 'open' AND NOT EXISTS (SELECT FROM operation p WHERE p.operation_id = x.operation_id)
        ORDER BY x.customer_id
        ON CONFLICT DO NOTHING;
    END IF;

    -- Lock, in one order for everybody. The clock is read afterwards: a wait may have crossed midnight.
    SELECT array_agg(l.customer_id), min(l.next_expiry) INTO customer_ids, next_expiry FROM (
        SELECT x.customer_id, x.next_expiry FROM account x
        WHERE x.customer_id IN (SELECT y.customer_id FROM jsonb_to_recordset(operations) AS y (customer_id text COLLATE "C"))
        ORDER BY x.customer_id FOR UPDATE
    ) l;
    at := clock_now();
    utc_day := at::date;
    reset_seconds := ceil(extract(epoch FROM (utc_day + 1)::timestamptz - at));
    results := array_fill(NULL::text, ARRAY[jsonb_array_length(operations)]);

    IF next_expiry <= at THEN
        PERFORM reap(customer_ids, at);
    END IF;

    FOR o IN
        SELECT x.*, locked, counted, held, p.body AS applied_body, p.customer_id AS applied_customer_id,
               p.entry_id AS applied_entry_id, p.entry_seq AS applied_seq
        FROM ROWS FROM (jsonb_to_recordset(operations) AS (
            op text, operation_id uuid, hold_id uuid, customer_id text, key_id text, model text, lane text,
            prompt_tokens bigint, completion_tokens bigint, step_tokens bigint, exact boolean,
            prompt_price_nanos bigint, completion_price_nanos bigint, ttl_seconds integer,
            entry_id uuid, outcome text, amount_nanos bigint
        )) WITH ORDINALITY AS x (
            op, operation_id, hold_id, customer_id, key_id, model, lane, prompt_tokens, completion_tokens, step_tokens,
            exact, prompt_price_nanos, completion_price_nanos, ttl_seconds, entry_id, outcome, amount_nanos, "position")
        LEFT JOIN account locked ON locked.customer_id = x.customer_id
        LEFT JOIN day_usage counted ON counted.customer_id = x.customer_id AND counted.day = greatest(locked.today, utc_day)
        LEFT JOIN hold held ON held.hold_id = x.hold_id
        LEFT JOIN operation p ON p.operation_id = x.operation_id
        ORDER BY x.customer_id COLLATE "C", x.position
    LOOP
        IF current_id IS DISTINCT FROM o.customer_id THEN
            IF changed THEN
                new_accounts := array_append(new_accounts, a);
                new_days := array_append(new_days, d);
                changed := false;
            END IF;
            current_id := o.customer_id;
            a := o.locked;
            d := o.counted;
            a.today := greatest(a.today, utc_day);
            a.recorded_at := greatest(a.recorded_at, at);   -- a clock that steps back cannot bring a chain out of order
            IF d.customer_id IS NULL THEN
                d := ROW(current_id, a.today, a.cap_tokens, 0, 0, 0, 0, 0, 0, 0)::day_usage;
            END IF;
            d.cap_tokens := a.cap_tokens;
        END IF;

        r := NULL;
        r.outcome := 'done';
        h := o.held;

        IF a.customer_id IS NULL THEN
            r.outcome := 'refused';
            r.reason := 'unknown_customer';

        ELSIF o.op = 'hold' THEN
            IF h.hold_id IS NOT NULL THEN
                r.field := hold_difference(
                    h, o.customer_id, o.key_id, o.model, o.lane, o.prompt_tokens, o.completion_tokens, o.step_tokens,
                    o.exact, o.prompt_price_nanos, o.completion_price_nanos, o.ttl_seconds);
                IF r.field IS NOT NULL THEN
                    r.outcome := 'conflict';
                ELSE
                    r.replayed := true;
                END IF;
            ELSE
                minimum := least(o.step_tokens, o.completion_tokens);
                day_left := a.cap_tokens - d.prompt_tokens - d.completion_tokens;
                -- An inexact prompt has at least one token; an exact one has so many.
                tokens := CASE WHEN o.exact THEN o.prompt_tokens ELSE least(1, o.prompt_tokens) END;
                amount := tokens * o.prompt_price_nanos;
                IF tokens + minimum > day_left THEN
                    r.reason := 'cap';
                ELSIF amount + minimum * o.completion_price_nanos > a.balance_nanos THEN
                    r.reason := 'balance';
                ELSE
                    target := o.completion_tokens;
                    IF o.exact THEN
                        target := fitting(target, o.completion_price_nanos, day_left - tokens, a.balance_nanos - amount);
                        target := target - CASE WHEN target < o.completion_tokens THEN target % o.step_tokens ELSE 0 END;
                    END IF;
                    amount := o.prompt_tokens * o.prompt_price_nanos + target * o.completion_price_nanos;
                    tokens := o.prompt_tokens + target;
                    IF tokens > day_left - d.held_tokens OR amount > a.balance_nanos - a.held_nanos THEN
                        r.reason := CASE WHEN o.exact THEN 'in_flight' ELSE 'inexact' END;
                    END IF;
                END IF;
                IF r.reason IS NOT NULL THEN
                    r.outcome := 'refused';
                    IF r.reason IN ('cap', 'balance') THEN
                        d.refused_requests := d.refused_requests + 1;
                        changed := true;
                    END IF;
                ELSE
                    -- The casts spare a conversion, field by field, for every row.
                    h := ROW(o.hold_id, o.customer_id, o.key_id, o.model, o.lane, o.prompt_tokens, o.completion_tokens,
                             o.step_tokens, o.exact, o.prompt_price_nanos, o.completion_price_nanos, o.ttl_seconds,
                             target, amount, a.today, at, at + make_interval(secs => o.ttl_seconds), 'open',
                             NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)::hold;
                    new_holds := array_append(new_holds, h);
                    a.held_nanos := a.held_nanos + amount;
                    a.next_expiry := least(a.next_expiry, h.expires_at);
                    d.held_tokens := d.held_tokens + tokens;
                    changed := true;
                END IF;
            END IF;
            IF r.outcome = 'done' THEN
                r.completion_tokens := h.completion_tokens;
                r.usage_day := h.usage_day;
                r.expires_in_seconds := extract(epoch FROM h.expires_at - at);
            END IF;

        ELSIF o.op IN ('settle', 'void', 'renew') AND h.hold_id IS NULL THEN
            r.outcome := 'refused';
            r.reason := 'unknown_hold';

        ELSIF o.op IN ('settle', 'void', 'renew') AND h.customer_id <> o.customer_id THEN
            r.outcome := 'conflict';
            r.field := 'customer_id';

        ELSIF o.op = 'settle' THEN
            IF h.state = 'settled' THEN
                r.field := CASE
                    WHEN h.entry_id <> o.entry_id THEN 'entry_id'
                    WHEN h.used_prompt_tokens <> o.prompt_tokens THEN 'prompt_tokens'
                    WHEN h.used_completion_tokens <> o.completion_tokens THEN 'completion_tokens'
                    WHEN h.outcome <> o.outcome THEN 'outcome' END;
                IF r.field IS NOT NULL THEN
                    r.outcome := 'conflict';
                ELSE
                    r.replayed := true;
                END IF;
            ELSIF h.state = 'voided' THEN
                r.outcome := 'conflict';
                r.reason := 'resolved';
            ELSE
                -- A day that has passed is not in memory: it is read and written by itself.
                IF h.usage_day = d.day THEN
                    old_day := NULL;
                ELSE
                    SELECT * INTO old_day FROM day_usage x WHERE x.customer_id = a.customer_id AND x.day = h.usage_day;
                END IF;
                limit_tokens := h.prompt_tokens + h.completion_tokens;
                limit_nanos := h.amount_nanos;
                IF h.state = 'open' THEN
                    a.held_nanos := a.held_nanos - limit_nanos;
                    IF old_day.customer_id IS NULL THEN
                        d.held_tokens := d.held_tokens - limit_tokens;
                    ELSE
                        old_day.held_tokens := old_day.held_tokens - limit_tokens;
                    END IF;
                ELSIF old_day.customer_id IS NULL THEN
                    limit_tokens := least(limit_tokens, a.cap_tokens - d.prompt_tokens - d.completion_tokens - d.held_tokens);
                    limit_nanos := least(limit_nanos, a.balance_nanos - a.held_nanos);
                ELSE
                    limit_tokens := least(limit_tokens, old_day.cap_tokens - old_day.prompt_tokens
                                          - old_day.completion_tokens - old_day.held_tokens);
                    limit_nanos := least(limit_nanos, a.balance_nanos - a.held_nanos);
                END IF;
                used_prompt := fitting(o.prompt_tokens, h.prompt_price_nanos, limit_tokens, limit_nanos);
                amount := used_prompt * h.prompt_price_nanos;
                used_complete := fitting(o.completion_tokens, h.completion_price_nanos, limit_tokens - used_prompt,
                                         limit_nanos - amount);
                amount := amount + used_complete * h.completion_price_nanos;
                tokens := o.prompt_tokens + o.completion_tokens - used_prompt - used_complete;   -- absorbed

                IF used_prompt + used_complete > 0 OR tokens = 0 THEN
                    bonus := least(amount, a.bonus_nanos);
                    a.bonus_nanos := a.bonus_nanos - bonus;
                    a.balance_nanos := a.balance_nanos - amount;
                    a.seq := a.seq + 1;
                    e := ROW(o.entry_id, a.customer_id, a.seq, 'usage', 'customer_credits', 'revenue', amount,
                             a.balance_nanos, h.usage_day, h.hold_id, h.key_id, h.model, h.lane, used_prompt,
                             used_complete, h.prompt_price_nanos, h.completion_price_nanos, o.outcome, NULL, NULL, NULL,
                             a.recorded_at, pg_current_xact_id(), a.head, NULL, 2, bonus)::entry;
                    e.hash := entry_hash(e);
                    a.head := e.hash;
                    new_entries := array_append(new_entries, e);
                    h.entry_seq := a.seq;
                END IF;
                IF tokens > 0 THEN
                    a.seq := a.seq + 1;
                    e := ROW(CASE WHEN h.entry_seq IS NULL THEN o.entry_id ELSE gen_random_uuid() END,
                             a.customer_id, a.seq, 'absorbed', 'house_absorbed', 'revenue',
                             (o.prompt_tokens - used_prompt) * h.prompt_price_nanos
                             + (o.completion_tokens - used_complete) * h.completion_price_nanos,
                             a.balance_nanos, h.usage_day, h.hold_id, h.key_id, h.model, h.lane,
                             o.prompt_tokens - used_prompt, o.completion_tokens - used_complete,
                             h.prompt_price_nanos, h.completion_price_nanos, o.outcome,
                             CASE h.state WHEN 'expired' THEN 'settled after the hold expired'
                                          ELSE 'more than the hold' END,
                             NULL, NULL, a.recorded_at, pg_current_xact_id(), a.head, NULL, 2, 0)::entry;
                    e.hash := entry_hash(e);
                    a.head := e.hash;
                    new_entries := array_append(new_entries, e);
                    h.entry_seq := coalesce(h.entry_seq, a.seq);
                END IF;

                IF old_day.customer_id IS NULL THEN
                    d.requests := d.requests + 1;
                    d.prompt_tokens := d.prompt_tokens + used_prompt;
                    d.completion_tokens := d.completion_tokens + used_complete;
                    d.amount_nanos := d.amount_nanos + amount;
                    d.absorbed_tokens := d.absorbed_tokens + tokens;
                ELSE
                    UPDATE day_usage x SET
                        requests = x.requests + 1,
                        prompt_tokens = x.prompt_tokens + used_prompt,
                        completion_tokens = x.completion_tokens + used_complete,
                        amount_nanos = x.amount_nanos + amount,
                        absorbed_tokens = x.absorbed_tokens + tokens,
                        held_tokens = old_day.held_tokens
                    WHERE x.customer_id = a.customer_id AND x.day = h.usage_day;
                END IF;
                h.state := 'settled';
                h.resolved_at := at;
                h.entry_id := o.entry_id;
                h.used_prompt_tokens := o.prompt_tokens;
                h.used_completion_tokens := o.completion_tokens;
                h.outcome := o.outcome;
                h.charged_tokens := used_prompt + used_complete;
                h.absorbed_tokens := tokens;
                h.charged_nanos := amount;
                done_holds := array_append(done_holds, h);
                changed := true;
            END IF;
            IF r.outcome = 'done' THEN
                r.entry_id := h.entry_id;
                r.seq := h.entry_seq;
                r.charged_tokens := h.charged_tokens;
                r.absorbed_tokens := h.absorbed_tokens;
                r.amount_nanos := h.charged_nanos;
                r.usage_day := h.usage_day;
            END IF;

        ELSIF o.op = 'void' THEN
            IF h.state = 'settled' THEN
                r.outcome := 'conflict';
                r.reason := 'resolved';
            ELSIF h.state <> 'open' THEN
                r.replayed := true;    -- voided before, or released when it expired: the same to the caller
            ELSE
                a.held_nanos := a.held_nanos - h.amount_nanos;
                IF h.usage_day = d.day THEN
                    d.held_tokens := d.held_tokens - h.prompt_tokens - h.completion_tokens;
                ELSE
                    UPDATE day_usage x SET held_tokens = x.held_tokens - h.prompt_tokens - h.completion_tokens
                    WHERE x.customer_id = a.customer_id AND x.day = h.usage_day;
                END IF;
                h.state := 'voided';
                h.resolved_at := at;
                done_holds := array_append(done_holds, h);
                changed := true;
            END IF;

        ELSIF o.op = 'renew' THEN
            IF h.state = 'open' THEN
                h.expires_at := greatest(h.expires_at, at + make_interval(secs => o.ttl_seconds));
                done_holds := array_append(done_holds, h);
                r.expires_in_seconds := extract(epoch FROM h.expires_at - at);
            ELSE
                r.outcome := 'refused';
                r.reason := CASE h.state WHEN 'expired' THEN 'expired' ELSE 'resolved' END;
            END IF;

        ELSIF o.op <> 'show' THEN
            IF o.applied_body IS NOT NULL THEN
                SELECT key INTO r.field FROM jsonb_each(operations -> (o.position - 1)::integer) AS sent (key, value)
                WHERE sent.value IS DISTINCT FROM coalesce(o.applied_body -> sent.key, 'null') ORDER BY key LIMIT 1;
                IF r.field IS NOT NULL THEN
                    r.outcome := 'conflict';
                ELSE
                    r.replayed := true;
                    r.entry_id := o.applied_entry_id;
                    r.seq := o.applied_seq;
                    SELECT m.amount_nanos, m.rest_nanos INTO r.amount_nanos, r.rest_nanos
                    FROM operation p CROSS JOIN LATERAL moved(p) m WHERE p.operation_id = o.operation_id;
                END IF;
            ELSIF o.op = 'open' AND a.opened_by <> o.operation_id THEN
                r.replayed := true;
            ELSE
                done := administer(operations -> (o.position - 1)::integer, a, d, r, a.recorded_at);
                a := done.a;
                d := done.d;
                r := done.r;
                changed := changed OR r.outcome = 'done';
            END IF;
        END IF;

        -- Written by hand: to_json would cost more than the operation. What is null is left out, as concat does.
        results[o.position] := concat(
            '{"outcome":"', r.outcome, '"', ',"reason":"' || r.reason || '"', ',"field":' || to_json(r.field),
            CASE WHEN r.replayed THEN ',"replayed":true' END,
            ',"balance_nanos":' || a.balance_nanos, ',"held_nanos":' || a.held_nanos, ',"cap_tokens":' || a.cap_tokens,
            ',"day":"' || d.day || '"', ',"day_tokens":' || (d.prompt_tokens + d.completion_tokens),
            ',"day_held_tokens":' || d.held_tokens, ',"reset_seconds":' || CASE WHEN a.customer_id IS NOT NULL THEN reset_seconds END,
            ',"completion_tokens":' || r.completion_tokens, ',"usage_day":"' || r.usage_day || '"',
            ',"expires_in_seconds":' || r.expires_in_seconds, ',"entry_id":"' || r.entry_id || '"', ',"seq":' || r.seq,
            ',"charged_tokens":' || r.charged_tokens, ',"absorbed_tokens":' || r.absorbed_tokens,
            ',"amount_nanos":' || r.amount_nanos, ',"rest_nanos":' || r.rest_nanos, '}');
    END LOOP;
    IF changed THEN
        new_accounts := array_append(new_accounts, a);
        new_days := array_append(new_days, d);
    END IF;

    -- Each statement costs its start even when it has nothing to do, and most batches are small.
    IF cardinality(new_holds) > 0 THEN
        INSERT INTO hold SELECT * FROM unnest(new_holds);
    END IF;
    IF cardinality(done_holds) > 0 THEN
        UPDATE hold x SET
            state = y.state, expires_at = y.expires_at, resolved_at = y.resolved_at, entry_id = y.entry_id,
            entry_seq = y.entry_seq, used_prompt_tokens = y.used_prompt_tokens,
            used_completion_tokens = y.used_completion_tokens, outcome = y.outcome,
            charged_tokens = y.charged_tokens, absorbed_tokens = y.absorbed_tokens, charged_nanos = y.charged_nanos
        FROM unnest(done_holds) y WHERE x.hold_id = y.hold_id;
        GET DIAGNOSTICS written = ROW_COUNT;
        IF written <> cardinality(done_holds) THEN
            RAISE EXCEPTION 'a hold is touched twice in one call';
        END IF;
    END IF;
    IF cardinality(new_entries) > 0 THEN
        INSERT INTO entry SELECT * FROM unnest(new_entries);
    END IF;
    IF cardinality(new_accounts) > 0 THEN
        UPDATE account x SET
            balance_nanos = y.balance_nanos, held_nanos = y.held_nanos, bonus_nanos = y.bonus_nanos,
            next_expiry = y.next_expiry, cap_tokens = y.cap_tokens, today = y.today, seq = y.seq, head = y.head,
            recorded_at = y.recorded_at
        FROM unnest(new_accounts) y WHERE x.customer_id = y.customer_id;
        INSERT INTO day_usage SELECT * FROM unnest(new_days)
        ON CONFLICT (customer_id, day) DO UPDATE SET
            cap_tokens = excluded.cap_tokens, requests = excluded.requests, prompt_tokens = excluded.prompt_tokens,
            completion_tokens = excluded.completion_tokens, amount_nanos = excluded.amount_nanos,
            held_tokens = excluded.held_tokens, absorbed_tokens = excluded.absorbed_tokens,
            refused_requests = excluded.refused_requests;
    END IF;

    RETURN '[' || array_to_string(results, ',') || ']';
END $$;
