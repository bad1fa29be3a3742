"""Checkout Sessions: made with prices, paid on the hosted page, expired when nobody pays."""

from collections.abc import Sequence
from typing import Any

from darktree_stripe_simulator import catalog, payments
from darktree_stripe_simulator.account import Account, Object, new_id
from darktree_stripe_simulator.errors import Refusal, invalid_parameter, missing_parameter
from darktree_stripe_simulator.methods import CARD, SEPA_DEBIT, US_BANK_ACCOUNT, Failure, Method
from darktree_stripe_simulator.parameters import CreateSession, NewLineItem

MIN_SESSION_SECONDS = 30 * 60
MAX_SESSION_SECONDS = 24 * 3_600
MIN_TOTAL_CENTS = 50
ID_LENGTH = 58
DYNAMIC_METHODS = {"usd": [CARD, US_BANK_ACCOUNT], "eur": [CARD, SEPA_DEBIT]}
CANCELED = Failure("payment_intent_payment_attempt_failed", "generic_decline", "The debit was refused.")


def create(account: Account, given: CreateSession, base_url: str) -> Object:
    """Make an open session. Raises Refusal."""
    if not given.line_items:
        raise missing_parameter("line_items")
    if given.success_url is None:
        raise missing_parameter("success_url")
    if given.customer is not None:
        account.find("customer", given.customer, "customer")
    expires_at = _expiry(account, given)
    items = [_line_item(account, item, f"line_items[{place}]") for place, item in enumerate(given.line_items)]
    currencies = {item["currency"] for item in items}
    if len(currencies) > 1:
        raise invalid_parameter(
            "Checkout does not support multiple currencies at once. All `line_items` must have the same currency.",
            "line_items",
        )
    currency = currencies.pop()
    total = sum(item["amount_total"] for item in items)
    if total < MIN_TOTAL_CENTS:
        raise invalid_parameter(
            "The Checkout Session's total amount due must add up to at least $0.50 usd",
            "line_items",
            "amount_too_small",
        )
    session = account.add("cs_test", "checkout.session", _fields(given, currency, total, expires_at))
    _rename(account, session)
    session["url"] = f"{base_url}/pay/{session['id']}"
    account.private[session["id"]] = {
        "line_items": items,
        "payment_intent_data": given.payment_intent_data.model_dump(),
        "base_url": base_url,
    }
    account.schedule(expires_at - account.now(), "expire", session["id"])
    return session


def expire(account: Account, session: Object) -> Object:
    """Raises Refusal unless the session is open."""
    if session["status"] != "open":
        raise Refusal(
            'Only Checkout Sessions with a status in ["open"] can be expired. This Checkout Session has a status of '
            f"{session['status']}."
        )
    account.change(session, status="expired", url=None)
    intent = account.objects.get(session["payment_intent"] or "")
    if intent is not None and intent["status"] == "requires_payment_method":
        payments.cancel_intent(account, intent, "expired")
    account.emit("checkout.session.expired", session)
    return session


def pay(account: Account, session: Object, method: Method, payer: Object) -> Object:
    """Confirm a session as its page does, and return the charge. Raises Refusal.

    A session whose card is declined stays open; one paid by a delayed method is complete, and unpaid.
    """
    if session["status"] != "open":
        raise Refusal(f"This Checkout Session has a status of {session['status']}.", param="session")
    if method.kind not in session["payment_method_types"]:
        raise Refusal(f"This Checkout Session does not take {method.kind}.", param="method")
    private = account.private[session["id"]]
    _apply_tax(account, session, private["line_items"])
    intent = account.objects.get(session["payment_intent"] or "")
    if intent is None:
        texts = private["payment_intent_data"]
        intent = payments.make_intent(
            account,
            session["amount_total"],
            session["currency"],
            session["payment_method_types"],
            customer=session["customer"],
            **texts,
        )
        account.change(session, payment_intent=intent["id"])
    charge = payments.attempt(account, intent, method, payer, f"{private['base_url']}/receipts")
    if charge["status"] == "failed":
        return charge
    _complete(account, session, intent, payer)
    if charge["status"] == "pending":
        if account.settings.settle_seconds is not None:
            account.schedule(account.settings.settle_seconds, "settle", intent["id"])
    else:
        payments.after_success(account, intent)
    return charge


