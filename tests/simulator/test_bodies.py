"""Bodies that nobody should send are refused, and never break the lane."""

import json
from typing import Any

import httpx
import pytest

CHAT = {"messages": [{"role": "user", "content": "hello"}]}


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{"role": "assistant", "tool_calls": [{"function": "f"}]}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"no": "function"}]}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        {"tools": [{}], "tool_choice": "none"},
        {"tools": [{"function": 3}], "tool_choice": "none"},
        {"max_tokens": 10**30},
        {"min_tokens": 10**30},
        {"n": -(10**30)},
        {"temperature": "hot"},
        {"stop": [None]},
        {"stop_token_ids": ["x"]},
        {"logprobs": "x"},
        {"seed": 1.5},
    ],
)
def test_a_chat_request_that_makes_no_sense_is_a_400(lane: httpx.Client, fields: dict[str, Any]) -> None:
    response = lane.post("/v1/chat/completions", json=CHAT | fields)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["code"] == 400


@pytest.mark.parametrize(
    "fields", [{"max_tokens": "7"}, {"max_tokens": 7.0}, {"max_completion_tokens": 7, "max_tokens": 0}]
)
def test_numbers_are_read_as_leniently_as_by_vllm(lane: httpx.Client, fields: dict[str, Any]) -> None:
    usage = lane.post("/v1/chat/completions", json=CHAT | {"ignore_eos": True} | fields).json()["usage"]
    assert usage["completion_tokens"] == 7


def test_the_last_of_two_equal_keys_counts(lane: httpx.Client) -> None:
    body = json.dumps(CHAT | {"ignore_eos": True, "max_tokens": 3})[:-1] + ', "max_tokens": 5}'
    response = lane.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert response.json()["usage"]["completion_tokens"] == 5


def test_a_body_beyond_the_limit_is_a_413(lane: httpx.Client) -> None:
    body = b" " * (33 * 2**20)
    response = lane.post("/tokenize", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 413


def test_the_request_id_of_the_caller_is_in_the_answers_id(lane: httpx.Client) -> None:
    headers = {"x-request-id": 'a"b'}
    answer = lane.post("/v1/chat/completions", json=CHAT, headers=headers).json()
    assert answer["id"] == 'chatcmpl-a"b'
