"""Reads the engines' own counters of tokens, to be seen beside what was metered, and tells them to billing.

What engines generated past the metered usage (an aborted stream: at most what was on its way) is thereby visible,
and never charged.
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable

from darktree_billing.reconciliation_schemas import EngineReading
from darktree_gateway import metrics
from darktree_gateway.engine_facts import EngineFacts
from darktree_gateway.lanes import Lanes
from darktree_gateway.upstream import Upstream
from darktree_kit.errors import ApiError

MAX_READS_AT_ONCE = 16

_KINDS = {"prompt": "vllm:prompt_tokens_total", "completion": "vllm:generation_tokens_total"}
_STARTED = (
    "vllm:generation_tokens_created",
    "process_start_time_seconds",
)  # either tells one start from the next

Report = Callable[[list[EngineReading]], Awaitable[None]]
_log = logging.getLogger(__name__)


class EngineCounters:
    """Keeps the gauges of every lane's engines, and reports what changed."""

    def __init__(self, lanes: Lanes, upstream: Upstream, report: Report) -> None:
        self._lanes = lanes
        self._upstream = upstream
        self._report = report
        self._facts = EngineFacts(upstream)
        self._reported: set[EngineReading] = set()
        self._shown: set[tuple[str, str]] = set()

    async def watch(self, every_seconds: float) -> None:
        """Read for as long as the task lives."""
        while True:
            await self.read()
            await asyncio.sleep(every_seconds)

    async def read(self) -> None:
        """Read every engine once. Engines that left their lane are no longer shown."""
        endpoints = set(self._lanes.table.endpoints())
        for lane, endpoint in self._shown - endpoints:
            for kind in _KINDS:
                metrics.ENGINE_TOKENS.remove(lane, endpoint, kind)
        self._shown &= endpoints
        self._facts.forget_all_but(endpoints)
        places = asyncio.Semaphore(MAX_READS_AT_ONCE)
        found = await asyncio.gather(*(self._read(*place, places) for place in sorted(endpoints)))
        readings = {reading for reading in found if reading is not None}
        try:
            if news := readings - self._reported:
                await self._report(sorted(news, key=lambda reading: (reading.lane, reading.endpoint)))
            self._reported = readings
        except ApiError as error:
            _log.debug("billing did not take the engines' counters", extra={"error": str(error)[:200]})

    async def _read(self, lane: str, endpoint: str, places: asyncio.Semaphore) -> EngineReading | None:
        async with places:
            text = await self._upstream.exposition(endpoint)
        if text is None:
            return None
        totals = {kind: total_of(text, name) for kind, name in _KINDS.items()}
        for kind, total in totals.items():
            metrics.ENGINE_TOKENS.labels(lane, endpoint, kind).set(total)
        self._shown.add((lane, endpoint))
        started = next((instant for name in _STARTED if (instant := newest_of(text, name))), None)
        await self._facts.learn((lane, endpoint), text, started)
        if started is None:
            return None  # without it, a restart could not be told from a mistake
        return EngineReading(
            lane=lane,
            endpoint=endpoint,
            started_unix_milliseconds=int(started * 1000),
            prompt_tokens=int(totals["prompt"]),
            completion_tokens=int(totals["completion"]),
        )


def total_of(exposition: str, name: str) -> float:
    """Return the sum of a metric's samples in Prometheus' text format, whatever their labels."""
    return sum(_samples(exposition, name))


def newest_of(exposition: str, name: str) -> float | None:
    """Return the greatest of a metric's samples, or None when it has none."""
    return max(_samples(exposition, name), default=None)


def _samples(exposition: str, name: str) -> list[float]:
    samples = re.findall(rf"^{re.escape(name)}(?:\{{[^\n]*\}})? +(\S+)", exposition, re.MULTILINE)
    return list(map(float, samples))
