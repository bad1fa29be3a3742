"""A real Prometheus watches `darktree up` under load: a fault fires its alert, which clears when it is mended."""

import asyncio
import copy
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import psycopg
import pytest
import yaml
from asked import BOARDS, of_what_happened, questions
from edge import LONG, Edge
from prometheus_server import ABSENT, BINARY, Prometheus, scraping

from darktree_stripe_simulator.client import StripeStandIn

pytestmark = [pytest.mark.skipif(BINARY is None, reason=ABSENT), pytest.mark.timeout(900)]

# What tests/platform/conftest.py makes, which cannot be imported.
Platform = Any
Background = Any
Send = Callable[..., Coroutine[Any, Any, Any]]
Eventually = Callable[..., Any]

DARKTREE = str(Path(sys.executable).with_name("darktree"))
FIRES_SECONDS = 120
SHORT_REQUEST = {
    "model": "qwen25-14b-awq",
    "messages": [{"role": "user", "content": "Hello"}],
    "max_tokens": 8,
}
STREAM = SHORT_REQUEST | {"model": "qwen25-32b-awq", "stream": True, "max_tokens": 20, "ignore_eos": True}
BURST = STREAM | {"max_tokens": 150}
SIX_SECONDS = STREAM | {"max_tokens": 600}
LONG_STREAM = STREAM | {"max_tokens": 4_000}
WORKERS = 3
HOLD_SECONDS = 3
PLACES = QUEUE_LENGTH = 2
NOBODY = "http://127.0.0.1:9"  # where no engine is
A_TAMPERED_CAP, A_TAMPERED_BALANCE = {"limit": "cap"}, {"limit": "balance"}
# What the tests below bring about; nothing else may ever fire.
PROVOKED = {
    "DarktreeBackupOld",
    "DarktreeCertificateEnds",
    "DarktreeCertificateExpires",
    "DarktreeErrorBudgetBurns",
    "DarktreeErrorBudgetBurnsFast",
    "DarktreeFirstTokenBudgetBurns",
    "DarktreeFirstTokenBudgetBurnsFast",
    "DarktreeHoldsExpire",
    "DarktreeKeysExpire",
    "DarktreeLimitBreached",
    "DarktreeNoSealer",
    "DarktreePartMissing",
    "DarktreePostgresConnections",
    "DarktreeProjectionDiffers",
    "DarktreeSealLag",
    "DarktreeSettlementsWait",
    "DarktreeStripeEventsWait",
    "DarktreeStripeForgedEvents",
    "DarktreeStripeSweepStale",  # where a ledger that is away for half a minute of a fast machine is so for longer
}
SETTINGS = {
    "DARKTREE_LEDGER_STANDING_SECONDS": "0.5",
    "DARKTREE_LEDGER_PATROL_SECONDS": "0.5",
    "DARKTREE_BILLING_RECONCILE_SECONDS": "1",
    "DARKTREE_BILLING_EXPIRIES_SECONDS": "1",
    "DARKTREE_BILLING_STRIPE_POLL_SECONDS": "1",  # until one, a purchase is without its charge; 5 s of that page
    "DARKTREE_GATEWAY_HOLD_TTL_SECONDS": str(HOLD_SECONDS),
    "DARKTREE_GATEWAY_ENGINE_METRICS_INTERVAL_SECONDS": "0.5",
    "DARKTREE_GATEWAY_QUEUE_LENGTH": str(QUEUE_LENGTH),
}


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory, background: Background) -> Iterator[Edge]:
    made = Edge(tmp_path_factory.mktemp("edge"))
    background.run(made.open())
    yield made
    background.run(made.close())


@pytest.fixture(scope="module")
def platform(started: Any, edge: Edge) -> Iterator[Platform]:
    settings = SETTINGS | {"DARKTREE_BILLING_API_URL": edge.url}
    with started({"fast": 2000, "slow": 100}, gateways=1, **settings) as running:
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
    buyer = platform.customer(cap_tokens=50_000_000, dollars="0.0001")  # what is granted is no revenue
    buy(platform, buyer.id)
    answers: Counter[str] = Counter()

    async def ask_on(who: Any, body: dict[str, Any]) -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
            while True:
                answer = await send(session, platform.base_url, who, body)
                answers[answer.code or str(answer.status)] += 1
                await asyncio.sleep(0.1 if who is customer else 0.3)

    asked = [(customer, SHORT_REQUEST), (customer, STREAM)] * WORKERS
    asked += [(capped, SHORT_REQUEST), (buyer, SHORT_REQUEST)]
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


