"""The hard stop: hundreds of clients through two gateways are never charged past a limit, and get all of it."""

import asyncio
import datetime
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp
import psycopg
import pytest
from prometheus_server import ABSENT, BINARY, Prometheus, scraping
from psycopg.rows import dict_row

# What tests/platform/conftest.py makes, which cannot be imported.
Platform = Any
Customer = Any
Answer = Any
Send = Callable[..., Awaitable[Answer]]
Body = dict[str, Any]
Client = tuple[Customer, Callable[[random.Random], Body], bool]  # and whether it stays for its answers' ends

CLIENTS = 400
PRICE_NANOS = 750_000
WORDS = [
    "tell",
    "me",
    "about",
    "the",
    "old",
    "oak",
    "by",
    "the",
    "river",
    "and",
    "what",
    "its",
    "leaves",
    "say",
]
FULL = {"rate_limit_exceeded", "credit_balance_exhausted"}
POLL_SECONDS = 0.01
SPEND_SECONDS = 240
ONE_TOKEN_PROMPT = [65]
LONG_TOKENS = 600


@pytest.fixture(scope="module")
def platform(started: Any) -> Iterator[Platform]:
    """Two gateways before a fast lane and a slow one, and a ledger that looks for breaches all the time."""
    settings = {"DARKTREE_LEDGER_STANDING_SECONDS": "0.2"}
    with started({"fast": 2000, "slow": 250}, gateways=2, **settings) as running:
        yield running


@pytest.fixture(scope="module", autouse=True)
def prometheus(platform: Platform) -> Iterator[Prometheus | None]:
    """A real Prometheus with the alerts, from the first request on; the limits are tried without one as well."""
    if BINARY is None:
        yield None
        return
    with scraping(platform.data_dir / "prometheus.json") as running:
        yield running


@pytest.fixture(autouse=True)
def _within_one_day() -> None:
    now = datetime.datetime.now(datetime.UTC)
    if (now + datetime.timedelta(minutes=6)).date() != now.date():
        pytest.skip("a new day, and a new cap, begins in the middle of this test")


def a_chat(rng: random.Random, **options: Any) -> Body:
    """Return a chat that generates everything it may.

    Unless it is clamped it costs an even number of tokens: so an even limit is never left with a single token, which
    would be too little for any request. (The simulator's template adds 19 tokens to the bytes of one message.)
    """
    model = rng.choice(["qwen25-14b-awq", "qwen25-32b-awq"])
    content = " ".join(rng.choices(WORDS, k=rng.randint(1, 12)))
    content += "." * (len(content) % 2 == 0)
    body = {"model": model, "messages": [{"role": "user", "content": content}], "ignore_eos": True}
    return body | {"max_tokens": 2 * rng.randint(1, 45), "seed": rng.randrange(1000)} | options


def a_long_stream(rng: random.Random) -> Body:
    """Return a request whose answer takes more than two seconds."""
    return a_chat(rng, model="qwen25-32b-awq", max_tokens=LONG_TOKENS, stream=True)


def everything_left(rng: random.Random) -> Body:
    """Return the smallest prompt that there is, with more to generate than any limit here allows."""
    return {"model": "qwen25-14b-awq", "prompt": ONE_TOKEN_PROMPT, "max_tokens": 2_000, "ignore_eos": True}


def streamed(body: Body, rng: random.Random) -> Body:
    options = {"stream_options": {"include_usage": True}} if rng.random() < 0.5 else {}
    return body | {"stream": True} | options


def plain_or_streamed(rng: random.Random) -> Body:
    body = a_chat(rng)
    return streamed(body, rng) if rng.random() < 0.5 else body


def of_every_kind(rng: random.Random) -> Body:
    """Return a request of one of the kinds that customers send."""
    kind = rng.randrange(5)
    if kind == 0:
        body = a_chat(rng, n=2, max_tokens=rng.randint(1, 40))
    elif kind == 1:
        body = a_chat(rng, ignore_eos=False)
        del body["max_tokens"]  # up to the model's default of 1,024, but ends by itself much earlier
    elif kind == 2:
        body = {"model": "qwen25-14b-awq", "prompt": "Once upon a time", "max_tokens": rng.randint(1, 60)}
    else:
        body = a_chat(rng)
    return streamed(body, rng) if rng.random() < 0.5 else body


