"""What the sealer tells Prometheus beside what every service does."""

from prometheus_client import Counter, Gauge

LEADING = Gauge("darktree_sealer_leading", "1 while this sealer holds the log's lock; another waits with 0.")
SIZE = Gauge("darktree_sealer_log_entries", "Entries in the log.")
LAG_ENTRIES = Gauge("darktree_sealer_lag_entries", "Entries that are recorded and not yet in the log.")
LAG_SECONDS = Gauge("darktree_sealer_lag_seconds", "Age of the oldest entry that is not yet in the log.")
CHECKPOINT_SIZE = Gauge("darktree_sealer_checkpoint_entries", "Entries that the newest checkpoint covers.")
CHECKPOINT_AGE = Gauge(
    "darktree_sealer_checkpoint_age_seconds",
    "Age of the newest checkpoint; it grows while nothing is recorded.",
)
ROUND_FAILURES = Counter(
    "darktree_sealer_failures_total", "Rounds of sealing that failed; each is tried again."
)
ANCHORED_SIZE = Gauge(
    "darktree_sealer_anchored_entries", "Entries that the newest checkpoint at a target covers.", ["target"]
)
ANCHOR_FAILURES = Counter(
    "darktree_sealer_anchor_failures_total", "Attempts to anchor a checkpoint that failed.", ["target"]
)
