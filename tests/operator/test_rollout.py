"""Which revision runs: a lane's life played step by step on the plan alone, with pods that do as they are told."""

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from darktree_operator.config import OperatorConfig, read_config
from darktree_operator.lane import REVISION_LABEL, Object
from darktree_operator.observed import LaneLoad, Observed
from darktree_operator.plan import Plan, Rollout, plan
from darktree_operator.reasons import Reason
from darktree_operator.rollout import MAX_REVISIONS

NOON = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)  # a Wednesday
CONFIG = read_config(Path(__file__).parents[2] / "examples" / "operator.yaml")
NIGHTLY = {"cron": "0 2 * * *", "timeZone": "UTC", "durationMinutes": 120}
IDLE, BUSY = LaneLoad(0, 0), LaneLoad(3, 0)


@dataclass
class World:
    """A lane, and a cluster that does exactly what is planned; `healthy` says whether new pods serve."""

    spec: dict[str, Any] = field(default_factory=dict)
    config: OperatorConfig = CONFIG
    now: datetime = NOON
    load: LaneLoad | None = IDLE
    may_upgrade: bool = False
    healthy: bool = True
    restarts: int = 0
    waiting: str = ""
    overdue: bool = False
    replicas: int = 1
    deployment: Object | None = None
    revisions: dict[str, Object] = field(default_factory=dict)

    def observed(self) -> Observed:
        document = {
            "metadata": {"name": "oak", "namespace": "lanes", "uid": "u", "generation": 1},
            "spec": {
                "tier": "Standard",
                "model": {"source": "pvc://models/oak", "servedName": "oak"},
                "accelerator": {"class": "nvidia-l4"},
                **self.spec,
            },
        }
        return Observed(
            lane=document,
            config=self.config,
            now=self.now,
            deployments=(self._deployment(),) if self.deployment else (),
            pods=tuple(self._pod() for _ in range(self.replicas)) if self.deployment else (),
            revisions=tuple(self.revisions.values()),
            load=self.load,
            may_upgrade=self.may_upgrade,
        )

    def step(self) -> Rollout:
        """Plan once and do it."""
        made = self.plan()
        for thing in made.objects:
            if thing["kind"] == "Deployment":
                if self.deployment and thing["spec"]["template"] != self.deployment["spec"]["template"]:
                    self.restarts, self.waiting, self.overdue = 0, "", False
                self.deployment = thing
            if thing["kind"] == "ControllerRevision":
                stamp = self.revisions.get(thing["metadata"]["name"], {}).get("metadata", {})
                thing["metadata"]["creationTimestamp"] = stamp.get("creationTimestamp", self.now.isoformat())
                self.revisions[thing["metadata"]["name"]] = thing
        for gone in made.deletions:
            del self.revisions[gone.name]
        assert made.rollout is not None
        return made.rollout

    def plan(self) -> Plan:
        made = plan(self.observed(), self.replicas)
        assert not made.refusals, made.refusals
        return made

    def settle(self) -> Rollout:
        """Plan until nothing changes any more."""
        last = self.step()
        for _ in range(5):
            following = self.step()
            if following == last:
                return following
            last = following
        raise AssertionError("it never settles")

    def _deployment(self) -> Object:
        assert self.deployment is not None
        up = self.replicas if self.healthy else 0
        counts = {"replicas": self.replicas, "updatedReplicas": self.replicas, "availableReplicas": up}
        conditions = [{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}]
        status = {"observedGeneration": 1, **counts, "conditions": conditions if self.overdue else []}
        metadata = self.deployment["metadata"] | {"generation": 1}
        return self.deployment | {"metadata": metadata, "status": status}

    def _pod(self) -> Object:
        assert self.deployment is not None
        template = self.deployment["spec"]["template"]
        state = {"waiting": {"reason": self.waiting}} if self.waiting else {}
        container = {"restartCount": self.restarts, "state": state}
        return {"metadata": template["metadata"], "status": {"containerStatuses": [container]}}

    @property
    def running(self) -> str:
        assert self.deployment is not None
        return str(self.deployment["spec"]["template"]["metadata"]["labels"][REVISION_LABEL])


def served(**spec: Any) -> World:
    """A world whose first revision serves."""
    world = World(spec={"engine": {"contextLength": 4096}, **spec})
    assert world.settle().state == "Complete"
    return world


def change(world: World, context: int = 8192) -> None:
    world.spec["engine"] = {"contextLength": context}


