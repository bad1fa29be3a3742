"""One trace through every service, at a real collector; and no prompt or answer in it, nor in any log."""

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from collector import Collector, Span, collecting

Platform = Any  # what tests/platform/conftest.py makes, which cannot be imported
SECRET = "the-prompt-that-nobody-may-see"
SERVER, CLIENT = 2, 3  # kinds of spans
PHASES = {"auth", "bound", "queue", "hold", "settle"}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as running:
        yield running


@pytest.fixture(scope="module")
def platform(started: Any, collector: Collector) -> Iterator[Platform]:
    settings = {
        "LOG_LEVEL": "DEBUG",
        "OTLP_ENDPOINT": collector.url,
        "OTLP_HEADER": "Authorization: Bearer told",
    }
    each = {
        f"DARKTREE_{service}_{name}": value
        for service in ("GATEWAY", "LEDGER", "BILLING")
        for name, value in settings.items()
    }
    # What the SDK itself would read: spans soon, so that a test need not wait.
    with started({"fast": 2000, "slow": 20}, gateways=1, OTEL_BSP_SCHEDULE_DELAY="100", **each) as running:
        yield running


@pytest.fixture(scope="module")
def key(platform: Platform) -> str:
    return str(platform.customer(cap_tokens=100_000).key)


def ask(platform: Platform, key: str, **options: Any) -> tuple[str, httpx.Response]:
    """Send a request within a trace of its caller's; return the trace and the answer."""
    trace_id = secrets.token_hex(16)
    headers = {"Authorization": f"Bearer {key}", "traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"}
    body: dict[str, Any] = {
        "model": "qwen25-14b-awq",
        "messages": [{"role": "user", "content": SECRET}],
        "max_tokens": 12,
        "temperature": 0.5,
        "stop": [SECRET],
        "ignore_eos": True,
    }
    url = platform.base_url + "/chat/completions"
    return trace_id, httpx.post(url, json=body | options, headers=headers, timeout=60)


def spans_of(collector: Collector, trace_id: str, eventually: Callable[..., Any]) -> dict[str, Span]:
    """Return a trace's spans by service and name, once the gateway's and the ledger's have arrived."""

    def whole() -> bool:
        spans = collector.of_trace(trace_id)
        told = {(span.service, span.kind) for span in spans}
        return {("darktree-gateway", SERVER), ("darktree-ledger", SERVER)} <= told

    eventually(whole, "the trace is whole")
    return {
        f"{span.service.removeprefix('darktree-')} {span.name}": span for span in collector.of_trace(trace_id)
    }


def test_a_completion_is_one_trace_through_every_service(
    platform: Platform, collector: Collector, key: str, eventually: Callable[..., Any]
) -> None:
    trace_id, answer = ask(platform, key)
    assert answer.status_code == 200
    spans = spans_of(collector, trace_id, eventually)
    request = spans["gateway POST /v1/chat/completions"]
    assert request.kind == SERVER
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["darktree.request_id"] == answer.headers["x-request-id"]
    for phase in PHASES:
        span = spans[f"gateway darktree {phase}"]
        assert span.parent_id == request.span_id
        assert request.start - 1_000_000 <= span.start <= span.end <= request.end + 1_000_000
    generation, usage = spans["gateway chat qwen25-14b-awq"], answer.json()["usage"]
    assert (generation.kind, generation.parent_id, generation.failed) == (CLIENT, request.span_id, False)
    assert generation.events == ["gen_ai.first_token"]
    told = generation.attributes
    assert told["gen_ai.operation.name"] == "chat"
    assert told["gen_ai.request.model"] == "qwen25-14b-awq"
    assert (told["gen_ai.request.max_tokens"], told["gen_ai.request.temperature"]) == (12, 0.5)
    assert told["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert told["gen_ai.usage.output_tokens"] == usage["completion_tokens"]
    assert told["darktree.entry_id"] == answer.headers["x-darktree-entry-id"]
    ledger = spans["ledger POST /v1/operations"]
    assert (ledger.kind, ledger.parent_id) == (SERVER, request.span_id)
    assert collector.authorizations == {"Bearer told"}


def test_a_refused_request_says_so_in_its_trace(
    platform: Platform, collector: Collector, eventually: Callable[..., Any]
) -> None:
    poor = platform.customer(cap_tokens=5)
    trace_id, answer = ask(platform, poor.key)
    assert answer.status_code == 429
    spans = spans_of(collector, trace_id, eventually)
    assert spans["gateway POST /v1/chat/completions"].attributes["http.response.status_code"] == 429
    assert not [span for span in spans.values() if span.kind == CLIENT], "no engine was asked"


def test_services_begin_no_trace_of_their_own_for_what_is_between_them(
    platform: Platform, collector: Collector, key: str, eventually: Callable[..., Any]
) -> None:
    trace_id, _ = ask(platform, key)
    spans_of(collector, trace_id, eventually)
    spans = collector.spans
    began = {span.service for span in spans if not span.parent_id}
    assert "darktree-ledger" not in began
    assert not [span for span in spans if span.name.endswith(("/readyz", "/healthz", "/metrics"))]


def test_no_prompt_and_no_answer_is_in_any_span_or_log_even_at_debug(
    platform: Platform, collector: Collector, key: str, eventually: Callable[..., Any]
) -> None:
    good, answer = ask(platform, key)
    text = answer.json()["choices"][0]["message"]["content"]
    refusals = [
        ask(platform, key, max_tokens=-1),
        ask(platform, key, model=SECRET),
        ask(
            platform,
            key,
            tools=[{"type": "function", "function": {"name": "f", "description": SECRET, "x": 1}}],
        ),
        ask(platform, key, messages=[{"role": SECRET, "content": SECRET}]),
        ask(platform, key, messages=[{"role": "user", "content": SECRET * 20_000}]),
    ]
    assert all(refused.status_code >= 400 for _, refused in refusals)
    platform.kill("lane-fast")  # and what the gateway says of an engine that is away
    ask(platform, key)
    platform.until_back("lane-fast")
    spans_of(collector, good, eventually)
    logs = {file.name: file.read_text() for file in Path(platform.data_dir / "logs").iterdir()}
    assert answer.headers["x-request-id"] in logs["gateway-1.log"], "the logs are of these requests"
    for name, content in logs.items():
        assert SECRET not in content, name
        assert text not in content, name
    for body in collector.raw:
        assert SECRET.encode() not in body
        assert text.encode() not in body
