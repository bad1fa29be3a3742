"""The journal of a month: summary entries in cents, from a ledger that is exact in nano-dollars.

The ledger moves fractions of a cent; books cannot. So nothing is rounded by itself: what is posted is the rounded sum
of everything so far, less what was posted before. Each kind of entry has its flows (from an account to an account, by
model) in the order in which they first appeared, and flow k is posted as R(F1+..+Fk) - R(F1+..+Fk-1). Therefore every
entry balances, the total of a kind is its exact total rounded once (half to even), over any split into days and
months, and no flow is ever a cent away from the truth (docs/decisions/0011-books-are-rounded-by-running-totals.md).
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from itertools import accumulate, pairwise
from typing import NamedTuple

from darktree_billing.chart import Chart
from darktree_billing.months import Month
from darktree_kit.money import NANOS_PER_CENT

CUSTOMER_CREDITS, BONUS_CREDITS = "customer_credits", "bonus_credits"
# Kinds of entries in the order in which they stand, with what they are called.
MONTHLY = {
    "REV": "Usage of paid credits",
    "BON": "Bonus credits given and used",
    "ABS": "Usage absorbed by the house",
    "ADJ": "Adjustments of credits",
}
DAILY = {
    "PUR": "Credits sold",
    "REF": "Refunds",
    "DIS": "Disputes",
    "FEE": "Stripe's fees",
    "PAY": "Payouts to the bank",
    "PST": "Other postings",
}
CODES = MONTHLY | DAILY
_CODE_OF_KIND = {
    "usage": "REV",
    "absorbed": "ABS",
    "adjustment": "ADJ",
    "grant": "PUR",
    "refund": "REF",
    "dispute": "DIS",
    "reinstatement": "DIS",
    "posting": "PST",
}


class Flow(NamedTuple):
    """What moves together: nano-dollars of one kind from one account to another."""

    code: str
    debit: str
    credit: str
    model: str = ""
    customer: str = ""


@dataclass(frozen=True)
class Movement:
    """An amount of one customer and day that goes into the books."""

    code: str
    day: date
    customer_id: str
    debit: str
    credit: str
    model: str
    amount_nanos: int


@dataclass(frozen=True)
class Line:
    """One line of an entry: a debit when positive, a credit when negative."""

    account: str
    amount_cents: int
    description: str
    name: str = ""


@dataclass(frozen=True)
class Entry:
    """One balanced entry of the journal. `short_number` fits QuickBooks Desktop's eleven characters."""

    number: str
    short_number: str
    day: date
    description: str
    lines: tuple[Line, ...]


@dataclass
class Journal:
    """A month's entries, and the flows up to its end, in nano-dollars, for the month that follows."""

    entries: list[Entry]
    flows: dict[Flow, int] = field(default_factory=dict)


def movements(
    kind: str,
    day: date,
    customer_id: str,
    debit: str,
    credit: str,
    model: str | None,
    nanos: int,
    bonus_nanos: int,
) -> list[Movement]:
    """Return what an amount of the ledger is in the books: its bonus part never touches revenue or Stripe."""
    code = "BON" if BONUS_CREDITS in (debit, credit) else _CODE_OF_KIND[kind]
    bonus = 0 if code == "BON" else bonus_nanos
    pair = (
        (CUSTOMER_CREDITS, BONUS_CREDITS) if debit == CUSTOMER_CREDITS else (BONUS_CREDITS, CUSTOMER_CREDITS)
    )
    parts = [(code, debit, credit, model or "", nanos - bonus), ("BON", *pair, "", bonus)]
    return [
        Movement(part_code, day, customer_id, part_debit, part_credit, part_model, amount)
        for part_code, part_debit, part_credit, part_model, amount in parts
        if amount
    ]


