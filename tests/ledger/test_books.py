"""What moves besides usage, what every account adds up to, and months that close and stay closed."""

from collections.abc import AsyncIterator
from datetime import UTC, date, datetime
from typing import Any

import orjson
import psycopg
import pytest

from darktree_kit.errors import ApiError
from darktree_kit.ids import uuid7
from darktree_ledger import chain
from darktree_ledger.client import LedgerClient
from darktree_ledger.schemas import Adjust, ClawBack, EntryView, Grant, Post, Reinstate, Result, Show

ALWAYS = datetime(2100, 1, 1, tzinfo=UTC)
NOVEMBER, DECEMBER, JANUARY = date(2026, 11, 1), date(2026, 12, 1), date(2027, 1, 1)


@pytest.fixture
async def billing(ledger_url: str, billing_token: str) -> AsyncIterator[LedgerClient]:
    client = LedgerClient(ledger_url, billing_token)
    yield client
    await client.close()


def said(**changes: Any) -> dict[str, Any]:
    return {"operation_id": uuid7(), "customer_id": "acme", "reason": "a test", "actor": "test"} | changes


def buy(ledger: Any, dollars: int) -> Grant:
    bought = Grant(**said(amount_nanos=dollars * 10**9, source="purchase", reference="cs_1"))
    assert ledger.one(bought).outcome == "done"
    return bought


def use(ledger: Any, build: Any, tokens: int) -> Result:
    placed = build.hold("acme", tokens, 0)
    ledger.one(placed)
    return ledger.one(build.settle(placed, tokens, 0))  # type: ignore[no-any-return]


def balances(ledger: Any, at: datetime = ALWAYS) -> dict[str, int]:
    """Return each account's debits less its credits, having seen that together they are nothing."""
    rows = ledger.runtime.execute("SELECT * FROM ledger.trial_balance(%s)", [at]).fetchall()
    assert sum(debit for _, _, debit, _ in rows) == sum(credit for _, _, _, credit in rows)
    summed: dict[str, int] = {}
    for account, _, debit, credit in rows:
        summed[account] = summed.get(account, 0) + int(debit - credit)
    return {account: amount for account, amount in summed.items() if amount}


def test_bonus_credits_are_used_before_paid_ones_and_are_no_revenue(ledger: Any, build: Any) -> None:
    ledger.customer("acme", cap_tokens=100_000, dollars=0)
    buy(ledger, 3)
    ledger.one(build.grant("acme", build.dollar))
    use(ledger, build, 1_000)  # $0.75, all of it bonus
    assert balances(ledger).get("revenue", 0) == 0
    use(ledger, build, 1_000)  # $0.25 bonus, $0.50 paid
    assert balances(ledger) == {
        "stripe_clearing": 3 * 10**9,
        "revenue": -500_000_000,
        "customer_credits": -2_500_000_000,
    }
    rows = ledger.admin.execute(
        "SELECT amount_nanos, bonus_nanos FROM ledger.entry WHERE kind = 'usage' ORDER BY seq"
    )
    assert rows.fetchall() == [(750_000_000, 750_000_000), (750_000_000, 250_000_000)]


def test_a_refund_takes_what_is_unused_of_its_purchase_and_the_house_bears_the_rest(
    ledger: Any, build: Any
) -> None:
    ledger.customer("acme", cap_tokens=100_000, dollars=0)
    first, second = buy(ledger, 3), buy(ledger, 3)
    use(ledger, build, 2_000)  # $1.50 of the first
    refund = ClawBack(**said(purchase_id=first.operation_id, amount_nanos=2 * 10**9, cause="refund"))
    result = ledger.one(refund)
    assert (result.amount_nanos, result.rest_nanos) == (1_500_000_000, 500_000_000)
    assert ledger.one(refund).replayed
    assert balances(ledger)["refunds"] == 500_000_000
    dispute = ClawBack(**said(purchase_id=second.operation_id, amount_nanos=3 * 10**9, cause="dispute"))
    result = ledger.one(dispute)
    assert (result.amount_nanos, result.rest_nanos, result.balance_nanos) == (3 * 10**9, 0, 0)


