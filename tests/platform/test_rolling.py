"""Gateways, ledgers and billing are replaced one after the other under load, and no client and no book notices.

SOAK=1 (`make soak`) does it again and again.
"""

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from fleet import Fleet, Traffic, fleet_of

Platform = Any  # what tests/platform/conftest.py makes, which cannot be imported

ROUNDS = 15 if os.environ.get("SOAK") else 1
CLIENTS = 16
ONE_ROUND = ("gateway", "gateway", "ledger", "billing", "ledger")


@pytest.fixture(scope="module")
def platform(started: Any) -> Iterator[Platform]:
    with started({"fast": 2000, "slow": 40}, gateways=1) as running:
        yield running


@pytest.fixture(scope="module")
def fleet(platform: Platform) -> Iterator[Fleet]:
    with fleet_of(platform, gateways=2, ledgers=2) as running:
        yield running


def a_chat(number: int) -> dict[str, Any]:
    """Return a short plain answer, a short stream, or a stream that takes seconds."""
    messages = [{"role": "user", "content": "Count the leaves"}]
    body: dict[str, Any] = {"model": "qwen25-14b-awq", "messages": messages}
    body |= {"max_tokens": 10 + number % 20, "extra_body": {"ignore_eos": True}}
    if number % 3:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    if number % 3 == 1:
        body |= {"model": "qwen25-32b-awq", "max_tokens": 60 + number % 60}
    return body


@pytest.mark.timeout(3000 if os.environ.get("SOAK") else 900)
async def test_a_rolling_restart_of_everything_under_load_fails_no_request_and_loses_and_doubles_no_entry(
    platform: Platform, fleet: Fleet
) -> None:
    customers = [platform.customer(cap_tokens=10_000_000, dollars="9000") for _ in range(4)]
    async with Traffic(fleet.base_url, customers, CLIENTS, a_chat) as traffic:
        for _ in range(ROUNDS):
            for service in ONE_ROUND:
                await traffic.during(lambda service=service: fleet.replace(service))  # type: ignore[misc]
    print(traffic.summary())
    assert traffic.failures == []
    platform.must_add_up(customers, traffic.served)
    charged = Counter(row["hold_id"] for customer in customers for row in platform.entries(customer))
    assert charged == Counter(served.hold_id for served in traffic.served), (
        "one entry an answer, and no other"
    )
