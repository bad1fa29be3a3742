"""The ledger beside engines and Stripe, over real HTTP: restarts lose nothing, what differs is named."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio
from typer.testing import CliRunner

from darktree_billing.client import AdminClient, BillingClient
from darktree_billing.reconciliation import Tolerance
from darktree_billing.reconciliation_schemas import EngineReading
from darktree_cli.main import app
from darktree_kit.clock import unix_milliseconds
from darktree_kit.ids import uuid7
from darktree_ledger.client import LedgerClient
from darktree_ledger.schemas import Grant, Hold, Operation, Settle

MARK = """INSERT INTO billing.lane_reading
          SELECT lane, now() - interval '1 hour', 0, 0 FROM billing.engine_run GROUP BY lane"""


def reading(
    started_unix_milliseconds: int,
    prompt_tokens: int,
    completion_tokens: int,
    endpoint: str = "http://engine",
) -> EngineReading:
    return EngineReading(
        lane="standard", endpoint=endpoint, started_unix_milliseconds=started_unix_milliseconds,
        prompt_tokens=prompt_tokens, completion_tokens=completion_tokens,
    )  # fmt: skip


@pytest_asyncio.fixture
async def clients(own_platform: Any) -> AsyncIterator[tuple[AdminClient, BillingClient, LedgerClient]]:
    admin = AdminClient(own_platform.billing_url, own_platform.admin_token)
    gateway = BillingClient(own_platform.billing_url, own_platform.gateway_token)
    ledger = LedgerClient(own_platform.ledger_url, own_platform.gateway_token)
    yield admin, gateway, ledger
    for client in (admin, gateway, ledger):
        await client.close()


async def charge(ledger: LedgerClient, customer_id: str, prompt_tokens: int, completion_tokens: int) -> None:
    hold = Hold(
        hold_id=uuid7(), customer_id=customer_id, key_id="k", model="qwen25-14b-awq", lane="standard",
        prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, exact=True, prompt_price_nanos=1,
        completion_price_nanos=1, ttl_seconds=60,
    )  # fmt: skip
    settle = Settle(
        hold_id=hold.hold_id, customer_id=customer_id, entry_id=uuid7(), prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
    )  # fmt: skip
    results = [await ledger.apply(operation) for operation in (hold, settle)]
    assert {result.outcome for result in results} == {"done"}


def customer(platform: Any, name: str = "acme") -> str:
    http = platform.http()
    http.post("/admin/customers", json={"id": name, "name": "Acme", "plan": "solo"}).raise_for_status()
    http.put(
        f"/admin/customers/{name}/cap", json={"cap_tokens": 2_000_000, "reason": "a test"}
    ).raise_for_status()
    body = {"dollars": "50", "reason": "a test"}
    http.post(f"/admin/customers/{name}/grants", json=body).raise_for_status()
    return name


async def test_an_engine_that_restarts_loses_no_tokens_however_its_readings_arrive(
    own_platform: Any, clients: tuple[AdminClient, BillingClient, LedgerClient]
) -> None:
    admin, gateway, ledger = clients
    await charge(ledger, customer(own_platform), 900_000, 300_000)
    now = unix_milliseconds()
    later = now + 600_000
    for one in (
        reading(now, 400_000, 100_000),
        reading(now, 500_000, 200_000),
        reading(later, 100_000, 50_000),
        reading(now, 450_000, 150_000),  # an old one that was on its way, also after the restart
        reading(later, 200_000, 60_000),
        reading(now, 200_000, 40_000, "http://another"),
    ):
        await gateway.keep_engine_readings([one, one])
    own_platform.sql(MARK)
    (lane,) = (await admin.reconciliation()).lanes
    assert (lane.engine_prompt_tokens, lane.engine_completion_tokens) == (900_000, 300_000)
    assert (lane.ledger_prompt_tokens, lane.ledger_completion_tokens) == (900_000, 300_000)
    assert lane.agrees


async def test_an_engine_that_is_old_when_it_is_first_seen_counts_from_then_on(
    own_platform: Any, clients: tuple[AdminClient, BillingClient, LedgerClient]
) -> None:
    admin, gateway, _ = clients
    old = unix_milliseconds() - 7_200_000
    await gateway.keep_engine_readings([reading(old, 7_000_000, 9_000_000)])
    await gateway.keep_engine_readings([reading(old, 7_000_100, 9_000_010)])
    own_platform.sql(MARK)
    (lane,) = (await admin.reconciliation()).lanes
    assert (lane.engine_prompt_tokens, lane.engine_completion_tokens) == (100, 10)


@pytest.mark.parametrize(
    ("charged", "processed"), [((500_000, 300_000), (450_000, 300_000)), ((10, 10), (100_000, 10))]
)
async def test_tokens_that_differ_by_more_than_what_is_on_its_way_are_told(
    own_platform: Any,
    clients: tuple[AdminClient, BillingClient, LedgerClient],
    charged: tuple[int, int],
    processed: tuple[int, int],
) -> None:
    admin, gateway, ledger = clients
    await charge(ledger, customer(own_platform), *charged)
    await gateway.keep_engine_readings([reading(unix_milliseconds(), *processed)])
    own_platform.sql(MARK)
    told = await admin.reconciliation()
    assert (told.agrees, [lane.agrees for lane in told.lanes]) == (False, [False])


def test_a_share_and_a_slack_may_differ() -> None:
    tolerance = Tolerance(share=0.01, slack_tokens=100)
    assert tolerance.covers(10_000, 10_200)
    assert tolerance.covers(10_200, 10_000)
    assert not tolerance.covers(10_000, 10_210)
    assert tolerance.covers(0, 100)


async def test_credits_that_were_sold_without_a_charge_are_an_exception(
    own_platform: Any,
    clients: tuple[AdminClient, BillingClient, LedgerClient],
    billing_token: str,
) -> None:
    admin, _, _ = clients
    name = customer(own_platform)
    told = await admin.reconciliation()
    assert (told.stripe.problem, told.stripe.exceptions) == (None, [])
    selling = LedgerClient(own_platform.ledger_url, billing_token)
    sold: Operation = Grant(
        operation_id=uuid7(), customer_id=name, amount_nanos=20_000_000_000, source="purchase", reason="r",
        actor="a", reference="ch_1",
    )  # fmt: skip
    await selling.apply_or_raise(sold)
    await selling.close()
    (row,) = (await admin.reconciliation()).stripe.exceptions
    assert (row.bucket, row.count, row.difference_nanos) == ("purchase_without_charge", 1, 20_000_000_000)


async def test_a_ledger_without_entries_agrees_with_itself_and_its_log(
    own_platform: Any, clients: tuple[AdminClient, BillingClient, LedgerClient]
) -> None:
    admin, _, _ = clients
    told = await admin.reconciliation()
    assert told.ledger.problems == []
    assert (told.ledger.unsealed_entries, told.seal_agrees) == (0, True)


def test_the_command_line_reports_all_four_and_exits_with_1_when_one_differs(own_platform: Any) -> None:
    customer(own_platform)
    run: Callable[..., Any] = CliRunner().invoke
    environment = {
        "DARKTREE_ADMIN_URL": own_platform.billing_url,
        "DARKTREE_ADMIN_TOKEN": own_platform.admin_token,
    }
    good = run(app, ["reconcile"], env=environment)
    assert (good.exit_code, "All that could be compared agrees." in good.output) == (0, True)
    assert "Not compared yet: lanes" in good.output
    assert all(what in good.output for what in ("lanes", "Stripe", "projection", "not in the log yet"))
    own_platform.sql(
        "INSERT INTO billing.engine_run VALUES ('standard', 'e', now(), 10^6, 10^6, 0, 0);" + MARK
    )
    bad = run(app, ["reconcile", "--output", "json"], env=environment)
    assert bad.exit_code == 1
    assert '"agrees": false' in bad.output
