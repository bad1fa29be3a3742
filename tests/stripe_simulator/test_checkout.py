"""Checkout Sessions through the real `stripe` library: made, paid by card or debit, declined, expired, taxed."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from stripe import InvalidRequestError, StripeClient

from darktree_stripe_simulator.client import ControlError, StripeStandIn

MakeSession = Callable[..., str]


def types(stripe: StripeStandIn) -> list[str]:
    return [event.type for event in stripe.events()]


def test_a_card_pays_a_session_at_once(
    stripe: StripeStandIn, api: StripeClient, make_session: MakeSession
) -> None:
    id = make_session(client_reference_id="ord_1", metadata={"order": "ord_1"})
    session = api.v1.checkout.sessions.retrieve(id)
    assert (session.status, session.payment_status, session.payment_intent) == ("open", "unpaid", None)
    assert session.url == f"{stripe.url}/pay/{id}"

    stripe.pay(id)

    params: Any = {"expand": ["payment_intent.latest_charge", "line_items"]}
    session = api.v1.checkout.sessions.retrieve(id, params)
    assert (session.status, session.payment_status, session.amount_total) == ("complete", "paid", 5000)
    assert (session.client_reference_id, session.url) == ("ord_1", None)
    assert session.metadata is not None
    assert session.metadata.to_dict() == {"order": "ord_1"}
    assert session.line_items is not None
    assert [item.amount_total for item in session.line_items.data] == [5000]
    intent: Any = session.payment_intent
    charge = intent.latest_charge
    assert (intent.status, charge.status, charge.amount, charge.paid) == (
        "succeeded",
        "succeeded",
        5000,
        True,
    )
    assert types(stripe) == [
        "payment_intent.created",
        "charge.succeeded",
        "payment_intent.succeeded",
        "checkout.session.completed",
        "charge.updated",
    ]


def test_the_fee_and_the_balance_transaction_of_a_card_come_with_the_charges_update(
    stripe: StripeStandIn, api: StripeClient, make_session: MakeSession
) -> None:
    stripe.pay(make_session())
    succeeded, updated = (event.object for event in stripe.events("charge.succeeded", "charge.updated"))
    assert succeeded["balance_transaction"] is None
    transaction = api.v1.balance_transactions.retrieve(updated["balance_transaction"])
    assert (transaction.amount, transaction.fee, transaction.net) == (5000, 175, 4825)
    assert (transaction.type, transaction.source, transaction.status) == ("charge", updated["id"], "pending")
    assert httpx.get(updated["receipt_url"]).status_code == 200


def test_a_declined_card_leaves_the_session_open_and_another_card_pays_it(
    stripe: StripeStandIn, api: StripeClient, make_session: MakeSession
) -> None:
    id = make_session()
    session = stripe.pay(id, number="4000 0000 0000 9995")
    assert (session["status"], session["payment_status"]) == ("open", "unpaid")
    intent = api.v1.payment_intents.retrieve(session["payment_intent"])
    assert intent.status == "requires_payment_method"
    assert intent.last_payment_error is not None
    assert intent.last_payment_error.decline_code == "insufficient_funds"
    stripe.pay(id)
    assert api.v1.payment_intents.retrieve(intent.id).amount_received == 5000
    assert [charge.status for charge in api.v1.charges.list().data] == ["succeeded", "failed"]
    assert types(stripe)[:3] == ["payment_intent.created", "charge.failed", "payment_intent.payment_failed"]


def test_a_bank_debit_completes_the_session_unpaid_and_pays_it_later(
    stripe: StripeStandIn, api: StripeClient, make_session: MakeSession
) -> None:
    session = stripe.pay(make_session(), method="us_bank_account")
    assert (session["status"], session["payment_status"]) == ("complete", "unpaid")
    intent = session["payment_intent"]
    assert api.v1.payment_intents.retrieve(intent).status == "processing"
    stripe.settle(intent)
    assert api.v1.checkout.sessions.retrieve(session["id"]).payment_status == "paid"
    (charge,) = api.v1.charges.list({"payment_intent": intent}).data
    assert charge.id.startswith("py_")
    assert types(stripe) == [
        "payment_intent.created",
        "payment_intent.processing",
        "charge.pending",
        "checkout.session.completed",
        "charge.succeeded",
        "payment_intent.succeeded",
        "checkout.session.async_payment_succeeded",
        "charge.updated",
    ]
    (event,) = stripe.events("checkout.session.completed")
    assert event.object["payment_status"] == "unpaid", "an event tells what was, not what is"


def test_a_bank_debit_that_fails_leaves_the_session_complete_and_unpaid(
    stripe: StripeStandIn, api: StripeClient, make_session: MakeSession
) -> None:
    session = stripe.pay(make_session(), method="us_bank_account")
    stripe.settle(session["payment_intent"], "failed")
    after = api.v1.checkout.sessions.retrieve(session["id"])
    assert (after.status, after.payment_status) == ("complete", "unpaid")
    assert types(stripe)[-3:] == [
        "charge.failed",
        "payment_intent.payment_failed",
        "checkout.session.async_payment_failed",
    ]
    assert api.v1.balance_transactions.list().data == []
    with pytest.raises(ControlError, match="not processing"):
        stripe.settle(session["payment_intent"])


def test_a_session_that_nobody_pays_expires_and_cannot_be_paid_any_more(
    stripe: StripeStandIn, api: StripeClient, make_session: MakeSession
) -> None:
    id = make_session()
    stripe.advance(24 * 3600)
    session = api.v1.checkout.sessions.retrieve(id)
    assert (session.status, session.url) == ("expired", None)
    assert types(stripe) == ["checkout.session.expired"]
    with pytest.raises(ControlError, match="status of expired"):
        stripe.pay(id)
    with pytest.raises(InvalidRequestError, match="expired"):
        api.v1.checkout.sessions.expire(id)


def test_a_session_can_be_expired_once(api: StripeClient, make_session: MakeSession) -> None:
    id = make_session()
    assert api.v1.checkout.sessions.expire(id).status == "expired"
    with pytest.raises(InvalidRequestError, match="status of expired"):
        api.v1.checkout.sessions.expire(id)


@pytest.mark.parametrize(("behavior", "total", "tax"), [("exclusive", 5413, 413), ("inclusive", 5000, 381)])
def test_automatic_tax_is_known_when_the_payer_has_said_where_he_is(
    stripe: StripeStandIn,
    api: StripeClient,
    make_session: MakeSession,
    line_item: dict[str, Any],
    behavior: str,
    total: int,
    tax: int,
) -> None:
    line_item["price_data"]["tax_behavior"] = behavior
    id = make_session(automatic_tax={"enabled": True}, line_items=[line_item])
    before = api.v1.checkout.sessions.retrieve(id)
    assert (before.amount_total, before.automatic_tax.status) == (5000, "requires_location_inputs")
    stripe.pay(id)
    after = api.v1.checkout.sessions.retrieve(id)
    assert (after.amount_subtotal, after.amount_total, after.automatic_tax.status) == (
        5000,
        total,
        "complete",
    )
    assert after.total_details is not None
    assert after.total_details.amount_tax == tax
    (charge,) = api.v1.charges.list().data
    assert charge.amount == total


def test_what_is_said_of_the_payment_reaches_the_intent_and_the_charge(
    stripe: StripeStandIn, api: StripeClient, make_session: MakeSession
) -> None:
    told = {"metadata": {"order": "ord_7"}, "description": "Solo bundle", "receipt_email": "a@example.com"}
    session = stripe.pay(make_session(payment_intent_data=told, customer_creation="always"))
    (charge,) = api.v1.charges.list().data
    intent = api.v1.payment_intents.retrieve(session["payment_intent"])
    for about in (charge, intent):
        assert about.metadata.to_dict() == {"order": "ord_7"}
        assert (about.description, about.receipt_email) == ("Solo bundle", "a@example.com")
        assert about.customer == session["customer"]


def test_a_price_that_was_made_before_is_sold_by_its_id(
    stripe: StripeStandIn, api: StripeClient, make_session: MakeSession
) -> None:
    product = api.v1.products.create({"name": "Team"})
    price = api.v1.prices.create({"product": product.id, "currency": "usd", "unit_amount": 15000})
    id = make_session(line_items=[{"price": price.id, "quantity": 2}])
    assert stripe.pay(id)["amount_total"] == 30000
    (item,) = api.v1.checkout.sessions.line_items.list(id).data
    assert (item.description, item.quantity, item.price and item.price.id) == ("Team", 2, price.id)


@pytest.mark.parametrize(
    ("more", "param", "code"),
    [
        ({"line_items": []}, "line_items", "parameter_missing"),
        ({"success_url": "here"}, "success_url", "url_invalid"),
        (
            {"line_items": [{"price": "price_none", "quantity": 1}]},
            "line_items[0][price]",
            "resource_missing",
        ),
        ({"line_items": [{"price": "price_none"}]}, "line_items[0][quantity]", "parameter_missing"),
        ({"colour": "red"}, "colour", "parameter_unknown"),
        ({"customer": "cus_none"}, "customer", "resource_missing"),
        ({"customer_email": "nobody"}, "customer_email", None),
        ({"mode": "subscription"}, "mode", None),
        ({"expires_at": 1}, "expires_at", None),
        ({"expires_at": "soon"}, "expires_at", "parameter_invalid_integer"),
        ({"client_reference_id": "x" * 201}, "client_reference_id", None),
        ({"client_reference_id": ""}, "client_reference_id", "parameter_invalid_empty"),
        ({"metadata": {"x" * 41: "y"}}, None, None),
        ({"automatic_tax": {"enabled": "perhaps"}}, "automatic_tax[enabled]", None),
    ],
)
def test_a_session_that_cannot_be_is_refused_with_the_parameter_that_is_wrong(
    make_session: MakeSession, more: dict[str, Any], param: str | None, code: str | None
) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        make_session(**more)
    assert refused.value.http_status in {400, 404}
    assert refused.value.code == code
    if param is not None:
        assert refused.value.param == param


def test_less_than_half_a_dollar_is_refused(make_session: MakeSession, line_item: dict[str, Any]) -> None:
    line_item["price_data"]["unit_amount"] = 49
    with pytest.raises(InvalidRequestError) as refused:
        make_session(line_items=[line_item])
    assert refused.value.code == "amount_too_small"


def test_a_number_that_is_no_test_number_pays_nothing(
    stripe: StripeStandIn, make_session: MakeSession
) -> None:
    for number, says in (("4242 4242 4242 4241", "invalid"), ("4539 1488 0343 6467", "test numbers")):
        with pytest.raises(ControlError, match=says):
            stripe.pay(make_session(), number=number)
    with pytest.raises(ControlError, match="does not take"):
        stripe.pay(make_session(allowed_payment_method_types=["card"]), method="us_bank_account")
    assert stripe.events() == []
