"""API keys: shown once, verified, revoked, expired, counted, and moved from pepper to pepper."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import httpx
import pytest
from pydantic import SecretStr

from darktree_billing.client import AdminClient, BillingClient, key_digest, key_id_of
from darktree_billing.key_format import make_key
from darktree_billing.schemas import MAX_KEYS_PER_CUSTOMER, CreateCustomer, CreateKey


class Platform(Protocol):
    """What these tests use of conftest's platform."""

    billing_url: str
    admin_token: str
    gateway_token: str

    def http(self, token: str | None = None, url: str | None = None) -> httpx.Client: ...
    def sql(self, statement: str, *values: Any) -> list[tuple[Any, ...]]: ...
    def serve_billing(self, **changes: Any) -> str: ...


@pytest.fixture
async def customer_id(admin: AdminClient) -> str:
    return (await admin.create_customer(CreateCustomer(name="Keys", plan="solo"))).id


async def test_a_key_works_and_is_shown_once(
    admin: AdminClient, gateway: BillingClient, customer_id: str
) -> None:
    made = await admin.create_key(customer_id, CreateKey(name="laptop"))
    assert key_id_of(made.key) == made.id
    assert (made.prefix, made.last4) == (f"dt_live_{made.id}", made.key[-4:])
    assert (made.name, made.status, made.expires_at, made.last_used_day) == ("laptop", "active", None, None)
    verified = await gateway.verify_key(made.id, key_digest(made.key))
    assert verified is not None
    assert (verified.key_id, verified.customer_id, verified.expires_at) == (made.id, customer_id, None)
    listed = (await admin.keys(customer_id)).model_dump_json()
    assert made.id in listed
    assert made.key not in listed
    assert made.key.partition("_")[2][13:] not in listed


async def test_a_key_that_was_never_made_or_has_another_secret_is_unknown(
    admin: AdminClient, gateway: BillingClient, customer_id: str
) -> None:
    made = await admin.create_key(customer_id, CreateKey())
    stranger = make_key()
    assert await gateway.verify_key(stranger.id, key_digest(stranger.text)) is None
    assert await gateway.verify_key(made.id, key_digest(stranger.text)) is None
    assert await gateway.verify_key(stranger.id, key_digest(made.key)) is None


async def test_a_revoked_key_is_unknown_and_revoking_again_changes_nothing(
    admin: AdminClient, gateway: BillingClient, customer_id: str
) -> None:
    kept, made = [await admin.create_key(customer_id, CreateKey(name=name)) for name in ("kept", "gone")]
    first = await admin.revoke_key(made.id)
    assert (first.status, first.id) == ("revoked", made.id)
    assert await admin.revoke_key(made.id) == first
    assert await gateway.verify_key(made.id, key_digest(made.key)) is None
    assert await gateway.verify_key(kept.id, key_digest(kept.key)) is not None
    assert [key.status for key in (await admin.keys(customer_id)).data] == ["active", "revoked"]


def test_revoking_a_key_that_is_not_there_is_not_found(http: httpx.Client) -> None:
    refused = http.delete(f"/admin/keys/{make_key().id}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "unknown_key")
    assert http.delete("/admin/keys/short").status_code == 400


async def test_a_key_works_until_it_expires(
    platform: Platform, admin: AdminClient, gateway: BillingClient, customer_id: str
) -> None:
    expires_at = datetime.now(UTC) + timedelta(days=1)
    made = await admin.create_key(customer_id, CreateKey(expires_at=expires_at))
    assert made.expires_at == expires_at
    verified = await gateway.verify_key(made.id, key_digest(made.key))
    assert verified is not None
    assert verified.expires_at == expires_at
    platform.sql("UPDATE billing.api_key SET expires_at = now() WHERE id = %s", made.id)  # a day goes by
    assert await gateway.verify_key(made.id, key_digest(made.key)) is None
    assert (await admin.keys(customer_id)).data[0].status == "expired"
    assert (await admin.revoke_key(made.id)).status == "revoked"


@pytest.mark.parametrize(
    "expires_at",
    [
        "2020-01-01T00:00:00Z",
        "9999-12-31T23:59:59-23:59",
        "0001-01-01T00:00:00+23:59",
        "2099-01-01T00:00:00",
        "soon",
    ],
)
def test_an_expiry_that_has_passed_is_too_far_or_has_no_zone_is_refused(
    http: httpx.Client, expires_at: str
) -> None:
    http.post("/admin/customers", json={"id": "expiry", "name": "E", "plan": "solo"})
    refused = http.post("/admin/customers/expiry/keys", json={"expires_at": expires_at})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "expires_at")
    assert http.get("/admin/customers/expiry/keys").json()["data"] == []


