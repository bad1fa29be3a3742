"""Events of a lane: transitions of its conditions, and drift that was put back. Bounded for each lane."""

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from darktree_kit.clock import Clock, Monotonic, monotonic, utc_now
from darktree_kit.cluster import Cluster, ClusterError, Object, Resource
from darktree_kit.mirror import Key, key_of
from darktree_operator import instants
from darktree_operator.lane import API_VERSION, KIND
from darktree_operator.reasons import Reason

EVENTS = Resource("v1", "events", "Event")
COMPONENT = "darktree-operator"
MAX_MESSAGE_CHARACTERS = 1024
MAX_EVENTS = 20
WINDOW_SECONDS = 600.0

# Conditions of which a change is told, and the status that is the good one.
_TOLD = {
    "Ready": "True", "Available": "True", "Accepted": "True", "GPUAvailable": "True", "ModelCached": "True",
    "UpToDate": "True", "Suspended": "False", "Degraded": "False", "Stalled": "False",
}  # fmt: skip
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Event:
    """Something to tell of a lane."""

    kind: str
    reason: str
    message: str


def transitions(before: Sequence[Object], after: Sequence[Object]) -> Iterator[Event]:
    """Yield an event for each condition whose status or reason became another."""
    known = {each["type"]: each for each in before}
    for each in after:
        good = _TOLD.get(each["type"])
        was = known.get(each["type"])
        if good is None or (was and (was["status"], was["reason"]) == (each["status"], each["reason"])):
            continue
        if was is None and each["status"] in {good, "Unknown"}:
            continue  # a new lane: nothing happened
        kind = "Normal" if each["status"] in {good, "Unknown"} or _harmless(each) else "Warning"
        message = f"{each['type']} is {each['status']}: {each.get('message') or each['reason']}"
        yield Event(kind, str(each["reason"]), message)


def drift(kind: str, name: str, paths: Sequence[str], by: Sequence[str]) -> Event:
    """Return the event that tells of an object that was put back."""
    who = f" (changed by {', '.join(by)})" if by else ""
    return Event("Warning", Reason.DRIFT_CORRECTED, f"{kind} {name}: put back {', '.join(paths)}{who}.")


class Announcer:
    """Posts events, at most MAX_EVENTS in WINDOW_SECONDS for one lane."""

    def __init__(
        self, cluster: Cluster, identity: str, now: Clock = utc_now, elapsed: Monotonic = monotonic
    ) -> None:
        self._cluster = cluster
        self._identity = identity
        self._now = now
        self._elapsed = elapsed
        self._told: dict[Key, deque[float]] = {}

    async def post(self, lane: Object, event: Event) -> None:
        """Tell an event. That it could not be told is only logged: the status says the same."""
        told = self._told.setdefault(key_of(lane), deque(maxlen=MAX_EVENTS))
        now = self._elapsed()
        if len(told) == MAX_EVENTS and now - told[0] < WINDOW_SECONDS:
            return
        told.append(now)
        try:
            await self._cluster.create(EVENTS, self._event(lane, event))
        except ClusterError as error:
            _log.warning("an event could not be told", extra={"error": str(error)[:300]})

    def forget(self, key: Key) -> None:
        self._told.pop(key, None)

    def _event(self, lane: Object, event: Event) -> Object:
        metadata, at = lane["metadata"], instants.text(self._now())
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": f"{metadata['name']}.", "namespace": metadata["namespace"]},
            "involvedObject": {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "namespace": metadata["namespace"],
                "name": metadata["name"],
                "uid": metadata.get("uid"),
                "resourceVersion": metadata.get("resourceVersion"),
            },
            "type": event.kind,
            "reason": event.reason,
            "message": event.message[:MAX_MESSAGE_CHARACTERS],
            "firstTimestamp": at,
            "lastTimestamp": at,
            "count": 1,
            "source": {"component": COMPONENT},
            "reportingComponent": COMPONENT,
            "reportingInstance": self._identity,
            "action": "Reconcile",
        }


_HARMLESS = frozenset(
    {
        Reason.ASLEEP, Reason.SUSPENDED, Reason.WAKING, Reason.SCALING, Reason.ROLLING_OUT, Reason.LOADING_MODEL,
        Reason.STARTING, Reason.DOWNLOADING_MODEL, Reason.DRAINING, Reason.WAITING_FOR_IDLE, Reason.OUTSIDE_WINDOW,
        Reason.WAITING_FOR_TURN, Reason.ROLLOUT_PAUSED, Reason.TEMPLATE_OUTDATED, Reason.NO_REPLICAS,
    }
)  # fmt: skip


def _harmless(condition: Object) -> bool:
    return condition["reason"] in _HARMLESS
