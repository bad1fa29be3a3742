"""What the ledger tells Prometheus beside what every service does."""

from prometheus_client import Counter, Gauge, Histogram

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

# Of the ledger as a whole (standing.py). `database` tells databases apart, never customers.
CUSTOMERS = Gauge("darktree_ledger_customers", "Customers with an account.", ["database"])
WITHOUT_CREDIT = Gauge(
    "darktree_ledger_customers_without_credit", "Customers who have used all their credits.", ["database"]
)
BALANCE = Gauge(
    "darktree_ledger_balance_nanos",
    "Credits that are not used yet, in nano-dollars: paid ones, which are owed to customers, and bonus.",
    ["database", "kind"],
)
HELD = Gauge("darktree_ledger_held_nanos", "What running requests hold, in nano-dollars.", ["database"])
DORMANT = Gauge(
    "darktree_ledger_dormant_nanos",
    "Paid credits of customers who have sent nothing for 90 days, in nano-dollars: what may never be used.",
    ["database"],
)
BREACHES = Gauge(
    "darktree_ledger_limit_breaches",
    "Customers past their balance, or past the highest cap that this day has had. Never anything but 0.",
    ["database", "limit"],
)
OPEN_HOLDS = Gauge(
    "darktree_ledger_open_holds",
    "Holds that nothing has resolved: of running requests, or expired and about to be released.",
    ["database", "state"],
)
HOLDS_EXPIRED = Counter(
    "darktree_ledger_holds_expired_total",
    "Holds that were released because whoever placed them never said what became of them.",
    ["database"],
)
TODAY_TOKENS = Gauge(
    "darktree_ledger_today_tokens",
    "Tokens of this UTC day: charged (prompt and completion), and absorbed by the house.",
    ["database", "kind"],
)
TODAY_REQUESTS = Gauge(
    "darktree_ledger_today_requests",
    "Requests of this UTC day: charged, and refused.",
    ["database", "outcome"],
)
TODAY_CHARGED = Gauge(
    "darktree_ledger_today_charged_nanos",
    "What this UTC day has been charged, in nano-dollars.",
    ["database"],
)
TODAY_CAPS = Gauge(
    "darktree_ledger_today_cap_tokens", "The daily caps of customers who were active today.", ["database"]
)
TODAY_CUSTOMERS = Gauge(
    "darktree_ledger_today_customers",
    "Customers active today, by how much of their cap is used: below_half, above_half, near_cap (80 %), at_cap.",
    ["database", "use"],
)
CONNECTIONS = Gauge("darktree_postgres_connections", "Connections to the ledger's Postgres.", ["database"])
MOST_CONNECTIONS = Gauge(
    "darktree_postgres_max_connections", "The most that it takes from other than superusers.", ["database"]
)
SIZE_BYTES = Gauge("darktree_postgres_size_bytes", "How large the ledger's database is.", ["database"])
LIMIT_BYTES = Gauge(
    "darktree_postgres_limit_bytes", "How large it may become, when a setting says so.", ["database"]
)
