"""The set speed, many streams at once, and what happens to those whose client goes away."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
from starlette.types import ASGIApp, Message

from darktree_simulator.app import make_app
from darktree_simulator.engine import FREE_RUNNING_TOKENS
from darktree_simulator.settings import Settings

BODY = {"messages": [{"role": "user", "content": "hello"}], "ignore_eos": True}
STREAM = BODY | {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
IDLE_TIMEOUT_SECONDS = 10

MakeLane = Callable[..., httpx.Client]
Metric = Callable[[httpx.Client, str], float]


def wait_until_idle(lane: httpx.Client, metric: Metric) -> None:
    deadline = time.monotonic() + IDLE_TIMEOUT_SECONDS
    while metric(lane, "vllm:num_requests_running"):
        assert time.monotonic() < deadline, "the lane is still generating"


async def beats_of(asked: Awaitable[Any]) -> tuple[Any, int]:
    """What was asked for, and its hundredths of a second: to a machine that stalls, however long, it is one more."""
    answer, beats = asyncio.ensure_future(asked), 0
    while not answer.done():
        await asyncio.sleep(0.01)
        beats += 1
    return answer.result(), beats


async def test_an_answer_takes_as_long_as_its_tokens(make_lane: MakeLane) -> None:
    lane = make_lane(tokens_per_second=100)
    started = time.monotonic()
    async with httpx.AsyncClient(base_url=lane.base_url, timeout=30) as client:
        asked = client.post("/v1/chat/completions", json=BODY | {"max_tokens": 50})
        _, beats = await beats_of(asked)
    assert time.monotonic() - started >= 0.5
    assert beats < 200


async def test_many_streams_run_side_by_side_and_each_keeps_the_speed(
    make_lane: MakeLane, metric: Metric
) -> None:
    lane = make_lane(tokens_per_second=50)
    body = STREAM | {"max_tokens": 25}
    limits = httpx.Limits(max_connections=100)
    async with httpx.AsyncClient(base_url=lane.base_url, limits=limits, timeout=30) as client:
        asked = [client.post("/v1/chat/completions", json=body) for _ in range(100)]
        answers, beats = await beats_of(asyncio.gather(*asked))
    # One after another these would take 5000.
    assert beats < 1000
    assert all(answer.text.endswith("data: [DONE]\n\n") for answer in answers)
    assert metric(lane, "vllm:generation_tokens_total") == 100 * 25


async def test_generation_stops_at_once_when_the_client_of_a_stream_goes_away(
    serve: Callable[[ASGIApp], str], metric: Metric
) -> None:
    app = make_app(Settings(models=["tree"]))
    unread = [{"type": "http.request", "body": json.dumps(STREAM | {"max_tokens": 4000}).encode()}]
    left, turns = asyncio.Event(), 0

    async def receive() -> Message:
        if unread:
            return unread.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        nonlocal turns
        turns += "body" in message
        if turns == 10:
            left.set()

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers}
    await app(scope, receive, send)
    # The event loop takes one turn to tell of it, and one to end what generates.
    assert turns <= 10 + 2
    with httpx.Client(base_url=serve(app)) as lane:
        assert metric(lane, "vllm:generation_tokens_total") == turns * FREE_RUNNING_TOKENS
        # As in vLLM, an aborted request is none of the successful ones.
        assert metric(lane, "vllm:request_success_total") == 0


async def test_generation_stops_when_the_client_of_a_whole_answer_goes_away(
    make_lane: MakeLane, metric: Metric
) -> None:
    lane = make_lane(tokens_per_second=50)
    async with httpx.AsyncClient(base_url=lane.base_url, timeout=30) as client:
        body = BODY | {"max_tokens": 4000}
        asked = asyncio.create_task(client.post("/v1/chat/completions", json=body))
        while not metric(lane, "vllm:generation_tokens_total"):
            assert not asked.done()
            await asyncio.sleep(0)
        asked.cancel()
    wait_until_idle(lane, metric)
    # One that is late makes several tokens, but in one turn.
    assert metric(lane, "vllm:inter_token_latency_seconds_count") < 200


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
