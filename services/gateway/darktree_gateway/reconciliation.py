"""Reads the engines' own counters of tokens, to be seen beside what was metered.

What engines generated past the metered usage (an aborted stream: at most what was on its way) is thereby visible,
and never charged.
"""

import asyncio
import logging
import re

import aiohttp

from darktree_gateway import metrics
from darktree_gateway.lanes import LaneFile

TIMEOUT_SECONDS = 5.0
MAX_EXPOSITION_BYTES = 8 * 1024 * 1024
MAX_READS_AT_ONCE = 16

_KINDS = {"prompt": "vllm:prompt_tokens_total", "completion": "vllm:generation_tokens_total"}
_log = logging.getLogger(__name__)


class EngineCounters:
    """Keeps the gauges of every lane's engines."""

    def __init__(self, lanes: LaneFile, token: str = "") -> None:
        self._lanes = lanes
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS),
            headers={"Authorization": f"Bearer {token}"} if token else None,
        )
        self._shown: set[tuple[str, str]] = set()

    async def close(self) -> None:
        await self._session.close()

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
        try:
            async with places, self._session.get(endpoint + "/metrics") as response:
                response.raise_for_status()
                content = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            _log.debug(
                "an engine's counters could not be read", extra={"lane": lane, "error": str(error)[:200]}
            )
            return
        if len(content) > MAX_EXPOSITION_BYTES:
            return
        text = content.decode("utf-8", "replace")
        for kind, name in _KINDS.items():
            metrics.ENGINE_TOKENS.labels(lane, endpoint, kind).set(total_of(text, name))
        self._shown.add((lane, endpoint))


def total_of(exposition: str, name: str) -> float:
    """Return the sum of a metric's samples in Prometheus' text format, whatever their labels."""
    samples = re.findall(rf"^{re.escape(name)}(?:\{{[^\n]*\}})? +(\S+)", exposition, re.MULTILINE)
    return sum(map(float, samples))
