-- What billing does to an account: rare operations, one at a time, each kept in `operation` so that its id is used once.

-- Adds one entry to a customer's chain and returns the account as it is then. `change_nanos` moves the balance.
CREATE OR REPLACE FUNCTION ledger.post_entry(
    a ledger.account, entry_id uuid, kind text, debit_account text, credit_account text, amount_nanos bigint,
    change_nanos bigint, bonus_nanos bigint, day date, reason text, actor text, reference text, at timestamptz
) RETURNS ledger.account LANGUAGE plpgsql SET search_path = ledger, pg_temp AS $$
DECLARE
    e entry;
BEGIN
    a.balance_nanos := a.balance_nanos + change_nanos;
    a.bonus_nanos := a.bonus_nanos + CASE WHEN change_nanos < 0 THEN -bonus_nanos ELSE bonus_nanos END;
    a.seq := a.seq + 1;
    e := ROW(entry_id, a.customer_id, a.seq, kind, debit_account, credit_account, amount_nanos, a.balance_nanos, day,
             NULL, NULL, NULL, NULL, 0, 0, 0, 0, NULL, reason, actor, reference, at, pg_current_xact_id(), a.head,
             NULL, 2, bonus_nanos);
    e.hash := entry_hash(e);
    a.head := e.hash;
    INSERT INTO entry SELECT e.*;
    RETURN a;
END $$;

-- What an operation moved. A claw-back took some from the balance, which is its first entry then, and the rest was lost;
-- a reinstatement moves the same back.
CREATE OR REPLACE FUNCTION ledger.moved(p ledger.operation, OUT amount_nanos bigint, OUT rest_nanos bigint)
LANGUAGE sql STABLE SET search_path = ledger, pg_temp AS $$
    SELECT CASE WHEN c.operation_id IS NULL THEN (p.body ->> 'amount_nanos')::bigint ELSE c.taken END,
           (c.body ->> 'amount_nanos')::bigint - c.taken
    FROM (SELECT) one LEFT JOIN (
        SELECT x.operation_id, x.body, CASE e.debit_account WHEN 'customer_credits' THEN e.amount_nanos ELSE 0 END AS taken
        FROM operation x
        JOIN every_entry e ON e.customer_id = x.customer_id AND e.recorded_at = x.applied_at AND e.seq = x.entry_seq
        WHERE x.operation_id = CASE p.body ->> 'op' WHEN 'claw_back' THEN p.operation_id
                                                    WHEN 'reinstate' THEN (p.body ->> 'claw_back_id')::uuid END
    ) c ON true
$$;

-- How much of each purchase (and of each adjustment that added credits) is unused, oldest first: paid credits are used
-- first in, first out, so what is left belongs to the newest.
CREATE OR REPLACE FUNCTION ledger.unused_purchases(a ledger.account)
RETURNS TABLE (operation_id uuid, amount_nanos bigint, taken_nanos bigint, rest_nanos bigint, unused_nanos bigint)
LANGUAGE sql STABLE SET search_path = ledger, pg_temp AS $$
    WITH bought AS (
        SELECT p.operation_id, p.entry_seq, (p.body ->> 'amount_nanos')::bigint AS amount
        FROM operation p
        WHERE p.customer_id = a.customer_id
          AND (p.body ->> 'op' = 'grant' AND p.body ->> 'source' = 'purchase'
               OR p.body ->> 'op' = 'adjust' AND (p.body ->> 'amount_nanos')::bigint > 0)
    ), clawed AS (
        SELECT (p.body ->> 'purchase_id')::uuid AS purchase_id, sum(m.amount_nanos) AS taken, sum(m.rest_nanos) AS rest
        FROM operation p CROSS JOIN LATERAL moved(p) m
        WHERE p.customer_id = a.customer_id AND p.body ->> 'op' = 'claw_back'
          AND NOT EXISTS (SELECT FROM operation x WHERE x.customer_id = p.customer_id AND x.body ->> 'op' = 'reinstate'
                          AND x.body ->> 'claw_back_id' = p.operation_id::text)
        GROUP BY 1
    ), lots AS (
        SELECT b.operation_id, b.entry_seq, b.amount, coalesce(c.taken, 0) AS taken, coalesce(c.rest, 0) AS rest,
               sum(b.amount - coalesce(c.taken, 0)) OVER (ORDER BY b.entry_seq DESC) AS from_here
        FROM bought b LEFT JOIN clawed c ON c.purchase_id = b.operation_id
    )
    SELECT l.operation_id, l.amount, l.taken::bigint, l.rest::bigint,
           greatest(0, least(l.amount - l.taken,
                             a.balance_nanos - a.bonus_nanos - (l.from_here - (l.amount - l.taken))))::bigint
    FROM lots l ORDER BY l.entry_seq
