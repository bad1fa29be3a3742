"""Any sequence of operations, in any order, repeated or not, keeps every promise about money.

A model in a few lines of Python says what must hold; Hypothesis looks for operations after which it does not.
"""

from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from darktree_kit.ids import uuid7
from darktree_ledger.schemas import Hold, OpenAccount, Renew, Result, Settle, Show, Void

CUSTOMERS = ("acme", "zeta")
START = datetime(2026, 11, 23, 22, 0, tzinfo=UTC)


class LedgerMachine(RuleBasedStateMachine):
    """Drives one ledger; each example has customers of its own, so that examples share a database."""

    ledger: ClassVar[Any]
    build: ClassVar[Any]
    example: ClassVar[int] = 0

    holds = Bundle("holds")
    settlements = Bundle("settlements")

    @initialize(caps=st.tuples(st.integers(0, 400), st.integers(0, 400)))
    def begin(self, caps: tuple[int, int]) -> None:
        type(self).example += 1
        self.now = START
        self.tick(timedelta())
        self.highest_cap: dict[str, int] = {}
        self.names = [f"{name}-{self.example}" for name in CUSTOMERS]
        for name, cap_tokens in zip(self.names, caps, strict=True):
            opened = OpenAccount(operation_id=uuid7(), customer_id=name, cap_tokens=cap_tokens, actor="test")
            assert self.ledger.one(opened).outcome == "done"
            self.highest_cap[name] = cap_tokens
        self.resolved: set[Any] = set()

    def tick(self, step: timedelta) -> None:
        self.now += step
        self.ledger.set_clock(f"timestamptz '{self.now.isoformat()}'")

    @rule(who=st.integers(0, 1), tokens=st.integers(1, 300))
    def grant(self, who: int, tokens: int) -> None:
        given = self.build.grant(self.names[who], tokens * self.build.price_nanos + tokens % 7)
        first, again = self.ledger.one(given), self.ledger.one(given)
        assert (first.balance_nanos, again.replayed) == (again.balance_nanos, True)

    @rule(who=st.integers(0, 1), cap_tokens=st.integers(0, 400))
    def change_cap(self, who: int, cap_tokens: int) -> None:
        self.ledger.one(self.build.cap(self.names[who], cap_tokens))
        self.highest_cap[self.names[who]] = max(self.highest_cap[self.names[who]], cap_tokens)

    @rule(
        target=holds,
        who=st.integers(0, 1),
        prompt_tokens=st.integers(0, 120),
        completion_tokens=st.integers(0, 200),
        step_tokens=st.integers(1, 5),
        exact=st.booleans(),
        ttl_seconds=st.sampled_from([1, 60, 3600]),
        repeat=st.booleans(),
    )
    def place(self, who: int, repeat: bool, **asked: Any) -> tuple[Hold, Result]:
        before = self.ledger.one(Show(customer_id=self.names[who]))
        placed = self.build.hold(self.names[who], **asked)
        result = self.ledger.one(placed)
        if result.outcome == "done":
            granted = result.completion_tokens
            assert granted <= asked["completion_tokens"]
            assert granted >= min(asked["step_tokens"], asked["completion_tokens"])
            assert granted == asked["completion_tokens"] or granted % asked["step_tokens"] == 0
            assert asked["exact"] or granted == asked["completion_tokens"]
            assert result.day_tokens + result.day_held_tokens <= before.cap_tokens
            if repeat:
                assert self.ledger.one(placed).replayed
        else:
            assert result.reason in {"cap", "balance", "in_flight", "inexact"}
            assert (result.held_nanos, result.day_held_tokens) == (before.held_nanos, before.day_held_tokens)
        return placed, result

    @rule(
        target=settlements,
        pair=holds,
        used=st.floats(0, 1.3),
        outcome=st.sampled_from(["completed", "abandoned"]),
    )
    def settle(self, pair: tuple[Hold, Result], used: float, outcome: str) -> Settle:
        placed, granted = pair
        completion = int((granted.completion_tokens or 0) * used)
        paid: Settle = self.build.settle(
            placed, int(placed.prompt_tokens * used), completion, outcome=outcome
        )
        result = self.ledger.one(paid)
        if granted.outcome != "done":
            assert result.reason == "unknown_hold"
        elif placed.hold_id in self.resolved:
            assert result.outcome == "conflict"
        else:
            assert result.outcome == "done"
            assert (
                result.charged_tokens + result.absorbed_tokens == paid.prompt_tokens + paid.completion_tokens
            )
            assert result.charged_tokens <= placed.prompt_tokens + (granted.completion_tokens or 0)
            self.resolved.add(placed.hold_id)
        return paid

    @rule(paid=settlements)
    def settle_again(self, paid: Settle) -> None:
        entries = self.ledger.value("SELECT count(*) FROM ledger.entry WHERE hold_id = %s", paid.hold_id)
        result = self.ledger.one(paid)
        assert result.replayed or result.outcome != "done"
        assert entries == self.ledger.value(
            "SELECT count(*) FROM ledger.entry WHERE hold_id = %s", paid.hold_id
        )

    @rule(pair=consumes(holds))
    def void(self, pair: tuple[Hold, Result]) -> None:
        placed, granted = pair
        result = self.ledger.one(Void(hold_id=placed.hold_id, customer_id=placed.customer_id))
        if granted.outcome == "done" and placed.hold_id not in self.resolved:
            assert result.outcome == "done"
        else:
            assert result.outcome != "done"

    @rule(pair=holds)
    def renew(self, pair: tuple[Hold, Result]) -> None:
        placed, _ = pair
        self.ledger.one(Renew(hold_id=placed.hold_id, customer_id=placed.customer_id, ttl_seconds=120))

    @rule(seconds=st.sampled_from([1, 59, 61, 3_600, 30_000, 86_400]))
    def time_passes(self, seconds: int) -> None:
        self.tick(timedelta(seconds=seconds))

    @rule(seconds=st.sampled_from([1, 100, 10_000]))
    def the_clock_steps_back(self, seconds: int) -> None:
        self.tick(-timedelta(seconds=seconds))

    @invariant()
    def nobody_is_past_the_balance_or_the_cap(self) -> None:
        for name in getattr(self, "names", []):
            rows = self.ledger.admin.execute(
                """SELECT balance_nanos, held_nanos, coalesce(max(prompt_tokens + completion_tokens), 0)
                   FROM ledger.account a LEFT JOIN ledger.day_usage d USING (customer_id)
                   WHERE a.customer_id = %s GROUP BY 1, 2""",
                [name],
            ).fetchone()
            assert 0 <= rows[1] <= rows[0]
            assert rows[2] <= self.highest_cap[name]

    @invariant()
    def the_projection_is_the_fold_of_the_entries(self) -> None:
        for name in getattr(self, "names", []):
            problems = self.ledger.admin.execute(_PROBLEMS, {"name": name}).fetchall()
            assert problems == []


