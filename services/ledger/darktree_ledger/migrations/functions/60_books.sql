-- Closing a month fixes for ever what belongs to it: everything recorded before its end and sealed by then.

CREATE OR REPLACE FUNCTION ledger.month_start(month date) RETURNS timestamptz LANGUAGE sql IMMUTABLE PARALLEL SAFE AS
$$ SELECT month::timestamp AT TIME ZONE 'UTC' $$;

-- The entries of a month that is open: those recorded in it, without those that a later month got because they were
-- late, and with those that were late for the months before.
CREATE OR REPLACE FUNCTION ledger.month_entries(month date, until timestamptz DEFAULT 'infinity') RETURNS SETOF ledger.entry
LANGUAGE sql STABLE SET search_path = ledger, pg_temp AS $$
    SELECT e.* FROM every_entry e
    WHERE e.recorded_at >= month_start(month)
      AND e.recorded_at < least(month_start((month + interval '1 month')::date), until)
      AND NOT EXISTS (SELECT FROM late_entry l WHERE l.customer_id = e.customer_id AND l.seq = e.seq)
    UNION ALL
    SELECT e.* FROM late_entry l
    JOIN every_entry e ON e.customer_id = l.customer_id AND e.seq = l.seq AND e.recorded_at = l.recorded_at
    WHERE l.book_month = month AND e.recorded_at < until
$$;

-- What moved in a month, summed; of a closed month as it was when it was closed.
CREATE OR REPLACE FUNCTION ledger.month_totals(wanted date) RETURNS SETOF ledger.month_total
LANGUAGE plpgsql STABLE SET search_path = ledger, pg_temp SET timezone = 'UTC' AS $$
BEGIN
    IF EXISTS (SELECT FROM closed_month c WHERE c.month = wanted) THEN
        RETURN QUERY SELECT * FROM month_total t WHERE t.month = wanted
                     ORDER BY t.day, t.customer_id, t.kind, t.debit_account, t.credit_account, t.model;
        RETURN;
    END IF;
    RETURN QUERY
    SELECT wanted, e.customer_id, e.recorded_at::date, e.kind, e.debit_account, e.credit_account, e.model, count(*),
           sum(e.amount_nanos)::bigint, sum(e.bonus_nanos)::bigint, sum(e.prompt_tokens)::bigint,
           sum(e.completion_tokens)::bigint
    FROM month_entries(wanted) e
    GROUP BY 2, 3, 4, 5, 6, 7 ORDER BY 3, 2, 4, 5, 6, 7;
END $$;

-- Where every customer stood at a month's beginning and end: as the month closed last before it says, and what moved in
-- open months since.
CREATE OR REPLACE FUNCTION ledger.month_balances(wanted date) RETURNS TABLE (
    customer_id text, opening_nanos bigint, opening_bonus_nanos bigint, closing_nanos bigint, closing_bonus_nanos bigint
) LANGUAGE sql STABLE SET search_path = ledger, pg_temp SET timezone = 'UTC' AS $$
    WITH known AS (
        SELECT max(x.month) AS month FROM closed_month x WHERE x.month < wanted
    ), moved AS (
        SELECT b.customer_id, false AS during, b.closing_nanos AS amount, b.closing_bonus_nanos AS bonus
        FROM month_balance b JOIN known USING (month)
        UNION ALL
        SELECT t.customer_id, t.month = wanted, t.amount_nanos * x.sign, t.bonus_nanos * x.sign
        FROM known CROSS JOIN LATERAL generate_series(
            least(wanted, coalesce(known.month + interval '1 month',
                                   (SELECT date_trunc('month', min(e.recorded_at)) FROM entry e))),
            least(wanted, greatest(known.month + interval '1 month', (SELECT max(a.recorded_at) FROM account a))),
            '1 month') m
        CROSS JOIN LATERAL month_totals(m::date) t
        CROSS JOIN LATERAL (SELECT (t.credit_account = 'customer_credits')::integer
                                   - (t.debit_account = 'customer_credits')::integer AS sign) x
    )
    SELECT m.customer_id, coalesce(sum(m.amount) FILTER (WHERE NOT m.during), 0)::bigint,
           coalesce(sum(m.bonus) FILTER (WHERE NOT m.during), 0)::bigint, sum(m.amount)::bigint, sum(m.bonus)::bigint
    FROM moved m GROUP BY 1 ORDER BY 1
$$;

-- Closes a month and returns it; a month that is closed already is only returned. Refused (with a message for people and
-- error code DT001) while the month runs, while an earlier month with entries is open, or before everything is signed.
CREATE OR REPLACE FUNCTION ledger.close_month(wanted date) RETURNS ledger.closed_month
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ledger, pg_temp SET timezone = 'UTC' AS $$
DECLARE
    closed closed_month;
    ends   timestamptz := month_start((wanted + interval '1 month')::date);
    needed bigint;
    counted bigint;
    before date;
