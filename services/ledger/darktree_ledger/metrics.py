"""What the ledger tells Prometheus beside what every service does."""

from prometheus_client import Gauge, Histogram

BATCH_OPERATIONS = Histogram(
    "darktree_ledger_batch_operations",
    "Operations that were applied in one database call and one commit.",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000),
)
PROJECTION_PROBLEMS = Gauge(
    "darktree_ledger_projection_problems",
    "Balances, days and heads that differ from their entries, as the last whole round and the present one found.",
)
PROJECTION_CHECKED = Gauge(
    "darktree_ledger_projection_checked_timestamp_seconds",
    "When this process last compared a slice of the projection with its entries.",
)
MONTHS_AHEAD = Gauge(
    "darktree_ledger_months_ahead", "Months to come that have a table for their entries already."
)
