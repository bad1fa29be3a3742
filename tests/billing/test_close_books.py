"""A month's books: the tables tie to each other and to the ledger, and the same facts give the same bytes."""

import csv
import io
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID

import pypdfium2
import pytest

from darktree_billing.chart import Chart
from darktree_billing.clearing import IMPORT_ACTOR, BookedBalance, StripeRow, stripe_movements
from darktree_billing.close_books import Books, BooksDoNotTie, Carried, Facts, make_books
from darktree_billing.close_pdf import summary_pdf
from darktree_billing.close_sheets import sheets
from darktree_billing.months import Month
from darktree_billing.pack import (
    MANIFEST,
    NOTE,
    PackError,
    make_manifest,
    make_pack,
    unpack,
    verify_pack,
)
from darktree_kit.money import NANOS_PER_CENT, NANOS_PER_DOLLAR
from darktree_kit.notes import make_signer
from darktree_ledger.books_schemas import ClosedMonth, MonthBalance, MonthTotal
from darktree_ledger.schemas import EntryView

NOVEMBER = Month(2026, 11)
MODELS = ("qwen25-14b-awq", "qwen25-32b-awq")
CLOSED = ClosedMonth(
    month=NOVEMBER.first_day,
    tree_size=1_234,
    root="ab" * 32,
    checkpoint="darktree.dev/ledger/test\n1234\nq6urq6ur\n\n— darktree.dev/ledger/test AAAA\n",
    closed_at=datetime(2026, 12, 1, 0, 5, tzinfo=UTC),
)


class Scene:
    """A month of a ledger and of Stripe, kept consistent while it is told."""

    def __init__(self, month: Month = NOVEMBER, carried: Carried | None = None) -> None:
        self.month = month
        self.totals: list[MonthTotal] = []
        self.lines: list[EntryView] = []
        self.rows: list[StripeRow] = []
        self.carried = carried or Carried.nothing()
        self.opening: dict[str, tuple[int, int]] = {}
        self.opening_cents = 0

    def entry(
        self,
        customer: str,
        kind: str,
        debit: str,
        credit: str,
        nanos: int,
        *,
        bonus: int = 0,
        day: int = 3,
        **more: Any,
    ) -> None:
        counted = {"model": None, "prompt_tokens": 0, "completion_tokens": 0} | {
            name: value
            for name, value in more.items()
            if name in ("model", "prompt_tokens", "completion_tokens")
        }
        on = date(self.month.year, self.month.number, day)
        fields = {
            "customer_id": customer, "kind": kind, "debit_account": debit, "credit_account": credit,
            "amount_nanos": nanos, "bonus_nanos": bonus, **counted,
        }  # fmt: skip
        self.totals.append(MonthTotal(month=self.month.first_day, day=on, entries=1, **fields))
        if kind in ("usage", "absorbed"):
            return
        self.lines.append(
            EntryView(
                version=2,
                entry_id=UUID(int=len(self.lines)),
                seq=len(self.lines),
                balance_after_nanos=0,
                usage_day=None,
                hold_id=None,
                key_id=None,
                lane=None,
                prompt_price_nanos=0,
                completion_price_nanos=0,
                outcome=None,
                reason="told",
                actor=more.get("actor", "test"),
                reference=more.get("reference"),
                recorded_at=datetime(on.year, on.month, on.day, 12, tzinfo=UTC),
                prev_hash="",
                hash="",
                **fields,
            )
        )

    def sell(self, customer: str, dollars: int, number: int, day: int = 3, *, at_stripe: bool = True) -> None:
        self.entry(customer, "grant", "stripe_clearing", "customer_credits", dollars * NANOS_PER_DOLLAR,
                   day=day, reference=f"cs_{number}")  # fmt: skip
        if at_stripe:
            fee = dollars * 3 + 30
            self.stripe("charge", number, dollars * 100, f"ch_{number}", f"cs_{number}", fee=fee, day=day)

    def use(self, customer: str, nanos: int, model: str = MODELS[0], bonus: int = 0, day: int = 9) -> None:
        tokens = nanos // 750_000
        self.entry(customer, "usage", "customer_credits", "revenue", nanos, bonus=bonus, day=day, model=model,
                   prompt_tokens=tokens // 3, completion_tokens=tokens - tokens // 3)  # fmt: skip

    def stripe(self, category: str, number: int, cents: int, *known: str, fee: int = 0, day: int = 3) -> None:
        on = date(self.month.year, self.month.number, day)
        row = StripeRow(f"txn_{category}{number}", category, cents, fee, cents - fee, "usd", on, known)
        self.rows.append(row)
        for moved in stripe_movements([row]):
            self.entry("_house", "posting", moved.debit, moved.credit, moved.amount_nanos, day=day,
                       actor=IMPORT_ACTOR, reference=row.id)  # fmt: skip

    def facts(self, *, closed: bool = True, chart: Chart | None = None) -> Facts:
        moved: dict[str, list[int]] = {customer: list(opening) for customer, opening in self.opening.items()}
        for row in self.totals:
            sign = (row.credit_account == "customer_credits") - (row.debit_account == "customer_credits")
            if sign:
                sums = moved.setdefault(row.customer_id, [0, 0])
                sums[0] += sign * row.amount_nanos
                sums[1] += sign * row.bonus_nanos
        balances = [
            MonthBalance(
                customer_id=customer,
                opening_nanos=self.opening.get(customer, (0, 0))[0],
                opening_bonus_nanos=self.opening.get(customer, (0, 0))[1],
                closing_nanos=sums[0],
                closing_bonus_nanos=sums[1],
            )
            for customer, sums in sorted(moved.items())
        ]
        return Facts(
            month=self.month,
            chart=chart or Chart(),
            closed=CLOSED if closed else None,
            totals=self.totals,
            lines=self.lines,
            balances=balances,
            names={"acme": "Acme Ltd", "zeta": "Zeta & Söhne"},
            stripe=BookedBalance(self.opening_cents, self.rows, []),
            carried=self.carried,
        )


def november() -> Scene:
    scene = Scene()
    scene.sell("acme", 150, 1)
    scene.sell("zeta", 50, 2, day=17)
    scene.entry(
        "zeta", "grant", "bonus_credits", "customer_credits", 5 * NANOS_PER_DOLLAR, bonus=5 * NANOS_PER_DOLLAR
    )
    scene.use("zeta", 6_123_750_000, bonus=5 * NANOS_PER_DOLLAR)
    scene.use("acme", 88_000_500_000)
    scene.use("acme", 10_250_250_000, MODELS[1], day=20)
    scene.entry("acme", "absorbed", "house_absorbed", "revenue", 375_750_000, model=MODELS[0])
    scene.entry("acme", "adjustment", "customer_credits", "adjustments", NANOS_PER_DOLLAR, day=21)
    scene.entry(
        "zeta",
        "refund",
        "customer_credits",
        "stripe_clearing",
        20 * NANOS_PER_DOLLAR,
        reference="re_2",
        day=22,
    )
    scene.stripe("refund", 2, -2_000, "re_2", "ch_2", day=22)
    scene.stripe("payout", 1, -15_000, "po_1", day=25)
    return scene


def table(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content.decode("cp1252"), newline="")))


