-- Who may do what: the services' roles read and execute; nobody else anything.
REVOKE ALL ON ALL TABLES IN SCHEMA ledger FROM PUBLIC;
REVOKE ALL ON ALL ROUTINES IN SCHEMA ledger FROM PUBLIC;

GRANT USAGE ON SCHEMA ledger TO darktree_ledger, darktree_sealer;
GRANT SELECT ON
    ledger.account, ledger.day_usage, ledger.hold, ledger.operation, ledger.cap_change, ledger.entry, ledger.sealed,
    ledger.subtree, ledger.checkpoint, ledger.log_key, ledger.closed_month, ledger.month_total, ledger.month_balance,
    ledger.late_entry, ledger.every_entry, ledger.archived_month, ledger.archive_base, ledger.base
TO darktree_ledger;
GRANT EXECUTE ON FUNCTION
    ledger.apply(jsonb), ledger.prepare_months(), ledger.clock_now(), ledger.seal_lag(), ledger.close_month(date),
    ledger.entry_document(ledger.entry),
    ledger.month_start(date), ledger.month_entries(date, timestamptz), ledger.month_totals(date),
    ledger.month_balances(date), ledger.trial_balance(timestamptz)
TO darktree_ledger;

-- The sealer reads the log, never an entry.
GRANT SELECT ON ledger.sealed, ledger.subtree, ledger.checkpoint, ledger.log_key TO darktree_sealer;
GRANT EXECUTE ON FUNCTION
    ledger.seal(integer, boolean), ledger.add_subtrees(smallint[], bigint[], bytea[]),
    ledger.add_checkpoint(bigint, bytea, text), ledger.add_log_key(text, text), ledger.seal_lag(),
    ledger.left_behind()
TO darktree_sealer;
