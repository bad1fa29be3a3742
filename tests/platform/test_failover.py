"""The primary dies under load and its synchronous standby is promoted: what clients see, and that nothing is lost.

docs/operations.md has the figures of this test, and why the standby must be a synchronous one.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from fleet import Traffic
from pair import Pair, binaries, running_pair

Platform = Any  # what tests/platform/conftest.py makes, which cannot be imported

CLIENTS = 12
MAX_OUTAGE_SECONDS = 30.0  # from the primary's death to the next whole answer; a test's machine may be busy
HOLD_SECONDS = 5

pytestmark = pytest.mark.skipif(binaries() is None, reason="PostgreSQL 15 is not installed")


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with running_pair() as running:
        yield running


@pytest.fixture(scope="module")
def platform(pair: Pair, started: Any) -> Iterator[Platform]:
    settings = {"DATABASE_URL": pair.url, "DARKTREE_GATEWAY_HOLD_TTL_SECONDS": str(HOLD_SECONDS)}
    with started({"fast": 2000, "slow": 40}, gateways=2, **settings) as running:
        yield running


def a_chat(number: int) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": "qwen25-14b-awq" if number % 3 else "qwen25-32b-awq",
        "messages": [{"role": "user", "content": "Count the leaves"}],
        "max_tokens": 10 + number % 40,
        "extra_body": {"ignore_eos": True},
    }
    return body | ({"stream": True, "stream_options": {"include_usage": True}} if number % 2 else {})


async def test_when_a_standby_takes_over_no_answer_is_lost_or_broken_and_service_returns_by_itself(
    platform: Platform, pair: Pair
) -> None:
    assert pair.primary.value("SELECT sync_state FROM pg_stat_replication") == "sync"
    customers = [platform.customer(cap_tokens=10_000_000, dollars="9000") for _ in range(4)]
    async with Traffic(platform.base_url, customers, CLIENTS, a_chat) as traffic:
        await traffic.until(60)
        died_at = traffic.now()
        await asyncio.to_thread(pair.fail_over)
        promoted_at = traffic.now()
        await traffic.until_one_begun_after(promoted_at)
        await traffic.until(60)
    outage = traffic.longest_pause()
    print(
        traffic.summary(),
        f"; promoting took {promoted_at - died_at:.1f} s, the longest pause was {outage:.1f} s",
    )
    print(Counter(failure[:60] for failure in traffic.failures))
    assert pair.standby.value("SELECT pg_is_in_recovery()") is False
    # While nobody takes writes, requests are refused before anything is generated: typed, and to be tried again.
    assert all("metering_unavailable" in failure for failure in traffic.failures), traffic.failures
    assert outage < MAX_OUTAGE_SECONDS
    platform.must_add_up(customers, traffic.served)
    charged = Counter(row["hold_id"] for customer in customers for row in platform.entries(customer))
    assert set(Counter(served.hold_id for served in traffic.served)) <= set(charged), (
        "every answer has its entry"
    )
    assert set(charged.values()) == {1}
    assert platform.check_by_command()["problems"] == []
