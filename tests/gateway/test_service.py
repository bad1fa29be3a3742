"""The gateway as customers meet it: answers, usage, charges and refusals, all the way to the real ledger."""

import gc
from collections.abc import Callable
from typing import Any

import httpx
import pytest

MODEL = "qwen25-14b-awq"
# What is made for each request, by the module that makes it.
OURS = {
    f"darktree_gateway.{name}"
    for name in [
        "exchange",
        "watch",
        "record",
        "connections",
        "upstream",
        "metering",
        "streaming",
        "assembly",
        "keep_alive",
        "placing",
        "requests",
        "admission",
        "errors",
    ]
} | {"darktree_kit.errors", "darktree_ledger.schemas"}


def test_a_plain_answer_carries_usage_and_is_charged_exactly_that(customer: Any) -> None:
    before = customer.credits()["balance_nanos"]
    answer = customer.chat(max_tokens=12)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["object"] == "chat.completion"
    assert body["model"] == MODEL
    assert body["choices"][0]["message"]["role"] == "assistant"
    assert body["choices"][0]["finish_reason"] == "length"
    usage = body["usage"]
    assert usage["completion_tokens"] == 12
    assert usage["total_tokens"] == usage["prompt_tokens"] + 12
    charge = customer.usage()[0]
    assert charge["request_id"] == answer.headers["x-request-id"]
    assert charge["entry_id"] == answer.headers["x-darktree-entry-id"]
    assert (charge["prompt_tokens"], charge["completion_tokens"]) == (usage["prompt_tokens"], 12)
    assert charge["outcome"] == "completed"
    assert charge["lane"] == "standard" == answer.headers["x-darktree-lane"]
    after = customer.credits()
    assert before - after["balance_nanos"] == usage["total_tokens"] * 750_000 == charge["amount_nanos"]
    assert after["held_nanos"] == 0
    assert after["day"]["used_tokens"] == usage["total_tokens"]
    remaining = int(answer.headers["x-ratelimit-remaining-tokens"])
    assert remaining == after["day"]["remaining_tokens"] == 1_000_000 - usage["total_tokens"]
    assert answer.headers["x-ratelimit-limit-tokens"] == "1000000"
    assert answer.headers["x-ratelimit-reset-tokens"].endswith("s")