@pytest.fixture
def books() -> Books:
    return make_books(november().facts())


def test_the_roll_forward_is_by_customer_and_adds_up_to_deferred_revenue(books: Books) -> None:
    rows = {row["customer"]: row for row in table(sheets(books)["deferred-revenue.csv"])}
    assert rows["zeta"] == {
        "customer": "zeta", "name": "Zeta & Söhne", "opening": "0.00", "sold": "50.00", "adjustments": "0.00",
        "used": "-1.12375", "refunded": "-20.00", "disputed": "0.00", "closing": "28.87625",
        "bonus credits left": "0.00",
    }  # fmt: skip
    assert rows["TOTAL"]["closing"] == "79.6255"
    deferred = sum(
        row.books_nanos for row in books.trial_balance if row.account in ("customer_credits", "bonus_credits")
    )
    assert deferred == -79_625_500_000


def test_a_refund_that_failed_leaves_the_column_it_came_from() -> None:
    scene = november()
    for reference, dollars in (("re_2", 20), ("du_1", 3)):
        scene.entry("zeta", "reinstatement", "stripe_clearing", "customer_credits", dollars * NANOS_PER_DOLLAR,
                    day=24, reference=reference)  # fmt: skip
    rows = {row.customer_id: row.moved for row in make_books(scene.facts()).roll_forward}
    assert (rows["zeta"]["refunded"], rows["zeta"]["disputed"]) == (0, 3 * NANOS_PER_DOLLAR)


def test_the_trial_balance_sums_to_zero_and_the_journal_makes_it(books: Books) -> None:
    assert sum(row.books_cents for row in books.trial_balance) == 0
    assert sum(row.ledger_nanos for row in books.trial_balance) == 0
    posted: dict[str, int] = {}
    for entry in books.journal.entries:
        for line in entry.lines:
            posted[line.account] = posted.get(line.account, 0) + line.amount_cents
    assert {name: cents for name, cents in posted.items() if cents} == {
        row.name: row.books_cents for row in books.trial_balance if row.books_cents
    }
    total = table(sheets(books)["trial-balance.csv"])[-1]
    assert total["debit"] == total["credit"] != "0.00"


def test_revenue_by_model_is_what_was_paid_for_and_bonus_credits_are_none_of_it(books: Books) -> None:
    assert [
        (row.model, row.paid_nanos, row.bonus_nanos, row.absorbed_nanos, row.booked_cents) for row in books.revenue
    ] == [
        (MODELS[0], 89_124_250_000, 5_000_000_000, 375_750_000, 8_950),
        (MODELS[1], 10_250_250_000, 0, 0, 1_025),
    ]  # fmt: skip
    assert books.clearing.findings == []


