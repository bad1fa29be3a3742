"""The ledger by itself, over HTTP: hold and settle pairs a second, in batches, over many customers and on one."""

import asyncio
import time

from darktree_kit.ids import uuid7
from darktree_ledger.client import LedgerClient
from darktree_ledger.schemas import Grant, Hold, OpenAccount, Operation, Settle

CUSTOMERS = 1_000
BATCH_PAIRS = 256
WRITERS = 2
PRICE_NANOS = 750_000


def opens_of(names: list[str]) -> list[Operation]:
    return [
        OpenAccount(operation_id=uuid7(), customer_id=name, cap_tokens=100_000_000, actor="benchmark")
        for name in names
    ]


def grants_of(names: list[str]) -> list[Operation]:
    """Give each more than the benchmark can spend, half of it bonus."""
    return [
        Grant(
            operation_id=uuid7(),
            customer_id=name,
            amount_nanos=10**15,
            source="bonus" if number % 2 else "purchase",
            reason="a benchmark",
            actor="benchmark",
        )
        for number, name in enumerate(names)
    ]


async def fill(billing: LedgerClient) -> list[str]:
    """Open the accounts and give each more than the benchmark can spend."""
    names = [f"ledger-{number}" for number in range(CUSTOMERS)]
    for operations in (opens_of(names), grants_of(names)):
        await asyncio.gather(*(billing.apply(operation) for operation in operations))
    return names


async def pairs_per_second(gateway: LedgerClient, customers: list[str], seconds: float) -> float:
    """Place holds in batches, each with the settlements of the batch before; return settled pairs a second."""
    started = time.perf_counter()
    settled = 0

    async def write(first: int) -> None:
        nonlocal settled
        place = first
        before: list[Operation] = []
        while time.perf_counter() - started < seconds:
            holds = [hold_of(customers[(place + step) % len(customers)]) for step in range(BATCH_PAIRS)]
            results = await gateway.apply_batch([*before, *holds])
            assert all(result.outcome == "done" for result in results)
            settled += len(before)
            place += BATCH_PAIRS
            before = [settle_of(hold) for hold in holds]
        await gateway.apply_batch(before)

    await asyncio.gather(*(write(number * CUSTOMERS // WRITERS) for number in range(WRITERS)))
    return settled / (time.perf_counter() - started)


def hold_of(customer_id: str) -> Hold:
    return Hold(
        hold_id=uuid7(),
        customer_id=customer_id,
        key_id="benchmark",
        model="qwen25-14b-awq",
        lane="standard",
        prompt_tokens=24,
        completion_tokens=64,
        exact=True,
        prompt_price_nanos=PRICE_NANOS,
        completion_price_nanos=PRICE_NANOS,
        ttl_seconds=60,
    )


def settle_of(hold: Hold) -> Settle:
    return Settle(
        hold_id=hold.hold_id,
        customer_id=hold.customer_id,
        entry_id=uuid7(),
        prompt_tokens=24,
        completion_tokens=16,
    )
