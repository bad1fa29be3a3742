"""What Stripe takes back: of unused credits, of what was used already, of tax; given back when it is won or fails."""

import io
import json
import uuid
import zipfile
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from darktree_billing.client import BillingClient, key_digest
from darktree_billing.errors import AccountFrozen
from darktree_billing.evidence import MAX_TEXT_CHARACTERS, activity_log
from darktree_billing.payment_models import OrderRow, ReversalRow
from darktree_billing.reversals import split
from darktree_kit.errors import ApiError
from darktree_kit.ids import uuid7
from darktree_kit.money import NANOS_PER_CENT
from darktree_ledger.client import LedgerClient
from darktree_ledger.schemas import Hold, Settle

FAILING_REFUND = "4000000000005126"


async def use(store: Any, customer_id: str, cents: int, key_id: str = "k") -> bool:
    """Use credits of so many cents; tell whether there were as many."""
    ledger = LedgerClient(store.platform.ledger_url, store.platform.gateway_token)
    hold = Hold(
        hold_id=uuid7(), customer_id=customer_id, key_id=key_id, model="m", lane="l", prompt_tokens=cents - 1,
        completion_tokens=1, exact=True, prompt_price_nanos=NANOS_PER_CENT,
        completion_price_nanos=NANOS_PER_CENT, ttl_seconds=60,
    )  # fmt: skip
    is_held = (await ledger.apply(hold)).outcome == "done"
    if is_held:
        settled = Settle(
            hold_id=hold.hold_id, customer_id=customer_id, entry_id=uuid7(), prompt_tokens=cents - 1,
            completion_tokens=1,
        )  # fmt: skip
        assert (await ledger.apply(settled)).outcome == "done"
    await ledger.close()
    return is_held


def refund(store: Any, order: dict[str, Any], cents: int | None = None) -> dict[str, Any]:
    body = {"amount_cents": cents, "reason": "asked for it", "refund_id": str(uuid7())}
    return dict(store.answer("POST", f"/admin/orders/{order['id']}/refunds", body))


def is_frozen(store: Any, customer_id: str) -> bool:
    return bool(store.answer("GET", f"/admin/customers/{customer_id}/freeze")["frozen"])


def agrees_with_stripe(store: Any) -> None:
    """Take Stripe's balance in; nothing may differ, and the ledger may have no fault."""
    store.handle()
    assert store.answer("POST", "/admin/payments/sweep")["problems"] == []
    report = store.answer("GET", "/admin/reconciliation")
    assert (report["stripe"]["exceptions"], report["stripe"]["problem"]) == ([], None)
    assert store.answer("POST", "/admin/ledger/check")["problems"] == []


async def test_a_refund_takes_what_is_unused_and_the_house_bears_the_rest(store: Any) -> None:
    customer = store.customer()
    order = store.bought(customer)
    assert await use(store, customer, 1_200)
    refunded = refund(store, order)
    assert (refunded["refunded_cents"], refunded["disputed_cents"]) == (5_000, 0)
    (taken,) = refunded["reversals"]
    assert store.entries(customer)[-2:] == [
        ("refund", "customer_credits", "stripe_clearing", 3_800, taken["id"]),
        ("refund", "refunds", "stripe_clearing", 1_200, taken["id"]),
    ]
    store.handle()  # the events of what is booked already change nothing
    assert len(store.entries(customer)) == 4
    assert store.balance(customer) == 0
    agrees_with_stripe(store)


def test_partial_refunds_each_take_once_and_never_more_than_was_paid(store: Any) -> None:
    customer = store.customer()
    order = store.bought(customer)
    balances = []
    for cents in (1_000, 1_500, 2_500):
        refund(store, order, cents)
        store.handle()
        balances.append(store.balance(customer))
    assert balances == [4_000, 2_500, 0]
    path = f"/admin/orders/{order['id']}/refunds"
    body = {"amount_cents": 1, "reason": "more", "refund_id": str(uuid.uuid4())}
    assert store.answer("POST", path, body, 409)["error"]["code"] == "stripe_refused"
    assert store.see(order["id"])["refunded_cents"] == 5_000


