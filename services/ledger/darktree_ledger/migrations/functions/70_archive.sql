-- Moves a closed month's entries out of the way, whole: its table is detached, kept, and a customer's base written down.
-- Nobody's role may execute it: whoever migrates does, after the month's file was written and verified (archive.py).

CREATE OR REPLACE FUNCTION ledger.archive_month(wanted date, file_entries bigint, file_sha256 bytea) RETURNS void
LANGUAGE plpgsql SET search_path = ledger, pg_temp SET timezone = 'UTC' AS $$
DECLARE
    part     text := 'entry_' || to_char(wanted, 'YYYY_MM');
    archived text := 'archived_entry_' || to_char(wanted, 'YYYY_MM');
    starts   timestamptz := month_start(wanted);
    ends     timestamptz := month_start((wanted + interval '1 month')::date);
    counted  bigint;
BEGIN
    IF EXISTS (SELECT FROM archived_month m WHERE m.month = wanted) THEN
        RAISE EXCEPTION 'the month is archived already' USING ERRCODE = 'DT001';
    END IF;
    IF NOT EXISTS (SELECT FROM closed_month c WHERE c.month = wanted) THEN
        RAISE EXCEPTION 'the month is not closed' USING ERRCODE = 'DT001';
    END IF;
    IF EXISTS (SELECT FROM entry e WHERE e.recorded_at < starts) THEN
        RAISE EXCEPTION 'an earlier month has to be archived first' USING ERRCODE = 'DT001';
    END IF;
    SELECT count(*) INTO counted FROM entry e WHERE e.recorded_at < ends;
    IF counted <> file_entries THEN
        RAISE EXCEPTION 'the file has % entries, but the month %', file_entries, counted USING ERRCODE = 'DT001';
    END IF;
    -- A base is where a chain goes on: nothing that stays may come before what leaves.
    IF EXISTS (
        SELECT FROM (SELECT x.customer_id, max(x.seq) AS seq FROM entry x WHERE x.recorded_at < ends GROUP BY 1) gone
        CROSS JOIN LATERAL (SELECT e.seq FROM entry e WHERE e.customer_id = gone.customer_id AND e.recorded_at >= ends
                            ORDER BY e.seq LIMIT 1) stays
        WHERE stays.seq < gone.seq
    ) THEN
        RAISE EXCEPTION 'an entry of a later month comes before one of this month' USING ERRCODE = 'DT001';
    END IF;

    INSERT INTO archive_base
    SELECT DISTINCT ON (e.customer_id) e.customer_id, wanted, e.seq, e.hash, e.balance_after_nanos,
           coalesce((SELECT b.bonus_nanos FROM base b WHERE b.customer_id = e.customer_id), 0)
           + sum(CASE WHEN e.credit_account = 'customer_credits' THEN e.bonus_nanos ELSE -e.bonus_nanos END)
             OVER (PARTITION BY e.customer_id)
    FROM entry e WHERE e.recorded_at < ends
    ORDER BY e.customer_id, e.seq DESC;
    INSERT INTO archived_month
    SELECT wanted, counted, file_sha256, max(e.usage_day), clock_now() FROM entry e WHERE e.recorded_at < ends;

    -- Said before it is attached, so that attaching need not read it.
    EXECUTE format('ALTER TABLE entry DETACH PARTITION %I', part);
    EXECUTE format('ALTER TABLE %I RENAME TO %I', part, archived);
    EXECUTE format('ALTER TABLE %I ADD CONSTRAINT of_its_month CHECK (recorded_at >= %L AND recorded_at < %L)',
                   archived, starts, ends);
    EXECUTE format('ALTER TABLE archived_entry ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                   archived, starts, ends);
    EXECUTE format('ALTER TABLE %I ENABLE ALWAYS TRIGGER refuse_change', archived);
END $$;
