"""The metrics that every service has. Services add their own beside them, in modules named `metrics`.

Labels are bounded: a route's template, never a path; never a customer.
"""

from functools import cache

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, generate_latest

from darktree_kit.tally import Count, Counts, Distribution, Tally

LATENCY_BUCKETS_SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
)  # fmt: skip

HTTP_REQUESTS = Counts(
    "darktree_http_requests_total", "Requests answered.", ["service", "route", "method", "status"]
)
HTTP_SECONDS = Distribution(
    "darktree_http_request_duration_seconds",
    "Time from a request's arrival to the last byte of its answer.",
    ["service", "route"],
    buckets=LATENCY_BUCKETS_SECONDS,
)


@cache
def _children(service: str, route: str, method: str, status: int) -> tuple[Count, Tally]:
    # Looking a label's child up costs as much as counting; the labels are few.
    return HTTP_REQUESTS.labels(service, route, method, str(status)), HTTP_SECONDS.labels(service, route)


def count_request(service: str, route: str, method: str, status: int, seconds: float) -> None:
    """Count one answered request and the time it took."""
    requests, durations = _children(service, route, method, status)
    requests.inc()
    durations.observe(seconds)


def exposition() -> tuple[bytes, str]:
    """Return every metric of this process in Prometheus' text format, and its content type."""
    return generate_latest(REGISTRY), CONTENT_TYPE_LATEST
