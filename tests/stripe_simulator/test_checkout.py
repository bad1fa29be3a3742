"""Checkout Sessions through the real `stripe` library: made, paid by card or debit, declined, expired."""

from collections.abc import Callable

from stripe import StripeClient, Webhook

from darktree_stripe_simulator.client import StripeStandIn

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

    session = api.v1.checkout.sessions.retrieve(
        id, {"expand": ["payment_intent.latest_charge", "line_items"]}
    )
    assert (session.status, session.payment_status, session.amount_total) == ("complete", "paid", 5000)
    assert session.client_reference_id == "ord_1"
    assert session.metadata is not None
    assert session.metadata.to_dict() == {"order": "ord_1"}
    assert session.line_items is not None
    assert [item.amount_total for item in session.line_items.data] == [5000]
    intent = session.payment_intent
    assert intent is not None
    assert not isinstance(intent, str)
    charge = intent.latest_charge
    assert charge is not None
    assert not isinstance(charge, str)
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


def test_an_event_is_signed_as_the_library_verifies(stripe: StripeStandIn, make_session: MakeSession) -> None:
    stripe.pay(make_session())
    (event,) = stripe.events("checkout.session.completed")
    parsed = Webhook.construct_event(event.payload, event.headers["Stripe-Signature"], stripe.webhook_secret)
    assert parsed.type == "checkout.session.completed"
    assert parsed.data.object["payment_status"] == "paid"
