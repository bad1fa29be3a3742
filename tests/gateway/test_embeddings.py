"""Embeddings: where a lane serves them, charged exactly what was read, and nothing where they are not delivered."""

import base64
import struct
from typing import Any

import httpx
import pytest

from darktree_gateway.requests import MAX_INPUTS
from darktree_simulator.app import make_app
from darktree_simulator.settings import Settings

GENERATING = "qwen25-14b-awq"
EMBEDDER = "embedder"
DIMENSIONS = 8
CONTEXT_TOKENS = 512
PRICE_NANOS = 20_000


@pytest.fixture(scope="module")
def embedder(platform: Any) -> str:
    """A lane that embeds, beside those that generate; the address of its engine."""
    app = make_app(
        Settings(models=[EMBEDDER], context_length=CONTEXT_TOKENS, embedding_dimensions=DIMENSIONS)
    )
    url: str = platform.serve_model(EMBEDDER, app, context_tokens=CONTEXT_TOKENS)
    return url


@pytest.fixture
def buyer(embedder: str, customer: Any) -> Any:
    return customer


def embed(customer: Any, given: Any, **fields: Any) -> httpx.Response:
    answer: httpx.Response = customer.client.post(
        "/v1/embeddings", json={"model": EMBEDDER, "input": given} | fields
    )
    return answer


@pytest.mark.parametrize(
    ("given", "tokens"),
    [
        ("hello", [5]),
        (["hello", "é"], [5, 2]),
        ([1, 2, 3], [3]),
        ([[1, 2], [3]], [2, 1]),
        (["a"] * 200, [1] * 200),
        ("a" * CONTEXT_TOKENS, [CONTEXT_TOKENS]),
    ],
)
def test_every_form_of_input_is_charged_its_tokens_and_no_more(
    buyer: Any, given: Any, tokens: list[int]
) -> None:
    answer = embed(buyer, given)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert [row["index"] for row in body["data"]] == list(range(len(tokens)))
    assert {len(row["embedding"]) for row in body["data"]} == {DIMENSIONS}
    assert (body["usage"]["prompt_tokens"], body["usage"]["total_tokens"]) == (sum(tokens), sum(tokens))
    (charge,) = buyer.usage()
    assert answer.headers["x-darktree-entry-id"] == charge["entry_id"]
    assert answer.headers["x-request-id"] == charge["request_id"]
    assert (charge["prompt_tokens"], charge["completion_tokens"]) == (sum(tokens), 0)
    assert charge["amount_nanos"] == sum(tokens) * PRICE_NANOS
    assert charge["outcome"] == "completed"
    assert not {name for name in answer.headers if name.startswith("x-darktree-") and "max-tokens" in name}


def test_the_charge_is_what_the_engine_counted(embedder: str, buyer: Any) -> None:
    before = _prompt_tokens(embedder)
    embed(buyer, ["one", "another"])
    assert _prompt_tokens(embedder) - before == buyer.usage()[0]["prompt_tokens"] == 10


def test_numbers_come_in_decimals_or_in_base64_as_asked(buyer: Any) -> None:
    decimals = embed(buyer, "hello").json()["data"][0]["embedding"]
    packed = embed(buyer, "hello", encoding_format="base64").json()["data"][0]["embedding"]
    assert list(struct.unpack(f"<{DIMENSIONS}f", base64.b64decode(packed))) == pytest.approx(
        decimals, rel=1e-6
    )


def test_the_last_request_of_the_day_uses_the_cap_to_its_last_token(platform: Any, buyer: Any) -> None:
    small = platform.customer(cap_tokens=20)
    assert embed(small, "a" * 12).status_code == 200
    refused = embed(small, "a" * 9)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert embed(small, "a" * 8).status_code == 200
    assert small.credits()["day"]["used_tokens"] == 20
    assert embed(small, [7]).status_code == 429


def test_an_input_longer_than_the_context_is_refused_and_costs_nothing(platform: Any, buyer: Any) -> None:
    for given in ("a" * (CONTEXT_TOKENS + 1), [7] * (CONTEXT_TOKENS + 1), ["a", "a" * (CONTEXT_TOKENS + 1)]):
        refused = embed(buyer, given)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
        assert refused.json()["error"]["param"] == "input"
    assert buyer.usage() == []
    assert platform.open_holds(buyer.id) == 0


@pytest.mark.parametrize("faults", [{"error_status": 500}, {"usage_missing": True}])
def test_embeddings_that_fail_cost_nothing(
    platform: Any, embedder: str, buyer: Any, faults: dict[str, Any]
) -> None:
    httpx.post(f"{embedder}/faults", json=faults).raise_for_status()
    try:
        refused = embed(buyer, "hello")
    finally:
        httpx.delete(f"{embedder}/faults").raise_for_status()
    assert (refused.status_code, refused.json()["error"]["code"]) == (502, "engine_error")
    assert buyer.usage() == []
    assert platform.open_holds(buyer.id) == 0


def test_a_client_that_leaves_before_its_embeddings_are_there_pays_nothing(
    platform: Any, embedder: str, buyer: Any, eventually: Any
) -> None:
    httpx.post(f"{embedder}/faults", json={"latency_seconds": 5}).raise_for_status()
    try:
        with pytest.raises(httpx.ReadTimeout):
            buyer.client.post("/v1/embeddings", json={"model": EMBEDDER, "input": "hello"}, timeout=0.3)
    finally:
        httpx.delete(f"{embedder}/faults").raise_for_status()
    eventually(lambda: platform.open_holds(buyer.id) == 0, "no hold is left")
    assert buyer.usage() == []


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"input": []}, "input", "empty_array"),
        ({"input": ""}, "input", "empty_string"),
        ({"input": ["a", 1]}, "input[1]", "invalid_type"),
        ({"input": [1, "a"]}, "input[1]", "invalid_type"),
        ({"input": {"text": "a"}}, "input", "invalid_type"),
        ({"input": ["a"] * (MAX_INPUTS + 1)}, "input", "array_above_max_length"),
        ({"input": None}, "input", "missing_required_parameter"),
        ({"encoding_format": "bytes"}, "encoding_format", "invalid_value"),
        ({"dimensions": 0}, "dimensions", "integer_below_min_value"),
        ({"truncate_prompt_tokens": 1}, "truncate_prompt_tokens", "unsupported_parameter"),
        ({"messages": []}, "messages", "unsupported_parameter"),
        ({"stream": True}, "stream", "unknown_parameter"),
        ({"max_tokens": 1}, "max_tokens", "unknown_parameter"),
    ],
)
def test_a_wrong_field_is_named(buyer: Any, fields: dict[str, Any], param: str, code: str) -> None:
    refused = embed(buyer, "a", **fields)
    error = refused.json()["error"]
    assert (refused.status_code, error["param"], error["code"]) == (400, param, code)


def test_a_model_either_generates_or_embeds(platform: Any, buyer: Any) -> None:
    for answer in (
        embed(buyer, "a", model=GENERATING),
        buyer.chat(model=EMBEDDER),
        buyer.complete(model=EMBEDDER),
    ):
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (404, "endpoint_not_supported", "model")
    assert buyer.usage() == []
    assert platform.open_holds(buyer.id) == 0


def _prompt_tokens(url: str) -> int:
    (line,) = (
        line
        for line in httpx.get(f"{url}/metrics").text.splitlines()
        if line.startswith("vllm:prompt_tokens_total{")
    )
    return int(float(line.rpartition(" ")[2]))
