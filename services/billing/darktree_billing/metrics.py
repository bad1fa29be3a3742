"""What billing tells Prometheus beside what every service does. Set when it reconciles."""

from prometheus_client import Gauge

RECONCILED = Gauge(
    "darktree_reconciliation_timestamp_seconds", "When this process last held the ledger against the rest."
)
LANE_ENGINE_TOKENS = Gauge(
    "darktree_reconciliation_lane_engine_tokens",
    "Tokens that a lane's engines processed in the last day, restarts included.",
    ["lane", "kind"],
)
LANE_LEDGER_TOKENS = Gauge(
    "darktree_reconciliation_lane_ledger_tokens",
    "Tokens that the ledger charged or absorbed on a lane in the same time.",
    ["lane", "kind"],
)
STRIPE_UNKNOWN = Gauge(
    "darktree_reconciliation_stripe_unknown", "1 while the ledger cannot be held against Stripe's balance."
)
STRIPE_EXCEPTIONS = Gauge(
    "darktree_reconciliation_stripe_exceptions",
    "Open exceptions between the ledger and Stripe's balance.",
    ["bucket"],
)
STRIPE_DIFFERENCE = Gauge(
    "darktree_reconciliation_stripe_difference_nanos",
    "What the ledger has more than Stripe, in nano-dollars, by kind of exception.",
    ["bucket"],
)
