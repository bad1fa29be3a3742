"""The same cases against the gateway before a simulator and before a real vLLM, against OpenAI's documented shapes.

Every answer, chunk and event is read by the types of OpenAI's own library, made from its API description: what they
require has to be there, and what they do not know has to be in EXTRA, where vLLM's and our additions are listed.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import httpx
import pydantic
import pytest
from openai.types import Completion, CreateEmbeddingResponse, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES, EMBEDDINGS = "/v1/responses", "/v1/embeddings"
MODEL = "tiny"
SHAPES = Path(__file__).parent / "recorded" / "shapes.json"

# Members beyond OpenAI's that a client may see: by whose type, and which.
EXTRA: dict[str, set[str]] = {
    # vLLM's
    "Choice": {"stop_reason", "token_ids", "prompt_token_ids"},
    "CompletionChoice": {"stop_reason", "token_ids", "prompt_token_ids", "prompt_logprobs", "routed_experts"},
    "ChatCompletionMessage": {"reasoning"},
    "ChatCompletionChunk": {"prompt_token_ids", "prompt_text"},
    "Completion": {"service_tier"},
    "CreateEmbeddingResponse": {"id", "created"},
    "Usage": {"completion_tokens", "prompt_tokens_details", "completion_tokens_details"},  # of embeddings
    "Logprob": {"bytes"},  # of a response's events
    "LogprobTopLogprob": {"bytes"},
    # ours
    "Model": {"context_length"},
    "Response": {"store"},
    "ResponseFunctionCallArgumentsDoneEvent": {"name"},
}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALLED = {"role": "assistant", "tool_calls": [
    {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
]}  # fmt: skip
RESULT = {"role": "tool", "tool_call_id": "1", "content": "done"}
HELLO = {"role": "user", "content": "hello"}
FLAT_TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, {}),
    "chat that stops": (CHAT, {"stop": ["zzzz"], "seed": 1, "temperature": 0.5, "top_p": 0.9}),
    "chat of two answers": (CHAT, {"n": 2}),
    "chat with log probabilities": (CHAT, {"logprobs": True, "top_logprobs": 3}),
    "chat with the likeliest only": (CHAT, {"logprobs": True}),
    "chat with tools": (CHAT, {"tools": [TOOL], "tool_choice": "none"}),
    "chat after a call": (CHAT, {"messages": [HELLO, CALLED, RESULT]}),
    "chat in parts": (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]}),
    "chat with everything ignored": (
        CHAT,
        {"user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "verbosity": "low",
         "prompt_cache_key": "k", "safety_identifier": "s", "modalities": ["text"], "parallel_tool_calls": True},
    ),
    "completion": (COMPLETIONS, {}),
    "completion of two prompts, twice": (COMPLETIONS, {"prompt": ["a", "b"], "n": 2}),
    "completion with log probabilities": (COMPLETIONS, {"logprobs": 2}),
    "completion with its echo": (COMPLETIONS, {"echo": True}),
    "response": (RESPONSES, {}),
    "response to items": (RESPONSES, {"input": [HELLO], "instructions": "I", "metadata": {"a": "b"}}),
    "response with log probabilities": (
        RESPONSES, {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    ),
    "response with tools": (RESPONSES, {"tools": [FLAT_TOOL], "tool_choice": "none", "user": "u"}),
    "response in a form": (RESPONSES, {"text": {"format": {"type": "text"}}, "reasoning": {"effort": "low"}}),
}  # fmt: skip
UNFINISHED = {"choices[].finish_reason: NoneType", "choices[].prompt_token_ids: NoneType"}
LIMITS = {CHAT: "max_completion_tokens", COMPLETIONS: "max_tokens", RESPONSES: "max_output_tokens"}
PLAIN = {CHAT: ChatCompletion, COMPLETIONS: Completion, RESPONSES: Response}
EVENT: Any = pydantic.TypeAdapter(ResponseStreamEvent)


def assert_documented(shape: Any, data: Any) -> Any:
    """Read data as one of OpenAI's types, strictly; return what was read."""
    read = EVENT.validate_python(data) if shape is EVENT else shape.model_validate(data)
    for name, extra in unknown_members(read):
        assert extra <= EXTRA.get(name, set()), f"{name} has {sorted(extra)} in {data}"
    return read


