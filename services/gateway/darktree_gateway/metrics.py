"""The gateway's own metrics. Labels are bounded: lanes, engines and reasons, never customers, models or keys."""

from dataclasses import dataclass
from functools import cache

from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip

METERED_TOKENS = Counter(
    "darktree_lane_metered_tokens_total",
    "Tokens settled with the ledger, or journalled for it.",
    ["lane", "kind"],
)
ENGINE_TOKENS = Gauge(
    "darktree_lane_engine_tokens",
    "Tokens that an engine says it has processed since it started: the outside truth beside the metered ones.",
    ["lane", "endpoint", "kind"],
)
FIRST_TOKEN_SECONDS = Histogram(
    "darktree_gateway_time_to_first_token_seconds",
    "Time from a request's arrival to the first event of its answer.",
    ["lane"],
    buckets=_SECONDS,
)
OVERHEAD_SECONDS = Histogram(
    "darktree_gateway_overhead_seconds",
    "What the gateway and the ledger add to a request: before the engine is asked, and after it has answered.",
    buckets=_SECONDS,
)
IN_FLIGHT = Gauge("darktree_lane_in_flight", "Requests being served.", ["lane"])
QUEUED = Gauge(
    "darktree_lane_queued",
    "Requests that wait for an engine, or were just sent away for want of one.",
    ["lane"],
)
OLDEST_QUEUED = Gauge(
    "darktree_lane_oldest_queued_seconds", "How long the first of those has waited.", ["lane"]
)
HOLDS_REFUSED = Counter(
    "darktree_gateway_holds_refused_total", "Requests that the ledger refused.", ["reason"]
)
COUNTED = Counter("darktree_gateway_prompts_counted_total", "Requests whose prompt an engine had to count.")
CLAMPED = Counter("darktree_gateway_clamped_total", "Requests that were granted less than they asked for.")
SETTLED = Counter("darktree_gateway_settled_total", "Requests settled.", ["outcome"])
UPSTREAM_ERRORS = Counter(
    "darktree_gateway_upstream_errors_total", "Failures of engines.", ["lane", "reason"]
)
RENEWALS_REFUSED = Counter(
    "darktree_gateway_renewals_refused_total", "Holds that expired while they were served."
)
JOURNALLED = Counter("darktree_gateway_journalled_total", "Settlements written to the journal.")
JOURNAL_BYTES = Gauge("darktree_gateway_journal_bytes", "Settlements in this process' journals.")
DEAD_LETTERS = Counter("darktree_gateway_dead_letters_total", "Settlements that the ledger refused for good.")


@dataclass(frozen=True, slots=True)
class OfLane:
    """What every request counts, looked up once a lane."""

    prompt_tokens: Counter
    completion_tokens: Counter
    first_token_seconds: Histogram
    in_flight: Gauge
    queued: Gauge
    oldest_queued_seconds: Gauge


@cache
def of_lane(lane: str) -> OfLane:
    return OfLane(
        prompt_tokens=METERED_TOKENS.labels(lane, "prompt"),
        completion_tokens=METERED_TOKENS.labels(lane, "completion"),
        first_token_seconds=FIRST_TOKEN_SECONDS.labels(lane),
        in_flight=IN_FLIGHT.labels(lane),
        queued=QUEUED.labels(lane),
        oldest_queued_seconds=OLDEST_QUEUED.labels(lane),
    )
