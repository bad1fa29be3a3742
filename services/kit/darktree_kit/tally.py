"""Metrics for hot paths: written by one event loop, without a lock, and told in Prometheus' words when it asks.

An observation is one search in a sorted tuple and two additions, a count is one addition: a fifth of what
prometheus_client's own cost.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector


class Tally:
    """How often a value fell into each bucket, for one set of labels."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value


class Count:
    """How many, for one set of labels."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self, by: int = 1) -> None:
        self.value += by

    def dec(self) -> None:
        self.value -= 1


Child = TypeVar("Child", Tally, Count)


class _Labelled(Collector, Generic[Child]):
    """A metric by labels. Every set of labels that was ever asked for is shown."""

    def __init__(self, name: str, documentation: str, labels: Sequence[str] = ()) -> None:
        self._name = name
        self._documentation = documentation
        self._labelnames = tuple(labels)
        self._children: dict[tuple[str, ...], Child] = {}
        if not labels:
            self.labels()
        REGISTRY.register(self)

    def labels(self, *values: str) -> Child:
        """Return what counts for these labels; keep it, looking it up costs as much as counting."""
        child = self._children.get(values)
        if child is None:
            assert len(values) == len(self._labelnames)
            child = self._children[values] = self._child()
        return child

    def _child(self) -> Child:
        raise NotImplementedError


class Distribution(_Labelled[Tally]):
    """A histogram."""

    def __init__(
        self, name: str, documentation: str, labels: Sequence[str] = (), *, buckets: tuple[float, ...]
    ) -> None:
        self._bounds = buckets
        super().__init__(name, documentation, labels)

    def describe(self) -> Iterator[HistogramMetricFamily]:
        yield self._family()

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = self._family()
        for values, tally in list(self._children.items()):
            family.add_metric(values, _buckets(self._bounds, tally.counts), tally.total)
        yield family

    def _child(self) -> Tally:
        return Tally(self._bounds)

    def _family(self) -> HistogramMetricFamily:
        return HistogramMetricFamily(self._name, self._documentation, labels=self._labelnames)


class Counts(_Labelled[Count]):
    """A counter; with `falls`, a gauge."""

    def __init__(
        self, name: str, documentation: str, labels: Sequence[str] = (), *, falls: bool = False
    ) -> None:
        self._falls = falls
        super().__init__(name, documentation, labels)

    def describe(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        yield self._family()

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        family = self._family()
        for values, count in list(self._children.items()):
            family.add_metric(values, count.value)
        yield family

    def _child(self) -> Count:
        return Count()

    def _family(self) -> CounterMetricFamily | GaugeMetricFamily:
        family = GaugeMetricFamily if self._falls else CounterMetricFamily
        return family(self._name, self._documentation, labels=self._labelnames)


def _buckets(bounds: tuple[float, ...], counts: list[int]) -> list[tuple[str, float]]:
    """Return cumulative counts by upper bound, as the text format wants them."""
    buckets: list[tuple[str, float]] = []
    seen = 0
    for bound, count in zip((*map(repr, bounds), "+Inf"), list(counts), strict=True):
        seen += count
        buckets.append((bound, seen))
    return buckets
