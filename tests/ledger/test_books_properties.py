"""Whatever is bought, given, used, corrected, refunded, disputed and booked, in any order, at any time: books hold.

The model is the entries themselves, as a few lines of Python make them, and the purchases as a list of which the newest
have what is left. Months end and are closed while the clock goes on, stands still and steps back.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any, ClassVar
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from darktree_kit.db import Database
from darktree_kit.ids import uuid7
from darktree_ledger import books
from darktree_ledger.schemas import HOUSE, Adjust, ClawBack, Operation, Post, Reinstate, Result
from darktree_ledger.verification import Chains, Failures, check_lines

FIRST, START = datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 11, 30, 12, 0, tzinfo=UTC)
SHARES = st.sampled_from([0.1, 0.5, 0.9, 1])
CREDITS = "customer_credits"
AMOUNTS = st.integers(1, 1_000)
CUSTOMERS = st.sampled_from(["acme", "zeta"])
Postings = Counter[str]  # debits less credits, by account


@dataclass
class Line:
    """One entry, as far as the books look at it."""

    customer_id: str
    recorded_at: datetime
    booked_at: datetime | None  # from when it counts; None while it is late and not sealed
    sealed: bool
    debit: str
    credit: str
    amount: int
    bonus: int

    def postings(self) -> Postings:
        moved = Counter({self.debit: self.amount})
        moved[self.credit] -= self.amount - (self.bonus if self.debit == CREDITS else 0)
        if self.debit == CREDITS:
            moved["bonus_credits"] -= self.bonus
        return moved


@dataclass
class Lot:
    """A purchase, and what claw-backs took from the balance for it and what of it was lost."""

    amount: int
    refundable: bool
    taken: int = 0
    lost: int = 0


@dataclass
class Customer:
    paid: int = 0
    bonus: int = 0
    held: int = 0
    newest: datetime = FIRST
    lots: dict[UUID, Lot] = field(default_factory=dict)
    claws: dict[UUID, tuple[UUID, int, int, str]] = field(default_factory=dict)
    holds: list[Any] = field(default_factory=list)

    @property
    def free(self) -> int:
        return self.paid + self.bonus - self.held

    def unused(self, purchase_id: UUID) -> int:
        """First in, first out: what is left belongs to the newest."""
        left = self.paid
        for other_id, lot in reversed(self.lots.items()):
            unused = min(lot.amount - lot.taken, left)
            if other_id == purchase_id:
                return unused
            left -= unused
        raise KeyError(purchase_id)


def month_of(at: datetime) -> date:
    return at.date().replace(day=1)


def start_of(month: date, months_later: int = 0) -> datetime:
    number = month.year * 12 + month.month - 1 + months_later
    return datetime(number // 12, number % 12 + 1, 1, tzinfo=UTC)


class BooksMachine(RuleBasedStateMachine):
    """Drives one ledger a run: closing a month concerns everybody."""

    make_database: ClassVar[Callable[[], Any]]
    open_ledger: ClassVar[Callable[[Any], Any]]
    build: ClassVar[Any]

    @initialize()
    def begin(self) -> None:
        self.stack = ExitStack()
        database = type(self).make_database()
        self.ledger = self.stack.enter_context(type(self).open_ledger(database))
        self.reading = Database(database.url_as("darktree_ledger"), pool_size=1)
        self.loop = asyncio.new_event_loop()
        self.now = START
        self.go(timedelta())
        self.customers = {name: Customer() for name in ("acme", "zeta", HOUSE)}
        for name in ("acme", "zeta"):
            self.ledger.one(self.build.open(name, 100_000_000))
        self.lines: list[Line] = []
        self.closed: dict[date, Any] = {}
        for name in ("acme", "zeta"):
            for amount in (500, 300):
                self.grant(name, amount, "purchase")

    def teardown(self) -> None:
        if hasattr(self, "stack"):
            self.seal()
            self.every_entry_is_proven_and_sealed_once()
            self.loop.run_until_complete(self.reading.close())
            self.loop.close()
            self.stack.close()

    def go(self, step: timedelta) -> None:
        self.now = max(FIRST, self.now + step)
        self.ledger.set_clock(f"timestamptz '{self.now.isoformat()}'")

    def record(self, name: str, debit: str, credit: str, amount: int, bonus: int = 0) -> None:
        """Keep what one entry must be, and what it does to its customer."""
        customer = self.customers[name]
        customer.newest = max(customer.newest, self.now)
        late = month_of(customer.newest) in self.closed
        booked_at = None if late else customer.newest
        self.lines.append(Line(name, customer.newest, booked_at, False, debit, credit, amount, bonus))
        sign = (credit == CREDITS) - (debit == CREDITS)
        customer.bonus += sign * bonus
        customer.paid += sign * (amount - bonus)

    def apply(self, operation: Operation, *, repeat: bool = True) -> Result:
        result: Result = self.ledger.one(operation)
        if repeat and result.outcome == "done":
            again = self.ledger.one(operation)
            assert again == result.model_copy(update={"replayed": True})
        return result

    @rule(name=CUSTOMERS, amount=AMOUNTS, source=st.sampled_from(["purchase", "bonus"]))
    def grant(self, name: str, amount: int, source: str) -> None:
        operation = self.build.grant(name, amount, source=source)
        assert self.apply(operation).outcome == "done"
        if source == "purchase":
            self.customers[name].lots[operation.operation_id] = Lot(amount, refundable=True)
            self.record(name, "stripe_clearing", CREDITS, amount)
        else:
            self.record(name, "bonus_credits", CREDITS, amount, amount)

    @rule(name=CUSTOMERS, share=SHARES, past=st.sampled_from([0, 0, 7]), model=st.sampled_from(["m1", "m2"]))
    def use(self, name: str, share: float, past: int, model: str) -> None:
        customer = self.customers[name]
        tokens = int(customer.free * share)
        placed = self.build.hold(name, tokens, 0, prompt_price_nanos=1, model=model)
        assert self.ledger.one(placed).outcome == "done"
        self.ledger.one(self.build.settle(placed, tokens + past, 0))
        if tokens or not past:
            self.record(name, CREDITS, "revenue", tokens, min(tokens, customer.bonus))
        if past:
            self.record(name, "house_absorbed", "revenue", past)

    @rule(name=CUSTOMERS, share=SHARES)
    def hold(self, name: str, share: float) -> None:
        customer = self.customers[name]
        placed = self.build.hold(name, int(customer.free * share), 0, prompt_price_nanos=1, ttl_seconds=3_600)
        assert self.ledger.one(placed).outcome == "done"
        customer.holds.append((placed, self.now + timedelta(hours=1)))
        customer.held += placed.prompt_tokens
        customer.newest = max(customer.newest, self.now)

    @rule(name=CUSTOMERS, amount=st.integers(-1_000, 1_000).filter(bool))
    def adjust(self, name: str, amount: int) -> None:
        customer = self.customers[name]
        operation = Adjust(amount_nanos=amount, **self.said(name))
        refused = -amount > customer.free
        result = self.apply(operation)
        assert (result.outcome, result.reason) == (("refused", "balance") if refused else ("done", None))
        if refused:
            return
        if amount > 0:
            customer.lots[operation.operation_id] = Lot(amount, refundable=False)
            self.record(name, "adjustments", CREDITS, amount)
        else:
            self.record(name, CREDITS, "adjustments", -amount, min(-amount, customer.bonus))

    @precondition(lambda self: any(customer.lots for customer in self.customers.values()))
    @rule(
        name=CUSTOMERS,
        pick=st.integers(0),
        share=SHARES,
        cause=st.sampled_from(["refund", "dispute"]),
    )
    def claw_back(self, name: str, pick: int, share: float, cause: Any) -> None:
        customer = self.customers[name]
        if not customer.lots:
            return
        purchase_id = list(customer.lots)[pick % len(customer.lots)]
        lot = customer.lots[purchase_id]
        amount = max(1, int(lot.amount * share))
        operation = ClawBack(purchase_id=purchase_id, amount_nanos=amount, cause=cause, **self.said(name))
        taken = min(amount, customer.unused(purchase_id), customer.free)
        result = self.apply(operation)
        if not lot.refundable or amount > lot.amount - lot.taken - lot.lost:
            assert result.reason == ("exceeds_purchase" if lot.refundable else "unknown_purchase")
            return
        assert (result.amount_nanos, result.rest_nanos) == (taken, amount - taken)
        lot.taken += taken
        lot.lost += amount - taken
        lost = f"{cause}s"
        customer.claws[operation.operation_id] = (purchase_id, taken, amount - taken, lost)
        self.book(name, [(CREDITS, "stripe_clearing", taken), (lost, "stripe_clearing", amount - taken)])

    @precondition(lambda self: any(customer.claws for customer in self.customers.values()))
    @rule(name=CUSTOMERS, pick=st.integers(0))
    def reinstate(self, name: str, pick: int) -> None:
        customer = self.customers[name]
        if not customer.claws:
            return
        claw_back_id = list(customer.claws)[pick % len(customer.claws)]
        purchase_id, taken, rest, lost = customer.claws.pop(claw_back_id)
        result = self.apply(Reinstate(claw_back_id=claw_back_id, **self.said(name)))
        assert (result.amount_nanos, result.rest_nanos) == (taken, rest)
        assert self.ledger.one(Reinstate(claw_back_id=claw_back_id, **self.said(name))).reason == "resolved"
        customer.lots[purchase_id].taken -= taken
        customer.lots[purchase_id].lost -= rest
        self.book(name, [("stripe_clearing", CREDITS, taken), ("stripe_clearing", lost, rest)])

    def book(self, name: str, moves: list[tuple[str, str, int]]) -> None:
        for debit, credit, amount in moves:
            if amount:
                self.record(name, debit, credit, amount)

    @rule(
        name=st.sampled_from(["acme", "zeta", HOUSE]),
        amount=AMOUNTS,
        debit=st.sampled_from(["stripe_fees", "bank"]),
    )
    def post(self, name: str, amount: int, debit: Any) -> None:
        operation = Post(
            debit_account=debit, credit_account="stripe_clearing", amount_nanos=amount, **self.said(name)
        )
        assert self.apply(operation).outcome == "done"
        self.record(name, debit, "stripe_clearing", amount)

    @rule(hours=st.sampled_from([0, 1, 13, 13, 750]))
    def time_passes(self, hours: int) -> None:
        self.go(timedelta(hours=hours, seconds=1))

    @rule(hours=st.sampled_from([1, 13, 750]))
    def the_clock_steps_back(self, hours: int) -> None:
        self.go(-timedelta(hours=hours))

    @rule(most=st.sampled_from([1, 3, 1_000]))
    def seal_some(self, most: int) -> None:
        rows = self.ledger.admin.execute("SELECT position FROM ledger.seal(%s)", [most]).fetchall()
        query = "SELECT customer_id, seq FROM ledger.sealed WHERE position = ANY (%s)"
        opens = start_of(max(self.closed), 1) if self.closed else FIRST
        for name, seq in self.ledger.admin.execute(query, [[row[0] for row in rows]]).fetchall():
            line = [line for line in self.lines if line.customer_id == name][seq - 1]
            line.sealed, line.booked_at = True, max(line.recorded_at, opens)
        size = self.ledger.value("SELECT count(*) FROM ledger.sealed")
        self.ledger.admin.execute("SELECT ledger.add_checkpoint(%s, sha256('root'), 'note')", [size])

    def seal(self) -> None:
        while not all(line.sealed for line in self.lines):
            self.seal_some(1_000)

    @rule(sealed=st.sampled_from([True, True, False]))
    def close_the_next_month(self, sealed: bool) -> None:
        month = start_of(max(self.closed), 1).date() if self.closed else month_of(FIRST)
        if sealed:
            self.seal_some(1_000)
        mine = [
            line for line in self.lines if line.booked_at is not None and month_of(line.booked_at) == month
        ]
        signed = self.ledger.value("SELECT count(*) FROM ledger.checkpoint") > 0
        over = self.now >= start_of(month, 1) + timedelta(minutes=1)
        if over and signed and all(line.sealed for line in mine):
            self.ledger.runtime.execute("SELECT ledger.close_month(%s)", [month])
            self.closed[month] = self.told(month)
            for customer in self.customers.values():
                customer.newest = max(customer.newest, start_of(month, 1))
        else:
            with pytest.raises(psycopg.DatabaseError) as refused:
                self.ledger.runtime.execute("SELECT ledger.close_month(%s)", [month])
            assert refused.value.sqlstate == "DT001"

    @rule(name=st.sampled_from(["acme", "zeta", HOUSE]))
    def a_month_is_closed_too_early(self, name: str) -> None:
        """By a clock that then steps back, with a customer whose row the closing did not reach: late for it."""
        month = start_of(max(self.closed), 1).date() if self.closed else month_of(FIRST)
        self.go(start_of(month, 1) + timedelta(minutes=1) - self.now)
        newest = self.customers[name].newest
        self.close_the_next_month(sealed=True)
        self.customers[name].newest = newest
        query = "UPDATE ledger.account SET recorded_at = %s WHERE customer_id = %s"
        self.ledger.admin.execute(query, [newest, name])
        self.go(timedelta(hours=-1))
        self.post(name, 5, "bank")

    def said(self, name: str) -> dict[str, Any]:
        return {"operation_id": uuid7(), "customer_id": name, "reason": "a test", "actor": "test"}

    def told(self, month: date) -> Any:
        rows = self.ledger.runtime.execute("SELECT * FROM ledger.month_totals(%s)", [month]).fetchall()
        return rows, self.ledger.runtime.execute(
            "SELECT * FROM ledger.month_balances(%s)", [month]
        ).fetchall()

    @rule()
    def months_are_what_was_booked_in_them_and_closed_ones_stay_so(self) -> None:
        self.seal()
        for month, before in self.closed.items():
            assert self.told(month) == before
        query = """SELECT customer_id, debit_account, credit_account, sum(entries)::int, sum(amount_nanos)::int,
                          sum(bonus_nanos)::int FROM ledger.month_totals(%s) GROUP BY 1, 2, 3"""
        standing: Counter[str] = Counter()
        last = max((line.booked_at for line in self.lines if line.booked_at), default=START)
        month = month_of(FIRST)
        while month <= month_of(last):
            found = {
                row[:3]: tuple(row[3:]) for row in self.ledger.runtime.execute(query, [month]).fetchall()
            }
            expected: dict[Any, tuple[int, int, int]] = {}
            opening = standing.copy()
            for line in self.lines:
                if line.booked_at is not None and month_of(line.booked_at) == month:
                    key = (line.customer_id, line.debit, line.credit)
                    entries, amount, bonus = expected.get(key, (0, 0, 0))
                    expected[key] = (entries + 1, amount + line.amount, bonus + line.bonus)
                    standing[line.customer_id] += line.amount * (
                        (line.credit == CREDITS) - (line.debit == CREDITS)
                    )
            assert found == expected
            rows = self.ledger.runtime.execute("SELECT * FROM ledger.month_balances(%s)", [month]).fetchall()
            assert all(row[1] == opening[row[0]] and row[3] == standing[row[0]] for row in rows)
            assert {name for name in standing if standing[name]} <= {row[0] for row in rows}
            month = start_of(month, 1).date()

    @rule(hours=st.integers(-800, 2_000), exactly=st.booleans())
    def the_books_as_of_any_instant_are_the_fold_of_what_was_booked(self, hours: int, exactly: bool) -> None:
        self.seal()
        at = START + timedelta(hours=hours)
        at = start_of(month_of(at)) if exactly else at
        expected: Postings = Counter()
        for line in self.lines:
            if line.booked_at is not None and line.booked_at < at:
                expected.update(line.postings())
        rows = self.ledger.runtime.execute("SELECT * FROM ledger.trial_balance(%s)", [at]).fetchall()
        found: Postings = Counter()
        for account, model, debit, credit in rows:
            found[account] += int(debit - credit)
            assert model is None or account == "revenue"
        assert sum(row[2] for row in rows) == sum(row[3] for row in rows)
        assert {name: amount for name, amount in found.items() if amount} == {
            name: amount for name, amount in expected.items() if amount
        }
        for name in ("acme", "zeta"):
            self.stood(name, at)

    def stood(self, name: str, at: datetime) -> None:
        mine = [line for line in self.lines if line.customer_id == name and line.recorded_at < at]
        moves = [((line.credit == CREDITS) - (line.debit == CREDITS), line) for line in mine]

        async def ask() -> Any:
            async with self.reading.sessions.begin() as session:
                return await books.as_of(session, name, at)

        told = self.loop.run_until_complete(ask())
        assert (told.seq, told.balance_nanos) == (len(mine), sum(sign * line.amount for sign, line in moves))
        assert told.bonus_nanos == sum(sign * line.bonus for sign, line in moves)

    def every_entry_is_proven_and_sealed_once(self) -> None:
        rows = self.ledger.admin.execute(
            """SELECT ledger.entry_document(e) FROM ledger.sealed s
               FULL JOIN ledger.entry e USING (customer_id, seq, hash) ORDER BY s.position"""
        )
        checked = check_lines(row[0].encode() for row in rows.fetchall())
        chains = Chains(failures := Failures())
        for run in checked.runs:
            chains.link(run)
        chains.finish()
        assert [*checked.failures, *failures.kept] == []
        assert len(checked.leaves) == len(self.lines)
        assert self.ledger.value("SELECT coalesce(max(position) + 1, 0) FROM ledger.sealed") == len(
            self.lines
        )

    @invariant()
    def the_accounts_are_what_the_model_says(self) -> None:
        if not hasattr(self, "customers"):
            return
        for customer in self.customers.values():
            for held in [held for held in customer.holds if held[1] <= self.now]:
                customer.holds.remove(held)
                customer.held -= held[0].prompt_tokens
        self.ledger.admin.execute(
            'SELECT ledger.apply(\'[{"op":"show","customer_id":"acme"},{"op":"show","customer_id":"zeta"}]\')'
        )
        rows = self.ledger.admin.execute(
            "SELECT customer_id, balance_nanos, bonus_nanos, held_nanos FROM ledger.account"
        )
        found = {row[0]: row[1:] for row in rows.fetchall()}
        expected = {name: (one.paid + one.bonus, one.bonus, one.held) for name, one in self.customers.items()}
        assert found == expected


@pytest.mark.timeout(600)
def test_no_sequence_of_bookings_breaks_the_books(
    make_database: Callable[[], Any], open_ledger: Callable[[Any], Any], build: Any
) -> None:
    BooksMachine.make_database = staticmethod(make_database)
    BooksMachine.open_ledger = staticmethod(open_ledger)
    BooksMachine.build = build
    run_state_machine_as_test(
        BooksMachine,
        settings=settings(
            max_examples=30,
            stateful_step_count=40,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
