"""The set speed, many streams at once, and what happens to those whose client goes away."""

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import httpx

BODY = {"messages": [{"role": "user", "content": "hello"}], "ignore_eos": True}
STREAM = BODY | {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
IDLE_TIMEOUT_SECONDS = 10

MakeLane = Callable[..., httpx.Client]
Metric = Callable[[httpx.Client, str], float]


def wait_until_idle(lane: httpx.Client, metric: Metric) -> None:
    deadline = time.monotonic() + IDLE_TIMEOUT_SECONDS
    while metric(lane, "vllm:num_requests_running"):
        assert time.monotonic() < deadline, "the lane is still generating"


def tokens_of(line: str) -> int:
    usage: dict[str, int] = json.loads(line.removeprefix("data: "))["usage"]
    return usage["completion_tokens"]


def test_an_answer_takes_as_long_as_its_tokens(make_lane: MakeLane) -> None:
    lane = make_lane(tokens_per_second=100)
    started = time.monotonic()
    lane.post("/v1/chat/completions", json=BODY | {"max_tokens": 50})
    assert 0.5 <= time.monotonic() - started < 2.0


def test_many_streams_run_side_by_side_and_each_keeps_the_speed(make_lane: MakeLane, metric: Metric) -> None:
    lane = make_lane(tokens_per_second=50)
    body = STREAM | {"max_tokens": 25}

    async def run_all() -> list[str]:
        limits = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(base_url=lane.base_url, limits=limits, timeout=30) as client:
            asked = [client.post("/v1/chat/completions", json=body) for _ in range(100)]
            return [response.text for response in await asyncio.gather(*asked)]

    started = time.monotonic()
    texts = asyncio.run(run_all())
    # One after another these would take 50 s.
    assert time.monotonic() - started < 10
    assert all(text.endswith("data: [DONE]\n\n") for text in texts)
    assert metric(lane, "vllm:generation_tokens_total") == 100 * 25


def test_generation_stops_at_once_when_the_client_of_a_stream_goes_away(
    make_lane: MakeLane, metric: Metric
) -> None:
    lane = make_lane(tokens_per_second=50)
    seen = 0
    with httpx.Client(base_url=lane.base_url) as client:
        body = STREAM | {"max_tokens": 4000}
        with client.stream("POST", "/v1/chat/completions", json=body) as response:
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    seen = tokens_of(line)
                if seen == 10:
                    break
    wait_until_idle(lane, metric)
    assert 0 <= metric(lane, "vllm:generation_tokens_total") - seen <= 1
    # As in vLLM, an aborted request is none of the successful ones.
    assert metric(lane, "vllm:request_success_total") == 0


def test_generation_stops_when_the_client_of_a_whole_answer_goes_away(
    make_lane: MakeLane, metric: Metric
) -> None:
    lane = make_lane(tokens_per_second=50)
    with httpx.Client(base_url=lane.base_url, timeout=0.5) as client:
        try:
            client.post("/v1/chat/completions", json=BODY | {"max_tokens": 4000})
        except httpx.ReadTimeout:
            pass
        else:
            raise AssertionError("the answer should take 80 seconds")
    wait_until_idle(lane, metric)
    assert 0 < metric(lane, "vllm:generation_tokens_total") < 200


def test_requests_beyond_the_lanes_width_wait_for_their_turn(make_lane: MakeLane, metric: Metric) -> None:
    lane = make_lane(tokens_per_second=100, maximum_concurrent_sequences=2)

    async def run_all() -> list[dict[str, Any]]:
        async with httpx.AsyncClient(base_url=lane.base_url, timeout=30) as client:
            asked = [
                asyncio.create_task(client.post("/v1/chat/completions", json=BODY | {"max_tokens": 20}))
                for _ in range(6)
            ]
            deadline = time.monotonic() + IDLE_TIMEOUT_SECONDS
            while not (waiting := metric(lane, "vllm:num_requests_waiting")):
                assert time.monotonic() < deadline, "nothing ever waited"
                await asyncio.sleep(0)
            assert waiting <= 4
            assert metric(lane, "vllm:num_requests_running") <= 2
            return [response.json() for response in await asyncio.gather(*asked)]

    answers = asyncio.run(run_all())
    assert [answer["usage"]["completion_tokens"] for answer in answers] == [20] * 6
    assert metric(lane, "vllm:num_requests_waiting") == 0
