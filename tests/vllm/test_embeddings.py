"""Embeddings are charged to the token behind a real vLLM, and the simulator's are like vLLM's."""

import base64
import struct
from typing import Any

import httpx
import pytest

EMBEDDINGS, CHAT = "/v1/embeddings", "/v1/chat/completions"
CASES: dict[str, tuple[Any, int]] = {
    "a text": ("hello", 5),
    "texts in other scripts": (["é树", "😀"], 9),
    "token ids": ([104, 105], 2),
    "lists of token ids": ([[104], [105, 106]], 3),
    "as long as the context": ("a" * 1024, 1024),
    "many": (["a"] * 100, 100),
}


@pytest.mark.parametrize("encoding", ["float", "base64"])
@pytest.mark.parametrize("case", CASES)
def test_the_charge_is_the_usage_and_the_engines_own_count(embedding: Any, case: str, encoding: str) -> None:
    given, tokens = CASES[case]
    customer, before = embedding.customer(), embedding.counters()
    answer = customer.ask(EMBEDDINGS, input=given, encoding_format=encoding)
    assert answer.status_code == 200, answer.text
    usage = answer.json()["usage"]
    assert (usage["prompt_tokens"], usage["total_tokens"]) == (tokens, tokens)
    after = embedding.counters()
    assert (after[0] - before[0], after[1] - before[1]) == (tokens, 0)
    (charge,) = customer.charges()
    assert (charge["prompt_tokens"], charge["completion_tokens"]) == (tokens, 0)
    assert customer.settled()["day_held_tokens"] == 0


def test_an_answer_is_the_engines_own(embedding: Any) -> None:
    ours = embedding.customer().ask(EMBEDDINGS, input=["hello", "é"]).json()
    body = {"model": "tiny", "input": ["hello", "é"]}
    theirs = httpx.post(f"{embedding.engine.base_url}{EMBEDDINGS}", json=body).json()
    assert list(ours) == list(theirs)
    for mine, its in zip(ours["data"], theirs["data"], strict=True):
        assert (list(mine), mine["index"], mine["object"]) == (list(its), its["index"], "embedding")
        assert mine["embedding"] == pytest.approx(its["embedding"], abs=1e-5)
        assert sum(number * number for number in mine["embedding"]) == pytest.approx(1, abs=1e-3)
    assert ours["usage"] == theirs["usage"]


def test_base64_is_the_same_numbers(embedding: Any) -> None:
    customer = embedding.customer()
    decimals = customer.ask(EMBEDDINGS).json()["data"][0]["embedding"]
    packed = base64.b64decode(
        customer.ask(EMBEDDINGS, encoding_format="base64").json()["data"][0]["embedding"]
    )
    assert list(struct.unpack(f"<{len(decimals)}f", packed)) == pytest.approx(decimals, abs=1e-5)


def test_the_cap_is_used_to_its_last_token_and_not_beyond(embedding: Any) -> None:
    customer = embedding.customer(cap_tokens=12)
    assert customer.ask(EMBEDDINGS, input="a" * 7).status_code == 200
    assert customer.ask(EMBEDDINGS, input="a" * 6).status_code == 429
    assert customer.ask(EMBEDDINGS, input="a" * 5).status_code == 200
    assert customer.settled()["day_tokens"] == 12


@pytest.mark.parametrize("given", ["a" * 1025, [97] * 1025, [[9999]]])
def test_what_the_engine_refuses_is_refused_and_costs_nothing(embedding: Any, given: Any) -> None:
    customer = embedding.customer()
    refused = customer.ask(EMBEDDINGS, input=given)
    assert (refused.status_code, refused.json()["error"]["type"]) == (400, "invalid_request_error")
    assert customer.charges() == []
    assert customer.settled()["day_held_tokens"] == 0


def test_a_dimension_that_the_model_has_not_is_refused(embedding: Any) -> None:
    refused = embedding.customer().ask(EMBEDDINGS, dimensions=4)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_value")


def test_an_engine_that_embeds_does_not_generate(embedding: Any, metered: Any) -> None:
    for refused in (embedding.customer().ask(CHAT), metered.customer().ask(EMBEDDINGS)):
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "endpoint_not_supported")


def test_the_simulator_refuses_as_vllm_does(simulated_embedder: Any, vllm_embedder: Any) -> None:
    bodies: list[dict[str, Any]] = [
        {"input": "a" * 1025}, {"input": [97] * 1025}, {"input": []}, {"input": ""}, {"input": [[9999]]},
        {"input": "a", "dimensions": 4},
    ]  # fmt: skip
    for body in bodies:
        sent: dict[str, Any] = {"model": "tiny", **body}
        told = [
            httpx.post(f"{engine.base_url}{EMBEDDINGS}", json=sent)
            for engine in (simulated_embedder, vllm_embedder)
        ]
        assert told[0].status_code == told[1].status_code, sent
        assert told[0].json() == told[1].json(), sent
    for path in (CHAT, "/v1/completions"):
        told = [
            httpx.post(f"{engine.base_url}{path}", json={"model": "tiny"})
            for engine in (simulated_embedder, vllm_embedder)
        ]
        assert (
            (told[0].status_code, told[0].json())
            == (told[1].status_code, told[1].json())
            == (404, _NOT_FOUND)
        )


_NOT_FOUND = {"detail": "Not Found"}
