"""How many requests a key may send: the arithmetic alone, and over HTTP in OpenAI's words."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from darktree_gateway.errors import RequestLimitReached, precise_duration
from darktree_gateway.limits import KeyLimits, Limits

MODEL = "qwen25-14b-awq"
SCRIPTED = "qwen25-32b-awq"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_minutes_requests_may_come_together_and_then_one_by_one(clock: Clock) -> None:
    keys = KeyLimits(clock)
    limits = Limits(requests_per_minute=60, concurrent_requests=None)
    remaining = [int(keys.enter("k", limits)[1]["x-ratelimit-remaining-requests"]) for _ in range(60)]
    assert remaining == list(range(59, -1, -1))
    with pytest.raises(RequestLimitReached) as refused:
        keys.enter("k", limits)
    assert (refused.value.answer_status, refused.value.answer_type) == (429, "requests")
    assert refused.value.answer_code == "rate_limit_exceeded"
    assert refused.value.headers == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "1m0s",
        "Retry-After": "1",
        "retry-after-ms": "1000",
    }
    clock.now += 1.0
    keys.enter("k", limits)
    with pytest.raises(RequestLimitReached):
        keys.enter("k", limits)
    keys.enter("another key", limits)
    clock.now += 3600
    assert keys.enter("k", limits)[1]["x-ratelimit-remaining-requests"] == "59"


@given(
    st.integers(1, 100_000),
    st.lists(st.floats(0, 90, allow_subnormal=False), min_size=1, max_size=300),
)
def test_no_minute_has_more_than_twice_the_limit_and_no_refusal_says_too_early(
    per_minute: int, pauses: list[float]
) -> None:
    clock = Clock()
    keys, limits = KeyLimits(clock), Limits(per_minute, None)
    taken: list[float] = []
    for pause in pauses:
        clock.now += pause / 10
        try:
            keys.enter("k", limits)
            taken.append(clock.now)
        except RequestLimitReached as refused:
            clock.now += int(refused.headers["retry-after-ms"]) / 1000
            keys.enter("k", limits)
            taken.append(clock.now)
    # A full bucket, and what flows in meanwhile.
    assert all(sum(start <= each < start + 60 for each in taken) <= 2 * per_minute + 1 for start in taken)


def test_no_more_than_so_many_run_at_once_and_a_refusal_counts_for_nothing(clock: Clock) -> None:
    keys, limits = KeyLimits(clock), Limits(requests_per_minute=600, concurrent_requests=2)
    first, _ = keys.enter("k", limits)
    keys.enter("k", limits)
    for _ in range(5):
        with pytest.raises(RequestLimitReached) as refused:
            keys.enter("k", limits)
        assert refused.value.headers["Retry-After"] == "1"
        assert refused.value.headers["x-ratelimit-remaining-requests"] == "598"
    first.running -= 1
    assert keys.enter("k", limits)[1]["x-ratelimit-remaining-requests"] == "597"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.0012, "2ms"), (0.999, "999ms"), (1.5, "1.5s"), (62.5, "1m2.5s"), (60, "1m0s")],
)
def test_durations_are_as_gos(seconds: float, text: str) -> None:
    assert precise_duration(seconds) == text


@pytest.fixture
def limited(platform: Any) -> Callable[..., Any]:
    """Makes a customer whose keys have limits."""

    def make(**limits: int) -> Any:
        customer = platform.customer()
        platform.admin("PUT", f"/customers/{customer.id}/limits", json=limits)
        return customer

    return make


def test_every_answer_says_what_is_left_of_the_minute(limited: Callable[..., Any], customer: Any) -> None:
    client = limited(requests_per_minute=3)
    answers = [client.chat(max_tokens=1, stream=stream) for stream in (False, True)]
    assert [each.headers["x-ratelimit-remaining-requests"] for each in answers] == ["2", "1"]
    wrong = client.chat(max_tokens=-1)
    assert (wrong.status_code, wrong.headers["x-ratelimit-remaining-requests"]) == (400, "0")
    refused = client.chat(max_tokens=1)
    assert refused.status_code == 429
    error = refused.json()["error"]
    assert (error["type"], error["code"]) == ("requests", "rate_limit_exceeded")
    assert 1 <= int(refused.headers["retry-after"]) <= 20
    assert refused.headers["x-ratelimit-limit-requests"] == "3"
    assert client.client.get("/v1/credits").status_code == 200, "reading is not limited"
    assert "x-ratelimit-limit-requests" not in customer.chat(max_tokens=1).headers
    assert len(client.usage()) == 2


def test_a_key_runs_no_more_requests_at_once_than_it_may(
    platform: Any, limited: Callable[..., Any], engine: Any, eventually: Callable[..., Any]
) -> None:
    client = limited(concurrent_requests=1)
    engine.say("the engine waits for the test to say `go`", "[DONE]")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(client.chat, model=SCRIPTED)
        eventually(lambda: engine.bodies, "the first is being served")
        refused = client.chat(max_tokens=1)
        assert (refused.status_code, refused.json()["error"]["type"]) == (429, "requests")
        other = platform.client_of(client.id)
        assert other.chat(max_tokens=1).status_code == 200, "each key has its own"
        engine.go.set()
        running.result()
    assert client.chat(max_tokens=1).status_code == 200


def test_openais_client_waits_for_its_minute_and_is_served(
    limited: Callable[..., Any], platform: Any
) -> None:
    client = limited(requests_per_minute=20)  # one each three seconds, once 20 have come
    url = f"{platform.gateway_url}/v1"
    hasty = openai.OpenAI(api_key=client.key, base_url=url, max_retries=0)

    def use_up() -> None:
        for _ in range(60):
            hasty.completions.create(model=MODEL, prompt="x", max_tokens=1)

    with pytest.raises(openai.RateLimitError) as refused:
        use_up()
    assert refused.value.type == "requests"
    hasty.close()
    with openai.OpenAI(api_key=client.key, base_url=url) as patient:
        assert patient.completions.create(model=MODEL, prompt="x", max_tokens=1).usage is not None
