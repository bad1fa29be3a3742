"""Looking after engines that were ejected: when their pause is over, one cheap question tells whether they are there.

So no customer's request finds out that an engine still does not listen.
"""

import asyncio

from darktree_gateway import metrics
from darktree_gateway.balancing import Engine
from darktree_gateway.lanes import Lanes
from darktree_gateway.upstream import Upstream
from darktree_kit.clock import Monotonic, monotonic

LOOK_SECONDS = 0.5


class Prober:
    """Brings engines back."""

    def __init__(self, lanes: Lanes, upstream: Upstream, now: Monotonic = monotonic) -> None:
        self._lanes = lanes
        self._upstream = upstream
        self._now = now

    async def watch(self) -> None:
        """Look for as long as the task lives."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self.look()

    async def look(self) -> None:
        """Probe, once, every engine that is due."""
        balancer, now = self._upstream.balancer, self._now()
        due = [
            (lane.name, engine)
            for lane in self._lanes.table.lanes
            for engine in balancer.due(lane.endpoints, now)
        ]
        await asyncio.gather(*(self._probe(lane, engine) for lane, engine in due))

    async def _probe(self, lane: str, engine: Engine) -> None:
        passed = await self._upstream.is_there(engine.url)
        metrics.PROBES.labels(lane, "passed" if passed else "failed").inc()
        if passed:
            self._upstream.balancer.readmit(engine)
        else:
            self._upstream.balancer.eject(engine, self._now())
