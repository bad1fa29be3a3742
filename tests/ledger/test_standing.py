"""What the ledger tells of itself as a whole: sums that agree with its customers, breaches, holds, and its Postgres."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from prometheus_client import REGISTRY

from darktree_kit.db import Database
from darktree_ledger.standing import Standing


class Seen:
    """The gauges after a reading, of one database: the registry knows those of other tests too."""

    def __init__(self, database: Database, limit_bytes: int | None = None) -> None:
        self._standing = Standing(database, limit_bytes)
        self._name = ""

    async def look(self, ledger: Any) -> None:
        self._name = ledger.value(
            "SELECT current_database() || '@' || system_identifier FROM pg_control_system()"
        )
        await self._standing.step()

    def __call__(self, metric: str, **labels: str) -> float | None:
        return REGISTRY.get_sample_value(f"darktree_{metric}", {"database": self._name, **labels})


@pytest_asyncio.fixture
async def seen(database: Any) -> AsyncIterator[Seen]:
    opened = Database(database.url_as("darktree_ledger"), pool_size=1)
    yield Seen(opened, limit_bytes=10**12)
    await opened.close()


def use(ledger: Any, build: Any, customer_id: str, tokens: int) -> None:
    placed = build.hold(ledger.customer(customer_id), 10, tokens - 10)
    ledger.one(placed)
    ledger.one(build.settle(placed, 10, tokens - 10))


async def test_credits_tokens_and_customers_are_summed(seen: Seen, ledger: Any, build: Any) -> None:
    ledger.set_clock("timestamptz '2099-11-23 12:00Z'")
    for customer_id, used in (("acme", 100), ("globex", 500), ("hooli", 800), ("initech", 1_000)):
        use(ledger, build, customer_id, used)
    ledger.one(build.hold("initech", 10, 10))  # refused: the cap
    ledger.one(build.hold("acme", 10, 20))
    ledger.customer("quiet", dollars=0)
    await seen.look(ledger)
    charged = 2_400 * build.price_nanos
    assert seen("ledger_customers") == 5
    assert seen("ledger_balance_nanos", kind="bonus") == 4 * 50 * build.dollar - charged
    assert seen("ledger_balance_nanos", kind="paid") == 0
    assert seen("ledger_held_nanos") == 30 * build.price_nanos
    assert seen("ledger_open_holds", state="running") == 1
    assert seen("ledger_today_tokens", kind="prompt") == 40
    assert seen("ledger_today_tokens", kind="completion") == 2_360
    assert seen("ledger_today_charged_nanos") == charged
    assert seen("ledger_today_requests", outcome="charged") == 4
    assert seen("ledger_today_requests", outcome="refused") == 1
    uses = ("below_half", "above_half", "near_cap", "at_cap")
    assert [seen("ledger_today_customers", use=use) for use in uses] == [1, 1, 1, 1]
    assert seen("ledger_today_cap_tokens") == 4_000
    assert [seen("ledger_limit_breaches", limit=limit) for limit in ("cap", "balance")] == [0, 0]


async def test_a_cap_that_was_lowered_below_what_was_used_is_no_breach_and_more_than_any_cap_is(
    seen: Seen, ledger: Any, build: Any
) -> None:
    ledger.set_clock("timestamptz '2099-11-23 12:00Z'")
    use(ledger, build, "acme", 900)
    ledger.one(build.cap("acme", 500))
    ledger.one(build.cap("acme", 300))
    await seen.look(ledger)
    assert seen("ledger_limit_breaches", limit="cap") == 0
    assert seen("ledger_today_customers", use="at_cap") == 1
    ledger.admin.execute("UPDATE ledger.day_usage SET completion_tokens = completion_tokens + 101")
    await seen.look(ledger)
    assert seen("ledger_limit_breaches", limit="cap") == 1
    ledger.admin.execute("UPDATE ledger.day_usage SET completion_tokens = completion_tokens - 1")
    await seen.look(ledger)
    assert seen("ledger_limit_breaches", limit="cap") == 0


async def test_a_balance_below_nothing_is_a_breach(seen: Seen, ledger: Any) -> None:
    ledger.customer()
    ledger.admin.execute("ALTER TABLE ledger.account DROP CONSTRAINT never_past_the_balance")
    ledger.admin.execute(
        "UPDATE ledger.account SET held_nanos = balance_nanos + 1 WHERE customer_id = 'acme'"
    )
    await seen.look(ledger)
    assert seen("ledger_limit_breaches", limit="balance") == 1


async def test_holds_that_expire_are_counted_once(seen: Seen, ledger: Any, build: Any) -> None:
    await seen.look(ledger)
    ledger.apply(*[build.hold(ledger.customer(name), 1, 1, ttl_seconds=1) for name in ("acme", "globex")])
    ledger.set_clock("clock_timestamp() + interval '10 seconds'")
    await seen.look(ledger)
    assert seen("ledger_open_holds", state="expired") == 2
    ledger.apply(*[build.hold(name, 1, 1) for name in ("acme", "globex")])  # whoever comes next releases them
    for later in (20, 30, 40):
        ledger.set_clock(f"clock_timestamp() + interval '{later} seconds'")
        await seen.look(ledger)
        assert seen("ledger_holds_expired_total") == 2
    assert seen("ledger_open_holds", state="expired") == 0


async def test_credits_of_whoever_stays_away_are_dormant(seen: Seen, ledger: Any, build: Any) -> None:
    ledger.customer("acme", dollars=0)
    ledger.apply(build.grant("acme", build.dollar, source="purchase", reference="pi_1"))
    for days, dormant in ((89, 0), (91, build.dollar)):
        ledger.set_clock(f"clock_timestamp() + interval '{days} days'")
        await seen.look(ledger)
        assert seen("ledger_balance_nanos", kind="paid") == build.dollar
        assert seen("ledger_dormant_nanos") == dormant


async def test_the_database_tells_how_full_it_is(seen: Seen, ledger: Any) -> None:
    await seen.look(ledger)
    connections, most = seen("postgres_connections"), seen("postgres_max_connections")
    assert connections is not None
    assert most is not None
    assert 1 <= connections <= most
    assert (seen("postgres_size_bytes") or 0) > 1_000_000
    assert seen("postgres_limit_bytes") == 10**12


@pytest.mark.parametrize("query", ["hold_expired", "hold_open"])
async def test_holds_are_counted_by_an_index(ledger: Any, query: str) -> None:
    where = {
        "hold_expired": "state = 'expired' AND resolved_at > now() - interval '1 minute'",
        "hold_open": "state = 'open'",
    }[query]
    with ledger.admin.transaction():
        ledger.admin.execute("SET LOCAL enable_seqscan = off")
        plan = ledger.admin.execute(f"EXPLAIN SELECT count(*) FROM ledger.hold WHERE {where}").fetchall()
    assert query in str(plan)
