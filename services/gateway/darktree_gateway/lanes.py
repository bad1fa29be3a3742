"""The lanes that can serve: InferenceLane documents from a file, and which of them serves a customer a model.

The file is read again when it changes. A broken one keeps the last good table: customers go on being served.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast
from urllib.parse import urlsplit

import yaml

MAX_FILE_BYTES = 4 * 1024 * 1024
MAX_LANES = 1_000
MAX_ENDPOINTS = 256
MAX_HELD_REQUESTS = 32  # of one sleeping lane, where it does not say
MAX_HOLD_SECONDS = 30

Tier = Literal["Standard", "Premium", "Dedicated"]
SpillOver = Literal["Never", "WhenUnavailable", "WhenFull"]
_TIERS = {"Standard", "Premium", "Dedicated"}
_SPILL_OVERS = {"Never", "WhenUnavailable", "WhenFull"}
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Lane:
    """What serves one model. `customer_id` is set if and only if the lane is dedicated to one customer."""

    name: str
    tier: Tier
    customer_id: str | None
    model: str
    engine: str
    context_tokens: int
    endpoints: tuple[str, ...]
    max_held_requests: int = 0
    """Requests to hold while a lane that may sleep has no engine; none for one that never sleeps."""
    max_hold_seconds: int = 0
    cold_start_seconds: int = 0
    """How long the last engine took to start; 0 when none was measured."""
    max_sequences: int = 0
    """What one engine generates at once, as the lane says; 0 when it does not."""
    spill_over: SpillOver = "Never"
    """When the shared lane of the model serves a dedicated lane's customer."""


class LaneTable:
    """Lanes by whom they serve."""

    def __init__(self, lanes: Iterable[Lane] = ()) -> None:
        self.lanes = tuple(sorted(lanes, key=lambda lane: lane.name))
        self._by_name = {lane.name: lane for lane in self.lanes}
        self._by_owner: dict[tuple[str, str | None], Lane] = {}
        for lane in self.lanes:
            place = (lane.model, lane.customer_id)
            known = self._by_owner.get(place)
            # Of two lanes alike the first by name serves, unless only the other has an engine.
            if known is None or (lane.endpoints and not known.endpoints):
                self._by_owner[place] = lane

    def find(self, model: str, customer_id: str) -> Lane | None:
        """Return the lane that serves this customer this model: their own before a shared one."""
        return self._by_owner.get((model, customer_id)) or self._by_owner.get((model, None))

    def shared(self, model: str) -> Lane | None:
        """Return the lane that serves everybody this model."""
        return self._by_owner.get((model, None))

    def named(self, name: str) -> Lane | None:
        return self._by_name.get(name)

    def models(self, customer_id: str) -> list[str]:
        """Return the models that this customer is served, sorted."""
        return sorted({lane.model for lane in self.lanes if lane.customer_id in (None, customer_id)})

    def endpoints(self) -> list[tuple[str, str]]:
        """Return (lane, endpoint) of every engine."""
        return [(lane.name, endpoint) for lane in self.lanes for endpoint in lane.endpoints]


class Lanes(Protocol):
    """Where a table of lanes comes from."""

    table: LaneTable
    loaded: bool

    async def watch(self, every_seconds: float, changed: Callable[[LaneTable], None]) -> None:
        """Keep the table for as long as the task lives, telling of each new one."""


