"""Usage by day, model and key, and entries of one kind, model, key or day: equal to the entries they are made of."""

from collections.abc import AsyncIterator
from datetime import date
from typing import Any

import pytest

from darktree_kit.errors import ApiError, BadRequest
from darktree_ledger.client import LedgerClient
from darktree_ledger.schemas import EntryFilter

FIRST, SECOND = date(2026, 11, 22), date(2026, 11, 23)


@pytest.fixture
async def billing(
    ledger: Any, ledger_url: str, billing_token: str, build: Any
) -> AsyncIterator[LedgerClient]:
    """A customer with two days of usage, of two models, by two keys."""
    ledger.set_clock("timestamptz '2026-11-22 10:00Z'")
    for name in ("acme", "other"):
        ledger.customer(name)
    uses = [("acme", "a", "m1", 10), ("acme", "b", "m1", 20), ("acme", "a", "m1", 5), ("other", "a", "m1", 7)]
    for day, more in (("22", 0), ("23", 1)):
        ledger.set_clock(f"timestamptz '2026-11-{day} 12:00Z'")
        for customer, key, model, tokens in [*uses, ("acme", "a", "m2", 3)]:
            placed = build.hold(customer, tokens + more, 1, key_id=key, model=model)
            assert ledger.one(placed).outcome == "done"
            assert ledger.one(build.settle(placed, tokens + more, 1)).outcome == "done"
    client = LedgerClient(ledger_url, billing_token)
    yield client
    await client.close()


async def test_usage_is_told_by_day_model_and_key(billing: LedgerClient, build: Any) -> None:
    rows = await billing.usage("acme", FIRST, SECOND)
    assert [
        (row.day, row.model, row.key_id, row.requests, row.prompt_tokens, row.completion_tokens) for row in rows
    ] == [
        (FIRST, "m1", "a", 2, 15, 2), (FIRST, "m1", "b", 1, 20, 1), (FIRST, "m2", "a", 1, 3, 1),
        (SECOND, "m1", "a", 2, 17, 2), (SECOND, "m1", "b", 1, 21, 1), (SECOND, "m2", "a", 1, 4, 1),
    ]  # fmt: skip
    assert all(
        row.amount_nanos == (row.prompt_tokens + row.completion_tokens) * build.price_nanos for row in rows
    )
    days = {day.day: day for day in await billing.days("acme", FIRST, SECOND)}
    for day in (FIRST, SECOND):
        assert sum(row.amount_nanos for row in rows if row.day == day) == days[day].amount_nanos
    assert await billing.usage("acme", SECOND, SECOND) == rows[3:]
    with pytest.raises(ApiError) as refused:
        await billing.usage("acme", SECOND, FIRST)
    assert refused.value.answer_status == BadRequest.status


async def test_entries_can_be_asked_for_by_kind_model_key_and_day(billing: LedgerClient) -> None:
    async def found(**fields: Any) -> list[int]:
        page = await billing.entries("acme", which=EntryFilter(**fields))
        return [entry.seq for entry in page.data]

    assert await found() == [9, 8, 7, 6, 5, 4, 3, 2, 1]
    assert await found(kind="grant") == [1]
    assert await found(model="m2") == [9, 5]
    assert await found(key_id="b") == [7, 3]
    assert await found(day=FIRST) == [5, 4, 3, 2, 1]
    assert await found(day=SECOND, key_id="a", model="m1") == [8, 6]
    assert await found(day=date.max) == []
    page = await billing.entries("acme", limit=1, which=EntryFilter(key_id="b"))
    assert [entry.seq for entry in page.data] == [7]
    rest = await billing.entries("acme", limit=1, after=page.next, which=EntryFilter(key_id="b"))
    assert [entry.seq for entry in rest.data] == [3]
    assert rest.next is None
