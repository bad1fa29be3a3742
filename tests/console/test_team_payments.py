"""What the team sees and does about payments: orders, refunds, disputes with their evidence, Stripe's events."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import SecretStr

from darktree_kit.ids import uuid7
from darktree_stripe_simulator.client import StripeStandIn

TEAM = "ops@darktree.test"
DEADLINE_SECONDS = 20


@dataclass
class Till:
    """A billing that sells, one of the team in front of it, and the stand-in for Stripe behind it."""

    stripe: StripeStandIn
    staff: Any
    url: str
    headers: dict[str, str]

    def ask(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        answer = self.staff.request(method, path, json=body, headers=self.headers)
        assert answer.is_success, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def bought(self) -> dict[str, Any]:
        """Return an order of a new customer, paid by card."""
        customer_id = self.ask("POST", "/admin/customers", {"name": "Acme", "plan": "solo"})["id"]
        made = self.ask("POST", f"/admin/customers/{customer_id}/checkouts", {"plan": "solo"})
        order = self.ask("GET", f"/admin/orders/{made['order_id']}")
        self.stripe.pay(order["session_id"])
        self.handle()
        return self.ask("GET", f"/admin/orders/{order['id']}")

    def handle(self) -> None:
        self.stripe.deliver()
        deadline = time.monotonic() + DEADLINE_SECONDS
        while self.ask("GET", "/admin/payments/status")["events_waiting"]:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def page(self, path: str) -> str:
        page: str = self.staff.page("/admin/console" + path)
        return page

    def submit(self, path: str, **fields: str) -> Any:
        return self.staff.submit("/admin/console" + path, **fields)


@pytest.fixture(scope="module")
def till(platform: Any, make_stripe: Callable[..., AbstractContextManager[StripeStandIn]]) -> Iterator[Till]:
    with make_stripe() as stripe:
        url = platform.serve_billing(
            stripe_api_key=SecretStr(stripe.key),
            stripe_api_base=stripe.url,
            stripe_webhook_secrets=SecretStr(stripe.webhook_secret),
            stripe_poll_seconds=86_400,
        )
        stripe.send_to(f"{url}/webhooks/stripe")
        token = platform.settings.admin_token.get_secret_value()
        staff = platform.sign_in(TEAM, platform.browser(url))
        yield Till(stripe, staff, url, {"Authorization": f"Bearer {token}"})


def test_an_order_is_listed_and_shown_with_what_stripe_knows_it_by(till: Till) -> None:
    order = till.bought()
    assert f"/admin/console/orders/{order['id']}" in till.page("/orders")
    assert order["id"] in till.page(f"/orders?customer_id={order['customer_id']}")
    assert order["id"] not in till.page("/orders?customer_id=nobody")
    assert order["id"] in till.page("/orders?customer_id=&state=paid")
    assert order["id"] not in till.page("/orders?state=review")
    page = till.page(f"/orders/{order['id']}")
    for told in (order["charge_id"], order["session_id"], order["grant_id"], "Solo for $50.00"):
        assert told in page
    assert till.submit(f"/orders/{order['id']}/check").status_code == 303
    assert "As Stripe says: paid." in till.page("/orders")


def test_an_order_is_refunded_in_part_once_however_often_the_form_is_sent(till: Till) -> None:
    order = till.bought()
    path = f"/orders/{order['id']}"
    refund_id = re.search(r'name="refund_id" value="([0-9a-f-]+)"', till.page(path))
    assert refund_id is not None
    fields = {"refund_id": refund_id[1], "dollars": "12.50", "reason": "a bad month"}
    for _ in range(2):
        assert till.submit(f"{path}/refund", **fields).status_code == 303
    page = till.page(path)
    assert "Of this order $12.50 went back so far." in page
    assert till.ask("GET", f"/admin{path}")["refunded_cents"] == 1_250
    [refund] = till.ask("GET", f"/admin{path}")["reversals"]
    assert refund["id"].startswith("re_")


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"dollars": "0.001", "reason": "r"}, "whole cents"),
        ({"dollars": "much", "reason": "r"}, "not an amount"),
        ({"dollars": "0", "reason": "r"}, "greater than 0"),
        ({"dollars": "1"}, "Say why"),
        ({"dollars": "9,999", "reason": "r"}, "Stripe"),
        ({"dollars": "1", "reason": "r", "refund_id": "mine"}, "badly formed"),
    ],
)
def test_a_refund_that_cannot_be_is_explained(till: Till, fields: dict[str, str], told: str) -> None:
    order = till.bought()
    refused = till.submit(f"/orders/{order['id']}/refund", **({"refund_id": str(uuid7())} | fields))
    assert refused.status_code == 400
    assert told in refused.text
    assert till.ask("GET", f"/admin/orders/{order['id']}")["refunded_cents"] == 0


def test_a_dispute_is_listed_with_its_evidence_and_the_customer_is_seen_to_be_frozen(till: Till) -> None:
    order = till.bought()
    dispute = till.stripe.dispute(order["charge_id"])
    till.handle()
    page = till.page("/disputes")
    assert f"/admin/console/disputes/{dispute['id']}/evidence.zip" in page
    evidence = till.staff.get(f"/admin/console/disputes/{dispute['id']}/evidence.zip")
    assert evidence.status_code == 200
    assert evidence.content[:2] == b"PK"
    assert '<span class="badge bad">frozen</span>' in till.page(f"/customers/{order['customer_id']}")


def test_an_event_that_was_given_up_is_seen_and_tried_again(till: Till, platform: Any) -> None:
    order = till.bought()
    [event_id] = platform.sql(
        "UPDATE billing.stripe_event SET state = 'dead', attempts = 9, error = 'The ledger <was> away',"
        " next_attempt_at = NULL WHERE id = (SELECT id FROM billing.stripe_event WHERE order_id = %s"
        " AND type = 'checkout.session.completed') RETURNING id",
        order["id"],
    )[0]
    assert "The ledger &lt;was&gt; away" in till.page("/events?state=dead")
    overview = till.page("")
    assert re.search(r'Events given up</p>\s*<p class="figure">1<', overview)
    assert till.submit(f"/events/{event_id}/retry").status_code == 303
    till.handle()
    till.page("")  # where the flash is said once
    assert event_id not in till.page("/events?state=dead")
    assert till.ask("GET", f"/admin/customers/{order['customer_id']}/balance")["balance_nanos"] == 50 * 10**9
    assert till.submit("/events/evt_nothing/retry").status_code == 404


def test_without_a_key_for_stripe_the_pages_say_that_buying_is_off(platform: Any) -> None:
    staff = platform.sign_in(TEAM)
    assert "Buying is off" in staff.page("/admin/console")
    assert "None is like this" in staff.page("/admin/console/orders?customer_id=nobody")
    assert staff.get("/admin/console/disputes").status_code == 200