class LaneFile:
    """Keeps `table` as the file says."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.table = LaneTable()
        self.loaded = False
        self._seen: tuple[int, int, int] | None = None

    def poll(self) -> bool:
        """Read the file again if it changed; return whether the table did."""
        try:
            facts = self.path.stat()
            seen = (facts.st_mtime_ns, facts.st_size, facts.st_ino)
            if seen == self._seen:
                return False
            self._seen = seen
            if facts.st_size > MAX_FILE_BYTES:
                raise ValueError(f"the file has more than {MAX_FILE_BYTES} bytes")
            table = LaneTable(parse_lanes(self.path.read_text(encoding="utf-8")))
            if self.loaded and not table.lanes:
                raise ValueError("the file holds no lane: perhaps it is just being written")
        except (OSError, ValueError, yaml.YAMLError) as error:
            _log.error(
                "the lanes' file cannot be used", extra={"error": str(error)[:500], "kept": self.loaded}
            )
            return False
        self.table, self.loaded = table, True
        _log.info("lanes read", extra={"lanes": len(table.lanes), "endpoints": len(table.endpoints())})
        return True

    async def watch(self, every_seconds: float, changed: Callable[[LaneTable], None]) -> None:
        """Poll for as long as the task lives, telling of each new table."""
        while True:
            await asyncio.sleep(every_seconds)
            if await asyncio.to_thread(self.poll):
                changed(self.table)


def parse_lanes(text: str) -> list[Lane]:
    """Return the lanes in YAML documents; other kinds are passed over. Raises ValueError for a lane that is wrong."""
    documents = [document for document in yaml.safe_load_all(text) if isinstance(document, dict)]
    lanes = [lane_of(document) for document in documents if document.get("kind") == "InferenceLane"]
    if len(lanes) > MAX_LANES:
        raise ValueError(f"more than {MAX_LANES} lanes")
    names = [lane.name for lane in lanes]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two lanes are named {sorted(twice)[0]}")
    return lanes


def lane_of(document: dict[str, Any], endpoints: tuple[str, ...] | None = None) -> Lane:
    """Return the lane that a document says, with the engines of its status if none are given. Raises ValueError."""
    name = str(_at(document, "metadata", "name"))
    try:
        tier = _at(document, "spec", "tier")
        customer_id = document["spec"].get("customerRef")
        if isinstance(customer_id, dict):
            customer_id = customer_id.get("name")
        if tier not in _TIERS:
            raise ValueError(f"spec.tier is {tier!r}")
        if (tier == "Dedicated") != bool(customer_id):
            raise ValueError("spec.customerRef is set if and only if the tier is Dedicated")
        status = document.get("status") or {}
        engine = document["spec"].get("engine") or {}
        context_tokens = engine.get("contextLength") or (status.get("engine") or {}).get("maxModelLen")
        if context_tokens is None:
            raise ValueError("spec.engine.contextLength is missing")
        if type(context_tokens) is not int or context_tokens < 2:
            raise ValueError(f"spec.engine.contextLength is {context_tokens!r}")
        return Lane(
            name=name,
            tier=cast("Tier", tier),
            customer_id=customer_id or None,
            model=str(_at(document, "spec", "model", "servedName")),
            engine=str(_at(document, "spec", "engine", "kind")),
            context_tokens=context_tokens,
            endpoints=_endpoints(status.get("endpoints") or []) if endpoints is None else endpoints,
            max_sequences=_sequences(engine),
            spill_over=_spill_over(document["spec"]),
            **_sleep(document["spec"], status),
        )
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"lane {name}: {error}") from error


def _sequences(engine: dict[str, Any]) -> int:
    most = engine.get("maxNumSeqs") or 0
    if type(most) is not int or most < 0:
        raise ValueError(f"spec.engine.maxNumSeqs is {most!r}")
    return most


def _spill_over(spec: dict[str, Any]) -> SpillOver:
    policy = spec.get("spillOver") or "Never"
    if policy not in _SPILL_OVERS:
        raise ValueError(f"spec.spillOver is {policy!r}")
    if policy != "Never" and spec["tier"] != "Dedicated":
        raise ValueError("spec.spillOver is only for the tier Dedicated")
    return cast("SpillOver", policy)


def _sleep(spec: dict[str, Any], status: dict[str, Any]) -> dict[str, int]:
    cold_start = spec.get("coldStart") or {}
    measured = (status.get("coldStart") or {}).get("lastTotalSeconds") or 0
    if (spec.get("autoscaling") or {}).get("minReplicas", 1) != 0:
        return {"cold_start_seconds": measured}
    return {
        "max_held_requests": cold_start.get("maxHeldRequests", MAX_HELD_REQUESTS),
        "max_hold_seconds": cold_start.get("maxHoldSeconds", MAX_HOLD_SECONDS),
        "cold_start_seconds": measured,
    }


def _endpoints(rows: list[dict[str, Any]]) -> tuple[str, ...]:
    if len(rows) > MAX_ENDPOINTS:
        raise ValueError(f"more than {MAX_ENDPOINTS} endpoints")
    urls = tuple(str(row["url"]).rstrip("/") for row in rows)
    for url in urls:
        if urlsplit(url).scheme not in {"http", "https"} or not urlsplit(url).netloc:
            raise ValueError(f"{url!r} is not the address of an engine")
    return urls


def _at(document: Any, *path: str) -> Any:
    for name in path:
        if not isinstance(document, dict) or document.get(name) is None:
            raise ValueError(f"{'.'.join(path)} is missing")
        document = document[name]
    return document
