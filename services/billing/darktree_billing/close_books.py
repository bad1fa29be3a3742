"""A month's books, computed from what the ledger and Stripe say of it. Pure: the same facts, the same books."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from darktree_billing.balance_report import CHARGE, DISPUTE, OTHER, REFUND
from darktree_billing.chart import Chart
from darktree_billing.clearing import (
    IMPORT_ACTOR,
    LEDGER,
    STRIPE_CLEARING,
    BookedBalance,
    Clearing,
    Fact,
    reconcile,
    stripe_movements,
)
from darktree_billing.journal import (
    CUSTOMER_CREDITS,
    Flow,
    Journal,
    Movement,
    balances_cents,
    balances_nanos,
    movements,
    write_journal,
)
from darktree_billing.months import Month
from darktree_kit.money import NANOS_PER_CENT
from darktree_ledger.books_schemas import ClosedMonth, MonthBalance, MonthTotal
from darktree_ledger.schemas import EntryView

USAGE_KINDS = ("usage", "absorbed")
# In which column of the roll-forward a kind of entry stands.
COLUMNS = {
    "grant": "sold",
    "adjustment": "adjustments",
    "usage": "used",
    "refund": "refunded",
    "dispute": "disputed",
    "reinstatement": "disputed",
}
_CATEGORY = {"grant": CHARGE, "refund": REFUND, "dispute": DISPUTE, "reinstatement": DISPUTE}
REFUND_IDS = ("re_", "pyr_")  # Stripe's ids of refunds begin so
# Where the books differ from the ledger as it was recorded: Stripe's fees and payouts are booked by Stripe's days.
_TIMED = (STRIPE_CLEARING, "bank", "stripe_fees", "dispute_fees")
Balances = dict[tuple[str, str], int]


class BooksDoNotTie(Exception):
    """Two ways of reckoning the same give different amounts: the ledger's answers contradict each other."""


@dataclass(frozen=True)
class Carried:
    """What a month begins with: the books' flows, the ledger's balances and the open facts up to the month before."""

    flows: dict[Flow, int]
    ledger: Balances
    open_facts: list[Fact]

    @classmethod
    def nothing(cls) -> Self:
        return cls({}, {}, [])

    @classmethod
    def parse(cls, document: dict[str, Any]) -> Self:
        return cls(
            {Flow(*flow): nanos for *flow, nanos in document["flows"]},
            {(account, model): nanos for account, model, nanos in document["ledger"]},
            [Fact.model_validate(fact) for fact in document["open_facts"]],
        )

    def document(self) -> dict[str, Any]:
        """Return it as JSON can hold it. The order of the flows is part of it."""
        return {
            "flows": [[*flow, nanos] for flow, nanos in self.flows.items()],
            "ledger": [[*key, nanos] for key, nanos in sorted(self.ledger.items())],
            "open_facts": [fact.model_dump(mode="json") for fact in self.open_facts],
        }


@dataclass(frozen=True)
class Facts:
    """Everything that a month's books are made of. `closed` is None while the month is open."""

    month: Month
    chart: Chart
    closed: ClosedMonth | None
    totals: Sequence[MonthTotal]
    lines: Sequence[EntryView]
    balances: Sequence[MonthBalance]
    names: dict[str, str]
    stripe: BookedBalance
    carried: Carried


@dataclass(frozen=True)
class RollForward:
    """What one customer had paid and not used: opening + sold + adjustments - used - refunded - disputed = closing."""

    customer_id: str
    name: str
    opening: int
    moved: dict[str, int]  # by column; what lessens is negative
    closing: int
    bonus_left: int


@dataclass
class ModelRevenue:
    """What one model earned, in nano-dollars; `booked_cents` is what the journal says of it."""

    model: str
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    paid_nanos: int = 0
    bonus_nanos: int = 0
    absorbed_nanos: int = 0
    booked_cents: int = 0


@dataclass(frozen=True)
class TrialRow:
    """One account: in the ledger as it was recorded, in the books by the day of Stripe's balance, and in cents."""

    account: str
    model: str
    name: str
    ledger_nanos: int
    books_nanos: int
    books_cents: int


