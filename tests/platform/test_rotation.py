"""Every secret is replaced under load, as docs/operations.md says, and no client notices."""

from collections.abc import Iterator
from typing import Any

import httpx
import psycopg
import pytest
from fleet import Fleet, Traffic, fleet_of

Platform = Any  # what tests/platform/conftest.py makes, which cannot be imported

CLIENTS = 8
NEW = {
    name: f"the-new-{name}"
    for name in ("gateway-at-ledger", "billing-at-ledger", "gateway-at-billing", "admin")
}
NEW_PEPPER = "another secret pepper of keys"
ROLES = ("ledger", "billing")
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def platform(started: Any) -> Iterator[Platform]:
    with started({"fast": 2000}, gateways=1) as running:
        yield running


@pytest.fixture(scope="module")
def fleet(platform: Platform) -> Iterator[Fleet]:
    with fleet_of(platform, gateways=1) as running:
        yield running


@pytest.fixture
def customers(platform: Platform) -> list[Any]:
    return [platform.customer(cap_tokens=10_000_000, dollars="9000") for _ in range(4)]


def a_chat(number: int) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": "qwen25-14b-awq",
        "messages": [{"role": "user", "content": "Count the leaves"}],
    }
    body |= {"max_tokens": 10 + number % 20, "extra_body": {"ignore_eos": True}}
    return body | ({"stream": True, "stream_options": {"include_usage": True}} if number % 2 else {})


def present(fleet: Fleet, service: str, name: str) -> str:
    return fleet.copies[service][-1].environment[f"DARKTREE_{service.upper()}_{name}"]


def status_with(fleet: Fleet, service: str, path: str, token: str) -> int:
    url = fleet.copies[service][-1].url + path
    return httpx.get(url, headers={"Authorization": f"Bearer {token}"}).status_code


async def test_tokens_between_services_and_the_administrators_are_replaced_under_load(
    platform: Platform, fleet: Fleet, customers: list[Any]
) -> None:
    old = {
        "gateway-at-ledger": present(fleet, "ledger", "GATEWAY_TOKEN"),
        "billing-at-ledger": present(fleet, "ledger", "BILLING_TOKEN"),
        "gateway-at-billing": present(fleet, "billing", "GATEWAY_TOKEN"),
        "admin": present(fleet, "billing", "ADMIN_TOKEN"),
    }
    both = {name: f"{NEW[name]},{old[name]}" for name in NEW}

    def admit(tokens: dict[str, str]) -> None:
        at_ledger = {
            "GATEWAY_TOKEN": tokens["gateway-at-ledger"],
            "BILLING_TOKEN": tokens["billing-at-ledger"],
        }
        fleet.replace("ledger", **at_ledger)
        fleet.replace("billing", GATEWAY_TOKEN=tokens["gateway-at-billing"], ADMIN_TOKEN=tokens["admin"])

    def send_the_new_ones() -> None:
        fleet.replace("billing", LEDGER_TOKEN=NEW["billing-at-ledger"])
        sent = {"LEDGER_TOKEN": NEW["gateway-at-ledger"], "BILLING_TOKEN": NEW["gateway-at-billing"]}
        fleet.replace("gateway", **sent)

    async with Traffic(fleet.base_url, customers, CLIENTS, a_chat) as traffic:
        await traffic.during(lambda: admit(both))
        await traffic.during(send_the_new_ones)
        await traffic.during(lambda: admit(NEW))
    print(traffic.summary())
    assert traffic.failures == []
    account = f"/v1/accounts/{customers[0].id}"
    for service, path, name in (
        ("ledger", account, "billing-at-ledger"),
        ("billing", "/admin/status", "admin"),
    ):
        assert status_with(fleet, service, path, NEW[name]) == 200
        assert status_with(fleet, service, path, old[name]) == 401
    platform.must_add_up(customers, traffic.served)


async def test_the_roles_that_services_log_in_with_are_replaced_under_load(
    platform: Platform, fleet: Fleet, customers: list[Any]
) -> None:
    def use_new_roles() -> None:
        for service in ROLES:
            url = present(fleet, service, "DATABASE_URL")
            new_url = url.replace(f"darktree_{service}:", f"darktree_{service}_b:")
            assert new_url != url
            fleet.replace(service, DATABASE_URL=new_url)

    def say(statement: str) -> None:
        with psycopg.connect(platform.ready["database_url"], autocommit=True) as connection:
            for service in ROLES:
                connection.execute(statement.format(role=f"darktree_{service}").encode())

    async with Traffic(fleet.base_url, customers, CLIENTS, a_chat) as traffic:
        await traffic.during(lambda: say("CREATE ROLE {role}_b LOGIN PASSWORD 'new' IN ROLE {role}"))
        await traffic.during(use_new_roles)
        await traffic.during(lambda: say("ALTER ROLE {role} NOLOGIN"))
    print(traffic.summary())
    rows = platform.sql("SELECT DISTINCT usename FROM pg_stat_activity WHERE usename LIKE 'darktree%%'")
    assert {f"darktree_{service}_b" for service in ROLES} <= {row["usename"] for row in rows}
    say("ALTER ROLE {role} LOGIN")  # the platform's own services, which the fleet stands beside
    assert traffic.failures == []
    platform.must_add_up(customers, traffic.served)


async def test_the_pepper_of_keys_is_replaced_under_load(
    platform: Platform, fleet: Fleet, customers: list[Any]
) -> None:
    """The last of them: the platform, which makes the tests' keys, keeps the old pepper."""
    old = present(fleet, "billing", "KEY_PEPPER")
    steps: list[dict[str, str | None]] = [
        {"KEY_PEPPER_NEXT": NEW_PEPPER},
        {
            "KEY_PEPPER": NEW_PEPPER,
            "KEY_PEPPER_VERSION": "2",
            "KEY_PEPPER_PREVIOUS": old,
            "KEY_PEPPER_NEXT": None,
        },
    ]

    def moved() -> bool:
        versions = platform.sql(
            "SELECT DISTINCT pepper_version FROM billing.api_key WHERE customer_id = ANY (%s)",
            [customer.id for customer in customers],
        )
        return [row["pepper_version"] for row in versions] == [2]

    async with Traffic(fleet.base_url, customers, CLIENTS, a_chat) as traffic:
        for step in steps:
            await traffic.during(lambda step=step: fleet.replace("billing", **step))  # type: ignore[misc]
        while not moved():  # as soon as a gateway asks about a key again
            await traffic.until(10)
        await traffic.during(lambda: fleet.replace("billing", KEY_PEPPER_PREVIOUS=None), answers=100)
    print(traffic.summary())
    assert traffic.failures == []
    platform.must_add_up(customers, traffic.served)
