"""A real Prometheus watches `darktree up` under load: a fault fires its alert, which clears when it is mended."""

import asyncio
import signal
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import aiohttp
import psycopg
import pytest
from asked import questions
from prometheus_server import ABSENT, BINARY, Prometheus, scraping

from darktree_stripe_simulator.client import StripeStandIn

pytestmark = [pytest.mark.skipif(BINARY is None, reason=ABSENT), pytest.mark.timeout(900)]

# What tests/platform/conftest.py makes, which cannot be imported.
Platform = Any
Background = Any
Send = Callable[..., Coroutine[Any, Any, Any]]
Eventually = Callable[..., Any]

FIRES_SECONDS = 120
SHORT_REQUEST = {
    "model": "qwen25-14b-awq",
    "messages": [{"role": "user", "content": "Hello"}],
    "max_tokens": 8,
}
STREAM = SHORT_REQUEST | {"model": "qwen25-32b-awq", "stream": True, "max_tokens": 20, "ignore_eos": True}
LONG_STREAM = STREAM | {"max_tokens": 4_000}
WORKERS = 3
HOLD_SECONDS = 3
SETTINGS = {
    "DARKTREE_LEDGER_STANDING_SECONDS": "0.5",
    "DARKTREE_LEDGER_PATROL_SECONDS": "0.5",
    "DARKTREE_BILLING_RECONCILE_SECONDS": "1",
    "DARKTREE_BILLING_EXPIRIES_SECONDS": "1",
    "DARKTREE_BILLING_STRIPE_POLL_SECONDS": "5",
    "DARKTREE_GATEWAY_HOLD_TTL_SECONDS": str(HOLD_SECONDS),
    "DARKTREE_GATEWAY_ENGINE_METRICS_INTERVAL_SECONDS": "0.5",
}


@pytest.fixture(scope="module")
def platform(started: Any) -> Iterator[Platform]:
    with started({"fast": 2000, "slow": 100}, gateways=1, **SETTINGS) as running:
        yield running


@pytest.fixture(scope="module")
def prometheus(platform: Platform) -> Iterator[Prometheus]:
    with scraping(platform.data_dir / "prometheus.json") as running:
        yield running


@pytest.fixture(scope="module")
def load(
    platform: Platform, background: Background, send: Send, prometheus: Prometheus
) -> Iterator[Counter[str]]:
    """Customers who go on asking, whatever happens, until the module ends; counts their answers' codes."""
    customer = platform.customer(cap_tokens=50_000_000, dollars="100000")
    capped = platform.customer(cap_tokens=40, dollars="1")
    answers: Counter[str] = Counter()

    async def ask_on(who: Any, body: dict[str, Any]) -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
            while True:
                answer = await send(session, platform.base_url, who, body)
                answers[answer.code or str(answer.status)] += 1
                await asyncio.sleep(0.3 if who is capped else 0.1)

    asked = [(customer, SHORT_REQUEST), (customer, STREAM)] * WORKERS + [(capped, SHORT_REQUEST)]
    running = [background.start(ask_on(who, body)) for who, body in asked]
    yield answers
    for each in running:
        each.cancel()


@pytest.fixture
def alerts(prometheus: Prometheus, eventually: Eventually, load: Counter[str]) -> Any:
    """Sees alerts fire while a fault lasts, and clear after it."""

    @contextmanager
    def seen(*names: str, **labels: str) -> Iterator[None]:
        before = [name for name in names if prometheus.fires(name, **labels)]
        assert not before, "fires before the fault"
        yield
        for name in names:
            eventually(
                lambda name=name: not prometheus.fires(name, **labels), f"{name} clears", FIRES_SECONDS
            )

    def fires(name: str, **labels: str) -> None:
        eventually(lambda: prometheus.fires(name, **labels), f"{name} fires", FIRES_SECONDS)

    seen.fires = fires  # type: ignore[attr-defined]
    return seen


@contextmanager
def stopped(platform: Platform, *names: str) -> Iterator[None]:
    """Let processes stand still: alive, and deaf."""
    found = [platform.process(name) for name in names]
    for process in found:
        process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in found:
            process.send_signal(signal.SIGCONT)


