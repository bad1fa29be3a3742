"""A hot path's metrics say what the library's own would say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import REGISTRY

from darktree_kit.tally import Counts, Distribution

BUCKETS = (0.1, 1.0, 10.0)
_OURS = Distribution("tally_test_seconds", "How long.", ["lane"], buckets=BUCKETS)


_COUNTS = Counts("tally_test_requests_total", "How many.", ["lane"])
_LEVELS = Counts("tally_test_in_flight", "How many now.", ["lane"], falls=True)


@given(st.lists(st.floats(0, 100), max_size=30))
def test_a_distribution_reads_as_the_librarys_histogram_does(values: list[float]) -> None:
    registry = CollectorRegistry()
    theirs = Histogram("tally_test_seconds", "How long.", ["lane"], buckets=BUCKETS, registry=registry)
    expected = theirs.labels("a")
    _OURS._children.clear()
    ours = _OURS.labels("a")
    for value in (*BUCKETS, *values):
        expected.observe(value)
        ours.observe(value)
    alone = CollectorRegistry()
    alone.register(_OURS)
    lines = [line for line in generate_latest(registry).splitlines() if b"_created" not in line]
    assert [line for line in generate_latest(alone).splitlines() if b"_created" not in line] == lines


@pytest.mark.parametrize(("ours", "theirs"), [(_COUNTS, Counter), (_LEVELS, Gauge)])
def test_counts_read_as_the_librarys_do(ours: Counts, theirs: type[Counter | Gauge]) -> None:
    registry = CollectorRegistry()
    expected = theirs(ours._name, ours._documentation, ["lane"], registry=registry)
    for lane, times in (("a", 3), ('"b"\n', 1)):
        for _ in range(times):
            expected.labels(lane).inc(2)
            ours.labels(lane).inc(2)
    if isinstance(expected, Gauge):
        expected.labels("a").dec()
        ours.labels("a").dec()
    alone = CollectorRegistry()
    alone.register(ours)
    lines = [line for line in generate_latest(registry).splitlines() if b"_created" not in line]
    assert generate_latest(alone).splitlines() == lines


def test_it_is_among_the_metrics_of_the_process() -> None:
    _OURS.labels("b").observe(2.0)
    assert REGISTRY.get_sample_value("tally_test_seconds_bucket", {"lane": "b", "le": "10.0"}) == 1.0