def unknown_members(value: Any) -> Iterator[tuple[str, set[str]]]:
    if isinstance(value, pydantic.BaseModel):
        yield type(value).__name__, set(value.model_extra or ())
        for name in type(value).model_fields:
            yield from unknown_members(getattr(value, name))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from unknown_members(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from unknown_members(item)


def ask(metered: Any, path: str, **fields: Any) -> httpx.Response:
    limit = {LIMITS[path]: 6} if path in LIMITS else {}
    answer: httpx.Response = metered.customer().ask(path, **(limit | fields))
    assert answer.status_code == 200, answer.text
    return answer


@pytest.mark.parametrize("case", CASES)
def test_a_plain_answer_is_as_documented(metered: Any, case: str) -> None:
    path, fields = CASES[case]
    read = assert_documented(PLAIN[path], ask(metered, path, **fields).json())
    assert read.model == MODEL
    if path == RESPONSES:
        assert read.usage.total_tokens == read.usage.input_tokens + read.usage.output_tokens
        assert (read.object, read.status) == ("response", "incomplete")
        assert read.incomplete_details.reason == "max_output_tokens"
    else:
        assert read.usage.total_tokens == read.usage.prompt_tokens + read.usage.completion_tokens
        assert {choice.finish_reason for choice in read.choices} == {"length"}
        assert [choice.index for choice in read.choices] == list(range(len(read.choices)))


@pytest.mark.parametrize("include_usage", [False, True])
@pytest.mark.parametrize("case", [case for case, (path, _) in CASES.items() if path != RESPONSES])
def test_every_chunk_is_as_documented(metered: Any, case: str, include_usage: bool) -> None:
    path, fields = CASES[case]
    options = {"stream_options": {"include_usage": True}} if include_usage else {}
    answer = ask(metered, path, stream=True, **options, **fields)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    *events, done, nothing = answer.text.split("\n\n")
    assert (done, nothing) == ("data: [DONE]", "")
    shape = ChatCompletionChunk if path == CHAT else Completion
    sent = [json.loads(event.removeprefix("data: ")) for event in events]
    for choice in (choice for chunk in sent for choice in chunk["choices"] if shape is Completion):
        assert (
            "finish_reason" in choice
        )  # null until the end: the library has one type for whole answers and chunks
        choice["finish_reason"] = choice["finish_reason"] or "stop"
    chunks = [assert_documented(shape, chunk) for chunk in sent]
    assert len({chunk.id for chunk in chunks}) == 1
    usages = [chunk.usage for chunk in chunks if chunk.usage is not None]
    assert len(usages) == 1
    assert (chunks[-1].choices == []) == include_usage
    finished = [
        choice.index for chunk in chunks for choice in chunk.choices if choice.finish_reason == "length"
    ]
    assert sorted(finished) == sorted({choice.index for chunk in chunks for choice in chunk.choices})


@pytest.mark.parametrize("case", [case for case, (path, _) in CASES.items() if path == RESPONSES])
def test_every_event_is_as_documented(metered: Any, case: str) -> None:
    path, fields = CASES[case]
    answer = ask(metered, path, stream=True, **fields)
    known = {
        get_args(kind.model_fields["type"].annotation)[0]
        for kind in get_args(get_args(ResponseStreamEvent)[0])
    }
    for number, event in enumerate(answer.text.removesuffix("\n\n").split("\n\n")):
        name, data = event.split("\n")
        read = assert_documented(EVENT, json.loads(data.removeprefix("data: ")))
        assert name == f"event: {read.type}"
        assert read.type in known
        assert read.sequence_number == number
    assert read.type == "response.incomplete"
    assert read.response.usage.output_tokens == 6


@pytest.mark.parametrize("encoding", ["float", "base64"])
@pytest.mark.parametrize("given", ["hello", ["a", "b"], [104, 105], [[104], [105]]])
def test_embeddings_are_as_documented(embedding: Any, given: Any, encoding: str) -> None:
    answer = ask(embedding, EMBEDDINGS, input=given, encoding_format=encoding).json()
    if encoding == "base64":  # the library unpacks it
        answer["data"] = [
            row | {"embedding": [0.0]} for row in answer["data"] if type(row["embedding"]) is str
        ]
    read = assert_documented(CreateEmbeddingResponse, answer)
    assert [row.index for row in read.data] == list(range(len(read.data)))
    assert read.usage.total_tokens == read.usage.prompt_tokens


def test_models_are_as_documented(metered: Any) -> None:
    customer = metered.customer()
    http = metered.services.http
    listed = http.get(f"{metered.url}/v1/models", headers=customer.headers).json()
    assert (listed["object"], set(listed)) == ("list", {"object", "data"})
    (model,) = listed["data"]
    assert_documented(Model, model)
    assert http.get(f"{metered.url}/v1/models/{MODEL}", headers=customer.headers).json() == model


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_the_shape_of_an_answer_is_the_recorded_one_whichever_engine_is_behind(
    metered: Any, case: str, stream: bool
) -> None:
    """`RECORD=1` writes the shapes down anew, of whichever engine comes last."""
    path, fields = CASES[case]
    text = ask(metered, path, stream=stream, **fields).text
    events = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: {")]
    found = sorted(
        {member for event in (events if stream else [text]) for member in members(json.loads(event))}
    )
    shown = [choice["index"] for event in events for choice in json.loads(event).get("choices", [])]
    # A vLLM whose reader is slow says a choice in one chunk, which is its first and its last.
    lost = set() if len(shown) > len(set(shown)) else UNFINISHED
    recorded = json.loads(SHAPES.read_text()) if SHAPES.exists() else {}
    name = f"{case}, streamed" if stream else case
    if os.environ.get("RECORD"):
        SHAPES.write_text(json.dumps(recorded | {name: found}, indent=1, sort_keys=True) + "\n")
    else:
        assert set(recorded[name]) - lost <= set(found) <= set(recorded[name])


def members(value: Any, place: str = "") -> Iterator[str]:
    """Return every member of an answer with its type, such as `choices[].index: int`."""
    if isinstance(value, dict):
        for name, inner in value.items():
            shown = (
                "*" if place == "choices[].logprobs.top_logprobs[]" else name
            )  # a completion's are named by tokens
            yield from members(inner, f"{place}.{shown}" if place else shown)
    elif isinstance(value, list) and value:
        for inner in value:
            yield from members(inner, f"{place}[]")
    else:
        yield f"{place}: {type(value).__name__}"


REFUSED: dict[str, tuple[str, dict[str, Any], int, str, str]] = {
    "an unknown model": (CHAT, {"model": "x"}, 404, "model_not_found", "model"),
    "a prompt past the context": (COMPLETIONS, {"prompt": "a" * 2000}, 400, "context_length_exceeded", "prompt"),
    "a chat past the context": (CHAT, {"messages": [HELLO] * 200}, 400, "context_length_exceeded", "messages"),
    "an input past the context": (RESPONSES, {"input": "a" * 2000}, 400, "context_length_exceeded", "input"),
    "a limit past the context": (CHAT, {"max_tokens": 5000, "max_completion_tokens": None}, 400,
                                 "context_length_exceeded", "max_tokens"),
    "a wrong field": (CHAT, {"temperature": 3}, 400, "decimal_above_max_value", "temperature"),
    "an unknown field": (RESPONSES, {"n": 1}, 400, "unknown_parameter", "n"),
    "a role that nobody has": (CHAT, {"messages": [{"role": "wizard", "content": "x"}]}, 400, "invalid_value",
                               "messages[0].role"),
    "an image": (CHAT, {"messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "data:,"}}]}]}, 400, "unsupported_parameter",
        "messages[0].content[0].type"),
    "top_p of nothing": (CHAT, {"top_p": 0}, 400, "invalid_value", "top_p"),
}  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_is_as_documented_and_the_same_whichever_engine_is_behind(
    metered: Any, case: str, stream: bool
) -> None:
    path, fields, status, code, param = REFUSED[case]
    customer = metered.customer()
    refused = customer.ask(path, **({LIMITS[path]: 6} | fields), stream=stream)
    assert refused.status_code == status, refused.text
    assert refused.headers["content-type"] == "application/json"
    (error,) = refused.json().values()
    assert list(error) == ["message", "type", "param", "code"]
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", code, param)
    assert customer.charges() == []
