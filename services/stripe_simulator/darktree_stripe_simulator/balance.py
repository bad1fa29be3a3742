"""What moves the account's balance: every amount, its fee, and when it is available."""

from typing import Any

from darktree_stripe_simulator.account import Account, Object
from darktree_stripe_simulator.methods import CARD

CARD_FEE_BASIS_POINTS = 290
CARD_FEE_CENTS = 30
DEBIT_FEE_BASIS_POINTS = 80
MAX_DEBIT_FEE_CENTS = 500
DISPUTE_FEE_CENTS = 1_500
# Every type that is made here, and how reports call it.
REPORTING_CATEGORIES = {
    "charge": "charge",
    "payment": "charge",
    "refund": "refund",
    "payment_refund": "refund",
    "refund_failure": "refund_failure",
    "payout": "payout",
    "payout_failure": "payout_reversal",
}


def charge_fee_cents(amount: int, kind: str) -> int:
    """Return what Stripe keeps of a payment: 2.9% and 30 cents of a card's, 0.8% up to $5 of a debit."""
    if kind == CARD:
        return _share(amount, CARD_FEE_BASIS_POINTS) + CARD_FEE_CENTS
    return min(_share(amount, DEBIT_FEE_BASIS_POINTS), MAX_DEBIT_FEE_CENTS)


def record(
    account: Account,
    type: str,
    amount: int,
    source: str,
    *,
    currency: str = "usd",
    fee: int = 0,
    fee_for: str = "Stripe processing fees",
    description: str | None = None,
    category: str | None = None,
    wait: bool = False,
    **private: Any,
) -> Object:
    """Make a balance transaction; with `wait` it is pending for the account's days, else available."""
    now = account.now()
    available_on = now + account.settings.available_after_seconds if wait else now
    details = {
        "amount": fee,
        "application": None,
        "currency": currency,
        "description": fee_for,
        "type": "stripe_fee",
    }
    made = account.add(
        "txn",
        "balance_transaction",
        {
            "amount": amount,
            "available_on": available_on,
            "balance_type": "payments",
            "currency": currency,
            "description": description,
            "exchange_rate": None,
            "fee": fee,
            "fee_details": [details] if fee else [],
            "net": amount - fee,
            "reporting_category": category or REPORTING_CATEGORIES[type],
            "source": source,
            "status": "available" if available_on <= now else "pending",
            "type": type,
        },
        **{"payout": None, **private},
    )
    if made["status"] == "pending":
        account.schedule(available_on - account.instant(), "mature", made["id"])
    return made


def balance(account: Account) -> Object:
    """Return the `balance` object: what is available and what is pending."""
    sums = {"available": 0, "pending": 0}
    for transaction in account.all("balance_transaction"):
        sums[transaction["status"]] += transaction["net"]

    def entry(amount: int) -> list[Object]:
        return [{"amount": amount, "currency": "usd", "source_types": {"card": amount}}]

    return {
        "object": "balance",
        "available": entry(sums["available"]),
        "livemode": False,
        "pending": entry(sums["pending"]),
        "refund_and_dispute_prefunding": {"available": entry(0), "pending": entry(0)},
    }


def _share(amount: int, basis_points: int) -> int:
    return (amount * basis_points + 5_000) // 10_000