$$;

-- Takes back a purchase, as far as it is unused, and books the rest as what the house lost.
CREATE OR REPLACE FUNCTION ledger.claw_back(o jsonb, a ledger.account, r ledger.result, at timestamptz)
RETURNS ledger.step LANGUAGE plpgsql SET search_path = ledger, pg_temp AS $$
DECLARE
    wanted bigint := (o ->> 'amount_nanos')::bigint;
    lost   text := CASE o ->> 'cause' WHEN 'refund' THEN 'refunds' ELSE 'disputes' END;
    lot    record;
    taken  bigint;
BEGIN
    SELECT u.* INTO lot FROM unused_purchases(a) u JOIN operation p USING (operation_id)
    WHERE operation_id = (o ->> 'purchase_id')::uuid AND p.body ->> 'op' = 'grant';
    IF lot.operation_id IS NULL THEN
        r.reason := 'unknown_purchase';
    ELSIF wanted > lot.amount_nanos - lot.taken_nanos - lot.rest_nanos THEN
        r.reason := 'exceeds_purchase';
    END IF;
    IF r.reason IS NOT NULL THEN
        r.outcome := 'refused';
        RETURN ROW(a, NULL::day_usage, r)::step;
    END IF;
    taken := least(wanted, lot.unused_nanos, a.balance_nanos - a.held_nanos);
    r.entry_id := (o ->> 'operation_id')::uuid;
    r.seq := a.seq + 1;
    r.amount_nanos := taken;
    r.rest_nanos := wanted - taken;
    IF taken > 0 THEN
        a := post_entry(a, r.entry_id, o ->> 'cause', 'customer_credits', 'stripe_clearing', taken, -taken, 0, NULL,
                        o ->> 'reason', o ->> 'actor', o ->> 'reference', at);
    END IF;
    IF taken < wanted THEN
        a := post_entry(a, CASE WHEN taken > 0 THEN gen_random_uuid() ELSE r.entry_id END, o ->> 'cause', lost,
                        'stripe_clearing', wanted - taken, 0, 0, NULL, o ->> 'reason', o ->> 'actor',
                        o ->> 'reference', at);
    END IF;
    RETURN ROW(a, NULL::day_usage, r)::step;
END $$;

-- Gives back exactly what a claw-back took, and takes back exactly what was booked as lost.
CREATE OR REPLACE FUNCTION ledger.reinstate(o jsonb, a ledger.account, r ledger.result, at timestamptz)
RETURNS ledger.step LANGUAGE plpgsql SET search_path = ledger, pg_temp AS $$
DECLARE
    clawed operation;
    lost   text;
BEGIN
    SELECT * INTO clawed FROM operation p
    WHERE p.operation_id = (o ->> 'claw_back_id')::uuid AND p.customer_id = a.customer_id AND p.body ->> 'op' = 'claw_back';
    IF clawed.operation_id IS NULL THEN
        r.reason := 'unknown_claw_back';
    ELSIF EXISTS (SELECT FROM operation x WHERE x.customer_id = a.customer_id AND x.body ->> 'op' = 'reinstate'
                  AND x.body ->> 'claw_back_id' = clawed.operation_id::text) THEN
        r.reason := 'resolved';
    END IF;
    IF r.reason IS NOT NULL THEN
        r.outcome := 'refused';
        RETURN ROW(a, NULL::day_usage, r)::step;
    END IF;
    lost := CASE clawed.body ->> 'cause' WHEN 'refund' THEN 'refunds' ELSE 'disputes' END;
    SELECT m.amount_nanos, m.rest_nanos INTO r.amount_nanos, r.rest_nanos FROM moved(clawed) m;
    r.entry_id := (o ->> 'operation_id')::uuid;
    r.seq := a.seq + 1;
    IF r.amount_nanos > 0 THEN
        a := post_entry(a, r.entry_id, 'reinstatement', 'stripe_clearing', 'customer_credits', r.amount_nanos,
                        r.amount_nanos, 0, NULL, o ->> 'reason', o ->> 'actor', o ->> 'reference', at);
    END IF;
    IF r.rest_nanos > 0 THEN
        a := post_entry(a, CASE WHEN r.amount_nanos > 0 THEN gen_random_uuid() ELSE r.entry_id END, 'reinstatement',
                        'stripe_clearing', lost, r.rest_nanos, 0, 0, NULL, o ->> 'reason', o ->> 'actor',
                        o ->> 'reference', at);
    END IF;
    RETURN ROW(a, NULL::day_usage, r)::step;
