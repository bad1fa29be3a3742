"""Counting a prompt before it is paid for: exact, free, for customers only, and bounded."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from darktree_gateway.counting import MAX_COUNTS_PER_CUSTOMER

MODEL = "qwen25-14b-awq"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "a chat": ("chat/completions", {"messages": [{"role": "user", "content": "hello"}]}),
    "a chat in another script": ("chat/completions", {"messages": [{"role": "user", "content": "é树😀"}]}),
    "a chat with tools": (
        "chat/completions",
        {"messages": [{"role": "user", "content": "x"}], "tools": [TOOL], "tool_choice": "none"},
    ),
    "a streamed chat": ("chat/completions", {"messages": [{"role": "user", "content": "x"}], "stream": True}),
    "a prompt": ("completions", {"prompt": "hello"}),
    "two prompts": ("completions", {"prompt": ["a", "bcd"], "n": 2}),
    "token ids": ("completions", {"prompt": [[104], [105, 106]]}),
}


@pytest.mark.parametrize("case", BODIES)
def test_a_count_is_what_the_same_body_is_charged_and_costs_nothing(customer: Any, case: str) -> None:
    path, fields = BODIES[case]
    body = {"model": MODEL, "max_tokens": 1} | fields
    told = customer.client.post("/v1/tokenize", json=body)
    assert told.status_code == 200, told.text
    assert told.json()["count"] == sum(told.json()["counts"])
    assert told.json()["max_model_len"] == 4096
    assert told.headers["x-ratelimit-remaining-tokens"] == "1000000"
    assert customer.usage() == []
    assert customer.client.post(f"/v1/{path}", json=body).status_code == 200
    assert customer.usage()[0]["prompt_tokens"] == told.json()["count"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"model": MODEL}, 400, "missing_required_parameter"),
        ({"model": "nothing", "prompt": "x"}, 404, "model_not_found"),
        ({"model": MODEL, "prompt": "x", "shell": "ls"}, 400, "unknown_parameter"),
        ({"model": MODEL, "messages": []}, 400, "empty_array"),
    ],
)
def test_what_a_completion_refuses_is_refused(customer: Any, body: Any, status: int, code: str) -> None:
    answer = customer.client.post("/v1/tokenize", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_only_customers_are_told(platform: Any, customer: Any) -> None:
    body = {"model": MODEL, "prompt": "x"}
    assert httpx.post(f"{platform.gateway_url}/v1/tokenize", json=body).status_code == 401
    assert customer.client.get("/v1/tokenize").status_code == 405
    large = customer.client.post("/v1/tokenize", json={"model": MODEL, "prompt": "x" * 5_000_000})
    assert large.status_code == 413


def test_a_customer_without_credit_or_cap_is_still_told(platform: Any) -> None:
    poor = platform.customer(cap_tokens=0, dollars="0")
    assert poor.client.post("/v1/tokenize", json={"model": MODEL, "prompt": "hello"}).json()["count"] == 5


def test_a_customer_has_so_many_counts_at_once_and_others_are_not_kept(
    platform: Any, customer: Any, engine: Any, eventually: Any
) -> None:
    engine.go.clear()
    engine.counts_wait = True
    other = platform.customer()
    body = {"model": "qwen25-32b-awq", "prompt": "x"}
    try:
        with ThreadPoolExecutor(MAX_COUNTS_PER_CUSTOMER) as pool:
            running = [
                pool.submit(customer.client.post, "/v1/tokenize", json=body)
                for _ in range(MAX_COUNTS_PER_CUSTOMER)
            ]
            eventually(lambda: len(engine.counted) == MAX_COUNTS_PER_CUSTOMER, "they are being counted")
            refused = customer.client.post("/v1/tokenize", json=body)
            error = refused.json()["error"]
            assert (refused.status_code, error["type"], error["code"]) == (
                429,
                "requests",
                "rate_limit_exceeded",
            )
            assert refused.headers["retry-after"] == "1"
            assert other.client.post("/v1/tokenize", json=body | {"model": MODEL}).status_code == 200
            engine.go.set()
            assert [answer.result().status_code for answer in running] == [200] * MAX_COUNTS_PER_CUSTOMER
        assert customer.client.post("/v1/tokenize", json=body).status_code == 200
    finally:
        engine.counts_wait = False
