"""What the gateways have in flight and queued for each lane, read from their metrics and summed; and what they learnt
of the engines, which the operator itself may not reach.

The load exists at zero pods, which the engines' own metrics do not. A gateway that does not answer is believed for a
while; after that nobody knows what it serves, and no lane is shrunk on a guess.
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field

from darktree_kit.clock import Monotonic, monotonic
from darktree_kit.errors import ApiError
from darktree_operator.observed import EngineFacts, LaneLoad

BELIEVED_SECONDS = 20.0
MAX_GATEWAYS = 256
IN_FLIGHT, QUEUED, OLDEST = "in_flight", "queued", "oldest_queued_seconds"

_LINE = re.compile(
    r'^darktree_lane_(in_flight|queued|oldest_queued_seconds)\{[^}]*?\blane="([^"]+)"[^}]*\} ([0-9.eE+-]+)$',
    re.M,
)
_ENGINE = re.compile(r"^darktree_lane_engine_info\{([^\n]*)\} ", re.M)
_LABEL = re.compile(r'(\w+)="((?:[^"\\\n]|\\.)*)"')
_log = logging.getLogger(__name__)

Fetch = Callable[[str], Awaitable[bytes]]
"""Gets a gateway's metrics by its address. Raises ApiError."""


@dataclass(frozen=True, slots=True)
class News:
    """Lanes of which something became another."""

    loads: frozenset[str]
    engines: frozenset[str]


@dataclass(slots=True)
class Reading:
    """What one gateway said last."""

    at: float
    lanes: dict[str, dict[str, float]]
    engines: dict[str, dict[str, EngineFacts]] = field(default_factory=dict)


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

    def engines(self, name: str) -> Mapping[str, EngineFacts]:
        """Return what is known of a lane's engines, by their addresses."""
        return {
            url: facts
            for reading in self._readings.values()
            for url, facts in reading.engines.get(name, {}).items()
        }

    async def read(self) -> News:
        """Ask every gateway once; return what became another."""
        loads, engines = self._all(self.of_lane), self._all(self.engines)
        urls = sorted(set(self._gateways()))[:MAX_GATEWAYS]
        await asyncio.gather(*map(self._read, urls))
        self._readings = {url: self._readings[url] for url in urls if url in self._readings}
        oldest = self._now() - BELIEVED_SECONDS
        self._whole = bool(urls) and all(
            url in self._readings and self._readings[url].at >= oldest for url in urls
        )
        return News(_changed(loads, self._all(self.of_lane)), _changed(engines, self._all(self.engines)))

    async def watch(self, every_seconds: float, changed: Callable[[News], None]) -> None:
        """Read for as long as the task lives, telling of what became another."""
        while True:
            news = await self.read()
            if news.loads or news.engines:
                changed(news)
            await asyncio.sleep(every_seconds)

    async def _read(self, url: str) -> None:
        try:
            content = await self._fetch(url)
        except ApiError as error:
            _log.debug("a gateway's metrics could not be read", extra={"error": str(error)[:200]})
            return
        text = content.decode("utf-8", "replace")
        self._readings[url] = Reading(self._now(), parse(text), parse_engines(text))

    def _all(self, of: Callable[[str], object]) -> dict[str, object]:
        names = {name for reading in self._readings.values() for name in (*reading.lanes, *reading.engines)}
        return {name: of(name) for name in names}


def parse(exposition: str) -> dict[str, dict[str, float]]:
    """Return each lane's numbers in a gateway's metrics."""
    lanes: dict[str, dict[str, float]] = {}
    for what, lane, number in _LINE.findall(exposition):
        lanes.setdefault(lane, {})[what] = float(number)
    return lanes


def parse_engines(exposition: str) -> dict[str, dict[str, EngineFacts]]:
    """Return what a gateway's metrics say of each lane's engines, by their addresses."""
    lanes: dict[str, dict[str, EngineFacts]] = {}
    for text in _ENGINE.findall(exposition):
        said = dict(_LABEL.findall(text))
        facts = EngineFacts(
            version=said.get("version") or None,
            max_model_len=_number(said.get("max_model_len")),
            kv_cache_tokens=_number(said.get("kv_cache_tokens")),
            max_concurrency=said.get("max_concurrency") or None,
        )
        lanes.setdefault(said.get("lane", ""), {})[said.get("endpoint", "")] = facts
    return lanes


def _changed(before: Mapping[str, object], after: Mapping[str, object]) -> frozenset[str]:
    return frozenset(name for name in {*before, *after} if before.get(name) != after.get(name))


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None
