"""A silent stream is kept alive by comments that no client trips over, and that nobody pays for."""

from typing import Any

import httpx
import pytest
from openai import APIError, OpenAI

SCRIPTED = "qwen25-32b-awq"
PAUSE = "the engine waits for the test to say `go`"
COMMENT = b": keep-alive\n\n"
SECONDS = 0.05
PATHS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}]},
    "/v1/responses": {"input": "x"},
}


@pytest.fixture(scope="module")
def impatient(platform: Any) -> str:
    url: str = platform.another_gateway(keep_alive_seconds=SECONDS)
    return url


def said(text: str, used: int, finish: str | None = None) -> dict[str, Any]:
    usage = {"prompt_tokens": 10, "total_tokens": 10 + used, "completion_tokens": used}
    choice = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": SCRIPTED, "choices": [choice],
            "usage": usage}  # fmt: skip


def end(used: int) -> list[Any]:
    return [said("", used) | {"choices": []}, "[DONE]"]


@pytest.mark.parametrize("before_the_first", [True, False])
@pytest.mark.parametrize("path", PATHS)
def test_comments_come_before_the_first_token_and_between_tokens(
    platform: Any, customer: Any, engine: Any, impatient: str, path: str, before_the_first: bool
) -> None:
    first = said("a", 1)
    begin = [PAUSE, first] if before_the_first else [first, PAUSE]
    engine.say(*begin, said("b", 2, "stop"), *end(2))
    body = {"model": SCRIPTED, "stream": True} | PATHS[path]
    headers = {"Authorization": f"Bearer {customer.key}"}
    with httpx.stream("POST", impatient + path, json=body, headers=headers, timeout=20) as answer:
        assert answer.headers["x-accel-buffering"] == "no"
        told = b""
        for piece in answer.iter_raw():
            told += piece
            if told.endswith(3 * COMMENT) and (before_the_first or b"data: " in told):
                assert told.startswith(COMMENT) or not before_the_first
                engine.go.set()
    assert told.count(COMMENT) >= 3
    assert all(event.startswith((b"data: ", b"event: ", b": ")) for event in told.split(b"\n\n") if event)
    (charge,) = customer.usage()
    assert (charge["outcome"], charge["completion_tokens"]) == ("completed", 2)


def test_openais_client_does_not_notice(platform: Any, customer: Any, engine: Any, impatient: str) -> None:
    with OpenAI(api_key=customer.key, base_url=f"{impatient}/v1", max_retries=0) as client:
        engine.say(PAUSE, said("a", 1), said("b", 2, "stop"), *end(2))
        stream = client.chat.completions.create(
            model=SCRIPTED, messages=[{"role": "user", "content": "x"}], stream=True
        )
        engine.go.set()  # it had the head of the answer with the first comment
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == "ab"


def test_a_stream_of_comments_that_fails_is_an_error_and_costs_nothing(
    platform: Any, customer: Any, engine: Any, impatient: str
) -> None:
    engine.say(PAUSE, end="break")
    with OpenAI(api_key=customer.key, base_url=f"{impatient}/v1", max_retries=0) as client:
        stream = client.chat.completions.create(
            model=SCRIPTED, messages=[{"role": "user", "content": "x"}], stream=True
        )
        engine.go.set()
        with pytest.raises(APIError, match="failed"):
            list(stream)
    assert customer.usage() == []
    assert platform.open_holds(customer.id) == 0


def test_a_client_that_leaves_between_comments_pays_nothing_and_stops_the_engine(
    platform: Any, customer: Any, engine: Any, impatient: str, eventually: Any
) -> None:
    engine.say(end="stall")
    body = {"model": SCRIPTED, "stream": True} | PATHS["/v1/chat/completions"]
    headers = {"Authorization": f"Bearer {customer.key}"}
    url = f"{impatient}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, headers=headers, timeout=20) as answer:
        assert next(answer.iter_raw()).startswith(COMMENT)
    eventually(lambda: engine.left == 1, "the abort")
    eventually(lambda: platform.open_holds(customer.id) == 0, "no hold is left")
    assert customer.usage() == []


def test_a_plain_answer_and_a_gateway_told_so_have_none(
    platform: Any, customer: Any, engine: Any, impatient: str
) -> None:
    engine.say(said("a", 1, "stop"), *end(1))
    plain = {"model": SCRIPTED} | PATHS["/v1/chat/completions"]
    headers = {"Authorization": f"Bearer {customer.key}"}
    answer = httpx.post(f"{impatient}/v1/chat/completions", json=plain, headers=headers)
    assert answer.json()["choices"][0]["message"]["content"] == "a"
    silent = platform.another_gateway(keep_alive_seconds=0)
    engine.say(said("a", 1, "stop"), *end(1))
    streamed = httpx.post(f"{silent}/v1/chat/completions", json=plain | {"stream": True}, headers=headers)
    assert COMMENT not in streamed.content
