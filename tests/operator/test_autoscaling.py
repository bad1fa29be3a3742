"""How many replicas: tables of load, time and what was before."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from scenes import lane as document

from darktree_operator import instants
from darktree_operator.autoscaling import MAX_HISTORY, Scaling, bounds, decide
from darktree_operator.config import OperatorConfig
from darktree_operator.lane import Object, parse
from darktree_operator.observed import LaneLoad, Observed
from darktree_operator.reasons import Reason

NOON = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)  # a Wednesday
IDLE = LaneLoad(0, 0)


def decided(
    load: LaneLoad | None = IDLE,
    *,
    current: int | None = 1,
    available: int | None = None,
    active: datetime = NOON,
    low_since: datetime | None = None,
    history: tuple[Object, ...] = (),
    now: datetime = NOON,
    **spec: Any,
) -> Scaling:
    scaling: Object = {"lastActiveAt": instants.text(active), "history": list(history)}
    if low_since is not None:
        scaling["lowSince"] = instants.text(low_since)
    found = document(**spec)
    found["metadata"]["uid"] = "u"
    if current is not None:
        found["status"] = {"desiredReplicas": current, "scaling": scaling}
    serving = (current or 0) if available is None else available
    deployment = {"metadata": {}, "spec": {"replicas": current}, "status": {"availableReplicas": serving}}
    observed = Observed(
        lane=found,
        config=OperatorConfig(images={}),
        now=now,
        load=load,
        deployments=(deployment,) if current is not None else (),
    )
    return decide(parse(found), observed)


def auto(least: int = 1, most: int = 4, **more: Any) -> Object:
    return {"minReplicas": least, "maxReplicas": most, "targetInflightPerReplica": 10, **more}


@pytest.mark.parametrize(
    ("load", "current", "replicas"),
    [
        (LaneLoad(0, 0), 1, 1),
        (LaneLoad(10, 0), 1, 1),
        (LaneLoad(11, 0), 1, 2),
        (LaneLoad(15, 10), 1, 3),
        (LaneLoad(500, 0), 1, 4),
        (LaneLoad(3, 1, 11.0), 1, 2),
        (LaneLoad(3, 1, 9.0), 1, 1),
    ],
)
def test_growing_is_immediate_and_bounded(load: LaneLoad, current: int, replicas: int) -> None:
    assert decided(load, current=current, autoscaling=auto()).replicas == replicas


def test_a_long_queue_adds_nothing_while_the_last_one_added_still_loads() -> None:
    assert decided(LaneLoad(3, 1, 60.0), current=2, available=1, autoscaling=auto()).replicas == 2


def test_shrinking_waits_for_its_delay() -> None:
    first = decided(IDLE, current=3, autoscaling=auto())
    assert (first.replicas, first.low_since) == (3, NOON)
    early = NOON + timedelta(seconds=299)
    assert decided(IDLE, current=3, low_since=NOON, now=early, autoscaling=auto()).replicas == 3
    late = NOON + timedelta(seconds=300)
    shrunk = decided(IDLE, current=3, low_since=NOON, now=late, autoscaling=auto())
    assert (shrunk.replicas, shrunk.low_since, shrunk.reason) == (1, None, Reason.SCALING)
    busy_again = decided(LaneLoad(25, 0), current=3, low_since=NOON, now=late, autoscaling=auto())
    assert (busy_again.replicas, busy_again.low_since) == (3, None)


def sleepy(**more: Any) -> Object:
    return {
        "tier": "Dedicated",
        "customerRef": "acme",
        "autoscaling": auto(0, idleTimeoutSeconds=600, **more),
    }


def test_a_lane_sleeps_after_its_idle_time_and_wakes_for_one_request() -> None:
    late = NOON + timedelta(seconds=600)
    assert decided(IDLE, now=late - timedelta(seconds=1), **sleepy()).replicas == 1
    asleep = decided(IDLE, now=late, **sleepy())
    assert (asleep.replicas, asleep.required, asleep.reason) == (0, 0, Reason.ASLEEP)
    still = decided(IDLE, current=0, now=late, **sleepy())
    assert (still.replicas, still.reason) == (0, Reason.ASLEEP)
    awake = decided(LaneLoad(0, 1), current=0, now=late, **sleepy())
    assert (awake.replicas, awake.required, awake.reason, awake.last_active_at) == (1, 1, Reason.WAKING, late)


def test_a_replica_that_loads_is_not_idle() -> None:
    late = NOON + timedelta(hours=1)
    loading = decided(IDLE, current=1, available=0, now=late, **sleepy())
    assert (loading.replicas, loading.last_active_at) == (1, late)


def test_a_new_lane_starts_once_although_nobody_asks() -> None:
    assert decided(IDLE, current=None, **sleepy()).replicas == 1


def test_without_a_signal_replicas_stay_as_they_are_within_their_bounds() -> None:
    found = decided(None, current=3, autoscaling=auto())
    assert (found.replicas, found.reason) == (3, Reason.SIGNAL_MISSING)
    assert decided(None, current=9, autoscaling=auto()).replicas == 4
    assert decided(None, current=0, **sleepy()).replicas == 0


def test_what_autoscaling_adds_may_load_while_the_lane_is_ready() -> None:
    assert decided(LaneLoad(25, 0), current=1, autoscaling=auto()).required == 1
    assert decided(IDLE, current=None, replicas=3).required == 3


def test_suspend_and_no_replicas_say_so() -> None:
    assert decided(suspend=True, autoscaling=auto()).reason is Reason.SUSPENDED
    assert decided(replicas=0).reason is Reason.NO_REPLICAS
    assert decided(LaneLoad(99, 9)).replicas == 1


def test_the_history_keeps_the_last_few_changes() -> None:
    rows = tuple({"at": "x", "from": 1, "to": 2, "reason": str(each)} for each in range(MAX_HISTORY))
    found = decided(LaneLoad(25, 0), history=rows, autoscaling=auto())
    assert len(found.history) == MAX_HISTORY
    assert (found.history[0]["from"], found.history[0]["to"]) == (1, 3)
    assert decided(IDLE, history=rows, autoscaling=auto()).history == rows


def test_being_active_is_stamped_no_more_often_than_it_needs_to_be() -> None:
    soon, late = NOON + timedelta(seconds=59), NOON + timedelta(seconds=60)
    assert decided(LaneLoad(1, 0), now=soon, **sleepy()).last_active_at == NOON
    assert decided(LaneLoad(1, 0), now=late, **sleepy()).last_active_at == late


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        ("2026-03-04T07:59:00+00:00", (1, 4)),
        ("2026-03-04T08:00:00+00:00", (2, 8)),
        ("2026-03-04T17:59:00+00:00", (2, 8)),
        ("2026-03-04T18:00:00+00:00", (1, 4)),
        ("2026-03-07T12:00:00+00:00", (1, 4)),  # a Saturday
        ("2026-03-06T23:30:00+00:00", (1, 2)),  # a Friday's night
        ("2026-03-07T05:59:00+00:00", (1, 2)),  # which ends on Saturday
        ("2026-03-07T06:00:00+00:00", (1, 4)),
        ("2026-03-07T23:30:00+00:00", (1, 4)),  # Saturday's own night is not Friday's
    ],
)
def test_a_schedule_has_other_bounds_in_its_hours(now: str, expected: tuple[int, int]) -> None:
    workdays = ["Mon", "Tue", "Wed", "Thu", "Fri"]
    schedules = [
        {"daysOfWeek": workdays, "start": "09:00", "end": "19:00", "timeZone": "Europe/Berlin"}
        | {"minReplicas": 2, "maxReplicas": 8},
        {"daysOfWeek": ["Fri"], "start": "22:00", "end": "06:00", "minReplicas": 1, "maxReplicas": 2},
    ]
    found = document(autoscaling=auto(schedules=schedules))
    scaling = parse(found).spec.autoscaling
    assert scaling is not None
    assert bounds(scaling, datetime.fromisoformat(now)) == expected
