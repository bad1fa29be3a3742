"""Stripe's events: verified, written down once, handled once, tried again, given up, and found when they never came."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from pydantic import SecretStr, ValidationError

from darktree_billing import events, inbox, payments
from darktree_billing import sweep as sweeping
from darktree_billing.fulfilment import MAX_LOOKS, Shop, fulfil, look
from darktree_billing.inbox import MAX_ATTEMPTS, MAX_PAUSE_SECONDS, Inbox, Retries
from darktree_billing.payments import EVENT_TYPES, Payments
from darktree_billing.settings import MAX_WEBHOOK_SECRETS, Settings, webhook_secrets
from darktree_billing.sweep import sweep
from darktree_billing.webhooks import MAX_EVENT_BYTES
from darktree_kit.db import Database
from darktree_kit.errors import ApiError
from darktree_ledger.client import LedgerClient


@asynccontextmanager
async def shop_of(store: Any, **changes: Any) -> AsyncIterator[Shop]:
    """A shop in this process, on the store's database."""
    settings = store.platform.settings
    database = Database(settings.database_url.get_secret_value())
    ledger = LedgerClient(
        changes.get("ledger_url", settings.ledger_url), settings.ledger_token.get_secret_value()
    )
    payments = Payments(store.stripe.key, api_base=store.stripe.url)
    yield Shop(database, ledger, payments)
    await payments.close()
    await ledger.close()
    await database.close()


def post(store: Any, payload: bytes, headers: dict[str, str]) -> httpx.Response:
    return httpx.post(f"{store.billing_url}/webhooks/stripe", content=payload, headers=headers, timeout=30)


def error_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def completed(store: Any) -> tuple[dict[str, Any], Any]:
    """Return a paid order, and the event that says so, which was not delivered."""
    order = store.order(store.customer())
    store.stripe.pay(order["session_id"])
    return order, store.stripe.events("checkout.session.completed")[-1]


def test_an_event_is_written_down_once_however_often_it_comes(store: Any) -> None:
    order, event = completed(store)
    assert [post(store, event.payload, event.headers).status_code for _ in range(3)] == [200] * 3
    # Handled comes after paid, in a transaction of its own.
    store.wait(lambda: store.answer("GET", f"/admin/events/{event.id}")["order_id"] == order["id"])
    assert store.see(order["id"])["state"] == "paid"
    kept = store.answer("GET", f"/admin/events/{event.id}")
    assert (kept["type"], kept["source"]) == (event.type, "webhook")
    assert kept["api_version"] == "2026-10-28.endive"
    stored = store.platform.sql("SELECT payload FROM billing.stripe_event WHERE id = %s", event.id)
    assert stored == [(event.payload.decode(),)]
    store.handle()


def test_what_is_not_signed_by_a_known_secret_is_refused_and_not_kept(store: Any) -> None:
    _, event = completed(store)
    header = event.headers["Stripe-Signature"]
    forged = header.replace("v1=", "v1=00")
    for payload, headers in (
        (event.payload, {}),
        (event.payload, {"Stripe-Signature": "nonsense"}),
        (event.payload, {"Stripe-Signature": forged}),
        (event.payload + b" ", {"Stripe-Signature": header}),
        (event.payload.replace(b"5000", b"9999"), {"Stripe-Signature": header}),
        (b"", {"Stripe-Signature": header}),
    ):
        answer = post(store, payload, headers)
        assert error_of(answer) == (400, "invalid_signature"), payload
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert store.http.get(f"/admin/events/{event.id}").status_code == 404
    store.handle()


def test_a_signature_that_is_too_old_is_refused(store: Any) -> None:
    completed(store)
    fresh, old = (
        store.stripe.events("checkout.session.completed", signed_seconds_ago=seconds)[-1]
        for seconds in (250, 400)
    )
    assert error_of(post(store, old.payload, old.headers)) == (400, "invalid_signature")
    assert post(store, fresh.payload, fresh.headers).status_code == 200
    store.handle()


def test_a_signed_body_that_is_no_snapshot_event_is_refused(store: Any) -> None:
    import stripe as library

    for body in (
        b"{}",
        b"[]",
        b"nonsense",
        b'{"object": "v2.core.event", "id": "evt_1", "type": "v1.x", "created": "2026-11-01T00:00:00Z"}',
        b'{"object": "event", "id": "evt_1", "type": "x"}',
    ):
        header = library.WebhookSignature._compute_signature  # what signs in the library itself
        at = int(store.platform.sql("SELECT extract(epoch FROM now())::bigint")[0][0])
        signature = header(f"{at}.{body.decode()}", store.stripe.webhook_secret)
        answer = post(store, body, {"Stripe-Signature": f"t={at},v1={signature}"})
        assert error_of(answer) == (400, "invalid_signature"), body