def settle(account: Account, intent: Object, failure: Failure | None) -> None:
    """End a delayed payment, well or not. Raises Refusal when it is not processing."""
    if intent["status"] != "processing":
        raise Refusal(f"This PaymentIntent has a status of {intent['status']}, not processing.")
    session = next(s for s in account.all("checkout.session") if s["payment_intent"] == intent["id"])
    if failure is not None:
        payments.fail(account, intent, failure)
        account.emit("checkout.session.async_payment_failed", session)
        return
    payments.succeed(account, intent)
    account.change(session, payment_status="paid")
    account.emit("checkout.session.async_payment_succeeded", session)
    payments.after_success(account, intent)


def line_items(account: Account, session: Object) -> Sequence[Object]:
    items: Sequence[Object] = account.private[session["id"]]["line_items"]
    return items


def _complete(account: Account, session: Object, intent: Object, payer: Object) -> None:
    if session["customer_creation"] == "always" and session["customer"] is None:
        customer = catalog.make_customer(account, email=payer.get("email"), name=payer.get("name"))
        account.change(session, customer=customer["id"])
        account.change(intent, customer=customer["id"])
        account.change(account.objects[intent["latest_charge"]], customer=customer["id"])
    details = {
        "address": {
            "city": None,
            "country": "US",
            "line1": None,
            "line2": None,
            "postal_code": "94103",
            "state": None,
        },
        "business_name": None,
        "email": payer.get("email") or session["customer_email"],
        "individual_name": None,
        "name": payer.get("name"),
        "phone": None,
        "tax_exempt": "none",
        "tax_ids": [],
    }
    paid = intent["status"] == "succeeded"
    account.change(
        session,
        status="complete",
        payment_status="paid" if paid else "unpaid",
        customer_details=details,
        url=None,
    )
    account.emit("checkout.session.completed", session)


