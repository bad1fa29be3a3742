"""The gateway's own metrics. Labels are bounded: lanes, engines and reasons, never customers, models or keys."""

from dataclasses import dataclass
from functools import cache

from prometheus_client import Counter, Gauge

from darktree_kit.tally import Count, Counts, Distribution, Tally

_SECONDS = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
_REQUEST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0)
_PHASE_SECONDS = (
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0,
)  # fmt: skip
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0)

# Every request: rate, errors, duration.
REQUESTS = Counts(
    "darktree_gateway_requests_total",
    "Completions answered. The code is the error's, or `ok`; the status of a stream that fails inside is 200, "
    "of a client that left 499; the lane of a request that was refused before it had one is `none`.",
    ["lane", "status", "code"],
)
REQUEST_SECONDS = Distribution(
    "darktree_gateway_request_seconds",
    "Time from a completion's arrival to the last byte of its answer.",
    ["lane"],
    buckets=_REQUEST_SECONDS,
)
PHASE_SECONDS = Distribution(
    "darktree_gateway_phase_seconds",
    "Time of each phase of a completion: auth, bound (reading and checking it), queue (for an engine or a place), "
    "hold, upstream (until the engine's first event), generate (until its last) and settle.",
    ["phase"],
    buckets=_PHASE_SECONDS,
)
OVERHEAD_SECONDS = Distribution(
    "darktree_gateway_overhead_seconds",
    "What the gateway and the ledger add to a completion: the phases auth, bound, hold and settle together.",
    buckets=_SECONDS,
)
FIRST_TOKEN_SECONDS = Distribution(
    "darktree_gateway_time_to_first_token_seconds",
    "Time from a request's arrival to the first event of its answer.",
    ["lane"],
    buckets=_SECONDS,
)
TOKEN_SECONDS = Distribution(
    "darktree_gateway_time_per_output_token_seconds",
    "Time between an answer's tokens: from its first event to its last, by the tokens after the first.",
    ["lane"],
    buckets=_TOKEN_SECONDS,
)
LIMITED = Counter(
    "darktree_gateway_limited_total",
    "Completions refused by their key's limit of requests a minute or of requests at once.",
    ["limit"],
)

# What is metered.
METERED_TOKENS = Counts(
    "darktree_lane_metered_tokens_total",
    "Tokens settled with the ledger, or journalled for it.",
    ["lane", "kind"],
)
ENGINE_TOKENS = Gauge(
    "darktree_lane_engine_tokens",
    "Tokens that an engine says it has processed since it started: the outside truth beside the metered ones.",
    ["lane", "endpoint", "kind"],
)
HOLDS = Gauge("darktree_gateway_holds_in_flight", "Holds of completions that this process is serving.")
ENGINE_INFO = Gauge(
    "darktree_lane_engine_info",
    "What an engine says of itself; empty where it does not say. Always 1.",
    ["lane", "endpoint", "version", "max_model_len", "kv_cache_tokens", "max_concurrency"],
)
HOLDS_REFUSED = Counter(
    "darktree_gateway_holds_refused_total", "Requests that the ledger refused.", ["reason"]
)
COUNTED = Counter("darktree_gateway_prompts_counted_total", "Requests whose prompt an engine had to count.")
CLAMPED = Counter("darktree_gateway_clamped_total", "Requests that were granted less than they asked for.")
SETTLED = Counts("darktree_gateway_settled_total", "Requests settled.", ["outcome"])
RENEWALS_REFUSED = Counter(
    "darktree_gateway_renewals_refused_total", "Holds that expired while they were served."
)
JOURNALLED = Counter("darktree_gateway_journalled_total", "Settlements written to the journal.")
JOURNAL_BYTES = Gauge("darktree_gateway_journal_bytes", "Settlements in this process' journals.")
DEAD_LETTERS = Counter("darktree_gateway_dead_letters_total", "Settlements that the ledger refused for good.")

# Lanes, who waits for them, and their engines.
IN_FLIGHT = Counts("darktree_lane_in_flight", "Requests being served.", ["lane"], falls=True)
PLACES = Gauge(
    "darktree_lane_places",
    "Requests of a lane that this process serves at once; 0 without a limit.",
    ["lane"],
)
QUEUED = Gauge(
    "darktree_lane_queued",
    "Requests that wait for an engine or for a place, or were just sent away for want of one.",
    ["lane"],
)
OLDEST_QUEUED = Gauge(
    "darktree_lane_oldest_queued_seconds", "How long the first of those has waited.", ["lane"]
)
QUEUE_SECONDS = Distribution(
    "darktree_lane_queue_seconds",
    "How long requests that had to wait for a place waited, served in the end or not.",
    ["lane"],
    buckets=_SECONDS,
)
QUEUE_REFUSED = Counter(
    "darktree_lane_queue_refused_total",
    "Requests sent away from a lane's queue: it was `full`, the wait was too `long`, or a customer with fewer requests "
    "took the place (`unfair`).",
    ["lane", "reason"],
)
SPILLED = Counter(
    "darktree_lane_spilled_total",
    "Requests of a dedicated lane that its model's shared lane served, as the lane was `unavailable` or `full`.",
    ["lane", "reason"],
)
ENGINES = Gauge(
    "darktree_lane_engines",
    "Engines of a lane as this process sees them: `serving`, `ejected`, or `probed` (one request at a time).",
    ["lane", "state"],
)
EJECTIONS = Counter(
    "darktree_lane_ejections_total",
    "Engines that were left alone for a while, by the failure that decided it.",
    ["lane", "reason"],
)
PROBES = Counter(
    "darktree_lane_probes_total", "Looks at ejected engines: `passed` or `failed`.", ["lane", "outcome"]
)
RETRIES = Counter(
    "darktree_gateway_retries_total",
    "Requests that another engine was asked for, before a byte of an answer had come.",
    ["lane", "reason"],
)
UPSTREAM_ERRORS = Counter(
    "darktree_gateway_upstream_errors_total", "Failures of engines.", ["lane", "reason"]
)

OVERHEAD = OVERHEAD_SECONDS.labels()


@dataclass(frozen=True, slots=True)
class OfLane:
    """What every request counts, looked up once a lane."""

    prompt_tokens: Count
    completion_tokens: Count
    request_seconds: Tally
    first_token_seconds: Tally
    token_seconds: Tally
    in_flight: Count


@cache
def of_lane(lane: str) -> OfLane:
    return OfLane(
        prompt_tokens=METERED_TOKENS.labels(lane, "prompt"),
        completion_tokens=METERED_TOKENS.labels(lane, "completion"),
        request_seconds=REQUEST_SECONDS.labels(lane),
        first_token_seconds=FIRST_TOKEN_SECONDS.labels(lane),
        token_seconds=TOKEN_SECONDS.labels(lane),
        in_flight=IN_FLIGHT.labels(lane),
    )


@cache
def of_answer(lane: str, status: int, code: str) -> Count:
    return REQUESTS.labels(lane, str(status), code)
