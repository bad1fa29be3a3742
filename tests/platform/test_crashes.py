"""kill -9 at every step of the protocol, of everybody who takes part; and of everything at random, under load.

At each step a request of a customer of its own is brought to stand still there. Then one process is killed, everything
that stood still goes on, and what was killed starts again.
"""

import os
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import psycopg
import pytest

# What tests/platform/conftest.py makes, which cannot be imported.
Platform = Any
Gateway = Any
Customer = Any
Answer = Any
Background = Any
Send = Callable[..., Coroutine[Any, Any, Answer]]
Eventually = Callable[..., Any]
Body = dict[str, Any]

HOLD_SECONDS = 10
PLENTY_TOKENS = 1_000_000
MESSAGES = [{"role": "user", "content": "Count the leaves"}]
PLAIN = {"model": "qwen25-14b-awq", "messages": MESSAGES, "max_tokens": 30, "ignore_eos": True}
STREAM = PLAIN | {"stream": True}
LONG_STREAM = STREAM | {"model": "qwen25-32b-awq", "max_tokens": 80}  # four seconds

STEPS = (
    "hold_unsent",  # the gateway is about to ask for a hold
    "hold_applying",  # the database is at it
    "hold_unheard",  # it is placed, and the gateway has not heard so
    "streaming",  # the engine generates, the client reads
    "settle_unsent",  # the engine has finished, and the ledger does not know yet
    "settle_applying",
    "settle_unheard",
    "delivered",  # the client has the last bytes
)
VICTIMS = ("gateway", "ledger", "postgres", "a connection's postgres")


@pytest.fixture(scope="module")
def platform(started: Any) -> Iterator[Platform]:
    """Two gateways before a fast and a slow lane, and holds that do not live long."""
    settings = {"DARKTREE_GATEWAY_HOLD_TTL_SECONDS": str(HOLD_SECONDS)}
    with started({"fast": 2000, "slow": 20}, gateways=2, **settings) as running:
        yield running


@pytest.fixture(scope="module")
def gateways(platform: Platform, add_gateway: Any) -> Iterator[dict[str, Gateway]]:
    """A gateway for each step: one whose call to the ledger stands still makes no other call."""
    with TemporaryDirectory(prefix="dt-") as made:
        yield {step: add_gateway(platform, Path(made) / step) for step in STEPS if step != "delivered"}


@dataclass
class Crash:
    """What the clients saw, and what is in the ledger, after one process was killed with a request at each step."""

    victim: str
    customers: dict[str, Customer]
    answers: dict[str, Answer]


class Stage:
    """Requests at every step at once."""

    def __init__(
        self,
        platform: Platform,
        gateways: dict[str, Gateway],
        background: Background,
        send: Send,
        until: Eventually,
    ) -> None:
        self.platform = platform
        self.gateways = gateways
        self.customers = {step: platform.customer(PLENTY_TOKENS) for step in STEPS}
        self.asked: dict[str, Future[Answer]] = {}
        self._background = background
        self._send = send
        self._until = until
        self.until_quiet()

    def until_quiet(self) -> None:
        for gateway in self.gateways.values():
            gateway.until_quiet()

    def ask(self, step: str, body: Body) -> threading.Event:
        """Send a step's request; return what is set when its first bytes have arrived."""
        begun = threading.Event()
        gateway = self.gateways["streaming" if step == "delivered" else step]

        async def send() -> Answer:
            timeout = aiohttp.ClientTimeout(total=60)
            async with aiohttp.ClientSession(timeout=timeout) as session:
                return await self._send(
                    session, gateway.base_url, self.customers[step], body, on_first_bytes=begun.set
                )

        self.asked[step] = self._background.start(send())
        return begun

    def stop(self, step: str, body: Body) -> None:
        """Bring a request to where its hold or settlement is unheard, or else not sent yet."""
        operation, when = step.split("_")
        wire = self.gateways[step].wire
        wire.stop(self.customers[step], operation, "unheard" if when == "unheard" else "unsent")
        self.ask(step, body)
        wire.until_stopped(self.customers[step], operation)

    def release(self, step: str) -> None:
        """Let the ledger have what was unsent."""
        operation, _ = step.split("_")
        self.gateways[step].wire.release(self.customers[step], operation)

    def applying(self) -> list[int]:
        """Return the database's processes that wait for a row inside `apply`."""
        rows = self.platform.sql(
            "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%%ledger.apply%%'"
        )
        return [row["pid"] for row in rows]

    def until_applying(self, many: int) -> None:
        self._until(lambda: len(self.applying()) == many, f"{many} batches wait inside the database")

    def let_go(self, *, forward: bool) -> None:
        for gateway in self.gateways.values():
            gateway.wire.let_go(forward=forward)