def test_while_the_secret_is_rotated_either_signs(store: Any) -> None:
    secrets = SecretStr(f"whsec_newer, {store.stripe.webhook_secret}")
    url = store.platform.serve_billing(
        stripe_api_key=SecretStr(store.stripe.key),
        stripe_api_base=store.stripe.url,
        stripe_webhook_secrets=secrets,
        stripe_workers=0,
    )
    _, event = completed(store)
    answer = httpx.post(f"{url}/webhooks/stripe", content=event.payload, headers=event.headers)
    assert answer.status_code == 200
    store.handle()


def test_a_body_has_a_bound(store: Any) -> None:
    signature = {"Stripe-Signature": "t=1,v1=0"}
    assert error_of(post(store, b" " * MAX_EVENT_BYTES, signature)) == (400, "invalid_signature")
    assert error_of(post(store, b" " * (MAX_EVENT_BYTES + 1), signature)) == (413, "request_too_large")


def test_events_that_lead_to_nothing_are_kept_and_ignored(store: Any) -> None:
    completed(store)
    store.handle()
    ignored = store.answer("GET", "/admin/events?state=ignored")["data"]
    assert {"payment_intent.succeeded", "charge.succeeded"} <= {event["type"] for event in ignored}
    assert not {event["type"] for event in ignored} & set(EVENT_TYPES)
    refused = store.http.post(f"/admin/events/{ignored[0]['id']}/retry")
    assert error_of(refused) == (409, "event_ignored")


def test_events_are_listed_newest_first_in_pages(store: Any) -> None:
    completed(store)
    store.handle()
    everything = store.answer("GET", "/admin/events?limit=1000")["data"]
    first = store.answer("GET", "/admin/events?limit=2")
    second = store.answer("GET", f"/admin/events?limit=2&after={first['next']}")
    assert [event["id"] for event in first["data"] + second["data"]] == [e["id"] for e in everything[:4]]
    assert error_of(store.http.get("/admin/events?after=evt_unknown")) == (400, "invalid_value")


async def test_handled_events_are_forgotten_after_their_time_and_no_others(store: Any) -> None:
    old = [("done", "done", 401), ("ignored", "ignored", 500), ("new", "done", 399), ("dead", "dead", 500)]
    for name, state, days in old:
        store.platform.sql(
            "INSERT INTO billing.stripe_event"
            " (id, type, created_at, received_at, source, payload, state, next_attempt_at) VALUES"
            " (%s, 'x', now(), now() - make_interval(days => %s), 'poll', '{}', %s, NULL)",
            f"evt_old_{name}", days, state,
        )  # fmt: skip
    async with shop_of(store) as shop, shop.database.sessions.begin() as session:
        assert await events.forget(session, 400) == 2
        assert await events.forget(session, 400) == 0
    left = store.platform.sql("SELECT id FROM billing.stripe_event WHERE id LIKE 'evt_old_%' ORDER BY id")
    assert [row[0] for row in left] == ["evt_old_dead", "evt_old_new"]
    store.platform.sql("DELETE FROM billing.stripe_event WHERE id LIKE 'evt_old_%'")


async def test_an_event_that_fails_is_tried_again_and_then_given_up_until_a_person_retries_it(
    own_platform: Any, running_store: Any, unused_url: str
) -> None:
    with running_store(own_platform, stripe_workers=0) as store:
        order, event = completed(store)
        post(store, event.payload, event.headers)
        async with shop_of(store, ledger_url=unused_url) as broken:
            retries = Retries(max_attempts=3, first_pause_seconds=0)
            assert await Inbox(broken, retries).handle_all() == 3
        dead = store.answer("GET", "/admin/events?state=dead")["data"]
        assert [(one["id"], one["attempts"]) for one in dead] == [(event.id, 3)]
        assert "ledger" in dead[0]["error"]
        assert store.status()["events_dead"] == 1
        assert store.see(order["id"])["state"] == "open"

        assert store.answer("POST", f"/admin/events/{event.id}/retry")["state"] == "waiting"
        async with shop_of(store) as shop:
            assert await Inbox(shop).handle_all() == 1
        assert store.answer("GET", f"/admin/events/{event.id}")["state"] == "done"
        assert store.see(order["id"])["state"] == "paid"


