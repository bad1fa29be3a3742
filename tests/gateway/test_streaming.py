"""The engine's stream, however it is cut: what is passed on, what is withheld, what is metered."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from darktree_gateway import requests
from darktree_gateway.metering import Meter
from darktree_gateway.requests import Ask
from darktree_gateway.streaming import Relay

RECORDED = Path(__file__).resolve().parents[1] / "vllm" / "recorded"


def recorded(file: str, name: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = orjson.loads((RECORDED / file).read_bytes())
    return next(record for record in found if record["name"] == name)


def stream_of(record: dict[str, Any]) -> bytes:
    return "\n\n".join(record["events"]).encode()


def ask_of(record: dict[str, Any], **stream_options: Any) -> Ask:
    body = {**record["body"], "stream": True, "stream_options": stream_options or None}
    body.pop("ignore_eos", None)
    return requests.read(orjson.dumps(body), "chat" if "chat" in record["path"] else "completions")


STREAMS = [
    ("chat_streams.json", "usage in every chunk"),
    ("completion_streams.json", "usage in every chunk"),
    ("completion_streams.json", "two prompts"),
    ("completion_streams.json", "echo"),
]


@pytest.mark.parametrize(("file", "name"), STREAMS)
def test_a_recorded_stream_gives_the_same_bytes_wherever_it_is_cut_in_two(file: str, name: str) -> None:
    record = recorded(file, name)
    stream = stream_of(record)
    whole = Relay(ask_of(record), Meter(1))
    now = whole.feed(stream)
    assert whole.complete
    expected = now + whole.ending()
    assert expected.endswith(b"\n\ndata: [DONE]\n\n")
    for cut in range(len(stream) + 1):
        relay = Relay(ask_of(record), Meter(1))
        first, second = relay.feed(stream[:cut]), relay.feed(stream[cut:])
        assert relay.complete
        assert first + second == now
        assert first + second + relay.ending() == expected


@pytest.mark.parametrize(("file", "name"), STREAMS)
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_a_recorded_stream_gives_the_same_bytes_in_pieces(file: str, name: str, size: int) -> None:
    record = recorded(file, name)
    stream = stream_of(record)
    whole, pieces = Relay(ask_of(record), Meter(1)), Relay(ask_of(record), Meter(1))
    expected = whole.feed(stream)
    got = b"".join(pieces.feed(stream[start : start + size]) for start in range(0, len(stream), size))
    assert got == expected
    assert pieces.ending() == whole.ending()


@pytest.mark.parametrize(("file", "name"), STREAMS)
def test_what_vllm_says_of_its_usage_is_what_is_metered(file: str, name: str) -> None:
    record = recorded(file, name)
    meter = Meter(1)
    relay = Relay(ask_of(record), meter)
    relay.feed(stream_of(record))
    final = orjson.loads(record["events"][-3].removeprefix("data: "))["usage"]
    assert (meter.prompt_tokens, meter.completion_tokens) == (
        final["prompt_tokens"],
        final["completion_tokens"],
    )


def test_before_the_final_usage_the_meter_adds_up_what_each_answer_says() -> None:
    record = recorded("completion_streams.json", "two prompts")
    meter = Meter(1)
    relay = Relay(ask_of(record), meter)
    for event in record["events"][:3]:  # one of each prompt, and one more of the first
        relay.feed(event.encode() + b"\n\n")
    assert (meter.prompt_tokens, meter.completion_tokens) == (1 + 3, 2 + 1)


def test_without_stream_options_the_client_gets_what_vllm_streams_without_usage_and_usage_at_the_end(
    events_of: Callable[[bytes], list[Any]],
) -> None:
    record = recorded("completion_streams.json", "usage in every chunk")
    relay = Relay(ask_of(record), Meter(1))
    got = events_of(relay.feed(stream_of(record)) + relay.ending())
    sent = [orjson.loads(event.removeprefix("data: ")) for event in record["events"][:-2]]
    final = sent.pop()
    for chunk in sent:
        chunk.pop("usage")
    sent[-1] |= {"usage": final["usage"], "system_fingerprint": final["system_fingerprint"]}
    assert got == [*sent, "[DONE]"]


def test_with_include_usage_the_client_gets_exactly_what_vllm_gives_whoever_asks_for_it(
    events_of: Callable[[bytes], list[Any]],
) -> None:
    every = recorded("chat_streams.json", "usage in every chunk")
    relay = Relay(ask_of(every, include_usage=True), Meter(1))
    got = events_of(relay.feed(stream_of(every)) + relay.ending())
    asked = recorded("chat_streams.json", "usage at the end")
    expected = events_of(stream_of(asked))
    for chunk in [*got[:-1], *expected[:-1]]:
        for choice in chunk["choices"]:
            choice["delta"].pop("content", None)  # drawn at random
    assert got == expected


def chunk(content: str, *, finish: str | None = None, usage: Any = None, index: int = 0) -> dict[str, Any]:
    choice = {"index": index, "delta": {"content": content}, "logprobs": None, "finish_reason": finish}
    made: dict[str, Any] = {"id": "chatcmpl-1", "model": "m", "choices": [choice]}
    return made | ({"usage": usage} if usage is not None else {})


def usage_of(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}


def plain_ask(**options: Any) -> Ask:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True} | options
    return requests.read(orjson.dumps(body), "chat")


def event(value: Any) -> bytes:
    return b"data: " + orjson.dumps(value) + b"\n\n"


NASTY = st.text() | st.sampled_from(
    [
        ',"usage":{"prompt_tokens":9,"total_tokens":18,"completion_tokens":9}}',
        '"finish_reason":"stop"',
        "\n\ndata: [DONE]\n\n",
        '"choices":[]',
        '\\",\\"usage\\":',
        '"choices":[{"index":5,',
    ]
)


@given(st.lists(NASTY, min_size=1, max_size=6), st.integers(1, 40), st.booleans())
def test_no_text_of_a_model_can_be_taken_for_usage_or_for_an_end(
    texts: list[str], size: int, ascii_only: bool
) -> None:
    events = [chunk(text, usage=usage_of(3, place + 1)) for place, text in enumerate(texts)]
    events[-1]["choices"][0]["finish_reason"] = "stop"
    final = {"id": "chatcmpl-1", "model": "m", "choices": [], "usage": usage_of(3, len(texts))}
    stream = b"".join(event(value) for value in [*events, final]) + b"data: [DONE]\n\n"
    if ascii_only:
        import json

        lines = [json.dumps(value, separators=(",", ":")) for value in [*events, final]]
        stream = "".join(f"data: {line}\n\n" for line in lines).encode() + b"data: [DONE]\n\n"
    meter = Meter(1)
    relay = Relay(plain_ask(), meter)
    out = b"".join(relay.feed(stream[start : start + size]) for start in range(0, len(stream), size))
    assert relay.complete
    assert (meter.prompt_tokens, meter.completion_tokens) == (3, len(texts))
    got = [orjson.loads(text[6:]) for text in (out + relay.ending()).split(b"\n\n")[:-2]]
    assert [value["choices"][0]["delta"]["content"] for value in got] == texts
    assert [value.get("usage") for value in got] == [None] * (len(texts) - 1) + [usage_of(3, len(texts))]


def test_the_end_of_one_answer_of_several_is_not_withheld() -> None:
    relay = Relay(plain_ask(n=2), Meter(2))
    first = relay.feed(event(chunk("a", finish="stop", usage=usage_of(3, 1))))
    assert b'"stop"' in first
    assert b"usage" not in first
    last = relay.feed(event(chunk("b", finish="stop", usage=usage_of(3, 1), index=1)))
    assert last == b""


def test_an_event_that_finishes_waits_for_its_settlement() -> None:
    relay = Relay(plain_ask(), Meter(1))
    assert relay.feed(event(chunk("a", usage=usage_of(3, 1)))) != b""
    assert relay.feed(event(chunk("b", finish="length", usage=usage_of(3, 2)))) == b""
    assert not relay.complete
    relay.feed(event({"choices": [], "usage": usage_of(3, 2)}) + b"data: [DONE]\n\n")
    assert relay.complete


@pytest.mark.parametrize(
    "stream",
    [
        b"data: [DONE]\n\n",
        event(chunk("a", finish="stop")) + b"data: [DONE]\n\n",
        event(chunk("a", finish="stop", usage=usage_of(3, 1))) + b"data: [DONE]\n\n",
        event({"choices": [], "usage": usage_of(3, 2)}) + b"data: [DONE]\n\n",
        event(chunk("a", finish="stop", usage=usage_of(3, 1)))
        + event({"choices": [], "usage": {"prompt_tokens": -1}}),
        event(chunk("a", finish="stop")) + event({"choices": [], "usage": usage_of(3, 1)}),
        b"data: {\n\n",
        b"data: [1]\n\n",
        b'data: {"choices":[7],"usage":null}\n\ndata: [DONE]\n\n',
        b"<html>\n\n",
    ],
)
def test_a_stream_without_a_finish_its_usage_and_an_end_is_not_complete(stream: bytes) -> None:
    relay = Relay(plain_ask(), Meter(1))
    relay.feed(stream)
    assert not relay.complete


def test_an_engines_error_inside_a_stream_is_translated() -> None:
    relay = Relay(plain_ask(), Meter(1))
    relay.feed(
        event(
            {"error": {"message": "boom /usr/lib", "type": "InternalServerError", "param": None, "code": 500}}
        )
    )
    assert relay.error is not None
    assert (relay.error.answer_status, relay.error.answer_code) == (502, "engine_error")
    assert "boom" not in relay.error.message


def test_comments_keep_the_connection_alive() -> None:
    relay = Relay(plain_ask(), Meter(1))
    assert relay.feed(b": keep-alive\n\n") == b": keep-alive\n\n"