async def test_a_customer_has_a_bounded_number_of_keys_in_use(
    platform: Platform, admin: AdminClient, customer_id: str
) -> None:
    made = [await admin.create_key(customer_id, CreateKey()) for _ in range(2)]
    platform.sql(
        "INSERT INTO billing.api_key (id, customer_id, name, last4, digest)"
        " SELECT 'filler' || i, %s, 'filler', '0000', sha256(i::text::bytea) FROM generate_series(1, %s) i",
        customer_id,
        MAX_KEYS_PER_CUSTOMER - 4,
    )
    tries = await asyncio.gather(
        *(admin.create_key(customer_id, CreateKey()) for _ in range(6)), return_exceptions=True
    )
    refusals = [getattr(result, "answer_code", None) for result in tries if isinstance(result, Exception)]
    assert refusals == ["too_many_keys"] * 4
    await admin.revoke_key(made[0].id)
    platform.sql("UPDATE billing.api_key SET expires_at = now() WHERE id = %s", made[1].id)
    for _ in range(2):
        await admin.create_key(customer_id, CreateKey())
    refused = platform.http().post(f"/admin/customers/{customer_id}/keys", json={})
    assert refused.status_code == 409
    assert "revoke one first" in refused.json()["error"]["message"]


async def test_a_list_of_keys_is_in_order_of_their_making_page_by_page(
    admin: AdminClient, customer_id: str
) -> None:
    made = [(await admin.create_key(customer_id, CreateKey(name=f"key {number}"))).id for number in range(5)]
    seen: list[str] = []
    after: str | None = None
    for _ in range(3):
        page = await admin.keys(customer_id, limit=2, after=after)
        seen += [key.id for key in page.data]
        after = page.next
    assert after is None
    assert seen == made


async def test_a_cursor_of_another_customers_list_is_refused(
    http: httpx.Client, admin: AdminClient, customer_id: str
) -> None:
    other = (await admin.create_customer(CreateCustomer(name="Other", plan="solo"))).id
    key = await admin.create_key(other, CreateKey())
    refused = http.get(f"/admin/customers/{customer_id}/keys", params={"after": key.id})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "after")


async def test_the_day_of_the_last_use_is_noted_and_a_wrong_secret_is_no_use(
    platform: Platform, admin: AdminClient, gateway: BillingClient, customer_id: str
) -> None:
    made = await admin.create_key(customer_id, CreateKey())
    await gateway.verify_key(made.id, "0" * 64)
    assert (await admin.keys(customer_id)).data[0].last_used_day is None
    today = "SELECT (now() AT TIME ZONE 'UTC')::date"
    [[before]], versions = platform.sql(today), []
    for _ in range(2):
        await gateway.verify_key(made.id, key_digest(made.key))
        versions += platform.sql("SELECT xmin::text FROM billing.api_key WHERE id = %s", made.id)
    [[after]] = platform.sql(today)
    assert (await admin.keys(customer_id)).data[0].last_used_day in {before, after}
    assert versions[0] == versions[1] or before < after


