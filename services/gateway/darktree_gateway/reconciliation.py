"""Reads the engines' own counters of tokens, to be seen beside what was metered.

What engines generated past the metered usage (an aborted stream: at most what was on its way) is thereby visible,
and never charged.
"""

import asyncio
import re

from darktree_gateway import metrics
from darktree_gateway.lanes import LaneFile
from darktree_gateway.upstream import Upstream

MAX_READS_AT_ONCE = 16

_KINDS = {"prompt": "vllm:prompt_tokens_total", "completion": "vllm:generation_tokens_total"}


class EngineCounters:
    """Keeps the gauges of every lane's engines."""

    def __init__(self, lanes: LaneFile, upstream: Upstream) -> None:
        self._lanes = lanes
        self._upstream = upstream
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
        places = asyncio.Semaphore(MAX_READS_AT_ONCE)
        await asyncio.gather(*(self._read(lane, endpoint, places) for lane, endpoint in sorted(endpoints)))

    async def _read(self, lane: str, endpoint: str, places: asyncio.Semaphore) -> None:
        async with places:
            text = await self._upstream.exposition(endpoint)
        if text is None:
            return
        for kind, name in _KINDS.items():
            metrics.ENGINE_TOKENS.labels(lane, endpoint, kind).set(total_of(text, name))
        self._shown.add((lane, endpoint))


def total_of(exposition: str, name: str) -> float:
    """Return the sum of a metric's samples in Prometheus' text format, whatever their labels."""
    samples = re.findall(rf"^{re.escape(name)}(?:\{{[^\n]*\}})? +(\S+)", exposition, re.MULTILINE)
    return sum(map(float, samples))
