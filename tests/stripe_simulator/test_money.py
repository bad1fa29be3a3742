"""Refunds, disputes and payouts: what each does to the balance, and in which order it is told."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stripe import Charge, InvalidRequestError, StripeClient

from darktree_stripe_simulator import balance, disputes, payouts, refunds, sessions
from darktree_stripe_simulator.account import Account, Object
from darktree_stripe_simulator.client import StripeStandIn
from darktree_stripe_simulator.errors import Refusal
from darktree_stripe_simulator.methods import method
from darktree_stripe_simulator.parameters import CreateRefund, CreateSession
from darktree_stripe_simulator.settings import Settings
from darktree_stripe_simulator.values import parse


@pytest.fixture
def charge(stripe: StripeStandIn, api: StripeClient, make_session: Callable[..., str]) -> Charge:
    """A charge of $50."""
    stripe.pay(make_session())
    return api.v1.charges.list().data[0]


def told(stripe: StripeStandIn, prefix: str) -> list[tuple[str, Any]]:
    return [(event.type, event.object) for event in stripe.events() if event.type.startswith(prefix)]


def test_a_charge_is_refunded_in_parts_and_never_more_than_it_was(
    stripe: StripeStandIn, api: StripeClient, charge: Charge
) -> None:
    first = api.v1.refunds.create({"charge": charge.id, "amount": 2000, "metadata": {"why": "half"}})
    assert (first.status, first.amount) == ("succeeded", 2000)
    with pytest.raises(InvalidRequestError, match=r"\$40\.00\) is greater than unrefunded amount.*\$30\.00"):
        api.v1.refunds.create({"charge": charge.id, "amount": 4000})
    api.v1.refunds.create({"payment_intent": str(charge.payment_intent)})
    after = api.v1.charges.retrieve(charge.id)
    assert (after.amount_refunded, after.refunded, after.amount) == (5000, True, 5000)
    with pytest.raises(InvalidRequestError) as refused:
        api.v1.refunds.create({"charge": charge.id})
    assert refused.value.code == "charge_already_refunded"
    assert [about["amount_refunded"] for type, about in told(stripe, "charge.refunded")] == [2000, 5000]
    assert [about["amount"] for type, about in told(stripe, "refund.created")] == [2000, 3000]
    transaction = api.v1.balance_transactions.retrieve(str(first.balance_transaction))
    assert (transaction.amount, transaction.fee, transaction.type) == (-2000, 0, "refund")
    assert "refunds" not in dict(told(stripe, "charge.refunded"))["charge.refunded"]


def test_a_refund_that_fails_later_brings_the_money_back(
    stripe: StripeStandIn, api: StripeClient, charge: Charge
) -> None:
    refund = api.v1.refunds.create({"charge": charge.id, "amount": 2000})
    stripe.settle_refund(refund.id, "failed")
    after = api.v1.refunds.retrieve(refund.id)
    assert (after.status, after.failure_reason) == ("failed", "expired_or_canceled_card")
    assert api.v1.charges.retrieve(charge.id).amount_refunded == 0
    types = [item.type for item in api.v1.balance_transactions.list().data]
    assert types == ["refund_failure", "refund", "charge"]
    assert [event.type for event in stripe.events()][-3:] == [
        "refund.failed",
        "refund.updated",
        "charge.refund.updated",
    ]


def test_the_refund_of_a_debit_is_pending_first(
    stripe: StripeStandIn, api: StripeClient, make_session: Callable[..., str]
) -> None:
    intent = stripe.pay(make_session(), method="us_bank_account")["payment_intent"]
    with pytest.raises(InvalidRequestError, match="successful charge"):
        api.v1.refunds.create({"payment_intent": intent})
    stripe.settle(intent)
    refund = api.v1.refunds.create({"payment_intent": intent})
    assert (refund.id[:4], refund.status) == ("pyr_", "pending")
    assert stripe.settle_refund(refund.id)["status"] == "succeeded"


def test_an_inquiry_moves_no_money_until_it_becomes_a_chargeback(
    stripe: StripeStandIn, api: StripeClient, charge: Charge
) -> None:
    inquiry = stripe.dispute(charge.id, inquiry=True)
    assert (inquiry["status"], inquiry["balance_transactions"]) == ("warning_needs_response", [])
    assert inquiry["is_charge_refundable"]
    assert len(api.v1.balance_transactions.list().data) == 1
    dispute = stripe.escalate(inquiry["id"])
    (taken,) = dispute["balance_transactions"]
    assert (taken["amount"], taken["fee"], taken["net"]) == (-5000, 1500, -6500)
    assert (taken["type"], taken["reporting_category"]) == ("adjustment", "dispute")
    assert [type for type, _ in told(stripe, "charge.dispute")] == [
        "charge.dispute.created",
        "charge.dispute.updated",
        "charge.dispute.funds_withdrawn",
    ]


def test_a_dispute_that_is_won_brings_the_amount_back_and_not_the_fee(
    stripe: StripeStandIn, api: StripeClient, charge: Charge
) -> None:
    dispute = stripe.dispute(charge.id, reason="product_not_received", amount=3000)
    assert api.v1.charges.retrieve(charge.id).disputed
    with pytest.raises(InvalidRequestError) as refused:
        api.v1.refunds.create({"charge": charge.id})
    assert refused.value.code == "charge_disputed"
    won = api.v1.disputes.update(dispute["id"], {"evidence": {"uncategorized_text": "winning_evidence"}})
    assert won.status == "won"
    assert [item.net for item in won.balance_transactions] == [-4500, 3000]
    assert won.balance_transactions[1].reporting_category == "dispute_reversal"
    assert [type for type, _ in told(stripe, "charge.dispute")] == [
        "charge.dispute.created",
        "charge.dispute.funds_withdrawn",
        "charge.dispute.updated",
        "charge.dispute.funds_reinstated",
        "charge.dispute.closed",
    ]


def test_a_dispute_that_is_given_up_is_lost(stripe: StripeStandIn, api: StripeClient, charge: Charge) -> None:
    dispute = stripe.dispute(charge.id)
    assert api.v1.disputes.close(dispute["id"]).status == "lost"
    assert [type for type, _ in told(stripe, "charge.dispute")][-1] == "charge.dispute.closed"
    with pytest.raises(InvalidRequestError, match="already closed"):
        api.v1.disputes.close(dispute["id"])


@pytest.mark.parametrize(
    ("number", "status"),
    [("4000000000000259", "needs_response"), ("4000000000001976", "warning_needs_response")],
)
def test_stripes_test_cards_are_disputed_after_they_have_paid(
    stripe: StripeStandIn, api: StripeClient, make_session: Callable[..., str], number: str, status: str
) -> None:
    stripe.pay(make_session(), number=number)
    assert [dispute.status for dispute in api.v1.disputes.list().data] == [status]


def test_an_automatic_payout_says_what_it_pays_out_and_a_manual_one_does_not(
    stripe: StripeStandIn, api: StripeClient, charge: Charge
) -> None:
    api.v1.refunds.create({"charge": charge.id, "amount": 1000})
    payout = stripe.payout(arrive=False)
    assert (payout["amount"], payout["status"], payout["reconciliation_status"]) == (
        3825,
        "in_transit",
        "in_progress",
    )
    stripe.arrive(payout["id"])
    items = api.v1.balance_transactions.list({"payout": payout["id"]}).data
    assert sorted(item.type for item in items) == ["charge", "payout", "refund"]
    assert sum(item.net for item in items) == 0
    assert [type for type, _ in told(stripe, "payout")] == [
        "payout.created",
        "payout.updated",
        "payout.paid",
        "payout.reconciliation_completed",
    ]
    assert api.v1.balance.retrieve().available[0].amount == 0
    with pytest.raises(InvalidRequestError, match="insufficient funds"):
        api.v1.payouts.create({"amount": 100, "currency": "usd"})


def test_a_manual_payout_cannot_be_itemised(
    stripe: StripeStandIn, api: StripeClient, make_session: Callable[..., str]
) -> None:
    stripe.pay(make_session(), number="4000000000000077")
    assert api.v1.balance.retrieve().available[0].amount == 4825
    manual = api.v1.payouts.create({"amount": 4000, "currency": "usd"})
    assert (manual.automatic, manual.reconciliation_status) == (False, "not_applicable")
    with pytest.raises(InvalidRequestError, match="only be filtered on automatic"):
        api.v1.balance_transactions.list({"payout": manual.id})


def test_what_is_pending_becomes_available_in_time(
    stripe: StripeStandIn, api: StripeClient, charge: Charge
) -> None:
    before = api.v1.balance.retrieve()
    assert (before.available[0].amount, before.pending[0].amount) == (0, 4825)
    stripe.advance(2 * 86_400)
    after = api.v1.balance.retrieve()
    assert (after.available[0].amount, after.pending[0].amount) == (4825, 0)


def test_a_payout_that_fails_comes_back_and_is_paid_out_again(
    stripe: StripeStandIn, api: StripeClient, charge: Charge
) -> None:
    failed = stripe.fail_payout(stripe.payout(arrive=False)["id"])
    assert (failed["status"], failed["failure_code"]) == ("failed", "account_closed")
    again = stripe.payout()
    assert again["amount"] == 4825
    assert {item.type for item in api.v1.balance_transactions.list({"payout": again["id"]}).data} == {
        "charge",
        "payout",
    }


STEPS = st.lists(
    st.tuples(st.sampled_from(["pay", "debit", "refund", "refund fails", "dispute", "won", "lost", "payout"]),
              st.integers(0, 5), st.integers(1, 6_000)),
    max_size=25,
)  # fmt: skip


def new_account() -> Account:
    return Account(Settings(settle_seconds=None), clock=lambda: 1_800_000_000.0)


def buy(account: Account, cents: int, kind: str) -> None:
    price = {"currency": "usd", "unit_amount": str(max(cents, 50)), "product_data": {"name": "x"}}
    form = {
        "mode": "payment",
        "success_url": "https://a.example/",
        "line_items": [{"quantity": "1", "price_data": price}],
    }
    session = sessions.create(account, parse(CreateSession, form), "http://stand-in")
    sessions.pay(account, session, method(kind), {"email": "a@example.com"})
    intent = account.objects[session["payment_intent"]]
    if intent["status"] == "processing":
        sessions.settle(account, intent, None)


def take(account: Account, step: str, which: int, cents: int) -> None:
    """Take one step; one that cannot be taken now is refused and changes nothing."""
    chosen: dict[str, list[Object]] = {
        kind: list(account.all(kind)) for kind in ("charge", "refund", "dispute")
    }

    def one(kind: str) -> Object:
        if not chosen[kind]:
            raise Refusal("there is none")
        return chosen[kind][which % len(chosen[kind])]

    if step in {"pay", "debit"}:
        buy(account, cents, "card" if step == "pay" else "us_bank_account")
    elif step == "refund":
        refunds.create(account, CreateRefund(charge=one("charge")["id"], amount=cents))
    elif step == "refund fails":
        refunds.settle(account, one("refund"), "failed")
    elif step == "dispute":
        disputes.open_dispute(account, one("charge"), amount=cents)
    elif step in {"won", "lost"}:
        disputes.close(account, one("dispute"), step)
    else:
        payouts.arrive(account, payouts.make_automatic(account))


@given(STEPS)
@settings(max_examples=60, deadline=None)
def test_the_balance_is_always_the_sum_of_its_transactions_and_a_payout_of_its_items(
    steps: list[tuple[str, int, int]],
) -> None:
    account = new_account()
    for step, which, cents in steps:
        try:
            take(account, step, which, cents)
        except Refusal:
            continue
    transactions = list(account.all("balance_transaction"))
    told = balance.balance(account)
    assert told["available"][0]["amount"] + told["pending"][0]["amount"] == sum(
        t["net"] for t in transactions
    )
    assert all(t["net"] == t["amount"] - t["fee"] for t in transactions)
    for payout in account.all("payout"):
        items = [t for t in transactions if account.private[t["id"]]["payout"] == payout["id"]]
        assert sum(item["net"] for item in items) == 0
    for charge in account.all("charge"):
        back = [
            r["amount"]
            for r in account.all("refund")
            if r["charge"] == charge["id"] and r["status"] != "failed"
        ]
        assert charge["amount_refunded"] == sum(back) <= charge["amount"]
        assert charge["refunded"] == (charge["amount_refunded"] == charge["amount"])
