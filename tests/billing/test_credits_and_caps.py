"""Credits and caps: billing asks the ledger, exactly once for one id, and shows what the ledger shows."""

import uuid
from datetime import timedelta
from typing import Any, Protocol

import httpx
import pytest
from pydantic import SecretStr

from darktree_billing.client import AdminClient
from darktree_billing.schemas import MAX_CAP_CHANGES_SHOWN, CreateCustomer, GrantCredits, SetCap
from darktree_kit.money import parse_dollars
from darktree_kit.version import VERSION


class Platform(Protocol):
    """What these tests use of conftest's platform."""

    def http(self, token: str | None = None, url: str | None = None) -> httpx.Client: ...
    def sql(self, statement: str, *values: Any) -> list[tuple[Any, ...]]: ...
    def serve_billing(self, **changes: Any) -> str: ...


@pytest.fixture
async def customer_id(admin: AdminClient) -> str:
    return (await admin.create_customer(CreateCustomer(name="Credits", plan="solo"))).id


async def test_credits_reach_the_balance_as_one_bonus_entry(admin: AdminClient, customer_id: str) -> None:
    given = await admin.grant(customer_id, GrantCredits(dollars="$1,250.50", reason="a warm welcome"))
    assert given.amount_nanos == given.balance_nanos == parse_dollars("1250.50")
    assert not given.replayed
    assert (await admin.balance(customer_id)).balance_nanos == given.balance_nanos
    [entry] = (await admin.entries(customer_id)).data
    assert (entry.entry_id, entry.kind, entry.amount_nanos) == (given.entry_id, "grant", given.amount_nanos)
    assert (entry.reason, entry.actor) == ("a warm welcome", "admin")
    assert "bonus" in entry.debit_account


async def test_a_grant_with_an_id_is_given_once_however_often_it_is_sent(
    admin: AdminClient, customer_id: str
) -> None:
    body = GrantCredits(dollars="50", reason="once", grant_id=uuid.uuid4())
    first, again = await admin.grant(customer_id, body), await admin.grant(customer_id, body)
    assert (first.grant_id, first.replayed, again.replayed) == (body.grant_id, False, True)
    assert first.entry_id == again.entry_id
    assert (await admin.balance(customer_id)).balance_nanos == parse_dollars("50")


@pytest.mark.parametrize(("field", "value"), [("dollars", "51"), ("reason", "another")])
def test_a_grants_id_with_another_body_is_a_conflict_that_names_billings_field(
    http: httpx.Client, field: str, value: str
) -> None:
    customer_id = f"conflict-{field}"
    http.post("/admin/customers", json={"id": customer_id, "name": "C", "plan": "solo"})
    body = {"dollars": "50", "reason": "once", "grant_id": str(uuid.uuid4())}
    assert http.post(f"/admin/customers/{customer_id}/grants", json=body).status_code == 200
    refused = http.post(f"/admin/customers/{customer_id}/grants", json=body | {field: value})
    assert refused.status_code == 409
    error = refused.json()["error"]
    assert (error["code"], error["param"]) == ("idempotency_conflict", field)
    assert http.get(f"/admin/customers/{customer_id}/balance").json()["balance_nanos"] == parse_dollars("50")