class Watch:
    """Looks at the rows that enforce the limits, again and again, while others spend."""

    def __init__(self, platform: Platform, customers: list[Customer]) -> None:
        self._url = platform.ready["database_url"]
        self._customers = {customer.id: customer for customer in customers}
        self.looks = 0

    @asynccontextmanager
    async def looking(self) -> AsyncIterator[None]:
        ended = asyncio.Event()
        task = asyncio.create_task(self._look_until(ended))
        try:
            yield
        finally:
            ended.set()
            await task

    async def _look_until(self, ended: asyncio.Event) -> None:
        connection = await psycopg.AsyncConnection.connect(self._url, autocommit=True, row_factory=dict_row)
        async with connection:
            while not ended.is_set():
                await self._look(connection)
                with suppress(TimeoutError):
                    await asyncio.wait_for(ended.wait(), POLL_SECONDS)

    async def _look(self, connection: Any) -> None:
        rows = await connection.execute(
            "SELECT a.*, d.prompt_tokens + d.completion_tokens AS used, d.held_tokens, ("
            "  SELECT coalesce(sum(prompt_tokens + completion_tokens), 0) FROM ledger.entry e"
            "  WHERE e.customer_id = a.customer_id AND kind = 'usage') AS of_entries"
            " FROM ledger.account a JOIN ledger.day_usage d USING (customer_id)"
            " WHERE customer_id = ANY (%s)",
            (list(self._customers),),
        )
        for row in await rows.fetchall():
            assert row["used"] == row["of_entries"], row
            assert row["used"] + row["held_tokens"] <= self._customers[row["customer_id"]].cap_tokens, row
            assert 0 <= row["held_nanos"] <= row["balance_nanos"], row
        self.looks += 1


async def spend_all(platform: Platform, send: Send, clients: list[Client]) -> list[Answer]:
    """Let every client ask until it is told that nothing is left; then one more takes what was too little for them.

    Returns every answer that was not such a refusal. A client that does not stay asks once, and leaves when its answer
    begins.
    """
    customers = list({client[0].id: client[0] for client in clients}.values())
    watch = Watch(platform, customers)
    answers: list[Answer] = []
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector) as session, watch.looking():

        async def spend(number: int, customer: Customer, make: Any, stays: bool) -> None:
            rng, full = random.Random(number), False
            while not full:
                answer = await send(session, platform.base_url, customer, make(rng), leave_early=not stays)
                assert answer.status in {200, 429}, answer
                if answer.status == 200:
                    answers.append(answer)
                full = answer.code in FULL or not stays

        async with asyncio.timeout(SPEND_SECONDS):
            await asyncio.gather(*(spend(number, *client) for number, client in enumerate(clients)))
            await asyncio.gather(*(spend(0, customer, everything_left, True) for customer in customers))
    assert watch.looks > 5
    return answers


def growth(platform: Platform, before: Counter[str]) -> Counter[str]:
    counted: Counter[str] = platform.engine_tokens()
    counted.subtract(before)
    return counted


def sums(rows: list[dict[str, Any]]) -> dict[str, int]:
    return {
        "prompt": sum(row["prompt_tokens"] for row in rows),
        "completion": sum(row["completion_tokens"] for row in rows),
    }


async def test_hundreds_of_parallel_requests_use_a_cap_up_to_its_last_token_and_never_more(
    platform: Platform, send: Send
) -> None:
    customer = platform.customer(cap_tokens=40_012)
    engines, served = platform.engine_tokens(), platform.requests_served()
    answers = await spend_all(platform, send, [(customer, plain_or_streamed, True)] * CLIENTS)
    platform.must_add_up([customer], answers)
    entries = platform.entries(customer)
    assert platform.day_tokens(customer) == customer.cap_tokens
    assert all(answer.whole for answer in answers)
    assert sum(answer.tokens for answer in answers) == customer.cap_tokens
    assert {answer.hold_id for answer in answers} == {row["hold_id"] for row in entries}
    assert growth(platform, engines) == sums(entries), "the engines counted what was charged"
    assert platform.check_by_command()["problems"] == []
    assert all(count > served[name] for name, count in platform.requests_served().items()), "both served"


