"""What the gateways have in flight and queued for each lane: read from their metrics, summed.

It exists at zero pods, which the engines' own metrics do not. A gateway that does not answer is believed for a while;
after that nobody knows what it serves, and no lane is shrunk on a guess.
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from darktree_kit.clock import Monotonic, monotonic
from darktree_kit.errors import ApiError
from darktree_operator.observed import LaneLoad

BELIEVED_SECONDS = 20.0
MAX_GATEWAYS = 256
IN_FLIGHT, QUEUED, OLDEST = "in_flight", "queued", "oldest_queued_seconds"

_LINE = re.compile(
    r'^darktree_lane_(in_flight|queued|oldest_queued_seconds)\{[^}]*?\blane="([^"]+)"[^}]*\} ([0-9.eE+-]+)$',
    re.M,
)
_log = logging.getLogger(__name__)

Fetch = Callable[[str], Awaitable[bytes]]
"""Gets a gateway's metrics by its address. Raises ApiError."""


@dataclass(slots=True)
class Reading:
    """What one gateway said last."""

    at: float
    lanes: dict[str, dict[str, float]]


class Signals:
    """The newest readings of all gateways."""

    def __init__(
        self, fetch: Fetch, gateways: Callable[[], Iterable[str]], now: Monotonic = monotonic
    ) -> None:
        self._fetch = fetch
        self._gateways = gateways
        self._now = now
        self._readings: dict[str, Reading] = {}
        self._whole = False

    def of_lane(self, name: str) -> LaneLoad | None:
        """Return a lane's load, or None while it is not known."""
        if not self._whole:
            return None
        rows = [reading.lanes.get(name, {}) for reading in self._readings.values()]
        return LaneLoad(
            in_flight=int(sum(row.get(IN_FLIGHT, 0.0) for row in rows)),
            queued=int(sum(row.get(QUEUED, 0.0) for row in rows)),
            oldest_queued_seconds=max((row.get(OLDEST, 0.0) for row in rows), default=0.0),
        )

    async def read(self) -> set[str]:
        """Ask every gateway once; return the lanes whose load changed."""
        before = self._loads()
        urls = sorted(set(self._gateways()))[:MAX_GATEWAYS]
        await asyncio.gather(*map(self._read, urls))
        self._readings = {url: self._readings[url] for url in urls if url in self._readings}
        oldest = self._now() - BELIEVED_SECONDS
        self._whole = bool(urls) and all(
            url in self._readings and self._readings[url].at >= oldest for url in urls
        )
        after = self._loads()
        return {name for name in {*before, *after} if before.get(name) != after.get(name)}

    async def watch(self, every_seconds: float, changed: Callable[[set[str]], None]) -> None:
        """Read for as long as the task lives, telling of the lanes whose load changed."""
        while True:
            if lanes := await self.read():
                changed(lanes)
            await asyncio.sleep(every_seconds)

    async def _read(self, url: str) -> None:
        try:
            content = await self._fetch(url)
        except ApiError as error:
            _log.debug("a gateway's metrics could not be read", extra={"error": str(error)[:200]})
            return
        self._readings[url] = Reading(self._now(), parse(content.decode("utf-8", "replace")))

    def _loads(self) -> dict[str, LaneLoad | None]:
        names = {name for reading in self._readings.values() for name in reading.lanes}
        return {name: self.of_lane(name) for name in names}


def parse(exposition: str) -> dict[str, dict[str, float]]:
    """Return each lane's numbers in a gateway's metrics."""
    lanes: dict[str, dict[str, float]] = {}
    for what, lane, number in _LINE.findall(exposition):
        lanes.setdefault(lane, {})[what] = float(number)
    return lanes
