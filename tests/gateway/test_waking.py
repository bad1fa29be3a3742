"""Requests for a sleeping lane: held within bounds, woken together, sent away with the lane's own start as delay."""

import asyncio
from dataclasses import replace

import pytest

from darktree_gateway import metrics
from darktree_gateway.balancing import Balancer
from darktree_gateway.errors import LaneUnavailable
from darktree_gateway.gauges import Gauges
from darktree_gateway.lanes import Lane, LaneTable
from darktree_gateway.queueing import Bounds, Queues
from darktree_gateway.waking import ASKED_SECONDS, Waking

ASLEEP = Lane(
    "own",
    "Dedicated",
    "ann",
    "m",
    "VLLM",
    4096,
    (),
    max_held_requests=2,
    max_hold_seconds=30,
    cold_start_seconds=95,
)
AWAKE = replace(ASLEEP, endpoints=("http://10.0.0.1:8000",))


class World:
    """A table that can change, and a clock that is told."""

    def __init__(self, lane: Lane) -> None:
        self.table = LaneTable([lane])
        self.now = 1000.0
        self.waking = Waking(lambda model, customer: self.table.find(model, customer), lambda: self.now)

    def become(self, lane: Lane) -> None:
        self.table = LaneTable([lane])
        self.waking.told(self.table)

    def gauges(self, name: str = "own") -> tuple[float, float]:
        Gauges(self.waking, Queues(Bounds(0, 1, 0, 1.0)), Balancer()).show(self.table)
        return (
            metrics.QUEUED.labels(name)._value.get(),
            metrics.OLDEST_QUEUED.labels(name)._value.get(),
        )


async def test_held_requests_are_all_served_once_there_is_an_engine() -> None:
    world = World(ASLEEP)
    assert world.gauges() == (0, 0)
    held = [asyncio.create_task(world.waking.engine(ASLEEP, "ann")) for _ in range(2)]
    await asyncio.sleep(0)
    world.now += 4
    assert world.gauges() == (2, 4)
    world.become(AWAKE)
    assert await asyncio.gather(*held) == [AWAKE, AWAKE]
    assert world.gauges() == (0, 0)


async def test_one_more_than_may_be_held_is_told_when_to_come_back() -> None:
    world = World(ASLEEP)
    held = [asyncio.create_task(world.waking.engine(ASLEEP, "ann")) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(LaneUnavailable) as refused:
        await world.waking.engine(ASLEEP, "ann")
    assert refused.value.headers["Retry-After"] == "95"
    for task in held:
        task.cancel()
    await asyncio.gather(*held, return_exceptions=True)
    assert world.gauges()[0] == 1  # who was sent away still asks, for a while
    world.now += ASKED_SECONDS
    assert world.gauges()[0] == 0


async def test_a_request_is_held_no_longer_than_the_lane_says() -> None:
    lane = replace(ASLEEP, max_hold_seconds=1)
    world = World(lane)
    with pytest.raises(LaneUnavailable) as refused:
        await world.waking.engine(lane, "ann")
    assert refused.value.headers["Retry-After"] == "95"
    assert world.gauges()[0] == 1


async def test_a_lane_that_never_sleeps_holds_nobody() -> None:
    lane = replace(ASLEEP, max_held_requests=0, max_hold_seconds=0, cold_start_seconds=0)
    with pytest.raises(LaneUnavailable) as refused:
        await World(lane).waking.engine(lane, "ann")
    assert refused.value.headers["Retry-After"] == "5"


async def test_a_lane_with_an_engine_is_served_at_once() -> None:
    assert await World(AWAKE).waking.engine(AWAKE, "ann") is AWAKE
