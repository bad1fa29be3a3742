"""Two ledgers, each with a database of its own, behind the same two gateways: real HTTP, real Postgres."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import httpx
import pytest

from darktree_ledger.sharding import shard_of

CAP = 200
PARALLEL = 24
SCRIPTED = "qwen25-32b-awq"  # what the scripted engine serves
PAUSE = "the engine waits for the test to say `go`"
USAGE = {"prompt_tokens": 10, "total_tokens": 12, "completion_tokens": 2}
CHOICE = {"index": 0, "delta": {"content": "a"}, "logprobs": None, "finish_reason": "stop"}
CHUNK = {"id": "c", "created": 1, "model": SCRIPTED, "usage": USAGE}
WHOLE = (CHUNK | {"choices": [CHOICE]}, CHUNK | {"choices": []}, "[DONE]")
ONE_ANSWER = {"prompt": [11, 22, 33, 44], "max_tokens": 16, "ignore_eos": True}


@pytest.fixture(scope="module")
def sharded(
    running_platform: Callable[..., AbstractContextManager[Any]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    with running_platform(tmp_path_factory.mktemp("sharded"), ledgers=2) as running:
        yield running


@pytest.fixture(scope="module")
def second_url(sharded: Any) -> str:
    """Another gateway before the same ledgers, with the same folder of journals."""
    url: str = sharded.another_gateway()
    return url


def customer_of(sharded: Any, place: int, **options: Any) -> Any:
    """Make customers until one belongs to this ledger."""
    while True:
        made = sharded.customer(**options)
        if shard_of(made.id, 2) == place:
            return made


def entries_in(sharded: Any, place: int, customer_id: str) -> int:
    query = "SELECT count(*) FROM ledger.entry WHERE customer_id = %s"
    return int(sharded.sql(query, customer_id, ledger=place)[0][0])


def test_every_customer_is_in_exactly_the_ledger_that_their_id_says(sharded: Any) -> None:
    for place in 6 * (0, 1):
        customer = customer_of(sharded, place)
        assert customer.complete(**ONE_ANSWER).status_code == 200
        assert (
            entries_in(sharded, place, customer.id),
            entries_in(sharded, 1 - place, customer.id),
        ) == (2, 0)
        assert [charge["total_tokens"] for charge in customer.usage()] == [20]
    assert sharded.admin("POST", "/ledger/check", timeout=60)["problems"] == []


@pytest.mark.parametrize("place", [0, 1])
def test_a_cap_is_exact_in_each_ledger_through_both_gateways(
    sharded: Any, second_url: str, place: int
) -> None:
    customer = customer_of(sharded, place, cap_tokens=CAP)
    elsewhere = sharded.client_of(customer.id, url=second_url)
    askers = [(customer, elsewhere)[number % 2] for number in range(PARALLEL)]
    with ThreadPoolExecutor(PARALLEL) as pool:
        answers = list(pool.map(lambda asker: asker.complete(**ONE_ANSWER), askers))
    good = [answer for answer in answers if answer.status_code == 200]
    assert sum(answer.json()["usage"]["total_tokens"] for answer in good) == CAP
    assert {answer.status_code for answer in answers} == {200, 429}
    assert sharded.admin("GET", f"/customers/{customer.id}/cap")["day_tokens"] == CAP


def test_a_ledger_that_is_away_refuses_only_its_customers_and_gets_its_settlements_later(
    sharded: Any, eventually: Callable[..., Any]
) -> None:
    here, there = customer_of(sharded, 0), customer_of(sharded, 1)
    wire, engine, waiting = sharded.ledgers[1], sharded.engine, sharded.journal_dir / "ledger-1"
    engine.say(PAUSE, *WHOLE)
    try:
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(lambda: there.chat(model=SCRIPTED))
            eventually(lambda: engine.bodies, "the generation")
            wire.cut()
            engine.go.set()
            assert running.result().status_code == 200  # its ledger's journal has the settlement
        assert list(waiting.glob("*.jsonl"))
        assert not list(sharded.journal_dir.glob("*.jsonl"))
        refused = there.complete(**ONE_ANSWER)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "metering_unavailable")
        assert here.complete(**ONE_ANSWER).status_code == 200
        assert here.credits()["customer_id"] == here.id
    finally:
        wire.mend()
    eventually(lambda: not list(waiting.glob("*.jsonl")), "the replay")
    assert (entries_in(sharded, 1, there.id), entries_in(sharded, 0, there.id)) == (2, 0)
    assert [charge["total_tokens"] for charge in there.usage()] == [12]
    eventually(lambda: there.complete(**ONE_ANSWER).status_code == 200, "the next answer")


def test_a_gateway_is_ready_while_one_of_its_ledgers_is_away(sharded: Any) -> None:
    wire = sharded.ledgers[1]
    wire.cut()
    try:
        url = sharded.another_gateway(journal_dir=sharded.journal_dir / "another")
        assert httpx.get(f"{url}/readyz").status_code == 200
    finally:
        wire.mend()
