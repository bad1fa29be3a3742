"""Who is served next when a lane has all it can serve: a request of the customer who has the fewest being served.

So every customer who wants it comes to an equal share of a lane's places, however many requests another sends and
however long they take; among equals they take turns. A queue has a bounded length and a bounded wait. When it is full,
the newest request of whoever has the most waiting gives way to somebody who has fewer: a customer can only fill it for
themselves.

Each gateway has queues of its own. The fast path, a free place and nobody waiting, is a few dictionary operations.
"""

import asyncio
import math
from collections import deque
from dataclasses import dataclass

from darktree_gateway import metrics
from darktree_gateway.errors import LaneUnavailable
from darktree_gateway.lanes import Lane, LaneTable
from darktree_kit.clock import Monotonic, monotonic

MAX_RETRY_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one gateway lets a lane have."""

    requests_per_engine: int
    """Being served at once, where the lane does not say how many sequences an engine takes; 0 without a limit."""
    gateways: int
    """Which share the lanes' places: each has its part, rounded up."""
    length: int
    """Requests that wait for one lane."""
    wait_seconds: float

    def places(self, lane: Lane) -> int:
        """Return how many requests of a lane may be served at once; 0 without a limit."""
        each = lane.max_sequences or self.requests_per_engine
        return -(-each * len(lane.endpoints) // self.gateways)


class Waiter:
    """A request that waits for a place."""

    __slots__ = ("customer_id", "granted", "since")

    def __init__(self, customer_id: str, since: float) -> None:
        self.customer_id = customer_id
        self.since = since
        self.granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Queue:
    """The places of one lane, and who waits for one."""

    def __init__(self, lane: str, bounds: Bounds, now: Monotonic) -> None:
        self._lane = lane
        self._bounds = bounds
        self._now = now
        self.places = 0
        self.served = 0
        self.waiting = 0
        self._served_by: dict[str, int] = {}
        self._lines: dict[str, deque[Waiter]] = {}  # by customer; among equals the first in the dict is next

    @property
    def idle(self) -> bool:
        return not self.served and not self.waiting

    def enter(self, customer_id: str) -> bool:
        """Take a place if one is free and nobody waits for it."""
        if self.waiting or (self.places and self.served >= self.places):
            return False
        self._take(customer_id)
        return True

    def leave(self, customer_id: str) -> None:
        """Give a place back; whoever waits for it has it."""
        self.served -= 1
        left = self._served_by[customer_id] - 1
        if left:
            self._served_by[customer_id] = left
        else:
            del self._served_by[customer_id]
        if self.waiting:
            self.fill()

    async def wait(self, customer_id: str) -> None:
        """Take a place in turn. Raises LaneUnavailable when the queue is full, or the wait too long."""
        if self.enter(customer_id):
            return
        if self.waiting >= self._bounds.length:
            self._make_room(customer_id)
        waiter = Waiter(customer_id, self._now())
        self._lines.setdefault(customer_id, deque()).append(waiter)
        self.waiting += 1
        try:
            async with asyncio.timeout(self._bounds.wait_seconds):
                await waiter.granted
        except BaseException as error:
            self._give_up(waiter)
            if isinstance(error, TimeoutError):
                raise self._refusal("long") from None
            raise
        finally:
            metrics.QUEUE_SECONDS.labels(self._lane).observe(self._now() - waiter.since)

    def fill(self) -> None:
        """Grant what is free."""
        while self.waiting and (not self.places or self.served < self.places):
            customer_id = min(self._lines, key=lambda each: self._served_by.get(each, 0))
            line = self._lines.pop(customer_id)
            waiter = line.popleft()
            if line:
                self._lines[customer_id] = line  # behind the others
            self.waiting -= 1
            if not waiter.granted.done():  # else it is just giving up
                self._take(customer_id)
                waiter.granted.set_result(None)

    def oldest(self) -> float | None:
        """Return since when the request that came first has waited."""
        return min((line[0].since for line in self._lines.values()), default=None)

    def _take(self, customer_id: str) -> None:
        self.served += 1
        self._served_by[customer_id] = self._served_by.get(customer_id, 0) + 1

    def _give_up(self, waiter: Waiter) -> None:
        """The request that waited is gone: neither its place in the queue nor one just granted is left behind."""
        if not waiter.granted.done() or waiter.granted.cancelled():
            self._drop(waiter)
        elif waiter.granted.exception() is None:
            self.leave(waiter.customer_id)

    def _drop(self, waiter: Waiter) -> None:
        line = self._lines.get(waiter.customer_id)
        if line is not None and waiter in line:
            line.remove(waiter)
            if not line:
                del self._lines[waiter.customer_id]
            self.waiting -= 1

    def _make_room(self, customer_id: str) -> None:
        """Send the newest request of the longest line away. Raises LaneUnavailable when that is the caller's own."""
        longest = max(self._lines.values(), key=len, default=None)
        if longest is None or len(longest) <= len(self._lines.get(customer_id, ())) + 1:
            raise self._refusal("full")
        crowded_out = longest[-1]
        self._drop(crowded_out)
        crowded_out.granted.set_exception(self._refusal("unfair"))

    def _refusal(self, reason: str) -> LaneUnavailable:
        """Return the refusal; whoever comes back should wait as long as the first in the queue has waited."""
        metrics.QUEUE_REFUSED.labels(self._lane, reason).inc()
        oldest = self.oldest()
        waited = self._bounds.wait_seconds if oldest is None else self._now() - oldest
        return LaneUnavailable(
            "The model is at capacity. Please try again shortly.",
            retry_seconds=min(MAX_RETRY_SECONDS, max(1, math.ceil(waited))),
        )


class Queues:
    """The queue of every lane, by its name."""

    def __init__(self, bounds: Bounds, now: Monotonic = monotonic) -> None:
        self._bounds = bounds
        self._now = now
        self._queues: dict[str, Queue] = {}

    def of(self, lane: Lane) -> Queue:
        queue = self._queues.get(lane.name)
        if queue is None:
            queue = self._queues[lane.name] = Queue(lane.name, self._bounds, self._now)
            queue.places = self._bounds.places(lane)
        return queue

    def told(self, table: LaneTable) -> None:
        """The lanes' table has changed: a lane may have more engines now, or fewer. Those served stay."""
        for lane in table.lanes:
            if lane.endpoints:  # while there are none, whoever waits waits on
                queue = self.of(lane)
                queue.places = self._bounds.places(lane)
                queue.fill()
        names = {lane.name for lane in table.lanes}
        for name in [name for name, queue in self._queues.items() if name not in names]:
            self._queues[name].places = 0  # the lane is gone: whoever waits hears so from its engines
            self._queues[name].fill()
            if self._queues[name].idle:
                del self._queues[name]

    def waiting(self, lane: Lane) -> tuple[int, float]:
        """Return how many requests wait for a place, and how long the first has waited."""
        queue = self._queues.get(lane.name)
        oldest = queue.oldest() if queue else None
        return (queue.waiting if queue else 0), (0.0 if oldest is None else self._now() - oldest)
