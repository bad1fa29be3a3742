"""Refunds: whole or in parts, at once, later, or failing after they had succeeded."""

from darktree_stripe_simulator import balance
from darktree_stripe_simulator.account import Account, Object
from darktree_stripe_simulator.errors import Refusal, invalid_parameter
from darktree_stripe_simulator.methods import NUMBERS
from darktree_stripe_simulator.parameters import CreateRefund

FAILURE_REASON = "expired_or_canceled_card"


def create(account: Account, given: CreateRefund) -> Object:
    """Refund a charge, all that is left of it unless an amount is given. Raises Refusal."""
    charge = _charge(account, given)
    _check(charge, account)
    left = charge["amount"] - charge["amount_refunded"]
    amount = left if given.amount is None else given.amount
    if amount > left:
        raise Refusal(
            f"Refund amount ({_dollars(amount)}) is greater than unrefunded amount on charge ({_dollars(left)})",
            param="amount",
        )
    method = NUMBERS[account.private[charge["id"]]["number"]]
    later = method.is_delayed or method.refund == "pending"
    refund = account.add(
        "pyr" if method.is_delayed else "re",
        "refund",
        {
            "amount": amount,
            "balance_transaction": None,
            "charge": charge["id"],
            "currency": charge["currency"],
            "customer": charge["customer"],
            "destination_details": _destination(method.kind),
            "metadata": dict(given.metadata),
            "payment_intent": charge["payment_intent"],
            "reason": given.reason,
            "receipt_number": None,
            "source_transfer_reversal": None,
            "status": "pending" if later else "succeeded",
            "transfer_reversal": None,
        },
    )
    transaction = balance.record(
        account,
        "payment_refund" if method.is_delayed else "refund",
        -amount,
        refund["id"],
        currency=charge["currency"],
        description="REFUND FOR CHARGE" + (f" ({charge['description']})" if charge["description"] else ""),
    )
    account.change(refund, balance_transaction=transaction["id"])
    refunded = charge["amount_refunded"] + amount
    previous = account.change(charge, amount_refunded=refunded, refunded=refunded == charge["amount"])
    account.emit("refund.created", refund)
    account.emit("charge.refunded", charge, previous)
    if account.settings.settle_seconds is not None and (later or method.refund == "failing"):
        outcome = "failed" if method.refund == "failing" else "succeeded"
        account.schedule(account.settings.settle_seconds, "settle_refund", refund["id"], outcome=outcome)
    return refund


def settle(account: Account, refund: Object, outcome: str) -> Object:
    """End a refund: `succeeded`, or `failed`, which brings the money back to the balance. Raises Refusal."""
    if refund["status"] in {"failed", "canceled"} or refund["status"] == outcome:
        raise Refusal(f"This refund has a status of {refund['status']}.")
    if outcome == "succeeded":
        previous = account.change(refund, status="succeeded")
        _tell(account, refund, previous)
        return refund
    charge = account.objects[refund["charge"]]
    transaction = balance.record(
        account,
        "refund_failure",
        refund["amount"],
        refund["id"],
        currency=refund["currency"],
        description=f"REFUND FAILURE ({refund['id']})",
    )
    refund |= {"failure_balance_transaction": None, "failure_reason": None}
    previous = account.change(
        refund,
        status="failed",
        failure_reason=FAILURE_REASON,
        failure_balance_transaction=transaction["id"],
    )
    account.change(charge, amount_refunded=charge["amount_refunded"] - refund["amount"], refunded=False)
    account.emit("refund.failed", refund)
    _tell(account, refund, previous)
    return refund


def _tell(account: Account, refund: Object, previous: Object) -> None:
    account.emit("refund.updated", refund, previous)
    account.emit("charge.refund.updated", refund, previous)


def _charge(account: Account, given: CreateRefund) -> Object:
    if given.charge is not None:
        return account.find("charge", given.charge, "charge")
    if given.payment_intent is None:
        raise invalid_parameter(
            "One of the following params should be provided for this request: payment_intent or charge.",
            "charge",
            "parameter_missing",
        )
    intent = account.find("payment_intent", given.payment_intent, "payment_intent")
    if intent["status"] != "succeeded":
        raise Refusal(f"This PaymentIntent ({intent['id']}) does not have a successful charge to refund.")
    return account.objects[intent["latest_charge"]]


def _check(charge: Object, account: Account) -> None:
    if charge["status"] != "succeeded":
        raise Refusal(f"Charge {charge['id']} has not succeeded.", code="charge_not_refundable")
    if charge["refunded"]:
        raise Refusal(f"Charge {charge['id']} has already been refunded.", code="charge_already_refunded")
    disputed = [
        d for d in account.all("dispute") if d["charge"] == charge["id"] and not d["is_charge_refundable"]
    ]
    if any(dispute["status"] != "won" for dispute in disputed):
        raise Refusal(
            f"Charge {charge['id']} has been charged back; cannot issue a refund.", code="charge_disputed"
        )


def _destination(kind: str) -> Object:
    if kind == "card":
        return {
            "card": {
                "reference_status": "pending",
                "reference_type": "acquirer_reference_number",
                "type": "refund",
            },
            "type": "card",
        }
    return {"type": kind, "us_bank_transfer": {"reference": None, "reference_status": None}}


def _dollars(cents: int) -> str:
    return f"${cents // 100:,}.{cents % 100:02}"
