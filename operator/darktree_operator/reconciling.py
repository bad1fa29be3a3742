"""One look at one lane: observe, decide, plan, apply, tell. Level-triggered: what happened before does not matter."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from darktree_kit.clock import Clock, Monotonic, monotonic, utc_now
from darktree_kit.cluster import ClusterError, Missing, Object
from darktree_kit.mirror import Key
from darktree_operator import cluster, events, metrics
from darktree_operator.autoscaling import Scaling, decide
from darktree_operator.cluster import Applied, Fleet
from darktree_operator.config import OperatorConfig
from darktree_operator.events import Announcer
from darktree_operator.lane import InvalidLane, Lane, parse
from darktree_operator.observed import EngineFacts, LaneLoad, Observed
from darktree_operator.plan import Plan, Refusal, plan
from darktree_operator.progress import Problem
from darktree_operator.reasons import Reason
from darktree_operator.spare import free_gpus
from darktree_operator.status import Outcome, changes, status_of

AGAIN_SECONDS = 0.2

_TIERS = ("Premium", "Dedicated", "Standard")
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Reconciler:
    """Looks at lanes. `wake` has other lanes looked at, whose turn it may be then."""

    fleet: Fleet
    config: OperatorConfig
    announcer: Announcer
    load: Callable[[str], LaneLoad | None]
    engines: Callable[[str], Mapping[str, EngineFacts]]
    wake: Callable[[Key], None]
    resync_seconds: float
    now: Clock = utc_now
    elapsed: Monotonic = monotonic
    _upgrading: Key | None = None
    _waiting: set[Key] = field(default_factory=set)

    async def look(self, key: Key) -> float | None:
        """Have one lane be what it asks for as far as that is possible now; return when to look again."""
        found = self.fleet.lanes.objects.get(key)
        if found is None:
            self._forget(key)
            return None
        if found["metadata"].get("deletionTimestamp"):
            return self.resync_seconds  # its objects go with it, each engine after its drain
        lane, refusal = _parsed(found)
        observed = await self._observe(key, found, lane)
        scaling = decide(lane, observed) if lane is not None else _unchanged(found)
        planned = Plan(refusals=(refusal,)) if refusal is not None else await self._plan(observed, scaling)
        if _upgrades(planned) and not self._takes_turn(key):  # another lane was planned at the same time
            planned = await self._plan(replace(observed, may_upgrade=False), scaling)
        refused = await self._apply(found, planned)
        observed = await self._observe(key, found, lane)
        outcome = Outcome(refused, self._queue_position(key, found))
        status = status_of(observed, lane, planned, scaling, outcome)
        settled = await self._tell(found, status)
        if not settled:
            return AGAIN_SECONDS
        self._pass_turn(key, found, planned)
        self._note_waiting(key, status)
        again = min(scaling.look_again_seconds or self.resync_seconds, self.resync_seconds)
        until = planned.rollout.until if planned.rollout is not None else None
        if until is not None:
            again = min(again, max(1.0, (until - observed.now).total_seconds()))
        return again

    async def _plan(self, observed: Observed, scaling: Scaling) -> Plan:
        planned = plan(observed, scaling.replicas)
        if planned.spare is None:
            return planned
        free = await free_gpus(self.fleet.cluster, planned.spare.accelerator, planned.spare.gpus)
        return plan(replace(observed, free_gpus=free), scaling.replicas)

    async def _observe(self, key: Key, found: Object, lane: Lane | None) -> Observed:
        fleet = self.fleet
        kinds = (cluster.SERVICES, cluster.BUDGETS, cluster.POLICIES, cluster.POD_MONITORS)
        names: set[tuple[str, str]] = set()
        if lane is not None:
            secrets = (lane.spec.secrets.hugging_face, lane.spec.secrets.engine_key)
            names = {(each.name, each.key) for each in secrets if each is not None}
        hashes = await fleet.secret_hashes(key[0], names, self.elapsed()) if names else {}
        return Observed(
            lane=found,
            config=self.config,
            now=self.now(),
            deployments=fleet.of_lane(cluster.DEPLOYMENTS, key),
            pods=fleet.of_lane(cluster.PODS, key),
            jobs=fleet.of_lane(cluster.JOBS, key),
            volume_claims=fleet.claims(key),
            revisions=fleet.of_lane(cluster.REVISIONS, key),
            others=tuple(each for kind in kinds for each in fleet.of_lane(kind, key)),
            secret_hashes=hashes,
            load=self.load(key[1]),
            engines=self.engines(key[1]),
            may_upgrade=self._may_upgrade(key),
        )

    async def _apply(self, found: Object, planned: Plan) -> Problem | None:
        """Apply what is planned; return the first refusal. What can still be applied is."""
        uid, refused = found["metadata"].get("uid") or "", None
        for wanted in planned.objects:
            applied: Applied = await self.fleet.apply(wanted, uid)
            refused = refused or applied.problem
            if applied.drift:
                metrics.DRIFT.labels(wanted["kind"]).inc()
                told = events.drift(wanted["kind"], wanted["metadata"]["name"], applied.drift, applied.by)
                await self.announcer.post(found, told)
        for gone in planned.deletions:
            await self.fleet.delete(gone, found["metadata"]["namespace"], uid)
        return refused

    async def _tell(self, found: Object, status: Object) -> bool:
        """Write the status if it changed, and then tell what became another; return whether that is done."""
        before = found.get("status") or {}
        metadata = found["metadata"]
        change = changes(before, status)
        if change:
            try:
                await self.fleet.write_status(found, change)
            except Missing:
                return True
            except ClusterError as error:
                if error.status == 409:
                    return False  # the lane changed meanwhile: look again at what it is now
                raise
            for event in events.transitions(before.get("conditions") or (), status["conditions"]):
                await self.announcer.post(found, event)
        metrics.tell(metadata["namespace"], metadata["name"], status)
        metrics.REQUESTS.set(self.fleet.cluster.requests)
        return True

    def _may_upgrade(self, key: Key) -> bool:
        """Whether no other lane is in the middle of taking a newer template."""
        if self._upgrading not in {None, key}:
            return False
        return not any(_mid_upgrade(lane) for other, lane in self.fleet.lanes.objects.items() if other != key)

    def _takes_turn(self, key: Key) -> bool:
        """Have this lane be the one that takes a newer template, if it still may."""
        if not self._may_upgrade(key):
            return False
        self._upgrading = key
        return True

    def _pass_turn(self, key: Key, found: Object, planned: Plan) -> None:
        """Once a lane has taken its newer template, also one that another process began, wake those that wait."""
        rollout = planned.rollout
        ends = rollout is None or rollout.state != "Progressing"
        if ends and (self._upgrading == key or _mid_upgrade(found)):
            self._end_turn()

    def _end_turn(self) -> None:
        self._upgrading = None
        for other, lane in self.fleet.lanes.objects.items():
            rollout = (lane.get("status") or {}).get("rollout") or {}
            if rollout.get("deferredReason") == Reason.WAITING_FOR_TURN:
                self.wake(other)

    def _queue_position(self, key: Key, found: Object) -> int | None:
        """This lane's place among those that wait for GPUs of the same class: by tier, then by who waited longer."""
        waiting = {**{other: self.fleet.lanes.objects.get(other) for other in self._waiting}, key: found}
        places = sorted(
            (_rank(lane), other)
            for other, lane in waiting.items()
            if lane is not None and _class(lane) == _class(found)
        )
        return next((place for place, (_, other) in enumerate(places, 1) if other == key), None)

    def _note_waiting(self, key: Key, status: Object) -> None:
        """Have the other lanes that wait for GPUs looked at when one begins or ends to wait: their places moved."""
        waits = any(
            each["type"] == "GPUAvailable" and each["status"] == "False" for each in status["conditions"]
        )
        if waits == (key in self._waiting):
            return
        self._waiting ^= {key}
        for other in self._waiting - {key}:
            self.wake(other)

    def _forget(self, key: Key) -> None:
        self.fleet.forget(key)
        self.announcer.forget(key)
        metrics.forget(*key)
        self._waiting.discard(key)
        if self._upgrading == key:
            self._end_turn()


