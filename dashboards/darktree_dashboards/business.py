"""Credits sold, used, and left; what may never be used; customers near their limits; and how payments go."""

from darktree_dashboards.panels import Query, Section, lines, number
from darktree_dashboards.spend import DOLLARS, of_databases

# Credits of customers came from purchases, and from bonus; revenue came from them, and from what the house absorbed.
SOLD = '((sum(max by (account) (darktree_books_credit_nanos{account="customer_credits"})) or vector(0)) - (sum(max by (account) (darktree_books_debit_nanos{account="bonus_credits"})) or vector(0))) / 1e9'
USED = '((sum(max by (account, model) (darktree_books_credit_nanos{account="revenue"})) or vector(0)) - (sum(max by (account) (darktree_books_debit_nanos{account="house_absorbed"})) or vector(0))) / 1e9'
PAID = of_databases("darktree_ledger_balance_nanos", 'kind="paid"') + " / 1e9"
DORMANT = of_databases("darktree_ledger_dormant_nanos") + " / 1e9"


def sections() -> list[Section]:
    """Return the dashboard's rows."""
    return [_now(), _credits(), _payments()]


def _now() -> Section:
    return Section(
        "Now",
        [
            number(
                "Credits sold",
                "Ever, without bonus; refunds and disputes are not taken off.",
                SOLD,
                DOLLARS,
            ),
            number("Used", "Ever: what customers' credits paid for.", USED, DOLLARS),
            number("Owed", "Paid and not used: deferred revenue.", PAID, DOLLARS),
            number(
                "Dormant",
                "Owed to customers who have sent nothing for 90 days: what breakage is estimated from. It stays owed; nothing expires.",
                DORMANT,
                DOLLARS,
            ),
            number("Customers", "With an account.", of_databases("darktree_ledger_customers")),
            number(
                "Near or at the cap",
                "Customers for whom the next plan is worth a word.",
                'sum(max by (database, use) (darktree_ledger_today_customers{use=~"near_cap|at_cap"}))',
            ),
        ],
    )


def _credits() -> Section:
    return Section(
        "Credits",
        [
            lines("Sold and used", "Ever.", Query(SOLD, "sold"), Query(USED, "used"), unit=DOLLARS),
            lines(
                "Revenue by model",
                "Of the last day before each moment.",
                Query(
                    'sum by (model) (max by (model) (increase(darktree_books_credit_nanos{account="revenue"}[1d]))) / 1e9 or vector(0)',
                    "{{model}}",
                ),
                unit=DOLLARS,
                stacked=True,
            ),
            lines(
                "Owed",
                "Paid credits, those of them that are dormant, and bonus credits.",
                Query(PAID, "paid"),
                Query(DORMANT, "dormant"),
                Query(of_databases("darktree_ledger_balance_nanos", 'kind="bonus"') + " / 1e9", "bonus"),
                unit=DOLLARS,
            ),
            lines(
                "Dormant share",
                "Of what is owed.",
                Query(f"({DORMANT}) / ({PAID} > 0) or vector(0)", "dormant"),
                unit="percentunit",
            ),
            lines(
                "Customers",
                "With an account, active today, and without credit.",
                Query(of_databases("darktree_ledger_customers"), "with an account"),
                Query("sum(max by (database, use) (darktree_ledger_today_customers))", "active today"),
                Query(of_databases("darktree_ledger_customers_without_credit"), "without credit"),
            ),
            lines(
                "Use of caps",
                "Customers who were active today.",
                Query("sum by (use) (max by (database, use) (darktree_ledger_today_customers))", "{{use}}"),
                stacked=True,
            ),
        ],
    )


def _payments() -> Section:
    return Section(
        "Payments",
        [
            lines(
                "Orders that are not finished",
                "`review` needs a person: DarktreeOrdersInReview.",
                Query("max by (state) (darktree_orders)", "{{state}}"),
                stacked=True,
            ),
            lines(
                "Events of Stripe's",
                "Received, by what they were; and attempts at them, by what became of them.",
                Query(
                    "sum by (result) (rate(darktree_stripe_webhooks_total[$__rate_interval]))",
                    "received, {{result}}",
                ),
                Query(
                    "sum by (result) (rate(darktree_stripe_events_handled_total[$__rate_interval]))",
                    "handled, {{result}}",
                ),
            ),
            lines(
                "Events that wait",
                "And those that were given up.",
                Query("max(darktree_stripe_events_waiting)", "waiting"),
                Query("max(darktree_stripe_events_dead)", "dead"),
            ),
            lines(
                "Oldest waiting event",
                "Its age: DarktreeStripeEventsWait at 15 minutes.",
                Query("max(darktree_stripe_events_oldest_seconds)", "age"),
                unit="s",
                limit=900,
            ),
            lines(
                "Since the last sweep",
                "Which finds what no webhook brought.",
                Query("time() - max(darktree_stripe_swept_timestamp_seconds)", "age"),
                unit="s",
                limit=3600,
            ),
            lines(
                "Keys that expire",
                "Within a week, of those in use.",
                Query("max(darktree_api_keys_expiring)", "keys"),
                limit=1,
            ),
        ],
    )
