"""A payment: its PaymentIntent and its charges, from the attempt to the money, or to the refusal.

A card succeeds or fails at once; a bank debit is `processing` first. As with Stripe's asynchronous capture, the balance
transaction of a card's charge is known only after `charge.succeeded`: `charge.updated` brings it.
"""

from typing import Any

from darktree_stripe_simulator import balance, disputes
from darktree_stripe_simulator.account import Account, Object, new_id
from darktree_stripe_simulator.errors import Refusal, doc_url
from darktree_stripe_simulator.methods import CARD, NUMBERS, SEPA_DEBIT, Failure, Method

EXPIRY_MONTH, EXPIRY_YEAR = 12, 2034


def make_intent(account: Account, amount: int, currency: str, kinds: list[str], **fields: Any) -> Object:
    """Make a PaymentIntent as Checkout does when the payer confirms. `fields` are its texts and metadata."""
    intent = account.add(
        "pi",
        "payment_intent",
        {
            "amount": amount,
            "amount_capturable": 0,
            "amount_details": {"tip": {}},
            "amount_received": 0,
            "application": None,
            "application_fee_amount": None,
            "automatic_payment_methods": None,
            "canceled_at": None,
            "cancellation_reason": None,
            "capture_method": "automatic_async",
            "client_secret": new_id("pi_secret"),
            "confirmation_method": "automatic",
            "currency": currency,
            "customer": None,
            "description": None,
            "last_payment_error": None,
            "latest_charge": None,
            "livemode": False,
            "metadata": {},
            "next_action": None,
            "on_behalf_of": None,
            "payment_method": None,
            "payment_method_configuration_details": None,
            "payment_method_options": {},
            "payment_method_types": kinds,
            "processing": None,
            "receipt_email": None,
            "review": None,
            "setup_future_usage": None,
            "shipping": None,
            "source": None,
            "statement_descriptor": None,
            "statement_descriptor_suffix": None,
            "status": "requires_payment_method",
            "transfer_data": None,
            "transfer_group": None,
            **fields,
        },
    )
    account.emit("payment_intent.created", intent)
    return intent


def attempt(account: Account, intent: Object, method: Method, payer: Object, receipts: str) -> Object:
    """Try to pay, and return the charge: succeeded, failed, or pending. `receipts` is where its receipt is."""
    charge = _make_charge(account, intent, method, payer, receipts)
    account.change(intent, latest_charge=charge["id"], payment_method=charge["payment_method"])
    if method.is_delayed:
        account.change(intent, status="processing")
        account.emit("payment_intent.processing", intent)
        account.emit("charge.pending", charge)
    elif method.failure is not None:
        fail(account, intent, method.failure)
    else:
        succeed(account, intent)
    return charge


def succeed(account: Account, intent: Object) -> None:
    """The money arrives: the charge succeeds, and the balance grows by it less the fee."""
    charge = account.objects[intent["latest_charge"]]
    method: Method = _method_of(account, charge)
    account.change(charge, status="succeeded", paid=True, captured=True, amount_captured=charge["amount"])
    charge["outcome"] = _outcome(None)
    account.emit("charge.succeeded", charge)
    account.change(
        intent, status="succeeded", amount_received=intent["amount"], last_payment_error=None, processing=None
    )
    account.emit("payment_intent.succeeded", intent)
    transaction = balance.record(
        account,
        "payment" if method.is_delayed else "charge",
        charge["amount"],
        charge["id"],
        currency=charge["currency"],
        fee=balance.charge_fee_cents(charge["amount"], method.kind),
        description=charge["description"],
        wait=not method.available,
    )
    previous = account.change(charge, balance_transaction=transaction["id"])
    account.private[charge["id"]]["updated"] = previous


def after_success(account: Account, intent: Object) -> None:
    """What follows a success, after the session was told: the charge's update, and the dispute that its card brings."""
    charge = account.objects[intent["latest_charge"]]
    previous = account.private[charge["id"]].pop("updated", None)
    if previous:
        account.emit("charge.updated", charge, previous)
    method: Method = _method_of(account, charge)
    if method.dispute is not None and not charge["disputed"]:
        disputes.open_dispute(account, charge, reason=method.dispute, inquiry=method.inquiry)


def fail(account: Account, intent: Object, failure: Failure) -> None:
    """The payment is refused: the charge fails, and the intent waits for another way to pay."""
    charge = account.objects[intent["latest_charge"]]
    account.change(
        charge,
        status="failed",
        paid=False,
        failure_code=failure.decline_code if charge["id"].startswith("py_") else failure.code,
        failure_message=failure.message,
        outcome=_outcome(failure),
    )
    account.emit("charge.failed", charge)
    error: Object = {
        "charge": charge["id"],
        "code": failure.code,
        "doc_url": doc_url(failure.code),
        "message": failure.message,
        "type": "card_error" if charge["id"].startswith("ch_") else "invalid_request_error",
    }
    if failure.decline_code is not None:
        error["decline_code"] = failure.decline_code
    account.change(
        intent,
        status="requires_payment_method",
        last_payment_error=error,
        payment_method=None,
        processing=None,
    )
    account.emit("payment_intent.payment_failed", intent)


