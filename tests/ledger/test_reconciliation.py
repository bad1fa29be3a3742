"""Rounds over the projection find what differs, at a bounded cost; tokens by lane and the seal's lag are told."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
import pytest_asyncio
from prometheus_client import REGISTRY

from darktree_kit.db import Database
from darktree_kit.errors import ApiError
from darktree_ledger.client import LedgerClient
from darktree_ledger.reconciliation import Patrol

EVER = (datetime(2000, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC))


@pytest_asyncio.fixture
async def opened(database: Any) -> AsyncIterator[Database]:
    opened = Database(database.url_as("darktree_ledger"), pool_size=1)
    yield opened
    await opened.close()


@pytest.fixture
def patrol(opened: Database) -> Patrol:
    return Patrol(opened)


def use(ledger: Any, build: Any, customer_id: str, lane: str = "standard") -> None:
    placed = build.hold(customer_id, 10, 20, lane=lane)
    ledger.one(placed)
    ledger.one(build.settle(placed, 10, 25))  # five more than the hold: absorbed


async def test_a_round_over_a_sound_ledger_finds_nothing(patrol: Patrol, ledger: Any, build: Any) -> None:
    for customer_id in ("acme", "globex", "zeta"):
        use(ledger, build, ledger.customer(customer_id))
    await patrol.step()
    assert (patrol.rounds, patrol.problems) == (1, [])
    assert patrol.checked_at is not None


@pytest.mark.parametrize(
    ("harm", "what"),
    [
        ("UPDATE ledger.account SET balance_nanos = balance_nanos + 1", "balance_nanos"),
        ("UPDATE ledger.account SET bonus_nanos = bonus_nanos - 1", "bonus_nanos"),
        ("UPDATE ledger.account SET head = decode(repeat('00', 32), 'hex')", "the head of the chain"),
        ("UPDATE ledger.account SET seq = seq + 1", "the head of the chain"),
        ("UPDATE ledger.day_usage SET prompt_tokens = 0", "the day's requests, tokens and amount"),
        ("UPDATE ledger.day_usage SET held_tokens = 3", "the day's held tokens"),
    ],
)
async def test_a_round_finds_what_differs_and_the_next_sees_it_mended(
    patrol: Patrol, ledger: Any, build: Any, harm: str, what: str
) -> None:
    use(ledger, build, ledger.customer("acme"))
    use(ledger, build, ledger.customer("zeta"))
    ledger.admin.execute("CREATE TABLE public.kept AS SELECT * FROM ledger.account")
    ledger.admin.execute("CREATE TABLE public.kept_days AS SELECT * FROM ledger.day_usage")
    ledger.admin.execute(harm + " WHERE customer_id = 'zeta'")
    await patrol.step()
    assert [(problem.customer_id, problem.what) for problem in patrol.problems] == [("zeta", what)]
    assert REGISTRY.get_sample_value("darktree_ledger_projection_problems") == 1
    for table, kept in (("account", "kept"), ("day_usage", "kept_days")):
        ledger.admin.execute(f"DELETE FROM ledger.{table}")
        ledger.admin.execute(f"INSERT INTO ledger.{table} SELECT * FROM public.{kept}")
    await patrol.step()
    assert (patrol.rounds, patrol.problems) == (2, [])


async def test_a_large_ledger_is_checked_in_slices(opened: Database, ledger: Any) -> None:
    for number in range(5):
        ledger.customer(f"c-{number}")
    ledger.admin.execute("UPDATE ledger.account SET bonus_nanos = 7 WHERE customer_id = 'c-0'")
    patrol = Patrol(opened, max_customers=2)
    rounds = []
    for _ in range(6):
        await patrol.step()
        rounds.append(patrol.rounds)
        assert [problem.customer_id for problem in patrol.problems] == ["c-0"]
    assert rounds == [0, 0, 1, 1, 1, 2]  # five customers and the house


async def test_a_customer_larger_than_a_slice_is_checked_alone(
    opened: Database, ledger: Any, build: Any
) -> None:
    for customer_id in ("acme", "zeta"):
        use(ledger, build, ledger.customer(customer_id))
    patrol = Patrol(opened, max_entries=1)
    for _ in range(3):
        await patrol.step()
    assert (patrol.rounds, patrol.problems) == (1, [])


async def test_months_to_come_that_have_tables_are_counted(patrol: Patrol, ledger: Any) -> None:
    await patrol.step()
    assert REGISTRY.get_sample_value("darktree_ledger_months_ahead") == 3
    ledger.set_clock("now() + interval '3 months'")
    for month in ledger.value(
        "SELECT array_agg(format('%%I.%%I', 'ledger', 'entry_' || to_char(m, 'YYYY_MM')))"
        " FROM generate_series(date_trunc('month', now()) + interval '4 months',"
        "                      date_trunc('month', now()) + interval '6 months', '1 month') m"
    ):
        ledger.admin.execute(f"DROP TABLE {month}")
    await patrol.step()
    assert REGISTRY.get_sample_value("darktree_ledger_months_ahead") == 0


async def test_lanes_and_lag_are_told_to_billing_alone(
    ledger: Any, build: Any, ledger_url: str, billing_token: str, gateway_token: str
) -> None:
    use(ledger, build, ledger.customer("acme"))
    use(ledger, build, ledger.customer("zeta"))
    use(ledger, build, "zeta", lane="premium")
    billing, gateway = LedgerClient(ledger_url, billing_token), LedgerClient(ledger_url, gateway_token)
    lanes = await billing.lane_tokens(*EVER)
    assert [(row.lane, row.prompt_tokens, row.completion_tokens) for row in lanes] == [
        ("premium", 10, 25),
        ("standard", 20, 50),
    ]
    assert await billing.lane_tokens(EVER[0], EVER[0]) == []
    told = await billing.reconciliation()
    assert (told.unsealed_entries, told.problems) == (8, [])
    assert told.unsealed_seconds > 0
    for refused in (gateway.reconciliation(), gateway.lane_tokens(*EVER)):
        with pytest.raises(ApiError) as error:
            await refused
        assert error.value.answer_status == 403
    await billing.close()
    await gateway.close()