@dataclass(frozen=True)
class Books:
    """A month, closed or as far as it has come."""

    facts: Facts
    journal: Journal
    roll_forward: list[RollForward]
    revenue: list[ModelRevenue]
    clearing: Clearing
    trial_balance: list[TrialRow]
    carried: Carried


def make_books(facts: Facts) -> Books:
    """Return the books of a month. Raises BooksDoNotTie and ChartError."""
    moved = [*_of_totals(facts.totals), *_of_lines(facts.lines), *stripe_movements(facts.stripe.rows)]
    journal = write_journal(facts.month, facts.carried.flows, moved, facts.chart, facts.names)
    ledger = _ledger_balances(facts)
    clearing = reconcile(
        openings_nanos=(
            balances_nanos(facts.carried.flows).get((STRIPE_CLEARING, ""), 0),
            facts.stripe.opening_cents * NANOS_PER_CENT,
        ),
        moved=[movement for movement in moved if STRIPE_CLEARING in (movement.debit, movement.credit)],
        facts=[*facts.carried.open_facts, *filter(None, map(_fact, facts.lines))],
        rows=facts.stripe.rows,
        splits=facts.stripe.splits,
        fee=facts.chart.stripe_fee,
    )
    books = Books(
        facts=facts,
        journal=journal,
        roll_forward=_roll_forward(facts),
        revenue=_revenue(facts, journal),
        clearing=clearing,
        trial_balance=_trial_balance(facts.chart, ledger, journal),
        carried=Carried(journal.flows, ledger, clearing.open_facts),
    )
    _check(books)
    return books


def _of_totals(totals: Iterable[MonthTotal]) -> list[Movement]:
    return [
        movement
        for row in totals
        if row.kind in USAGE_KINDS
        for movement in movements(
            row.kind, row.day, row.customer_id, row.debit_account, row.credit_account, row.model,
            row.amount_nanos, row.bonus_nanos,
        )
    ]  # fmt: skip


def _of_lines(lines: Iterable[EntryView]) -> list[Movement]:
    """Return what entries that are no usage move; Stripe's fees and payouts come from Stripe's balance, by its days."""
    return [
        movement
        for line in lines
        if not _is_imported(line)
        for movement in movements(
            _kind(line), line.usage_day or line.recorded_at.date(), line.customer_id, line.debit_account,
            line.credit_account, line.model, line.amount_nanos, line.bonus_nanos,
        )
    ]  # fmt: skip


def _kind(line: EntryView) -> str:
    """Return what a line is about: a reinstatement undoes a dispute, unless it is of a refund that failed."""
    is_of_refund = line.kind == "reinstatement" and (line.reference or "").startswith(REFUND_IDS)
    return "refund" if is_of_refund else line.kind


def _is_imported(line: EntryView) -> bool:
    return line.kind == "posting" and line.actor == IMPORT_ACTOR


def _fact(line: EntryView) -> Fact | None:
    sign = (line.debit_account == STRIPE_CLEARING) - (line.credit_account == STRIPE_CLEARING)
    if not sign or _is_imported(line):
        return None
    return Fact(
        side=LEDGER,
        category=_CATEGORY.get(_kind(line), OTHER),
        id=str(line.entry_id),
        known_as=(line.reference,) if line.reference else (),
        amount_nanos=sign * line.amount_nanos,
        day=line.recorded_at.date(),
        customer_id=line.customer_id,
    )


def _ledger_balances(facts: Facts) -> Balances:
    """Return the ledger's own balances at the month's end, from those before and everything that moved."""
    balances: Balances = defaultdict(int, facts.carried.ledger)
    for row in facts.totals:
        for part in movements(
            row.kind,
            row.day,
            "",
            row.debit_account,
            row.credit_account,
            row.model,
            row.amount_nanos,
            row.bonus_nanos,
        ):
            balances[part.debit, part.model if part.debit == "revenue" else ""] += part.amount_nanos
            balances[part.credit, part.model if part.credit == "revenue" else ""] -= part.amount_nanos
    return {key: nanos for key, nanos in balances.items() if nanos}


