-- What the sealer does: give every entry a position in the log, and keep what is computed from them.

CREATE OR REPLACE FUNCTION ledger.log_lock() RETURNS bigint LANGUAGE sql IMMUTABLE AS $$ SELECT x'64744c6f67'::bigint $$;

-- The newest sealed transaction, if it can be one of this cluster's.
CREATE OR REPLACE FUNCTION ledger.log_cursor(newest xid8) RETURNS xid8
LANGUAGE sql STABLE SET search_path = ledger, pg_temp AS $$
    SELECT CASE WHEN newest < pg_snapshot_xmax(pg_current_snapshot()) THEN newest END
$$;

-- Held while positions are given out and while a month is closed, so that an entry is in the month or late for it.
CREATE OR REPLACE FUNCTION ledger.months_lock() RETURNS bigint LANGUAGE sql IMMUTABLE AS $$ SELECT x'64746d6f6e'::bigint $$;

-- Appends up to so many entries to the log and returns their positions and hashes, in order. Entries are taken in order
-- of visibility: of transactions older than every running one, so that none can appear later between those taken. After
-- a restore into another cluster transaction ids begin anew: a cursor that this cluster has not reached yet is none, and
-- `sweep` takes what the old cluster left without a position, at the cost of looking at every entry.
CREATE OR REPLACE FUNCTION ledger.seal(max_entries integer, sweep boolean DEFAULT false)
RETURNS TABLE ("position" bigint, hash bytea)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ledger, pg_temp
SET plan_cache_mode = 'force_custom_plan' SET enable_seqscan = off SET enable_hashjoin = off AS $$
#variable_conflict use_column
DECLARE
    newest sealed;
    cursor_xid xid8;
    open_month date;
BEGIN
    IF NOT pg_try_advisory_xact_lock(log_lock()) THEN
        RAISE EXCEPTION 'another sealer is at work' USING ERRCODE = 'lock_not_available';
    END IF;
    PERFORM pg_advisory_xact_lock(months_lock());
    SELECT * INTO newest FROM sealed x ORDER BY x.position DESC LIMIT 1;
    cursor_xid := log_cursor(newest.xid);
    SELECT max(m.month) + interval '1 month' INTO open_month FROM closed_month m;
    RETURN QUERY
    WITH picked AS (
        SELECT e.customer_id, e.seq, e.hash, e.xid, e.recorded_at
        FROM entry e
        WHERE NOT sweep AND e.xid < pg_snapshot_xmin(pg_current_snapshot())
          AND (cursor_xid IS NULL OR (e.xid, e.customer_id, e.seq) > (cursor_xid, newest.customer_id, newest.seq))
          AND NOT EXISTS (SELECT FROM sealed x WHERE x.customer_id = e.customer_id AND x.seq = e.seq)
        ORDER BY e.xid, e.customer_id, e.seq
        LIMIT max_entries
    ), swept AS (
        SELECT e.customer_id, e.seq, e.hash, e.xid, e.recorded_at
        FROM entry e
        WHERE sweep AND (e.xid < pg_snapshot_xmin(pg_current_snapshot())
                         OR e.xid >= pg_snapshot_xmax(pg_current_snapshot()))
          AND NOT EXISTS (SELECT FROM sealed x WHERE x.customer_id = e.customer_id AND x.seq = e.seq)
        ORDER BY e.recorded_at, e.customer_id, e.seq
        LIMIT CASE WHEN sweep THEN max_entries ELSE 0 END
    ), placed AS (
        SELECT coalesce(newest.position + 1, 0)
               + row_number() OVER (ORDER BY p.xid, p.customer_id, p.seq) - 1 AS place, p.*
        FROM (SELECT * FROM picked UNION ALL SELECT * FROM swept) p
    ), late AS (
        INSERT INTO late_entry
        SELECT p.place, p.recorded_at, p.customer_id, p.seq, open_month
        FROM placed p WHERE p.recorded_at < open_month::timestamp AT TIME ZONE 'UTC'
    ), added AS (
        INSERT INTO sealed SELECT p.place, p.customer_id, p.seq, p.hash, p.xid FROM placed p
        RETURNING sealed.position, sealed.hash
    )
    SELECT x.position, x.hash FROM added x ORDER BY x.position;
END $$;

CREATE OR REPLACE FUNCTION ledger.add_subtrees(levels smallint[], indexes bigint[], hashes bytea[]) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = ledger, pg_temp AS $$
    INSERT INTO subtree SELECT * FROM unnest(levels, indexes, hashes)
$$;

CREATE OR REPLACE FUNCTION ledger.add_checkpoint(size bigint, root bytea, note text) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = ledger, pg_temp AS $$
    INSERT INTO checkpoint VALUES (size, root, note, clock_now()) ON CONFLICT DO NOTHING
$$;

CREATE OR REPLACE FUNCTION ledger.add_log_key(vkey text, endorsement text) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = ledger, pg_temp AS $$
    INSERT INTO log_key
    SELECT vkey, endorsement, coalesce(max(x.position) + 1, 0), clock_now() FROM sealed x
    ON CONFLICT DO NOTHING
$$;

-- How far the log is behind: entries without a position, and how old the oldest of them is. Every customer's entries are
-- numbered densely, so their sum is the number of entries.
CREATE OR REPLACE FUNCTION ledger.seal_lag(OUT entries bigint, OUT seconds double precision)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = ledger, pg_temp AS $$
DECLARE
    newest sealed;
    cursor_xid xid8;
BEGIN
    SELECT * INTO newest FROM sealed x ORDER BY x.position DESC LIMIT 1;
    cursor_xid := log_cursor(newest.xid);
    SELECT coalesce(sum(a.seq), 0) - coalesce(newest.position + 1, 0) INTO entries FROM account a;
    seconds := 0;
    IF entries > 0 THEN
        SELECT greatest(0, extract(epoch FROM clock_now() - e.recorded_at)) INTO seconds
        FROM entry e
        WHERE (cursor_xid IS NULL OR (e.xid, e.customer_id, e.seq) > (cursor_xid, newest.customer_id, newest.seq))
          AND NOT EXISTS (SELECT FROM sealed x WHERE x.customer_id = e.customer_id AND x.seq = e.seq)
        ORDER BY e.xid, e.customer_id, e.seq LIMIT 1;
        seconds := coalesce(seconds, 0);
    END IF;
END $$;

-- How many entries the cursor will not come to by itself: what a sweep is for. STABLE: all of it is of one instant.
CREATE OR REPLACE FUNCTION ledger.left_behind() RETURNS bigint
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = ledger, pg_temp AS $$
DECLARE
    newest sealed;
    cursor_xid xid8;
BEGIN
    SELECT * INTO newest FROM sealed x ORDER BY x.position DESC LIMIT 1;
    cursor_xid := log_cursor(newest.xid);
    RETURN (SELECT coalesce(sum(a.seq), 0) FROM account a) - coalesce(newest.position + 1, 0)
        - (SELECT count(*) FROM entry e
           WHERE e.xid < pg_snapshot_xmax(pg_current_snapshot())
             AND (cursor_xid IS NULL OR (e.xid, e.customer_id, e.seq) > (cursor_xid, newest.customer_id, newest.seq))
             AND NOT EXISTS (SELECT FROM sealed x WHERE x.customer_id = e.customer_id AND x.seq = e.seq));
END $$;