def order(platform: Platform, customer: str) -> str:
    return str(platform.admin("POST", f"/customers/{customer}/checkouts", plan="solo")["order_id"])


def buy(platform: Platform, customer: str) -> str:
    """Order a plan and pay for it; return the order."""
    bought = order(platform, customer)
    pay(platform, bought)
    return bought


def pay(platform: Platform, order: str) -> None:
    """Pay at the stand-in's page."""
    stripe = StripeStandIn(platform.ready["stripe_url"], "unused", "unused")
    stripe.pay(platform.admin("GET", f"/orders/{order}")["session_id"])


def state(platform: Platform, order: str) -> str:
    return str(platform.admin("GET", f"/orders/{order}")["state"])


@contextmanager
def retried(platform: Platform) -> Iterator[None]:
    """Afterwards, let Stripe's events be handled again at once, as the runbook says."""
    yield
    for event in platform.admin("GET", "/events?state=waiting")["data"]:
        platform.admin("POST", f"/events/{event['id']}/retry")


@contextmanager
def tampered(platform: Platform, customer: str) -> Iterator[None]:
    """Alter a customer's rows as only a superuser can: past the cap of the day, and past the balance."""
    day = "UPDATE ledger.day_usage SET prompt_tokens = prompt_tokens + %s WHERE customer_id = %s"
    account = "UPDATE ledger.account SET held_nanos = held_nanos + %s * balance_nanos WHERE customer_id = %s"
    rule = "never_past_the_balance CHECK (held_nanos >= 0 AND held_nanos <= balance_nanos)"
    with psycopg.connect(platform.ready["database_url"], autocommit=True) as session:
        session.execute("ALTER TABLE ledger.account DROP CONSTRAINT never_past_the_balance")
        session.execute(day, (2_000_000, customer))
        session.execute(account, (2, customer))
        try:
            yield
        finally:
            session.execute(day, (-2_000_000, customer))
            session.execute(account, (-2, customer))
            session.execute(f"ALTER TABLE ledger.account ADD CONSTRAINT {rule}".encode())


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


