"""Everything is killed at random, again and again, while customers of every kind send requests of every kind.

The seed is printed; DARKTREE_TEST_SEED sets it.
"""

import asyncio
import os
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from time import monotonic
from typing import Any

import aiohttp
import pytest

# What tests/platform/conftest.py makes, which cannot be imported.
Platform = Any
Customer = Any
Answer = Any
Send = Callable[..., Coroutine[Any, Any, Answer]]
Body = dict[str, Any]

HOLD_SECONDS = 5
CHAOS_SECONDS = 20.0
CLIENTS = 24
REST_SECONDS = 0.2  # of a client that was refused
SEED_NAME = "DARKTREE_TEST_SEED"


@pytest.fixture(scope="module")
def platform(started: Any) -> Iterator[Platform]:
    settings = {"DARKTREE_GATEWAY_HOLD_TTL_SECONDS": str(HOLD_SECONDS)}
    with started({"fast": 200, "slow": 40}, gateways=2, **settings) as running:
        yield running


@pytest.fixture
def rng() -> random.Random:
    seed = int(os.environ.get(SEED_NAME) or random.randrange(1_000_000))
    print(f"{SEED_NAME}={seed}")
    return random.Random(seed)


def a_request(rng: random.Random) -> Body:
    """Return a request that takes between nothing and two seconds."""
    model = rng.choice(["qwen25-14b-awq", "qwen25-14b-awq", "qwen25-32b-awq"])
    body: Body = {"model": model, "ignore_eos": True, "max_tokens": rng.randint(1, 80)}
    if rng.random() < 0.2:
        body["prompt"] = "Once upon a time there was an oak"
    else:
        body["messages"] = [{"role": "user", "content": "Count the leaves " * rng.randint(1, 5)}]
    if rng.random() < 0.2:
        body["n"] = 2
    if rng.random() < 0.2 and "messages" in body:
        del body["max_tokens"], body["ignore_eos"]
    if rng.random() < 0.5:
        body["stream"] = True
    return body


async def pause(ended: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(ended.wait(), seconds)


async def use(
    platform: Platform, send: Send, customer: Customer, rng: random.Random, ended: asyncio.Event
) -> list[Answer]:
    """Send one request after the other until the end; sometimes leave before it is answered."""
    answers: list[Answer] = []
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=45)) as session:
        while not ended.is_set():
            stays = rng.uniform(0.05, 0.5) if rng.random() < 0.15 else None
            answer = await send(session, platform.base_url, customer, a_request(rng), leave_after=stays)
            answers.append(answer)
            if not answer.whole:
                await pause(ended, REST_SECONDS)
    return answers


async def kill_at_random(platform: Platform, rng: random.Random) -> Counter[str]:
    """kill -9 one process every one to two seconds, each in turn in an order of chance, until each was killed."""
    killed: Counter[str] = Counter()
    deck: list[str] = []
    ends = monotonic() + CHAOS_SECONDS
    while monotonic() < ends or set(killed) != set(platform.processes):
        await asyncio.sleep(rng.uniform(1, 2))
        deck = deck or rng.sample(sorted(platform.processes), len(platform.processes))
        name = deck.pop()
        if await asyncio.to_thread(platform.kill, name):
            killed[name] += 1
            print(f"killed {name}")
    return killed


async def test_nothing_is_lost_or_charged_twice_while_everything_is_killed_at_random(
    platform: Platform, send: Send, rng: random.Random
) -> None:
    plenty = [platform.customer(cap_tokens=1_000_000) for _ in range(4)]
    scarce = [platform.customer(cap_tokens=4_000), platform.customer(1_000_000, dollars="3.0004")]
    customers = [*plenty, *scarce]
    ended = asyncio.Event()
    users = [
        use(platform, send, customers[number % len(customers)], random.Random(rng.random()), ended)
        for number in range(CLIENTS)
    ]
    using = asyncio.gather(*users)
    killed = await kill_at_random(platform, rng)
    ended.set()
    answers = [answer for of_one in await using for answer in of_one]
    platform.until_back()
    platform.must_add_up(customers, answers)
    whole = sum(answer.whole for answer in answers)
    print(f"{sum(killed.values())} kills, {len(answers)} requests, {whole} of them answered whole")
    assert whole > CLIENTS