def _apply_tax(account: Account, session: Object, items: list[Object]) -> None:
    """Compute automatic tax, which needs the payer's address: until then the session's total is without it."""
    if not session["automatic_tax"]["enabled"] or session["automatic_tax"]["status"] == "complete":
        return
    rate = account.settings.tax_basis_points
    for item in items:
        price = item["price"]
        inclusive = price["tax_behavior"] == "inclusive"
        base = 10_000 + rate if inclusive else 10_000
        tax = (item["amount_subtotal"] * rate + base // 2) // base
        item["amount_tax"] = tax
        item["amount_total"] = item["amount_subtotal"] + (0 if inclusive else tax)
    account.change(
        session,
        amount_total=sum(item["amount_total"] for item in items),
        automatic_tax={**session["automatic_tax"], "status": "complete"},
        total_details={
            "amount_discount": 0,
            "amount_shipping": 0,
            "amount_tax": sum(item["amount_tax"] for item in items),
        },
    )


def _expiry(account: Account, given: CreateSession) -> int:
    now = account.now()
    if given.expires_at is None:
        return now + MAX_SESSION_SECONDS
    if given.expires_at < now + MIN_SESSION_SECONDS:
        raise invalid_parameter(
            "The `expires_at` timestamp must be at least 30 minutes from Checkout Session creation.",
            "expires_at",
        )
    if given.expires_at > now + MAX_SESSION_SECONDS:
        raise invalid_parameter(
            "The `expires_at` timestamp must be less than 24 hours from Checkout Session creation.",
            "expires_at",
        )
    return given.expires_at


def _line_item(account: Account, given: NewLineItem, name: str) -> Object:
    if (given.price is None) == (given.price_data is None):
        raise invalid_parameter("You must specify either `price` or `price_data` when using prices.", name)
    if given.quantity is None:
        raise missing_parameter(f"{name}[quantity]")
    if given.price_data is not None:
        price = catalog.inline_price(account, given.price_data, f"{name}[price_data]")
    else:
        price = account.find("price", str(given.price), f"{name}[price]")
    amount = price["unit_amount"] * given.quantity
    return {
        "id": new_id("li"),
        "object": "item",
        "adjustable_quantity": None,
        "amount_discount": 0,
        "amount_subtotal": amount,
        "amount_tax": 0,
        "amount_total": amount,
        "currency": price["currency"],
        "description": account.objects[price["product"]]["name"],
        "metadata": {},
        "price": price,
        "quantity": given.quantity,
    }


def _rename(account: Account, session: Object) -> None:
    """Give it the long id that sessions have."""
    del account.objects[session["id"]], account.private[session["id"]]
    session["id"] = new_id("cs_test", ID_LENGTH)
    account.objects[session["id"]] = session


def _fields(given: CreateSession, currency: str, total: int, expires_at: int) -> Object:
    usual = DYNAMIC_METHODS.get(currency, [CARD])
    kinds: list[str] = [*(given.allowed_payment_method_types or usual)]
    kinds = [kind for kind in kinds if kind not in given.excluded_payment_method_types]
    absent: tuple[str, ...] = (
        "after_expiration", "allow_promotion_codes", "client_secret", "collected_information", "consent",
        "consent_collection", "currency_conversion", "customer_details", "invoice", "origin_context", "payment_intent",
        "payment_link", "payment_method_configuration_details", "permissions", "recovered_from",
        "saved_payment_method_options", "setup_intent", "shipping_address_collection", "shipping_cost", "subscription",
        "url", "wallet_options",
    )  # fmt: skip
    fields: dict[str, Any] = dict.fromkeys(absent)
    automatic_tax = given.automatic_tax.enabled
    return fields | {
        "adaptive_pricing": {"enabled": False},
        "allowed_payment_method_types": given.allowed_payment_method_types,
        "amount_subtotal": total,
        "amount_total": total,
        "automatic_tax": {
            "enabled": automatic_tax,
            "liability": {"type": "self"} if automatic_tax else None,
            "provider": "stripe" if automatic_tax else None,
            "status": "requires_location_inputs" if automatic_tax else None,
        },
        "billing_address_collection": given.billing_address_collection,
        "cancel_url": given.cancel_url,
        "client_reference_id": given.client_reference_id,
        "currency": currency,
        "custom_fields": [],
        "custom_text": dict.fromkeys(
            ("after_submit", "shipping_address", "submit", "terms_of_service_acceptance")
        ),
        "customer": given.customer,
        "customer_creation": None if given.customer else given.customer_creation,
        "customer_email": given.customer_email,
        "discounts": [],
        "excluded_payment_method_types": given.excluded_payment_method_types or None,
        "expires_at": expires_at,
        "invoice_creation": {"enabled": False, "invoice_data": _no_invoice()},
        "livemode": False,
        "locale": given.locale,
        "metadata": dict(given.metadata),
        "mode": given.mode,
        "payment_method_collection": "if_required",
        "payment_method_options": {"card": {"request_three_d_secure": "automatic"}},
        "payment_method_types": kinds,
        "payment_status": "unpaid",
        "phone_number_collection": {"enabled": False},
        "shipping_options": [],
        "status": "open",
        "submit_type": given.submit_type,
        "success_url": given.success_url,
        "tax_id_collection": {
            "enabled": given.tax_id_collection is not None and given.tax_id_collection.enabled,
            "required": "never",
        },
        "total_details": {"amount_discount": 0, "amount_shipping": 0, "amount_tax": 0},
        "ui_mode": given.ui_mode,
    }


def _no_invoice() -> Object:
    names = ("account_tax_ids", "custom_fields", "description", "footer", "issuer", "rendering_options")
    return {**dict.fromkeys(names), "metadata": {}}