END $$;

-- Applies one operation that nobody applied before. The caller holds the customer's row.
CREATE OR REPLACE FUNCTION ledger.administer(
    o jsonb, a ledger.account, d ledger.day_usage, r ledger.result, at timestamptz
) RETURNS ledger.step LANGUAGE plpgsql SET search_path = ledger, pg_temp AS $$
DECLARE
    op      text := o ->> 'op';
    amount  bigint := (o ->> 'amount_nanos')::bigint;
    bonus   bigint := 0;
    done    step;
BEGIN
    CASE op
    WHEN 'grant' THEN
        bonus := CASE o ->> 'source' WHEN 'bonus' THEN amount ELSE 0 END;
        a := post_entry(a, (o ->> 'operation_id')::uuid, 'grant',
                        CASE o ->> 'source' WHEN 'purchase' THEN 'stripe_clearing' ELSE 'bonus_credits' END,
                        'customer_credits', amount, amount, bonus, NULL, o ->> 'reason', o ->> 'actor',
                        o ->> 'reference', at);
    WHEN 'adjust' THEN
        IF amount > 0 THEN
            a := post_entry(a, (o ->> 'operation_id')::uuid, 'adjustment', 'adjustments', 'customer_credits', amount,
                            amount, 0, NULL, o ->> 'reason', o ->> 'actor', o ->> 'reference', at);
        ELSIF -amount > a.balance_nanos - a.held_nanos THEN
            r.outcome := 'refused';
            r.reason := 'balance';
        ELSE
            bonus := least(-amount, a.bonus_nanos);
            a := post_entry(a, (o ->> 'operation_id')::uuid, 'adjustment', 'customer_credits', 'adjustments', -amount,
                            amount, bonus, NULL, o ->> 'reason', o ->> 'actor', o ->> 'reference', at);
        END IF;
    WHEN 'post' THEN
        a := post_entry(a, (o ->> 'operation_id')::uuid, 'posting', o ->> 'debit_account', o ->> 'credit_account',
                        amount, 0, 0, (o ->> 'occurred_on')::date, o ->> 'reason', o ->> 'actor', o ->> 'reference', at);
    WHEN 'claw_back', 'reinstate' THEN
        IF op = 'claw_back' THEN
            done := claw_back(o, a, r, at);
        ELSE
            done := reinstate(o, a, r, at);
        END IF;
        a := done.a;
        r := done.r;
    WHEN 'cap', 'open' THEN
        INSERT INTO cap_change VALUES (
            (o ->> 'operation_id')::uuid, a.customer_id, (o ->> 'cap_tokens')::bigint,
            CASE op WHEN 'cap' THEN a.cap_tokens END, coalesce(o ->> 'reason', 'account opened'), o ->> 'actor', at);
        a.cap_tokens := (o ->> 'cap_tokens')::bigint;
        d.cap_tokens := a.cap_tokens;
    END CASE;

    IF op IN ('grant', 'adjust', 'post') AND r.outcome = 'done' THEN
        r.entry_id := (o ->> 'operation_id')::uuid;
        r.seq := a.seq;
        r.amount_nanos := amount;
    END IF;
    IF r.outcome = 'done' THEN
        INSERT INTO operation VALUES ((o ->> 'operation_id')::uuid, a.customer_id, o, r.entry_id, r.seq, at);
    END IF;
    RETURN ROW(a, d, r)::step;
END $$;
