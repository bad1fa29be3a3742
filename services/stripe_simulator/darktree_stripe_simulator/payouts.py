"""Payouts to the bank: automatic ones say which balance transactions they pay out, manual ones do not."""

from typing import Any

from darktree_stripe_simulator import balance
from darktree_stripe_simulator.account import Account, Object, new_id
from darktree_stripe_simulator.errors import Refusal
from darktree_stripe_simulator.parameters import CreatePayout

ARRIVAL_SECONDS = 2 * 86_400


def make_automatic(account: Account, *, everything: bool = True) -> Object:
    """Pay out all that no payout has paid out; with `everything` also what is pending. Raises Refusal."""
    items = [
        item
        for item in account.all("balance_transaction")
        if account.private[item["id"]]["payout"] is None
        and item["type"] not in {"payout", "payout_failure"}
        and (everything or item["status"] == "available")
    ]
    amount = sum(item["net"] for item in items)
    if amount <= 0:
        raise Refusal(f"There are {amount} cents to pay out.", code="balance_insufficient")
    for item in items:
        item["status"] = "available"
    payout = _make(account, amount, automatic=True)
    for item in items:
        account.private[item["id"]]["payout"] = payout["id"]
    return payout


def create(account: Account, given: CreatePayout) -> Object:
    """A manual payout (`POST /v1/payouts`), which Stripe cannot itemise. Raises Refusal."""
    available = balance.balance(account)["available"][0]["amount"]
    if given.amount > available:
        raise Refusal(
            "You have insufficient funds in your Stripe account for this transfer.",
            code="balance_insufficient",
            param="amount",
        )
    return _make(
        account, given.amount, automatic=False, description=given.description, metadata=dict(given.metadata)
    )


def arrive(account: Account, payout: Object) -> Object:
    """The bank has it, and Stripe has said which transactions it pays out. Raises Refusal."""
    if payout["status"] not in {"pending", "in_transit"}:
        raise Refusal(f"This payout has a status of {payout['status']}.")
    previous = account.change(payout, status="paid")
    account.emit("payout.updated", payout, previous)
    account.emit("payout.paid", payout)
    if payout["automatic"]:
        account.change(payout, reconciliation_status="completed")
        account.emit("payout.reconciliation_completed", payout)
    return payout


def fail(account: Account, payout: Object) -> Object:
    """The bank sends it back; what it paid out waits for another payout. Raises Refusal when it has failed before."""
    if payout["status"] == "failed":
        raise Refusal(f"This payout has a status of {payout['status']}.")
    transaction = balance.record(
        account,
        "payout_failure",
        payout["amount"],
        payout["id"],
        description="STRIPE PAYOUT FAILURE",
        payout=payout["id"],
    )
    previous = account.change(
        payout,
        status="failed",
        failure_code="account_closed",
        failure_message="The bank account has been closed",
        failure_balance_transaction=transaction["id"],
    )
    account.emit("payout.updated", payout, previous)
    account.emit("payout.failed", payout)
    for item in account.all("balance_transaction"):
        private = account.private[item["id"]]
        if private["payout"] == payout["id"] and not item["type"].startswith("payout"):
            private["payout"] = None
    return payout


def _make(account: Account, amount: int, *, automatic: bool, **fields: Any) -> Object:
    payout = account.add(
        "po",
        "payout",
        {
            "amount": amount,
            "application_fee": None,
            "application_fee_amount": None,
            "arrival_date": account.now() + ARRIVAL_SECONDS,
            "automatic": automatic,
            "balance_transaction": None,
            "currency": "usd",
            "description": "STRIPE PAYOUT",
            "destination": new_id("ba"),
            "failure_balance_transaction": None,
            "failure_code": None,
            "failure_message": None,
            "livemode": False,
            "metadata": {},
            "method": "standard",
            "original_payout": None,
            "payout_method": None,
            "reconciliation_status": "in_progress" if automatic else "not_applicable",
            "reversed_by": None,
            "source_type": "card",
            "statement_descriptor": None,
            "status": "in_transit",
            "trace_id": None,
            "type": "bank_account",
            **fields,
        },
    )
    transaction = balance.record(
        account,
        "payout",
        -amount,
        payout["id"],
        description="STRIPE PAYOUT",
        payout=payout["id"] if automatic else None,
    )
    account.change(payout, balance_transaction=transaction["id"])
    account.emit("payout.created", payout)
    return payout
