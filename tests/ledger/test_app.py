"""The ledger over HTTP: batches, callers and what they may send, refusals, reads with stable cursors."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import date, timedelta
from typing import Any

import httpx
import psycopg
import pytest
from pydantic import SecretStr

from darktree_kit.db import Calls, Database
from darktree_kit.errors import ApiError
from darktree_kit.ids import uuid7
from darktree_ledger.app import make_app, release_expired
from darktree_ledger.batches import MAX_BODY_BYTES
from darktree_ledger.client import LedgerClient
from darktree_ledger.errors import OperationConflict, UnknownCustomer
from darktree_ledger.schemas import MAX_OPERATIONS_PER_BATCH, MAX_PAGE, OpenAccount, Show, Void
from darktree_ledger.settings import Settings

POLL_SECONDS = 0.05


@pytest.fixture
async def gateway(ledger_url: str, gateway_token: str) -> AsyncIterator[LedgerClient]:
    client = LedgerClient(ledger_url, gateway_token)
    yield client
    await client.close()


@pytest.fixture
async def billing(ledger_url: str, billing_token: str) -> AsyncIterator[LedgerClient]:
    client = LedgerClient(ledger_url, billing_token)
    await client.apply(OpenAccount(operation_id=uuid7(), customer_id="acme", cap_tokens=1_000, actor="test"))
    yield client
    await client.close()


@pytest.fixture(scope="module")
def shared_url(make_database: Callable[[], Any], make_ledger_service: Callable[[Any], Any]) -> Iterator[str]:
    """A ledger for questions that change nothing."""
    with make_ledger_service(make_database()) as url:
        yield url


def batch_sizes(ledger_url: str) -> tuple[float, float]:
    """Return how many batches, and operations in them, this process has applied so far."""
    text = httpx.get(f"{ledger_url}/metrics").text
    batches, operations = (
        float(text.split(f"darktree_ledger_batch_operations_{what} ")[1].split()[0])
        for what in ("count", "sum")
    )
    return batches, operations


async def test_operations_that_wait_together_are_applied_together(
    gateway: LedgerClient, billing: LedgerClient, build: Any, ledger_url: str
) -> None:
    await billing.apply(build.grant("acme", 50 * build.dollar))
    sizes = batch_sizes(ledger_url)
    results = await asyncio.gather(*(gateway.apply(build.hold("acme", 1, 3)) for _ in range(300)))
    granted = [result for result in results if result.outcome == "done"]
    assert sum(1 + (result.completion_tokens or 0) for result in granted) == 1_000
    assert {result.reason for result in results if result.outcome != "done"} == {"in_flight"}
    batches, operations = (
        after - before for after, before in zip(batch_sizes(ledger_url), sizes, strict=True)
    )
    assert operations / batches > 10


async def test_an_operation_that_comes_twice_in_a_batch_is_applied_once(
    gateway: LedgerClient, billing: LedgerClient, build: Any
) -> None:
    await billing.apply(build.grant("acme", build.dollar))
    placed = build.hold("acme", 10, 20)
    void = Void(hold_id=placed.hold_id, customer_id="acme")
    results = await gateway.apply_batch([placed, placed, void, Show(customer_id="acme"), void])
    assert [(result.outcome, result.replayed) for result in results] == [
        ("done", False),
        ("done", True),
        ("done", False),
        ("done", False),
        ("done", True),
    ]
    assert (await billing.account("acme")).open_holds == 0


async def test_an_operation_that_cannot_be_applied_harms_no_other(billing: LedgerClient, build: Any) -> None:
    first = build.grant("acme", 2**62)
    overflow = build.grant("acme", 2**62)
    last = build.grant("acme", 7)
    await billing.apply(first)
    results = await billing.apply_batch([build.grant("acme", 1), overflow, last])
    assert [(result.outcome, result.reason) for result in results] == [
        ("done", None),
        ("refused", "failed"),
        ("done", None),
    ]
    assert (await billing.account("acme")).balance_nanos == 2**62 + 8


@pytest.mark.parametrize("who", ["gateway", "billing"])
async def test_a_caller_may_only_send_its_own_operations(
    who: str, gateway: LedgerClient, billing: LedgerClient, build: Any
) -> None:
    client, operation = (
        (gateway, build.grant("acme", 1)) if who == "gateway" else (billing, build.hold("acme", 1, 1))
    )
    with pytest.raises(ApiError) as refused:
        await client.apply(operation)
    assert (refused.value.answer_status, refused.value.param) == (403, "op")


async def test_the_gateway_cannot_run_the_checker(gateway: LedgerClient) -> None:
    with pytest.raises(ApiError) as refused:
        await gateway.check()
    assert refused.value.answer_status == 403


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic eDp5"}])
async def test_a_stranger_is_refused(shared_url: str, headers: dict[str, str]) -> None:
    async with httpx.AsyncClient() as http:
        for method, path in (("POST", "/v1/operations"), ("GET", "/v1/accounts/acme"), ("POST", "/v1/check")):
            answer = await http.request(method, shared_url + path, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"{", None),
        (b"{}", None),
        (b"[]", None),
        (b'[{"op": "steal"}]', "0"),
        (b'[{"op": "show", "customer_id": "NOT VALID"}]', "0.show.customer_id"),
        (b'[{"op": "show", "customer_id": "a"}, {"op": "show", "customer_id": "a", "x": 1}]', "1.show.x"),
        (b'[{"op": "void", "hold_id": "no", "customer_id": "a"}]', "0.void.hold_id"),
        (b'[{"op": "show", "customer_id": "\xff"}]', None),
    ],
)
async def test_a_malformed_batch_is_refused_whole_and_says_where(
    shared_url: str, gateway_token: str, body: bytes, param: str | None
) -> None:
    headers = {"Authorization": f"Bearer {gateway_token}"}
    async with httpx.AsyncClient() as http:
        answer = await http.post(f"{shared_url}/v1/operations", content=body, headers=headers)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)


@pytest.mark.parametrize("field", ["prompt_tokens", "completion_tokens", "prompt_price_nanos", "ttl_seconds"])
@pytest.mark.parametrize("value", [-1, 1.5, "1", None, True, 10**30])
async def test_numbers_out_of_bounds_are_refused(
    shared_url: str, gateway_token: str, build: Any, field: str, value: object
) -> None:
    body = build.hold("acme", 1, 1).model_dump(mode="json") | {field: value}
    headers = {"Authorization": f"Bearer {gateway_token}"}
    async with httpx.AsyncClient() as http:
        answer = await http.post(f"{shared_url}/v1/operations", json=[body], headers=headers)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, f"0.hold.{field}")


async def test_a_batch_has_a_bound(ledger_url: str, gateway_token: str) -> None:
    headers = {"Authorization": f"Bearer {gateway_token}"}
    one = {"op": "show", "customer_id": "a"}
    async with httpx.AsyncClient() as http:
        many = await http.post(
            f"{ledger_url}/v1/operations", json=[one] * (MAX_OPERATIONS_PER_BATCH + 1), headers=headers
        )
        large = await http.post(
            f"{ledger_url}/v1/operations", content=b" " * (MAX_BODY_BYTES + 1), headers=headers
        )
    assert (many.status_code, large.status_code) == (400, 413)


async def test_entries_are_paged_newest_first_and_new_ones_move_no_page(
    billing: LedgerClient, build: Any
) -> None:
    for amount in range(1, 8):
        await billing.apply(build.grant("acme", amount))
    first = await billing.entries("acme", limit=3)
    await billing.apply(build.grant("acme", 99))
    second = await billing.entries("acme", limit=3, after=first.next)
    third = await billing.entries("acme", limit=3, after=second.next)
    amounts = [entry.amount_nanos for page in (first, second, third) for entry in page.data]
    assert amounts == [7, 6, 5, 4, 3, 2, 1]
    assert third.next is None
    assert (await billing.entries("acme", kind="usage")).data == []


async def test_the_entry_of_a_request_is_found_by_its_hold(
    gateway: LedgerClient, billing: LedgerClient, build: Any
) -> None:
    await billing.apply(build.grant("acme", build.dollar))
    placed = build.hold("acme", 10, 20)
    await gateway.apply(placed)
    assert await gateway.entry_of_hold("acme", placed.hold_id) == []
    paid = build.settle(placed, 10, 25)
    await gateway.apply(paid)
    usage, absorbed = await gateway.entry_of_hold("acme", placed.hold_id)
    assert (usage.entry_id, usage.kind, absorbed.kind) == (paid.entry_id, "usage", "absorbed")
    assert await gateway.entry_of_hold("other", placed.hold_id) == []


async def test_open_holds_are_listed_by_customer_and_age_in_pages_until_they_are_resolved(
    gateway: LedgerClient, billing: LedgerClient, build: Any
) -> None:
    await billing.apply(build.open("beta", 1_000))
    for customer_id in ("acme", "beta"):
        await billing.apply(build.grant(customer_id, build.dollar))
    placed = [build.hold(customer_id, 10, 20) for customer_id in ("beta", "acme", "acme", "acme")]
    for hold in placed:
        await gateway.apply(hold)
    await gateway.apply(Void(hold_id=placed[2].hold_id, customer_id="acme"))
    first = await billing.open_holds(limit=2)
    second = await billing.open_holds(limit=2, after=first.next)
    listed = [hold.hold_id for page in (first, second) for hold in page.data]
    assert listed == [*sorted([placed[1].hold_id, placed[3].hold_id]), placed[0].hold_id]
    assert second.next is None
    assert (first.data[0].amount_nanos, first.data[0].lane) == (30 * build.price_nanos, "standard")
    [only] = (await billing.open_holds(customer_id="beta")).data
    assert only.hold_id == placed[0].hold_id
    with pytest.raises(ApiError) as refused:
        await gateway.open_holds()
    assert refused.value.answer_status == 403


async def test_days_and_cap_changes_are_read_back(
    gateway: LedgerClient, billing: LedgerClient, ledger: Any, build: Any
) -> None:
    ledger.set_clock("timestamptz '2099-11-23 12:00Z'")
    await billing.apply(build.grant("acme", build.dollar))
    await billing.apply(build.cap("acme", 500))
    placed = build.hold("acme", 10, 20)
    day = (await gateway.apply(placed)).usage_day
    assert day is not None
    await gateway.apply(build.settle(placed, 10, 5))
    (today,) = await billing.days("acme", day - timedelta(days=1), day)
    assert (today.day, today.requests, today.prompt_tokens, today.completion_tokens) == (day, 1, 10, 5)
    assert [change.cap_tokens for change in await billing.cap_changes("acme")] == [500, 1_000]
    recent = await billing.recent("acme", 2)
    assert (recent.account, recent.days) == (await billing.account("acme"), [today])


async def test_recent_days_end_with_the_customers_today(
    billing: LedgerClient, ledger: Any, build: Any
) -> None:
    for day in (20, 21, 23):
        ledger.set_clock(f"timestamptz '2099-11-{day} 12:00Z'")
        placed = build.hold("acme", 10, 20)
        assert ledger.one(build.grant("acme", build.dollar)).outcome == ledger.one(placed).outcome == "done"
    ledger.set_clock("timestamptz '2099-11-24 23:59:59Z'")

    async def days(count: int) -> list[int]:
        return [day.day.day for day in (await billing.recent("acme", count)).days]

    assert [await days(count) for count in (1, 2, 4, 5, 366)] == [
        [],
        [23],
        [21, 23],
        [20, 21, 23],
        [20, 21, 23],
    ]
    account = (await billing.recent("acme", 1)).account
    assert (account.day.day, account.reset_seconds, account.open_holds) == (24, 1, 0)


async def test_changes_of_the_cap_come_in_pages(billing: LedgerClient, build: Any) -> None:
    caps = [2_000 + number for number in range(MAX_PAGE)]
    await billing.apply_batch([build.cap("acme", cap) for cap in caps])  # all at one instant
    await billing.apply(build.cap("acme", 7))
    newest = await billing.cap_changes("acme")
    rest = await billing.cap_changes("acme", newest[-1].operation_id)
    assert (len(newest), newest[0].cap_tokens) == (MAX_PAGE, 7)
    assert (len(rest), rest[-1].cap_tokens) == (2, 1_000)
    assert sorted(change.cap_tokens for change in [*newest, *rest]) == [7, 1_000, *caps]
    assert await billing.cap_changes("acme", rest[-1].operation_id) == []
    with pytest.raises(ApiError) as refused:
        await billing.cap_changes("other", rest[-1].operation_id)
    assert refused.value.param == "after"


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("/v1/accounts/acme/entries?limit=0", "limit"),
        (f"/v1/accounts/acme/entries?limit={MAX_PAGE + 1}", "limit"),
        ("/v1/accounts/acme/entries?after=nonsense", "after"),
        ("/v1/accounts/acme/entries?kind=theft", "kind"),
        ("/v1/accounts/acme/days?first=2026-02-01&last=2026-01-01", "last"),
        ("/v1/accounts/acme/days?first=2020-01-01&last=2026-01-01", "last"),
        ("/v1/accounts/ACME", "customer_id"),
        (f"/v1/holds?limit={MAX_PAGE + 1}", "limit"),
        ("/v1/holds?after=acme.nonsense", "after"),
        ("/v1/holds?customer_id=ACME", "customer_id"),
        ("/v1/accounts/acme/holds/nonsense/entries", "hold_id"),
    ],
)
async def test_a_bad_question_says_what_is_wrong_with_it(
    billing: LedgerClient, ledger_url: str, billing_token: str, path: str, param: str
) -> None:
    async with httpx.AsyncClient() as http:
        answer = await http.get(ledger_url + path, headers={"Authorization": f"Bearer {billing_token}"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_unknown_customers_and_conflicts_are_errors_of_their_own(
    billing: LedgerClient, build: Any
) -> None:
    for question in (
        billing.account("nobody"),
        billing.days("nobody", date.min, date.min),
        billing.cap_changes("nobody"),
    ):
        with pytest.raises(ApiError) as refused:
            await question
        assert (refused.value.answer_status, refused.value.answer_code) == (404, "unknown_customer")
    with pytest.raises(UnknownCustomer):
        await billing.apply_or_raise(build.grant("nobody", 1))
    given = build.grant("acme", 1)
    await billing.apply_or_raise(given)
    with pytest.raises(OperationConflict) as conflict:
        await billing.apply_or_raise(given.model_copy(update={"reason": "another"}))
    assert conflict.value.param == "reason"


async def test_a_lost_database_connection_is_repaired_without_a_failed_operation(
    billing: LedgerClient, build: Any, database: Any
) -> None:
    await billing.apply(build.grant("acme", 1))
    with psycopg.connect(database.admin_url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'darktree_ledger'"
        )
    assert (await billing.apply(build.grant("acme", 1))).outcome == "done"
    assert (await billing.account("acme")).balance_nanos == 2


async def test_expired_holds_of_customers_who_send_nothing_are_released_too(
    gateway: LedgerClient, billing: LedgerClient, build: Any, database: Any
) -> None:

    await billing.apply(build.grant("acme", build.dollar))
    await gateway.apply(build.hold("acme", 10, 20, ttl_seconds=1))
    url = database.url_as("darktree_ledger")
    reading, calls = Database(url, pool_size=1), Calls(url, pool_size=1)
    with psycopg.connect(database.admin_url, autocommit=True) as connection:
        connection.execute("UPDATE ledger.hold SET expires_at = now() - interval '1 second'")
        connection.execute("UPDATE ledger.account SET next_expiry = now() - interval '1 second'")
        await release_expired(reading, calls)
        assert connection.execute("SELECT state FROM ledger.hold").fetchall() == [("expired",)]
        assert connection.execute("SELECT sum(held_nanos) FROM ledger.account").fetchall() == [(0,)]
    await calls.close()
    await reading.close()


async def test_the_checker_answers_over_http(billing: LedgerClient, build: Any) -> None:
    await billing.apply(build.grant("acme", 5))
    report = await billing.check()
    assert (report.customers, report.entries, report.problems) == (1, 1, [])


def test_the_described_operations_are_the_real_ones(ledger_url: str) -> None:
    described = httpx.get(f"{ledger_url}/openapi.json").json()
    operation = described["paths"]["/v1/operations"]["post"]
    assert operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/Operations")
    names = described["components"]["schemas"]["Operations"]["items"]["discriminator"]["mapping"]
    administrative = {"open", "grant", "adjust", "claw_back", "reinstate", "post", "cap"}
    assert set(names) == administrative | {"hold", "renew", "settle", "void", "show"}


def test_readiness_names_what_is_missing(
    make_database: Callable[[], Any], serve: Callable[[Any], str], gateway_token: str
) -> None:

    settings = Settings(
        database_url=SecretStr("postgresql://nobody@127.0.0.1:1/none"),
        gateway_token=SecretStr(gateway_token),
        billing_token=SecretStr(""),
    )
    url = serve(make_app(settings))
    assert httpx.get(f"{url}/healthz").status_code == 200
    answer = httpx.get(f"{url}/readyz")
    assert answer.status_code == 503
    assert "not ready" in answer.json()["error"]["message"]
    headers = {"Authorization": f"Bearer {gateway_token}"}
    body = [{"op": "show", "customer_id": "acme"}]
    refused = httpx.post(f"{url}/v1/operations", json=body, headers=headers)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
