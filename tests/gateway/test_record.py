"""What is told of each completion: in metrics, in the access log, and in a header for whoever asks."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from darktree_gateway.record import PHASES

MODEL = "qwen25-14b-awq"
SCRIPTED = "qwen25-32b-awq"


class Metrics:
    """A gateway's metrics, as they changed since the last look."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._before = self._read()

    def _read(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        families = text_string_to_metric_families(httpx.get(f"{self._url}/metrics").text)
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in families
            for sample in family.samples
        }

    def grew(self, name: str, **labels: str) -> float:
        key = (name, frozenset(labels.items()))
        return self._read().get(key, 0.0) - self._before.get(key, 0.0)


@pytest.fixture
def metrics(platform: Any) -> Metrics:
    return Metrics(platform.gateway_url)


class Lines(logging.Handler):
    """The access log's lines, as their fields."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(vars(record))

    def of(self, answer: httpx.Response) -> list[dict[str, Any]]:
        return [
            fields
            for fields in self.records
            if fields.get("entry_id") == answer.headers["x-darktree-entry-id"]
        ]


@pytest.fixture
def lines() -> Iterator[Lines]:
    log = logging.getLogger("darktree.http")
    handler = Lines()
    level = log.level
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    yield handler
    log.removeHandler(handler)
    log.setLevel(level)


def test_rate_errors_and_duration_of_a_lane_are_counted(
    customer: Any, metrics: Metrics, eventually: Callable[..., Any]
) -> None:
    assert customer.chat(max_tokens=4).status_code == 200
    assert customer.chat(max_tokens=4, stream=True).status_code == 200
    assert customer.chat(max_tokens=10**9).status_code == 400
    assert customer.chat(model="no-such").status_code == 404
    ok = {"lane": "standard", "status": "200", "code": "ok"}
    eventually(lambda: metrics.grew("darktree_gateway_requests_total", **ok) == 2, "two answers")
    too_long = {"lane": "standard", "status": "400", "code": "context_length_exceeded"}
    assert metrics.grew("darktree_gateway_requests_total", **too_long) == 1
    unknown = {"lane": "none", "status": "404", "code": "model_not_found"}
    assert metrics.grew("darktree_gateway_requests_total", **unknown) == 1
    assert metrics.grew("darktree_gateway_request_seconds_count", lane="standard") == 3
    assert metrics.grew("darktree_gateway_time_to_first_token_seconds_count", lane="standard") == 2
    assert metrics.grew("darktree_gateway_time_per_output_token_seconds_count", lane="standard") == 2
    for phase, count in {"auth": 4, "bound": 4, "queue": 3, "hold": 2, "upstream": 2, "settle": 2}.items():
        assert metrics.grew("darktree_gateway_phase_seconds_count", phase=phase) == count, phase


def test_an_engine_that_fails_inside_a_stream_is_an_error_whose_status_was_200(
    customer: Any, engine: Any, metrics: Metrics
) -> None:
    chunk = {
        "id": "c",
        "created": 1,
        "model": SCRIPTED,
        "choices": [{"index": 0, "delta": {"content": "a"}, "logprobs": None, "finish_reason": None}],
        "usage": {"prompt_tokens": 10, "total_tokens": 11, "completion_tokens": 1},
    }
    engine.say(chunk, {"error": {"message": "boom", "code": 500}})
    assert b"engine_error" in customer.chat(model=SCRIPTED, stream=True).content
    failed = {"lane": "scripted", "status": "200", "code": "engine_error"}
    assert metrics.grew("darktree_gateway_requests_total", **failed) == 1


def test_the_access_log_tells_who_what_and_how_long_and_never_a_prompt(
    customer: Any, lines: Lines, eventually: Callable[..., Any]
) -> None:
    answer = customer.chat("the secret of the forest", max_tokens=4, user="someone")
    (line,) = eventually(lambda: lines.of(answer), "the line")
    usage = answer.json()["usage"]
    assert (line["customer_id"], line["lane"], line["status"]) == (customer.id, "standard", 200)
    assert (line["prompt_tokens"], line["completion_tokens"]) == (usage["prompt_tokens"], 4)
    assert line["code"] == "ok"
    assert list(line["phases_ms"]) == list(PHASES)
    assert sum(line["phases_ms"].values()) <= line["duration_ms"] + 1
    assert "forest" not in str(line)
    assert answer.json()["choices"][0]["message"]["content"] not in str(line)


def test_without_the_access_log_only_failures_are_told(
    platform: Any, customer: Any, lines: Lines, eventually: Callable[..., Any]
) -> None:
    client = platform.client_of(customer.id, platform.another_gateway(access_log=False))
    answer = client.chat(max_tokens=1)
    assert client.chat(model="no-such").status_code == 404
    assert eventually(lambda: [line for line in lines.records if line.get("code") == "model_not_found"])
    assert not lines.of(answer)


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_asks_for_it_is_told_where_its_time_went(customer: Any, stream: bool) -> None:
    body = {"model": MODEL, "prompt": "x", "max_tokens": 2, "stream": stream}
    asked = customer.client.post("/v1/completions", json=body, headers={"x-darktree-timing": "1"})
    told = [part.partition(";dur=") for part in asked.headers["x-darktree-timing"].split(", ")]
    known = PHASES[:5] if stream else PHASES  # a stream's headers leave with its first event
    assert [name for name, _, _ in told] == list(known)
    assert all(float(milliseconds) >= 0 for _, _, milliseconds in told)
    assert "x-darktree-timing" not in customer.client.post("/v1/completions", json=body).headers


def test_a_refusal_tells_its_phases_too(customer: Any, engine: Any) -> None:
    engine.refuse(500, {"error": {"message": "boom", "code": 500}})
    body = {"model": SCRIPTED, "prompt": "x", "max_tokens": 2}
    refused = customer.client.post("/v1/completions", json=body, headers={"x-darktree-timing": "1"})
    assert refused.status_code == 502
    assert refused.headers["x-darktree-timing"].startswith("auth;dur=")