# The same truths as darktree_ledger.invariants, said a second time, for one customer.
_PROBLEMS = """
    WITH mine AS (
        SELECT *, CASE kind WHEN 'grant' THEN amount_nanos WHEN 'usage' THEN -amount_nanos ELSE 0 END AS change
        FROM ledger.entry WHERE customer_id = %(name)s
    ), reserved AS (
        SELECT usage_day AS day, prompt_tokens + completion_tokens AS tokens, amount_nanos
        FROM ledger.hold WHERE customer_id = %(name)s AND state = 'open')
    SELECT 'balance' FROM ledger.account a,
        (SELECT coalesce(sum(change), 0) AS balance, count(*) AS seq FROM mine) f
    WHERE a.customer_id = %(name)s AND (a.balance_nanos, a.seq) <> (f.balance, f.seq)
    UNION ALL
    SELECT 'held' FROM ledger.account
    WHERE customer_id = %(name)s AND held_nanos <> (SELECT coalesce(sum(amount_nanos), 0) FROM reserved)
    UNION ALL
    SELECT 'day' FROM ledger.day_usage d
    WHERE d.customer_id = %(name)s AND (
        d.held_tokens <> (SELECT coalesce(sum(tokens), 0) FROM reserved r WHERE r.day = d.day)
        OR d.prompt_tokens + d.completion_tokens <> (
            SELECT coalesce(sum(m.prompt_tokens + m.completion_tokens), 0) FROM mine m
            WHERE m.usage_day = d.day AND m.kind = 'usage'))
    UNION ALL
    SELECT 'chain' FROM (SELECT prev_hash, lag(hash) OVER (ORDER BY seq) AS before FROM mine) c
    WHERE before <> prev_hash
    UNION ALL
    SELECT 'running balance' FROM (
        SELECT balance_after_nanos, sum(change) OVER (ORDER BY seq) AS expected FROM mine) b
    WHERE balance_after_nanos <> expected
"""


@pytest.mark.timeout(600)
def test_no_sequence_of_operations_breaks_a_promise(ledger: Any, build: Any) -> None:
    LedgerMachine.ledger, LedgerMachine.build = ledger, build
    run_state_machine_as_test(
        LedgerMachine,
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
