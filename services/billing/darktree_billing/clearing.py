"""Stripe's clearing account, reconciled: what the ledger says of the money at Stripe against what Stripe says.

Facts of both sides that share an id (charge, payment intent, session, refund, dispute, balance transaction) are one
group; a group whose sides differ is an exception, and stays open, month after month, until they agree. So the
difference of the two balances is always explained to the last cent, by exceptions with names and ages.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date

from pydantic import BaseModel, ConfigDict

from darktree_billing.balance_report import CHARGE, DISPUTE, FEE, OTHER, PAYOUT, REFUND
from darktree_billing.chart import StripeFee
from darktree_billing.journal import Movement
from darktree_kit.money import NANOS_PER_CENT
from darktree_ledger.schemas import HOUSE

STRIPE_CLEARING = "stripe_clearing"
USD = "usd"
IMPORT_ACTOR = "stripe import"  # who posts fees and payouts to the ledger
LEDGER, STRIPE = "ledger", "stripe"
# What an exception can be, and what to do about it.
BUCKETS = {
    "purchase_without_charge": "Credits were sold that Stripe has no charge for: find the payment, or take them back.",
    "charge_without_purchase": "Stripe took money for which nobody got credits: grant the purchase, or refund it.",
    "wrong_amount": "Ledger and Stripe have different amounts: adjust the credits, or refund the difference.",
    "refund_one_sided": "A refund on one side only: record it on the other.",
    "dispute_one_sided": "A dispute on one side only: record it on the other.",
    "other_one_sided": "Another kind, on one side only: post it to the ledger with its Stripe id as reference.",
    "fee_change": "Stripe kept another fee than agreed: look at the charge, and at the agreement.",
    "payout_split": "A payout is not the sum of what it pays out: import what is missing, or ask Stripe.",
    "other_currency": "Not in dollars: it is in no sum here; convert it at Stripe, then import that.",
}
_ONE_SIDED = {REFUND: "refund_one_sided", DISPUTE: "dispute_one_sided", OTHER: "other_one_sided"}
ROWS = ("Opening", "Charges", "Fees", "Refunds", "Disputes", "Other", "Payouts", "Closing")
_ROW_OF_CODE = {"PUR": "Charges", "FEE": "Fees", "REF": "Refunds", "DIS": "Disputes", "PAY": "Payouts"}
_ROW_OF_CATEGORY = {
    CHARGE: "Charges", FEE: "Fees", REFUND: "Refunds", DISPUTE: "Disputes", PAYOUT: "Payouts", OTHER: "Other",
}  # fmt: skip


class Fact(BaseModel):
    """One side's word about money at Stripe; `amount_nanos` is what it adds to the balance there."""

    model_config = ConfigDict(frozen=True)

    side: str
    category: str
    id: str
    known_as: tuple[str, ...]
    amount_nanos: int
    day: date
    customer_id: str = ""


@dataclass(frozen=True)
class StripeRow:
    """A balance transaction as it is booked."""

    id: str
    category: str
    amount_cents: int
    fee_cents: int
    net_cents: int
    currency: str
    day: date
    known_as: tuple[str, ...]
    description: str = ""


@dataclass(frozen=True)
class PayoutSplit:
    """A payout that is not the sum of what Stripe says it pays out."""

    payout: str
    day: date
    paid_cents: int
    items_cents: int


@dataclass(frozen=True)
class BookedBalance:
    """What billing knows of Stripe's balance for one month's books."""

    opening_cents: int
    rows: list[StripeRow]
    splits: list[PayoutSplit]


@dataclass(frozen=True)
class Finding:
    """An exception. `difference_nanos` is what the ledger has more than Stripe."""

    bucket: str
    day: date
    references: str
    customer_id: str
    ledger_nanos: int | None
    stripe_nanos: int | None
    detail: str
    explains: bool = True

    @property
    def difference_nanos(self) -> int:
        return ((self.ledger_nanos or 0) - (self.stripe_nanos or 0)) if self.explains else 0

    def age_days(self, at: date) -> int:
        return max((at - self.day).days, 0)


