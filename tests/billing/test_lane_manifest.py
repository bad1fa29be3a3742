"""The manifest of a dedicated lane: filled in from the request and the plans file, whatever a customer is called."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from darktree_billing.errors import NoDedicatedLane
from darktree_billing.lane_manifest import MAX_NAME_CHARACTERS, MAX_REPLICAS, lane_manifest, lane_name
from darktree_billing.plans import Plans, PlansError, parse_plans
from darktree_billing.request_schemas import MAX_LANE_TOKENS_PER_DAY, LaneRequestView
from darktree_gateway.lanes import parse_lanes
from darktree_ledger.schemas import CUSTOMER_ID_PATTERN
from darktree_operator.config import read_config
from darktree_operator.lane import parse
from darktree_operator.preflight import check
from darktree_operator.resolution import Resolved, resolve

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

LANE = """
    dedicated_lane:
      tokens_per_second: 1000
      spec:
        model: {source: "hf://Qwen/Qwen2.5-14B-Instruct-AWQ", quantization: AwqMarlin}
        engine: {kind: VLLM, contextLength: 32768}
        autoscaling: {minReplicas: 1, maxReplicas: 4}
"""
PLANS = """
plans: [{id: solo, display_name: Solo, price: "50", default_cap_tokens: 2000}]
models:
  - id: qwen25-14b-awq
    display_name: Qwen
    prompt_price_per_thousand: "0.75"
    completion_price_per_thousand: "0.75"
    default_completion_tokens: 1024
    released: 2024-09-19
"""


def plans(lane: str = LANE) -> Plans:
    return parse_plans((PLANS.rstrip("\n") + lane).encode())


def request(**changes: Any) -> LaneRequestView:
    asked = {
        "id": "lanereq_" + "0" * 32,
        "customer_id": "acme",
        "model": "qwen25-14b-awq",
        "tokens_per_day": 5_000_000,
        "first_token_milliseconds": 400,
        "reason": "a test",
        "asked_by": "ada@acme.example",
        "asked_at": datetime(2026, 11, 23, tzinfo=UTC),
        "state": "open",
        "decided_by": None,
        "decided_at": None,
        "note": None,
    }
    return LaneRequestView.model_validate(asked | changes)


def test_the_manifest_is_the_lane_that_was_asked_for() -> None:
    written = lane_manifest(request(), plans())
    assert written.splitlines()[0] == "# A dedicated lane for acme, asked for on 2026-11-23."
    assert yaml.safe_load(written) == {
        "apiVersion": "darktree.dev/v1alpha1",
        "kind": "InferenceLane",
        "metadata": {
            "name": "dedicated-acme-qwen25-14b-awq",
            "annotations": {
                "darktree.dev/lane-request": "lanereq_" + "0" * 32,
                "darktree.dev/tokens-per-day": "5000000",
                "darktree.dev/first-token-milliseconds": "400",
            },
        },
        "spec": {
            "tier": "Dedicated",
            "customerRef": "acme",
            "model": {
                "source": "hf://Qwen/Qwen2.5-14B-Instruct-AWQ",
                "quantization": "AwqMarlin",
                "servedName": "qwen25-14b-awq",
            },
            "engine": {"kind": "VLLM", "contextLength": 32768},
            "replicas": 1,
        },
    }


def test_the_gateway_reads_it_as_this_customers_lane() -> None:
    [lane] = parse_lanes(lane_manifest(request(), plans()))
    assert (lane.tier, lane.customer_id, lane.model) == ("Dedicated", "acme", "qwen25-14b-awq")


@pytest.mark.parametrize("model", ["qwen25-14b-awq", "qwen25-32b-awq"])
def test_the_operator_takes_what_comes_of_the_example_plans_on_the_example_cluster(model: str) -> None:
    sold = parse_plans((EXAMPLES / "plans.yaml").read_bytes())
    document = yaml.safe_load(lane_manifest(request(model=model), sold))
    document["metadata"] |= {"namespace": "lanes", "uid": "u", "generation": 1}
    resolved = resolve(parse(document), read_config(EXAMPLES / "operator.yaml"))
    assert isinstance(resolved, Resolved), resolved
    refused, _ = check(resolved)
    assert refused == []
    # The one rule of the schema that depends on what the plans file leaves out: models from hf:// name their commit.
    assert re.fullmatch(r"[0-9a-f]{40}", document["spec"]["model"]["revision"])


@pytest.mark.parametrize(
    ("tokens_per_day", "replicas"),
    [(1, 1), (28_800_000, 1), (28_800_001, 2), (MAX_LANE_TOKENS_PER_DAY, MAX_REPLICAS)],
)
def test_replicas_serve_a_days_tokens_in_its_busy_hours(tokens_per_day: int, replicas: int) -> None:
    written = lane_manifest(request(tokens_per_day=tokens_per_day), plans())
    assert yaml.safe_load(written)["spec"]["replicas"] == replicas


def test_another_customer_or_model_is_another_lane_even_where_the_name_is_cut() -> None:
    ids = ["a" * 64, "a" * 63 + "b", "a_b", "a-b", "acme"]
    names = {lane_name(request(customer_id=customer_id)) for customer_id in ids}
    assert len(names) == len(ids)
    assert lane_name(request(model="Qwen/Other.1")) not in names


@given(
    st.from_regex(CUSTOMER_ID_PATTERN, fullmatch=True),
    st.from_regex(r"[A-Za-z0-9._/-]{1,64}", fullmatch=True),
)
def test_a_lanes_name_is_one_that_kubernetes_takes(customer_id: str, model: str) -> None:
    name = lane_name(request(customer_id=customer_id, model=model))
    assert len(name) <= MAX_NAME_CHARACTERS
    assert name.strip("-") == name
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


@given(st.text(max_size=100), st.text(max_size=50))
def test_nothing_that_a_customer_wrote_reaches_the_manifest(reason: str, asked_by: str) -> None:
    assert lane_manifest(request(reason=reason, asked_by=asked_by), plans()) == lane_manifest(
        request(), plans()
    )


def test_a_model_without_a_dedicated_lane_in_the_plans_file_has_no_manifest() -> None:
    with pytest.raises(NoDedicatedLane, match="dedicated_lane"):
        lane_manifest(request(), plans("\n"))
    with pytest.raises(NoDedicatedLane):
        lane_manifest(request(model="gone"), plans())
    assert plans("\n").dedicated_models() == []


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("{customerRef: globex}", "customerRef follows from the request"),
        ("{model: large}", "write a mapping"),
        ("{since: 2026-01-01}", "write it as JSON could be"),
    ],
)
def test_a_mistake_in_what_a_lane_is_made_of_is_told(spec: str, told: str) -> None:
    with pytest.raises(PlansError, match=told):
        plans(f"\n    dedicated_lane: {{tokens_per_second: 1, spec: {spec}}}\n")
