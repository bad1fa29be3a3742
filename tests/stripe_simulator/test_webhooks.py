"""Events on their way: signed as the library verifies, and late, twice, in another order or never on demand."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp
from stripe import SignatureVerificationError, StripeClient, Webhook

from darktree_stripe_simulator.client import StripeStandIn

MakeSession = Callable[..., str]
MakeStripe = Callable[..., AbstractContextManager[StripeStandIn]]
DEADLINE_SECONDS = 20


class Inbox:
    """A webhook that keeps what it gets, and answers what it is told to."""

    def __init__(self) -> None:
        self.got: list[tuple[bytes, str]] = []
        self.statuses: list[int] = []  # the next answers; 200 when there are none left
        self.app = Starlette(routes=[Route("/hook", self.take, methods=["POST"])])

    async def take(self, request: Request) -> Response:
        payload = await request.body()
        # Chosen before a test sees what came: it may then set the next answers.
        status = self.statuses.pop(0) if self.statuses else 200
        self.got.append((payload, request.headers["stripe-signature"]))
        return Response(status_code=status)

    @property
    def types(self) -> list[str]:
        return [json.loads(payload)["type"] for payload, _ in self.got]

    def until(self, count: int) -> None:
        wait(lambda: len(self.got) >= count)


def wait(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


@pytest.fixture
def hook(inbox: Inbox, serve: Callable[[ASGIApp], str]) -> str:
    return serve(inbox.app) + "/hook"


@pytest.fixture
def automatic(make_stripe: MakeStripe, hook: str) -> Iterator[StripeStandIn]:
    """A stand-in that sends events to the webhook by itself, and again without a pause when it must."""
    settings: dict[str, Any] = {"delivery": "automatic", "webhook_url": hook, "retry_seconds": [0.0, 0.0]}
    with make_stripe(**settings) as stand_in:
        yield stand_in


def session_of(stripe: StripeStandIn, line_item: dict[str, Any]) -> str:
    addresses: Any = {"api": stripe.url}
    params: Any = {"mode": "payment", "success_url": "https://a.example/", "line_items": [line_item]}
    return StripeClient(stripe.key, base_addresses=addresses).v1.checkout.sessions.create(params).id


PURCHASE = [
    "payment_intent.created",
    "charge.succeeded",
    "payment_intent.succeeded",
    "checkout.session.completed",
    "charge.updated",
]


def test_an_event_is_signed_as_the_library_verifies(stripe: StripeStandIn, make_session: MakeSession) -> None:
    stripe.pay(make_session())
    (event,) = stripe.events("checkout.session.completed")
    signature = event.headers["Stripe-Signature"]
    parsed = Webhook.construct_event(event.payload, signature, stripe.webhook_secret)
    assert parsed.type == "checkout.session.completed"
    assert parsed.data.object["payment_status"] == "paid"
    with pytest.raises(SignatureVerificationError, match="No signatures found matching"):
        Webhook.construct_event(event.payload, signature, "whsec_other")
    written_again = json.dumps(json.loads(event.payload)).encode()
    with pytest.raises(SignatureVerificationError):
        Webhook.construct_event(written_again, signature, stripe.webhook_secret)


def test_a_replayed_signature_is_as_old_as_it_was(stripe: StripeStandIn, make_session: MakeSession) -> None:
    stripe.pay(make_session())
    event = stripe.events(signed_seconds_ago=301)[0]
    with pytest.raises(SignatureVerificationError, match="tolerance"):
        Webhook.construct_event(event.payload, event.headers["Stripe-Signature"], stripe.webhook_secret)


def test_every_secret_signs_while_they_rotate(stripe: StripeStandIn, make_session: MakeSession) -> None:
    stripe.send_to("", ["whsec_old", "whsec_new"])
    stripe.pay(make_session())
    event = stripe.events()[0]
    for secret in ("whsec_old", "whsec_new"):
        Webhook.construct_event(event.payload, event.headers["Stripe-Signature"], secret)


def test_an_event_names_the_request_that_made_it(
    stripe: StripeStandIn, api: StripeClient, make_session: MakeSession
) -> None:
    stripe.pay(make_session())
    charge = api.v1.charges.list().data[0].id
    api.v1.refunds.create({"charge": charge}, {"idempotency_key": "refund-1"})
    paid, refunded = (
        api.v1.events.list({"type": name}).data[0] for name in ("charge.updated", "refund.created")
    )
    assert refunded.request is not None
    assert refunded.request.idempotency_key == "refund-1"
    assert paid.request is not None
    assert paid.request.idempotency_key is None
    assert paid.data.previous_attributes is not None
    assert paid.data.previous_attributes.to_dict() == {"balance_transaction": None}


def test_events_come_by_themselves_in_the_order_in_which_they_happened(
    automatic: StripeStandIn, inbox: Inbox, line_item: dict[str, Any]
) -> None:
    automatic.pay(session_of(automatic, line_item))
    inbox.until(5)
    assert inbox.types == PURCHASE
    for payload, signature in inbox.got:
        Webhook.construct_event(payload, signature, automatic.webhook_secret)
    wait(lambda: all(event.taken for event in automatic.events()))


def test_an_event_that_is_not_taken_is_sent_again_until_it_is_given_up(
    automatic: StripeStandIn, inbox: Inbox, line_item: dict[str, Any]
) -> None:
    automatic.delivery(drop_types=[name for name in PURCHASE if name != "checkout.session.completed"])
    inbox.statuses = [500, 301]
    automatic.pay(session_of(automatic, line_item))
    inbox.until(3)
    assert inbox.types == ["checkout.session.completed"] * 3
    inbox.statuses = [500, 500, 500]
    automatic.pay(session_of(automatic, line_item))
    inbox.until(6)
    assert not automatic.events("checkout.session.completed")[1].taken


def test_events_can_come_twice_and_the_other_way_round(
    automatic: StripeStandIn, inbox: Inbox, line_item: dict[str, Any]
) -> None:
    automatic.delivery(duplicates=1, order="reversed", delay_seconds=60)
    automatic.pay(session_of(automatic, line_item))
    assert inbox.got == []
    automatic.advance(60)
    inbox.until(10)
    assert inbox.types == [name for name in reversed(PURCHASE) for _ in range(2)]


def test_events_can_come_in_any_order(
    automatic: StripeStandIn, inbox: Inbox, line_item: dict[str, Any]
) -> None:
    automatic.delivery(order="random", delay_seconds=60)
    automatic.pay(session_of(automatic, line_item))
    automatic.advance(60)
    inbox.until(5)
    assert sorted(inbox.types) == sorted(PURCHASE)


def test_events_that_are_dropped_never_come_but_are_listed(
    automatic: StripeStandIn, inbox: Inbox, line_item: dict[str, Any]
) -> None:
    automatic.delivery(drop=4)
    automatic.pay(session_of(automatic, line_item))
    inbox.until(1)
    assert inbox.types == ["charge.updated"]
    assert [event.type for event in automatic.events()] == PURCHASE


def test_a_test_delivers_what_it_wants_as_often_as_it_wants(
    stripe: StripeStandIn, inbox: Inbox, hook: str, make_session: MakeSession
) -> None:
    stripe.send_to(hook)
    stripe.pay(make_session())
    assert inbox.got == []
    events = stripe.events()
    inbox.statuses = [400]
    assert stripe.deliver([events[3].id, events[0].id], times=2) == [400, 200, 200, 200]
    assert inbox.types == [PURCHASE[3], PURCHASE[3], PURCHASE[0], PURCHASE[0]]
    assert stripe.deliver() == [200, 200, 200]
    assert stripe.deliver() == []
    assert stripe.deliver([events[4].id], times=20, at_once=True) == [200] * 20


def test_a_webhook_that_does_not_answer_is_told_as_such(
    stripe: StripeStandIn, make_session: MakeSession
) -> None:
    stripe.send_to("http://127.0.0.1:9/nobody")
    stripe.pay(make_session())
    assert set(stripe.deliver()) == {0}


def test_everything_is_kept_in_a_file_also_what_was_on_its_way(
    make_stripe: MakeStripe, inbox: Inbox, hook: str, tmp_path: Path, line_item: dict[str, Any]
) -> None:
    state = tmp_path / "stripe.json"
    with make_stripe(state=state, delivery="automatic", webhook_url="http://127.0.0.1:9/") as first:
        id = session_of(first, line_item)
        first.delivery(delay_seconds=3_000)
        paid = first.pay(id)
    assert state.stat().st_mode & 0o777 == 0o600
    with make_stripe(state=state, delivery="automatic", webhook_url=hook) as second:
        assert [event.type for event in second.events()] == PURCHASE
        second.advance(3_000)
        inbox.until(5)
        addresses: Any = {"api": second.url}
        again = StripeClient(second.key, base_addresses=addresses)
        assert again.v1.checkout.sessions.retrieve(id).payment_intent == paid["payment_intent"]
        assert second.dispute(again.v1.charges.list().data[0].id)["status"] == "needs_response"
    assert inbox.types[:5] == PURCHASE
