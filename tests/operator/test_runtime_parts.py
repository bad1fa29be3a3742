"""Drift, signals, the workers' queue, and who may lead: each alone, without a cluster where that is enough."""

import asyncio
from typing import Any

import pytest

from darktree_kit.cluster import Cluster
from darktree_kit.errors import Unreachable
from darktree_kit.mirror import Key
from darktree_operator.drift import MAX_PATHS, differences, projection, writers
from darktree_operator.events import transitions
from darktree_operator.leases import DURATION_SECONDS, Lease
from darktree_operator.observed import LaneLoad
from darktree_operator.signals import BELIEVED_SECONDS, Signals
from darktree_operator.worker import Workers

OAK: Key = ("lanes", "oak")


class Time:
    """A clock that is told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_what_the_server_adds_or_writes_otherwise_is_no_drift() -> None:
    said = {"spec": {"memory": "1024Mi", "containers": [{"name": "engine", "image": "a", "env": []}]}}
    kept = {
        "spec": {
            "memory": "1Gi",
            "dns": "added",
            "containers": [{"name": "sidecar"}, {"name": "engine", "image": "a", "pull": "x"}],
        }
    }
    before = projection(said, kept)
    kept["spec"]["containers"].reverse()  # type: ignore[attr-defined]
    assert differences(before, projection(said, kept)) == []
    kept["spec"]["containers"][0]["image"] = "b"  # type: ignore[index]
    assert differences(before, projection(said, kept)) == ["spec.containers.engine.image"]
    del kept["spec"]["containers"]
    assert differences(before, projection(said, kept)) == ["spec.containers"]


def test_a_list_without_keys_is_compared_whole_and_paths_are_bounded() -> None:
    said = {"args": ["a", "b"]}
    assert differences(projection(said, {"args": ["a", "b"]}), projection(said, {"args": ["a"]})) == ["args"]
    many: dict[str, int] = {str(each): each for each in range(100)}
    assert len(differences(many, {})) == MAX_PATHS + 1


def test_other_writers_are_named_newest_first() -> None:
    fields = [
        {"manager": "old", "time": "2026-01-01T00:00:00Z"},
        {"manager": "darktree-lane", "time": "2026-01-03T00:00:00Z"},
        {"manager": "kube-controller-manager", "time": "2026-01-04T00:00:00Z", "subresource": "status"},
        {"manager": "new", "time": "2026-01-02T00:00:00Z"},
    ]
    assert writers({"metadata": {"managedFields": fields}}, "darktree-lane") == ["new", "old"]


def test_events_tell_of_what_became_another_and_of_no_new_lanes_health() -> None:
    def row(kind: str, status: str, reason: str) -> dict[str, Any]:
        return {"type": kind, "status": status, "reason": reason, "message": reason}

    first = [row("Ready", "False", "Starting"), row("Degraded", "False", "AsExpected")]
    assert [(each.kind, each.reason) for each in transitions([], first)] == [("Normal", "Starting")]
    second = [row("Ready", "False", "CrashLoop"), row("Degraded", "False", "AsExpected")]
    assert [(each.kind, each.reason) for each in transitions(first, second)] == [("Warning", "CrashLoop")]
    assert list(transitions(second, second)) == []
    third = [row("Ready", "True", "AsExpected"), row("Degraded", "False", "AsExpected")]
    assert [(each.kind, each.reason) for each in transitions(second, third)] == [("Normal", "AsExpected")]


async def test_load_is_summed_over_gateways_and_unknown_when_one_is_silent_for_long() -> None:
    time = Time()
    answers = {
        "http://a": b'darktree_lane_in_flight{lane="oak"} 3.0\ndarktree_lane_queued{lane="oak"} 1.0\n'
        b'darktree_lane_oldest_queued_seconds{lane="oak"} 2.5\n',
        "http://b": b'# HELP x\ndarktree_lane_in_flight{lane="oak"} 4.0\nother{lane="oak"} 9\n',
    }

    async def fetch(url: str) -> bytes:
        if url not in answers:
            raise Unreachable("no answer")
        return answers[url]

    urls = ["http://a", "http://b"]
    signals = Signals(fetch, lambda: urls, time)
    assert signals.of_lane("oak") is None
    assert (await signals.read()).loads == {"oak"}
    assert signals.of_lane("oak") == LaneLoad(7, 1, 2.5)
    assert signals.of_lane("elm") == LaneLoad(0, 0)
    assert (await signals.read()).loads == set()
    del answers["http://b"]
    time.now += BELIEVED_SECONDS
    await signals.read()
    assert signals.of_lane("oak") == LaneLoad(7, 1, 2.5)
    time.now += 1
    assert (await signals.read()).loads == {"oak"}
    assert signals.of_lane("oak") is None
    urls.remove("http://b")  # it is gone, and known to be
    await signals.read()
    assert signals.of_lane("oak") == LaneLoad(3, 1, 2.5)


async def test_a_lane_is_looked_at_once_for_many_changes_and_one_look_at_a_time() -> None:
    looks: list[Key] = []
    at_once, most = 0, 0

    async def look(key: Key) -> float | None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        looks.append(key)
        await asyncio.sleep(0)
        at_once -= 1
        return 3600.0

    workers = Workers(look)
    for _ in range(100):
        workers.enqueue(OAK, 0.0)
    assert looks == []
    workers.start()
    async with asyncio.timeout(5):
        while not looks:
            await asyncio.sleep(0)
    for _ in range(10):
        workers.enqueue(OAK, 0.0)
        await asyncio.sleep(0)
    await workers.stop()
    assert most == 1
    assert len(looks) <= 11


async def test_a_failing_lane_waits_longer_each_time_and_disturbs_no_other() -> None:
    seen: dict[str, int] = {"oak": 0, "elm": 0}

    async def look(key: Key) -> float | None:
        seen[key[1]] += 1
        if key[1] == "oak":
            raise OSError("no answer")
        return 0.0 if seen["elm"] < 50 else 3600.0

    workers = Workers(look)
    workers.start()
    workers.enqueue(OAK, 0.0)
    workers.enqueue(("lanes", "elm"), 0.0)
    async with asyncio.timeout(5):
        while seen["elm"] < 50:
            workers.enqueue(OAK, 0.0)
            await asyncio.sleep(0)
    assert seen["oak"] <= 2
    await workers.stop()


async def test_a_lane_that_is_gone_is_forgotten() -> None:
    async def look(_: Key) -> float | None:
        return None

    workers = Workers(look)
    workers.start()
    workers.enqueue(OAK, 0.0)
    async with asyncio.timeout(5):
        while workers._turns:
            await asyncio.sleep(0)
    assert workers.overdue_seconds() == 0.0


@pytest.mark.parametrize(
    ("holder", "waited", "takes"),
    [
        ("", 0, True),
        ("me", 0, True),
        ("other", DURATION_SECONDS, False),
        ("other", DURATION_SECONDS + 1, True),
    ],
)
def test_a_lease_is_taken_only_after_it_stood_still_for_its_duration(
    holder: str, waited: int, takes: bool
) -> None:
    time = Time()
    lease = Lease(Cluster(), "n", "l", "me", elapsed=time)
    found: dict[str, Any] = {
        "metadata": {"resourceVersion": "5"},
        "spec": {"holderIdentity": holder, "leaseDurationSeconds": 15},
    }
    lease._may_take(found)
    time.now += waited
    assert lease._may_take(found) is takes
    found["metadata"]["resourceVersion"] = "6"  # renewed
    assert lease._may_take(found) is (holder in {"", "me"})
