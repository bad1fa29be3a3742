"""What the ledger charges is what the engine counted, to the token, behind the real gateway, ledger and billing.

Every case runs against the simulator too, which has the same tokenizer: both give the same charges.
"""

import json
import re
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

MODEL = "tiny"
PRICE_NANOS = 750_000
DEADLINE_SECONDS = 20.0
POLL_SECONDS = 0.01
STANDS_STILL_READS = 5
ENGINE_TOKENS = "darktree_lane_engine_tokens"

HELLO = [{"role": "user", "content": "hello"}]
HELLO_TOKENS = 24
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
LONG = [{"role": "user", "content": "a" * 990}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def until(condition: Callable[[], Any], what: str) -> Any:
    """Return the first true value of a condition, asked until a deadline."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(POLL_SECONDS)
    return value


def _sum_of(exposition: str, name: str) -> int:
    values = re.findall(rf"^{re.escape(name)}\{{[^}}]*\}} (\S+)$", exposition, re.MULTILINE)
    assert values, f"no metric {name}"
    return sum(int(float(value)) for value in values)


def body_of(path: str, **fields: Any) -> dict[str, Any]:
    prompt = {"messages": HELLO} if path == CHAT else {"prompt": "hello"}
    return {"model": MODEL, "ignore_eos": True} | prompt | fields


def usage_of(answer: httpx.Response) -> dict[str, int]:
    """Return the usage of an answer, plain or streamed, which says it exactly once."""
    assert answer.status_code == 200, answer.text
    if not answer.headers["content-type"].startswith("text/event-stream"):
        usage: dict[str, int] = answer.json()["usage"]
        return usage
    events = [event.removeprefix("data: ") for event in answer.text.split("\n\n") if event]
    assert events[-1] == "[DONE]"
    found = [usage for event in events[:-1] if (usage := json.loads(event).get("usage"))]
    assert len(found) == 1
    return dict(found[0])


# Each request with its charge, (prompt tokens, completion tokens): the same for both engines, streamed or not.
CASES: dict[str, tuple[str, dict[str, Any], tuple[int, int]]] = {
    "chat": (CHAT, {"max_tokens": 20}, (24, 20)),
    "chat to the default length": (CHAT, {}, (24, 64)),
    "chat with three answers": (CHAT, {"max_tokens": 9, "n": 3}, (24, 27)),
    "chat in other scripts": (CHAT, {"messages": [{"role": "user", "content": "é树😀"}], "max_tokens": 3}, (28, 3)),
    "chat cut down to the context": (CHAT, {"messages": LONG, "max_tokens": 1000}, (1009, 15)),
    "chat with log probabilities": (CHAT, {"max_tokens": 5, "logprobs": True, "top_logprobs": 2}, (24, 5)),
    "chat with tools": (CHAT, {"max_tokens": 5, "tools": [TOOL], "tool_choice": "none"}, (207, 5)),
    "completion": (COMPLETIONS, {"max_tokens": 7}, (5, 7)),
    "completion to the default length": (COMPLETIONS, {}, (5, 16)),
    "completion of two prompts": (COMPLETIONS, {"prompt": ["a", "bcd"], "max_tokens": 6}, (4, 12)),
    "completion of two prompts, twice": (COMPLETIONS, {"prompt": ["a", "bcd"], "max_tokens": 6, "n": 2}, (4, 24)),
    "completion of token ids": (COMPLETIONS, {"prompt": [[104], [105, 106]], "max_tokens": 2}, (3, 4)),
    "completion with its echo": (COMPLETIONS, {"max_tokens": 4, "echo": True}, (5, 4)),
}  # fmt: skip
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "streamed": {"stream": True},
    "streamed with usage": {"stream": True, "stream_options": {"include_usage": True}},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_the_charge_is_the_usage_and_the_engines_own_count(metered: Any, case: str, way: str) -> None:
    path, fields, (prompt_tokens, completion_tokens) = CASES[case]
    customer, before, metered_before = metered.customer(), metered.counters(), metered.metered()
    answer = customer.ask(path, **fields, **WAYS[way])
    usage = usage_of(answer)
    after = metered.counters()
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (prompt_tokens, completion_tokens)
    assert after[1] - before[1] == completion_tokens
    # The engine counts the prompt once for each of `n` answers; usage, and so the bill, counts it once.
    assert after[0] - before[0] == prompt_tokens * fields.get("n", 1)
    [charge] = customer.charges()
    assert charge["entry_id"] == answer.headers["x-darktree-entry-id"]
    assert charge["request_id"] == answer.headers["x-request-id"]
    assert (charge["prompt_tokens"], charge["completion_tokens"]) == (prompt_tokens, completion_tokens)
    assert charge["amount_nanos"] == (prompt_tokens + completion_tokens) * PRICE_NANOS
    account = customer.account()
    assert (account["open_holds"], account["day_tokens"]) == (0, prompt_tokens + completion_tokens)
    counted = metered.metered()
    assert (counted[0] - metered_before[0], counted[1] - metered_before[1]) == (
        prompt_tokens,
        completion_tokens,
    )


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize(
    ("path", "fields", "spare_tokens", "each"),
    [
        (CHAT, {"max_tokens": 50}, 10, 10),
        (CHAT, {"max_tokens": 50}, 1, 1),
        (CHAT, {}, 10, 10),
        (CHAT, {"max_tokens": 50, "n": 2}, 11, 5),
        (COMPLETIONS, {"max_tokens": 50}, 10, 10),
        (COMPLETIONS, {"prompt": ["a", "bcd"], "max_tokens": 50, "n": 2}, 23, 5),
    ],
)
def test_the_last_request_of_a_day_ends_exactly_at_the_cap(
    metered: Any, path: str, fields: dict[str, Any], spare_tokens: int, each: int, stream: bool
) -> None:
    prompt_tokens = HELLO_TOKENS if path == CHAT else 4 if "prompt" in fields else 5
    answers = fields.get("n", 1) * len(fields.get("prompt", "1"))
    cap_tokens = prompt_tokens + spare_tokens
    customer, before = metered.customer(cap_tokens=cap_tokens), metered.counters()
    answer = customer.ask(path, **fields, stream=stream)
    usage = usage_of(answer)
    assert usage["completion_tokens"] == each * answers
    assert answer.headers["x-darktree-clamped-max-tokens"] == str(each)
    reasons = re.findall(r'"finish_reason": ?"(\w+)"', answer.text)
    assert reasons == ["length"] * answers
    assert metered.counters()[1] - before[1] == each * answers
    account = customer.account()
    assert account["day_tokens"] == usage["total_tokens"] == prompt_tokens + each * answers
    # Answers share what is left in whole tokens; a single one uses it to the last.
    assert 0 <= cap_tokens - account["day_tokens"] < answers
    refused = customer.ask(path, **fields, stream=stream)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert metered.counters()[1] - before[1] == each * answers


def test_the_last_request_of_a_balance_spends_it_to_the_last_token(metered: Any) -> None:
    customer = metered.customer(dollars="0.0225")  # 30 tokens
    answer = customer.ask(CHAT, max_tokens=50)
    assert usage_of(answer)["completion_tokens"] == 30 - HELLO_TOKENS
    assert answer.json()["choices"][0]["finish_reason"] == "length"
    assert customer.account()["balance_nanos"] == 0
    refused = customer.ask(CHAT, max_tokens=1)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "credit_balance_exhausted")


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_tokens_of_a_stop_string_are_charged_as_the_engine_counts_them(
    metered: Any, customer: Any, stream: bool
) -> None:
    options: dict[str, Any] = {"max_tokens": 60, "seed": 11, "temperature": 0}
    text = customer.ask(COMPLETIONS, **options).json()["choices"][0]["text"]
    stop = text[10:13]
    before = metered.counters()
    answer = customer.ask(COMPLETIONS, **options, stop=stop, stream=stream)
    usage, after = usage_of(answer), metered.counters()
    assert '"finish_reason":"stop"' in answer.text.replace(" ", "")
    assert usage["completion_tokens"] == after[1] - before[1] < 60
    assert customer.charges()[0]["completion_tokens"] == usage["completion_tokens"]
    # What was hidden from the answer was generated too.
    assert usage["completion_tokens"] >= len(text[: text.index(stop)]) + len(stop)


@pytest.mark.parametrize("case", CASES)
def test_a_prompt_is_counted_for_free_as_it_is_charged(metered: Any, customer: Any, case: str) -> None:
    path, fields, (prompt_tokens, _) = CASES[case]
    before = metered.counters()
    body = body_of(path, **fields)
    url = f"{metered.url}/v1/tokenize"
    told = metered.services.http.post(url, json=body, headers=customer.headers)
    assert (told.status_code, told.json()["count"]) == (200, prompt_tokens), told.text
    assert metered.counters() == before
    assert customer.account()["day_tokens"] == 0


def test_prompt_tokens_from_the_prefix_cache_are_charged_like_all_others(metered: Any, customer: Any) -> None:
    def cached() -> int:
        text = metered.services.http.get(f"{metered.engine.base_url}/metrics").text
        return _sum_of(text, "vllm:prefix_cache_hits_total") if metered.lane == "vllm_engine" else 0

    before = cached()
    usages = [usage_of(customer.ask(CHAT, messages=LONG, max_tokens=2)) for _ in range(2)]
    assert usages[0]["prompt_tokens"] == usages[1]["prompt_tokens"] == 1009
    assert [charge["prompt_tokens"] for charge in customer.charges()] == [1009, 1009]
    assert cached() > before or metered.lane == "simulator"


OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "n": st.integers(1, 4), "stream": st.booleans(), "temperature": st.floats(0, 2), "top_p": st.floats(0, 1),
    "stop": st.text(max_size=3), "ignore_eos": st.booleans(), "min_tokens": st.integers(0, 6),
    "logit_bias": st.dictionaries(st.integers(0, 300).map(str), st.floats(-100, 100), max_size=2),
    "response_format": st.sampled_from([{"type": "json_object"}, {"type": "structural_tag"}, {}]),
}  # fmt: skip


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_whatever_is_asked_the_charge_is_the_engines_own_count(
    metered: Any, customer: Any, path: str
) -> None:
    @settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @given(st.fixed_dictionaries({}, optional=OPTIONS))
    def check(options: dict[str, Any]) -> None:
        before, used = metered.counters(), customer.account()["day_tokens"]
        answer = customer.ask(path, max_tokens=6, **options)
        assert answer.status_code in {200, 400}, answer.text
        usage = usage_of(answer) if answer.status_code == 200 else {"completion_tokens": 0, "total_tokens": 0}
        assert metered.counters()[1] - before[1] == usage["completion_tokens"]
        assert customer.settled()["day_tokens"] - used == usage["total_tokens"]

    check()


PLAIN_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, {"temperature": 0, "max_tokens": 40}),
    "chat that ends by itself": (CHAT, {"seed": 4, "max_tokens": 400, "ignore_eos": False}),
    "chat with two answers": (CHAT, {"seed": 4, "n": 2, "max_tokens": 30}),
    "chat with log probabilities": (CHAT, {"temperature": 0, "max_tokens": 9, "logprobs": True}),
    "chat with alternatives": (CHAT, {"seed": 4, "n": 2, "max_tokens": 9, "logprobs": True, "top_logprobs": 3}),
    "chat with a stop string": (CHAT, {"temperature": 0, "max_tokens": 60, "stop": ["a", "|"]}),
    "chat with token ids": (CHAT, {"temperature": 0, "max_tokens": 9, "return_token_ids": True}),
    "completion": (COMPLETIONS, {"temperature": 0, "max_tokens": 40}),
    "completion of two prompts, twice": (COMPLETIONS, {"prompt": ["ab", "c"], "seed": 4, "n": 2, "max_tokens": 9}),
    "completion with log probabilities": (COMPLETIONS, {"temperature": 0, "max_tokens": 9, "logprobs": 2}),
    "completion with its echo": (COMPLETIONS, {"temperature": 0, "max_tokens": 9, "echo": True}),
    "completion of two echoes": (COMPLETIONS, {"prompt": ["ab", "c"], "temperature": 0, "max_tokens": 9, "echo": True}),
    "completion of ids": (COMPLETIONS, {"prompt": [104, 105], "temperature": 0, "max_tokens": 9}),
}  # fmt: skip


@pytest.mark.parametrize("case", PLAIN_CASES)
def test_a_plain_answer_is_the_one_that_the_engine_gives_by_itself(
    metered: Any, customer: Any, case: str
) -> None:
    path, fields = PLAIN_CASES[case]
    own = metered.services.http.post(metered.engine.base_url + path, json=body_of(path, **fields))
    served = customer.ask(path, **fields)
    assert served.status_code == own.status_code == 200, (served.text, own.text)
    assert comparable(served.json()) == comparable(own.json())


def comparable(answer: Any) -> Any:
    if isinstance(answer, dict):
        left = {"id", "created"} | {name for name, value in answer.items() if value is None}
        return {name: comparable(value) for name, value in answer.items() if name not in left}
    if isinstance(answer, list):
        return [comparable(value) for value in answer]
    # The same sums in another batch differ in their last digits.
    return pytest.approx(answer, abs=1e-3) if isinstance(answer, float) else answer


@pytest.mark.parametrize(
    ("path", "fields", "code", "param"),
    [
        (
            CHAT,
            {"messages": [{"role": "user", "content": "a" * 2000}]},
            "context_length_exceeded",
            "messages",
        ),
        (CHAT, {"max_tokens": 1025}, "context_length_exceeded", "max_tokens"),
        (CHAT, {"messages": LONG + LONG}, "context_length_exceeded", "messages"),
        (COMPLETIONS, {"prompt": "a" * 2000}, "context_length_exceeded", "prompt"),
        (COMPLETIONS, {"prompt": ["a", "a" * 2000]}, "context_length_exceeded", "prompt"),
        (COMPLETIONS, {"prompt": [97] * 2000}, "context_length_exceeded", "prompt"),
        (COMPLETIONS, {"prompt": [9999], "max_tokens": 3}, "invalid_value", None),
        (COMPLETIONS, {"prompt": [2**63], "max_tokens": 3}, "invalid_value", None),
        (CHAT, {"top_p": 0, "max_tokens": 3}, "invalid_value", "top_p"),
        (CHAT, {"n": 2, "temperature": 0, "max_tokens": 3}, "invalid_value", None),
        (CHAT, {"tools": [TOOL], "max_tokens": 3}, "invalid_value", None),
    ],
)
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_what_the_engine_refuses_is_refused_in_openais_words_and_costs_nothing(
    metered: Any, customer: Any, path: str, fields: dict[str, Any], code: str, param: str | None, stream: bool
) -> None:  # fmt: skip
    before, account = metered.counters(), customer.account()
    answer = customer.ask(path, **fields, stream=stream)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", code, param)
    assert metered.counters() == before
    assert customer.settled()["balance_nanos"] == account["balance_nanos"]
    assert customer.charges() == []


@pytest.mark.parametrize(
    ("answers", "tokens"), [(1, 1), (1, 3), (1, 40), (1, 200), (2, 2), (2, 30)], ids=lambda value: str(value)
)
def test_a_stream_that_is_left_costs_what_had_reached_the_gateway_and_the_engine_stops(
    paced: Any, answers: int, tokens: int
) -> None:
    if paced.lane == "paced_simulator":
        tokens = min(tokens, 40)
    paced.engine.say_no_more_than(tokens)
    customer, before, metered_before = paced.customer(), paced.counters(), paced.metered()
    body = body_of(CHAT, max_tokens=900, n=answers, stream=True)
    body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    seen: dict[int, int] = {}
    stream = paced.services.http.stream("POST", paced.url + CHAT, json=body, headers=customer.headers)
    with ExitStack() as silence, stream as response:
        lines = response.iter_lines()  # kept: it ends the answer with itself
        for line in lines:
            if line.startswith("data: "):
                chunk = json.loads(line.removeprefix("data: "))
                seen[chunk["choices"][0]["index"]] = chunk["usage"]["completion_tokens"]
            if sum(seen.values()) >= answers * tokens:
                break
        silence.enter_context(paced.silenced(customer))
    assert_left(paced, customer, before, metered_before, answers, sum(seen.values()))


@pytest.mark.parametrize("tokens", [0, 1, 25, 150])
def test_a_plain_request_that_is_left_costs_what_had_reached_the_gateway_and_the_engine_stops(
    paced: Any, tokens: int
) -> None:
    if paced.lane == "paced_simulator":
        tokens = min(tokens, 25)
    paced.engine.say_no_more_than(tokens)
    customer, before, metered_before = paced.customer(), paced.counters(), paced.metered()
    content = json.dumps(body_of(CHAT, max_tokens=900)).encode()
    host, _, port = paced.url.removeprefix("http://").partition(":")
    head = f"POST {CHAT} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {customer.key}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    with ExitStack() as silence, socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + content)
        until(paced.tap.streams, "the engine answers")
        until(lambda: paced.tap.completion_tokens() >= tokens, "it is generated")
        silence.enter_context(paced.silenced(customer))
    assert_left(paced, customer, before, metered_before, 1, tokens)


def assert_left(
    paced: Any,
    customer: Any,
    before: tuple[int, int],
    metered_before: tuple[int, int],
    answers: int,
    seen_tokens: int,
) -> None:
    """The charge is what the engine said and made before it was left, and it stopped."""
    account = customer.settled()
    after = paced.counters()  # waits until nothing runs
    charges = customer.charges()
    assert [charge["outcome"] for charge in charges] == ["abandoned"] * len(charges)
    charged = sum(charge["completion_tokens"] for charge in charges)
    # Who left before the engine said anything pays nothing; else the prompt, once, and what was told.
    assert len(charges) == 1 or not seen_tokens
    prompts = HELLO_TOKENS * len(charges)
    assert account["day_tokens"] == prompts + charged
    generated = after[1] - before[1]
    assert after[0] - before[0] in {HELLO_TOKENS * answers, prompts}
    assert seen_tokens <= charged == generated < 900
    if answers == 1 and charges:
        assert charged == paced.tap.completion_tokens()

    for _ in range(STANDS_STILL_READS):
        assert paced.counters() == after
    # The gateway's own metrics would show a difference.
    until(lambda: paced.metric(ENGINE_TOKENS, "completion") == after[1], "the engine's count shows")
    assert paced.metered()[1] - metered_before[1] == charged
