"""How many requests a customer's keys may send: the plan's limits, or their own."""

from typing import Any

import pytest

from darktree_billing.client import AdminClient, BillingClient, key_digest
from darktree_billing.schemas import CreateCustomer, CreatedKey, CreateKey, RequestLimits
from darktree_kit.errors import ApiError

PLAN = "    default_cap_tokens: 2000"


@pytest.fixture
async def key(admin: AdminClient) -> CreatedKey:
    customer = await admin.create_customer(CreateCustomer(name="Acme", plan="solo"))
    return await admin.create_key(customer.id, CreateKey())


async def in_force(gateway: BillingClient, key: CreatedKey) -> tuple[int | None, int | None]:
    verified = await gateway.verify_key(key.id, key_digest(key.key))
    assert verified is not None
    return verified.requests_per_minute, verified.concurrent_requests


async def test_without_limits_a_key_may_send_any_number(
    admin: AdminClient, gateway: BillingClient, key: CreatedKey
) -> None:
    assert await in_force(gateway, key) == (None, None)
    shown = await admin.limits(key.customer_id)
    assert shown.in_force == shown.own == shown.plan == RequestLimits()


async def test_a_plans_limits_hold_for_its_customers_and_their_own_come_first(
    platform: Any, admin: AdminClient, gateway: BillingClient, key: CreatedKey
) -> None:
    limits = f"{PLAN}\n    requests_per_minute: 600\n    concurrent_requests: 32"
    platform.plans_file.write_text(platform.plans_file.read_text().replace(PLAN, limits, 1))
    assert await in_force(gateway, key) == (600, 32)
    own = await admin.set_limits(key.customer_id, RequestLimits(requests_per_minute=60))
    assert own.in_force == RequestLimits(requests_per_minute=60, concurrent_requests=32)
    assert own.plan == RequestLimits(requests_per_minute=600, concurrent_requests=32)
    assert await in_force(gateway, key) == (60, 32)
    await admin.set_limits(key.customer_id, RequestLimits(requests_per_minute=0, concurrent_requests=0))
    assert await in_force(gateway, key) == (None, None)
    await admin.set_limits(key.customer_id, RequestLimits())
    assert await in_force(gateway, key) == (600, 32)
    (plan, *_) = (await admin.plans()).plans
    assert (plan.requests_per_minute, plan.concurrent_requests) == (600, 32)


async def test_limits_of_nobody_and_limits_that_are_none_are_refused(
    admin: AdminClient, http: Any, key: CreatedKey
) -> None:
    with pytest.raises(ApiError) as unknown:
        await admin.set_limits("nobody", RequestLimits())
    assert unknown.value.answer_status == 404
    path = f"/admin/customers/{key.customer_id}/limits"
    for wrong in ({"requests_per_minute": -1}, {"concurrent_requests": "many"}, {"tokens": 1}):
        assert http.put(path, json=wrong).status_code == 400
