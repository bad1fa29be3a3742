"""Responses: OpenAI's events and objects over an engine's chat, charged like a chat wherever they end."""

from typing import Any

import httpx
import orjson
import pytest
from openai import OpenAI

MODEL, SCRIPTED = "qwen25-14b-awq", "qwen25-32b-awq"
PROMPT_TOKENS = 10
TOOL = {"type": "function", "name": "weather", "description": "It tells.", "parameters": {"type": "object"}}


def ask(customer: Any, given: Any = "Tell me of trees.", **fields: Any) -> httpx.Response:
    body = {"model": MODEL, "input": given} | fields
    answer: httpx.Response = customer.client.post("/v1/responses", json=body)
    return answer


def events_of(content: bytes) -> list[Any]:
    """Decode a response's events, each named as its data says, and numbered without a gap."""
    events = []
    for event in content.decode().split("\n\n")[:-1]:
        name, data = event.split("\n")
        events.append(orjson.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def chunk(delta: dict[str, Any], used: int, finish_reason: str | None = None) -> dict[str, Any]:
    usage = {"prompt_tokens": PROMPT_TOKENS, "total_tokens": PROMPT_TOKENS + used, "completion_tokens": used}
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return {"id": "c", "created": 1, "model": SCRIPTED, "choices": [choice], "usage": usage}


def end(used: int) -> list[Any]:
    return [chunk({}, used, "stop") | {"choices": []}, "[DONE]"]


def test_a_plain_response_is_charged_its_usage(customer: Any) -> None:
    answer = ask(customer, max_output_tokens=12, metadata={"a": "b"}, instructions="Be short.")
    response = answer.json()
    assert (response["object"], response["status"]) == ("response", "incomplete")
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert (response["metadata"], response["instructions"]) == ({"a": "b"}, "Be short.")
    assert (response["store"], response["max_output_tokens"]) == (False, 12)
    (item,) = response["output"]
    assert (item["type"], item["status"], len(item["content"][0]["text"])) == ("message", "incomplete", 12)
    (charge,) = customer.usage()
    assert answer.headers["x-darktree-entry-id"] == charge["entry_id"]
    assert (charge["completion_tokens"], charge["outcome"]) == (12, "completed")
    usage = response["usage"]
    assert (usage["input_tokens"], usage["output_tokens"]) == (charge["prompt_tokens"], 12)
    assert usage["total_tokens"] == charge["total_tokens"]


def test_a_streamed_response_says_the_same_and_ends_with_its_usage(customer: Any) -> None:
    plain = ask(customer).json()
    answer = ask(customer, stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-accel-buffering"] == "no"
    events = events_of(answer.content)
    kinds = [event["type"].removeprefix("response.") for event in events]
    head = ["created", "in_progress", "output_item.added", "content_part.added"]
    tail = ["output_text.done", "content_part.done", "output_item.done", "completed"]
    assert (kinds[:4], kinds[-4:]) == (head, tail)
    assert set(kinds[4:-4]) == {"output_text.delta"}
    text = "".join(event["delta"] for event in events[4:-4])
    assert text == events[-4]["text"] == plain["output"][0]["content"][0]["text"]
    last = events[-1]["response"]
    assert last["usage"] == plain["usage"]
    assert events[0]["response"]["id"] == last["id"]
    assert (last["status"], last["output"][0]["content"][0]["text"]) == ("completed", text)
    first, second = customer.usage()
    assert first["total_tokens"] == second["total_tokens"] == last["usage"]["total_tokens"]


def test_the_items_of_a_conversation_are_the_messages_of_a_chat(customer: Any, engine: Any) -> None:
    engine.say(chunk({"content": "x"}, 1, "stop"), *end(1))
    items = [
        {"role": "developer", "content": "D"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
        {"role": "user", "content": [{"type": "input_text", "text": "b"}, {"type": "input_text", "text": "c"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "R"}]},
        {"type": "function_call", "id": "fc_1", "call_id": "1", "name": "weather", "arguments": "{}"},
        {"type": "function_call", "call_id": "2", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "dry"},
        {"type": "function_call_output", "call_id": "2", "output": [{"type": "input_text", "text": "wet"}]},
        {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
         "content": [{"type": "output_text", "text": "Dry, then wet.", "annotations": []}]},
        {"role": "user", "content": "And now?"},
    ]  # fmt: skip
    answer = ask(customer, items, model=SCRIPTED, instructions="I", tools=[TOOL], tool_choice="none")
    assert answer.status_code == 200, answer.text
    calls = [
        {"id": each, "type": "function", "function": {"name": "weather", "arguments": "{}"}} for each in "12"
    ]
    (sent,) = engine.bodies
    assert sent["messages"] == [
        {"role": "system", "content": "I"},
        {"role": "developer", "content": "D"},
        {"role": "user", "content": "a"},
        {"role": "user", "content": [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]},
        {"role": "assistant", "reasoning": "R", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "1", "content": "dry"},
        {"role": "tool", "tool_call_id": "2", "content": "wet"},
        {"role": "assistant", "content": "Dry, then wet."},
        {"role": "user", "content": "And now?"},
    ]
    function = {name: value for name, value in TOOL.items() if name != "type"}
    assert sent["tools"] == [{"type": "function", "function": function}]
    assert sent["tool_choice"] == "none"


def test_what_a_response_asks_is_asked_of_the_chat(customer: Any, engine: Any) -> None:
    engine.say(chunk({"content": "x"}, 1, "stop"), *end(1))
    form = {"type": "json_schema", "name": "answer", "schema": {"type": "object"}, "strict": True}
    fields = {
        "text": {"format": form, "verbosity": "low"}, "reasoning": {"effort": "low", "summary": "auto"},
        "max_output_tokens": 7, "temperature": 0.5, "top_p": 0.9, "top_logprobs": 2, "seed": 3, "stop": ["."],
        "include": ["message.output_text.logprobs", "reasoning.encrypted_content"], "user": "u", "store": False,
        "background": False, "truncation": "disabled", "tools": [TOOL],
        "tool_choice": {"type": "function", "name": "weather"},
    }  # fmt: skip
    answer = ask(customer, model=SCRIPTED, **fields)
    assert answer.status_code == 200, answer.text
    (sent,) = engine.bodies
    schema = {name: value for name, value in form.items() if name != "type"}
    wanted = {
        "response_format": {"type": "json_schema", "json_schema": schema}, "reasoning_effort": "low", "max_tokens": 7,
        "temperature": 0.5, "top_p": 0.9, "logprobs": True, "top_logprobs": 2, "seed": 3, "stop": ["."],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
    }  # fmt: skip
    assert {name: sent[name] for name in wanted} == wanted
    told = answer.json()
    assert {name: told[name] for name in ("text", "reasoning", "tools", "tool_choice", "top_logprobs")} == {
        name: fields[name] for name in ("text", "reasoning", "tools", "tool_choice", "top_logprobs")
    }


def test_reasoning_text_and_calls_are_items_of_their_own(customer: Any, engine: Any, platform: Any) -> None:
    def call(index: int, arguments: str, **first: Any) -> dict[str, Any]:
        function = {"arguments": arguments} | ({"name": first["name"]} if first else {})
        named = {"id": f"call_{index}", "type": "function"} if first else {}
        return {"tool_calls": [{"index": index, "function": function} | named]}

    engine.say(
        chunk({"role": "assistant", "content": ""}, 0),
        chunk({"reasoning": "I "}, 1), chunk({"reasoning": "think."}, 2), chunk({"content": "Well."}, 3),
        chunk(call(0, "", name="weather"), 4), chunk(call(0, '{"a"'), 5), chunk(call(0, ": 1}"), 6),
        chunk(call(1, "{}", name="weather"), 7), chunk({}, 8, "tool_calls"), *end(8),
    )  # fmt: skip
    client = OpenAI(api_key=customer.key, base_url=f"{platform.gateway_url}/v1")
    tools: Any = [TOOL]
    with client, client.responses.stream(model=SCRIPTED, input="x", tools=tools) as stream:
        kinds = [event.type for event in stream]
        response: Any = stream.get_final_response()
    assert [item.type for item in response.output] == [
        "reasoning", "message", "function_call", "function_call"
    ]  # fmt: skip
    thought, _, first, second = response.output
    assert thought.content[0].text == "I think."
    assert response.output_text == "Well."
    assert (first.name, first.arguments, first.call_id) == ("weather", '{"a": 1}', "call_0")
    assert (second.arguments, second.call_id) == ("{}", "call_1")
    assert kinds.count("response.output_item.added") == kinds.count("response.output_item.done") == 4
    assert kinds.count("response.function_call_arguments.delta") == 3
    assert response.usage.output_tokens == 8
    assert customer.usage()[0]["completion_tokens"] == 8


@pytest.mark.parametrize("events", [1, 2, 3])
def test_a_response_that_its_client_leaves_costs_what_the_engine_had_told(
    customer: Any, engine: Any, platform: Any, eventually: Any, events: int
) -> None:
    said = [chunk({"content": "a"}, number) for number in range(1, events + 1)]
    engine.say(*said, end="stall")
    body = {"model": SCRIPTED, "input": "x", "stream": True}
    with customer.client.stream("POST", "/v1/responses", json=body) as answer:
        told = b""
        for piece in answer.iter_raw():
            told += piece
            if told.count(b'"delta"') == events:
                break
    (charge,) = eventually(customer.usage, "the charge")
    assert (charge["outcome"], charge["completion_tokens"]) == ("abandoned", events)
    eventually(lambda: engine.left == 1, "the abort")
    assert platform.open_holds(customer.id) == 0


def test_a_response_that_fails_inside_says_so_and_what_was_delivered_is_charged(
    customer: Any, engine: Any
) -> None:
    engine.say(chunk({"content": "a"}, 1), chunk({"content": "b"}, 2), end="break")
    events = events_of(ask(customer, model=SCRIPTED, stream=True).content)
    error, failed = events[-2:]
    assert (error["type"], error["code"]) == ("error", "engine_error")
    assert (failed["type"], failed["response"]["status"]) == ("response.failed", "failed")
    assert failed["response"]["usage"]["output_tokens"] == 2
    (charge,) = customer.usage()
    assert (charge["outcome"], charge["completion_tokens"]) == ("failed", 2)


def test_a_plain_response_that_fails_costs_nothing(customer: Any, engine: Any, platform: Any) -> None:
    engine.say(chunk({"content": "a"}, 1), end="break")
    assert ask(customer, model=SCRIPTED).json()["error"]["code"] == "engine_error"
    assert customer.usage() == []
    assert platform.open_holds(customer.id) == 0


def test_the_cap_clamps_a_response_to_its_last_token(platform: Any) -> None:
    customer = platform.customer(cap_tokens=60)
    answer = ask(customer, "hello", max_output_tokens=50, ignore_eos=True)
    response = answer.json()
    assert (response["status"], response["usage"]["total_tokens"]) == ("incomplete", 60)
    granted = str(response["usage"]["output_tokens"])
    assert answer.headers["x-darktree-clamped-max-tokens"] == granted
    assert ask(customer, "hello").status_code == 429


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"store": True}, "store", "unsupported_parameter"),
        ({"background": True}, "background", "unsupported_parameter"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "unsupported_parameter"),
        ({"conversation": "conv_1"}, "conversation", "unsupported_parameter"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt", "unsupported_parameter"),
        ({"truncation": "auto"}, "truncation", "unsupported_parameter"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "unsupported_parameter"),
        ({"tools": [{"type": "function"}]}, "tools[0].name", "missing_required_parameter"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice", "unsupported_parameter"),
        ({"tool_choice": "always"}, "tool_choice", "invalid_value"),
        ({"include": ["file_search_call.results"]}, "include[0]", "invalid_value"),
        ({"max_tokens": 1}, "max_tokens", "unsupported_parameter"),
        ({"max_output_tokens": 0}, "max_output_tokens", "integer_below_min_value"),
        ({"n": 2}, "n", "unknown_parameter"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type", "invalid_value"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema",
         "missing_required_parameter"),
        ({"reasoning": {"effort": "none of it"}}, "reasoning.effort", "invalid_value"),
        ({"input": None}, "input", "missing_required_parameter"),
        ({"input": []}, "input", "empty_array"),
        ({"input": 5}, "input", "invalid_type"),
        ({"input": [{"role": "wizard", "content": "x"}]}, "input[0].role", "invalid_value"),
        ({"input": [{"role": "user"}]}, "input[0].content", "missing_required_parameter"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type", "unsupported_parameter"),
        ({"input": [{"type": "reasoning", "encrypted_content": "x"}]}, "input[0].encrypted_content",
         "unsupported_parameter"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]}]},
         "input[0].content[0].type", "unsupported_parameter"),
        ({"input": [{"role": "user", "content": "a" * 5000}]}, "input", "context_length_exceeded"),
    ],
)  # fmt: skip
def test_what_is_not_served_is_refused_by_its_name(
    customer: Any, platform: Any, fields: dict[str, Any], param: str, code: str
) -> None:
    refused = ask(customer, **fields)
    error = refused.json()["error"]
    assert (refused.status_code, error["param"], error["code"]) == (400, param, code)
    assert customer.usage() == []
    assert platform.open_holds(customer.id) == 0


def test_nothing_is_stored_to_be_read_again(customer: Any) -> None:
    response_id = ask(customer).json()["id"]
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")):
        answer = customer.client.request(method, f"/v1/responses/{response_id}{path}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_url")