def test_a_purchase_is_clawed_back_no_further_than_it_was_paid(ledger: Any) -> None:
    ledger.customer("acme", dollars=0)
    bought = buy(ledger, 3)
    half = {"purchase_id": bought.operation_id, "amount_nanos": 2 * 10**9, "cause": "refund"}
    assert ledger.one(ClawBack(**said(**half))).outcome == "done"
    assert ledger.one(ClawBack(**said(**half))).reason == "exceeds_purchase"
    assert ledger.one(ClawBack(**said(**half | {"purchase_id": uuid7()}))).reason == "unknown_purchase"


def test_what_running_requests_hold_is_not_clawed_back(ledger: Any, build: Any) -> None:
    ledger.customer("acme", cap_tokens=100_000, dollars=0)
    bought = buy(ledger, 3)
    ledger.one(build.hold("acme", 1_000, 0))
    result = ledger.one(
        ClawBack(**said(purchase_id=bought.operation_id, amount_nanos=3 * 10**9, cause="dispute"))
    )
    assert (result.amount_nanos, result.rest_nanos) == (2_250_000_000, 750_000_000)


def test_a_dispute_that_is_won_gives_back_exactly_what_it_took(ledger: Any, build: Any) -> None:
    ledger.customer("acme", cap_tokens=100_000, dollars=0)
    bought = buy(ledger, 3)
    use(ledger, build, 1_000)
    before = balances(ledger)
    disputed = ClawBack(**said(purchase_id=bought.operation_id, amount_nanos=3 * 10**9, cause="dispute"))
    assert ledger.one(disputed).outcome == "done"
    won = Reinstate(**said(claw_back_id=disputed.operation_id))
    result = ledger.one(won)
    assert (result.amount_nanos, result.rest_nanos) == (2_250_000_000, 750_000_000)
    assert balances(ledger) == before
    assert ledger.one(won).replayed
    assert ledger.one(Reinstate(**said(claw_back_id=disputed.operation_id))).reason == "resolved"
    assert ledger.one(Reinstate(**said(claw_back_id=uuid7()))).reason == "unknown_claw_back"


def test_claw_backs_of_one_batch_are_each_their_own(ledger: Any) -> None:
    ledger.customer("acme", dollars=0)
    bought = buy(ledger, 3)
    part = {"purchase_id": bought.operation_id, "amount_nanos": 10**9, "cause": "refund"}
    parts = [ClawBack(**said(**part)) for _ in range(4)]
    first, *_, fourth = ledger.apply(*parts)
    assert (first.amount_nanos, first.rest_nanos, fourth.reason) == (10**9, 0, "exceeds_purchase")
    undone = Reinstate(**said(claw_back_id=parts[0].operation_id))
    for replayed in (False, True):
        result = ledger.one(undone)
        assert (result.amount_nanos, result.rest_nanos, result.balance_nanos) == (10**9, 0, 10**9)
        assert result.replayed == replayed


def test_a_repeated_claw_back_says_again_what_it_took_and_what_was_lost(ledger: Any, build: Any) -> None:
    ledger.set_clock("timestamptz '2099-11-23 12:00Z'")
    ledger.customer("acme", cap_tokens=100_000, dollars=0)
    bought = buy(ledger, 3)
    use(ledger, build, 1_000)
    refund = ClawBack(**said(purchase_id=bought.operation_id, amount_nanos=3 * 10**9, cause="refund"))
    first, again = ledger.one(refund), ledger.one(refund)
    assert (first.amount_nanos, first.rest_nanos) == (2_250_000_000, 750_000_000)
    assert again == first.model_copy(update={"replayed": True})


def test_only_what_was_bought_can_be_clawed_back(ledger: Any) -> None:
    ledger.customer("acme", dollars=0)
    adjusted = Adjust(**said(amount_nanos=10**9))
    ledger.one(adjusted)
    back = ClawBack(**said(purchase_id=adjusted.operation_id, amount_nanos=1, cause="refund"))
    assert ledger.one(back).reason == "unknown_purchase"


def test_an_adjustment_goes_up_and_down_but_not_into_what_is_held(ledger: Any, build: Any) -> None:
    ledger.customer("acme", cap_tokens=100_000, dollars=0)
    assert ledger.one(Adjust(**said(amount_nanos=10**9))).balance_nanos == 10**9
    ledger.one(build.hold("acme", 1_000, 0))
    assert ledger.one(Adjust(**said(amount_nanos=-250_000_001))).reason == "balance"
    assert ledger.one(Adjust(**said(amount_nanos=-250_000_000))).balance_nanos == 750_000_000


