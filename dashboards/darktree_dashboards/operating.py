"""The operator: whether it looks, how long a look takes, what it puts back, and where its lanes stand."""

from darktree_dashboards.panels import Query, Section, lines, number, quantiles, rows

RATE = "[$__rate_interval]"


def sections() -> list[Section]:
    """Return the dashboard's rows."""
    return [_now(), _work(), _lanes()]


def _now() -> Section:
    return Section(
        "Now",
        [
            number("Leads", "Operators that write: exactly one.", "sum(darktree_operator_leading)"),
            number(
                "Overdue",
                "How long the lane that waits longest should have been looked at: DarktreeOperatorStale at 120 s.",
                "max(darktree_operator_overdue_seconds)",
                "s",
                warn=30,
                bad=120,
            ),
            number("Looks", "At a lane, a second.", f"sum(rate(darktree_operator_looks_total{RATE}))"),
            number(
                "Failed",
                "Share of looks that failed; each is tried again.",
                f'(sum(rate(darktree_operator_looks_total{{outcome="failed"}}{RATE})) or vector(0)) / sum(rate(darktree_operator_looks_total{RATE}))',
                "percentunit",
                warn=0.05,
                bad=0.5,
            ),
            number(
                "Look, p95",
                "How long one look takes.",
                quantiles("darktree_operator_look_seconds", of=(0.95,))[0].expression,
                "s",
                warn=1,
                bad=10,
            ),
            number(
                "Put back, 1 h",
                "Objects that somebody else had changed: DarktreeLaneDrift.",
                "sum(increase(darktree_operator_drift_corrected_total[1h])) or vector(0)",
                warn=1,
            ),
        ],
    )


def _work() -> Section:
    return Section(
        "Work",
        [
            lines(
                "Looks",
                "A second, by how they ended.",
                Query(f"sum by (outcome) (rate(darktree_operator_looks_total{RATE}))", "{{outcome}}"),
                stacked=True,
            ),
            lines(
                "Time of a look",
                "Reading, deciding, applying, telling.",
                *quantiles("darktree_operator_look_seconds"),
                unit="s",
            ),
            lines(
                "Requests to the API server",
                "A second.",
                Query(f"sum(rate(darktree_operator_api_requests{RATE}))", "requests"),
            ),
            lines(
                "Overdue",
                "A line that grows is an operator that does nothing.",
                Query("max(darktree_operator_overdue_seconds)", "overdue"),
                unit="s",
                limit=120,
            ),
            lines(
                "Put back",
                "Objects in an hour, by kind.",
                Query(
                    "sum by (kind) (increase(darktree_operator_drift_corrected_total[1h])) or vector(0)",
                    "{{kind}}",
                ),
                stacked=True,
            ),
            lines(
                "Conditions",
                "Lanes for which each condition holds.",
                Query("sum by (type) (darktree_lane_condition)", "{{type}}"),
            ),
        ],
    )


def _lanes() -> Section:
    return Section(
        "Lanes",
        [
            lines(
                "Ready, by reason",
                "Lanes by the reason of Ready: AsExpected, and everything else.",
                Query('count by (reason) (darktree_lane_condition{type="Ready"})', "{{reason}}"),
                stacked=True,
            ),
            rows(
                "Every lane",
                "Its condition Ready now.",
                Query('darktree_lane_condition{type="Ready"}'),
                columns=["namespace", "lane", "reason", "Value"],
            ),
        ],
    )