def test_the_same_refund_id_refunds_once(store: Any) -> None:
    order = store.bought(store.customer())
    path = f"/admin/orders/{order['id']}/refunds"
    body = {"amount_cents": 700, "reason": "asked for it", "refund_id": str(uuid7())}
    assert [store.answer("POST", path, body)["refunded_cents"] for _ in range(2)] == [700, 700]
    assert store.answer("POST", path, body | {"amount_cents": 800}, 409)["error"]["code"] == "stripe_refused"


def test_an_order_that_was_not_paid_cannot_be_refunded(store: Any) -> None:
    order = store.order(store.customer())
    body = {"reason": "asked for it", "refund_id": str(uuid7())}
    refused = store.answer("POST", f"/admin/orders/{order['id']}/refunds", body, 409)
    assert refused["error"]["code"] == "not_refundable"


async def test_a_refund_that_fails_gives_everything_back(store: Any) -> None:
    customer = store.customer()
    order = store.order(customer)
    store.stripe.pay(order["session_id"], number=FAILING_REFUND)
    store.handle()
    assert await use(store, customer, 1_000)
    made = refund(store, order)["reversals"][0]["id"]
    store.handle()
    assert store.balance(customer) == 0
    store.stripe.settle_refund(made, "failed")
    store.handle()
    assert store.balance(customer) == 4_000
    after = store.see(order["id"])
    assert (after["refunded_cents"], after["reversals"][0]["returned"]) == (0, True)
    agrees_with_stripe(store)


async def test_a_dispute_freezes_takes_and_when_it_is_won_gives_back_and_lets_go(store: Any) -> None:
    customer = store.customer()
    key = store.answer("POST", f"/admin/customers/{customer}/keys", {})
    order = store.bought(customer)
    assert await use(store, customer, 2_000)
    gateway = BillingClient(store.billing_url, store.platform.gateway_token)
    assert await gateway.verify_key(key["id"], key_digest(key["key"]))

    dispute = store.stripe.dispute(order["charge_id"])
    store.handle()
    assert store.balance(customer) == 0
    assert is_frozen(store, customer)
    with pytest.raises(ApiError) as refused:
        await gateway.verify_key(key["id"], key_digest(key["key"]))
    assert (refused.value.answer_status, refused.value.answer_code) == (403, AccountFrozen.code)
    path = f"/admin/customers/{customer}/checkouts"
    assert store.answer("POST", path, {"plan": "solo"}, 403)["error"]["code"] == "account_frozen"

    store.stripe.close_dispute(dispute["id"], "won")
    store.handle()
    assert store.balance(customer) == 3_000
    assert not is_frozen(store, customer)
    assert await gateway.verify_key(key["id"], key_digest(key["key"]))
    await gateway.close()
    changes = store.answer("GET", f"/admin/customers/{customer}/freeze")["changes"]
    assert [(change["frozen"], change["by"]) for change in changes] == [(False, "stripe"), (True, "stripe")]
    agrees_with_stripe(store)


async def test_a_lost_dispute_stays_taken_and_frozen_until_a_person_lets_go(store: Any) -> None:
    customer = store.customer()
    order = store.bought(customer)
    assert await use(store, customer, 2_000)
    dispute = store.stripe.dispute(order["charge_id"])
    store.stripe.close_dispute(dispute["id"], "lost")
    store.handle()
    assert store.entries(customer)[-2:] == [
        ("dispute", "customer_credits", "stripe_clearing", 3_000, dispute["id"]),
        ("dispute", "disputes", "stripe_clearing", 2_000, dispute["id"]),
    ]
    assert is_frozen(store, customer)
    body = {"frozen": False, "reason": "they paid by transfer"}
    assert not store.answer("PUT", f"/admin/customers/{customer}/freeze", body)["frozen"]
    # The same events once more do not freeze again.
    store.stripe.deliver([event.id for event in store.stripe.events("charge.dispute.created")])
    for event in store.stripe.events("charge.dispute.created", "charge.dispute.closed"):
        store.answer("POST", f"/admin/events/{event.id}/retry")
    store.handle()
    assert not is_frozen(store, customer)
    assert store.see(order["id"])["disputed_cents"] == 5_000
    agrees_with_stripe(store)


