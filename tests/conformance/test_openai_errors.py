"""Every refusal of the table is the exception class that OpenAI itself would raise, and none brings a storm of retries.

What arrives is counted by a proxy between the library, with its default of two retries, and the platform.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from darktree_cli.ports import Ports

QUICK, SLOW, FRAIL, PRIVATE = "quick", "slow", "frail", "private"
HELLO: list[Any] = [{"role": "user", "content": "Tell me of trees."}]
HELLO_TOKENS = 36
WELL_FORMED_BUT_UNKNOWN_KEY = "dt_live_000000000000_" + "0" * 30 + "4VGSQo"


def ask(client: OpenAI, **changes: Any) -> Any:
    chosen: dict[str, Any] = {"model": QUICK, "messages": HELLO, "max_tokens": 8} | changes
    return client.chat.completions.create(**chosen)


def refusal(client: OpenAI, kind: type[openai.APIStatusError], **changes: Any) -> Any:
    """Return the error that a request ends with; exactly of this class, with an id, in OpenAI's shape."""
    with pytest.raises(openai.APIStatusError) as caught:
        ask(client, **changes)
    error = caught.value
    assert type(error) is kind, error
    assert isinstance(error.body, dict)
    assert set(error.body) == {"message", "type", "param", "code"}
    assert error.request_id
    assert error.request_id.startswith("req_")
    assert error.response.headers["content-type"] == "application/json"
    return error


def facts(error: Any) -> tuple[Any, ...]:
    return error.status_code, error.type, error.code, error.param


@pytest.fixture
def client(platform: Any, customer: Any, arrivals: Any) -> OpenAI:
    """The library as it comes, with its retries, behind the proxy that counts."""
    made: OpenAI = platform.openai(customer, base_url=arrivals.base_url)
    return made


@pytest.mark.parametrize("key", ["sk-proj-abc", "dt_live_nonsense", WELL_FORMED_BUT_UNKNOWN_KEY])
def test_a_wrong_key_is_an_authentication_error_at_once(
    platform: Any, customer: Any, arrivals: Any, key: str
) -> None:
    client = platform.openai(customer, api_key=key, base_url=arrivals.base_url)
    error = refusal(client, openai.AuthenticationError)
    assert facts(error) == (401, "invalid_request_error", "invalid_api_key", None)
    assert error.response.headers["www-authenticate"].startswith("Bearer")
    assert key not in error.message
    assert arrivals.statuses == [401]


def test_another_customers_header_is_permission_denied(client: OpenAI, platform: Any, arrivals: Any) -> None:
    other = platform.customer()
    error = refusal(client, openai.PermissionDeniedError, extra_headers={"X-Customer-Id": other.id})
    assert facts(error) == (403, "invalid_request_error", "customer_mismatch", "X-Customer-Id")
    assert arrivals.statuses == [403]


@pytest.mark.parametrize("model", ["gpt-4o", PRIVATE])
def test_a_model_that_is_unknown_or_anothers_is_not_found(client: OpenAI, arrivals: Any, model: str) -> None:
    error = refusal(client, openai.NotFoundError, model=model)
    assert facts(error) == (404, "invalid_request_error", "model_not_found", "model")
    assert f"`{model}`" in error.message
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve(model)
    assert facts(caught.value) == (404, "invalid_request_error", "model_not_found", "model")
    assert arrivals.statuses == [404, 404]