def newer_operator(world: World) -> None:
    """Nothing of the lane changes, but what is made of it does."""
    images = world.config.images["VLLM"].model_copy(
        update={"by_version": {"0.32.0": "vllm/vllm-openai:newer"}}
    )
    world.config = world.config.model_copy(update={"images": {**world.config.images, "VLLM": images}})


def test_a_changed_lane_is_rolled_out_at_once() -> None:
    world = served()
    first = world.running
    change(world)
    rollout = world.settle()
    assert rollout.state == "Complete"
    assert rollout.target == world.running != first


def test_a_new_revision_is_not_complete_before_it_serves() -> None:
    world = served()
    change(world)
    world.healthy = False
    rollout = world.settle()
    assert rollout.state == "Progressing"
    assert rollout.target == rollout.applied == world.running


HELD: dict[str, tuple[dict[str, Any], LaneLoad | None, Reason, datetime | None]] = {
    "paused": ({"paused": True}, IDLE, Reason.ROLLOUT_PAUSED, None),
    "closed": (
        {"maintenanceWindow": NIGHTLY},
        IDLE,
        Reason.OUTSIDE_WINDOW,
        datetime(2026, 3, 5, 2, tzinfo=UTC),
    ),
    "busy": ({"waitForIdle": True}, BUSY, Reason.WAITING_FOR_IDLE, NOON + timedelta(seconds=300)),
    "nobody tells": ({"waitForIdle": True}, None, Reason.WAITING_FOR_IDLE, NOON + timedelta(seconds=300)),
}


@pytest.mark.parametrize(("policy", "load", "reason", "until"), HELD.values(), ids=HELD)
def test_a_rollout_waits_and_says_for_what(
    policy: dict[str, Any], load: LaneLoad | None, reason: Reason, until: datetime | None
) -> None:
    world = served(rollout=policy)
    first = world.running
    world.load = load
    change(world)
    rollout = world.settle()
    assert (rollout.state, rollout.reason, rollout.until) == ("Deferred", reason, until)
    assert rollout.applied == world.running == first != rollout.target
    assert not rollout.template_outdated


GOES: dict[str, tuple[dict[str, Any], LaneLoad | None, timedelta]] = {
    "the window opens": ({"maintenanceWindow": NIGHTLY}, BUSY, timedelta(hours=14)),
    "it is idle": ({"waitForIdle": True}, IDLE, timedelta()),
    "it waited long enough": ({"waitForIdle": True}, BUSY, timedelta(seconds=301)),
}


@pytest.mark.parametrize(("policy", "load", "later"), GOES.values(), ids=GOES)
def test_a_rollout_goes_on_when_what_it_waited_for_is_there(
    policy: dict[str, Any], load: LaneLoad | None, later: timedelta
) -> None:
    world = served(rollout=policy)
    change(world)
    world.load = BUSY
    world.step()
    world.load, world.now = load, world.now + later
    assert world.settle().state == "Complete"
    assert world.spec["engine"]["contextLength"] == 8192


def test_a_lane_that_serves_nothing_waits_for_nothing() -> None:
    world = served(rollout={"waitForIdle": True, "maintenanceWindow": NIGHTLY})
    world.load, world.healthy = BUSY, False
    change(world)
    assert world.settle().applied == world.running
    world.healthy = True
    assert world.settle().state == "Complete"


def test_an_upgrade_of_the_operator_replaces_no_pod() -> None:
    world = served()
    first = world.running
    newer_operator(world)
    rollout = world.settle()
    assert (rollout.state, rollout.reason) == ("Deferred", Reason.TEMPLATE_OUTDATED)
    assert rollout.template_outdated
    assert world.running == first


def test_an_outdated_template_comes_with_the_lanes_next_change() -> None:
    world = served()
    newer_operator(world)
    world.settle()
    world.spec["restart"] = {"id": "take it"}
    rollout = world.settle()
    assert rollout.state == "Complete"
    assert not rollout.template_outdated
    assert world.deployment is not None
    assert world.deployment["spec"]["template"]["spec"]["containers"][0]["image"] == "vllm/vllm-openai:newer"


def test_an_outdated_template_is_taken_in_the_window_when_it_is_the_lanes_turn() -> None:
    world = served(rollout={"maintenanceWindow": NIGHTLY})
    newer_operator(world)
    assert world.settle().reason is Reason.OUTSIDE_WINDOW
    world.now += timedelta(hours=15)
    assert world.settle().reason is Reason.WAITING_FOR_TURN
    world.may_upgrade = True
    rollout = world.settle()
    assert rollout.state == "Complete"
    assert not rollout.template_outdated


