"""What the ledger does is what its OpenAPI description says, for requests that nobody thought of."""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from darktree_kit.ids import uuid7

CUSTOMER_ID = "described"
OPERATIONS = "POST /v1/operations"
CHECK = "POST /v1/check"
LABELS = [
    OPERATIONS,
    "GET /v1/accounts/{customer_id}",
    "GET /v1/accounts/{customer_id}/recent",
    "GET /v1/accounts/{customer_id}/entries",
    "GET /v1/accounts/{customer_id}/holds/{hold_id}/entries",
    "GET /v1/holds",
    "GET /v1/accounts/{customer_id}/days",
    "GET /v1/accounts/{customer_id}/usage",
    "GET /v1/accounts/{customer_id}/cap-changes",
    "GET /v1/accounts/{customer_id}/export",
    "GET /v1/accounts/{customer_id}/as-of",
    "GET /v1/trial-balance",
    "GET /v1/months",
    "POST /v1/months/{month}/close",
    "GET /v1/months/{month}/totals",
    "GET /v1/months/{month}/balances",
    "GET /v1/months/{month}/lines",
    "GET /log/checkpoint",
    "GET /log/checkpoints/{size}",
    "GET /log/tile/{level}/{place}",
    "GET /log/keys",
    "GET /v1/log/entries",
    "GET /v1/proofs/inclusion",
    "GET /v1/proofs/consistency",
    "GET /v1/proofs/receipt",
    "GET /v1/reconciliation",
    "GET /v1/lane-tokens",
    CHECK,
]
TAKES_NOTHING = {CHECK, "GET /v1/months", "GET /v1/reconciliation", "GET /log/checkpoint", "GET /log/keys"}
EXAMPLES = settings(
    max_examples=200 if "SOAK" in os.environ else 20,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
# Which caller may send which operation, as the ledger's page says.
GATEWAY_OPERATIONS = {"hold", "renew", "settle", "void", "show"}


@dataclass
class Served:
    """A ledger with one customer in it, and the operations that it describes."""

    url: str
    http: httpx.Client
    gateway: dict[str, str]
    billing: dict[str, str]
    operations: dict[str, Any]

    def check(self) -> dict[str, Any]:
        report: dict[str, Any] = self.http.post(f"{self.url}/v1/check", headers=self.billing).json()
        return report


@pytest.fixture(scope="module")
def served(
    make_database: Callable[[], Any],
    make_ledger_service: Callable[[Any], AbstractContextManager[str]],
    gateway_token: str,
    billing_token: str,
) -> Iterator[Served]:
    with make_ledger_service(make_database()) as url, httpx.Client(timeout=30) as http:
        billing = {"Authorization": f"Bearer {billing_token}"}
        batch = [
            {"op": "open", "operation_id": str(uuid7()), "customer_id": CUSTOMER_ID, "cap_tokens": 10_000,
             "actor": "t"},
            {"op": "grant", "operation_id": str(uuid7()), "customer_id": CUSTOMER_ID, "amount_nanos": 10**12,
             "source": "bonus", "reason": "a test", "actor": "t"},
        ]  # fmt: skip
        http.post(f"{url}/v1/operations", json=batch, headers=billing).raise_for_status()
        schema: Any = schemathesis.openapi.from_url(f"{url}/openapi.json")
        found = {result.ok().label: result.ok() for result in schema.get_all_operations()}
        yield Served(url, http, {"Authorization": f"Bearer {gateway_token}"}, billing, found)


def test_no_endpoint_is_left_out_here(served: Served) -> None:
    assert sorted(served.operations) == sorted(LABELS)


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize("label", LABELS)
def test_every_answer_is_one_that_is_described(served: Served, label: str, mode: GenerationMode) -> None:
    if label in TAKES_NOTHING and mode is GenerationMode.NEGATIVE:
        pytest.skip("it takes nothing that could be wrong")
    operation = served.operations[label]
    # Cursors, dates and who may send what have rules that a schema cannot tell; unknown query parameters are ignored.
    excluded = [positive_data_acceptance, *([negative_data_rejection] if label.startswith("GET") else [])]
    known = {"path_parameters": {"customer_id": CUSTOMER_ID}}
    if label == OPERATIONS or "hold_id" in label or "{customer_id}" not in label:
        known = {}

    @EXAMPLES
    @given(operation.as_strategy(generation_mode=mode) | operation.as_strategy(generation_mode=mode, **known))
    def check(case: Any) -> None:
        case.call_and_validate(headers=served.billing, excluded_checks=excluded)
        if label == OPERATIONS:
            case.call_and_validate(headers=served.gateway, excluded_checks=excluded)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check()
    assert served.check()["problems"] == []


def test_batches_of_any_described_operations_leave_the_projection_equal_to_the_entries(
    served: Served,
) -> None:
    """Bodies by the description, aimed at one customer by the caller who may send them: some of them take effect."""
    operation = served.operations[OPERATIONS]
    outcomes: set[str] = set()

    @settings(EXAMPLES, max_examples=60)
    @given(operation.as_strategy(generation_mode=GenerationMode.POSITIVE), st.booleans())
    def check(case: Any, aimed: bool) -> None:
        for item in case.body if isinstance(case.body, list) else []:
            sent = {**item, "customer_id": CUSTOMER_ID} if aimed else item
            headers = served.gateway if item.get("op") in GATEWAY_OPERATIONS else served.billing
            answer = served.http.post(f"{served.url}/v1/operations", json=[sent], headers=headers)
            assert answer.status_code in {200, 400}, answer.text
            if answer.status_code == 200:
                [result] = answer.json()
                outcomes.add(f"{result['outcome']} {result.get('reason')}")
                assert result.get("reason") != "failed", (sent, result)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check()
    assert "done None" in outcomes
    report = served.check()
    assert report["problems"] == []
    assert report["customers"] >= 1


def test_every_refusal_is_described_in_the_one_shape_and_422_is_none_of_them(served: Served) -> None:
    description = served.http.get(f"{served.url}/openapi.json").json()
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            responses = operation["responses"]
            refused = {"400", "503"} if path.startswith("/log/") else {"400", "401", "403", "503"}
            assert refused <= set(responses), (method, path)
            assert "422" not in responses
            for status, response in responses.items():
                if status >= "400":
                    content = response["content"]["application/json"]["schema"]
                    assert content == {"$ref": "#/components/schemas/ErrorBody"}