async def test_keys_move_to_a_new_pepper_as_they_are_used(
    own_platform: Platform,
) -> None:
    old = own_platform.http()
    old.post("/admin/customers", json={"id": "moving", "name": "M", "plan": "solo"})
    used, unused = [old.post("/admin/customers/moving/keys", json={}).json() for _ in range(2)]
    settings: dict[str, Any] = {"key_pepper": SecretStr("another secret pepper"), "key_pepper_version": 2}

    def verify(url: str, key: dict[str, Any]) -> int:
        body = {"key_id": key["id"], "key_sha256": key_digest(key["key"])}
        return (
            own_platform.http(own_platform.gateway_token, url)
            .post("/internal/keys/verify", json=body)
            .status_code
        )

    previous = {"key_pepper_previous": SecretStr("a pepper that only the tests know")}
    both = own_platform.serve_billing(**settings, **previous)
    assert own_platform.http(url=both).get("/admin/status").json()["keys_with_old_pepper"] == 2
    assert [verify(both, used), verify(both, used)] == [200, 200]
    assert own_platform.http(url=both).get("/admin/status").json()["keys_with_old_pepper"] == 1
    only_new = own_platform.serve_billing(**settings)
    assert verify(only_new, used) == 200
    assert verify(only_new, unused) == 404
    assert verify(own_platform.billing_url, used) == 404


def test_replicas_of_two_steps_of_a_rotation_know_each_others_keys(own_platform: Platform) -> None:
    http = own_platform.http()
    http.post("/admin/customers", json={"id": "moving", "name": "M", "plan": "solo"})
    key = http.post("/admin/customers/moving/keys", json={}).json()
    old, new = SecretStr("a pepper that only the tests know"), SecretStr("another secret pepper")
    first = own_platform.serve_billing(key_pepper=old, key_pepper_next=new)
    second = own_platform.serve_billing(key_pepper=new, key_pepper_version=2, key_pepper_previous=old)

    def verify(url: str) -> int:
        body = {"key_id": key["id"], "key_sha256": key_digest(key["key"])}
        answer = own_platform.http(own_platform.gateway_token, url).post("/internal/keys/verify", json=body)
        return int(answer.status_code)

    def stored() -> int:
        [[version]] = own_platform.sql("SELECT pepper_version FROM billing.api_key WHERE id = %s", key["id"])
        return int(version)

    assert [(verify(url), stored()) for url in (first, second, first, second)] == [
        (200, 1),
        (200, 2),
        (200, 2),  # and it does not move back
        (200, 2),
    ]


def test_a_look_up_with_anything_but_a_digest_is_refused(platform: Platform) -> None:
    gateway = platform.http(platform.gateway_token)
    for body in (
        {},
        {"key_id": "x"},
        {"key_id": "x", "key_sha256": "A" * 64},
        {"key_id": "", "key_sha256": "0" * 64},
        {"key_id": "\x00", "key_sha256": "0" * 64},
        {"key_id": "x", "key_sha256": "0" * 64, "key": "y"},
    ):
        assert gateway.post("/internal/keys/verify", json=body).status_code == 400


async def test_a_catalog_follows_the_plans_file(
    own_platform: Any, at_once: Callable[[list[Callable[[], Any]]], list[Any]]
) -> None:
    client = BillingClient(own_platform.billing_url, own_platform.gateway_token)
    try:
        before = await client.catalog()
        assert [model.id for model in before.models] == ["qwen25-14b-awq", "qwen25-32b-awq"]
        content = own_platform.plans_file.read_text()
        own_platform.plans_file.write_text(
            content.replace("default_cap_tokens: 2000", "default_cap_tokens: 2500")
        )
        assert (await client.catalog()).plans[0].default_cap_tokens == 2_500
        own_platform.plans_file.write_text("plans: 1")
        assert (await client.catalog()).plans[0].default_cap_tokens == 2_500
        status = own_platform.http().get("/admin/status").json()
        assert "plans: " in status["plans_problem"]
    finally:
        await client.close()