def test_fees_and_payouts_are_booked_by_stripes_days_however_late_they_were_posted() -> None:
    scene = november()
    late = [line for line in scene.lines if line.actor == IMPORT_ACTOR]
    scene.lines = [line for line in scene.lines if line not in late]
    scene.totals = [row for row in scene.totals if row.kind != "posting"]
    books = make_books(scene.facts())
    on_time = make_books(november().facts())
    assert books.journal == on_time.journal
    fees = next(row for row in books.trial_balance if row.account == "stripe_fees")
    assert (fees.ledger_nanos, fees.books_nanos) == (0, 660 * NANOS_PER_CENT)

    december = Scene(Month(2026, 12), Carried.parse(books.carried.document()))
    december.opening_cents = sum(row.net_cents for row in november().rows)
    december.opening = {
        row.customer_id: (row.closing + row.bonus_left, row.bonus_left) for row in books.roll_forward
    }
    for line in late:
        december.entry(
            "_house",
            "posting",
            line.debit_account,
            line.credit_account,
            line.amount_nanos,
            actor=IMPORT_ACTOR,
        )
    after = make_books(december.facts())
    assert after.journal.entries == []
    assert all(row.ledger_nanos == row.books_nanos for row in after.trial_balance)


def test_what_is_carried_survives_being_written_down(books: Books) -> None:
    assert Carried.parse(books.carried.document()) == books.carried
    assert list(Carried.parse(books.carried.document()).flows) == list(books.carried.flows)


def test_answers_of_the_ledger_that_contradict_each_other_are_no_books() -> None:
    scene = november()
    facts = scene.facts()
    facts.balances[0].closing_nanos += 1
    with pytest.raises(BooksDoNotTie, match="acme"):
        make_books(facts)
    scene.lines = scene.lines[1:]
    with pytest.raises(BooksDoNotTie, match="totals and its lines differ"):
        make_books(scene.facts())


def test_the_same_facts_give_the_same_bytes_and_a_preview_says_on_every_page_that_it_is_one() -> None:
    signer = make_signer("books.darktree.test")

    def pack(closed: bool) -> bytes:
        books = make_books(november().facts(closed=closed))
        files = {**sheets(books), "summary.pdf": summary_pdf(books)}
        key = signer if closed else None
        manifest = make_manifest("2026-11", files, key)
        return make_pack("2026-11", files, manifest, key)

    assert pack(True) == pack(True)
    assert pack(False) == pack(False)
    assert verify_pack(unpack(pack(True)), [signer.verifier]).files == 10
    preview = unpack(pack(False))
    assert all(name.startswith("PREVIEW-") for name in preview)
    assert NOTE not in {name.removeprefix("PREVIEW-") for name in preview}
    page = pypdfium2.PdfDocument(preview["PREVIEW-summary.pdf"])[0].get_textpage().get_text_range()
    assert "PREVIEW" in page
    with pytest.raises(PackError, match="preview"):
        verify_pack(preview)


def test_the_summary_is_one_page_with_the_months_figures(books: Books) -> None:
    document = pypdfium2.PdfDocument(summary_pdf(books))
    assert len(document) == 1
    words = document[0].get_textpage().get_text_range()
    for said in (
        "November 2026",
        "$200.00",
        "$99.37",
        "$79.63",
        "Ledger, Stripe and books agree to the cent.",
        "1234 entries",
    ):
        assert said in words, said


@pytest.fixture
def signed(books: Books) -> tuple[dict[str, bytes], Any]:
    signer = make_signer("books.darktree.test")
    files = sheets(books)
    return unpack(
        make_pack("2026-11", files, make_manifest("2026-11", files, signer), signer)
    ), signer.verifier


def test_a_pack_verifies_by_its_trusted_key_and_by_no_other(signed: tuple[dict[str, bytes], Any]) -> None:
    files, key = signed
    found = verify_pack(files, [key])
    assert (found.month, found.is_key_trusted, found.signed_by) == ("2026-11", True, str(key))
    assert not verify_pack(files).is_key_trusted
    with pytest.raises(PackError, match="none of the trusted keys"):
        verify_pack(files, [make_signer("books.darktree.test").verifier])


def test_a_changed_missing_or_added_file_is_named(signed: tuple[dict[str, bytes], Any]) -> None:
    files, key = signed
    for name in files:
        content = files[name]
        flipped = bytes([content[0] ^ 1]) + content[1:]
        expected = "manifest" if name in (MANIFEST, NOTE) else f"{name} was changed"
        with pytest.raises(PackError, match=expected):
            verify_pack({**files, name: flipped}, [key])
        with pytest.raises(PackError, match=f"{name} is missing"):
            verify_pack({other: content for other, content in files.items() if other != name}, [key])
    with pytest.raises(PackError, match=r"extra\.csv does not belong"):
        verify_pack({**files, "extra.csv": b""}, [key])


def test_a_damaged_zip_is_told_as_one(books: Books) -> None:
    files = sheets(books)
    content = make_pack("2026-11", files, make_manifest("2026-11", files, None), None)
    for broken in (b"", b"PK", content[:-30], content[:100] + b"\x00" * 50 + content[150:]):
        with pytest.raises(PackError):
            unpack(broken)
