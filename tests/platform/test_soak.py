"""A gateway's long life, compressed: requests of every kind, faults of everything around it, and at the end no leak.

Its engines' own counters, its ledger, its memory, files and connections must then say that nothing was left behind.
`make soak` lets it run for ten minutes; otherwise it is a short one. DARKTREE_TEST_SEED sets the seed.
"""

import asyncio
import os
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import aiohttp
import psutil
import pytest

# What tests/platform/conftest.py makes, which cannot be imported.
Platform = Any
Customer = Any
Answer = Any
Send = Callable[..., Coroutine[Any, Any, Answer]]
Body = dict[str, Any]

SOAK_SECONDS = 600.0 if "SOAK" in os.environ else 15.0
CLIENTS = 24
MAX_MEGABYTES = 120.0
MAX_GROWTH_MEGABYTES = 6.0  # from the first third to the end
MAX_MORE_FILES = 6
REST_SECONDS = 0.2  # of a client that was refused
SEED_NAME = "DARKTREE_TEST_SEED"
FAST, SLOW = "qwen25-14b-awq", "qwen25-32b-awq"
FAULTS: tuple[Body, ...] = (
    {},
    {"cut_after_tokens": 3},
    {"usage_missing": True},
    {"error_status": 500, "error_requests": 5},
    {"error_after_tokens": 4},
    {"latency_seconds": 0.2},
)


@pytest.fixture(scope="module")
def platform(started: Any) -> Iterator[Platform]:
    settings = {"DARKTREE_GATEWAY_HOLD_TTL_SECONDS": "10"}
    with started({"fast": 2000, "slow": 200}, gateways=2, **settings) as running:
        yield running


@dataclass(frozen=True)
class Footprint:
    """What one process has."""

    megabytes: float
    files: int
    connections: int


def footprint(process: psutil.Process) -> Footprint:
    return Footprint(
        process.memory_info().rss / 2**20, process.num_fds(), len(process.net_connections("tcp"))
    )


def a_request(rng: random.Random, model: str) -> Body:
    body: Body = {"model": model, "max_tokens": rng.randint(1, 60), "ignore_eos": True}
    if rng.random() < 0.5:
        body["stream"] = True
    if rng.random() < 0.3:
        return body | {"prompt": "Once upon a time there was an oak"}
    return body | {"messages": [{"role": "user", "content": "Count the leaves " * rng.randint(1, 5)}]}


class Users:
    """Clients that send one request after the other until the end, each of its own kind."""

    def __init__(self, platform: Platform, send: Send, rng: random.Random) -> None:
        self.platform, self.send, self.rng = platform, send, rng
        self.ended = asyncio.Event()
        self.answers: list[Answer] = []

    async def pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self.ended.wait(), seconds)

    async def stay(self, customer: Customer, model: str) -> None:
        """Wait for every answer."""
        rng = random.Random(self.rng.random())
        async with aiohttp.ClientSession() as session:
            while not self.ended.is_set():
                await self._ask(session, customer, a_request(rng, model))

    async def leave(self, customer: Customer) -> None:
        """Leave most answers before they have ended, and use a new connection for each."""
        rng = random.Random(self.rng.random())
        while not self.ended.is_set():
            async with aiohttp.ClientSession() as session:
                stays = rng.choice([None, rng.uniform(0.01, 0.3)])
                await self._ask(session, customer, a_request(rng, SLOW), leave_after=stays)

    async def _ask(self, session: aiohttp.ClientSession, customer: Customer, body: Body, **how: Any) -> None:
        answer = await self.send(session, self.platform.base_url, customer, body, **how)
        self.answers.append(answer)
        if not answer.whole:
            await self.pause(REST_SECONDS)


