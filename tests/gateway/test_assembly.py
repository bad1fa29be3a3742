"""A plain answer put together from a stream is what a real vLLM answers without one."""

from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from darktree_gateway import requests
from darktree_gateway.assembly import Assembly
from darktree_gateway.metering import Meter

RECORDED = Path(__file__).resolve().parents[1] / "vllm" / "recorded"


def recorded(file: str, name: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = orjson.loads((RECORDED / file).read_bytes())
    return next(record for record in found if record["name"] == name)


def assembled(body: dict[str, Any], endpoint: Any, stream: bytes, size: int = 10_000) -> dict[str, Any]:
    sent = {name: value for name, value in body.items() if not name.startswith("stream")}
    ask = requests.read(orjson.dumps(sent), endpoint)
    meter = Meter(ask.answers_per_prompt)
    assembly = Assembly(ask, meter)
    for start in range(0, len(stream), size):
        assert assembly.feed(stream[start : start + size]) == b""
    assert assembly.error is None
    assert assembly.complete
    answer: dict[str, Any] = orjson.loads(assembly.ending())
    usage = answer["usage"]
    assert (meter.prompt_tokens, meter.completion_tokens) == (
        usage["prompt_tokens"],
        usage["completion_tokens"],
    )
    return answer


def with_usage(record: dict[str, Any], prompt_tokens: int, completion_tokens: int) -> bytes:
    """Return a recorded stream as it would be with usage at its end."""
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    usage["total_tokens"] = prompt_tokens + completion_tokens
    events = [
        text for text in record["events"] if text and text != "data: [DONE]" and '"choices":[]' not in text
    ]
    final = {"id": "x", "choices": [], "usage": usage, "system_fingerprint": "vllm-0.32.0-0"}
    events += [f"data: {orjson.dumps(final).decode()}", "data: [DONE]", ""]
    return "\n\n".join(events).encode()


def shape(value: Any) -> Any:
    """Return what an answer looks like: its members that are not null, and the types of what is drawn at random."""
    if isinstance(value, dict):
        return {name: shape(member) for name, member in value.items() if member is not None}
    if isinstance(value, list):
        return [shape(member) for member in value]
    return type(value).__name__ if isinstance(value, str | float) else value


def anonymous(answer: dict[str, Any]) -> Any:
    """Return an answer's shape without the tokens that a random model drew as names."""
    found = shape(answer)
    for choice in found["choices"]:
        for top in choice.get("logprobs", {}).get("top_logprobs", []):
            names = sorted(top)
            for place, name in enumerate(names):
                top[f"#{place}"] = top.pop(name)
    return found


@pytest.mark.parametrize(
    ("stream_name", "plain_name", "prompt_tokens", "completion_tokens"),
    [
        ("usage in every chunk", "plain", 24, 4),
        ("usage at the end", "plain", 24, 4),
        ("three choices", "three choices", 24, 12),
    ],
)
def test_a_chats_stream_becomes_the_plain_answer_of_a_real_vllm(
    stream_name: str, plain_name: str, prompt_tokens: int, completion_tokens: int
) -> None:
    stream = recorded("chat_streams.json", stream_name)
    plain = recorded("chat.json", plain_name)
    for size in (1, 7, 10_000):
        answer = assembled(stream["body"], "chat", with_usage(stream, prompt_tokens, completion_tokens), size)
        assert shape(answer) == shape(plain["answer"])


@pytest.mark.parametrize(
    ("stream_name", "plain_name", "prompt_tokens", "completion_tokens"),
    [
        ("usage in every chunk", "plain", 5, 4),
        ("echo", "echo", 5, 4),
        ("log probabilities", "log probability of the token only", 5, 4),
    ],
)
def test_a_completions_stream_becomes_the_plain_answer_of_a_real_vllm(
    stream_name: str, plain_name: str, prompt_tokens: int, completion_tokens: int
) -> None:
    stream = recorded("completion_streams.json", stream_name)
    plain = recorded("completions.json", plain_name)
    answer = assembled(stream["body"], "completions", with_usage(stream, prompt_tokens, completion_tokens))
    if stream["body"].get("logprobs") == plain["body"].get("logprobs"):
        assert anonymous(answer) == anonymous(plain["answer"])


def test_a_chats_log_probabilities_are_joined() -> None:
    stream = recorded("chat_streams.json", "log probabilities")
    answer = assembled(stream["body"], "chat", with_usage(stream, 24, 4))
    assert len(answer["choices"][0]["logprobs"]["content"]) == 4
    assert (
        "".join(row["token"] for row in answer["choices"][0]["logprobs"]["content"])
        == (answer["choices"][0]["message"]["content"])
    )


def test_tool_calls_are_joined_by_their_index() -> None:
    def chunk(delta: dict[str, Any], finish: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return "data: " + orjson.dumps({"id": "c", "created": 1, "model": "m", "choices": [choice]}).decode()

    call = {"index": 0, "id": "call_a", "type": "function", "function": {"name": "weather", "arguments": ""}}
    other = {
        "index": 1,
        "id": "call_b",
        "type": "function",
        "function": {"name": "time", "arguments": '{"a":'},
    }
    events = [
        chunk({"role": "assistant", "content": ""}),
        chunk({"reasoning": "Let me "}),
        chunk({"reasoning": "see."}),
        chunk({"tool_calls": [call]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"city":'}}]}),
        chunk({"tool_calls": [other]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": ' "Rome"}'}}]}),
        chunk({"tool_calls": [{"index": 1, "function": {"arguments": "1}"}}]}),
        chunk({"content": ""}, "tool_calls"),
    ]
    stream = with_usage({"events": events}, 5, 9)
    answer = assembled({"model": "m", "messages": [{"role": "user", "content": "x"}]}, "chat", stream)
    message = answer["choices"][0]["message"]
    assert message["content"] is None
    assert message["reasoning"] == "Let me see."
    assert message["tool_calls"] == [
        {
            "id": "call_a",
            "type": "function",
            "function": {"name": "weather", "arguments": '{"city": "Rome"}'},
        },
        {"id": "call_b", "type": "function", "function": {"name": "time", "arguments": '{"a":1}'}},
    ]
    assert answer["choices"][0]["finish_reason"] == "tool_calls"


def spoken(endpoint: str, text: str, tokens: int, **members: Any) -> bytes:
    """Return one event as vLLM writes it; `members` are the answer's own, in place of its usual nulls."""
    chat = endpoint == "chat"
    choice: dict[str, Any] = {"index": 0} | ({"delta": {"content": text}} if chat else {"text": text})
    choice |= {"logprobs": None, "finish_reason": None, "token_ids": None} | members
    usage = {"prompt_tokens": 24, "total_tokens": 24 + tokens, "completion_tokens": tokens}
    chunk = {"id": "c-1", "object": "chunk", "created": 1, "model": "m", "choices": [choice], "usage": usage}
    return b"data: " + orjson.dumps(chunk)


TRICKS = [
    "",
    " ",
    '"',
    "\\",
    "\n",
    "né",
    "7",
    "\n\n",
    '"}',
    '"},"usage":{"prompt_tokens":9',
    "data: [DONE]",
    "\\u0041",
]
PIECES = st.one_of(st.sampled_from(TRICKS), st.text(max_size=6))
MEMBERS = st.sampled_from(
    [{}, {}, {}, {"stop_reason": None}, {"delta": {"reasoning": "hm", "content": "so"}}]
)


@given(st.lists(st.tuples(PIECES, MEMBERS), min_size=1, max_size=12), st.integers(1, 400))
def test_texts_are_the_same_whether_events_are_decoded_or_alike(
    pieces: list[tuple[str, dict[str, Any]]], size: int
) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    events = [
        spoken("chat", "", 0, delta={"role": "assistant", "content": ""}),
        *(spoken("chat", text, place, **members) for place, (text, members) in enumerate(pieces, 1)),
        spoken("chat", "", len(pieces), finish_reason="stop", stop_reason=None),
    ]
    stream = with_usage({"events": [event.decode() for event in events]}, 24, len(pieces))
    message = assembled(body, "chat", stream, size)["choices"][0]["message"]
    said = [(members.get("delta") or {"content": text})["content"] for text, members in pieces]
    assert message["content"] == "".join(said)
    assert message.get("reasoning") == ("hm" * sum("delta" in members for _, members in pieces) or None)


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_what_was_used_is_known_after_every_event_that_is_alike(endpoint: Any) -> None:
    body = {"model": "m"} | (
        {"messages": [{"role": "user", "content": "x"}]} if endpoint == "chat" else {"prompt": "x"}
    )
    ask = requests.read(orjson.dumps(body), endpoint)
    meter = Meter(1)
    assembly = Assembly(ask, meter)
    for tokens in (1, 2, 3, 10, 11, 1_000):
        assembly.feed(spoken(endpoint, "so ", tokens) + b"\n\n")
        assert (meter.prompt_tokens, meter.completion_tokens) == (24, tokens)
    assembly.feed(spoken(endpoint, "a", 1_001) + b"\n\n" + spoken(endpoint, "b", 1_002) + b"\n\n")
    assert meter.completion_tokens == 1_002
    # What one of them says beside its text is seen, wherever it stands.
    assembly.feed(spoken(endpoint, "c", 1_003) + b"\n\n" + b'data: {"error":{"message":"no","code":500}}\n\n')
    assert meter.completion_tokens == 1_003
    assert assembly.error is not None


def test_an_event_without_its_numbers_fails_the_answer() -> None:
    ask = requests.read(b'{"model":"m","messages":[{"role":"user","content":"x"}]}', "chat")
    assembly = Assembly(ask, Meter(1))
    assembly.feed(spoken("chat", "a", 7) + b"\n\n" + spoken("chat", "b", 8) + b"\n\n")
    said = spoken("chat", "c", 9).replace(b'"completion_tokens":9', b'"completion_tokens":')
    assembly.feed(said + b"\n\n")
    assert assembly.error is not None