def _parsed(found: Object) -> tuple[Lane | None, Refusal | None]:
    try:
        return parse(found), None
    except InvalidLane as error:
        return None, Refusal(Reason.INVALID_SPEC, error.field, error.message)


def _unchanged(found: Object) -> Scaling:
    replicas = int((found.get("status") or {}).get("desiredReplicas") or 0)
    return Scaling(replicas, replicas, Reason.INVALID_SPEC, "What serves goes on serving.")


def _upgrades(planned: Plan) -> bool:
    rollout = planned.rollout
    return rollout is not None and rollout.template_outdated and rollout.state == "Progressing"


def _mid_upgrade(lane: Object) -> bool:
    rollout = (lane.get("status") or {}).get("rollout") or {}
    return rollout.get("state") == "Progressing" and bool(rollout.get("upgrade"))


def _class(lane: Object) -> str:
    return str(((lane.get("spec") or {}).get("accelerator") or {}).get("class") or "")


def _rank(lane: Object) -> tuple[int, str]:
    conditions = (lane.get("status") or {}).get("conditions") or ()
    since = next(
        (
            str(each["lastTransitionTime"])
            for each in conditions
            if each["type"] == "GPUAvailable" and each["status"] == "False"
        ),
        "9999",
    )
    tier = (lane.get("spec") or {}).get("tier")
    return (_TIERS.index(tier) if tier in _TIERS else len(_TIERS), since)