def test_fees_and_payouts_are_the_houses_own(ledger: Any) -> None:
    house = {"customer_id": "_house", "reference": "txn_1", "occurred_on": date(2026, 11, 22)}
    fee = Post(
        **said(debit_account="stripe_fees", credit_account="stripe_clearing", amount_nanos=59, **house)
    )
    assert ledger.one(fee).seq == 1
    assert ledger.one(fee).replayed
    assert balances(ledger) == {"stripe_fees": 59, "stripe_clearing": -59}
    assert ledger.one(Show(customer_id="acme")).reason == "unknown_customer"


def seal_and_sign(ledger: Any) -> int:
    """Do what the sealer does, as far as closing a month looks at it; return the log's size."""
    while ledger.admin.execute("SELECT count(*) FROM ledger.seal(1000)").fetchone() != (0,):
        pass
    size: int = ledger.value("SELECT count(*) FROM ledger.sealed")
    ledger.admin.execute("SELECT ledger.add_checkpoint(%s, sha256('root'), 'note')", [size])
    return size


def close(ledger: Any, month: date) -> Any:
    return ledger.runtime.execute("SELECT (ledger.close_month(%s)).tree_size", [month]).fetchone()[0]


def test_a_month_closes_once_it_is_over_sealed_and_signed(ledger: Any, build: Any) -> None:
    ledger.set_clock("timestamptz '2026-11-23 12:00Z'")
    ledger.customer("acme", cap_tokens=100_000)
    use(ledger, build, 100)
    with pytest.raises(psycopg.DatabaseError, match="has not ended"):
        close(ledger, NOVEMBER)
    ledger.set_clock("timestamptz '2026-12-01 00:01Z'")
    with pytest.raises(psycopg.DatabaseError, match="not sealed yet"):
        close(ledger, NOVEMBER)
    size = seal_and_sign(ledger)
    assert close(ledger, NOVEMBER) == close(ledger, NOVEMBER) == size == 2
    ledger.set_clock("timestamptz '2027-01-02 00:00Z'")
    use(ledger, build, 1)
    ledger.set_clock("timestamptz '2027-03-02 00:00Z'")
    with pytest.raises(psycopg.DatabaseError, match="2027-01, has to be closed first"):
        close(ledger, date(2027, 2, 1))


def test_a_chain_stays_in_order_of_time_when_the_clock_steps_back(ledger: Any, build: Any) -> None:
    ledger.set_clock("timestamptz '2026-12-01 00:00:01Z'")
    ledger.customer("acme", cap_tokens=100_000)
    ledger.set_clock("timestamptz '2026-11-30 23:59Z'")
    use(ledger, build, 100)
    ledger.one(Adjust(**said(amount_nanos=1)))
    times = ledger.admin.execute("SELECT DISTINCT recorded_at FROM ledger.entry").fetchall()
    assert times == [(datetime(2026, 12, 1, 0, 0, 1, tzinfo=UTC),)]


def test_an_open_month_opens_where_the_open_months_before_it_end(ledger: Any, build: Any) -> None:
    ledger.set_clock("timestamptz '2026-11-23 12:00Z'")
    ledger.customer("acme", cap_tokens=100_000)
    ledger.set_clock("timestamptz '2026-12-23 12:00Z'")
    ledger.one(build.grant("acme", 1))
    query = "SELECT * FROM ledger.month_balances(%s) WHERE customer_id = 'acme'"
    gift = 50 * 10**9
    for month, opening, closing in (
        (NOVEMBER, 0, gift),
        (DECEMBER, gift, gift + 1),
        (JANUARY, gift + 1, gift + 1),
    ):
        rows = ledger.runtime.execute(query, [month]).fetchall()
        assert rows == [("acme", opening, opening, closing, closing)]