@contextmanager
def locked(platform: Platform) -> Iterator[Callable[[Customer], None]]:
    """Locks rows of customers in a transaction of its own, for as long as it lasts."""
    connection = psycopg.connect(platform.ready["database_url"])

    def lock(customer: Customer) -> None:
        connection.execute("SELECT FROM ledger.account WHERE customer_id = %s FOR UPDATE", (customer.id,))

    try:
        yield lock
    finally:
        with suppress(psycopg.Error):  # it may have died with its server
            connection.rollback()
        connection.close()


@pytest.fixture(scope="module", params=VICTIMS)
def crash(
    request: pytest.FixtureRequest,
    platform: Platform,
    gateways: dict[str, Gateway],
    background: Background,
    send: Send,
    eventually: Eventually,
) -> Crash:
    """Bring a request to every step, kill one process, and wait until all is well again."""
    victim: str = request.param
    stage = Stage(platform, gateways, background, send, eventually)
    stage.ask("delivered", STREAM)
    assert stage.asked["delivered"].result(30).whole
    stage.stop("settle_unsent", STREAM)
    stage.stop("settle_unheard", PLAIN)
    stage.stop("settle_applying", STREAM)
    with locked(platform) as lock:
        lock(stage.customers["settle_applying"])
        stage.release("settle_applying")
        stage.until_applying(1)
        lock(stage.customers["hold_applying"])
        stage.ask("hold_applying", PLAIN)
        stage.until_applying(2)
        stage.stop("hold_unsent", STREAM)
        stage.stop("hold_unheard", PLAIN)
        assert stage.ask("streaming", LONG_STREAM).wait(30)
        must_stand_at_every_step(stage)
        kill(victim, stage)
        stage.let_go(forward=victim not in {"gateway", "ledger"})
    if victim == "gateway":
        for gateway in gateways.values():
            gateway.start()
    platform.until_back()
    answers = {step: future.result(60) for step, future in stage.asked.items()}
    stage.until_quiet()  # also of what was written down as the last answers ended
    return Crash(victim, stage.customers, answers)


def must_stand_at_every_step(stage: Stage) -> None:
    """Check that each request is where its step says, as far as the database can tell."""
    holds = stage.platform.sql(
        "SELECT customer_id, state FROM ledger.hold WHERE customer_id = ANY (%s)",
        [customer.id for customer in stage.customers.values()],
    )
    states = {row["customer_id"]: row["state"] for row in holds}
    found = {step: states.get(customer.id) for step, customer in stage.customers.items()}
    assert (found["hold_unsent"], found["hold_applying"], found["hold_unheard"]) == (None, None, "open")
    assert (found["streaming"], found["settle_unsent"], found["settle_applying"]) == ("open", "open", "open")
    assert (found["settle_unheard"], found["delivered"]) == ("settled", "settled")
    assert [step for step, future in stage.asked.items() if future.done()] == ["delivered"]


def kill(victim: str, stage: Stage) -> None:
    if victim == "gateway":
        for gateway in stage.gateways.values():
            gateway.kill()
    elif victim in {"ledger", "postgres"}:
        assert stage.platform.kill(victim)
    else:  # the one that works for the ledger: its server then starts again, all others with it
        os.kill(stage.applying()[0], signal.SIGKILL)


def what_the_client_saw(answer: Answer) -> str:
    if answer.whole:
        return "whole"
    return "refused" if (answer.status, answer.code) == (503, "metering_unavailable") else "broken"


def expected(victim: str, step: str) -> set[tuple[str, int]]:
    """Return what may have become of a request: what its client saw, and how many entries it has."""
    if step == "delivered":
        return {("whole", 1)}
    if victim == "gateway":
        # The ledger had heard of the usage, or it had not; its client has not got the end.
        return {("broken", int(step in {"settle_applying", "settle_unheard"}))}
    if not step.startswith("hold"):
        return {("whole", 1)}
    # What was killed may be back when the ledger asks the database, or when an operation that was lost on a kept
    # connection is sent again on a new one; by its id it is placed once.
    return {("refused", 0), ("whole", 1)}


@pytest.mark.parametrize("step", STEPS)
def test_a_crash_at_any_step_loses_no_completed_usage_and_charges_nothing_twice(
    platform: Platform, crash: Crash, step: str
) -> None:
    answer, customer = crash.answers[step], crash.customers[step]
    entries = platform.entries(customer)
    assert (what_the_client_saw(answer), len(entries)) in expected(crash.victim, step)
    assert all(row["kind"] == "usage" for row in entries), "nothing had to be absorbed"
    if answer.whole:
        assert platform.charged(answer) == [("usage", *answer.usage)]


def test_after_a_crash_every_hold_is_resolved_and_the_books_are_whole(
    platform: Platform, crash: Crash
) -> None:
    platform.must_add_up(crash.customers.values(), crash.answers.values())
