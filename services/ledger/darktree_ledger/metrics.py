"""What the ledger tells Prometheus beside what every service does."""

from prometheus_client import Histogram

BATCH_OPERATIONS = Histogram(
    "darktree_ledger_batch_operations",
    "Operations that were applied in one database call and one commit.",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000),
)
