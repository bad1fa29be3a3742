"""Where a request is served, and when: its customer's own lane before a shared one, awake, and with a place for it.

A dedicated lane may spill over, as it says itself (`spec.spillOver`): requests go to the shared lane of the same model
while the own one has no engine (WhenUnavailable), and also while all its places are taken and the shared one has a free
place (WhenFull). Nothing waits, and nothing is undone, where a place is free at once.
"""

from collections.abc import Callable

from starlette.types import Receive

from darktree_gateway import metrics
from darktree_gateway.balancing import Balancer, State
from darktree_gateway.lanes import Lane, LaneTable
from darktree_gateway.queueing import Queue, Queues
from darktree_gateway.waking import Waking
from darktree_gateway.watch import Watch


class Place:
    """A request's place in a lane, to be left when it has been served."""

    __slots__ = ("_customer_id", "_queue", "lane")

    def __init__(self, lane: Lane, queue: Queue, customer_id: str) -> None:
        self.lane = lane
        self._queue = queue
        self._customer_id = customer_id

    def leave(self) -> None:
        self._queue.leave(self._customer_id)


class Placing:
    """Finds places."""

    def __init__(
        self, table: Callable[[], LaneTable], waking: Waking, queues: Queues, balancer: Balancer
    ) -> None:
        self._table = table
        self._waking = waking
        self._queues = queues
        self._balancer = balancer

    def at_once(self, lane: Lane, customer_id: str) -> Place | None:
        """Take a place if the lane, or the one that it spills over to, has a free one."""
        if lane.endpoints and (lane.spill_over == "Never" or self._has_engine(lane)):
            queue = self._queues.of(lane)
            if queue.enter(customer_id):
                return Place(lane, queue, customer_id)
            reason = "full" if lane.spill_over == "WhenFull" else None
        else:
            reason = "unavailable"
        if reason is None or (shared := self._shared(lane)) is None:
            return None
        queue = self._queues.of(shared)
        if not queue.enter(customer_id):
            return None
        self._spilled(lane, reason)
        return Place(shared, queue, customer_id)

    async def in_turn(self, lane: Lane, customer_id: str, receive: Receive) -> Place:
        """Take a place once there is one. Raises LaneUnavailable, or ClientLeft."""
        with Watch(receive):  # a client that leaves gives its place in the line up
            if (shared := self._shared(lane)) is not None and not self._has_engine(lane):
                self._spilled(lane, "unavailable")
                lane = shared
            lane = await self._waking.engine(lane, customer_id)
            queue = self._queues.of(lane)
            await queue.wait(customer_id)
        return Place(self._table().named(lane.name) or lane, queue, customer_id)

    def _has_engine(self, lane: Lane) -> bool:
        return any(self._balancer.state(url) is not State.EJECTED for url in lane.endpoints)

    def _shared(self, lane: Lane) -> Lane | None:
        """Return the lane that this one spills over to, when it may and that has an engine."""
        if lane.spill_over == "Never":
            return None
        shared = self._table().shared(lane.model)
        return shared if shared is not None and shared.endpoints else None

    def _spilled(self, lane: Lane, reason: str) -> None:
        metrics.SPILLED.labels(lane.name, reason).inc()
        if not lane.endpoints:
            self._waking.asked(lane)
