"""What a body may hold: what OpenAI's clients send and is served, and nothing that changes a bill unseen."""

import unicodedata
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from darktree_gateway import fields, prompts, requests
from darktree_gateway.requests import Ask
from darktree_kit.errors import ApiError, BadRequest
from darktree_simulator import tokenizer

MESSAGES = [{"role": "user", "content": "hello"}]


def chat(**options: Any) -> Ask:
    return requests.read(orjson.dumps({"model": "m", "messages": MESSAGES} | options), "chat")


def completion(**options: Any) -> Ask:
    return requests.read(orjson.dumps({"model": "m", "prompt": "hello"} | options), "completions")


def refusal(content: bytes | dict[str, Any], endpoint: Any = "chat") -> BadRequest:
    body = content if isinstance(content, bytes) else orjson.dumps(content)
    with pytest.raises(BadRequest) as caught:
        requests.read(body, endpoint)
    return caught.value


@pytest.mark.parametrize(
    ("options", "param", "code"),
    [
        ({"messages": None}, "messages", "missing_required_parameter"),
        ({"messages": []}, "messages", "empty_array"),
        ({"messages": "hi"}, "messages", "invalid_type"),
        ({"messages": [1]}, "messages[0]", "invalid_type"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "missing_required_parameter"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content", "invalid_type"),
        (
            {"messages": [{"role": "user", "content": "x", "extra": 1}]},
            "messages[0].extra",
            "unknown_parameter",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type",
            "unsupported_parameter",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text",
            "missing_required_parameter",
        ),
        ({"model": None}, "model", "missing_required_parameter"),
        ({"model": 3}, "model", "invalid_type"),
        ({"model": "x" * 300}, "model", "invalid_type"),
        ({"nonsense": 1}, "nonsense", "unknown_parameter"),
        ({"nonsense": None}, "nonsense", "unknown_parameter"),
        ({"prompt": "x"}, "prompt", "unknown_parameter"),
        ({"temperature": "hot"}, "temperature", "invalid_type"),
        ({"temperature": True}, "temperature", "invalid_type"),
        ({"temperature": 2.1}, "temperature", "decimal_above_max_value"),
        ({"temperature": -0.1}, "temperature", "decimal_below_min_value"),
        ({"n": 0}, "n", "integer_below_min_value"),
        ({"n": 129}, "n", "integer_above_max_value"),
        ({"n": 1.0}, "n", "invalid_type"),
        ({"max_tokens": 0}, "max_tokens", "integer_below_min_value"),
        ({"max_tokens": True}, "max_tokens", "invalid_type"),
        ({"max_tokens": "5"}, "max_tokens", "invalid_type"),
        ({"max_tokens": 5.0}, "max_tokens", "invalid_type"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "invalid_value"),
        ({"best_of": 2}, "best_of", "unsupported_parameter"),
        ({"use_beam_search": True}, "use_beam_search", "invalid_value"),
        ({"prompt_logprobs": 1}, "prompt_logprobs", "unsupported_parameter"),
        ({"priority": 1}, "priority", "unsupported_parameter"),
        ({"cache_salt": "x"}, "cache_salt", "unsupported_parameter"),
        ({"truncate_prompt_tokens": 1}, "truncate_prompt_tokens", "unsupported_parameter"),
        ({"chat_template": "x"}, "chat_template", "unsupported_parameter"),
        ({"functions": []}, "functions", "unsupported_parameter"),
        ({"stream": "yes"}, "stream", "invalid_type"),
        ({"stream": 1}, "stream", "invalid_type"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"stream": True, "stream_options": []}, "stream_options", "invalid_type"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unknown_parameter"),
        (
            {"stream": True, "stream_options": {"include_usage": 1}},
            "stream_options.include_usage",
            "invalid_type",
        ),
        ({"stop": ["x"] * 17}, "stop", "array_above_max_length"),
        ({"stop": [1]}, "stop[0]", "invalid_type"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1", "decimal_above_max_value"),
        ({"store": True}, "store", "invalid_value"),
        ({"tools": {}}, "tools", "invalid_type"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        ({"max_tokens": 4, "min_tokens": 5}, "min_tokens", "invalid_value"),
        ({"seed": 2**63}, "seed", "integer_above_max_value"),
    ],
)
def test_a_chat_that_is_wrong_is_refused_naming_the_field(
    options: dict[str, Any], param: str, code: str
) -> None:
    error = refusal({"model": "m", "messages": MESSAGES} | options)
    assert (error.param, error.answer_code, error.answer_status) == (param, code, 400)
    assert error.answer_type == "invalid_request_error"


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        (None, "prompt"),
        ("", "prompt"),
        ([], "prompt"),
        ({}, "prompt"),
        (["a", 1], "prompt[1]"),
        ([1, "a"], "prompt[1]"),
        ([1, True], "prompt[1]"),
        ([-1], "prompt[0]"),
        ([[1], []], "prompt[1]"),
        ([[1], "a"], "prompt[1]"),
        (["a", ""], "prompt"),
        (["a"] * 129, "prompt"),
        ([None], "prompt[0]"),
    ],
)
def test_a_prompt_that_is_wrong_is_refused(prompt: Any, param: str) -> None:
    assert refusal({"model": "m", "prompt": prompt}, "completions").param == param


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'"x"', b"null", b'{"model": NaN}', b'{"model": "\xff"}', b'{"model": "\\ud800"}', b"[" * 5000,
     b'{"model":"m","messages":' + b"[" * 400 + b"]" * 400 + b"}"],
)  # fmt: skip
def test_a_body_that_is_no_object_of_json_is_refused(content: bytes) -> None:
    error = refusal(content)
    assert error.answer_code == "invalid_json"
    assert error.param is None