def _roll_forward(facts: Facts) -> list[RollForward]:
    moved: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(COLUMNS.values(), 0))
    for row in facts.totals:
        sign = (row.credit_account == CUSTOMER_CREDITS) - (row.debit_account == CUSTOMER_CREDITS)
        if sign:
            moved[row.customer_id][COLUMNS[row.kind]] += sign * (row.amount_nanos - row.bonus_nanos)
    for (
        line
    ) in facts.lines:  # totals do not say what a reinstatement undoes; no column's loss changes the sum
        if line.credit_account == CUSTOMER_CREDITS and (kind := _kind(line)) != line.kind:
            nanos = line.amount_nanos - line.bonus_nanos
            moved[line.customer_id][COLUMNS[line.kind]] -= nanos
            moved[line.customer_id][COLUMNS[kind]] += nanos
    return [
        RollForward(
            customer_id=balance.customer_id,
            name=facts.names.get(balance.customer_id, ""),
            opening=balance.opening_nanos - balance.opening_bonus_nanos,
            moved=moved[balance.customer_id],
            closing=balance.closing_nanos - balance.closing_bonus_nanos,
            bonus_left=balance.closing_bonus_nanos,
        )
        for balance in sorted(facts.balances, key=lambda balance: balance.customer_id)
        if balance.customer_id in moved or balance.opening_nanos or balance.closing_nanos
    ]


def _revenue(facts: Facts, journal: Journal) -> list[ModelRevenue]:
    models: dict[str, ModelRevenue] = {}
    for row in facts.totals:
        if row.kind not in USAGE_KINDS:
            continue
        model = models.setdefault(row.model or "", ModelRevenue(row.model or ""))
        if row.kind == "absorbed":
            model.absorbed_nanos += row.amount_nanos
            continue
        model.requests += row.entries
        model.prompt_tokens += row.prompt_tokens
        model.completion_tokens += row.completion_tokens
        model.paid_nanos += row.amount_nanos - row.bonus_nanos
        model.bonus_nanos += row.bonus_nanos
    before, after = balances_cents(facts.carried.flows), balances_cents(journal.flows)
    for account, name in sorted(after):
        booked = before.get((account, name), 0) - after[account, name]
        if account == "revenue" and booked:
            models.setdefault(name, ModelRevenue(name)).booked_cents = booked
    return [models[name] for name in sorted(models)]


def _trial_balance(chart: Chart, ledger: Balances, journal: Journal) -> list[TrialRow]:
    nanos, cents = balances_nanos(journal.flows), balances_cents(journal.flows)
    keys = {key for balances in (ledger, nanos, cents) for key, amount in balances.items() if amount}
    order = list(type(chart.accounts).model_fields)
    return [
        TrialRow(
            account=account,
            model=model,
            name=chart.account(account, model),
            ledger_nanos=ledger.get((account, model), 0),
            books_nanos=nanos.get((account, model), 0),
            books_cents=cents.get((account, model), 0),
        )
        for account, model in sorted(keys, key=lambda key: (order.index(key[0]), key[1]))
    ]


def _check(books: Books) -> None:
    """Compare what was reckoned in two ways."""
    for row in books.roll_forward:
        if row.opening + sum(row.moved.values()) != row.closing:
            raise BooksDoNotTie(
                f"{row.customer_id}: the balance did not move by the sum of the month's entries"
            )
    owed = sum(row.closing + row.bonus_left for row in books.roll_forward)
    held = -sum(row.ledger_nanos for row in books.trial_balance if row.account == CUSTOMER_CREDITS)
    if owed != held:
        raise BooksDoNotTie(f"customers are owed {owed} nano-dollars, but the account says {held}")
    for account in books.trial_balance:
        if account.account not in _TIMED and account.ledger_nanos != account.books_nanos:
            raise BooksDoNotTie(f"{account.account}: the ledger's totals and its lines differ")
    if any(sum(line.amount_cents for line in entry.lines) for entry in books.journal.entries):
        raise BooksDoNotTie("an entry of the journal does not balance")
    if books.clearing.unexplained_nanos:
        raise BooksDoNotTie(f"{books.clearing.unexplained_nanos} nano-dollars at Stripe are not explained")
