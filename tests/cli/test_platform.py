"""The plan of what runs on one machine."""

import json
from pathlib import Path

import pytest

from darktree_cli.lanes import read_lanes
from darktree_cli.platform import (
    PUBLIC_PORT,
    Plan,
    Stage,
    Stripe,
    Wanted,
    as_role,
    plan,
    port_names,
    simulator,
)
from darktree_cli.scraping import targets
from darktree_cli.state import DataDir, Secrets

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SECRETS = Secrets.model_validate({name: f"{name}-is-secret" for name in Secrets.model_fields})
STAND_IN = Stripe(
    f"sk_test_{SECRETS.stripe_api_key}", f"whsec_{SECRETS.stripe_webhook_secret}", is_real=False
)
DATABASE_URL = "postgresql://postgres@/postgres?host=%2Fsockets"


def planned_with(tmp_path: Path, stripe: Stripe) -> Plan:
    lanes = read_lanes(EXAMPLES / "lanes")
    ports = {
        name: 9000 + number for number, name in enumerate([PUBLIC_PORT, "billing", *port_names(lanes, 2)])
    }
    wanted = Wanted(
        DataDir(tmp_path), SECRETS, DATABASE_URL, lanes, EXAMPLES / "plans.yaml", 2, False, stripe
    )
    return plan(wanted, ports, [simulator(lane, ports[f"lane-{lane.name}"]) for lane in lanes])


@pytest.fixture
def planned(tmp_path: Path) -> Plan:
    return planned_with(tmp_path, STAND_IN)


def test_every_lane_every_service_and_every_gateway_is_one_process(planned: Plan) -> None:
    assert [process.name for process in planned.processes] == [
        "lane-dedicated-acme",
        "lane-premium-qwen25-32b-awq",
        "lane-standard-qwen25-14b-awq",
        "stripe",
        "ledger",
        "sealer",
        "billing",
        "gateway-1",
        "gateway-2",
    ]


def test_gateways_share_the_public_port_and_the_journal_and_have_each_a_private_port(planned: Plan) -> None:
    first, second = (process.env for process in planned.processes if process.stage is Stage.GATEWAY)
    different = {name for name in first if first[name] != second[name]}
    assert first["DARKTREE_GATEWAY_PORT"] == "9000"
    assert different == {"DARKTREE_GATEWAY_PRIVATE_PORT"}


def test_every_port_is_used_by_one_process_only(planned: Plan) -> None:
    urls = [process.url for process in planned.processes]
    assert len(set(urls)) == len(urls)
    assert planned.base_url == "http://127.0.0.1:9000/v1"


def test_each_service_is_told_only_its_own_secrets(planned: Plan) -> None:
    told = {
        process.name: {
            name for name, secret in SECRETS.model_dump().items() if secret in " ".join(process.env.values())
        }
        for process in planned.processes
    }
    assert told["gateway-1"] == {"ledger_gateway_token", "billing_gateway_token"}
    assert told["ledger"] == {"ledger_gateway_token", "ledger_billing_token", "ledger_role_password"}
    assert told["sealer"] == {"sealer_role_password"}
    assert told["billing"] == {
        "ledger_billing_token",
        "billing_gateway_token",
        "admin_token",
        "key_pepper",
        "billing_role_password",
        "stripe_api_key",
        "stripe_webhook_secret",
    }
    assert told["stripe"] == {"stripe_api_key", "stripe_webhook_secret"}
    assert not told["lane-dedicated-acme"]


def test_no_secret_is_on_a_command_line_where_other_users_see_it(planned: Plan) -> None:
    words = " ".join(word for process in planned.processes for word in process.argv)
    assert not [secret for secret in SECRETS.model_dump().values() if secret in words]


def test_what_needs_another_is_stopped_before_it(planned: Plan) -> None:
    order = sorted(planned.processes, key=lambda process: process.stage, reverse=True)
    assert [process.name.partition("-")[0] for process in order] == [
        *("gateway", "gateway", "billing", "ledger", "sealer"),
        *("stripe", "lane", "lane", "lane"),
    ]


def env_of(planned: Plan, name: str) -> dict[str, str]:
    (process,) = (process for process in planned.processes if process.name == name)
    return {**process.defaults, **process.env}


def test_billing_buys_through_the_stand_in_which_sends_its_events_to_billing(planned: Plan) -> None:
    billing, stripe = env_of(planned, "billing"), env_of(planned, "stripe")
    assert billing["DARKTREE_BILLING_STRIPE_API_BASE"] == planned.stripe_url
    assert billing["DARKTREE_BILLING_STRIPE_API_KEY"] == stripe["DARKTREE_STRIPE_SIMULATOR_API_KEY"]
    secrets = json.loads(stripe["DARKTREE_STRIPE_SIMULATOR_WEBHOOK_SECRETS"])
    assert secrets == [billing["DARKTREE_BILLING_STRIPE_WEBHOOK_SECRETS"]]
    assert stripe["DARKTREE_STRIPE_SIMULATOR_WEBHOOK_URL"] == planned.billing_url + "/webhooks/stripe"


def test_with_a_test_key_billing_buys_through_stripe_itself_and_no_stand_in_runs(tmp_path: Path) -> None:
    planned = planned_with(tmp_path, Stripe("sk_test_mine", "whsec_mine", is_real=True))
    billing = env_of(planned, "billing")
    assert "stripe" not in [process.name for process in planned.processes]
    assert planned.stripe_url is None
    assert billing["DARKTREE_BILLING_STRIPE_API_KEY"] == "sk_test_mine"
    assert billing["DARKTREE_BILLING_STRIPE_API_BASE"] == ""
    assert billing["DARKTREE_BILLING_STRIPE_WEBHOOK_SECRETS"] == "whsec_mine"


def test_what_the_environment_says_of_the_console_wins(planned: Plan) -> None:
    (billing,) = (process for process in planned.processes if process.name == "billing")
    assert not set(billing.defaults) & set(billing.env)
    assert billing.defaults["DARKTREE_BILLING_PUBLIC_URL"] == planned.billing_url
    assert planned.console_url == planned.billing_url + "/console"


def test_the_demo_asks_for_a_model_that_the_demo_customer_is_served(planned: Plan) -> None:
    assert planned.demo_model == "qwen25-14b-awq"


def test_a_role_logs_in_where_the_administrator_does() -> None:
    assert as_role(DATABASE_URL, "darktree_ledger", "p@ss/word") == (
        "postgresql://darktree_ledger:p%40ss%2Fword@/postgres?host=%2Fsockets"
    )
    assert as_role("postgresql://admin:secret@db:5433/money?sslmode=require", "darktree_billing", "x") == (
        "postgresql://darktree_billing:x@db:5433/money?sslmode=require"
    )


def test_prometheus_finds_every_process_that_has_metrics_and_engines_with_their_lanes(tmp_path: Path) -> None:
    planned = planned_with(tmp_path, STAND_IN)
    found = json.loads(targets(planned.processes))
    silent = {"stripe"}
    assert len(found) == len([process for process in planned.processes if process.name not in silent])
    assert {each["labels"]["part"] for each in found} == {"gateway", "ledger", "sealer", "billing", "lane"}
    lanes = {each["labels"].get("darktree_dev_lane") for each in found} - {None}
    assert lanes == {lane.name for lane in read_lanes(EXAMPLES / "lanes")}
    assert not any("://" in target for each in found for target in each["targets"])
