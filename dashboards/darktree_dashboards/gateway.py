"""What API clients see: rate, errors and duration, where the time goes, and how fast the promises are used up."""

from darktree_dashboards.panels import Query, Section, lines, number, quantiles

LANE = 'lane=~"$lane"'
REQUESTS = "darktree_gateway_requests_total"
SERVED = f'{REQUESTS}{{{LANE}, status!~"4.."}}'
FAILED = f'{REQUESTS}{{{LANE}, status=~"5..|200", code!="ok"}}'
RATE = "[$__rate_interval]"
NOTHING = f"0 * sum by (lane) (darktree_lane_in_flight{{{LANE}}})"  # of every lane: where none failed, no rate is known


def sections() -> list[Section]:
    """Return the dashboard's rows."""
    return [_now(), _rate_errors_duration(), _time(), _promises(), _engines()]


def _now() -> Section:
    return Section(
        "Now",
        [
            number(
                "Requests",
                "Completions a second, refusals included.",
                f"sum(rate({REQUESTS}{{{LANE}}}{RATE}))",
                "reqps",
            ),
            number(
                "Failed",
                "Of what was not refused. One in a thousand may.",
                f"(sum(rate({FAILED}{RATE})) or vector(0)) / sum(rate({SERVED}{RATE}))",
                "percentunit",
                warn=0.001,
                bad=0.0144,
            ),
            number(
                "First token, p95",
                "From a request's arrival to the first event of its answer.",
                quantiles("darktree_gateway_time_to_first_token_seconds", where=LANE, of=(0.95,))[
                    0
                ].expression,
                "s",
                warn=1,
                bad=2.5,
            ),
            number(
                "Overhead, p99",
                "What the gateway and the ledger add.",
                quantiles("darktree_gateway_overhead_seconds", of=(0.99,))[0].expression,
                "s",
                warn=0.05,
                bad=0.25,
            ),
            number("In flight", "Requests being served.", f"sum(darktree_lane_in_flight{{{LANE}}})"),
            number(
                "Journal",
                "Charges that wait for a ledger that is away: DarktreeSettlementsWait.",
                "sum(darktree_gateway_journal_bytes)",
                "bytes",
                bad=1,
            ),
        ],
    )


def _rate_errors_duration() -> Section:
    return Section(
        "Rate, errors, duration",
        [
            lines(
                "Requests by status",
                "499: the client left. 200 with an error's code: a stream that failed inside.",
                Query(f"sum by (status) (rate({REQUESTS}{{{LANE}}}{RATE}))", "{{status}}"),
                unit="reqps",
                stacked=True,
            ),
            lines(
                "Errors by code",
                "Everything that was not answered as asked, by the code that clients see.",
                Query(
                    f'sum by (code) (rate({REQUESTS}{{{LANE}, code!="ok"}}{RATE})) or vector(0)', "{{code}}"
                ),
                unit="reqps",
                stacked=True,
            ),
            lines(
                "Duration",
                "From arrival to the last byte of the answer.",
                *quantiles("darktree_gateway_request_seconds", where=LANE),
                unit="s",
            ),
            lines(
                "Time to first token",
                "2.5 s is promised for 99 in a hundred.",
                *quantiles("darktree_gateway_time_to_first_token_seconds", where=LANE),
                unit="s",
                limit=2.5,
            ),
            lines(
                "Time per output token",
                "Between an answer's tokens.",
                *quantiles("darktree_gateway_time_per_output_token_seconds", where=LANE),
                unit="s",
            ),
            lines(
                "Requests by lane",
                "`none`: refused before they had a lane.",
                Query(f"sum by (lane) (rate({REQUESTS}{{{LANE}}}{RATE}))", "{{lane}}"),
                unit="reqps",
                stacked=True,
            ),
        ],
    )


def _time() -> Section:
    return Section(
        "Where the time goes",
        [
            lines(
                "Overhead",
                "The phases auth, bound, hold and settle together.",
                *quantiles("darktree_gateway_overhead_seconds"),
                unit="s",
            ),
            lines(
                "Mean by phase",
                "Of one completion; upstream and generate are the engine's.",
                Query(
                    f"sum by (phase) (rate(darktree_gateway_phase_seconds_sum{RATE})) / sum by (phase) (rate(darktree_gateway_phase_seconds_count{RATE}))",
                    "{{phase}}",
                ),
                unit="s",
                stacked=True,
            ),
            lines(
                "Overhead phases, p95",
                "Which part of the overhead is slow.",
                Query(
                    f'histogram_quantile(0.95, sum by (le, phase) (rate(darktree_gateway_phase_seconds_bucket{{phase=~"auth|bound|hold|settle"}}{RATE})))',
                    "{{phase}}",
                ),
                unit="s",
            ),
        ],
    )


def _promises() -> Section:
    return Section(
        "Promises",
        [
            lines(
                "Error budget, last hour",
                "How many times faster than allowed: 1 uses a month's budget within a month, 14.4 pages.",
                Query(f"darktree:failed_requests:ratio_rate1h{{{LANE}}} / 0.001 or {NOTHING}", "{{lane}}"),
                limit=14.4,
            ),
            lines(
                "First-token budget, last hour",
                "The same of answers that take more than 2.5 s to begin.",
                Query(f"darktree:slow_first_tokens:ratio_rate1h{{{LANE}}} / 0.01 or {NOTHING}", "{{lane}}"),
                limit=14.4,
            ),
            lines(
                "Settled",
                "Charges a second by how their answers ended.",
                Query(f"sum by (outcome) (rate(darktree_gateway_settled_total{RATE}))", "{{outcome}}"),
                unit="reqps",
                stacked=True,
            ),
        ],
    )


def _engines() -> Section:
    return Section(
        "Engines, as the gateway sees them",
        [
            lines(
                "Failures",
                "Of engines, by reason.",
                Query(
                    f"sum by (lane, reason) (rate(darktree_gateway_upstream_errors_total{{{LANE}}}{RATE})) or vector(0)",
                    "{{lane}} {{reason}}",
                ),
            ),
            lines(
                "Retries and ejections",
                "Requests that another engine was asked for, and engines that were left alone for a while.",
                Query(f"sum(rate(darktree_gateway_retries_total{{{LANE}}}{RATE})) or vector(0)", "retries"),
                Query(f"sum(rate(darktree_lane_ejections_total{{{LANE}}}{RATE})) or vector(0)", "ejections"),
            ),
            lines(
                "Refused by a key's own limits",
                "Requests a minute, or at once.",
                Query(
                    f"sum by (limit) (rate(darktree_gateway_limited_total{RATE})) or vector(0)",
                    "{{limit}}",
                ),
                unit="reqps",
            ),
        ],
    )
