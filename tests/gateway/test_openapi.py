"""What the gateway does is what its OpenAPI description says, for requests that nobody thought of."""

import os
import warnings
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from darktree_gateway.app import HOT_PATHS
from darktree_simulator.app import make_app
from darktree_simulator.settings import Settings

MODEL = "qwen25-14b-awq"
CHAT, COMPLETIONS = "POST /v1/chat/completions", "POST /v1/completions"
LABELS = [
    CHAT,
    COMPLETIONS,
    "POST /v1/embeddings",
    "POST /v1/responses",
    "POST /v1/tokenize",
    "GET /v1/models",
    "GET /v1/models/{model}",
    "GET /v1/credits",
    "GET /v1/usage",
    "GET /v1/usage/{request_id}",
    "GET /v1/ledger",
    "GET /v1/ledger/entries/{seq}",
    "GET /v1/ledger/checkpoint",
    "GET /v1/ledger/consistency",
    "GET /v1/ledger/keys",
]
EXAMPLES = settings(
    max_examples=200 if "SOAK" in os.environ else 20,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def operations(platform: Any) -> dict[str, Any]:
    schema: Any = schemathesis.openapi.from_url(f"{platform.gateway_url}/openapi.json")
    return {result.ok().label: result.ok() for result in schema.get_all_operations()}


def test_no_endpoint_is_left_out_here(operations: dict[str, Any]) -> None:
    assert sorted(operations) == sorted(LABELS)


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize("label", LABELS)
def test_every_answer_is_one_that_is_described(
    operations: dict[str, Any],
    platform: Any,
    customer: Any,
    eventually: Any,
    label: str,
    mode: GenerationMode,
) -> None:
    operation = operations[label]
    headers = {"Authorization": f"Bearer {customer.key}"}
    request_id = customer.chat(max_tokens=1).headers["x-request-id"]
    # Fields, cursors and ids have rules that a schema cannot tell; unknown query parameters are ignored.
    excluded = [positive_data_acceptance, negative_data_rejection]
    known: dict[str, Any] = {}
    if "{model}" in label:
        known = {"path_parameters": {"model": MODEL}}
    elif "{request_id}" in label:
        known = {"path_parameters": {"request_id": request_id}}

    @EXAMPLES
    @given(operation.as_strategy(generation_mode=mode) | operation.as_strategy(generation_mode=mode, **known))
    def check(case: Any) -> None:
        if label in {CHAT, COMPLETIONS} and isinstance(case.body, dict):
            case.body["model"] = MODEL  # else every one of them is an unknown model
        case.call_and_validate(headers=headers, excluded_checks=excluded)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check()
    eventually(lambda: platform.open_holds(customer.id) == 0, "no hold is left")
    charged = sum(charge["total_tokens"] for charge in customer.usage(limit=1_000))
    assert customer.credits()["day"]["used_tokens"] == charged


@pytest.mark.parametrize("label", LABELS)
def test_every_refusal_of_a_stranger_is_described(operations: dict[str, Any], label: str) -> None:
    operation = operations[label]

    @settings(EXAMPLES, max_examples=5)
    @given(operation.as_strategy())
    def check(case: Any) -> None:
        answer = case.call_and_validate(
            headers={"Authorization": "Bearer sk-nobody"},
            excluded_checks=[positive_data_acceptance, negative_data_rejection],
        )
        assert answer.status_code == 401

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check()


def test_every_example_is_served_and_charged_what_it_says(
    operations: dict[str, Any], platform: Any, customer: Any
) -> None:
    embedder = "qwen3-embedding"
    platform.serve_model(embedder, make_app(Settings(models=[embedder], embedding_dimensions=4)))
    examples = {
        operation.path: body["content"]["application/json"]["example"]
        for operation in operations.values()
        if (body := operation.definition.raw.get("requestBody"))
        and "example" in body["content"]["application/json"]
    }
    assert set(examples) == set(HOT_PATHS)
    for path, example in examples.items():
        answer = customer.client.post(path, json=example)
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["total_tokens"] == customer.usage()[0]["total_tokens"] > 0


def test_the_headers_that_are_described_are_those_that_are_sent(
    operations: dict[str, Any], customer: Any
) -> None:
    described = {
        name
        for label in (CHAT, COMPLETIONS)
        for name in operations[label].definition.raw["responses"]["200"]["headers"]
    }
    sent = set(customer.chat().headers) | set(customer.chat(stream=True).headers)
    ours = {name for name in sent if name.startswith("x-") and name != "x-accel-buffering"}
    assert ours <= described
    assert described - ours == {"x-darktree-clamped-max-tokens"}


def test_every_refusal_is_described_in_the_one_shape_and_422_is_none_of_them(
    operations: dict[str, Any],
) -> None:
    for label in LABELS:
        responses = operations[label].definition.raw["responses"]
        assert {"400", "401", "403", "503"} <= set(responses), label
        assert "422" not in responses
        for status, response in responses.items():
            if status >= "400":
                content = response["content"]["application/json"]["schema"]
                assert content == {"$ref": "#/components/schemas/ErrorBody"}
