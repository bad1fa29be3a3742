"""Responses are charged to the token behind a real vLLM, and are what its own `/v1/responses` would have answered."""

import json
import time
from contextlib import ExitStack
from itertools import groupby
from typing import Any

import httpx
import pytest

RESPONSES, CHAT = "/v1/responses", "/v1/chat/completions"
DEADLINE_SECONDS = 20.0
POLL_SECONDS = 0.05
TOOL = {
    "type": "function",
    "name": "f",
    "description": "d",
    "parameters": {"type": "object"},
    "strict": False,
}
CALL = {"type": "function_call", "call_id": "1", "name": "f", "arguments": '{"a": 1}'}
RESULT = {"type": "function_call_output", "call_id": "1", "output": "done"}
SAID = {
    "type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
    "content": [{"type": "output_text", "text": "hi", "annotations": []}],
}  # fmt: skip

# Each body with what it costs: (input tokens, output tokens), the same for both engines.
CASES: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "a text": ({"max_output_tokens": 20}, (24, 20)),
    "a text to the default length": ({}, (24, 64)),
    "instructions": ({"instructions": "Be short.", "max_output_tokens": 5}, (43, 5)),
    "a message": ({"input": [{"role": "user", "content": "hello"}], "max_output_tokens": 5}, (24, 5)),
    "parts": (
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": text} for text in "ab"]}],
         "max_output_tokens": 3},
        (22, 3),
    ),
    "a conversation": (
        {"input": [{"role": "user", "content": "hello"}, SAID, {"role": "user", "content": "é"}],
         "max_output_tokens": 4},
        (49, 4),
    ),
    "cut down to the context": ({"input": "a" * 990, "max_output_tokens": 1000}, (1009, 15)),
}  # fmt: skip


def usage_of(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    response = (
        answer.json() if "json" in answer.headers["content-type"] else events_of(answer.text)[-1]["response"]
    )
    usage: dict[str, Any] = response["usage"]
    return usage


def events_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(event.split("\ndata: ")[1]) for event in text.split("\n\n") if event]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_the_charge_is_the_usage_and_the_engines_own_count(metered: Any, case: str, stream: bool) -> None:
    fields, (input_tokens, output_tokens) = CASES[case]
    customer, before = metered.customer(), metered.counters()
    answer = customer.ask(RESPONSES, **fields, stream=stream)
    usage = usage_of(answer)
    after = metered.counters()
    assert (usage["input_tokens"], usage["output_tokens"]) == (input_tokens, output_tokens)
    assert (after[0] - before[0], after[1] - before[1]) == (input_tokens, output_tokens)
    (charge,) = customer.charges()
    assert (charge["prompt_tokens"], charge["completion_tokens"]) == (input_tokens, output_tokens)
    assert answer.headers["x-darktree-entry-id"] == charge["entry_id"]
    assert customer.settled()["day_held_tokens"] == 0


@pytest.mark.parametrize(
    "fields",
    [
        *(fields for fields, _ in CASES.values()),
        {"tools": [TOOL], "tool_choice": "none", "max_output_tokens": 3},
        {"input": [{"role": "user", "content": "x"}, CALL, RESULT], "max_output_tokens": 3},
        {"input": [{"role": "user", "content": "x"}, CALL, RESULT], "tools": [TOOL], "tool_choice": "none"},
        {"input": [{"role": "developer", "content": "d"}, {"role": "user", "content": "x"}]},
    ],
    ids=str,
)
def test_vllms_own_responses_are_the_same(
    request: pytest.FixtureRequest, services: Any, fields: dict[str, Any]
) -> None:
    """The same prompt, the same items, the same events; but a response that was cut says so, as OpenAI's do."""
    engine = request.getfixturevalue("vllm_engine")
    body = {"model": "tiny", "input": "hello", "ignore_eos": True, "max_output_tokens": 6, "seed": 1} | fields
    with ExitStack() as stack:
        metered = services.gateway(engine, "own", stack)
        customer = metered.customer()
        for stream in (False, True):
            ours = customer.ask(RESPONSES, **body, stream=stream)
            theirs = httpx.post(f"{engine.base_url}{RESPONSES}", json=body | {"stream": stream}, timeout=60)
            assert ours.status_code == theirs.status_code == 200, (ours.text, theirs.text)
            mine, its = usage_of(ours), usage_of(theirs)
            for name in ("input_tokens", "output_tokens", "total_tokens"):
                assert mine[name] == its[name], name
            if stream:
                assert kinds(ours.text) == kinds(theirs.text)
            else:
                assert shape(ours.json()["output"]) == shape(theirs.json()["output"])
                assert text_of(ours.json()) == text_of(theirs.json())


