"""The checker finds nothing in a sound ledger, and each kind of harm in one that was tampered with."""

import asyncio
from typing import Any

import pytest

from darktree_kit.db import Database
from darktree_ledger import invariants
from darktree_ledger.schemas import CheckReport


def run_check(ledger: Any) -> CheckReport:
    info = ledger.admin.info
    url = f"postgresql://darktree_ledger@/{info.dbname}?host={info.host}"

    async def check() -> CheckReport:
        database = Database(url, pool_size=1)
        try:
            async with database.sessions.begin() as session:
                return await invariants.check(session)
        finally:
            await database.close()

    return asyncio.run(check())


@pytest.fixture
def used_ledger(ledger: Any, build: Any) -> Any:
    for customer_id in ("acme", "zeta"):
        ledger.customer(customer_id)
        for prompt_tokens in (1, 20, 300):
            placed = build.hold(customer_id, prompt_tokens, 30)
            ledger.one(placed)
            ledger.one(build.settle(placed, prompt_tokens, 31 if prompt_tokens == 20 else 5))
        ledger.one(build.hold(customer_id, 5, 5))
    return ledger


def test_a_sound_ledger_has_no_problems(used_ledger: Any) -> None:
    report = run_check(used_ledger)
    assert (report.customers, report.entries, report.open_holds, report.problems) == (2, 10, 2, [])


@pytest.mark.parametrize(
    ("harm", "what"),
    [
        ("UPDATE ledger.account SET balance_nanos = balance_nanos + 1", "balance_nanos"),
        ("UPDATE ledger.account SET held_nanos = held_nanos + 1 WHERE held_nanos > 0", "held_nanos"),
        ("UPDATE ledger.account SET head = decode(repeat('00', 32), 'hex')", "the head of the chain"),
        ("UPDATE ledger.day_usage SET held_tokens = 0", "the day's held tokens"),
        ("UPDATE ledger.day_usage SET prompt_tokens = prompt_tokens - 1", "the day's requests, tokens and amount"),
        ("DELETE FROM ledger.day_usage", "the day's requests, tokens and amount"),
        ("UPDATE ledger.hold SET state = 'voided' WHERE state = 'settled'", "settlements of a hold"),
        ("UPDATE ledger.entry SET amount_nanos = amount_nanos + 1 WHERE seq = 2", "the chain at entry 2"),
        ("UPDATE ledger.entry SET actor = 'somebody else' WHERE seq = 1", "the chain at entry 1"),
        ("DELETE FROM ledger.entry WHERE seq = 3", "the chain at entry 4"),
        ("DELETE FROM ledger.entry WHERE seq = 5", "the head of the chain"),
    ],
)  # fmt: skip
def test_the_checker_finds_what_a_superuser_changed(used_ledger: Any, harm: str, what: str) -> None:
    for table in (
        "entry",
        "entry_" + used_ledger.value("SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY_MM')"),
    ):
        used_ledger.admin.execute(f"ALTER TABLE ledger.{table} DISABLE TRIGGER refuse_change")
    used_ledger.admin.execute(harm)
    found = {(problem.customer_id, problem.what) for problem in run_check(used_ledger).problems}
    assert {("acme", what), ("zeta", what)} <= found
