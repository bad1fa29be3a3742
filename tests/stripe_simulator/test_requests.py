"""How the API takes requests: keys, versions, idempotency, pages, expansion, and what goes wrong on demand."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from stripe import (
    APIConnectionError,
    APIError,
    AuthenticationError,
    IdempotencyError,
    InvalidRequestError,
    RateLimitError,
    StripeClient,
)

from darktree_stripe_simulator.client import ControlError, StripeStandIn
from darktree_stripe_simulator.settings import VERSION

MakeSession = Callable[..., str]
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def test_the_key_and_the_version_must_be_right(stripe: StripeStandIn) -> None:
    addresses: Any = {"api": stripe.url}
    with pytest.raises(AuthenticationError, match="Invalid API Key"):
        StripeClient("sk_test_other", base_addresses=addresses).v1.balance.retrieve()
    with pytest.raises(InvalidRequestError, match="Invalid Stripe API version"):
        StripeClient(stripe.key, base_addresses=addresses, stripe_version="2020-08-27").v1.balance.retrieve()
    assert httpx.get(f"{stripe.url}/v1/balance").status_code == 401
    answer = httpx.get(f"{stripe.url}/v1/balance", auth=(stripe.key, ""))
    assert (answer.status_code, answer.headers["stripe-version"]) == (200, VERSION)
    assert answer.headers["request-id"].startswith("req_")


def test_the_same_idempotency_key_gives_the_same_answer_once(
    stripe: StripeStandIn, api: StripeClient, line_item: dict[str, Any]
) -> None:
    params: Any = {"mode": "payment", "success_url": "https://a.example/", "line_items": [line_item]}
    options: Any = {"idempotency_key": "ord_1"}
    first = api.v1.checkout.sessions.create(params, options)
    second = api.v1.checkout.sessions.create(params, options)
    assert first.id == second.id
    assert second.last_response is not None
    assert second.last_response.headers["idempotent-replayed"] == "true"
    assert len(api.v1.checkout.sessions.list().data) == 1
    other: Any = {**params, "client_reference_id": "ord_2"}
    with pytest.raises(IdempotencyError, match="same parameters"):
        api.v1.checkout.sessions.create(other, options)
    stripe.advance(24 * 3600)
    assert api.v1.checkout.sessions.create(params, options).id != first.id


def test_a_replayed_answer_is_as_it_was_and_not_as_it_is(
    stripe: StripeStandIn, api: StripeClient, make_session: MakeSession, line_item: dict[str, Any]
) -> None:
    params: Any = {"mode": "payment", "success_url": "https://a.example/", "line_items": [line_item]}
    options: Any = {"idempotency_key": "ord_1"}
    stripe.pay(api.v1.checkout.sessions.create(params, options).id)
    assert api.v1.checkout.sessions.create(params, options).status == "open"


def test_what_was_refused_before_it_began_is_not_kept_under_its_key(
    api: StripeClient, line_item: dict[str, Any]
) -> None:
    params: Any = {"mode": "payment", "success_url": "https://a.example/"}
    options: Any = {"idempotency_key": "ord_1"}
    with pytest.raises(InvalidRequestError):
        api.v1.checkout.sessions.create(params, options)
    params["line_items"] = [line_item]
    assert api.v1.checkout.sessions.create(params, options).id


def test_an_answer_that_was_lost_is_repeated_by_the_library_without_a_second_session(
    stripe: StripeStandIn, line_item: dict[str, Any]
) -> None:
    addresses: Any = {"api": stripe.url}
    retrying = StripeClient(stripe.key, base_addresses=addresses, max_network_retries=2)
    stripe.fault("lost", path="checkout/sessions")
    params: Any = {"mode": "payment", "success_url": "https://a.example/", "line_items": [line_item]}
    id = retrying.v1.checkout.sessions.create(params).id
    assert [session.id for session in retrying.v1.checkout.sessions.list().data] == [id]


def test_a_failure_after_the_work_is_replayed_by_its_key_for_a_day(
    stripe: StripeStandIn, api: StripeClient, line_item: dict[str, Any]
) -> None:
    stripe.fault("failed", status=500)
    params: Any = {"mode": "payment", "success_url": "https://a.example/", "line_items": [line_item]}
    for _ in range(2):
        with pytest.raises(APIError):
            api.v1.checkout.sessions.create(params, {"idempotency_key": "ord_1"})
    assert len(api.v1.checkout.sessions.list().data) == 1, "it was made although the answer was an error"


def test_faults_meet_the_requests_that_they_name_and_are_used_up(
    stripe: StripeStandIn, api: StripeClient
) -> None:
    stripe.fault("refused", status=429, path="balance$")
    stripe.fault("lost", method="GET", path="charges")
    with pytest.raises(APIConnectionError):
        api.v1.charges.list()
    assert api.v1.charges.list().data == []
    with pytest.raises(RateLimitError):
        api.v1.balance.retrieve()
    assert api.v1.balance.retrieve().object == "balance"
    stripe.fault("refused", times=5)
    stripe.clear_faults()
    assert api.v1.balance.retrieve().object == "balance"


def test_a_list_is_read_page_by_page_the_newest_first(api: StripeClient, make_session: MakeSession) -> None:
    made = [make_session() for _ in range(7)]
    params: Any = {"limit": 3}
    page = api.v1.checkout.sessions.list(params)
    assert [session.id for session in page.data] == made[:3:-1]
    assert page.has_more
    assert [session.id for session in page.auto_paging_iter()] == made[::-1]
    back = api.v1.checkout.sessions.list({"limit": 2, "ending_before": made[2]})
    assert [session.id for session in back.data] == [made[4], made[3]]
    assert back.has_more
    last = api.v1.checkout.sessions.list({"limit": 10, "starting_after": made[1]})
    assert ([session.id for session in last.data], last.has_more) == ([made[0]], False)
    for wrong in ({"limit": 101}, {"limit": 0}, {"starting_after": "cs_none"}):
        with pytest.raises(InvalidRequestError):
            api.v1.checkout.sessions.list(wrong)  # type: ignore[arg-type]


def test_lists_are_filtered(stripe: StripeStandIn, api: StripeClient, make_session: MakeSession) -> None:
    first, second = stripe.pay(make_session()), stripe.pay(make_session(), email="other@example.com")
    later = stripe.advance(1000)
    third = make_session()
    sessions = api.v1.checkout.sessions

    def found(**params: Any) -> list[str]:
        return [session.id for session in sessions.list(params).data]  # type: ignore[arg-type]

    assert found(status="open") == [third]
    assert found(payment_intent=first["payment_intent"]) == [first["id"]]
    assert found(customer_details={"email": "other@example.com"}) == [second["id"]]
    assert found(created={"gte": later}) == [third]
    assert found(created={"lt": later}) == [second["id"], first["id"]]
    (charge,) = api.v1.charges.list({"payment_intent": second["payment_intent"]}).data
    assert charge.billing_details.email == "other@example.com"
    assert len(api.v1.events.list({"types": ["charge.succeeded", "charge.updated"]}).data) == 4
    assert len(api.v1.events.list({"type": "checkout.session.completed"}).data) == 2


def test_events_are_listed_for_thirty_days(
    stripe: StripeStandIn, api: StripeClient, make_session: MakeSession
) -> None:
    stripe.pay(make_session())
    event = api.v1.events.list({"limit": 1}).data[0]
    stripe.advance(31 * 86_400)
    assert api.v1.events.list().data == []
    assert api.v1.events.retrieve(event.id).id == event.id


def test_ids_in_answers_become_objects_when_that_is_asked(
    stripe: StripeStandIn, api: StripeClient, make_session: MakeSession
) -> None:
    session = stripe.pay(make_session(customer_creation="always"))
    params: Any = {"expand": ["data.source.payment_intent.customer"]}
    (transaction,) = api.v1.balance_transactions.list(params).data
    source: Any = transaction.source
    assert source.payment_intent.customer.email == "payer@example.com"
    assert source.payment_intent.id == session["payment_intent"]
    refunds: Any = api.v1.charges.retrieve(source.id, {"expand": ["refunds"]}).refunds
    assert refunds.data == []
    for path in ("colour", "payment_intent.latest_charge.balance_transaction.source.customer"):
        with pytest.raises(InvalidRequestError, match="expand"):
            api.v1.checkout.sessions.retrieve(session["id"], {"expand": [path]})


def test_what_does_not_exist_is_told_by_its_kind(stripe: StripeStandIn, api: StripeClient) -> None:
    with pytest.raises(InvalidRequestError, match=r"No such checkout\.session: 'cs_none'") as refused:
        api.v1.checkout.sessions.retrieve("cs_none")
    assert (refused.value.http_status, refused.value.code) == (404, "resource_missing")
    with pytest.raises(InvalidRequestError, match="Unrecognized request URL"):
        api.v1.subscriptions.list()
    with pytest.raises(ControlError, match="No such charge"):
        stripe.dispute("ch_none")


def test_metadata_is_changed_key_by_key(
    stripe: StripeStandIn, api: StripeClient, make_session: MakeSession
) -> None:
    stripe.pay(make_session(payment_intent_data={"metadata": {"a": "1", "0": "zero"}}))
    (charge,) = api.v1.charges.list().data
    assert charge.metadata.to_dict() == {"a": "1", "0": "zero"}
    changed = api.v1.charges.update(charge.id, {"metadata": {"a": "", "b": "2"}})
    assert changed.metadata.to_dict() == {"b": "2", "0": "zero"}


def test_a_body_that_is_no_form_of_stripes_is_refused(stripe: StripeStandIn) -> None:
    headers = {**FORM, "Authorization": f"Bearer {stripe.key}"}
    for content in ("a[b=c", "a[b][c][d][e][f][g][h][i]=1", "a=1&a[b]=2", "%ff=1", "&".join(["a=1"] * 2_000)):
        answer = httpx.post(f"{stripe.url}/v1/refunds", content=content, headers=headers)
        assert answer.status_code == 400, content[:40]
        assert answer.json()["error"]["type"] == "invalid_request_error"
    too_large = httpx.post(f"{stripe.url}/v1/refunds", content=b"x" * (6 * 2**20 + 1), headers=headers)
    assert too_large.status_code == 413


def test_evidence_can_be_uploaded_and_named(
    stripe: StripeStandIn, api: StripeClient, make_session: MakeSession
) -> None:
    headers = {"Authorization": f"Bearer {stripe.key}"}
    uploaded = httpx.post(
        f"{stripe.url}/v1/files",
        headers=headers,
        data={"purpose": "dispute_evidence"},
        files={"file": ("usage.pdf", b"%PDF-1.7", "application/pdf")},
    ).json()
    assert (uploaded["filename"], uploaded["size"], uploaded["type"]) == ("usage.pdf", 8, "pdf")
    assert httpx.get(uploaded["url"]).content == b"%PDF-1.7"
    stripe.pay(make_session())
    dispute = stripe.dispute(api.v1.charges.list().data[0].id)
    evidence: Any = {"service_documentation": uploaded["id"], "access_activity_log": "10:00 a request"}
    updated = api.v1.disputes.update(dispute["id"], {"evidence": evidence, "submit": False})
    assert (updated.status, updated.evidence_details.has_evidence) == ("needs_response", True)
    assert updated.evidence.service_documentation == uploaded["id"]
    with pytest.raises(InvalidRequestError, match="No such file upload"):
        api.v1.disputes.update(dispute["id"], {"evidence": {"receipt": "file_none"}})
    nothing: dict[str, Any] = {"other": b"x"}
    for data, files in (({"purpose": "dispute_evidence"}, nothing), ({"purpose": "logo"}, {"file": b"x"})):
        assert (
            httpx.post(f"{stripe.url}/v1/files", headers=headers, data=data, files=files).status_code == 400
        )
