"""The gauges of every lane, also of those that nobody asks for: who waits, for how many places, before which engines.

They are set every half second, not on the way of a request. The operator scales lanes by them.
"""

import asyncio
from collections import Counter
from collections.abc import Callable

from darktree_gateway import metrics
from darktree_gateway.balancing import Balancer, State
from darktree_gateway.lanes import Lane, LaneTable
from darktree_gateway.queueing import Queues
from darktree_gateway.waking import Waking

SHOW_SECONDS = 0.5


class Gauges:
    """Shows what this process knows of its lanes."""

    def __init__(self, waking: Waking, queues: Queues, balancer: Balancer) -> None:
        self._waking = waking
        self._queues = queues
        self._balancer = balancer
        self._shown: set[str] = set()

    async def watch(self, table: Callable[[], LaneTable]) -> None:
        """Show for as long as the task lives: how long somebody waits changes by itself."""
        while True:
            self.show(table())
            await asyncio.sleep(SHOW_SECONDS)

    def show(self, table: LaneTable) -> None:
        names = {lane.name for lane in table.lanes}
        for name in self._shown - names:
            for state in State:
                metrics.ENGINES.labels(name, state.value).set(0)
        self._shown = names
        for lane in table.lanes:
            self._show(lane)

    def _show(self, lane: Lane) -> None:
        asking, in_line = self._waking.waiting(lane), self._queues.waiting(lane)
        metrics.QUEUED.labels(lane.name).set(asking[0] + in_line[0])
        metrics.OLDEST_QUEUED.labels(lane.name).set(max(asking[1], in_line[1]))
        metrics.PLACES.labels(lane.name).set(self._queues.of(lane).places)
        states = Counter(self._balancer.state(url) for url in lane.endpoints)
        for state in State:
            metrics.ENGINES.labels(lane.name, state.value).set(states[state])