def test_the_inbox_is_woken_when_what_it_shall_find_is_committed(
    own_platform: Any, running_store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Woken before, it finds nothing, and a customer who has paid waits for its next look."""
    found: list[Any] = []

    def look(_: Inbox) -> None:
        found.append(own_platform.sql("SELECT id, state FROM billing.stripe_event"))

    with running_store(own_platform, stripe_workers=0) as store:
        _, event = completed(store)
        monkeypatch.setattr(Inbox, "wake", look)
        post(store, event.payload, event.headers)
        own_platform.sql("UPDATE billing.stripe_event SET state = 'dead', next_attempt_at = NULL")
        store.answer("POST", f"/admin/events/{event.id}/retry")
    assert found == [[(event.id, "waiting")]] * 2


async def test_an_event_that_a_person_retries_while_it_is_handled_is_handled_once_more(
    own_platform: Any, running_store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_store(own_platform, stripe_workers=0) as store:
        order, event = completed(store)
        post(store, event.payload, event.headers)

        async def retried_meanwhile(*facts: Any) -> Any:
            monkeypatch.undo()
            await asyncio.to_thread(store.answer, "POST", f"/admin/events/{event.id}/retry")
            return await fulfil(*facts)

        monkeypatch.setattr(inbox, "fulfil", retried_meanwhile)
        async with shop_of(store) as shop:
            assert await Inbox(shop).handle_all() == 2
        assert store.answer("GET", f"/admin/events/{event.id}")["state"] == "done"
        assert store.see(order["id"])["state"] == "paid"


async def test_an_event_that_failed_waits_before_it_is_tried_again(
    own_platform: Any, running_store: Any
) -> None:
    with running_store(own_platform, stripe_workers=0) as store:
        _, event = completed(store)
        post(store, event.payload, event.headers)
        store.stripe.fault("refused", status=500, path="/v1/checkout/sessions", times=3)
        async with shop_of(store) as shop:
            patient = Inbox(shop)
            assert await patient.handle_one()
            assert not await patient.handle_one()
            waiting = store.answer("GET", f"/admin/events/{event.id}")
            assert (waiting["state"], waiting["attempts"]) == ("waiting", 1)
            assert "Stripe did not do it" in waiting["error"]
            own_platform.sql("UPDATE billing.stripe_event SET next_attempt_at = now()")
            assert await patient.handle_one()
        assert store.answer("GET", f"/admin/events/{event.id}")["state"] == "done"


async def test_an_event_whose_worker_died_is_taken_up_by_another(
    own_platform: Any, running_store: Any
) -> None:
    with running_store(own_platform, stripe_workers=0) as store:
        order, event = completed(store)
        post(store, event.payload, event.headers)
        # A worker claimed it and was killed: the attempt is counted, its time is up.
        own_platform.sql(
            "UPDATE billing.stripe_event SET attempts = 1, next_attempt_at = now() - interval '1 second'"
            " WHERE state = 'waiting'"
        )
        async with shop_of(store) as shop:
            assert await Inbox(shop).handle_all() == 1
        assert store.see(order["id"])["state"] == "paid"


def test_pauses_double_up_to_the_longest_and_cover_half_a_day() -> None:
    retries = Retries()
    pauses = [retries.pause_seconds(attempts) for attempts in range(1, MAX_ATTEMPTS + 1)]
    assert pauses[:3] == [5, 10, 20]
    assert max(pauses) == pauses[-1] == MAX_PAUSE_SECONDS
    assert sum(pauses[:-1]) > 10 * 3600


async def test_a_sweep_finds_what_no_webhook_brought(own_platform: Any, running_store: Any) -> None:
    with running_store(own_platform) as store:
        paid, refunded = store.order(store.customer()), store.bought(store.customer())
        store.stripe.delivery(drop=1.0)
        store.stripe.pay(paid["session_id"])
        async with shop_of(store) as shop:
            report = await sweep(shop, grace=timedelta(0))
        assert (report.orders_checked, report.orders_granted, report.problems) == (1, 1, [])
        assert report.events_found >= 1
        assert report.balance_transactions == 2
        assert store.balance(paid["customer_id"]) == 5_000

        dispute = store.stripe.dispute(refunded["charge_id"])
        found = store.answer("POST", "/admin/payments/sweep")
        assert found["events_found"] >= 1
        store.wait(lambda: store.status()["events_waiting"] == 0)
        assert store.balance(refunded["customer_id"]) == 0
        disputes = store.answer("GET", "/admin/reversals")["data"]
        assert [one["id"] for one in disputes] == [dispute["id"]]
        polled = [e for e in store.answer("GET", "/admin/events")["data"] if e["source"] == "poll"]
        assert polled
        assert store.status()["swept_at"] is not None
        # What had come before is not found again.
        assert store.answer("POST", "/admin/payments/sweep")["events_found"] == 0


async def test_a_sweep_tells_what_it_could_not_do_and_does_the_rest(
    own_platform: Any, running_store: Any
) -> None:
    with running_store(own_platform, stripe_workers=0) as store:
        order = store.order(store.customer())
        store.stripe.pay(order["session_id"])
        store.stripe.fault("refused", status=500, path="/v1/events", times=3)
        async with shop_of(store) as shop:
            report = await sweep(shop, grace=timedelta(0))
        assert report.orders_granted == 1
        assert len(report.problems) == 1
        assert store.status()["swept_at"] is None
        own_platform.sql(
            "UPDATE billing.payment_order SET state = 'open', session_id = NULL, grant_id = NULL, granted_at = NULL,"
            " created_at = now() - interval '3 days'"
        )
        async with shop_of(store) as shop:
            await sweep(shop)
        assert store.see(order["id"])["state"] == "expired"


async def test_a_sweep_looks_at_so_many_orders_and_takes_up_the_rest_the_next_time(
    own_platform: Any, running_store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeping, "MAX_ORDERS", 2)
    with running_store(own_platform, stripe_workers=0) as store:
        orders = [store.order(store.customer()) for _ in range(3)]
        for order in orders:
            store.stripe.pay(order["session_id"])
        async with shop_of(store) as shop:
            granted = [(await sweep(shop, grace=timedelta())).orders_granted for _ in range(2)]
        assert granted == [2, 1]
        states = {store.answer("GET", f"/admin/orders/{order['id']}")["state"] for order in orders}
        assert states == {"paid"}


async def test_pages_of_stripe_have_a_bound_that_is_told(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payments, "PAGE", 1)
    monkeypatch.setattr(payments, "MAX_PAGES", 2)
    for _ in range(3):
        store.stripe.pay(store.order(store.customer())["session_id"])
    async with shop_of(store) as shop:
        with pytest.raises(ApiError, match="more than 2 pages"):
            async for _ in shop.payments.balance_transactions(since=datetime.now(UTC) - timedelta(hours=1)):
                pass


def test_secrets_are_nowhere_in_what_is_told(store: Any, caplog: Any) -> None:
    customer = store.customer()
    store.stripe.fault("refused", status=401, path="/v1/checkout/sessions", times=3)
    answer = store.http.post(f"/admin/customers/{customer}/checkouts", json={"plan": "solo"})
    assert error_of(answer) == (503, "stripe_unavailable")
    told = answer.text + json.dumps(store.answer("GET", "/admin/orders")) + caplog.text
    for secret in (store.stripe.key, store.stripe.webhook_secret):
        assert secret not in told
    store.stripe.clear_faults()


async def test_a_page_shows_what_is_known_when_stripe_cannot_be_asked_and_grants_when_it_can(
    own_platform: Any, running_store: Any
) -> None:
    with running_store(own_platform, stripe_workers=0) as store:
        order, _ = completed(store)
        async with shop_of(store) as shop:
            store.stripe.fault("refused", status=500, path="/v1/checkout/sessions", times=3)
            assert (await look(shop, order["id"])).state == "open"
            for _ in range(MAX_LOOKS):
                await shop.looks.acquire()
            assert (await look(shop, order["id"])).state == "open"
            for _ in range(MAX_LOOKS):
                shop.looks.release()
            looks = await asyncio.gather(*(look(shop, order["id"]) for _ in range(MAX_LOOKS + 2)))
            assert {seen.state for seen in looks} <= {"open", "paid"}
            assert (await look(shop, order["id"])).state == "paid"
        assert store.balance(order["customer_id"]) == 5_000


def test_a_bounded_number_of_secrets_is_taken_and_none_is_told_when_there_are_more(platform: Any) -> None:
    def settings(count: int) -> Settings:
        secrets = ",".join(f"whsec_{number}" for number in range(count))
        kept = {name: getattr(platform.settings, name) for name in type(platform.settings).model_fields}
        return Settings(**kept | {"stripe_webhook_secrets": SecretStr(secrets)})

    assert len(webhook_secrets(settings(MAX_WEBHOOK_SECRETS).stripe_webhook_secrets)) == MAX_WEBHOOK_SECRETS
    with pytest.raises(ValidationError, match="more than 8 secrets") as caught:
        settings(MAX_WEBHOOK_SECRETS + 1)
    assert "whsec" not in str(caught.value)
