"""Customers: made once with their account, listed in order, and never half there."""

from collections.abc import Callable
from typing import Any, Protocol

import httpx
import pytest

from darktree_billing.client import AdminClient
from darktree_billing.schemas import CreateCustomer
from darktree_kit.errors import ApiError


class Platform(Protocol):
    """What these tests use of conftest's platform."""

    def http(self, token: str | None = None, url: str | None = None) -> httpx.Client: ...
    def sql(self, statement: str, *values: Any) -> list[tuple[Any, ...]]: ...
    def serve_billing(self, **changes: Any) -> str: ...


async def test_a_customer_has_an_account_with_the_plans_cap_and_no_credits(admin: AdminClient) -> None:
    made = await admin.create_customer(
        CreateCustomer(name="Acme GmbH", email="ops@acme.example", plan="team")
    )
    assert made.id.startswith("cus_")
    assert (made.name, made.email, made.plan) == ("Acme GmbH", "ops@acme.example", "team")
    assert await admin.customer(made.id) == made
    account = await admin.balance(made.id)
    assert (account.balance_nanos, account.cap_tokens, account.entry_count) == (0, 7_000, 0)


def test_making_the_same_customer_again_is_the_same_customer(http: httpx.Client) -> None:
    body = {"id": "twice", "name": "Twice", "plan": "solo"}
    first, again = http.post("/admin/customers", json=body), http.post("/admin/customers", json=body)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()


@pytest.mark.parametrize(
    ("field", "value"),
    [("name", "Other"), ("email", "other@example.com"), ("plan", "scale"), ("plan", "none-such")],
)
def test_the_same_id_with_another_body_is_a_conflict_that_names_the_field(
    http: httpx.Client, field: str, value: str
) -> None:
    body = {"id": "taken", "name": "Taken", "plan": "solo"}
    http.post("/admin/customers", json=body)
    refused = http.post("/admin/customers", json=body | {field: value})
    assert refused.status_code == 409
    assert refused.json()["error"]["param"] == field
    assert refused.json()["error"]["code"] == "customer_exists"
    assert refused.headers["x-should-retry"] == "false"
    assert http.get("/admin/customers/taken/balance").json()["cap_tokens"] == 2_000


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"plan": "gold"}, "plan"),
        ({"plan": None}, "plan"),
        ({"name": ""}, "name"),
        ({"name": "a\x00b"}, "name"),
        ({"name": "x" * 129}, "name"),
        ({"id": "Acme"}, "id"),
        ({"id": "a/b"}, "id"),
        ({"id": "x" * 65}, "id"),
        ({"email": "nobody"}, "email"),
        ({"email": "a\x00@b"}, "email"),
        ({"email": "a" * 250 + "@b.example"}, "email"),
        ({"cap_tokens": 1}, "cap_tokens"),
    ],
)
def test_a_wrong_field_is_refused_by_its_name(http: httpx.Client, change: dict[str, Any], param: str) -> None:
    refused = http.post("/admin/customers", json={"id": "wrong", "name": "W", "plan": "solo"} | change)
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert http.get("/admin/customers/wrong").status_code == 404


def test_an_unknown_plan_is_told_what_the_plans_are(http: httpx.Client) -> None:
    error = http.post("/admin/customers", json={"name": "W", "plan": "gold"}).json()["error"]
    assert error["code"] == "unknown_plan"
    assert error["message"] == "There is no plan 'gold'; the plans are solo, team, scale."


@pytest.mark.parametrize("rest", ["", "/keys", "/cap", "/balance", "/entries"])
def test_a_customer_that_is_not_there_is_not_found(http: httpx.Client, rest: str) -> None:
    refused = http.get(f"/admin/customers/nobody{rest}")
    assert refused.status_code == 404
    assert refused.json()["error"]["code"] == "unknown_customer"
    assert http.get(f"/admin/customers/NOBODY{rest}").status_code == 400


def test_nothing_is_written_for_a_customer_that_is_not_there(http: httpx.Client) -> None:
    grant = {"dollars": "5", "reason": "none"}
    assert http.post("/admin/customers/nobody/grants", json=grant).status_code == 404
    assert http.put("/admin/customers/nobody/cap", json={"cap_tokens": 1}).status_code == 404
    assert http.post("/admin/customers/nobody/keys", json={}).status_code == 404


def test_of_many_who_make_one_customer_at_once_all_get_the_same(
    platform: Platform, at_once: Callable[[list[Callable[[], Any]]], list[Any]]
) -> None:
    clients = [platform.http() for _ in range(8)]
    bodies = [{"id": "raced", "name": "Raced", "plan": ("solo", "scale")[number % 2]} for number in range(8)]

    def creation(client: httpx.Client, body: dict[str, str]) -> Callable[[], httpx.Response]:
        return lambda: client.post("/admin/customers", json=body)

    answers = at_once([creation(client, body) for client, body in zip(clients, bodies, strict=True)])
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == [200] * 3 + [201] + [409] * 4
    plan = clients[0].get("/admin/customers/raced").json()["plan"]
    cap = clients[0].get("/admin/customers/raced/balance").json()["cap_tokens"]
    assert cap == {"solo": 2_000, "scale": 15_000}[plan]


def test_an_account_left_by_an_attempt_that_failed_gets_the_cap_of_the_one_that_succeeds(
    platform: Platform,
) -> None:
    http = platform.http()
    http.post("/admin/customers", json={"id": "half", "name": "Half", "plan": "solo"})
    platform.sql("DELETE FROM billing.customer WHERE id = 'half'")  # as if its commit had failed
    made = http.post("/admin/customers", json={"id": "half", "name": "Half", "plan": "scale"})
    assert made.status_code == 201
    assert http.get("/admin/customers/half/balance").json()["cap_tokens"] == 15_000


def test_a_list_shows_every_customer_once_though_others_arrive(own_platform: Platform) -> None:
    http = own_platform.http()
    for number in range(7):
        http.post("/admin/customers", json={"id": f"c{number}0", "name": "N", "plan": "solo"})
    seen: list[str] = []
    after: dict[str, str] = {}
    while True:
        page = http.get("/admin/customers", params={"limit": "3", **after}).json()
        assert len(page["data"]) <= 3
        seen += [customer["id"] for customer in page["data"]]
        if page["next"] is None:
            break
        after = {"after": page["next"]}
        http.post("/admin/customers", json={"id": f"{page['next']}x", "name": "New", "plan": "solo"})
        http.post("/admin/customers", json={"id": "a-first", "name": "New", "plan": "solo"})
    assert [customer_id for customer_id in seen if customer_id.endswith("0")] == [f"c{n}0" for n in range(7)]
    assert len(seen) == len(set(seen))


@pytest.mark.parametrize(
    "params", [{"limit": "0"}, {"limit": "1001"}, {"limit": "x"}, {"after": ""}, {"after": "a b"}]
)
def test_a_page_out_of_bounds_is_refused(http: httpx.Client, params: dict[str, str]) -> None:
    for path in ("/admin/customers", "/admin/customers/page/keys", "/admin/customers/page/entries"):
        http.post("/admin/customers", json={"id": "page", "name": "Page", "plan": "solo"})
        refused = http.get(path, params=params)
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == next(iter(params))


async def test_the_client_raises_billings_own_refusal(admin: AdminClient) -> None:
    with pytest.raises(ApiError) as refused:
        await admin.customer("nobody")
    assert (refused.value.answer_status, refused.value.answer_code) == (404, "unknown_customer")
    with pytest.raises(ApiError) as refused:
        await admin.customer("../plans")
    assert refused.value.answer_status in {400, 404}