def test_a_platform_without_a_backup_pages_until_there_is_one(
    platform: Platform, prometheus: Prometheus, eventually: Eventually, tmp_path: Path
) -> None:
    eventually(lambda: prometheus.fires("DarktreeBackupOld"), "there was never a backup", FIRES_SECONDS)
    command = [DARKTREE, "backup", str(tmp_path), "--data-dir", str(platform.data_dir)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    eventually(lambda: not prometheus.fires("DarktreeBackupOld"), "a backup is enough", FIRES_SECONDS)


def test_nothing_fires_while_everything_works_and_every_target_is_scraped(
    platform: Platform, prometheus: Prometheus, load: Counter[str], eventually: Eventually
) -> None:
    platform.admin("POST", "/customers", id="buyer", name="Buyer", email="buyer@example.com", plan="solo")
    bought = buy(platform, "buyer")
    eventually(lambda: state(platform, bought) == "paid", "the credits are granted")
    eventually(lambda: set(prometheus.targets().values()) == {"up"}, "every target answers")
    assert len(prometheus.targets()) == len(platform.processes) - 2  # without Postgres and Stripe
    eventually(lambda: load["200"] > 100 and load["rate_limit_exceeded"] > 5, "some load")
    # Before the first scrape, everything was missing.
    eventually(lambda: not prometheus.firing(), "nothing fires", FIRES_SECONDS)


def test_no_panel_is_empty_while_everything_works(
    prometheus: Prometheus, load: Counter[str], eventually: Eventually
) -> None:
    """Also of what has not happened: a zero says so, and `No data` would say that nobody knows."""
    panels: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for board in BOARDS:
        for panel, query in questions(board):
            panels[board, panel].append(query)
    for name, queries in panels.items():
        eventually(
            lambda queries=queries: any(map(prometheus.told, queries)), f"{name} has data", FIRES_SECONDS
        )


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


def test_a_ledger_that_is_away_pages_for_customers_for_charges_that_wait_and_for_credits_that_were_paid(
    platform: Platform, alerts: Any, background: Background, send: Send, eventually: Eventually
) -> None:
    bought, reader = order(platform, "buyer"), platform.customer(cap_tokens=1_000_000)

    async def read() -> None:
        async with aiohttp.ClientSession() as session:
            await send(session, platform.base_url, reader, SIX_SECONDS)

    background.start(read())  # who is still being answered when the ledger goes away, so that a charge waits
    eventually(lambda: platform.account(reader)["open_holds"] == 1, "an answer is on its way")
    with (
        alerts("DarktreeSettlementsWait", "DarktreeStripeEventsWait"),
        alerts("DarktreePartMissing", service="ledger"),
        retried(platform),
        stopped(platform, "ledger"),
    ):
        pay(platform, bought)
        alerts.fires("DarktreePartMissing", service="ledger")
        alerts.fires("DarktreeSettlementsWait")
        alerts.fires("DarktreeErrorBudgetBurnsFast")
        alerts.fires("DarktreeStripeEventsWait")
        assert state(platform, bought) != "paid"
    eventually(lambda: state(platform, bought) == "paid", "the credits are granted")


def test_connections_that_run_out_page(platform: Platform, alerts: Any) -> None:
    with alerts("DarktreePostgresConnections"), ExitStack() as stack:
        taken = platform.sql("SELECT sum(numbackends)::integer AS many FROM pg_stat_database")[0]["many"]
        for _ in range(85 - taken):
            stack.enter_context(psycopg.connect(platform.ready["database_url"]))
        alerts.fires("DarktreePostgresConnections")


def test_a_row_that_was_tampered_with_pages_as_past_its_limit_and_as_different_from_its_entries(
    platform: Platform, alerts: Any, background: Background, send: Send
) -> None:
    victim = platform.customer(cap_tokens=1_000_000)

    async def ask() -> None:
        async with aiohttp.ClientSession() as session:
            assert (await send(session, platform.base_url, victim, SHORT_REQUEST)).whole

    background.run(ask())
    with (
        alerts("DarktreeLimitBreached", **A_TAMPERED_CAP),
        alerts("DarktreeLimitBreached", **A_TAMPERED_BALANCE),
        alerts("DarktreeProjectionDiffers"),
        tampered(platform, victim.id),
    ):
        alerts.fires("DarktreeLimitBreached", **A_TAMPERED_CAP)
        alerts.fires("DarktreeLimitBreached", **A_TAMPERED_BALANCE)
        alerts.fires("DarktreeProjectionDiffers")


def test_what_ends_by_itself_is_told_in_time_and_events_that_stripe_never_sent_are_noticed(
    platform: Platform,
    prometheus: Prometheus,
    alerts: Any,
    edge: Edge,
    background: Background,
    send: Send,
    eventually: Eventually,
) -> None:
    none_yet = 'darktree_stripe_webhooks_total{result="forged"} == 0'
    eventually(lambda: prometheus.told(none_yet), "it was told that there is none yet")
    forgetful = platform.customer(cap_tokens=1_000_000)
    expires_at = (datetime.now(UTC) + timedelta(days=3)).isoformat()
    key = platform.admin("POST", f"/customers/{forgetful.id}/keys", name="ends", expires_at=expires_at)

    async def use_it() -> None:
        async with aiohttp.ClientSession() as session:
            holder = type(forgetful)(forgetful.id, key["key"], 0, 0)
            assert (await send(session, platform.base_url, holder, SHORT_REQUEST)).whole

    with (
        alerts("DarktreeCertificateExpires", "DarktreeCertificateEnds", target=edge.target),
        alerts("DarktreeKeysExpire", "DarktreeStripeForgedEvents"),
    ):
        edge.serve_one_that_ends_in(timedelta(minutes=40))  # 40 hours, at sixty times the speed
        background.run(use_it())
        for _ in range(30):
            forged = {"Stripe-Signature": "t=1,v1=00"}
            url = platform.ready["admin_url"] + "/webhooks/stripe"
            assert httpx.post(url, headers=forged, content=b"{}").status_code == 400
        alerts.fires("DarktreeStripeForgedEvents")
        alerts.fires("DarktreeCertificateExpires", target=edge.target)
        alerts.fires("DarktreeCertificateEnds", target=edge.target)
        alerts.fires("DarktreeKeysExpire")
        edge.serve_one_that_ends_in(LONG)
        platform.admin("DELETE", f"/keys/{key['id']}")


def test_an_error_budget_that_burned_no_longer_does_once_nothing_fails(
    prometheus: Prometheus, load: Counter[str], eventually: Eventually
) -> None:
    """Half an hour after the ledger was away, at sixty times the speed."""
    burnt = "DarktreeErrorBudgetBurnsFast"
    eventually(lambda: not prometheus.fires(burnt), f"{burnt} clears", FIRES_SECONDS)


def conversation(number: int) -> dict[str, Any]:
    return SHORT_REQUEST | {"messages": [{"role": "user", "content": f"Hello, number {number}"}]}


def test_engines_that_are_away_or_full_and_keys_at_their_limits_are_told(
    platform: Platform, prometheus: Prometheus, background: Background, send: Send, eventually: Eventually
) -> None:
    """A lane has a second engine that is away, one that is its customer's own has none, and one is too narrow."""
    heavy, owner, limited = (platform.customer(cap_tokens=1_000_000) for _ in range(3))
    platform.admin("PUT", f"/customers/{limited.id}/limits", requests_per_minute=1)
    lanes_file = platform.data_dir / "lanes.yaml"
    before = lanes_file.read_text()
    lanes = {lane["metadata"]["name"]: lane for lane in yaml.safe_load_all(before)}
    own = copy.deepcopy(lanes["slow"])
    own["metadata"]["name"] = "own"
    own["spec"] |= {"tier": "Dedicated", "customerRef": owner.id, "spillOver": "WhenUnavailable"}
    own["status"]["endpoints"] = []
    lanes["fast"]["status"]["endpoints"].append({"url": NOBODY})
    lanes["slow"]["spec"]["engine"]["maxNumSeqs"] = PLACES

    async def ask() -> None:
        async with aiohttp.ClientSession() as session:
            asked = [(heavy, BURST)] * 8 + [(owner, STREAM)] + [(limited, SHORT_REQUEST)] * 2
            # Some of them prefer the engine that is away: which one does is the conversations' and the ports' chance.
            asked += [(owner, conversation(number)) for number in range(12)]
            await asyncio.gather(*(send(session, platform.base_url, who, body) for who, body in asked))

    expected = [
        "darktree_gateway_retries_total",
        "darktree_lane_ejections_total",
        "darktree_gateway_upstream_errors_total",
        "darktree_lane_queue_refused_total",
        "darktree_lane_queue_seconds_count",
        'darktree_lane_spilled_total{lane="own"}',
        "darktree_gateway_limited_total",
    ]
    lanes_file.write_text(yaml.safe_dump_all([*lanes.values(), own]))
    try:
        for metric in expected:

            def counted(metric: str = metric) -> bool:
                if prometheus.told(f"sum({metric}) > 0"):
                    return True
                background.run(ask())
                return False

            eventually(counted, metric, FIRES_SECONDS)
    finally:
        lanes_file.write_text(before)


def test_every_question_of_every_dashboard_had_an_answer_and_nothing_fired_without_a_fault(
    prometheus: Prometheus, load: Counter[str], eventually: Eventually
) -> None:
    def unanswered() -> list[str]:
        return [
            f"{board}: {panel}: {query}"
            for board in BOARDS
            for panel, query in questions(board)
            if not prometheus.told(of_what_happened(query))
        ]

    with suppress(AssertionError):  # a rate needs two looks at what the test before brought about
        eventually(lambda: not unanswered(), "every question has its answer")
    assert not unanswered(), "\n".join(unanswered())
    fired = prometheus.ever('max by (alertname) (ALERTS{alertstate="firing"})')
    assert {series["metric"]["alertname"] for series in fired} <= PROVOKED