async def inject_faults(users: Users, rng: random.Random) -> Counter[str]:
    """Break the slow lane's engine, one way after the other, and kill what is behind the gateways now and then."""
    platform = users.platform
    slow_url = platform.processes["lane-slow"]["url"]
    injected: Counter[str] = Counter()
    async with aiohttp.ClientSession() as session:
        while not users.ended.is_set():
            faults = FAULTS[injected.total() % len(FAULTS)]
            await session.delete(f"{slow_url}/faults")
            if faults:
                await session.post(f"{slow_url}/faults", json=faults)
            injected[next(iter(faults), "none")] += 1
            await users.pause(rng.uniform(0.5, 1.5))
            if rng.random() < 0.04:
                name = rng.choice(["ledger", "billing"])
                await asyncio.to_thread(platform.kill, name)
                injected[f"kill -9 of the {name}"] += 1
                await users.pause(3.0)
        await session.delete(f"{slow_url}/faults")
    return injected


def charged_tokens(platform: Platform, lane: str) -> int:
    (row,) = platform.sql(
        "SELECT COALESCE(sum(prompt_tokens + completion_tokens), 0)::bigint AS tokens FROM ledger.entry "
        "WHERE lane = %s AND kind IN ('usage', 'absorbed')",
        lane,
    )
    return int(row["tokens"])


def engine_tokens(platform: Platform, lane: str) -> int:
    url = platform.processes[f"lane-{lane}"]["url"]
    counted = platform.counters(
        url, prompt="vllm:prompt_tokens_total", completion="vllm:generation_tokens_total"
    )
    return int(counted.total())


async def test_after_a_long_life_with_faults_everything_adds_up_and_nothing_is_left_behind(
    platform: Platform, send: Send, eventually: Callable[..., Any]
) -> None:
    seed = int(os.environ.get(SEED_NAME) or random.randrange(1_000_000))
    print(f"{SEED_NAME}={seed}")
    rng = random.Random(seed)
    plenty = [platform.customer(cap_tokens=100_000_000, dollars="100000") for _ in range(3)]
    capped = platform.customer(cap_tokens=1_000)
    gateways = {name: platform.process(name) for name in platform.gateways}
    idle = {name: footprint(process) for name, process in gateways.items()}
    users = Users(platform, send, rng)
    work = [users.stay(plenty[number % 3], FAST) for number in range(CLIENTS // 3)]
    work += [users.stay(plenty[number % 3], SLOW) for number in range(CLIENTS // 3)]
    work += [users.leave(plenty[number % 3]) for number in range(CLIENTS // 3 - 1)]
    work.append(users.stay(capped, FAST))
    loop = asyncio.get_running_loop()
    early: dict[str, Footprint] = {}
    loop.call_later(
        SOAK_SECONDS / 3, lambda: early.update({name: footprint(each) for name, each in gateways.items()})
    )
    loop.call_later(SOAK_SECONDS, users.ended.set)
    breaking = asyncio.create_task(inject_faults(users, rng))
    await asyncio.gather(*work)
    injected = await breaking
    late = {name: footprint(process) for name, process in gateways.items()}
    platform.until_back()
    platform.must_add_up([*plenty, capped], users.answers)
    assert charged_tokens(platform, "fast") == engine_tokens(platform, "fast")
    assert 0 < charged_tokens(platform, "slow") <= engine_tokens(platform, "slow")
    for name, process in gateways.items():
        assert late[name].megabytes < MAX_MEGABYTES
        assert late[name].megabytes < early[name].megabytes + MAX_GROWTH_MEGABYTES
        at_rest = eventually(
            lambda process=process, name=name: _at_rest(footprint(process), idle[name]), f"{name} is at rest"
        )
        print(f"{name}: idle {idle[name]}, a third {early[name]}, the end {late[name]}, at rest {at_rest}")
    codes = Counter(answer.code or ("ok" if answer.whole else "left") for answer in users.answers)
    print(f"{len(users.answers)} requests in {SOAK_SECONDS:.0f} s: {dict(codes)}; faults: {dict(injected)}")
    assert codes["ok"] > CLIENTS
    assert {"left", "rate_limit_exceeded"} <= set(codes)
    assert "engine_error" in codes


def _at_rest(now: Footprint, idle: Footprint) -> Footprint | None:
    return now if now.files <= idle.files + MAX_MORE_FILES else None
