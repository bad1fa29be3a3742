"""Stripe's clearing account: what agrees is silent, and each fault is reported in its own bucket, with its amount."""

from collections.abc import Callable
from dataclasses import replace
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darktree_billing.chart import parse_chart
from darktree_billing.clearing import (
    BUCKETS,
    Clearing,
    Fact,
    Finding,
    PayoutSplit,
    StripeRow,
    reconcile,
    stripe_movements,
)
from darktree_billing.journal import Movement, movements
from darktree_kit.money import NANOS_PER_CENT

DAY = date(2026, 11, 3)
FEE = parse_chart(b'stripe_fee: {percent: "2.9", fixed: "0.30"}').stripe_fee
CENTS = 5_000


class Month:
    """A month's facts of both sides, where a test can break one thing."""

    def __init__(self) -> None:
        self.facts: list[Fact] = []
        self.rows: list[StripeRow] = []
        self.moved: list[Movement] = []
        self.splits: list[PayoutSplit] = []
        self.openings = (0, 0)

    def ledger(self, kind: str, number: int, cents: int, reference: str | None) -> None:
        category = {"grant": "charge", "posting": "other"}.get(kind, kind)
        pair = (
            ("stripe_clearing", "customer_credits") if cents > 0 else ("customer_credits", "stripe_clearing")
        )
        self.moved += movements(kind, DAY, "acme", *pair, None, abs(cents) * NANOS_PER_CENT, 0)
        known = (reference,) if reference else ()
        self.facts.append(
            Fact(
                side="ledger",
                category=category,
                id=f"entry-{kind}-{number}",
                known_as=known,
                amount_nanos=cents * NANOS_PER_CENT,
                day=DAY,
                customer_id="acme",
            )
        )

    def stripe(self, category: str, number: int, cents: int, *known: str, fee: int = 0) -> None:
        self.rows.append(
            StripeRow(f"txn_{category}{number}", category, cents, fee, cents - fee, "usd", DAY, known)
        )

    def sell(self, number: int, reference: str | None = None, cents: int = CENTS) -> None:
        self.ledger("grant", number, cents, reference or f"pi_{number}")
        self.stripe("charge", number, cents, f"ch_{number}", f"pi_{number}", f"cs_{number}", fee=175)

    def close(self) -> Clearing:
        moved = [*self.moved, *stripe_movements(self.rows)]
        found = reconcile(
            openings_nanos=self.openings,
            moved=moved,
            facts=self.facts,
            rows=self.rows,
            splits=self.splits,
            fee=FEE,
        )
        assert found.unexplained_nanos == 0
        return found


@pytest.fixture
def month() -> Month:
    """Purchases, a refund, a dispute and a payout that agree to the cent."""
    made = Month()
    for number, reference in enumerate(["pi_0", "ch_1", "cs_2"]):
        made.sell(number, reference)
    made.ledger("refund", 0, -1_000, "re_0")
    made.stripe("refund", 0, -1_000, "re_0", "ch_0", "pi_0")
    made.ledger("dispute", 1, -CENTS, "du_1")
    made.stripe("dispute", 1, -CENTS, "du_1", "ch_1", fee=1_500)
    made.stripe("payout", 0, -5_000, "po_0")
    return made


def only(found: Clearing) -> Finding:
    assert len(found.findings) == 1, found.findings
    return found.findings[0]


