"""The departure board of lanes: what serves, what comes next and when, and why something does not."""

from collections.abc import Iterable

from darktree_operator.lane import Object

COLUMNS = ("lane", "tier", "model", "state", "serving", "ready", "next", "gpus", "reason")
MAX_REMARK_CHARACTERS = 200


def rows(lanes: Iterable[Object]) -> list[tuple[str, ...]]:
    """Return a row for each lane, those that are not ready first."""
    ordered = sorted(lanes, key=lambda lane: (is_ready(lane), lane["metadata"]["name"]))
    return [_row(lane) for lane in ordered]


def remarks(lanes: Iterable[Object]) -> list[str]:
    """Return a line for each lane that is not as it should be: what is wrong, and what would mend it."""
    found = []
    for lane in lanes:
        message = _message(lane)
        if message:
            found.append(f"{lane['metadata']['name']}: {message}")
    return found


def is_ready(lane: Object) -> bool:
    return condition(lane, "Ready").get("status") == "True"


def condition(lane: Object, kind: str) -> Object:
    """Return a condition, empty if the operator has not told of it."""
    conditions = (lane.get("status") or {}).get("conditions") or []
    return next((each for each in conditions if each["type"] == kind), {})


def _row(lane: Object) -> tuple[str, ...]:
    spec, status = lane["spec"], lane.get("status") or {}
    wanted = status.get("desiredReplicas", spec.get("replicas", 1))
    return (
        lane["metadata"]["name"],
        spec["tier"] + (f" ({spec['customerRef']})" if spec.get("customerRef") else ""),
        spec["model"]["servedName"],
        status.get("phase", "unseen"),
        (status.get("serving") or {}).get("revisionHash", ""),
        f"{status.get('readyReplicas', 0)}/{wanted}",
        _next(status),
        str((status.get("gpu") or {}).get("allocated", "")),
        condition(lane, "Ready").get("reason", "nobody has looked at it: does the operator run?"),
    )


def _next(status: Object) -> str:
    """What comes after what serves now, and when."""
    target, serving = status.get("target") or {}, status.get("serving") or {}
    if not target or target.get("revisionHash") == serving.get("revisionHash"):
        return ""
    rollout = status.get("rollout") or {}
    waits = rollout.get("deferredReason") or rollout.get("state") or ""
    until = rollout.get("deferredUntil")
    return " ".join(
        part for part in (target["revisionHash"], waits, f"until {until}" if until else "") if part
    )


def _message(lane: Object) -> str:
    ready = condition(lane, "Ready")
    degraded = condition(lane, "Degraded")
    if ready.get("status") == "True" and degraded.get("status") != "True":
        return ""
    told = ready if ready.get("status") != "True" else degraded
    failure = (lane.get("status") or {}).get("lastFailure") or {}
    parts = [str(told.get("message") or "")[:MAX_REMARK_CHARACTERS], str(failure.get("hint") or "")]
    if parts[1] and parts[1] in parts[0]:
        parts.pop()
    return "; ".join(part for part in parts if part)