def write_journal(
    month: Month, before: dict[Flow, int], moved: Iterable[Movement], chart: Chart, names: dict[str, str]
) -> Journal:
    """Return the month's entries. `before` is the flows up to the month before, `names` the customers' names."""
    buckets: dict[tuple[str, date], dict[Flow, int]] = defaultdict(lambda: defaultdict(int))
    for movement in moved:
        # A fact from before, known only now, is booked on the open month's first day.
        day = month.last_day if movement.code in MONTHLY else month.day_within(movement.day)
        buckets[movement.code, day][_flow(movement, chart)] += movement.amount_nanos
    journal = Journal([], dict(before))
    for code in CODES:
        days = {day: flows for (bucket_code, day), flows in buckets.items() if bucket_code == code}
        for flow in sorted({flow for flows in days.values() for flow in flows}):
            journal.flows.setdefault(flow, 0)
        for day in sorted(days):
            posted = _post(journal.flows, code, days[day])
            if lines := _lines(posted, chart, names, f"{CODES[code]}, {month if code in MONTHLY else day}"):
                journal.entries.append(_entry(month, code, day, lines, chart))
    return journal


def balances_cents(flows: dict[Flow, int]) -> dict[tuple[str, str], int]:
    """Return the books' balance (debit is positive) of each account of the ledger and model, in cents."""
    balances: dict[tuple[str, str], int] = defaultdict(int)
    for code in CODES:
        own = [flow for flow in flows if flow.code == code]
        for flow, cents in zip(own, in_cents([flows[flow] for flow in own]), strict=True):
            balances[flow.debit, _dimension(flow.debit, flow)] += cents
            balances[flow.credit, _dimension(flow.credit, flow)] -= cents
    return balances


def balances_nanos(flows: dict[Flow, int]) -> dict[tuple[str, str], int]:
    """Return the exact balance (debit is positive) of each account of the ledger and model."""
    balances: dict[tuple[str, str], int] = defaultdict(int)
    for flow, nanos in flows.items():
        balances[flow.debit, _dimension(flow.debit, flow)] += nanos
        balances[flow.credit, _dimension(flow.credit, flow)] -= nanos
    return balances


def in_cents(amounts_nanos: Sequence[int]) -> list[int]:
    """Return amounts in cents whose sum is the rounded sum, each less than a cent from its own amount."""
    sums = [0, *map(round_cents, accumulate(amounts_nanos))]
    return [after - before for before, after in pairwise(sums)]


def round_cents(nanos: int) -> int:
    """Return the nearest cent, and of two equally near ones the even one."""
    cents, rest = divmod(nanos, NANOS_PER_CENT)
    return cents + (2 * rest > NANOS_PER_CENT or (2 * rest == NANOS_PER_CENT and cents % 2))


def _dimension(account: str, flow: Flow) -> str:
    return flow.model if account == "revenue" else ""


def _flow(movement: Movement, chart: Chart) -> Flow:
    named = {movement.debit, movement.credit} & set(chart.customer_named)
    return Flow(
        movement.code,
        movement.debit,
        movement.credit,
        movement.model if "revenue" in (movement.debit, movement.credit) else "",
        movement.customer_id if named else "",
    )


def _post(flows: dict[Flow, int], code: str, added: dict[Flow, int]) -> dict[Flow, int]:
    """Add to the flows of a kind, and return what that posts, in cents."""
    own = [flow for flow in flows if flow.code == code]
    before = in_cents([flows[flow] for flow in own])
    for flow, nanos in added.items():
        flows[flow] += nanos
    after = in_cents([flows[flow] for flow in own])
    return {flow: new - old for flow, old, new in zip(own, before, after, strict=True)}


def _lines(
    posted: dict[Flow, int], chart: Chart, names: dict[str, str], description: str
) -> tuple[Line, ...]:
    sums: dict[tuple[str, str], int] = defaultdict(int)
    for flow, cents in posted.items():
        for account, amount in ((flow.debit, cents), (flow.credit, -cents)):
            name = names.get(flow.customer, flow.customer) if account in chart.customer_named else ""
            sums[chart.account(account, flow.model), name] += amount
    lines = [Line(account, cents, description, name) for (account, name), cents in sums.items() if cents]
    return tuple(sorted(lines, key=lambda line: (line.amount_cents < 0, line.account, line.name)))


def _entry(month: Month, code: str, day: date, lines: tuple[Line, ...], chart: Chart) -> Entry:
    suffix = "" if code in MONTHLY else f"{day:%d}"
    return Entry(
        number=f"{chart.number_prefix}-{month}-{code}{'-' + suffix if suffix else ''}",
        short_number=f"{chart.number_prefix}{month.first_day:%y%m}{code}{suffix}",
        day=day,
        description=lines[0].description,
        lines=lines,
    )