def test_a_sleeping_lane_takes_the_newer_template_for_its_next_start() -> None:
    world = served()
    world.replicas = 0
    world.step()
    newer_operator(world)
    assert world.settle().applied == world.running
    assert world.deployment is not None
    assert world.deployment["spec"]["template"]["spec"]["containers"][0]["image"] == "vllm/vllm-openai:newer"


def crash(world: World, context: int = 8192) -> None:
    change(world, context)
    world.healthy = False
    world.step()
    world.restarts = 3


def test_a_revision_that_only_crashes_is_given_up_for_the_last_one_that_served() -> None:
    world = served()
    first = world.running
    crash(world)
    world.restarts = 2
    assert world.settle().state == "Progressing"
    world.restarts = 3
    rollout = world.step()
    assert (rollout.state, rollout.reason) == ("RolledBack", Reason.ROLLED_BACK)
    assert "ended 3 times before it ever served" in rollout.message
    world.healthy = True
    again = world.settle()
    assert again.state == "RolledBack"  # it stays, though the crashes are not to be seen any more
    assert world.running == first == again.applied != again.target


def test_a_rolled_back_lane_tries_again_when_it_is_changed() -> None:
    world = served()
    crash(world)
    world.step()
    world.healthy = True
    world.settle()
    change(world, 16384)
    assert world.settle().state == "Complete"


def test_a_newer_operator_is_no_reason_to_try_a_failed_change_again() -> None:
    world = served()
    first = world.running
    crash(world)
    world.step()
    world.healthy = True
    newer_operator(world)
    rollout = world.settle()
    assert rollout.state == "RolledBack"
    assert world.running == first


def test_an_image_that_cannot_be_pulled_is_given_up_after_the_deadline() -> None:
    world = served()
    change(world)
    world.healthy = False
    world.step()
    world.waiting = "ImagePullBackOff"
    assert world.settle().state == "Progressing"
    world.overdue = True
    assert "never started: ImagePullBackOff" in world.step().message


KEPT: dict[str, dict[str, Any]] = {
    "no rollback is wanted": {"rollout": {"autoRollback": False}},
    "the limit is higher": {"rollout": {"crashLimit": 4}},
}


@pytest.mark.parametrize("spec", KEPT.values(), ids=KEPT)
def test_a_crashing_revision_stays(spec: dict[str, Any]) -> None:
    world = served(**spec)
    crash(world)
    assert world.settle().state == "Progressing"


def test_a_gpu_that_is_missing_is_no_reason_to_go_back() -> None:
    world = served()
    change(world)
    world.healthy, world.overdue = False, True
    assert world.settle().state == "Progressing"


def test_a_revision_that_served_is_never_given_up() -> None:
    world = served()
    change(world)
    world.settle()
    world.healthy, world.restarts = False, 50
    assert world.settle().state == "Progressing"
    assert world.running == world.settle().target


def test_a_first_revision_that_crashes_has_nothing_to_go_back_to() -> None:
    world = World(healthy=False)
    world.settle()
    world.restarts = 50
    assert world.settle().state == "Progressing"


def test_the_last_that_served_is_the_one_that_served_last_not_the_newest() -> None:
    world = served()
    first = world.running
    for hours, context in ((1, 8192), (2, 4096)):  # there, and back again
        world.now = NOON + timedelta(hours=hours)
        change(world, context)
        world.settle()
    assert world.running == first
    crash(world, 16384)
    assert world.step().applied == first


def test_only_what_may_be_needed_is_remembered() -> None:
    world = served(rollout={"paused": True})
    for context in range(2000, 2010):
        change(world, context)
        world.settle()
    assert len(world.revisions) == 2  # what serves, and what is asked for now
    world.spec["rollout"] = {}
    for step, context in enumerate(range(3000, 3010)):
        world.now = NOON + timedelta(minutes=step)
        change(world, context)
        world.settle()
    assert len(world.revisions) <= MAX_REVISIONS


def test_a_template_whose_record_is_lost_is_kept_as_the_cluster_has_it() -> None:
    world = served(rollout={"paused": True})
    first = world.running
    world.revisions.clear()
    change(world)
    assert world.settle().applied == first == world.running


def test_planning_changes_nothing_that_was_observed() -> None:
    world = served()
    change(world)
    seen = world.observed()
    before = repr(seen)
    plan(seen, 1)
    plan(replace(seen, now=NOON + timedelta(days=1)), 0)
    assert repr(seen) == before
