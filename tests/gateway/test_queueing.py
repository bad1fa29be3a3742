"""Places of a lane: shared by customers, in turn, within bounds."""

import asyncio
from collections import Counter
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from darktree_gateway.errors import LaneUnavailable
from darktree_gateway.lanes import Lane, LaneTable
from darktree_gateway.queueing import Bounds, Queue, Queues

LANE = Lane("oak", "Standard", None, "m", "VLLM", 4096, ("http://a", "http://b"), max_sequences=2)
BOUNDS = Bounds(requests_per_engine=8, gateways=1, length=6, wait_seconds=5.0)


class World:
    """A queue with a clock that is told, and who was served, in order."""

    def __init__(self, places: int, bounds: Bounds = BOUNDS) -> None:
        self.now = 100.0
        self.queue = Queue("oak", bounds, lambda: self.now)
        self.queue.places = places
        self.served: list[str] = []
        self.refused: list[str] = []
        self.retry_after: list[str] = []

    async def request(self, customer_id: str) -> None:
        try:
            await self.queue.wait(customer_id)
        except LaneUnavailable as refusal:
            self.refused.append(customer_id)
            self.retry_after.append(refusal.headers["Retry-After"])
            return
        self.served.append(customer_id)

    async def come(self, *customers: str) -> list[asyncio.Task[None]]:
        tasks = []
        for customer_id in customers:
            tasks.append(asyncio.create_task(self.request(customer_id)))
            await asyncio.sleep(0)
        return tasks

    async def leave(self, *customers: str) -> None:
        for customer_id in customers:
            self.queue.leave(customer_id)
            await asyncio.sleep(0)
            await asyncio.sleep(0)


def test_a_lane_has_as_many_places_as_its_engines_take_and_gateways_share_them() -> None:
    assert BOUNDS.places(LANE) == 4
    assert BOUNDS.places(replace(LANE, max_sequences=0)) == 16
    assert replace(BOUNDS, requests_per_engine=0).places(replace(LANE, max_sequences=0)) == 0
    assert replace(BOUNDS, gateways=3).places(LANE) == 2


async def test_nobody_waits_while_a_place_is_free() -> None:
    world = World(places=2)
    assert world.queue.enter("ann")
    assert world.queue.enter("bob")
    assert not world.queue.enter("ann")
    world.queue.leave("ann")
    assert world.queue.enter("ann")
    unlimited = World(places=0)
    assert all(unlimited.queue.enter("ann") for _ in range(1000))


async def test_a_heavy_customer_does_not_starve_a_light_one() -> None:
    world = World(places=2)
    await world.come(*["heavy"] * 7, "light")
    assert world.served == ["heavy", "heavy"]
    await world.leave("heavy")
    assert world.served[2:] == ["light"], "it has nothing running, so it is next"
    await world.leave("heavy", "light")
    assert world.served[3:] == ["heavy", "heavy"], "nobody else waits"


async def test_customers_take_turns_and_long_requests_count_for_as_long_as_they_run() -> None:
    world = World(places=4, bounds=replace(BOUNDS, length=100))
    await world.come(*["ann"] * 10, *["bob"] * 10, *["cid"] * 10)
    running = Counter(world.served)
    for ends in [*["ann"] * 4, *["ann", "cid"] * 4]:  # bob's do not end
        await world.leave(ends)
        running[ends] -= 1
        running[world.served[-1]] += 1
    assert sum(running.values()) == 4
    assert max(running.values()) - min(running.values()) <= 1


async def test_a_full_queue_sends_the_newest_of_the_longest_line_away_for_who_has_fewer() -> None:
    world = World(places=1)
    await world.come(*["heavy"] * 7)
    assert world.queue.waiting == 6
    world.now += 2.5
    await world.come("heavy")
    assert world.refused == ["heavy"]
    assert world.retry_after == ["3"], "as long as the first in the queue has waited"
    await world.come("light")
    await asyncio.sleep(0)
    assert world.refused == ["heavy", "heavy"]
    assert world.queue.waiting == 6
    await world.leave("heavy", "heavy")
    assert world.served[-1] == "light"


async def test_a_request_waits_no_longer_than_it_may() -> None:
    world = World(places=1, bounds=replace(BOUNDS, wait_seconds=0.02))
    first, second = await world.come("ann", "bob")
    await asyncio.gather(first, second)
    assert (world.served, world.refused) == (["ann"], ["bob"])
    assert world.queue.waiting == 0
    world.queue.leave("ann")
    assert world.queue.idle


async def test_who_leaves_while_it_waits_leaves_nothing_behind() -> None:
    world = World(places=1)
    _, waiting, next_one = await world.come("ann", "bob", "cid")
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert world.queue.waiting == 1
    world.queue.leave("ann")  # grants cid's, and cid is cancelled before it hears of it
    next_one.cancel()
    await asyncio.gather(next_one, return_exceptions=True)
    assert world.queue.idle


async def test_more_engines_are_more_places_and_a_lane_without_any_keeps_its_line() -> None:
    queues = Queues(BOUNDS)
    queues.told(LaneTable([LANE]))
    queue = queues.of(LANE)
    assert queue.places == 4
    assert all(queue.enter("ann") for _ in range(4))
    waiting = asyncio.create_task(queue.wait("ann"))
    await asyncio.sleep(0)
    assert queues.waiting(LANE)[0] == 1
    queues.told(LaneTable([replace(LANE, endpoints=())]))
    assert queues.waiting(LANE)[0] == 1
    queues.told(LaneTable([replace(LANE, endpoints=("http://a", "http://b", "http://c"))]))
    await waiting
    assert (queue.places, queue.served, queue.waiting) == (6, 5, 0)
    queues.told(LaneTable())
    for _ in range(5):
        queue.leave("ann")
    queues.told(LaneTable())
    assert queues.of(LANE) is not queue, "a lane that is gone is forgotten"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["come", "end", "cancel"]), st.integers(0, 3)), max_size=80),
    st.integers(1, 4),
)
def test_whatever_happens_places_and_lines_add_up(events: list[tuple[str, int]], places: int) -> None:
    async def live() -> None:
        world = World(places)
        running: list[str] = []
        waiting: dict[asyncio.Task[None], str] = {}
        for event, number in events:
            customer_id = f"c{number}"
            before = len(world.served)
            if event == "come":
                (task,) = await world.come(customer_id)
                waiting[task] = customer_id
            elif event == "end" and running:
                await world.leave(running.pop(number % len(running)))
            elif event == "cancel" and waiting:
                task = list(waiting)[number % len(waiting)]
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            await asyncio.sleep(0)
            running += world.served[before:]
            waiting = {task: who for task, who in waiting.items() if not task.done()}
            assert world.queue.served == len(running) <= places
            assert world.queue.waiting == len(waiting) <= BOUNDS.length
            assert not waiting or len(running) == places, "nobody waits while a place is free"
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for customer_id in running:
            world.queue.leave(customer_id)
        assert world.queue.idle

    asyncio.run(live())