def test_nothing_is_recorded_in_a_closed_month_whatever_the_clock_says(ledger: Any, build: Any) -> None:
    ledger.set_clock("timestamptz '2026-11-23 12:00Z'")
    ledger.customer("acme", cap_tokens=100_000)
    ledger.set_clock("timestamptz '2026-12-01 00:02Z'")
    seal_and_sign(ledger)
    close(ledger, NOVEMBER)
    ledger.set_clock("timestamptz '2026-11-30 23:59Z'")  # the clock stepped back
    use(ledger, build, 100)
    ledger.customer("zeta")
    assert ledger.value("SELECT count(*) FROM ledger.entry WHERE recorded_at < '2026-12-01Z'") == 1
    times = ledger.admin.execute(
        "SELECT DISTINCT recorded_at FROM ledger.entry WHERE recorded_at >= '2026-12-01Z'"
    )
    assert times.fetchall() == [(datetime(2026, 12, 1, tzinfo=UTC),)]


def test_what_is_late_for_a_closed_month_belongs_to_the_open_one(ledger: Any, build: Any) -> None:
    ledger.set_clock("timestamptz '2026-11-23 12:00Z'")
    ledger.customer("acme", cap_tokens=100_000)
    ledger.set_clock("timestamptz '2026-12-01 00:02Z'")
    seal_and_sign(ledger)
    close(ledger, NOVEMBER)

    def totals(month: date) -> list[Any]:
        query = "SELECT day, kind, entries, amount_nanos FROM ledger.month_totals(%s)"
        return ledger.runtime.execute(query, [month]).fetchall()  # type: ignore[no-any-return]

    def moved(month: date) -> list[Any]:
        query = (
            "SELECT opening_nanos, closing_nanos FROM ledger.month_balances(%s) WHERE customer_id = 'acme'"
        )
        return ledger.runtime.execute(query, [month]).fetchall()  # type: ignore[no-any-return]

    end = datetime(2026, 12, 1, tzinfo=UTC)
    before = totals(NOVEMBER), moved(NOVEMBER), balances(ledger, end)
    ledger.set_clock("timestamptz '2026-11-30 23:59Z'")
    # As if it had begun before the closing.
    ledger.admin.execute("UPDATE ledger.account SET recorded_at = 'epoch'")
    use(ledger, build, 100)
    seal_and_sign(ledger)
    assert (totals(NOVEMBER), moved(NOVEMBER), balances(ledger, end)) == before
    assert totals(DECEMBER) == [(date(2026, 11, 30), "usage", 1, 75_000_000)]
    assert moved(DECEMBER) == [(50 * 10**9, 50 * 10**9 - 75_000_000)]
    assert balances(ledger)["customer_credits"] == -(50 * 10**9 - 75_000_000)


async def test_the_books_are_told_over_http(
    ledger_url: str, billing: LedgerClient, database: Any, build: Any, gateway_token: str
) -> None:
    await billing.apply(build.open("acme", 1_000))
    granted = await billing.apply(build.grant("acme", build.dollar))
    [row] = [row for row in await billing.trial_balance(ALWAYS) if row.account == "customer_credits"]
    assert (row.debit_nanos, row.credit_nanos) == (0, build.dollar)
    month = datetime.now(UTC).date().replace(day=1)
    assert [total.kind for total in (await billing.month_totals(month)).rows] == ["grant"]
    assert [line.entry_id for line in await billing.month_lines(month)] == [granted.entry_id]
    exported = b"".join(
        [lines async for lines in billing.export("acme", datetime(2026, 1, 1, tzinfo=UTC), ALWAYS)]
    )
    [document] = map(orjson.loads, exported.splitlines())
    assert EntryView.model_validate(document) == (await billing.entries("acme")).data[0]
    assert chain.document_hash(document, bytes.fromhex(document["prev_hash"])).hex() == document["hash"]
    assert (await billing.as_of("acme", datetime(2026, 1, 1, tzinfo=UTC))).seq == 0
    assert (await billing.as_of("acme", ALWAYS)).bonus_nanos == build.dollar
    assert [balance.closing_nanos for balance in await billing.month_balances(month)] == [build.dollar]
    with pytest.raises(ApiError, match="cannot be closed") as refused:
        await billing.close_month(month)
    assert refused.value.answer_status == 409
    assert await billing.closed_months() == []
    gateway = LedgerClient(ledger_url, gateway_token)
    with pytest.raises(ApiError) as forbidden:
        await gateway.trial_balance(ALWAYS)
    assert forbidden.value.answer_status == 403
    await gateway.close()
