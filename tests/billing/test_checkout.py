"""Buying a bundle: what is ordered, what Stripe is told, what a payment gives, and what it never gives."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from darktree_billing.fulfilment import may_raise
from darktree_billing.payments_schemas import MAX_OPEN_ORDERS
from darktree_billing.schemas import CapChange

DOLLAR_CENTS = 100
FAILING_DEBIT = {"method": "us_bank_account"}


def test_a_paid_order_grants_its_credits_once_and_sets_the_plans_cap(store: Any) -> None:
    customer = store.customer("solo")
    order = store.bought(customer, "team")
    assert (order["price_cents"], order["total_cents"], order["tax_cents"]) == (15_000, 15_000, 0)
    assert order["receipt_url"].startswith("http")
    assert store.entries(customer) == [
        ("grant", "stripe_clearing", "customer_credits", 15_000, order["charge_id"])
    ]
    cap = store.answer("GET", f"/admin/customers/{customer}/cap")
    assert cap["cap_tokens"] == 7_000
    assert cap["changes"][0]["actor"] == "stripe"
    assert store.answer("GET", f"/admin/customers/{customer}")["plan"] == "team"


def test_the_order_is_written_down_before_stripe_is_asked_and_names_the_session(store: Any) -> None:
    customer = store.customer()
    store.stripe.fault("refused", status=500, method="POST", path="/v1/checkout/sessions", times=3)
    answer = store.http.post(f"/admin/customers/{customer}/checkouts", json={"plan": "solo"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "stripe_unavailable")
    order = store.answer("GET", f"/admin/orders?customer_id={customer}")["data"][0]
    assert (order["state"], order["session_id"]) == ("open", None)
    assert "Stripe did not do it" in order["problem"]


def test_a_lost_answer_is_asked_for_again_with_the_same_key_and_makes_one_session(store: Any) -> None:
    customer = store.customer()
    store.stripe.fault("lost", method="POST", path="/v1/checkout/sessions")
    order = store.order(customer)
    store.stripe.pay(order["session_id"])
    store.handle()
    assert store.balance(customer) == 5_000


def test_a_delayed_payment_grants_when_it_succeeds_and_not_before(store: Any) -> None:
    customer = store.customer()
    order = store.order(customer)
    session = store.stripe.pay(order["session_id"], **FAILING_DEBIT)
    store.handle()
    assert store.see(order["id"])["state"] == "processing"
    assert store.balance(customer) == 0
    store.stripe.settle(session["payment_intent"], "succeeded")
    store.handle()
    assert store.see(order["id"])["state"] == "paid"
    assert store.balance(customer) == 5_000


def test_a_delayed_payment_that_fails_gives_nothing_and_says_so(store: Any) -> None:
    customer = store.customer()
    order = store.order(customer)
    session = store.stripe.pay(order["session_id"], **FAILING_DEBIT)
    store.stripe.settle(session["payment_intent"], "failed")
    store.handle()
    failed = store.see(order["id"])
    assert failed["state"] == "failed"
    assert "The payment failed" in failed["problem"]
    assert store.balance(customer) == 0


def test_a_declined_card_leaves_the_order_open(store: Any) -> None:
    customer = store.customer()
    order = store.order(customer)
    store.stripe.pay(order["session_id"], number="4000000000000002")
    store.handle()
    assert store.answer("POST", f"/admin/orders/{order['id']}/check")["state"] == "open"


def test_the_page_that_customers_return_to_grants_without_any_webhook_and_all_at_once(
    store: Any, at_once: Callable[[list[Callable[[], Any]]], list[Any]]
) -> None:
    customer = store.customer()
    order = store.order(customer)
    store.stripe.pay(order["session_id"])

    def check() -> str:
        return str(store.answer("POST", f"/admin/orders/{order['id']}/check")["state"])

    def deliver() -> str:
        store.stripe.deliver(times=3, at_once=True)
        return "paid"

    assert set(at_once([check, check, check, deliver])) == {"paid"}
    store.handle()
    assert len(store.entries(customer)) == 1
    assert store.balance(customer) == 5_000


def test_a_session_that_is_not_what_was_ordered_gives_nothing_and_waits_for_a_person(store: Any) -> None:
    customer = store.customer()
    order = store.order(customer)
    # As if somebody had changed the order after Stripe was told of it.
    store.platform.sql("UPDATE billing.payment_order SET price_cents = 4000 WHERE id = %s", order["id"])
    store.stripe.pay(order["session_id"])
    store.handle()
    wrong = store.see(order["id"])
    assert wrong["state"] == "review"
    assert wrong["problem"] == "Paid, but not as ordered: its price in cents is 5000, not 4000."
    assert store.balance(customer) == 0
    assert store.status()["orders"]["review"] == 1
    store.platform.sql("UPDATE billing.payment_order SET price_cents = 5000 WHERE id = %s", order["id"])
    assert store.answer("POST", f"/admin/orders/{order['id']}/check")["state"] == "paid"
    assert store.balance(customer) == 5_000


def test_an_order_does_not_take_another_orders_session(store: Any) -> None:
    customer = store.customer()
    paid, unpaid = store.order(customer), store.order(customer)
    store.stripe.pay(paid["session_id"])
    store.platform.sql("UPDATE billing.payment_order SET session_id = NULL WHERE id = %s", paid["id"])
    store.platform.sql(
        "UPDATE billing.payment_order SET session_id = %s WHERE id = %s", paid["session_id"], unpaid["id"]
    )
    wrong = store.answer("POST", f"/admin/orders/{unpaid['id']}/check")
    assert wrong["state"] == "review"
    assert "the order that it names" in wrong["problem"]
    assert store.balance(customer) == 0
    store.platform.sql("UPDATE billing.payment_order SET session_id = NULL WHERE id = %s", unpaid["id"])
    store.handle()  # the event names the order that was paid
    assert store.see(paid["id"])["state"] == "paid"


def test_a_later_purchase_raises_the_cap_but_never_lowers_it(store: Any) -> None:
    customer = store.customer("solo")
    caps = []
    for plan in ("team", "solo", "scale"):
        store.bought(customer, plan)
        caps.append(store.answer("GET", f"/admin/customers/{customer}/cap")["cap_tokens"])
    assert caps == [7_000, 7_000, 15_000]


@pytest.mark.parametrize("set_by_a_person", [0, 500, 50_000])
def test_what_a_person_set_is_not_touched_by_a_purchase(store: Any, set_by_a_person: int) -> None:
    customer = store.customer("solo")
    store.answer("PUT", f"/admin/customers/{customer}/cap", {"cap_tokens": set_by_a_person})
    store.bought(customer, "scale")
    assert store.answer("GET", f"/admin/customers/{customer}/cap")["cap_tokens"] == set_by_a_person


def test_only_an_opening_or_a_purchase_lets_a_purchase_raise_the_cap() -> None:
    def change(actor: str, previous: int | None) -> CapChange:
        at: Any = "2026-11-01T00:00:00Z"
        return CapChange(cap_tokens=0, previous_cap_tokens=previous, reason="r", actor=actor, changed_at=at)

    opened, bought, set_ = change("admin", None), change("stripe", 0), change("ann@example.com", 5)
    assert may_raise(0, [opened], 2_000)
    assert may_raise(2_000, [bought, set_], 7_000)
    assert not may_raise(0, [set_, bought], 2_000)
    assert not may_raise(7_000, [bought], 7_000)
    assert not may_raise(7_000, [opened], 2_000)


def test_a_plan_that_is_not_there_and_a_customer_who_is_not_there_buy_nothing(store: Any) -> None:
    customer = store.customer()
    path = f"/admin/customers/{customer}/checkouts"
    assert store.answer("POST", path, {"plan": "gold"}, 400)["error"]["code"] == "unknown_plan"
    path = "/admin/customers/nobody/checkouts"
    assert store.answer("POST", path, {"plan": "solo"}, 404)["error"]["code"] == "unknown_customer"


def test_a_customer_has_a_bounded_number_of_unpaid_orders(store: Any) -> None:
    customer = store.customer()
    for _ in range(MAX_OPEN_ORDERS):
        store.order(customer)
    path = f"/admin/customers/{customer}/checkouts"
    refused = store.answer("POST", path, {"plan": "solo"}, 409)
    assert refused["error"]["code"] == "too_many_open_orders"


def test_orders_are_listed_newest_first_in_pages(store: Any) -> None:
    customer = store.customer()
    made = [store.order(customer)["id"] for _ in range(3)]
    first = store.answer("GET", f"/admin/orders?customer_id={customer}&limit=2")
    second = store.answer("GET", f"/admin/orders?customer_id={customer}&limit=2&after={first['next']}")
    assert [order["id"] for order in first["data"] + second["data"]] == made[::-1]
    assert second["next"] is None


def test_orders_are_listed_by_state(store: Any) -> None:
    customer = store.customer()
    order = store.order(customer)["id"]
    listed = {
        state: [
            found["id"]
            for found in store.answer("GET", f"/admin/orders?customer_id={customer}&state={state}")["data"]
        ]
        for state in ("open", "paid")
    }
    assert listed == {"open": [order], "paid": []}
    assert store.http.get("/admin/orders?state=strange").status_code == 400


def test_without_a_key_for_stripe_nothing_is_sold_and_the_reason_is_told(http: httpx.Client) -> None:
    customer = http.post("/admin/customers", json={"name": "A", "plan": "solo"}).json()["id"]
    refused = http.post(f"/admin/customers/{customer}/checkouts", json={"plan": "solo"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "buying_is_off")
    assert http.post("/webhooks/stripe", content=b"{}").json()["error"]["code"] == "buying_is_off"
    assert http.get("/admin/payments/status").json()["buying"] is False


def test_a_price_kept_at_stripe_is_used_where_the_plan_names_one(
    own_platform: Any, running_store: Any
) -> None:
    with running_store(own_platform) as store:
        plans = own_platform.plans_file.read_text()
        own_platform.plans_file.write_text(
            plans.replace("  - id: solo\n", "  - id: solo\n    stripe_price_id: price_unknown\n", 1)
        )
        customer = store.customer("team")
        refused = store.answer("POST", f"/admin/customers/{customer}/checkouts", {"plan": "solo"}, 409)
        assert refused["error"]["code"] == "stripe_refused"
        assert "resource_missing" in refused["error"]["message"]
        assert store.bought(customer, "team")["state"] == "paid"


def test_sales_tax_is_owed_to_others_and_becomes_no_credits(own_platform: Any, running_store: Any) -> None:
    with running_store(own_platform, stripe_automatic_tax=True, stripe_tax_code="txcd_10103001") as store:
        customer = store.customer()
        order = store.bought(customer)
        assert order["tax_cents"] > 0
        assert order["total_cents"] == order["price_cents"] + order["tax_cents"]
        assert store.entries(customer) == [
            ("grant", "stripe_clearing", "customer_credits", 5_000, order["charge_id"]),
            ("posting", "stripe_clearing", "sales_tax_payable", order["tax_cents"], order["charge_id"]),
        ]
        assert store.balance(customer) == 5_000