@dataclass(frozen=True)
class Clearing:
    """A month's reconciliation: each row's nano-dollars on both sides, exceptions, and what stays open."""

    ledger: dict[str, int]
    stripe: dict[str, int]
    findings: list[Finding]
    open_facts: list[Fact]

    @property
    def unexplained_nanos(self) -> int:
        """What no exception explains: nothing, unless this module is wrong."""
        difference = self.ledger["Closing"] - self.stripe["Closing"]
        return difference - sum(finding.difference_nanos for finding in self.findings)


def stripe_movements(rows: Iterable[StripeRow]) -> list[Movement]:
    """Return what only Stripe knows and the books must: fees, and payouts to the bank."""
    moved = []
    for row in rows:
        if row.currency != USD:
            continue
        fees = "dispute_fees" if row.category == DISPUTE else "stripe_fees"
        parts = [("FEE", fees, row.fee_cents)]
        if row.category == FEE:
            parts.append(("FEE", fees, -row.amount_cents))
        if row.category == PAYOUT:
            parts.append(("PAY", "bank", -row.amount_cents))
        for code, account, cents in parts:
            pair = (account, STRIPE_CLEARING) if cents > 0 else (STRIPE_CLEARING, account)
            if cents:
                moved.append(Movement(code, row.day, HOUSE, *pair, "", abs(cents) * NANOS_PER_CENT))
    return moved


def reconcile(
    *,
    openings_nanos: tuple[int, int],
    moved: Iterable[Movement],
    facts: Sequence[Fact],
    rows: Sequence[StripeRow],
    splits: Iterable[PayoutSplit],
    fee: StripeFee | None,
) -> Clearing:
    """Return a month's reconciliation.

    `openings_nanos` is the balance before, of the ledger and of Stripe; `moved` is the whole month in the books;
    `facts` is what the ledger says this month, and what both sides left open before.
    """
    dollars = [row for row in rows if row.currency == USD]
    own = [_fact(row) for row in dollars if row.category in (CHARGE, REFUND, DISPUTE, OTHER)]
    findings, open_facts = _compare([*facts, *own])
    findings += [_fee_change(row, fee) for row in dollars if fee and _is_fee_changed(row, fee)]
    findings += [_split(split) for split in splits]
    findings += [_other_currency(row) for row in rows if row.currency != USD]
    order = list(BUCKETS)
    findings.sort(key=lambda found: (order.index(found.bucket), found.day, found.references))
    return Clearing(
        ledger=_ledger_rows(openings_nanos[0], moved),
        stripe=_stripe_rows(openings_nanos[1], dollars),
        findings=findings,
        open_facts=open_facts,
    )


def _compare(facts: Sequence[Fact]) -> tuple[list[Finding], list[Fact]]:
    findings, open_facts = [], []
    for group in _groups(_adopted(facts)):
        sides = {side: [fact for fact in group if fact.side == side] for side in (LEDGER, STRIPE)}
        ledger, stripe = (sum(fact.amount_nanos for fact in sides[side]) for side in (LEDGER, STRIPE))
        if ledger == stripe:
            continue
        open_facts += group
        category = group[0].category
        if sides[LEDGER] and sides[STRIPE]:
            bucket, detail = "wrong_amount", f"a {category}"
        elif category == CHARGE:
            bucket = "purchase_without_charge" if sides[LEDGER] else "charge_without_purchase"
            detail = ""
        else:
            bucket = _ONE_SIDED[category]
            detail = "only in the ledger" if sides[LEDGER] else "only at Stripe"
        findings.append(
            Finding(
                bucket=bucket,
                day=min(fact.day for fact in group),
                references=" ".join(
                    sorted({known for fact in group for known in fact.known_as} or {group[0].id})
                ),
                customer_id=next((fact.customer_id for fact in sides[LEDGER]), ""),
                ledger_nanos=ledger if sides[LEDGER] else None,
                stripe_nanos=stripe if sides[STRIPE] else None,
                detail=detail,
            )
        )
    return findings, sorted(open_facts, key=lambda fact: (fact.day, fact.side, fact.id))