@pytest.mark.parametrize(
    "dollars",
    [
        "0",
        "-1",
        "",
        "five",
        "1e3",
        "1e9999999",
        "NaN",
        "Infinity",
        "0.0000000001",
        "5000000000",
        "1.2.3",
        "٣",
        50,
        0.5,
    ],
)
def test_what_is_no_amount_of_credits_is_refused(http: httpx.Client, dollars: object) -> None:
    http.post("/admin/customers", json={"id": "amounts", "name": "A", "plan": "solo"})
    refused = http.post("/admin/customers/amounts/grants", json={"dollars": dollars, "reason": "r"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "dollars")
    assert http.get("/admin/customers/amounts/balance").json()["balance_nanos"] == 0


def test_the_smallest_and_the_largest_amounts_are_exact(http: httpx.Client) -> None:
    for dollars in ("0.000000001", "4611686018.427387904"):
        customer_id = http.post("/admin/customers", json={"name": "Exact", "plan": "solo"}).json()["id"]
        given = http.post(f"/admin/customers/{customer_id}/grants", json={"dollars": dollars, "reason": "r"})
        assert given.json()["balance_nanos"] == parse_dollars(dollars)


def test_credits_beyond_what_a_balance_can_hold_are_refused_and_change_nothing(http: httpx.Client) -> None:
    http.post("/admin/customers", json={"id": "vast", "name": "Vast", "plan": "solo"})
    body = {"dollars": "4611686018.427387904", "reason": "r"}
    answers = [http.post("/admin/customers/vast/grants", json=body).status_code for _ in range(3)]
    assert (answers[0], answers[2]) == (200, 400)
    balance = http.get("/admin/customers/vast/balance").json()
    assert balance["balance_nanos"] == answers.count(200) * parse_dollars("4611686018.427387904")


async def test_a_cap_is_set_and_its_changes_are_told_newest_first(
    admin: AdminClient, customer_id: str
) -> None:
    await admin.set_cap(customer_id, SetCap(cap_tokens=5_000, reason="asked for more"))
    shown = await admin.set_cap(customer_id, SetCap(cap_tokens=0))
    told = await admin.cap(customer_id)
    assert told == shown.model_copy(update={"reset_seconds": told.reset_seconds})
    assert (shown.cap_tokens, shown.day_tokens, shown.day_held_tokens) == (0, 0, 0)
    assert 0 < shown.reset_seconds <= timedelta(days=1).total_seconds()
    assert [change.cap_tokens for change in shown.changes] == [0, 5_000, 2_000]
    assert shown.changes[1].reason == "asked for more"
    assert shown.changes[1].previous_cap_tokens == 2_000
    assert shown.changes[0].actor == "admin"


async def test_a_cap_change_that_comes_late_again_does_not_undo_a_newer_one(
    admin: AdminClient, customer_id: str
) -> None:
    earlier = SetCap(cap_tokens=1, operation_id=uuid.uuid4())
    await admin.set_cap(customer_id, earlier)
    await admin.set_cap(customer_id, SetCap(cap_tokens=2))
    assert (await admin.set_cap(customer_id, earlier)).cap_tokens == 2


def test_a_cap_changes_id_with_another_cap_is_a_conflict(http: httpx.Client) -> None:
    http.post("/admin/customers", json={"id": "capped", "name": "C", "plan": "solo"})
    body = {"cap_tokens": 7, "operation_id": str(uuid.uuid4())}
    assert http.put("/admin/customers/capped/cap", json=body).status_code == 200
    refused = http.put("/admin/customers/capped/cap", json=body | {"cap_tokens": 8})
    assert (refused.status_code, refused.json()["error"]["param"]) == (409, "cap_tokens")


@pytest.mark.parametrize("cap", [-1, 100_000_001, 1.5, "many", None])
def test_a_cap_out_of_range_is_refused(http: httpx.Client, cap: object) -> None:
    http.post("/admin/customers", json={"id": "range", "name": "R", "plan": "solo"})
    refused = http.put("/admin/customers/range/cap", json={"cap_tokens": cap})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "cap_tokens")
    assert http.get("/admin/customers/range/cap").json()["cap_tokens"] == 2_000


def test_a_cap_that_changed_very_often_shows_its_latest_changes(
    http: httpx.Client, platform: Platform
) -> None:
    http.post("/admin/customers", json={"id": "often", "name": "O", "plan": "solo"})
    for cap in range(MAX_CAP_CHANGES_SHOWN + 1):
        http.put("/admin/customers/often/cap", json={"cap_tokens": cap})
    changes = http.get("/admin/customers/often/cap").json()["changes"]
    assert [change["cap_tokens"] for change in changes] == list(range(MAX_CAP_CHANGES_SHOWN, 0, -1))


