"""Lanes waiting for a look: each at most once in the queue, one look at a time, with its own pause after a failure."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from darktree_kit.clock import Monotonic, monotonic
from darktree_kit.mirror import Key
from darktree_operator import metrics

MAX_LOOKS_AT_ONCE = 8
DEBOUNCE_SECONDS = 0.1  # changes come in bursts
FIRST_PAUSE_SECONDS = 0.5
MAX_PAUSE_SECONDS = 60.0
LOOK_SECONDS = 120.0  # the longest that one look may take

Reconcile = Callable[[Key], Awaitable[float | None]]
"""Looks at one lane; returns seconds until the next look, or None when there is no such lane."""
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Turn:
    """A lane's place: when it is due, and how often the last looks failed."""

    due_at: float
    failures: int = 0
    wakes: asyncio.Event = field(default_factory=asyncio.Event)
    task: "asyncio.Task[None] | None" = None


class Workers:
    """A worker for each lane. Nothing is looked at before `start`, but what is enqueued is kept."""

    def __init__(self, reconcile: Reconcile, now: Monotonic = monotonic) -> None:
        self._reconcile = reconcile
        self._now = now
        self._turns: dict[Key, Turn] = {}
        self._places = asyncio.Semaphore(MAX_LOOKS_AT_ONCE)
        self._started = False
        self.looks = 0

    def enqueue(self, key: Key, delay: float = DEBOUNCE_SECONDS) -> None:
        """Have a lane looked at, at the latest after `delay` seconds."""
        due_at = self._now() + delay
        turn = self._turns.get(key)
        if turn is None:
            turn = self._turns[key] = Turn(due_at)
        elif due_at < turn.due_at and not turn.failures:  # a failing lane keeps its pause
            turn.due_at = due_at
        turn.wakes.set()
        if self._started and turn.task is None:
            turn.task = asyncio.create_task(self._serve(key, turn))

    def start(self) -> None:
        """Begin to look."""
        self._started = True
        for key, turn in self._turns.items():
            if turn.task is None:
                turn.task = asyncio.create_task(self._serve(key, turn))

    async def stop(self) -> None:
        """End every look now: each write is whole, and whoever is next finds what is left."""
        self._started = False
        tasks = [turn.task for turn in self._turns.values() if turn.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for turn in self._turns.values():
            if turn.task in tasks:
                turn.task = None
        if self._started:  # meanwhile it was told to begin again
            self.start()

    def overdue_seconds(self) -> float:
        """Return how long the lane that waits longest should have been looked at."""
        if not self._started or not self._turns:
            return 0.0
        return max(0.0, self._now() - min(turn.due_at for turn in self._turns.values()))

    async def _serve(self, key: Key, turn: Turn) -> None:
        while True:
            while (wait := turn.due_at - self._now()) > 0:
                turn.wakes.clear()
                try:
                    async with asyncio.timeout(wait):
                        await turn.wakes.wait()
                except TimeoutError:
                    break
            async with self._places:
                turn.due_at = float("inf")  # what is enqueued from here on is another look
                began = self._now()
                again = await self._look(key, turn)
                metrics.LOOK_SECONDS.observe(self._now() - began)
            if again is None:
                if turn.due_at == float("inf"):
                    self._turns.pop(key, None)
                    return
                continue
            turn.due_at = min(turn.due_at, self._now() + again)

    async def _look(self, key: Key, turn: Turn) -> float | None:
        self.looks += 1
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                again = await self._reconcile(key)
        except Exception as error:
            turn.failures += 1
            metrics.LOOKS.labels("failed").inc()
            pause: float = min(MAX_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** min(turn.failures - 1, 16))
            _log.warning(
                "a look at a lane failed",
                extra={
                    "lane": "/".join(key),
                    "error": f"{type(error).__name__}: {error}"[:500],
                    "again": pause,
                },
                exc_info=not isinstance(error, OSError | TimeoutError) and turn.failures == 1,
            )
            turn.due_at = float("inf")
            return pause * float(random.uniform(0.5, 1.0))  # noqa: S311
        turn.failures = 0
        metrics.LOOKS.labels("done").inc()
        return again
