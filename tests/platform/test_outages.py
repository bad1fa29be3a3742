"""What the ledger cannot take is kept on disk, whoever dies meanwhile, and reaches it once it is back."""

from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import pytest

# What tests/platform/conftest.py makes, which cannot be imported.
Platform = Any
Gateway = Any
Customer = Any
Answer = Any
Background = Any
Send = Callable[..., Coroutine[Any, Any, Answer]]
Eventually = Callable[..., Any]
Ask = Callable[..., "Future[Answer]"]

HOLD_SECONDS = 3
MESSAGES = [{"role": "user", "content": "Count the leaves"}]
REQUEST = {"model": "qwen25-14b-awq", "messages": MESSAGES, "max_tokens": 10, "ignore_eos": True}
STREAM = REQUEST | {"model": "qwen25-32b-awq", "max_tokens": 24, "stream": True}
TORN_LINE = b'0badcafe {"op":"settle","hold_id":"0198'


@pytest.fixture(scope="module")
def platform(started: Any) -> Iterator[Platform]:
    settings = {"DARKTREE_GATEWAY_HOLD_TTL_SECONDS": str(HOLD_SECONDS)}
    with started({"fast": 2000, "slow": 20}, gateways=1, **settings) as running:
        yield running


@pytest.fixture(scope="module")
def lonely(platform: Platform, add_gateway: Any) -> Iterator[Gateway]:
    """A gateway with a journal that nobody else knows."""
    with TemporaryDirectory(prefix="dt-") as folder:
        yield add_gateway(platform, Path(folder) / "journal")


@pytest.fixture(scope="module")
def companion(platform: Platform, add_gateway: Any) -> Gateway:
    """A gateway that shares the platform's folder of journals."""
    return add_gateway(platform, platform.data_dir / "journal")


@pytest.fixture(scope="module")
def ask(background: Background, send: Send) -> Ask:
    """Sends a request; `on_first_bytes` is called when an answer begins."""

    async def in_a_session(
        base_url: str, customer: Customer, body: Any, on_first_bytes: Callable[[], None]
    ) -> Answer:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
            return await send(session, base_url, customer, body, on_first_bytes=on_first_bytes)

    def start(
        base_url: str, customer: Customer, body: Any, on_first_bytes: Callable[[], None] = lambda: None
    ) -> "Future[Answer]":
        future: Future[Answer] = background.start(in_a_session(base_url, customer, body, on_first_bytes))
        return future

    return start


@pytest.fixture
def journalled(ask: Ask) -> Callable[[Gateway, Customer], Answer]:
    """Has a gateway lose its ledger while it streams, and returns the answer that its client got."""

    def lose_the_ledger(gateway: Gateway, customer: Customer) -> Answer:
        gateway.until_quiet()

        def cut() -> None:
            gateway.wire.cut = True

        answer = ask(gateway.base_url, customer, STREAM, cut).result(60)
        assert answer.whole, "the client gets its whole answer all the same"
        assert str(answer.hold_id).encode() in gateway.journalled()
        return answer

    return lose_the_ledger


def mend(gateway: Gateway) -> None:
    gateway.wire.cut = False


def test_while_the_ledger_is_away_streams_end_whole_into_the_journal_and_nothing_new_is_served(
    platform: Platform, lonely: Gateway, ask: Ask, journalled: Any, eventually: Eventually
) -> None:
    customer = platform.customer(cap_tokens=10_000)
    answer = journalled(lonely, customer)
    platform.kill("ledger")
    refused = ask(lonely.base_url, customer, REQUEST).result(30)
    assert (refused.status, refused.code) == (503, "metering_unavailable")
    platform.until_back("ledger")
    assert platform.charged(answer) == [], "nobody but the journal knows of it"
    mend(lonely)
    lonely.until_quiet()
    assert platform.charged(answer) == [("usage", *answer.usage)]
    later = ask(lonely.base_url, customer, REQUEST).result(30)
    assert later.whole
    platform.must_add_up([customer], [answer, refused, later])


@pytest.mark.parametrize("tail", [b"", TORN_LINE], ids=["whole", "torn"])
def test_a_gateway_killed_with_settlements_in_its_journal_settles_them_when_it_starts_again(
    platform: Platform, lonely: Gateway, journalled: Any, tail: bytes
) -> None:
    customer = platform.customer(cap_tokens=10_000)
    answer = journalled(lonely, customer)
    lonely.kill()
    (file,) = lonely.journals()
    with file.open("ab") as journal:
        journal.write(tail)  # as a crash in the middle of writing leaves it
    assert platform.charged(answer) == []
    mend(lonely)
    lonely.start()
    lonely.until_quiet()
    platform.must_add_up([customer], [answer])
    assert platform.charged(answer) == [("usage", *answer.usage)]
    assert list(lonely.journal_dir.iterdir()) == [], "and nothing went to the dead letters"


def test_what_a_killed_gateway_left_in_a_shared_journal_is_settled_by_the_one_that_lives(
    platform: Platform, companion: Gateway, journalled: Any, eventually: Eventually
) -> None:
    customer = platform.customer(cap_tokens=10_000)
    answer = journalled(companion, customer)
    assert platform.charged(answer) == [], "it is not touched while its owner lives"
    companion.kill()
    eventually(lambda: platform.charged(answer), "the other one settles it")
    platform.must_add_up([customer], [answer])
    assert platform.charged(answer) == [("usage", *answer.usage)]
    mend(companion)
    companion.start()


def test_a_settlement_that_comes_too_late_never_takes_what_others_were_given_meanwhile(
    platform: Platform, lonely: Gateway, ask: Ask, journalled: Any, eventually: Eventually
) -> None:
    customer = platform.customer(cap_tokens=100)
    answer = journalled(lonely, customer)
    lonely.kill()
    eventually(lambda: not platform.open_holds([customer]), "its hold expires")
    greedy = {"model": "qwen25-14b-awq", "prompt": [65], "max_tokens": 90, "ignore_eos": True}
    taken = ask(platform.base_url, customer, greedy).result(30)
    assert taken.tokens == 91
    mend(lonely)
    lonely.start()
    lonely.until_quiet()
    assert platform.day_tokens(customer) == customer.cap_tokens
    assert [kind for kind, _, _ in platform.charged(answer)] == ["usage", "absorbed"]
    platform.must_add_up([customer], [answer, taken])
