"""The ledger: holds and batches, how far its log is behind, and that it agrees with everything it can be held against."""

from darktree_dashboards.panels import Query, Section, lines, number, quantiles

RATE = "[$__rate_interval]"
CHARGED = "darktree_reconciliation_lane_ledger_tokens"
PROCESSED = "darktree_reconciliation_lane_engine_tokens"


def sections() -> list[Section]:
    """Return the dashboard's rows."""
    return [_now(), _holds(), _log(), _comparisons(), _postgres()]


def _now() -> Section:
    return Section(
        "Now",
        [
            number(
                "Charged / processed",
                "Tokens that the ledger recorded in the last day, by those that engines counted: 1.000 is all of them, once.",
                f"round(sum(max by (lane, kind) ({CHARGED})) / sum(max by (lane, kind) ({PROCESSED})), 0.001)",
            ),
            number(
                "Differ from entries",
                "Balances, days and heads that are not what the entries say. Never anything but 0.",
                "sum(darktree_ledger_projection_problems)",
                bad=1,
            ),
            number(
                "Seal lag",
                "The age of the oldest entry without a place in the log.",
                "max(darktree_sealer_lag_seconds)",
                "s",
                warn=30,
                bad=300,
            ),
            number(
                "Holds open",
                "Of running requests.",
                'sum(max by (database) (darktree_ledger_open_holds{state="running"}))',
            ),
            number(
                "Holds expired, 1 h",
                "Whoever placed them never said what became of them.",
                "sum(max by (database) (increase(darktree_ledger_holds_expired_total[1h])))",
                warn=1,
            ),
            number(
                "Stripe differs by",
                "What the ledger has more than Stripe.",
                "sum(max by (bucket) (darktree_reconciliation_stripe_difference_nanos)) / 1e9",
                "currencyUSD",
            ),
        ],
    )


def _holds() -> Section:
    return Section(
        "Holds and batches",
        [
            lines(
                "Operations",
                "Operations a second, and the batches they come in: each is one call of the database and one commit.",
                Query(f"sum(rate(darktree_ledger_batch_operations_sum{RATE}))", "operations"),
                Query(f"sum(rate(darktree_ledger_batch_operations_count{RATE}))", "batches"),
            ),
            lines(
                "Batch size",
                "Operations in one commit.",
                *quantiles("darktree_ledger_batch_operations", of=(0.5, 0.99)),
                Query(
                    f"sum(rate(darktree_ledger_batch_operations_sum{RATE})) / sum(rate(darktree_ledger_batch_operations_count{RATE}))",
                    "mean",
                ),
            ),
            lines(
                "Time of a batch",
                "From its arrival at the ledger to the last byte of its answer.",
                *quantiles(
                    "darktree_http_request_duration_seconds",
                    where='service="ledger", route="/v1/operations"',
                ),
                unit="s",
            ),
            lines(
                "Open holds",
                "Of running requests; expired ones wait to be released.",
                Query("sum by (state) (max by (database, state) (darktree_ledger_open_holds))", "{{state}}"),
                Query("sum(darktree_gateway_holds_in_flight)", "as gateways count"),
            ),
            lines(
                "Expired and late",
                "Holds that expired a second, and renewals that came too late.",
                Query(f"sum(max by (database) (rate(darktree_ledger_holds_expired_total{RATE})))", "expired"),
                Query(f"sum(rate(darktree_gateway_renewals_refused_total{RATE}))", "renewed too late"),
            ),
            lines(
                "Journalled",
                "Charges a second that gateways wrote down because a ledger was away, and those that it refused for good.",
                Query(f"sum(rate(darktree_gateway_journalled_total{RATE}))", "journalled"),
                Query(f"sum(rate(darktree_gateway_dead_letters_total{RATE}))", "refused for good"),
            ),
        ],
    )


def _log() -> Section:
    return Section(
        "The log",
        [
            lines(
                "Seal lag",
                "How long the oldest entry has waited for its place.",
                Query("max(darktree_sealer_lag_seconds)", "lag"),
                unit="s",
                limit=300,
            ),
            lines(
                "Entries without a place",
                "Recorded and not in the log; in the log and not under a checkpoint yet.",
                Query("sum(darktree_sealer_lag_entries)", "not in the log"),
                Query("sum(darktree_sealer_log_entries - darktree_sealer_checkpoint_entries)", "not signed"),
            ),
            lines(
                "Anchors",
                "Entries that no checkpoint outside covers yet, and attempts a second that failed.",
                Query(
                    "max by (target) (scalar(max(darktree_sealer_log_entries)) - darktree_sealer_anchored_entries)",
                    "{{target}} behind",
                ),
                Query(f"sum(rate(darktree_sealer_anchor_failures_total{RATE}))", "failures"),
            ),
        ],
    )


def _comparisons() -> Section:
    return Section(
        "What it is held against",
        [
            lines(
                "Charged / processed",
                "By lane and kind: 1.000 when every token that an engine counted was recorded once.",
                Query(
                    f"max by (lane, kind) ({CHARGED}) / max by (lane, kind) ({PROCESSED})",
                    "{{lane}} {{kind}}",
                ),
            ),
            lines(
                "Stripe",
                "Open exceptions by kind.",
                Query(
                    "sum by (bucket) (max by (bucket) (darktree_reconciliation_stripe_exceptions))",
                    "{{bucket}}",
                ),
                stacked=True,
            ),
            lines(
                "Age of the comparisons",
                "Since the ledger was last held against engines and Stripe, and its projection against its entries.",
                Query("time() - max(darktree_reconciliation_timestamp_seconds)", "with engines and Stripe"),
                Query(
                    "time() - max(darktree_ledger_projection_checked_timestamp_seconds)",
                    "with its entries",
                ),
                unit="s",
            ),
        ],
    )


def _postgres() -> Section:
    return Section(
        "Postgres",
        [
            lines(
                "Connections",
                "Of all that it takes: DarktreePostgresConnections comes at 80 %.",
                Query(
                    "max by (database) (darktree_postgres_connections / darktree_postgres_max_connections)",
                    "{{database}}",
                ),
                unit="percentunit",
                limit=0.8,
            ),
            lines(
                "Size",
                "Of the ledger's database.",
                Query("max by (database) (darktree_postgres_size_bytes)", "{{database}}"),
                unit="bytes",
            ),
            lines(
                "Months ahead",
                "That have a table for their entries.",
                Query("min(darktree_ledger_months_ahead)", "months"),
            ),
        ],
    )
