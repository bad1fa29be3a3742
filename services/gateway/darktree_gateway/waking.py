"""Requests for a lane that sleeps: a bounded number is held for a bounded time, the others are told when to come back.

The gateway has no right to write: that somebody waits is a gauge among its metrics, which the operator reads.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from darktree_gateway import metrics
from darktree_gateway.errors import LaneUnavailable
from darktree_gateway.lanes import Lane, LaneTable
from darktree_kit.clock import Monotonic, monotonic

ASKED_SECONDS = (
    10.0  # how long a request that was sent away still counts as asking: the operator reads every few
)
MAX_RETRY_SECONDS = 3600
SHOW_SECONDS = 0.5


@dataclass(slots=True)
class Asking:
    """Who wants one lane that has no engine."""

    held: deque[float] = field(default_factory=deque)
    """When each held request came, in order."""
    sent_away_at: float = float("-inf")


class Waking:
    """Holds requests until their lane has an engine."""

    def __init__(self, find: Callable[[str, str], Lane | None], now: Monotonic = monotonic) -> None:
        self._find = find
        self._now = now
        self._asking: dict[str, Asking] = {}
        self._changed = asyncio.Event()

    def told(self, _: LaneTable) -> None:
        """The lanes' table has changed: some lane may have an engine now."""
        self._changed.set()
        self._changed = asyncio.Event()

    def show(self, table: LaneTable) -> None:
        """Set the gauges of every lane, also of those that nobody asks for."""
        now = self._now()
        for lane in table.lanes:
            asking = self._asking.get(lane.name)
            held = len(asking.held) if asking else 0
            asked = asking is not None and not lane.endpoints and now - asking.sent_away_at < ASKED_SECONDS
            oldest = now - asking.held[0] if asking and asking.held else 0.0
            gauges = metrics.of_lane(lane.name)
            gauges.queued.set(held or int(asked))
            gauges.oldest_queued_seconds.set(oldest)

    async def keep_shown(self, table: Callable[[], LaneTable]) -> None:
        """Set the gauges for as long as the task lives: how long somebody waits changes by itself."""
        while True:
            self.show(table())
            await asyncio.sleep(SHOW_SECONDS)

    async def engine(self, lane: Lane, customer_id: str) -> Lane:
        """Return the lane once it has an engine. Raises LaneUnavailable when it may not or need not be waited for."""
        if lane.endpoints:
            return lane
        asking = self._asking.setdefault(lane.name, Asking())
        if len(asking.held) >= lane.max_held_requests or not lane.max_hold_seconds:
            asking.sent_away_at = self._now()
            raise unavailable(lane)
        came = self._now()
        asking.held.append(came)
        try:
            async with asyncio.timeout(lane.max_hold_seconds):
                while True:
                    changed = self._changed
                    found = self._find(lane.model, customer_id)
                    if found is not None and found.endpoints:
                        return found
                    await changed.wait()
        except TimeoutError:
            asking.sent_away_at = self._now()
            raise unavailable(lane) from None
        finally:
            asking.held.remove(came)


def unavailable(lane: Lane) -> LaneUnavailable:
    """Return the refusal, with the lane's own measured start as the time to come back."""
    return LaneUnavailable(retry_seconds=min(lane.cold_start_seconds, MAX_RETRY_SECONDS) or None)
