"""Events that are not decoded say the same as if they were, and whatever is not quite like the rest is decoded."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from darktree_gateway.assembly import Assembly
from darktree_gateway.metering import Meter
from darktree_gateway.requests import Ask, read
from darktree_gateway.texts import texts_like

TOP = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}


def ask_of(endpoint: str) -> Ask:
    body: dict[str, Any] = {"model": "m"}
    if endpoint == "chat":
        return read(orjson.dumps(body | {"messages": [{"role": "user", "content": "x"}]}), "chat")
    return read(orjson.dumps(body | {"prompt": "x"}), "completions")


def usage(completion: int) -> dict[str, int]:
    return {"prompt_tokens": 7, "total_tokens": 7 + completion, "completion_tokens": completion}


def event_of(piece: dict[str, Any], completion: int, **more: Any) -> bytes:
    choice = {"index": 0, "logprobs": None, "finish_reason": None} | piece
    return b"data: " + orjson.dumps(TOP | {"choices": [choice]} | more | {"usage": usage(completion)})


def said(piece: str, endpoint: str) -> dict[str, Any]:
    return {"delta": {"content": piece}} if endpoint == "chat" else {"text": piece}


def parts_after(first: bytes, *events: bytes) -> tuple[list[str], list[tuple[int, int] | None]]:
    """Learn from the first event, and return what the rest came to."""
    parts: list[str] = []
    texts = texts_like(first, orjson.loads(first[6:]), lambda _: parts)
    assert texts is not None
    return parts, [texts.take(event) for event in events]


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
@given(pieces=st.lists(st.text(min_size=1), min_size=1, max_size=8))
def test_an_answer_is_the_same_whatever_its_pieces_are(endpoint: str, pieces: list[str]) -> None:
    meter = Meter(1)
    assembly = Assembly(ask_of(endpoint), meter)
    events = [event_of(said(piece, endpoint), place) for place, piece in enumerate(pieces, 1)]
    ends = event_of(said("", endpoint) | {"finish_reason": "stop"}, len(pieces))
    last = b"data: " + orjson.dumps(TOP | {"choices": [], "usage": usage(len(pieces))})
    assembly.feed(b"\n\n".join([*events, ends, last, b"data: [DONE]", b""]))
    assert assembly.complete
    choice = orjson.loads(assembly.ending())["choices"][0]
    assert (choice["message"]["content"] if endpoint == "chat" else choice["text"]) == "".join(pieces)
    assert (meter.prompt_tokens, meter.completion_tokens) == (7, len(pieces))


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_an_event_like_the_first_is_taken_without_decoding(endpoint: str) -> None:
    first = event_of(said("one", endpoint), 1)
    parts, taken = parts_after(first, event_of(said(" zwei é", endpoint), 2))
    assert (parts, taken) == ([" zwei é"], [(7, 2)])


@pytest.mark.parametrize(
    "other",
    [
        event_of(said('a "quote"', "chat"), 2),
        event_of(said("a \\ backslash", "chat"), 2),
        event_of(said("a\nline", "chat"), 2),
        event_of(said("", "chat"), 2),
        event_of(said("two", "chat") | {"finish_reason": "stop"}, 2),
        event_of(said("two", "chat") | {"index": 1}, 2),
        event_of({"delta": {"content": "two", "tool_calls": []}}, 2),
        event_of(said("two", "chat"), 2, system_fingerprint="f"),
        event_of(said("two", "chat"), 2).replace(b'"total_tokens":9', b'"total_tokens":[}'),
        event_of(said("two", "chat"), -2),
        event_of(said("two", "chat"), 2)[:-1],
        event_of(said("two", "chat"), 2) + b',"x":1}',
        b'data: {"error":{"message":"m"}}',
    ],
)  # fmt: skip
def test_an_event_that_says_anything_else_is_left_to_be_decoded(other: bytes) -> None:
    parts, taken = parts_after(event_of(said("one", "chat"), 1), other)
    assert (parts, taken) == ([], [None])


@pytest.mark.parametrize(
    "first",
    [
        event_of({"delta": {"role": "assistant", "content": "one"}}, 1),
        event_of(said("", "chat"), 1),
        event_of(said("one", "chat") | {"logprobs": {"content": []}}, 1),
        event_of(said("one", "chat") | {"token_ids": [1]}, 1),
        event_of(said("one", "chat"), 1, prompt_token_ids=[1]),
        event_of(said("one", "chat"), 1, other={"content": "one"}),
        event_of(said("one", "chat"), 1).replace(b'"content":"one"', b'"content": "one"'),
        event_of(said("one", "chat"), 1).replace(b'"content":"one"', b'"content":"\\u006fne"'),
        b"data: "
        + orjson.dumps(TOP | {"choices": [{"index": 0, "delta": {"content": "one"}}], "usage": None}),
    ],
)
def test_nothing_is_learnt_from_an_event_that_is_more_than_a_text(first: bytes) -> None:
    assert texts_like(first, orjson.loads(first[6:]), lambda _: []) is None