def test_an_inquiry_moves_no_money_and_freezes_nobody_until_it_becomes_a_dispute(store: Any) -> None:
    customer = store.customer()
    order = store.bought(customer)
    dispute = store.stripe.dispute(order["charge_id"], inquiry=True)
    store.handle()
    listed = store.answer("GET", f"/admin/reversals?customer_id={customer}")["data"]
    assert [(one["is_inquiry"], one["taken_cents"]) for one in listed] == [(True, 0)]
    assert (store.balance(customer), is_frozen(store, customer)) == (5_000, False)
    store.stripe.escalate(dispute["id"])
    store.handle()
    assert (store.balance(customer), is_frozen(store, customer)) == (0, True)


def test_a_freeze_by_a_person_outlasts_a_dispute_that_is_won(store: Any) -> None:
    customer = store.customer()
    order = store.bought(customer)
    body = {"frozen": True, "reason": "a stolen card, it seems"}
    store.answer("PUT", f"/admin/customers/{customer}/freeze", body)
    dispute = store.stripe.dispute(order["charge_id"])
    store.stripe.close_dispute(dispute["id"], "won")
    store.handle()
    assert is_frozen(store, customer)


def test_a_dispute_keeps_a_customer_frozen_while_another_one_is_won(store: Any) -> None:
    customer = store.customer()
    first, second = store.bought(customer), store.bought(customer)
    won, open_ = store.stripe.dispute(first["charge_id"]), store.stripe.dispute(second["charge_id"])
    store.handle()
    store.stripe.close_dispute(won["id"], "won")
    store.handle()
    assert is_frozen(store, customer)
    store.stripe.close_dispute(open_["id"], "won")
    store.handle()
    assert not is_frozen(store, customer)


def test_refunds_give_back_the_share_of_tax_and_a_dispute_does_not(
    own_platform: Any, running_store: Any
) -> None:
    with running_store(own_platform, stripe_automatic_tax=True) as store:
        customer = store.customer()
        order = store.bought(customer)
        for cents in (1_001, 1_002):
            refund(store, order, cents)
        refund(store, order)
        lines = store.entries(customer)
        assert (
            sum(cents for _, debit, _, cents, _ in lines if debit == "sales_tax_payable")
            == order["tax_cents"]
        )
        assert sum(cents for kind, _, _, cents, _ in lines if kind == "refund") == 5_000
        assert store.balance(customer) == 0

        disputed = store.bought(store.customer())
        dispute = store.stripe.dispute(disputed["charge_id"])
        store.handle()
        assert store.entries(disputed["customer_id"])[-2:] == [
            ("dispute", "customer_credits", "stripe_clearing", 5_000, dispute["id"]),
            ("posting", "disputes", "stripe_clearing", disputed["tax_cents"], dispute["id"]),
        ]
        store.stripe.close_dispute(dispute["id"], "won")
        store.stripe.payout()
        agrees_with_stripe(store)


@pytest.mark.parametrize("tax_cents", [0, 1, 413])
def test_what_was_refunded_whole_has_returned_exactly_price_and_tax(tax_cents: int) -> None:
    order = OrderRow(
        id="ord", customer_id="c", plan="p", plan_name="P", price_cents=5_000, tax_cents=tax_cents,
        credit_nanos=5_000 * NANOS_PER_CENT, cap_tokens=0, created_by="test",
    )  # fmt: skip
    held: list[ReversalRow] = []
    for place, cents in enumerate((1, 333, 2_000, 1_999, order.total_cents - 4_333)):
        credit, tax, lost = split(order, held, "refund", cents)
        assert (credit + tax, lost) == (cents, 0)
        held.append(
            ReversalRow(
                id=str(place), kind="refund", credit_cents=credit, tax_cents=tax, lost_cents=0, amount_cents=cents,
                status="succeeded", taken_at=datetime(2026, 11, 1, tzinfo=UTC), order_id="ord", customer_id="c",
                created_at=datetime(2026, 11, 1, tzinfo=UTC),
            )
        )  # fmt: skip
    assert (sum(r.credit_cents or 0 for r in held), sum(r.tax_cents or 0 for r in held)) == (5_000, tax_cents)
    # A dispute on top of that is beyond the order, and lost.
    assert split(order, held, "dispute", 500) == (0, 0, 500)