def cancel_intent(account: Account, intent: Object, reason: str | None = None) -> Object:
    """Raises Refusal when it has succeeded or is processing."""
    if intent["status"] in {"succeeded", "processing", "canceled"}:
        raise Refusal(
            f"You cannot cancel this PaymentIntent because it has a status of {intent['status']}.",
            code="payment_intent_unexpected_state",
        )
    account.change(intent, status="canceled", canceled_at=account.now(), cancellation_reason=reason)
    account.emit("payment_intent.canceled", intent)
    return intent


def intent_of(account: Account, charge: Object) -> Object:
    return account.objects[charge["payment_intent"]]


def _method_of(account: Account, charge: Object) -> Method:
    return NUMBERS[account.private[charge["id"]]["number"]]


def _make_charge(account: Account, intent: Object, method: Method, payer: Object, receipts: str) -> Object:
    kind = method.kind
    charge = account.add(
        "py" if method.is_delayed else "ch",
        "charge",
        {
            "amount": intent["amount"],
            "amount_captured": 0,
            "amount_refunded": 0,
            "application": None,
            "application_fee": None,
            "application_fee_amount": None,
            "balance_transaction": None,
            "billing_details": {
                "address": _address(),
                "email": payer.get("email"),
                "name": payer.get("name"),
                "phone": None,
                "tax_id": None,
            },
            "calculated_statement_descriptor": "STAND-IN",
            "captured": method.is_delayed,
            "currency": intent["currency"],
            "customer": intent["customer"],
            "description": intent["description"],
            "disputed": False,
            "failure_balance_transaction": None,
            "failure_code": None,
            "failure_message": None,
            "fraud_details": {},
            "livemode": False,
            "metadata": dict(intent["metadata"]),
            "on_behalf_of": None,
            "outcome": None,
            "paid": False,
            "payment_intent": intent["id"],
            "payment_method": new_id("pm"),
            "payment_method_details": {"type": kind, kind: _details(method)},
            "radar_options": {},
            "receipt_email": intent["receipt_email"],
            "receipt_number": None,
            "receipt_url": None,
            "refunded": False,
            "review": None,
            "shipping": None,
            "source": None,
            "source_transfer": None,
            "statement_descriptor": intent["statement_descriptor"],
            "statement_descriptor_suffix": intent["statement_descriptor_suffix"],
            "status": "pending",
            "transfer_data": None,
            "transfer_group": None,
        },
        number=method.number,
    )
    charge["receipt_url"] = f"{receipts}/{charge['id']}"
    return charge


def _details(method: Method) -> Object:
    if method.kind == CARD:
        return {
            "amount_authorized": None,
            "brand": method.brand,
            "checks": {
                "address_line1_check": None,
                "address_postal_code_check": None,
                "cvc_check": "pass",
            },
            "country": "US",
            "exp_month": EXPIRY_MONTH,
            "exp_year": EXPIRY_YEAR,
            "fingerprint": None,
            "funding": "credit",
            "installments": None,
            "last4": method.last4,
            "mandate": None,
            "network": method.brand,
            "network_token": {"used": False},
            "network_transaction_id": None,
            "three_d_secure": None,
            "wallet": None,
        }
    if method.kind == SEPA_DEBIT:
        return {
            "bank_code": method.number[4:9],
            "branch_code": "",
            "country": method.number[:2],
            "expected_debit_date": None,
            "fingerprint": None,
            "last4": method.last4,
            "mandate": None,
        }
    return {
        "account_holder_type": "individual",
        "account_type": "checking",
        "bank_name": "STRIPE TEST BANK",
        "expected_debit_date": None,
        "fingerprint": None,
        "last4": method.last4,
        "mandate": None,
        "payment_reference": None,
        "routing_number": "110000000",
    }


def _outcome(failure: Failure | None) -> Object:
    return {
        "advice_code": None if failure is None else "try_again_later",
        "network_advice_code": None,
        "network_decline_code": None,
        "network_status": "approved_by_network" if failure is None else "declined_by_network",
        "reason": None if failure is None else failure.decline_code,
        "risk_level": "normal",
        "seller_message": "Payment complete." if failure is None else "The bank refused the payment.",
        "type": "authorized" if failure is None else "issuer_declined",
    }


def _address() -> Object:
    return dict.fromkeys(("city", "country", "line1", "line2", "postal_code", "state"))