def kinds(text: str) -> list[str]:
    """Return the events' types, a run of one type as one, and a response that was cut as one that completed."""
    types = [event["type"].replace("incomplete", "completed") for event in events_of(text)]
    return [kind for kind, _ in groupby(types)]


def shape(output: list[dict[str, Any]]) -> list[Any]:
    return [(item["type"], item["role"], [part["type"] for part in item["content"]]) for item in output]


def text_of(response: dict[str, Any]) -> str:
    return "".join(part["text"] for item in response["output"] for part in item["content"])


def test_a_response_costs_what_the_chat_that_it_is_would(metered: Any) -> None:
    customer = metered.customer()
    customer.ask(RESPONSES, max_output_tokens=7)
    customer.ask(CHAT, max_tokens=7)
    chat, response = customer.charges()
    assert chat["prompt_tokens"] == response["prompt_tokens"]
    assert chat["completion_tokens"] == response["completion_tokens"] == 7


@pytest.mark.parametrize("tokens", [1, 20])
def test_a_response_that_is_left_costs_what_had_reached_the_gateway_and_the_engine_stops(
    paced: Any, tokens: int
) -> None:
    paced.engine.say_no_more_than(tokens)
    customer, before = paced.customer(), paced.counters()
    body = {"model": "tiny", "input": "hello", "ignore_eos": True, "max_output_tokens": 900, "stream": True}
    stream = paced.services.http.stream("POST", paced.url + RESPONSES, json=body, headers=customer.headers)
    with ExitStack() as silence, stream as answer:
        told, pieces = "", answer.iter_text()  # kept: it ends the answer with itself
        for piece in pieces:
            told += piece
            if "response.output_text.delta" in told and paced.tap.completion_tokens() >= tokens:
                break
        silence.enter_context(paced.silenced(customer))
    charge = first_charge(customer)
    assert (charge["outcome"], charge["prompt_tokens"]) == ("abandoned", 24)
    assert tokens <= charge["completion_tokens"] == paced.tap.completion_tokens()
    after = paced.counters()
    assert (after[0] - before[0], after[1] - before[1]) == (24, charge["completion_tokens"])
    assert customer.settled()["day_tokens"] == charge["total_tokens"]


def first_charge(customer: Any) -> dict[str, Any]:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (charges := customer.charges()):
        assert time.monotonic() < deadline, "no charge"
        time.sleep(POLL_SECONDS)
    found: dict[str, Any] = charges[0]
    return found


def test_the_last_response_of_a_day_ends_exactly_at_the_cap(metered: Any) -> None:
    customer = metered.customer(cap_tokens=40)
    answer = customer.ask(RESPONSES, max_output_tokens=100)
    assert answer.json()["status"] == "incomplete"
    assert answer.headers["x-darktree-clamped-max-tokens"] == "16"
    assert usage_of(answer)["total_tokens"] == 40 == customer.settled()["day_tokens"]
    assert customer.ask(RESPONSES, max_output_tokens=1).status_code == 429


def test_what_the_engine_refuses_is_refused_and_costs_nothing(metered: Any) -> None:
    customer = metered.customer()
    form = {"type": "json_schema", "name": "a", "schema": {"type": "nonsense"}}
    for fields in ({"input": "a" * 2000}, {"top_p": 0}, {"text": {"format": form}}):
        if "text" in fields and metered.lane == "simulator":
            continue  # it has no forms to keep to
        refused = customer.ask(RESPONSES, **fields)
        assert (refused.status_code, refused.json()["error"]["type"]) == (400, "invalid_request_error"), (
            fields
        )
    assert customer.charges() == []
    assert customer.settled()["day_held_tokens"] == 0