def test_a_month_that_agrees_has_no_exceptions_and_equal_balances(month: Month) -> None:
    found = month.close()
    assert found.findings == []
    assert found.open_facts == []
    assert found.ledger == found.stripe
    in_cents = {name: nanos // NANOS_PER_CENT for name, nanos in found.stripe.items()}
    assert in_cents == {
        "Opening": 0, "Charges": 15_000, "Fees": -(3 * 175 + 1_500), "Refunds": -1_000, "Disputes": -5_000,
        "Other": 0, "Payouts": -5_000, "Closing": 1_975,
    }  # fmt: skip


def drop_charge(month: Month) -> None:
    month.rows = [row for row in month.rows if row.id != "txn_charge2"]


def drop_grant(month: Month) -> None:
    month.facts = [fact for fact in month.facts if fact.id != "entry-grant-2"]
    month.moved.remove(next(moved for moved in month.moved if moved.code == "PUR"))


def grant_twice(month: Month) -> None:
    month.ledger("grant", 9, CENTS, "pi_2")
    month.facts[-1] = month.facts[-1].model_copy(update={"known_as": ("cs_2",)})


def change(month: Month, row_id: str, **changes: object) -> None:
    month.rows = [replace(row, **changes) if row.id == row_id else row for row in month.rows]  # type: ignore[arg-type]


FAULTS: dict[str, tuple[Callable[[Month], None], str, int | None]] = {
    "a missed import": (drop_charge, "purchase_without_charge", CENTS),
    "a missed webhook": (drop_grant, "charge_without_purchase", -CENTS),
    "a webhook handled twice": (grant_twice, "wrong_amount", CENTS),
    "a wrong amount": (
        lambda month: change(month, "txn_charge2", amount_cents=4_000, net_cents=3_854, fee_cents=146),
        "wrong_amount",
        1_000,
    ),
    "a changed fee": (
        lambda month: change(month, "txn_charge2", fee_cents=205, net_cents=4_795),
        "fee_change",
        0,
    ),
    "a refund that Stripe does not know": (
        lambda month: month.ledger("refund", 7, -700, "re_7"),
        "refund_one_sided",
        -700,
    ),
    "a refund that the ledger does not know": (
        lambda month: month.stripe("refund", 7, -700, "re_7", "ch_2"),
        "refund_one_sided",
        700,
    ),
    "a dispute that the ledger does not know": (
        lambda month: month.stripe("dispute", 7, -700, "du_7", "ch_2"),
        "dispute_one_sided",
        700,
    ),
    "a dispute that Stripe does not know": (
        lambda month: month.ledger("dispute", 7, -700, "du_7"),
        "dispute_one_sided",
        -700,
    ),
    "a split payout": (
        lambda month: month.splits.append(PayoutSplit("po_0", DAY, 5_000, 4_000)),
        "payout_split",
        0,
    ),
    "another currency": (
        lambda month: month.rows.append(StripeRow("txn_eur", "charge", 100, 0, 100, "eur", DAY, ("ch_eur",))),
        "other_currency",
        0,
    ),
    "a reserve that nobody posted": (
        lambda month: month.stripe("other", 7, -300),
        "other_one_sided",
        300,
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_reported_in_its_bucket_with_what_it_makes_of_the_balance(
    month: Month, fault: str
) -> None:
    inject, bucket, difference = FAULTS[fault]
    inject(month)
    found = only(month.close())
    assert found.bucket == bucket
    assert found.difference_nanos == (difference or 0) * NANOS_PER_CENT
    assert found.age_days(date(2026, 11, 30)) == 27


def test_every_bucket_has_a_fault_here() -> None:
    assert {bucket for _, bucket, _ in FAULTS.values()} == set(BUCKETS)


def test_what_stays_open_is_closed_by_the_month_that_brings_the_other_side(month: Month) -> None:
    drop_charge(month)
    november = month.close()
    december = Month()
    december.openings = (november.ledger["Closing"], november.stripe["Closing"])
    december.facts = list(november.open_facts)
    still = december.close()
    assert only(still).bucket == "purchase_without_charge"
    assert only(still).age_days(date(2026, 12, 31)) == 58

    december.stripe("charge", 2, CENTS, "ch_2", "pi_2", "cs_2", fee=175)
    assert december.close().findings == []
    assert december.close().open_facts == []


def test_a_posting_that_names_what_it_mends_closes_the_exception(month: Month) -> None:
    drop_charge(month)
    month.ledger("posting", 5, -CENTS, "cs_2")
    assert month.close().findings == []


def test_a_purchase_without_any_reference_is_an_exception_by_its_entry(month: Month) -> None:
    month.ledger("grant", 8, CENTS, None)
    assert only(month.close()).references == "entry-grant-8"


@given(st.data())
def test_any_set_of_faults_is_explained_to_the_last_cent(data: st.DataObject) -> None:
    made = Month()
    for number in range(data.draw(st.integers(0, 8))):
        made.sell(number, cents=data.draw(st.integers(1, 10**7)))
    made.facts = [fact for fact in made.facts if data.draw(st.booleans())]
    made.moved = []
    for fact in made.facts:
        made.moved += movements(
            "grant", DAY, "acme", "stripe_clearing", "customer_credits", None, fact.amount_nanos, 0
        )
    made.rows = [row for row in made.rows if data.draw(st.booleans())]
    for row in list(made.rows):
        if data.draw(st.booleans()):
            change(made, row.id, amount_cents=row.amount_cents + data.draw(st.integers(-5, 5)))
    assert made.close().unexplained_nanos == 0
