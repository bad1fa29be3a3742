"""What goes wrong on demand, and how a client sees it."""

import json
import time
from collections.abc import Callable
from typing import Any

import httpcore
import httpx
import pytest

BODY = {"messages": [{"role": "user", "content": "hello"}], "ignore_eos": True, "max_tokens": 30}
STREAM = BODY | {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}

MakeLane = Callable[..., httpx.Client]
Metric = Callable[[httpx.Client, str], float]


def ask(lane: httpx.Client, body: dict[str, Any] = BODY) -> httpx.Response:
    return lane.post("/v1/chat/completions", json=body)


def usage_until_the_end(lane: httpx.Client) -> tuple[int, str]:
    """(completion tokens in the last usage seen, how the stream ended)."""
    tokens, last = 0, ""
    try:
        with lane.stream("POST", "/v1/chat/completions", json=STREAM) as response:
            for line in filter(None, response.iter_lines()):
                last = line
                if line.startswith("data: {"):
                    tokens = (
                        json.loads(line.removeprefix("data: "))
                        .get("usage", {})
                        .get("completion_tokens", tokens)
                    )
    except httpx.RemoteProtocolError:
        last = "broken"
    return tokens, last


def test_faults_are_shown_changed_one_by_one_and_cleared(lane: httpx.Client) -> None:
    none = lane.get("/faults").json()
    assert lane.post("/faults", json={"latency_seconds": 0.5}).json() == none | {"latency_seconds": 0.5}
    both = none | {"latency_seconds": 0.5, "usage_missing": True}
    assert lane.post("/faults", json={"usage_missing": True}).json() == both
    assert lane.delete("/faults").json() == none == lane.get("/faults").json()


@pytest.mark.parametrize("body", [{"no_such_fault": 1}, {"latency_seconds": -1}, [1], "x"])
def test_an_unknown_fault_is_refused_and_changes_nothing(lane: httpx.Client, body: object) -> None:
    before = lane.get("/faults").json()
    assert lane.post("/faults", json=body).status_code == 400
    assert lane.get("/faults").json() == before


def test_an_error_status_answers_just_the_next_requests(lane: httpx.Client, metric: Metric) -> None:
    lane.post("/faults", json={"error_status": 500, "error_requests": 2})
    assert [ask(lane).status_code for _ in range(3)] == [500, 500, 200]
    assert metric(lane, "vllm:generation_tokens_total") == 30


def test_an_injected_error_has_the_shape_of_vllm(lane: httpx.Client) -> None:
    lane.post("/faults", json={"error_status": 503})
    error = ask(lane).json()["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert error["code"] == 503


def test_a_starting_lane_refuses_everything_but_faults(lane: httpx.Client) -> None:
    lane.post("/faults", json={"starting": True})
    assert lane.get("/health").status_code == 503
    assert lane.get("/v1/models").status_code == 503
    assert ask(lane).status_code == 503
    lane.delete("/faults")
    assert lane.get("/health").status_code == 200


def test_a_startup_delay_ends_by_itself(make_lane: MakeLane) -> None:
    assert make_lane(startup_delay_seconds=60).get("/health").status_code == 503
    lane = make_lane(startup_delay_seconds=0.5)
    deadline = time.monotonic() + 10
    while lane.get("/health").status_code != 200:
        assert time.monotonic() < deadline


def test_latency_comes_before_the_first_byte(lane: httpx.Client) -> None:
    lane.post("/faults", json={"latency_seconds": 0.3})
    started = time.monotonic()
    with lane.stream("POST", "/v1/chat/completions", json=STREAM):
        assert time.monotonic() - started >= 0.3


def test_a_cut_stream_breaks_after_just_so_many_tokens(lane: httpx.Client, metric: Metric) -> None:
    lane.post("/faults", json={"cut_after_tokens": 7})
    assert usage_until_the_end(lane) == (7, "broken")
    assert metric(lane, "vllm:generation_tokens_total") == 7
    assert metric(lane, "vllm:num_requests_running") == 0


def test_a_cut_breaks_an_answer_that_is_not_streamed_too(lane: httpx.Client, metric: Metric) -> None:
    lane.post("/faults", json={"cut_after_tokens": 7})
    with pytest.raises(httpx.RemoteProtocolError):
        ask(lane)
    assert metric(lane, "vllm:generation_tokens_total") == 7


def test_an_error_inside_a_stream_is_an_event_and_then_the_end(lane: httpx.Client) -> None:
    lane.post("/faults", json={"error_after_tokens": 5})
    text = ask(lane, STREAM).text
    *chunks, error, done, rest = text.split("\n\n")
    assert len(chunks) == 1 + 5
    assert json.loads(error.removeprefix("data: "))["error"] == {
        "message": "Internal server error",
        "type": "InternalServerError",
        "param": None,
        "code": 500,
    }
    assert (done, rest) == ("data: [DONE]", "")


def test_an_error_in_an_answer_that_is_not_streamed_is_a_500(lane: httpx.Client) -> None:
    lane.post("/faults", json={"error_after_tokens": 5})
    response = ask(lane)
    assert (response.status_code, response.json()["error"]["code"]) == (500, 500)


def test_a_stalled_stream_stays_open_without_another_byte(lane: httpx.Client, metric: Metric) -> None:
    lane.post("/faults", json={"stall_after_tokens": 5})
    with lane.stream("POST", "/v1/chat/completions", json=STREAM) as response:
        lines = response.iter_lines()
        assert next(line for line in lines if '"completion_tokens":5' in line)
        with pytest.raises(httpcore.ReadTimeout):
            response.extensions["network_stream"].read(1, timeout=0.3)
    assert metric(lane, "vllm:generation_tokens_total") == 5


def test_usage_can_be_missing_everywhere(lane: httpx.Client) -> None:
    lane.post("/faults", json={"usage_missing": True})
    assert ask(lane).json()["usage"] is None
    assert '"usage"' not in ask(lane, STREAM).text


def test_faults_can_be_set_before_the_start(make_lane: MakeLane) -> None:
    lane = make_lane(faults={"error_status": 429, "error_requests": 1})
    assert [ask(lane).status_code for _ in range(2)] == [429, 200]
