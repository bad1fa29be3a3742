"""The command line answers what customers ask for, corrects balances and lists holds, on a running billing."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import yaml
from typer.testing import CliRunner

from darktree_billing import requests
from darktree_billing.plans import PlansFile
from darktree_billing.request_schemas import AskCap, AskLane
from darktree_cli.main import app
from darktree_kit.db import Database
from darktree_kit.errors import ApiError
from darktree_kit.ids import uuid7

Command = Callable[..., str]


@pytest.fixture
def darktree(platform: Any) -> Command:
    """Runs a command to its end, as an administrator of the platform."""
    environment = {"DARKTREE_ADMIN_URL": platform.billing_url, "DARKTREE_ADMIN_TOKEN": platform.admin_token}

    def run(*words: str) -> str:
        result = CliRunner().invoke(app, words, env=environment)
        if result.exception is not None:
            raise result.exception
        return str(result.output)

    return run


@pytest.fixture
def customer_id(http: httpx.Client) -> str:
    return str(http.post("/admin/customers", json={"name": "Commands", "plan": "solo"}).json()["id"])


def ask(platform: Any, customer_id: str) -> tuple[str, str]:
    """Ask for a cap and for a lane; return the requests' ids."""

    async def asking() -> tuple[str, str]:
        database = Database(platform.settings.database_url.get_secret_value())
        plans = PlansFile(platform.plans_file).current()
        async with database.sessions.begin() as session:
            wish = AskCap(cap_tokens=9_000, reason="a busy week")
            cap = await requests.ask_cap(session, customer_id, wish, "ada@acme.test")
            body = AskLane(model="qwen25-14b-awq", tokens_per_day=5_000_000, reason="a launch")
            lane = await requests.ask_lane(session, plans, customer_id, body, "ada@acme.test")
        await database.close()
        return cap.id, lane.id

    return asyncio.run(asking())


def test_requests_are_listed_and_answered(platform: Any, darktree: Command, customer_id: str) -> None:
    cap, lane = ask(platform, customer_id)
    assert "a busy week" in darktree("caps", "requests", "--customer", customer_id, "--state", "open")
    approved = json.loads(darktree("caps", "approve", cap, "--tokens", "8000", "-o", "json"))
    assert (approved["state"], approved["decided_cap_tokens"]) == ("approved", 8_000)
    assert json.loads(darktree("caps", "show", customer_id, "-o", "json"))["cap_tokens"] == 8_000
    with pytest.raises(ApiError, match="decided before"):
        darktree("caps", "decline", cap, "--note", "no")
    [listed] = json.loads(darktree("dedicated", "list", "--customer", customer_id, "-o", "json"))["data"]
    assert (listed["id"], listed["tokens_per_day"]) == (lane, 5_000_000)
    assert yaml.safe_load(darktree("dedicated", "manifest", lane))["spec"]["customerRef"] == customer_id
    assert "accepted" in darktree("dedicated", "accept", lane, "--note", "on Monday")


def test_a_balance_is_corrected_down_too(darktree: Command, customer_id: str) -> None:
    darktree("credits", "grant", customer_id, "--dollars", "10", "--reason", "welcome")
    told = darktree("credits", "adjust", customer_id, "--dollars", "-2.50", "--reason", "given twice")
    assert "-$2.50" in told
    assert "$7.50" in told
    assert (
        CliRunner().invoke(app, ["credits", "adjust", "x", "--dollars", "much", "--reason", "r"]).exit_code
        == 2
    )


def test_holds_are_listed_until_they_end(platform: Any, darktree: Command, customer_id: str) -> None:
    darktree("credits", "grant", customer_id, "--dollars", "10", "--reason", "welcome")
    hold: dict[str, Any] = {
        "op": "hold", "hold_id": str(uuid7()), "customer_id": customer_id, "key_id": "key", "model": "m",
        "lane": "standard", "prompt_tokens": 10, "completion_tokens": 10, "exact": True,
        "prompt_price_nanos": 750_000, "completion_price_nanos": 750_000, "ttl_seconds": 60,
    }  # fmt: skip
    ledger = platform.http(platform.gateway_token, platform.ledger_url)
    assert ledger.post("/v1/operations", json=[hold]).json()[0]["outcome"] == "done"
    told = darktree("ledger", "holds", "--customer", customer_id)
    assert f"req_{hold['hold_id'].replace('-', '')}" in told
    assert "$0.015" in told
    ledger.post("/v1/operations", json=[{k: hold[k] for k in ("hold_id", "customer_id")} | {"op": "void"}])
    assert "(none)" in darktree("ledger", "holds", "--customer", customer_id)