def test_of_a_field_sent_twice_the_engine_gets_what_was_checked() -> None:
    ask = requests.read(b'{"model":"m","prompt":"x","max_tokens":1,"max_tokens":7}', "completions")
    assert ask.max_tokens == 7
    assert orjson.loads(requests.encode(ask, 3, None))["max_tokens"] == 3


def test_a_field_name_of_any_length_is_refused_in_a_bounded_message() -> None:
    error = refusal({"model": "m", "messages": MESSAGES, "x\n" * 5000: 1})
    assert len(error.message) < 400
    assert "\n" not in error.message


def test_the_engine_is_always_told_to_stream_with_usage_and_never_more_than_was_granted() -> None:
    ask = chat(max_completion_tokens=50, user="me", metadata={"a": "b"}, store=False, min_tokens=20, n=2)
    assert (ask.max_tokens, ask.answers, ask.stream) == (50, 2, False)
    sent = orjson.loads(requests.encode(ask, 10, "salt"))
    assert sent == {
        "model": "m",
        "messages": MESSAGES,
        "n": 2,
        "max_tokens": 10,
        "min_tokens": 10,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "cache_salt": "salt",
    }


def test_null_means_as_if_the_field_were_not_there() -> None:
    ask = chat(**dict.fromkeys(set(fields.CHAT) - {"model", "messages"}))
    assert set(ask.body) == {"model", "messages", "stream", "stream_options"}


def test_every_field_is_either_checked_here_or_refused() -> None:
    for name in fields.NOT_FORWARDED:
        assert name in fields.CHAT or name in fields.COMPLETIONS


def test_completions_count_answers_over_all_prompts() -> None:
    ask = completion(prompt=["a", "b", "c"], n=4)
    assert (ask.answers, ask.max_tokens) == (12, 16)
    assert refusal({"model": "m", "prompt": ["a"] * 128, "n": 9}, "completions").param == "n"


def test_token_ids_need_no_counting() -> None:
    ask = completion(prompt=[[1, 2, 3], [4]])
    assert (ask.exact, ask.prompt_tokens) == (True, [3, 1])


@pytest.mark.parametrize(
    "options",
    [
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"reasoning_effort": "low"},
        {"messages": [*MESSAGES, {"role": "assistant", "tool_calls": [{"id": "x"}]}]},
        {"messages": [*MESSAGES, {"role": "tool", "content": "x", "tool_call_id": "x"}]},
    ],
)
def test_what_a_template_renders_in_its_own_way_is_counted(options: dict[str, Any]) -> None:
    assert chat(**options).must_count
    assert not chat().must_count


TEXTS = st.text(max_size=50) | st.sampled_from(
    ["\u0958" * 20, "\U0001d160" * 9, "\ufdfa" * 5, "…™½", "<|im_end|>" * 3]
)
ROLES = st.sampled_from(["system", "developer", "user", "assistant"])


@given(st.lists(st.tuples(ROLES, TEXTS), min_size=1, max_size=8))
def test_no_conversation_has_more_tokens_than_its_bound(conversation: list[tuple[str, str]]) -> None:
    messages = [{"role": role, "content": text} for role, text in conversation]
    bound, _ = prompts.bound_of_messages(messages)
    for form in ("NFC", "NFKC"):
        # As the byte-level tokenizer of the tests counts, with the normalisation that real ones do first.
        rendered = "".join(
            f"<|im_start|>{role}\n{unicodedata.normalize(form, text)}<|im_end|>\n"
            for role, text in conversation
        )
        assert len(tokenizer.encode(rendered + "<|im_start|>assistant\n")) <= bound


@given(TEXTS)
def test_a_bound_is_never_less_than_any_normal_form(text: str) -> None:
    bound = prompts.bound_of_text(text)
    assert bound >= len(text.encode())
    assert bound >= len(unicodedata.normalize("NFC", text).encode())


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([(b"content-type", b"application/json; charset=utf-8")], 0),
        ([(b"content-type", b"Application/JSON"), (b"content-encoding", b"identity")], 0),
        ([], 415),
        ([(b"content-type", b"text/json")], 415),
        ([(b"content-type", b"application/json"), (b"content-encoding", b"br")], 415),
        ([(b"content-type", b"application/json"), (b"content-length", b"99999999999")], 413),
        ([(b"content-type", b"application/json"), (b"content-length", b"-1")], 413),
    ],
)
def test_headers_are_checked_before_a_body_is_read(headers: list[tuple[bytes, bytes]], status: int) -> None:
    if not status:
        requests.check_headers(headers)
        return
    with pytest.raises(ApiError) as caught:
        requests.check_headers(headers)
    assert caught.value.answer_status == status
