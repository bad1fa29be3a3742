"""How many replicas a lane should have now: pure, from what gateways have in flight and queued.

The signal is the gateways', not the engines', because it exists at zero pods. Growing is immediate; shrinking waits for
a delay; sleeping waits for an idle time in which a replica that still loads counts as busy.
"""

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from darktree_operator import instants
from darktree_operator.lane import Autoscaling, Lane, Object, Schedule
from darktree_operator.observed import LaneLoad, Observed
from darktree_operator.reasons import Reason

LOOK_SECONDS = 15.0
MAX_HISTORY = 5
MAX_STAMP_SECONDS = 60.0  # how exact `lastActiveAt` is at least: it is written no more often
STAMPS_IN_IDLE_TIME = 10
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


@dataclass(frozen=True, slots=True)
class Scaling:
    """The decision, and what to remember of it in the lane's status."""

    replicas: int
    required: int
    """Replicas that must be available for the lane to be Ready: what autoscaling adds on top may still be loading."""
    reason: Reason
    message: str
    last_active_at: datetime | None = None
    low_since: datetime | None = None
    history: tuple[Object, ...] = ()
    look_again_seconds: float | None = None


def decide(lane: Lane, observed: Observed) -> Scaling:
    """Return how many replicas the lane should have."""
    spec = lane.spec
    kept = (observed.lane.get("status") or {}).get("scaling") or {}
    history = tuple(kept.get("history") or ())
    if spec.suspend:
        return Scaling(0, 0, Reason.SUSPENDED, "spec.suspend is set: no replica runs.", history=history)
    if spec.autoscaling is None:
        replicas = 1 if spec.replicas is None else spec.replicas
        if replicas == 0:
            return Scaling(0, 0, Reason.NO_REPLICAS, "spec.replicas is 0.", history=history)
        return Scaling(replicas, replicas, Reason.AS_EXPECTED, "spec.replicas says so.", history=history)
    return _by_load(spec.autoscaling, observed, kept, history)


def bounds(scaling: Autoscaling, now: datetime) -> tuple[int, int]:
    """Return the fewest and the most replicas of this moment: the first schedule that applies, else the usual ones."""
    for schedule in scaling.schedules:
        if _applies(schedule, now):
            return schedule.min_replicas, schedule.max_replicas
    return scaling.min_replicas, scaling.max_replicas


def _by_load(scaling: Autoscaling, observed: Observed, kept: Object, history: tuple[Object, ...]) -> Scaling:
    now, load = observed.now, observed.load
    fewest, most = bounds(scaling, now)
    current = _current(observed)
    known = current is not None
    if current is None:
        current = max(fewest, 1)  # a new lane starts once, so that it is known to work and how long it takes
    active = instants.parse(kept.get("lastActiveAt")) or now
    low_since = instants.parse(kept.get("lowSince"))
    if load is None:
        replicas = min(max(current, fewest), most)
        return Scaling(
            replicas=replicas,
            required=max(1, min(fewest, replicas)) if replicas else 0,
            reason=Reason.SIGNAL_MISSING if replicas else Reason.ASLEEP,
            message="No gateway says what is in flight: replicas stay as they are.",
            last_active_at=active,
            history=_remember(history, now, current if known else 0, replicas, "SignalMissing"),
            look_again_seconds=LOOK_SECONDS,
        )
    busy = load.in_flight + load.queued > 0
    if busy or _loading(observed, current):
        active = _stamped(active, now, scaling)
    wanted = _wanted(scaling, load, current, _available(observed))
    asleep = fewest == 0 and not busy and now - active >= timedelta(seconds=scaling.idle_timeout_seconds)
    asleep = asleep or (current == 0 and fewest == 0 and not busy)
    wanted = 0 if asleep else min(max(wanted, fewest, 1), max(most, 1))
    replicas = wanted
    if asleep or wanted >= min(current, most):
        low_since = None
    else:
        low_since = low_since or now
        if now - low_since < timedelta(seconds=scaling.scale_down_delay_seconds):
            replicas = min(current, most)
        else:
            low_since = None
    reason, message = _told(current, replicas, load, known)
    return Scaling(
        replicas=replicas,
        required=max(1, min(fewest, replicas)) if replicas else 0,
        reason=reason,
        message=message,
        last_active_at=active,
        low_since=low_since,
        history=_remember(history, now, current if known else 0, replicas, message),
        look_again_seconds=LOOK_SECONDS,
    )


def _wanted(scaling: Autoscaling, load: LaneLoad, current: int, available: int) -> int:
    wanted = math.ceil((load.in_flight + load.queued) / scaling.target_inflight_per_replica)
    waited = load.queued > 0 and load.oldest_queued_seconds > scaling.max_queue_seconds
    if waited and available >= current:  # not while what was added before is still loading
        wanted = max(wanted, current + 1)
    return wanted


def _told(current: int, replicas: int, load: LaneLoad, known: bool) -> tuple[Reason, str]:
    facts = f"{load.in_flight} in flight, {load.queued} queued"
    if replicas == 0:
        return Reason.ASLEEP, f"Asleep since nothing came for long ({facts})."
    if known and current == 0:
        return Reason.WAKING, f"Woken by a request ({facts})."
    if replicas != current:
        return Reason.SCALING, f"From {current} to {replicas} replicas ({facts})."
    return Reason.AS_EXPECTED, f"{replicas} replicas are enough."


def _stamped(active: datetime, now: datetime, scaling: Autoscaling) -> datetime:
    exact = min(MAX_STAMP_SECONDS, scaling.idle_timeout_seconds / STAMPS_IN_IDLE_TIME)
    return now if now - active >= timedelta(seconds=exact) else active


def _remember(
    history: tuple[Object, ...], now: datetime, before: int, after: int, reason: str
) -> tuple[Object, ...]:
    if before == after:
        return history
    row = {"at": instants.text(now), "from": before, "to": after, "reason": reason[:256]}
    return (row, *history)[:MAX_HISTORY]


def _current(observed: Observed) -> int | None:
    status = observed.lane.get("status") or {}
    if "desiredReplicas" in status:
        return int(status["desiredReplicas"])
    for deployment in observed.deployments:
        return int((deployment.get("spec") or {}).get("replicas", 1))
    return None


def _available(observed: Observed) -> int:
    return sum(
        int((deployment.get("status") or {}).get("availableReplicas") or 0)
        for deployment in observed.deployments
    )


def _loading(observed: Observed, current: int) -> bool:
    return current > 0 and _available(observed) == 0


def _applies(schedule: Schedule, now: datetime) -> bool:
    local = now.astimezone(ZoneInfo(schedule.time_zone))
    minute = local.hour * 60 + local.minute
    start, end = _minutes(schedule.start), _minutes(schedule.end)
    today, yesterday = _DAYS[local.weekday()], _DAYS[(local.weekday() - 1) % 7]
    days = schedule.days_of_week or _DAYS
    if start < end:
        return today in days and start <= minute < end
    # Over midnight: it belongs to the day on which it started.
    return (today in days and minute >= start) or (yesterday in days and minute < end)


def _minutes(text: str) -> int:
    hours, minutes = text.split(":")
    return int(hours) * 60 + int(minutes)