def buy(platform: Platform) -> str:
    """Pay for a plan at the stand-in's page; return the order."""
    stripe = StripeStandIn(platform.ready["stripe_url"], "unused", "unused")
    order = platform.admin("POST", "/customers/buyer/checkouts", plan="solo")["order_id"]
    stripe.pay(platform.admin("GET", f"/orders/{order}")["session_id"])
    return str(order)


def test_every_token_that_engines_count_is_recorded_once(
    platform: Platform, prometheus: Prometheus, background: Background, send: Send, eventually: Eventually
) -> None:
    """The dashboard's 1.000, from the first token on: nothing is on its way when it is asked."""
    compared = "count(darktree_reconciliation_lane_engine_tokens)"
    eventually(
        lambda: prometheus.value(compared) == 2 * 2,
        "a first reading of both lanes, both kinds",
        FIRES_SECONDS,
    )
    customer = platform.customer(cap_tokens=1_000_000)

    async def ask() -> None:
        async with aiohttp.ClientSession() as session:
            for body in (SHORT_REQUEST, STREAM) * 3:
                answer = await send(session, platform.base_url, customer, body)
                assert answer.whole, answer

    background.run(ask())
    ratio = next(query for panel, query in questions("ledger") if panel == "Charged / processed")
    eventually(lambda: prometheus.value(ratio) == 1, "charged = processed", FIRES_SECONDS)


def test_nothing_fires_while_everything_works_and_every_target_is_scraped(
    platform: Platform, prometheus: Prometheus, load: Counter[str], eventually: Eventually
) -> None:
    platform.admin("POST", "/customers", id="buyer", name="Buyer", email="buyer@example.com", plan="solo")
    order = buy(platform)
    eventually(
        lambda: platform.admin("GET", f"/orders/{order}")["state"] == "paid", "the credits are granted"
    )
    eventually(lambda: set(prometheus.targets().values()) == {"up"}, "every target answers")
    assert len(prometheus.targets()) == len(platform.processes) - 2  # without Postgres and Stripe
    eventually(lambda: load["200"] > 100 and load["rate_limit_exceeded"] > 5, "some load")
    # Before the first scrape, everything was missing.
    eventually(lambda: not prometheus.firing(), "nothing fires", FIRES_SECONDS)


def test_entries_that_wait_for_their_place_page(platform: Platform, alerts: Any) -> None:
    with (
        alerts("DarktreeSealLag"),
        psycopg.connect(platform.ready["database_url"]) as session,
    ):
        session.execute("SELECT pg_current_xact_id()")  # nothing later than this may be sealed before it ends
        alerts.fires("DarktreeSealLag")
        session.rollback()


def test_a_sealer_that_is_away_pages(platform: Platform, alerts: Any) -> None:
    with alerts("DarktreeNoSealer"), stopped(platform, "sealer"):
        alerts.fires("DarktreeNoSealer")


def test_a_gateway_that_dies_leaves_holds_that_expire(
    platform: Platform, alerts: Any, background: Background, send: Send, eventually: Eventually
) -> None:
    quiet = [platform.customer(cap_tokens=1_000_000) for _ in range(3)]

    async def ask(who: Any) -> None:
        async with aiohttp.ClientSession() as session:
            await send(session, platform.base_url, who, LONG_STREAM)

    with alerts("DarktreeHoldsExpire"):
        for who in quiet:
            background.start(ask(who))
        eventually(lambda: all(platform.account(who)["open_holds"] == 1 for who in quiet), "three holds")
        platform.kill("gateway-1")
        alerts.fires("DarktreeHoldsExpire")
        platform.until_back("gateway-1")


def test_connections_that_run_out_page(platform: Platform, alerts: Any) -> None:
    with alerts("DarktreePostgresConnections"), ExitStack() as stack:
        taken = platform.sql("SELECT sum(numbackends)::integer AS many FROM pg_stat_database")[0]["many"]
        for _ in range(85 - taken):
            stack.enter_context(psycopg.connect(platform.ready["database_url"]))
        alerts.fires("DarktreePostgresConnections")