def test_a_stream_without_stream_options_has_its_usage_on_the_chunk_that_finishes(
    customer: Any, events_of: Callable[[bytes], list[Any]]
) -> None:
    answer = customer.chat(max_tokens=5, stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *chunks, done = events_of(answer.content)
    assert done == "[DONE]"
    assert all("usage" not in chunk for chunk in chunks[:-1])
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert chunks[-1]["usage"]["completion_tokens"] == 5
    assert all(chunk["choices"] for chunk in chunks)
    charge = customer.usage()[0]
    assert charge["entry_id"] == answer.headers["x-darktree-entry-id"]
    assert charge["total_tokens"] == chunks[-1]["usage"]["total_tokens"]


def test_include_usage_gives_one_separate_chunk_of_usage_and_no_other(
    customer: Any, events_of: Callable[[bytes], list[Any]]
) -> None:
    answer = customer.chat(max_tokens=5, stream=True, stream_options={"include_usage": True})
    *chunks, done = events_of(answer.content)
    assert done == "[DONE]"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 5
    assert all(not chunk.get("usage") for chunk in chunks[:-1])


def test_continuous_usage_is_left_in_for_whoever_asks_for_it(
    customer: Any, events_of: Callable[[bytes], list[Any]]
) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    answer = customer.chat(max_tokens=5, stream=True, stream_options=options)
    *chunks, _ = events_of(answer.content)
    assert all(chunk["usage"] for chunk in chunks)


def test_a_completion_generates_sixteen_tokens_when_nothing_is_said(customer: Any) -> None:
    answer = customer.complete()
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["object"] == "text_completion"
    assert body["usage"]["completion_tokens"] == 16
    assert body["usage"]["prompt_tokens"] == len("Once upon")


def test_several_prompts_and_answers_are_all_charged(customer: Any) -> None:
    answer = customer.complete(["one", "three"], n=2, max_tokens=3)
    body = answer.json()
    assert answer.status_code == 200, body
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert body["usage"] == body["usage"] | {"prompt_tokens": 8, "completion_tokens": 12}
    assert customer.usage()[0]["total_tokens"] == 20


def test_several_answers_stream_and_their_usage_is_their_sum(
    customer: Any, events_of: Callable[[bytes], list[Any]]
) -> None:
    answer = customer.chat(max_tokens=4, n=3, stream=True)
    *chunks, done = events_of(answer.content)
    assert done == "[DONE]"
    assert [chunk for chunk in chunks if "usage" in chunk] == [chunks[-1]]
    assert chunks[-1]["usage"]["completion_tokens"] == 12
    assert sum(chunk["choices"][0]["finish_reason"] is not None for chunk in chunks) == 3


def test_token_ids_are_a_prompt(customer: Any) -> None:
    answer = customer.complete([[65, 66], [67]], max_tokens=1)
    assert answer.json()["usage"]["prompt_tokens"] == 3


def test_without_a_limit_an_answer_gets_the_models_default_and_a_header_says_so(customer: Any) -> None:
    answer = customer.chat()
    assert answer.headers["x-darktree-max-tokens"] == "1024"
    assert "x-darktree-clamped-max-tokens" not in answer.headers
    assert answer.json()["usage"]["completion_tokens"] <= 1024


def test_the_last_request_of_the_day_ends_exactly_at_the_cap_and_the_next_is_refused(platform: Any) -> None:
    customer = platform.customer(cap_tokens=200)
    answer = customer.chat(max_tokens=1000, ignore_eos=True)
    body = answer.json()
    assert answer.status_code == 200, body
    assert body["usage"]["total_tokens"] == 200
    assert body["choices"][0]["finish_reason"] == "length"
    assert answer.headers["x-darktree-clamped-max-tokens"] == str(body["usage"]["completion_tokens"])
    refused = customer.chat(max_tokens=1)
    assert refused.status_code == 429
    error = refused.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("tokens", "rate_limit_exceeded", None)
    assert "Limit 200, Used 200" in error["message"]
    assert int(refused.headers["retry-after"]) <= 86_400
    if int(refused.headers["retry-after"]) > 120:
        assert refused.headers["x-should-retry"] == "false"
    assert refused.headers["x-ratelimit-remaining-tokens"] == "0"
    assert platform.open_holds(customer.id) == 0


def test_a_prompt_larger_than_the_whole_cap_is_not_to_be_tried_tomorrow(platform: Any) -> None:
    customer = platform.customer(cap_tokens=50)
    refused = customer.chat("x" * 100, max_tokens=1)
    assert refused.status_code == 429
    assert "more than a whole day's limit" in refused.json()["error"]["message"]
    assert refused.headers["x-should-retry"] == "false"
    assert "retry-after" not in refused.headers


def test_without_credit_nothing_is_served(platform: Any) -> None:
    customer = platform.customer(dollars="0")
    refused = customer.chat(max_tokens=1)
    assert refused.status_code == 429
    error = refused.json()["error"]
    assert (error["type"], error["code"]) == ("insufficient_quota", "credit_balance_exhausted")
    assert refused.headers["x-should-retry"] == "false"
    assert "retry-after" not in refused.headers


def test_the_balance_is_spent_to_the_last_token_it_covers(platform: Any) -> None:
    customer = platform.customer(dollars="0.1")  # 133 tokens
    answer = customer.chat(max_tokens=1000, ignore_eos=True)
    assert answer.json()["usage"]["total_tokens"] == 133
    assert 0 <= customer.credits()["balance_nanos"] < 750_000


def test_the_prompt_has_to_fit_into_the_context_and_the_answer_gets_what_it_leaves(customer: Any) -> None:
    long = customer.chat("x" * 5000, max_tokens=5)
    assert long.status_code == 400
    error = long.json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
    assert "maximum context length is 4096 tokens" in error["message"]
    cut = customer.complete("x" * 4000, max_tokens=200, ignore_eos=True)
    assert (cut.status_code, cut.headers["x-darktree-max-tokens"]) == (200, "96")
    assert cut.json()["choices"][0]["finish_reason"] == "length"
    too_many = customer.chat(max_tokens=10**18)
    assert too_many.status_code == 400
    assert too_many.json()["error"]["code"] == "context_length_exceeded"
    fits = customer.complete("x" * 4000, max_tokens=96)
    assert fits.status_code == 200


def test_tools_are_counted_by_the_engine_and_charged_exactly(customer: Any) -> None:
    tool = {
        "type": "function",
        "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
    }
    answer = customer.chat(max_tokens=40, tools=[tool], tool_choice="none")
    assert answer.status_code == 200, answer.text
    assert customer.usage()[0]["total_tokens"] == answer.json()["usage"]["total_tokens"]


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({}, 401, "invalid_api_key"),
        ({"Authorization": "Bearer nonsense"}, 401, "invalid_api_key"),
        ({"Authorization": "Basic abc"}, 401, "invalid_api_key"),
        ({"Authorization": "Bearer"}, 401, "invalid_api_key"),
    ],
)
def test_without_a_good_key_nothing_is_served(
    platform: Any, headers: dict[str, str], status: int, code: str
) -> None:
    for method, path in (("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("GET", "/v1/credits")):
        answer = httpx.request(method, platform.gateway_url + path, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert answer.headers["x-request-id"].startswith("req_")


def test_a_well_formed_key_that_nobody_knows_is_refused_and_never_repeated(platform: Any) -> None:
    from darktree_billing.key_format import make_key

    key = make_key().text
    answer = httpx.get(f"{platform.gateway_url}/v1/models", headers={"Authorization": f"Bearer {key}"})
    assert answer.status_code == 401
    assert key not in answer.text
    assert key[-8:] not in answer.text


def test_a_revoked_key_stops_within_ten_seconds(
    platform: Any, customer: Any, eventually: Callable[..., Any]
) -> None:
    assert customer.client.get("/v1/models").status_code == 200
    keys = platform.admin("GET", f"/customers/{customer.id}/keys")["data"]
    platform.admin("DELETE", f"/keys/{keys[0]['id']}")
    eventually(lambda: customer.client.get("/v1/models").status_code == 401, "the revocation")


def test_the_customer_header_has_to_be_the_keys_customer(customer: Any) -> None:
    good = customer.client.get("/v1/models", headers={"X-Customer-Id": customer.id})
    assert good.status_code == 200
    bad = customer.client.get("/v1/models", headers={"X-Customer-Id": "somebody-else"})
    assert bad.status_code == 403
    assert bad.json()["error"]["code"] == "customer_mismatch"


def test_a_model_that_is_not_served_is_not_found_in_openais_words(customer: Any) -> None:
    answer = customer.chat(model="gpt-4o")
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert (error["type"], error["code"], error["param"]) == (
        "invalid_request_error",
        "model_not_found",
        "model",
    )
    assert error["message"] == "The model `gpt-4o` does not exist or you do not have access to it."
    assert "x-ratelimit-limit-tokens" in answer.headers


def test_every_refusal_that_knows_the_customer_carries_the_limits(customer: Any) -> None:
    for answer in (
        customer.chat(temperature="hot"),
        customer.client.post("/v1/chat/completions", content=b"{"),
        customer.client.get("/v1/usage", params={"limit": "0"}),
        customer.client.get("/v1/models/nothing"),
        customer.client.get("/v1/credits"),
    ):
        assert answer.headers["x-ratelimit-limit-tokens"] == "1000000", answer.text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/chat/completions", 405),
        ("PUT", "/v1/completions", 405),
        ("POST", "/v1/models", 405),
        ("GET", "/v1/files", 404),
        ("POST", "/v1/images/generations", 404),
        ("POST", "/tokenize", 404),
        ("GET", "/docs", 404),
        ("POST", "/v1/chat/completions/", 404),
        ("POST", "/V1/chat/completions", 404),
        ("POST", "//v1/chat/completions", 404),
    ],
)
def test_there_is_no_way_around_the_meter(customer: Any, method: str, path: str, status: int) -> None:
    answer = customer.client.request(method, httpx.URL(str(customer.client.base_url)).copy_with(path=path))
    assert answer.status_code == status, answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_bodies_are_plain_bounded_json(customer: Any) -> None:
    post = customer.client.post
    path = "/v1/chat/completions"
    assert post(path, content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    assert post(path, content=b"{}", headers=headers).status_code == 415
    headers = {"Content-Type": "application/json"}
    assert post(path, content=b"x" * (4 * 1024 * 1024 + 1), headers=headers).status_code == 413

    def chunked() -> Any:
        for _ in range(65):
            yield b" " * 65536

    too_large = post(path, content=chunked(), headers=headers)
    assert too_large.status_code == 413
    assert too_large.json()["error"]["code"] == "request_too_large"
    assert customer.chat(max_tokens=1).status_code == 200


def test_models_are_listed_as_openai_does_with_their_context(customer: Any) -> None:
    listed = customer.client.get("/v1/models").json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["qwen25-14b-awq", "qwen25-32b-awq"]
    model = listed["data"][0]
    assert model == model | {"object": "model", "owned_by": "darktree", "context_length": 4096}
    assert type(model["created"]) is int
    assert customer.client.get(f"/v1/models/{MODEL}").json() == model
    missing = customer.client.get("/v1/models/no/such")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"


def test_usage_is_paged_newest_first(customer: Any) -> None:
    ids = [customer.chat(max_tokens=1).headers["x-request-id"] for _ in range(5)]
    first = customer.client.get("/v1/usage", params={"limit": 3}).json()
    assert [charge["request_id"] for charge in first["data"]] == ids[:1:-1]
    second = customer.client.get("/v1/usage", params={"limit": 3, "after": first["next"]}).json()
    assert [charge["request_id"] for charge in second["data"]] == ids[1::-1]
    assert second["next"] is None
    one = customer.client.get(f"/v1/usage/{ids[2]}").json()
    assert one == first["data"][2] | {"receipt": None}
    for params, param in (({"limit": "0"}, "limit"), ({"limit": "x"}, "limit"), ({"after": "?!"}, "after")):
        bad = customer.client.get("/v1/usage", params=params)
        assert (bad.status_code, bad.json()["error"]["param"]) == (400, param)
    assert customer.client.get("/v1/usage/nonsense").status_code == 400
    assert customer.client.get(f"/v1/usage/req_{'0' * 32}").status_code == 404


def test_nobody_sees_anybody_elses_charges(platform: Any, customer: Any) -> None:
    request_id = customer.chat(max_tokens=1).headers["x-request-id"]
    other = platform.customer()
    assert other.usage() == []
    assert other.client.get(f"/v1/usage/{request_id}").status_code == 404


def test_a_request_id_is_never_the_clients(customer: Any) -> None:
    answer = customer.client.get("/v1/models", headers={"X-Request-Id": "req_" + "1" * 32})
    assert answer.headers["x-request-id"] != "req_" + "1" * 32


def test_the_description_includes_the_completions(platform: Any) -> None:
    paths = httpx.get(f"{platform.gateway_url}/openapi.json").json()["paths"]
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/usage", "/v1/credits"} <= set(paths)
    assert "429" in paths["/v1/chat/completions"]["post"]["responses"]


def test_what_was_metered_is_what_the_engine_counted(platform: Any, customer: Any) -> None:
    before = platform.engine_tokens()
    answers = [customer.chat(max_tokens=7, stream=stream) for stream in (True, False)]
    answers.append(customer.complete(["abc", "de"], max_tokens=5))
    assert all(answer.status_code == 200 for answer in answers)
    prompt, generated = platform.engine_tokens()
    charges = customer.usage()
    assert sum(charge["prompt_tokens"] for charge in charges) == prompt - before[0]
    assert sum(charge["completion_tokens"] for charge in charges) == generated - before[1]


def test_private_paths_are_only_on_the_private_port(platform: Any) -> None:
    public = platform.another_gateway(private_port=1)
    for path in ("/metrics", "/healthz", "/readyz"):
        assert httpx.get(public + path).status_code == 404
        assert httpx.get(platform.gateway_url + path).status_code == 200


def test_what_was_answered_is_gone_without_the_garbage_collector(platform: Any, customer: Any) -> None:
    """Its pauses are latencies of whoever is served meanwhile: 14 ms each 830 requests, as it once was."""
    capped = platform.customer(cap_tokens=5)
    asked: list[tuple[Any, dict[str, Any], int]] = [
        (customer, {"max_tokens": 3}, 200),
        (customer, {"max_tokens": 3, "stream": True}, 200),
        (customer, {"max_tokens": 0}, 400),
        (capped, {"max_tokens": 3}, 429),
    ]
    for who, body, status in asked:
        assert who.chat(**body).status_code == status
    gc.collect()
    gc.disable()
    try:
        for who, body, status in asked * 5:
            assert who.chat(**body).status_code == status
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found = {type(left).__qualname__ for left in gc.garbage if type(left).__module__ in OURS}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not found
