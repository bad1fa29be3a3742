"""What the simulator says, for how long, and that it says the same again."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

MESSAGES = [{"role": "user", "content": "Tell me about trees."}]
BOTH = {"include_usage": True, "continuous_usage_stats": True}
# <|im_start|>user\n ... <|im_end|>\n<|im_start|>assistant\n
TEMPLATE_TOKENS = 19

Metric = Callable[[httpx.Client, str], float]


def chat(lane: httpx.Client, **fields: Any) -> dict[str, Any]:
    response = lane.post("/v1/chat/completions", json={"messages": MESSAGES} | fields)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def stream(lane: httpx.Client, **fields: Any) -> list[dict[str, Any]]:
    body = {"messages": MESSAGES, "stream": True, "stream_options": BOTH} | fields
    text = lane.post("/v1/chat/completions", json=body).text
    events = text.removesuffix("\n\n").split("\n\n")
    assert events.pop() == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events]


def content(chunks: list[dict[str, Any]], index: int = 0) -> str:
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content", "") for choice in choices)


def test_a_natural_answer_is_some_tens_of_tokens_and_stops_by_itself(lane: httpx.Client) -> None:
    for number in range(20):
        answer = chat(lane, messages=[{"role": "user", "content": f"Question {number}"}])
        choice = answer["choices"][0]
        assert choice["finish_reason"] == "stop"
        assert 20 <= len(choice["message"]["content"]) <= 60
        # The token that ends the answer is counted, and is no text.
        assert answer["usage"]["completion_tokens"] == len(choice["message"]["content"]) + 1


def test_max_tokens_ends_an_answer_with_length(lane: httpx.Client) -> None:
    answer = chat(lane, max_tokens=5)
    assert answer["choices"][0]["finish_reason"] == "length"
    assert len(answer["choices"][0]["message"]["content"]) == 5
    assert answer["usage"]["completion_tokens"] == 5


def test_ignore_eos_goes_on_until_max_tokens(lane: httpx.Client) -> None:
    answer = chat(lane, max_tokens=500, ignore_eos=True)
    assert answer["usage"]["completion_tokens"] == 500
    assert answer["choices"][0]["finish_reason"] == "length"


def test_ignore_eos_without_max_tokens_fills_the_context(lane: httpx.Client) -> None:
    assert chat(lane, ignore_eos=True)["usage"]["total_tokens"] == 4096


def test_min_tokens_makes_an_answer_longer(lane: httpx.Client) -> None:
    answer = chat(lane, min_tokens=200)
    assert answer["usage"]["completion_tokens"] == 201
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_every_byte_of_a_prompt_is_a_token(lane: httpx.Client) -> None:
    for text in ("hello", "héllo", "😀", ""):
        usage = chat(lane, messages=[{"role": "user", "content": text}], max_tokens=1)["usage"]
        assert usage["prompt_tokens"] == TEMPLATE_TOKENS + len(text.encode())


def test_the_same_request_gets_the_same_words(lane: httpx.Client) -> None:
    first, second = (chat(lane, seed=7)["choices"][0]["message"]["content"] for _ in range(2))
    other = chat(lane, seed=8)["choices"][0]["message"]["content"]
    assert first == second != other


def test_a_stream_says_what_the_whole_answer_says(lane: httpx.Client) -> None:
    whole = chat(lane, n=2)
    chunks = stream(lane, n=2)
    for choice in whole["choices"]:
        assert content(chunks, choice["index"]) == choice["message"]["content"]
    assert chunks[-1]["choices"] == []
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert chunks[-1]["usage"][name] == whole["usage"][name]


def test_continuous_usage_counts_each_choice_up_by_its_own_tokens(lane: httpx.Client) -> None:
    chunks = stream(lane, n=3, max_tokens=12, ignore_eos=True)
    for index in range(3):
        counted = [
            chunk["usage"]["completion_tokens"]
            for chunk in chunks
            if chunk["choices"] and chunk["choices"][0]["index"] == index
        ]
        assert counted == list(range(13))
    assert chunks[-1]["usage"]["completion_tokens"] == 36


@pytest.mark.parametrize("include", [True, False])
def test_a_stop_string_ends_the_answer_and_is_shown_only_when_asked(
    lane: httpx.Client, include: bool
) -> None:
    words = chat(lane)["choices"][0]["message"]["content"]
    stop = words[9:12]
    position = words.index(stop)
    fields = {"stop": ["never said", stop], "include_stop_str_in_output": include}
    answer = chat(lane, **fields)
    choice = answer["choices"][0]
    assert choice["message"]["content"] == words[: position + 3 * include]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
    # The tokens of the stop string were generated, so they are counted.
    assert answer["usage"]["completion_tokens"] == position + 3
    chunks = stream(lane, **fields)
    assert content(chunks) == choice["message"]["content"]
    assert chunks[-1]["usage"]["completion_tokens"] == position + 3


def test_a_stream_never_shows_the_beginning_of_a_stop_string(lane: httpx.Client) -> None:
    words = chat(lane)["choices"][0]["message"]["content"]
    chunks = stream(lane, stop=words[10:16])
    shown = ""
    for chunk in chunks:
        shown += content([chunk])
        assert words[: words.index(words[10:16])].startswith(shown)


def test_a_stop_string_within_min_tokens_is_passed_over(lane: httpx.Client) -> None:
    words = chat(lane)["choices"][0]["message"]["content"]
    answer = chat(lane, stop=words[2:5], min_tokens=10, max_tokens=15)
    assert answer["usage"]["completion_tokens"] > 10


def test_a_stop_token_ends_the_answer_and_is_not_shown(lane: httpx.Client) -> None:
    words = chat(lane)["choices"][0]["message"]["content"]
    answer = chat(lane, stop_token_ids=[ord(" ")])
    choice = answer["choices"][0]
    assert choice["message"]["content"] == words[: words.index(" ")]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", ord(" "))
    assert answer["usage"]["completion_tokens"] == words.index(" ") + 1


def test_counters_are_the_sum_of_the_usage_of_all_answers(lane: httpx.Client, metric: Metric) -> None:
    usages = [chat(lane, max_tokens=10 + number)["usage"] for number in range(5)]
    usages.append(stream(lane)[-1]["usage"])
    assert metric(lane, "vllm:prompt_tokens_total") == sum(usage["prompt_tokens"] for usage in usages)
    assert metric(lane, "vllm:generation_tokens_total") == sum(usage["completion_tokens"] for usage in usages)
    assert metric(lane, "vllm:request_success_total") == len(usages)
    assert metric(lane, "vllm:num_requests_running") == 0


def test_tokenize_counts_what_the_answer_charges(lane: httpx.Client) -> None:
    tools = [{"type": "function", "function": {"name": "plant", "parameters": {"type": "object"}}}]
    for fields in ({}, {"tools": tools, "tool_choice": "none"}):
        counted = lane.post("/tokenize", json={"messages": MESSAGES} | fields).json()["count"]
        assert counted == chat(lane, max_tokens=1, **fields)["usage"]["prompt_tokens"]


def test_detokenize_is_the_inverse_of_tokenize(lane: httpx.Client) -> None:
    for prompt in ("plain", "ä😀\n", "<|im_start|>user\n<|im_end|>", "\x00"):
        ids = lane.post("/tokenize", json={"prompt": prompt}).json()["tokens"]
        assert lane.post("/detokenize", json={"tokens": ids}).json() == {"prompt": prompt}


def test_every_served_name_is_listed_and_the_first_one_answers(
    make_lane: Callable[..., httpx.Client],
) -> None:
    lane = make_lane(models=["oak", "tree"])
    assert [model["id"] for model in lane.get("/v1/models").json()["data"]] == ["oak", "tree"]
    assert chat(lane, model="tree")["model"] == "oak"