async def test_entries_are_paged_and_chosen_by_kind(admin: AdminClient, customer_id: str) -> None:
    given = [
        (await admin.grant(customer_id, GrantCredits(dollars=str(number), reason="r"))).entry_id
        for number in range(1, 6)
    ]
    seen: list[uuid.UUID] = []
    after: str | None = None
    for _ in range(3):
        page = await admin.entries(customer_id, limit=2, after=after, kind="grant")
        seen += [entry.entry_id for entry in page.data]
        after = page.next
    assert after is None
    assert seen == given[::-1]
    assert (await admin.entries(customer_id, kind="usage")).data == []


def test_entries_of_a_kind_that_is_none_are_refused(http: httpx.Client) -> None:
    http.post("/admin/customers", json={"id": "kinds", "name": "K", "plan": "solo"})
    for params in ({"kind": "gift"}, {"after": "no-cursor"}):
        refused = http.get("/admin/customers/kinds/entries", params=params)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, next(iter(params)))


async def test_the_ledger_checks_itself_when_asked(own_platform: Any) -> None:
    client = AdminClient(own_platform.billing_url, own_platform.admin_token)
    try:
        made = await client.create_customer(CreateCustomer(name="Checked", plan="solo"))
        await client.grant(made.id, GrantCredits(dollars="1", reason="r"))
        report = await client.check_ledger()
        assert (report.customers, report.entries, report.problems) == (1, 1, [])
    finally:
        await client.close()


async def test_the_status_tells_counts_and_that_all_is_well(own_platform: Any) -> None:
    http = own_platform.http()
    http.post("/admin/customers", json={"id": "counted", "name": "C", "plan": "solo"})
    keys = [http.post("/admin/customers/counted/keys", json={}).json()["id"] for _ in range(3)]
    http.delete(f"/admin/keys/{keys[0]}")
    own_platform.sql("UPDATE billing.api_key SET expires_at = now() WHERE id = %s", keys[1])
    assert http.get("/admin/status").json() == {
        "version": VERSION,
        "ledger_problem": None,
        "plans_problem": None,
        "plans": 3,
        "models": 2,
        "customers": 1,
        "active_keys": 1,
        "revoked_keys": 1,
        "expired_keys": 1,
        "keys_with_old_pepper": 0,
    }


def test_without_the_ledger_keys_and_prices_work_and_the_rest_says_try_again(
    own_platform: Any, unused_url: str
) -> None:
    http = own_platform.http()
    http.post("/admin/customers", json={"id": "alone", "name": "A", "plan": "solo"})
    alone = own_platform.http(url=own_platform.serve_billing(ledger_url=unused_url))
    assert alone.get("/readyz").status_code == 200
    assert alone.get("/admin/plans").status_code == 200
    assert alone.post("/admin/customers/alone/keys", json={}).status_code == 201
    assert alone.post("/admin/customers", json={"id": "new", "name": "N", "plan": "solo"}).status_code == 503
    assert alone.get("/admin/customers/new").status_code == 404  # nobody without an account
    assert (
        alone.post("/admin/customers/alone/grants", json={"dollars": "1", "reason": "r"}).status_code == 503
    )
    assert alone.get("/admin/customers/alone/balance").status_code == 503
    assert alone.post("/admin/ledger/check").status_code == 503
    assert "did not answer" in alone.get("/admin/status").json()["ledger_problem"]
    assert http.post("/admin/customers", json={"id": "new", "name": "N", "plan": "solo"}).status_code == 201


def test_a_ledger_that_does_not_admit_billing_is_no_fault_of_the_caller(own_platform: Any) -> None:
    url = own_platform.serve_billing(ledger_token=SecretStr("an old token"))
    refused = own_platform.http(url=url).post("/admin/customers", json={"name": "N", "plan": "solo"})
    assert refused.status_code == 503
    assert "DARKTREE_BILLING_LEDGER_TOKEN" in refused.json()["error"]["message"]