async def test_a_payout_and_its_fees_are_in_the_books_and_everything_agrees(store: Any) -> None:
    store.bought(store.customer())
    payout = store.stripe.payout()
    store.handle()
    rows = store.platform.sql(
        "SELECT type, count(*) FROM billing.balance_transaction WHERE payout = %s GROUP BY type", payout["id"]
    )
    assert dict(rows)["charge"] >= 1
    assert store.platform.sql(
        "SELECT count(*) FROM billing.balance_transaction WHERE source = %s AND type = 'payout'", payout["id"]
    ) == [(1,)]
    agrees_with_stripe(store)


async def test_the_evidence_of_a_dispute_is_made_from_ledger_and_statement(store: Any) -> None:
    customer = store.customer()
    key = store.answer("POST", f"/admin/customers/{customer}/keys", {})
    assert not await use(store, customer, 100, key["id"])  # nothing is bought yet
    order = store.bought(customer)
    for _ in range(3):
        assert await use(store, customer, 250, key["id"])
    dispute = store.stripe.dispute(order["charge_id"])
    store.handle()
    path = f"/admin/disputes/{dispute['id']}/evidence.zip"
    answer = store.http.get(path)
    assert answer.status_code == 200, answer.text
    packed = zipfile.ZipFile(io.BytesIO(answer.content))
    assert sorted(packed.namelist()) == [
        "access_activity_log.txt", "fields.json", "service_documentation.pdf", "statement.json",
    ]  # fmt: skip
    assert packed.read("service_documentation.pdf").startswith(b"%PDF")
    log = packed.read("access_activity_log.txt").decode()
    assert log.count(f"{key['prefix']}...{key['last4']} | m | 249 | 1 | 2.50") == 3
    assert "3 requests, 750 tokens" in log
    fields = json.loads(packed.read("fields.json"))
    assert fields["access_activity_log"] == log
    assert fields["customer_email_address"] == "acme@example.com"
    assert order["charge_id"] in fields["uncategorized_text"]
    assert "$7.50 of credits in 3 requests" in fields["uncategorized_text"]
    # Stripe takes them under these names.
    import stripe as library

    addresses: Any = {"api": store.stripe.url}
    client = library.StripeClient(store.stripe.key, base_addresses=addresses)
    taken = client.v1.disputes.update(dispute["id"], {"evidence": fields})
    assert taken.evidence.access_activity_log == log
    assert store.http.get("/admin/disputes/du_unknown/evidence.zip").status_code == 404


def test_a_long_log_keeps_the_newest_lines_and_says_so() -> None:
    def entry(number: int) -> dict[str, Any]:
        return {
            "entry_id": str(uuid.UUID(int=number)), "kind": "usage" if number else "grant", "key_id": "k",
            "hold_id": str(uuid.UUID(int=number)), "model": "m", "prompt_tokens": number, "completion_tokens": 1,
            "amount_nanos": NANOS_PER_CENT, "recorded_at": "2026-11-01T00:00:00.000000Z",
        }  # fmt: skip

    order: Any = SimpleNamespace(id="ord_1", grant_id=uuid.UUID(int=0))
    log = activity_log(iter([entry(number) for number in range(2_001)]), [], order)
    assert len(log) <= MAX_TEXT_CHARACTERS
    assert "2000 requests" in log
    assert "of 2000; the statement has all of them" in log
    assert log.rstrip().splitlines()[-1].split(" | ")[4] == "2000"