async def test_hundreds_of_parallel_requests_use_a_balance_up_to_its_last_token_and_never_more(
    platform: Platform, send: Send
) -> None:
    customer = platform.customer(cap_tokens=1_000_000, dollars="22.5007")
    engines = platform.engine_tokens()
    answers = await spend_all(platform, send, [(customer, plain_or_streamed, True)] * CLIENTS)
    platform.must_add_up([customer], answers)
    entries = platform.entries(customer)
    assert platform.account(customer)["balance_nanos"] == customer.granted_nanos % PRICE_NANOS == 700_000
    assert sum(answer.tokens for answer in answers) == customer.granted_nanos // PRICE_NANOS
    assert {answer.hold_id for answer in answers} == {row["hold_id"] for row in entries}
    assert growth(platform, engines) == sums(entries)
    assert platform.check_by_command()["problems"] == []


async def test_requests_of_every_kind_some_of_them_abandoned_stay_within_the_cap_and_use_it_up(
    platform: Platform, send: Send
) -> None:
    customer = platform.customer(cap_tokens=30_000)
    engines = platform.engine_tokens()
    leaving: list[Any] = [(customer, a_long_stream, False)] * 40
    staying: list[Any] = [(customer, of_every_kind, True)] * (CLIENTS - len(leaving))
    answers = await spend_all(platform, send, [*leaving, *staying])
    platform.must_add_up([customer], answers)
    entries = platform.entries(customer)
    assert customer.cap_tokens - platform.day_tokens(customer) < 2, "a token of prompt, and one of answer"
    left = {answer.hold_id for answer in answers if not answer.whole}
    abandoned = [row for row in entries if row["outcome"] == "abandoned"]
    assert {row["hold_id"] for row in entries} == {answer.hold_id for answer in answers}
    assert abandoned
    assert {row["hold_id"] for row in abandoned} <= left
    assert all(row["completion_tokens"] < LONG_TOKENS for row in abandoned)
    charged, counted = sums(entries), growth(platform, engines)
    assert charged["completion"] <= counted["completion"]
    assert charged["prompt"] <= counted["prompt"], "an engine counts a prompt once for each answer"
    assert platform.check_by_command()["problems"] == []


async def test_customers_side_by_side_each_use_up_their_own_limit_and_nobody_elses(
    platform: Platform, send: Send
) -> None:
    by_cap = [platform.customer(cap_tokens=2_002 + 500 * number) for number in range(4)]
    by_balance = [
        platform.customer(1_000_000, dollars) for dollars in ("1.5005", "1.8005", "2.1005", "2.4005")
    ]
    clients: list[Any] = [(customer, plain_or_streamed, True) for customer in (*by_cap, *by_balance) * 25]
    engines = platform.engine_tokens()
    answers = await spend_all(platform, send, clients)
    platform.must_add_up([*by_cap, *by_balance], answers)
    for customer in by_cap:
        assert platform.day_tokens(customer) == customer.cap_tokens
    for customer in by_balance:
        assert platform.account(customer)["balance_nanos"] == customer.granted_nanos % PRICE_NANOS
    entries = [row for customer in (*by_cap, *by_balance) for row in platform.entries(customer)]
    assert sum(answer.tokens for answer in answers) == sum(sums(entries).values())
    assert growth(platform, engines) == sums(entries)
    assert platform.check_by_command()["problems"] == []


@pytest.mark.skipif(BINARY is None, reason=ABSENT)
def test_the_alarms_for_a_breach_looked_all_the_time_and_were_silent(prometheus: Prometheus) -> None:
    """That they are loud when a row is tampered with: test_watching.py."""
    breaches = prometheus.ever("max by (limit) (darktree_ledger_limit_breaches)")
    assert {series["metric"]["limit"] for series in breaches} == {"cap", "balance"}
    assert {value for series in breaches for _, value in series["values"]} == {"0"}
    assert not prometheus.ever('ALERTS{alertname=~"DarktreeLimitBreached|DarktreeProjectionDiffers"}')
    used_up = prometheus.ever('darktree_ledger_today_customers{use="at_cap"} > 0')
    assert used_up, "somebody was at the cap while they looked"