def test_a_path_that_is_not_listed_is_not_found(client: OpenAI, arrivals: Any) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.images.generate(model=QUICK, prompt="a")
    assert facts(caught.value) == (404, "invalid_request_error", "unknown_url", None)
    assert arrivals.statuses == [404]


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"temperature": "hot"}, "invalid_type", "temperature"),
        ({"temperature": 3}, "decimal_above_max_value", "temperature"),
        ({"n": 0}, "integer_below_min_value", "n"),
        ({"max_tokens": -1}, "integer_below_min_value", "max_tokens"),
        ({"messages": []}, "empty_array", "messages"),
        ({"messages": [{"role": "wizard", "content": "a"}]}, "invalid_value", "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "missing_required_parameter", "messages[0].content"),
        ({"extra_body": {"no_such_field": 1}}, "unknown_parameter", "no_such_field"),
        ({"functions": []}, "unsupported_parameter", "functions"),
        ({"max_tokens": 4097}, "context_length_exceeded", "max_tokens"),
        ({"messages": [{"role": "user", "content": "a" * 5000}]}, "context_length_exceeded", "messages"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else None,
)
def test_a_wrong_field_is_a_bad_request_that_names_it(
    client: OpenAI, arrivals: Any, changes: Any, code: str, param: str
) -> None:
    error = refusal(client, openai.BadRequestError, **changes)
    assert facts(error) == (400, "invalid_request_error", code, param)
    assert error.response.headers["x-ratelimit-limit-tokens"] == "10000000"
    assert arrivals.statuses == [400]


def test_what_the_engine_refuses_is_a_bad_request_in_openais_words(
    client: OpenAI, customer: Any, arrivals: Any
) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    error = refusal(client, openai.BadRequestError, tools=[tool])
    assert facts(error)[:3] == (400, "invalid_request_error", "invalid_value")
    assert "tool" in error.message
    assert arrivals.statuses == [400]
    assert customer.books().entries == 1  # the credits


def test_the_daily_cap_arrives_once_and_says_when_it_resets(platform: Any, arrivals: Any) -> None:
    customer = platform.customer(cap_tokens=HELLO_TOKENS + 5)
    client = platform.openai(customer, base_url=arrivals.base_url)
    last = ask(client)
    assert (last.choices[0].finish_reason, last.usage.total_tokens) == ("length", HELLO_TOKENS + 5)
    for stream in (False, True):
        arrivals.statuses.clear()
        error = refusal(client, openai.RateLimitError, stream=stream)
        assert facts(error) == (429, "tokens", "rate_limit_exceeded", None)
        assert arrivals.statuses == [429]
        headers = error.response.headers
        assert 0 < int(headers["retry-after"]) <= 86_400
        assert (headers["x-should-retry"] == "false") == (int(headers["retry-after"]) > 120)
        assert headers["x-ratelimit-limit-tokens"] == str(HELLO_TOKENS + 5)
        assert headers["x-ratelimit-remaining-tokens"] == "0"
        assert headers["x-ratelimit-reset-tokens"][-1] == "s"
        assert f"Limit {HELLO_TOKENS + 5}, Used {HELLO_TOKENS + 5}" in error.message
    assert customer.books().tokens == HELLO_TOKENS + 5


def test_a_prompt_larger_than_a_whole_days_cap_arrives_once(platform: Any, arrivals: Any) -> None:
    customer = platform.customer(cap_tokens=HELLO_TOKENS)
    error = refusal(platform.openai(customer, base_url=arrivals.base_url), openai.RateLimitError)
    assert facts(error) == (429, "tokens", "rate_limit_exceeded", None)
    assert error.response.headers["x-should-retry"] == "false"
    assert "retry-after" not in error.response.headers
    assert arrivals.statuses == [429]


def test_no_credit_arrives_once(platform: Any, arrivals: Any) -> None:
    customer = platform.customer(dollars="0")
    error = refusal(platform.openai(customer, base_url=arrivals.base_url), openai.RateLimitError)
    assert facts(error) == (429, "insufficient_quota", "credit_balance_exhausted", None)
    assert error.response.headers["x-should-retry"] == "false"
    assert "retry-after" not in error.response.headers
    assert arrivals.statuses == [429]


async def test_the_asynchronous_client_does_not_storm_either(platform: Any, arrivals: Any) -> None:
    customer = platform.customer(dollars="0")
    async with openai.AsyncOpenAI(api_key=customer.key, base_url=arrivals.base_url) as client:
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(model=QUICK, messages=HELLO)
    assert caught.value.code == "credit_balance_exhausted"
    assert arrivals.statuses == [429]


def test_head_room_that_a_running_request_holds_is_waited_for_and_then_served(
    platform: Any, arrivals: Any, eventually: Any
) -> None:
    customer = platform.customer(cap_tokens=HELLO_TOKENS + 500)
    holder = platform.openai(customer)
    running = ask(holder, model=SLOW, max_tokens=480, stream=True, extra_body={"ignore_eos": True})
    next(running)
    direct = platform.openai(customer, max_retries=0)
    error = refusal(direct, openai.RateLimitError)
    assert facts(error) == (429, "tokens", "in_flight_limit_exceeded", None)
    assert error.response.headers["retry-after"] == "1"
    assert "x-should-retry" not in error.response.headers
    client = platform.openai(customer, base_url=arrivals.base_url)

    def free() -> None:
        eventually(lambda: arrivals.statuses == [429], "the library was refused once")
        running.close()

    freeing = threading.Thread(target=free)
    freeing.start()
    assert ask(client).usage.completion_tokens == 8
    freeing.join()
    assert arrivals.statuses in ([429, 200], [429, 429, 200])
    customer.settled_books()


def test_a_lane_that_starts_is_a_503_that_says_when_to_come_back(
    platform: Any, client: OpenAI, customer: Any, arrivals: Any
) -> None:
    before = customer.books()
    platform.faults(FRAIL, starting=True)
    try:
        error = refusal(client.with_options(max_retries=0), openai.InternalServerError, model=FRAIL)
    finally:
        platform.faults(FRAIL)
    assert facts(error) == (503, "service_unavailable_error", "lane_unavailable", None)
    assert int(error.response.headers["retry-after"]) > 0
    assert arrivals.statuses == [503]
    assert customer.settled_books() == before
    assert ask(client, model=FRAIL).usage.completion_tokens == 8


def test_an_engine_that_fails_is_a_server_error_that_is_retried_and_charged_once(
    platform: Any, client: OpenAI, customer: Any, arrivals: Any
) -> None:
    platform.faults(FRAIL, error_status=500, error_requests=1)
    answer = ask(client, model=FRAIL)
    assert arrivals.statuses == [502, 200]
    assert customer.settled_books().tokens == answer.usage.total_tokens
    platform.faults(FRAIL, error_status=500, error_requests=1)
    error = refusal(client.with_options(max_retries=0), openai.InternalServerError, model=FRAIL)
    assert facts(error) == (502, "server_error", "engine_error", None)
    assert customer.settled_books().tokens == answer.usage.total_tokens
    platform.faults(FRAIL)


def test_an_error_in_the_middle_of_a_stream_is_raised_there(
    platform: Any, client: OpenAI, customer: Any, arrivals: Any
) -> None:
    platform.faults(FRAIL, error_after_tokens=5)
    try:
        chunks = ask(client, model=FRAIL, max_tokens=30, stream=True, extra_body={"ignore_eos": True})
        seen: list[Any] = []
        with pytest.raises(openai.APIError) as caught:
            seen.extend(chunks)
    finally:
        platform.faults(FRAIL)
    assert not isinstance(caught.value, openai.APIStatusError)
    assert (caught.value.code, caught.value.type) == ("engine_error", "server_error")
    assert seen
    assert arrivals.statuses == [200]
    assert customer.settled_books().tokens == HELLO_TOKENS + 5


@pytest.fixture
def gateway_without_ledger(platform: Any, eventually: Any) -> Iterator[str]:
    """One more gateway of the same platform, to which the ledger is away; yields its base URL."""
    with Ports() as ports:
        port, nowhere = ports.free(), ports.free()
        settings = {
            "PORT": str(port),
            "LEDGER_URL": f"http://127.0.0.1:{nowhere}",
            "LEDGER_TOKEN": "unused",
            "BILLING_URL": platform.url("billing"),
            "BILLING_TOKEN": platform.secrets["billing_gateway_token"],
            "LANES_FILE": platform.record["lanes_file"],
            "JOURNAL_DIR": str(platform.data_dir.parent / "another-journal"),
        }
        added = {f"DARKTREE_GATEWAY_{name}": text for name, text in settings.items()}
        log = (platform.data_dir.parent / "another-gateway").open("w")
        command = [sys.executable, "-m", "darktree_gateway"]
        with log, subprocess.Popen(command, env=os.environ | added, stdout=log, stderr=log) as process:
            url = f"http://127.0.0.1:{port}"
            eventually(lambda: _answers(url), "the gateway listens", 30)
            yield f"{url}/v1"
            process.terminate()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz").status_code == 200
    except httpx.TransportError:
        return False


def test_without_the_ledger_nothing_is_served_and_it_is_said_when_to_come_back(
    platform: Any, customer: Any, gateway_without_ledger: str
) -> None:
    before = platform.engine_calls()
    client = platform.openai(customer, base_url=gateway_without_ledger, max_retries=0)
    error = refusal(client, openai.InternalServerError)
    assert facts(error) == (503, "service_unavailable_error", "metering_unavailable", None)
    assert int(error.response.headers["retry-after"]) > 0
    with pytest.raises(openai.InternalServerError) as caught:
        client.get("/credits", cast_to=object)
    assert caught.value.code == "metering_unavailable"
    assert platform.engine_calls() == before


def test_a_body_that_is_too_large_or_no_json_is_a_status_error(
    client: OpenAI, customer: Any, arrivals: Any
) -> None:
    error = refusal(client, openai.APIStatusError, messages=[{"role": "user", "content": "a" * 4_300_000}])
    assert facts(error) == (413, "invalid_request_error", "request_too_large", None)
    error = refusal(client, openai.APIStatusError, extra_headers={"Content-Type": "text/plain"})
    assert facts(error) == (415, "invalid_request_error", "unsupported_media_type", None)
    assert arrivals.statuses == [413, 415]
