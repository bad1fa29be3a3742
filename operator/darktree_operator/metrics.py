"""The operator's own metrics. A lane's conditions are here too, so that alerts need no other exporter."""

from prometheus_client import Counter, Gauge, Histogram

from darktree_operator.lane import Object

LOOKS = Counter("darktree_operator_looks_total", "Looks at a lane, by how they ended.", ["outcome"])
LOOK_SECONDS = Histogram("darktree_operator_look_seconds", "How long one look at a lane took.")
OVERDUE_SECONDS = Gauge(
    "darktree_operator_overdue_seconds", "How long the lane that waits longest should have been looked at."
)
LEADING = Gauge("darktree_operator_leading", "Whether this operator is the one that writes.")
REQUESTS = Gauge("darktree_operator_api_requests", "Requests sent to the API server since the start.")
DRIFT = Counter("darktree_operator_drift_corrected_total", "Objects of lanes that were put back.", ["kind"])
CONDITION = Gauge(
    "darktree_lane_condition",
    "Whether a lane's condition holds (1) or not (0); one that is unknown is absent.",
    ["namespace", "lane", "type", "reason"],
)
REPLICAS = Gauge("darktree_lane_replicas", "A lane's replicas.", ["namespace", "lane", "state"])
GPUS = Gauge(
    "darktree_lane_gpus",
    "GPUs that a lane asks for, and those that its pods have.",
    ["namespace", "lane", "state"],
)
COLD_START = Gauge(
    "darktree_lane_cold_start_seconds",
    "How long the lane's newest engine took to be ready, and what of that was finding a node, pulling, and loading.",
    ["namespace", "lane", "phase"],
)

_known: dict[tuple[str, str], dict[str, str]] = {}


def tell(namespace: str, lane: str, status: Object) -> None:
    """Set the metrics of a lane from its status."""
    before = _known.get((namespace, lane), {})
    now: dict[str, str] = {}
    for each in status.get("conditions") or ():
        if each["status"] != "Unknown":
            now[each["type"]] = each["reason"]
            CONDITION.labels(namespace, lane, each["type"], each["reason"]).set(each["status"] == "True")
    for name, reason in before.items():
        if now.get(name) != reason:
            CONDITION.remove(namespace, lane, name, reason)
    _known[namespace, lane] = now
    for state, field in (("desired", "desiredReplicas"), ("available", "availableReplicas")):
        REPLICAS.labels(namespace, lane, state).set(int(status.get(field) or 0))
    gpu = status.get("gpu") or {}
    for state in ("requested", "allocated"):
        GPUS.labels(namespace, lane, state).set(int(gpu.get(state) or 0))
    cold_start = status.get("coldStart") or {}
    if cold_start:
        seconds = {"total": cold_start["lastTotalSeconds"]} | {
            name.removesuffix("Seconds"): value for name, value in (cold_start.get("phases") or {}).items()
        }
        for phase, value in seconds.items():
            COLD_START.labels(namespace, lane, phase).set(value)


def forget(namespace: str, lane: str) -> None:
    """Drop the metrics of a lane that is gone."""
    for name, reason in _known.pop((namespace, lane), {}).items():
        CONDITION.remove(namespace, lane, name, reason)
    for gauge in (REPLICAS, GPUS, COLD_START):
        gauge.remove_by_labels({"namespace": namespace, "lane": lane})
