"""What billing tells Prometheus beside what every service does: when it reconciles, and how buying goes."""

from prometheus_client import Counter, Gauge

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
WEBHOOKS = Counter(
    "darktree_stripe_webhooks_total",
    "Webhook events received: new, repeated, forged, or while buying is off.",
    ["result"],
)
for _result in ("new", "repeated", "forged", "off"):
    WEBHOOKS.labels(_result)  # at 0: a series that begins with its first event has not increased
EVENTS_HANDLED = Counter(
    "darktree_stripe_events_handled_total", "Attempts at events: done, ignored, failed, dead.", ["result"]
)
EVENTS_WAITING = Gauge("darktree_stripe_events_waiting", "Events that are not handled yet.")
EVENTS_OLDEST = Gauge(
    "darktree_stripe_events_oldest_seconds", "For how long the oldest of them has been waiting."
)
EVENTS_DEAD = Gauge("darktree_stripe_events_dead", "Events that were given up and need a person.")
ORDERS = Gauge("darktree_orders", "Orders that are not finished, by state; review needs a person.", ["state"])
BACKED_UP = Gauge(
    "darktree_backup_last_success_timestamp_seconds",
    "When the newest backup began that was recorded as whole; 0 when there was none.",
)
SWEPT = Gauge(
    "darktree_stripe_swept_timestamp_seconds",
    "When this process last asked Stripe for everything that may have been missed, and got it.",
)
BOOKS_DEBIT = Gauge(
    "darktree_books_debit_nanos",
    "Everything that an account of the books was ever debited, in nano-dollars; of revenue, by model.",
    ["account", "model"],
)
BOOKS_CREDIT = Gauge(
    "darktree_books_credit_nanos",
    "Everything that an account of the books was ever credited, in nano-dollars; of revenue, by model.",
    ["account", "model"],
)
KEYS_EXPIRING = Gauge(
    "darktree_api_keys_expiring", "Customers' keys that were used this week and expire within seven days."
)
CERTIFICATE_EXPIRY = Gauge(
    "darktree_certificate_expiry_timestamp_seconds",
    "When the certificate of an address of ours ends: the console's, the API's, the database's.",
    ["target"],
)