def _adopted(facts: Sequence[Fact]) -> list[Fact]:
    """Let a posting of the ledger belong to what it refers to: that is how a bookkeeper mends an exception."""
    category = {known: fact.category for fact in facts if fact.category != OTHER for known in fact.known_as}
    return [
        fact.model_copy(
            update={
                "category": next((category[known] for known in fact.known_as if known in category), OTHER)
            }
        )
        if (fact.side, fact.category) == (LEDGER, OTHER)
        else fact
        for fact in facts
    ]


def _groups(facts: Sequence[Fact]) -> list[list[Fact]]:
    """Return facts of one category that are connected by ids, directly or through others."""
    leader = list(range(len(facts)))

    def find(place: int) -> int:
        while leader[place] != place:
            leader[place] = leader[leader[place]]
            place = leader[place]
        return place

    first: dict[tuple[str, str], int] = {}
    for place, fact in enumerate(facts):
        for known in fact.known_as:
            leader[find(place)] = find(first.setdefault((fact.category, known), place))
    groups: dict[int, list[Fact]] = defaultdict(list)
    for place, fact in enumerate(facts):
        groups[find(place)].append(fact)
    return list(groups.values())


def _fact(row: StripeRow) -> Fact:
    return Fact(
        side=STRIPE,
        category=row.category,
        id=row.id,
        known_as=tuple(sorted({row.id, *row.known_as})),
        amount_nanos=row.amount_cents * NANOS_PER_CENT,
        day=row.day,
    )


def _is_fee_changed(row: StripeRow, fee: StripeFee) -> bool:
    return row.category == CHARGE and row.fee_cents != fee.of(row.amount_cents)


def _fee_change(row: StripeRow, fee: StripeFee) -> Finding:
    agreed, kept = fee.of(row.amount_cents) * NANOS_PER_CENT, row.fee_cents * NANOS_PER_CENT
    return Finding("fee_change", row.day, row.id, "", agreed, kept, "agreed and kept", explains=False)


def _split(split: PayoutSplit) -> Finding:
    return Finding(
        bucket="payout_split",
        day=split.day,
        references=split.payout,
        customer_id="",
        ledger_nanos=split.items_cents * NANOS_PER_CENT,
        stripe_nanos=split.paid_cents * NANOS_PER_CENT,
        detail="the sum of its items, and what was paid out",
        explains=False,
    )


def _other_currency(row: StripeRow) -> Finding:
    detail = f"{row.category} of {row.amount_cents} {row.currency}, in its smallest unit"
    return Finding("other_currency", row.day, row.id, "", None, None, detail, explains=False)


def _ledger_rows(opening: int, moved: Iterable[Movement]) -> dict[str, int]:
    rows = dict.fromkeys(ROWS, 0) | {"Opening": opening}
    for movement in moved:
        sign = (movement.debit == STRIPE_CLEARING) - (movement.credit == STRIPE_CLEARING)
        rows[_ROW_OF_CODE.get(movement.code, "Other")] += sign * movement.amount_nanos
    return _closed(rows)


def _stripe_rows(opening: int, dollars: Iterable[StripeRow]) -> dict[str, int]:
    rows = dict.fromkeys(ROWS, 0) | {"Opening": opening}
    for row in dollars:
        rows[_ROW_OF_CATEGORY[row.category]] += row.amount_cents * NANOS_PER_CENT
        rows["Fees"] -= row.fee_cents * NANOS_PER_CENT
    return _closed(rows)


def _closed(rows: dict[str, int]) -> dict[str, int]:
    return rows | {"Closing": sum(rows.values())}
