"""What customers spend today, how near they are to their caps, and that nobody is past one."""

from darktree_dashboards.panels import Query, Section, lines, number

DOLLARS = "currencyUSD"


def of_databases(metric: str, where: str = "") -> str:
    """Sum over databases what every ledger tells of its own: several ledgers of one database say the same."""
    return f"sum(max by (database) ({metric}{{{where}}}))"


def sections() -> list[Section]:
    """Return the dashboard's rows."""
    return [_today(), _spend(), _refused()]


def _today() -> Section:
    return Section(
        "Today (UTC)",
        [
            number(
                "Charged",
                "What was charged since midnight.",
                of_databases("darktree_ledger_today_charged_nanos") + " / 1e9",
                DOLLARS,
            ),
            number(
                "Tokens charged",
                "Prompt and completion.",
                'sum(max by (database, kind) (darktree_ledger_today_tokens{kind!="absorbed"}))',
            ),
            number(
                "Of the caps",
                "How much of the caps of today's active customers is used.",
                f'sum(max by (database, kind) (darktree_ledger_today_tokens{{kind!="absorbed"}})) / {of_databases("darktree_ledger_today_cap_tokens")}',
                "percentunit",
            ),
            number(
                "Near or at the cap",
                "Customers who have used 80 % of their cap, or all of it.",
                'sum(max by (database, use) (darktree_ledger_today_customers{use=~"near_cap|at_cap"}))',
                warn=1,
            ),
            number(
                "Without credit",
                "Customers who have used all that they paid for.",
                of_databases("darktree_ledger_customers_without_credit"),
                warn=1,
            ),
            number(
                "Past a limit",
                "Customers past a cap or a balance. Never anything but 0: DarktreeLimitBreached.",
                "sum(max by (database, limit) (darktree_ledger_limit_breaches))",
                bad=1,
            ),
        ],
    )


def _spend() -> Section:
    return Section(
        "Spend",
        [
            lines(
                "Charged in an hour",
                "What the last hour before each moment was charged. The day's sum falls to zero at midnight, which increase() takes for a restart.",
                Query(
                    "sum(max by (database) (increase(darktree_ledger_today_charged_nanos[1h]))) / 1e9",
                    "charged",
                ),
                unit=DOLLARS,
            ),
            lines(
                "Tokens",
                "Tokens a second: charged as prompt and completion, and absorbed by the house because they came past their hold.",
                Query(
                    "sum by (kind) (max by (database, kind) (rate(darktree_ledger_today_tokens[$__rate_interval])))",
                    "{{kind}}",
                ),
                stacked=True,
            ),
            lines(
                "Tokens by lane",
                "What gateways metered.",
                Query(
                    "sum by (lane) (rate(darktree_lane_metered_tokens_total[$__rate_interval]))",
                    "{{lane}}",
                ),
                stacked=True,
            ),
            lines(
                "Credits",
                "Credits that are not used: paid, bonus, and what running requests hold of both.",
                Query(
                    "sum by (kind) (max by (database, kind) (darktree_ledger_balance_nanos)) / 1e9",
                    "{{kind}}",
                ),
                Query(of_databases("darktree_ledger_held_nanos") + " / 1e9", "held"),
                unit=DOLLARS,
            ),
            lines(
                "Customers by use of their cap",
                "Customers who were active today.",
                Query("sum by (use) (max by (database, use) (darktree_ledger_today_customers))", "{{use}}"),
                stacked=True,
            ),
            lines(
                "Past a limit",
                "Customers past a balance or a cap: a line that must stay at zero.",
                Query(
                    "sum by (limit) (max by (database, limit) (darktree_ledger_limit_breaches))",
                    "{{limit}}",
                ),
                limit=1,
            ),
        ],
    )


def _refused() -> Section:
    return Section(
        "Refused and cut short",
        [
            lines(
                "Refused by the ledger",
                "Requests a second, by reason: the daily cap, the balance, or the customer's own running requests.",
                Query(
                    "sum by (reason) (rate(darktree_gateway_holds_refused_total[$__rate_interval])) or vector(0)",
                    "{{reason}}",
                ),
                stacked=True,
            ),
            lines(
                "Refused today",
                "Requests of this UTC day that a limit refused, beside those that were charged.",
                Query(
                    "sum by (outcome) (max by (database, outcome) (darktree_ledger_today_requests))",
                    "{{outcome}}",
                ),
            ),
            lines(
                "Granted less than asked",
                "Requests a second whose answer was cut to what was left, and prompts that an engine had to count because the bound did not fit.",
                Query("sum(rate(darktree_gateway_clamped_total[$__rate_interval]))", "cut short"),
                Query("sum(rate(darktree_gateway_prompts_counted_total[$__rate_interval]))", "counted"),
            ),
        ],
    )