BEGIN
    PERFORM pg_advisory_xact_lock(months_lock());
    SELECT * INTO closed FROM closed_month c WHERE c.month = wanted;
    IF closed.month IS NOT NULL THEN
        RETURN closed;
    END IF;
    -- A minute longer than any transaction may last, so that nothing of the month is still being written.
    IF clock_now() < ends + interval '1 minute' THEN
        RAISE EXCEPTION 'the month has not ended: it can be closed one minute after % UTC', ends::timestamp
            USING ERRCODE = 'DT001';
    END IF;
    SELECT max(c.month) INTO before FROM closed_month c;
    IF before > wanted THEN
        RAISE EXCEPTION 'a later month, %, is closed already', to_char(before, 'YYYY-MM') USING ERRCODE = 'DT001';
    END IF;
    SELECT date_trunc('month', min(e.recorded_at))::date INTO before FROM entry e
    WHERE e.recorded_at >= coalesce(month_start((before + interval '1 month')::date), '-infinity')
      AND e.recorded_at < month_start(wanted);
    IF before IS NOT NULL THEN
        RAISE EXCEPTION 'an earlier month, %, has to be closed first', to_char(before, 'YYYY-MM') USING ERRCODE = 'DT001';
    END IF;
    INSERT INTO month_total SELECT * FROM month_totals(wanted);
    SELECT coalesce(max(s.position) + 1, 0), count(s.position) INTO needed, counted FROM month_entries(wanted) e
    JOIN sealed s ON s.customer_id = e.customer_id AND s.seq = e.seq;
    IF counted <> (SELECT coalesce(sum(t.entries), 0) FROM month_total t WHERE t.month = wanted) THEN
        RAISE EXCEPTION 'some of the month''s entries are not sealed yet' USING ERRCODE = 'DT001';
    END IF;
    SELECT min(c.size) INTO closed.tree_size FROM checkpoint c WHERE c.size >= needed;
    IF closed.tree_size IS NULL THEN
        RAISE EXCEPTION 'no signed checkpoint covers the month''s entries yet' USING ERRCODE = 'DT001';
    END IF;
    -- Whatever the clock says from now on, nothing more is recorded in this month. In the order of apply: no deadlock.
    PERFORM FROM account a WHERE a.recorded_at < ends ORDER BY a.customer_id FOR UPDATE;
    UPDATE account a SET recorded_at = ends WHERE a.recorded_at < ends;
    INSERT INTO closed_month VALUES (wanted, closed.tree_size, clock_now()) RETURNING * INTO closed;
    INSERT INTO month_balance   -- from here on its totals are those that were fixed above
    SELECT wanted, b.customer_id, b.closing_nanos, b.closing_bonus_nanos FROM month_balances(wanted) b;
    RETURN closed;
END $$;

-- Debits and credits of every account as of an instant: closed months as they were closed, and what came after. What
-- was late for its month counts from the beginning of the month that got it.
CREATE OR REPLACE FUNCTION ledger.trial_balance(at timestamptz)
RETURNS TABLE (account text, model text, debit_nanos numeric, credit_nanos numeric)
LANGUAGE plpgsql STABLE SET search_path = ledger, pg_temp SET timezone = 'UTC' AS $$
DECLARE
    closed_until timestamptz;
BEGIN
    SELECT coalesce(month_start((max(c.month) + interval '1 month')::date), '-infinity') INTO closed_until
    FROM closed_month c WHERE month_start((c.month + interval '1 month')::date) <= at;
    RETURN QUERY
    WITH moved AS (
        SELECT t.debit_account, t.credit_account, t.model, sum(t.amount_nanos) AS amount, sum(t.bonus_nanos) AS bonus
        FROM month_total t WHERE month_start(t.month) < closed_until GROUP BY 1, 2, 3
        UNION ALL
        SELECT e.debit_account, e.credit_account, e.model, sum(e.amount_nanos), sum(e.bonus_nanos)
        FROM every_entry e
        WHERE e.recorded_at >= closed_until AND e.recorded_at < at
          AND NOT EXISTS (SELECT FROM late_entry l WHERE l.customer_id = e.customer_id AND l.seq = e.seq)
        GROUP BY 1, 2, 3
        UNION ALL
        SELECT e.debit_account, e.credit_account, e.model, e.amount_nanos, e.bonus_nanos
        FROM late_entry l
        JOIN every_entry e ON e.customer_id = l.customer_id AND e.seq = l.seq AND e.recorded_at = l.recorded_at
        WHERE month_start(l.book_month) >= closed_until AND month_start(l.book_month) < at
    ), posted AS (
        SELECT m.debit_account AS account, m.model, m.amount AS debit, 0::numeric AS credit FROM moved m
        UNION ALL
        -- The bonus part of what leaves the customers' credits goes back to where bonus came from.
        SELECT m.credit_account, m.model, 0,
               CASE WHEN m.debit_account = 'customer_credits' THEN m.amount - m.bonus ELSE m.amount END FROM moved m
        UNION ALL
        SELECT 'bonus_credits', NULL, 0, m.bonus FROM moved m WHERE m.debit_account = 'customer_credits'
    )
    SELECT p.account, CASE WHEN p.account = 'revenue' THEN p.model END, sum(p.debit), sum(p.credit)
    FROM posted p GROUP BY 1, 2 HAVING sum(p.debit) <> 0 OR sum(p.credit) <> 0 ORDER BY 1, 2;
END $$;
