"""Requests for a lane that sleeps: a bounded number is held for a bounded time, the others are told when to come back.

The gateway has no right to write: that somebody waits is a gauge among its metrics, which the operator reads.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from darktree_gateway.errors import LaneUnavailable
from darktree_gateway.lanes import Lane, LaneTable
from darktree_kit.clock import Monotonic, monotonic

ASKED_SECONDS = (
    10.0  # how long a request that was sent away still counts as asking: the operator reads every few
)
MAX_RETRY_SECONDS = 3600


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

    def asked(self, lane: Lane) -> None:
        """Somebody wanted this lane and was served elsewhere, or sent away."""
        self._asking.setdefault(lane.name, Asking()).sent_away_at = self._now()

    def waiting(self, lane: Lane) -> tuple[int, float]:
        """Return how many requests ask for the lane, and how long the first has waited."""
        asking = self._asking.get(lane.name)
        if asking is None:
            return 0, 0.0
        if asking.held:
            return len(asking.held), self._now() - asking.held[0]
        return int(not lane.endpoints and self._now() - asking.sent_away_at < ASKED_SECONDS), 0.0

    async def engine(self, lane: Lane, customer_id: str) -> Lane:
        """Return the lane once it has an engine. Raises LaneUnavailable when it may not or need not be waited for."""
        if lane.endpoints:
            return lane
        asking = self._asking.setdefault(lane.name, Asking())
        if len(asking.held) >= lane.max_held_requests or not lane.max_hold_seconds:
            self.asked(lane)
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
            self.asked(lane)
            raise unavailable(lane) from None
        finally:
            asking.held.remove(came)


def unavailable(lane: Lane) -> LaneUnavailable:
    """Return the refusal, with the lane's own measured start as the time to come back."""
    return LaneUnavailable(retry_seconds=min(lane.cold_start_seconds, MAX_RETRY_SECONDS) or None)
