"""What goes wrong: clients that leave, engines that fail, a ledger that is away. Nothing is lost, nobody overpays."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import yaml

MODEL = "qwen25-14b-awq"
SCRIPTED = "qwen25-32b-awq"  # what the scripted engine serves
PAUSE = "the engine waits for the test to say `go`"
Eventually = Callable[..., Any]


def chunk(content: str, completion: int, *, finish: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": content}, "logprobs": None, "finish_reason": finish}
    return {"id": "c", "created": 1, "model": SCRIPTED, "choices": [choice], "usage": usage(completion)}


def usage(completion: int, prompt: int = 10) -> dict[str, int]:
    return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}


def final(completion: int) -> dict[str, Any]:
    return {"id": "c", "created": 1, "model": SCRIPTED, "choices": [], "usage": usage(completion)}


WHOLE = (chunk("a", 1), chunk("b", 2, finish="stop"), final(2), "[DONE]")


@pytest.fixture(autouse=True)
def _whole_again(platform: Any) -> Iterator[None]:
    yield
    platform.ledger.mend()
    platform.billing.mend()
    platform.faults()


def stream(customer: Any, **options: Any) -> Any:
    body = {"model": SCRIPTED, "messages": [{"role": "user", "content": "x"}], "stream": True} | options
    return customer.client.stream("POST", "/v1/chat/completions", json=body)


def test_a_client_that_leaves_a_stream_ends_the_generation_and_pays_for_what_there_was(
    platform: Any, customer: Any, engine: Any, eventually: Eventually
) -> None:
    engine.say(chunk("a", 1), chunk("b", 2), end="stall")
    with stream(customer, max_tokens=500) as answer:
        entry_id = answer.headers["x-darktree-entry-id"]
        assert b'"a"' in next(answer.iter_raw())
    eventually(lambda: engine.left == 1, "the abort")
    (charge,) = eventually(customer.usage, "the charge")
    assert (charge["outcome"], charge["entry_id"]) == ("abandoned", entry_id)
    assert charge["prompt_tokens"] == 10
    assert charge["completion_tokens"] in {1, 2}
    assert platform.open_holds(customer.id) == 0


def test_a_client_that_leaves_a_plain_request_ends_it_just_so(
    platform: Any, customer: Any, engine: Any, eventually: Eventually
) -> None:
    engine.say(chunk("a", 1), chunk("b", 2), end="stall")
    body = orjson.dumps({"model": SCRIPTED, "messages": [{"role": "user", "content": "x"}], "max_tokens": 50})
    url = httpx.URL(platform.gateway_url)
    connection = socket.create_connection((url.host, url.port or 80))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {customer.key}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    eventually(lambda: engine.bodies, "the generation")
    eventually(lambda: platform.open_holds(customer.id) == 1, "the hold")
    connection.close()
    eventually(lambda: engine.left == 1, "the abort")
    eventually(lambda: platform.open_holds(customer.id) == 0, "the settlement")
    for charge in customer.usage():
        assert (charge["outcome"], charge["prompt_tokens"]) == ("abandoned", 10)


def test_a_client_that_leaves_before_anything_was_generated_pays_nothing(
    platform: Any, customer: Any, engine: Any, eventually: Eventually
) -> None:
    engine.say(PAUSE, *WHOLE)
    body = {"model": SCRIPTED, "messages": [{"role": "user", "content": "x"}], "stream": True}
    with pytest.raises(httpx.ReadTimeout):
        customer.client.post("/v1/chat/completions", json=body, timeout=0.5)
    assert platform.open_holds(customer.id) in {0, 1}
    eventually(lambda: platform.open_holds(customer.id) == 0, "the release")
    assert customer.usage() == []


def test_the_end_of_a_stream_is_withheld_until_the_engine_said_what_it_used(
    customer: Any, engine: Any, events_of: Callable[[bytes], list[Any]]
) -> None:
    engine.say(chunk("a", 1), chunk("b", 2, finish="stop"), PAUSE, final(2), "[DONE]")
    with stream(customer) as answer:
        pieces = answer.iter_raw()
        first = next(pieces)
        assert b'"a"' in first
        assert b'"b"' not in first
        assert customer.usage() == []
        engine.go.set()
        rest = b"".join(pieces)
    assert events_of(first + rest)[-1] == "[DONE]"
    assert customer.usage()[0]["total_tokens"] == 12


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize(
    ("status", "answer", "expected_status", "expected_code"),
    [
        (500, {"error": {"message": "boom", "type": "InternalServerError", "code": 500}}, 502, "engine_error"),
        (503, {"error": {"message": "starting", "type": "x", "code": 503}}, 503, "lane_unavailable"),
        (429, {"error": "too many"}, 503, "lane_unavailable"),
        (401, {"error": "Unauthorized"}, 502, "engine_error"),
        (
            400,
            {"error": {"message": "temperature must be good", "type": "BadRequestError", "param": "temperature",
                       "code": 400}},
            400,
            "invalid_value",
        ),
        (
            400,
            {"error": {"message": "This model's maximum context length is 8 tokens.", "param": "input_tokens",
                       "code": 400}},
            400,
            "context_length_exceeded",
        ),
        (404, {"error": {"message": "The model does not exist.", "code": 404}}, 404, "model_not_found"),
        (200, {"id": "not a stream", "choices": []}, 502, "engine_error"),
    ],
)  # fmt: skip
def test_an_engines_refusal_is_translated_and_nothing_is_charged(
    platform: Any,
    customer: Any,
    engine: Any,
    streamed: bool,
    status: int,
    answer: Any,
    expected_status: int,
    expected_code: str,
) -> None:
    engine.refuse(status, answer)
    refused = customer.chat(model=SCRIPTED, stream=streamed)
    assert (refused.status_code, refused.json()["error"]["code"]) == (expected_status, expected_code)
    assert isinstance(refused.json()["error"]["type"], str)
    if expected_status == 503:
        assert int(refused.headers["retry-after"]) > 0
    assert refused.headers["x-ratelimit-remaining-tokens"] == "1000000"
    assert customer.usage() == []
    assert platform.open_holds(customer.id) == 0


BROKEN = {
    "an error inside the stream": (
        (chunk("a", 1), {"error": {"message": "x", "type": "y", "code": 500}}),
        "end",
    ),
    "a broken connection": ((chunk("a", 1),), "break"),
    "an end without usage": ((chunk("a", 1), chunk("b", 2, finish="stop"), "[DONE]"), "end"),
    "an end without an end": ((chunk("a", 1), chunk("b", 2, finish="stop"), final(2)), "end"),
    "nonsense": ((chunk("a", 1), "{nonsense"), "end"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_stream_that_fails_ends_in_an_error_and_what_was_delivered_is_charged(
    platform: Any, customer: Any, engine: Any, how: str, events_of: Callable[[bytes], list[Any]]
) -> None:
    events, end = BROKEN[how]
    engine.say(events[0], PAUSE, *events[1:], end=end)
    with stream(customer) as answer:
        assert answer.status_code == 200
        pieces = answer.iter_raw()
        first = next(pieces)
        engine.go.set()
        content = first + b"".join(pieces)
    got = events_of(content)
    assert got[-1]["error"]["code"] == "engine_error"
    assert "[DONE]" not in got
    (charge,) = customer.usage()
    assert charge["outcome"] == "failed"
    assert charge["completion_tokens"] in {1, 2}
    assert platform.open_holds(customer.id) == 0


@pytest.mark.parametrize("how", BROKEN)
def test_a_plain_request_that_fails_is_refused_and_costs_nothing(
    platform: Any, customer: Any, engine: Any, how: str
) -> None:
    events, end = BROKEN[how]
    engine.say(*events, end=end)
    refused = customer.chat(model=SCRIPTED)
    assert (refused.status_code, refused.json()["error"]["code"]) == (502, "engine_error")
    assert refused.json()["error"]["type"] == "server_error"
    assert customer.usage() == []
    assert platform.open_holds(customer.id) == 0


def test_a_simulated_lane_that_breaks_charges_what_was_delivered(platform: Any, customer: Any) -> None:
    platform.faults(cut_after_tokens=3)
    with customer.client.stream(
        "POST",
        "/v1/completions",
        json={"model": MODEL, "prompt": "x", "max_tokens": 9, "stream": True},
    ) as answer:
        content = b"".join(answer.iter_raw())
    if answer.status_code == 200:
        assert b"engine_error" in content
        assert customer.usage()[0]["outcome"] == "failed"
        assert customer.usage()[0]["completion_tokens"] <= 3
    else:
        assert customer.usage() == []
    platform.faults(usage_missing=True)
    assert customer.complete().status_code == 502
    assert platform.open_holds(customer.id) == 0


def test_when_the_ledger_is_away_nothing_is_served(platform: Any, customer: Any) -> None:
    assert customer.chat(max_tokens=1).status_code == 200
    platform.ledger.cut()
    for answer in (customer.chat(max_tokens=1), customer.client.get("/v1/credits")):
        assert answer.status_code == 503
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == ("service_unavailable_error", "metering_unavailable")
        assert "x-ratelimit-limit-tokens" not in answer.headers
    assert customer.chat(max_tokens=1).headers["retry-after"] == "1"
    platform.ledger.mend()
    assert customer.chat(max_tokens=1).status_code == 200


@pytest.mark.parametrize("streamed", [True, False])
def test_a_settlement_that_the_ledger_cannot_take_is_journalled_and_the_answer_still_goes(
    platform: Any, customer: Any, engine: Any, eventually: Eventually, streamed: bool
) -> None:
    engine.say(chunk("a", 1), PAUSE, *WHOLE[1:])
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(lambda: customer.chat(model=SCRIPTED, stream=streamed))
        eventually(lambda: engine.bodies, "the generation")
        platform.ledger.cut()
        engine.go.set()
        answer = running.result()
    assert answer.status_code == 200
    assert ("[DONE]" in answer.text) == streamed
    journals = list(platform.journal_dir.glob("*.journal.jsonl"))
    assert sum(path.stat().st_size for path in journals) > 0
    refused = platform.client_of(customer.id).chat(max_tokens=1)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "metering_unavailable")
    platform.ledger.mend()
    eventually(lambda: not list(platform.journal_dir.glob("*.journal.jsonl")), "the replay")
    charge = customer.usage()[0]
    assert charge["entry_id"] == answer.headers["x-darktree-entry-id"]
    assert (charge["total_tokens"], charge["outcome"]) == (12, "completed")
    eventually(lambda: customer.chat(max_tokens=1).status_code == 200, "serving again")


def test_when_billing_is_away_only_keys_that_were_just_seen_are_let_in(platform: Any, customer: Any) -> None:
    assert customer.client.get("/v1/models").status_code == 200
    stranger = platform.client_of(customer.id)
    platform.billing.cut()
    assert customer.client.get("/v1/models").status_code == 200
    refused = stranger.chat()
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "metering_unavailable")
    assert refused.headers["retry-after"]


def test_headroom_held_by_the_customers_own_requests_is_waited_for(
    platform: Any, engine: Any, eventually: Eventually
) -> None:
    customer = platform.customer(cap_tokens=400)
    patient = platform.client_of(customer.id, platform.another_gateway(in_flight_wait_seconds=30))
    engine.say(chunk("a", 1), PAUSE, *WHOLE[1:])
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(lambda: patient.chat(model=SCRIPTED, max_tokens=4000))
        eventually(lambda: platform.open_holds(customer.id) == 1, "the hold")
        second = pool.submit(lambda: patient.chat(max_tokens=5))
        refused = customer.chat(max_tokens=5)
        assert refused.status_code == 429
        assert not second.done()
        error = refused.json()["error"]
        assert (error["type"], error["code"]) == ("tokens", "in_flight_limit_exceeded")
        assert refused.headers["retry-after"] == "1"
        assert "x-should-retry" not in refused.headers
        eventually(lambda: len(engine.bodies) == 1, "the first")
        engine.go.set()
        assert first.result().status_code == 200
        assert second.result().status_code == 200


def test_the_cap_holds_to_the_token_under_forty_requests_at_once(platform: Any) -> None:
    customer = platform.customer(cap_tokens=500)
    customer.client.timeout = httpx.Timeout(30.0)
    clients = [platform.client_of(customer.id) for _ in range(4)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(
            pool.map(lambda place: clients[place % 4].chat(max_tokens=20, stream=place % 2 == 0), range(40))
        )
    assert {answer.status_code for answer in answers} <= {200, 429}
    assert sum(answer.status_code == 200 for answer in answers) >= 5
    charged = sum(charge["total_tokens"] for charge in customer.usage())
    assert charged == customer.credits()["day"]["used_tokens"] <= 500
    assert platform.open_holds(customer.id) == 0


def test_an_engine_that_cannot_be_reached_is_passed_over_and_a_lane_without_any_says_when_to_retry(
    platform: Any, customer: Any, make_lane: Callable[..., Any], tmp_path: Path, eventually: Eventually
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}"
        lanes_file = tmp_path / "lanes.yaml"
        lanes_file.write_text(yaml.safe_dump(make_lane("both", MODEL, nobody, platform.simulator_url)))
        client = platform.client_of(customer.id, platform.another_gateway(lanes_file=lanes_file))
        assert all(client.chat(max_tokens=1).status_code == 200 for _ in range(4))
        lanes_file.write_text(yaml.safe_dump(make_lane("dead", MODEL, nobody)))
        refused = eventually(
            lambda: (a := client.chat(max_tokens=1)).status_code == 503 and a, "the new lanes"
        )
        assert refused.json()["error"]["code"] == "lane_unavailable"
        assert refused.headers["retry-after"] == "5"
        lanes_file.write_text(yaml.safe_dump(make_lane("none-yet", MODEL)))
        refused = client.chat(max_tokens=1)
        assert refused.status_code == 503
        lanes_file.write_text(yaml.safe_dump(make_lane("others", MODEL, nobody, customer="somebody-else")))
        eventually(lambda: client.chat(max_tokens=1).status_code == 404, "the lane of somebody else")
    assert platform.open_holds(customer.id) == 0


def test_a_long_stream_keeps_its_hold(
    platform: Any, customer: Any, engine: Any, eventually: Eventually
) -> None:
    client = platform.client_of(customer.id, platform.another_gateway(hold_ttl_seconds=6))
    engine.say(chunk("a", 1), PAUSE, *WHOLE[1:])

    def expiry() -> Any:
        rows = platform.sql(
            "SELECT expires_at, placed_at FROM ledger.hold WHERE customer_id = %s", customer.id
        )
        return rows[0] if rows else None

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(lambda: client.chat(model=SCRIPTED))
        eventually(expiry, "the hold")
        eventually(lambda: (expiry()[0] - expiry()[1]).total_seconds() > 9.5, "two renewals")
        engine.go.set()
        assert running.result().status_code == 200
    (charge,) = customer.usage()
    assert charge["total_tokens"] == 12
    assert platform.sql("SELECT absorbed_tokens FROM ledger.hold WHERE customer_id = %s", customer.id) == [
        (0,)
    ]


def test_a_request_that_runs_too_long_is_ended(platform: Any, customer: Any, engine: Any) -> None:
    url = platform.another_gateway(hold_ttl_seconds=3, request_seconds=0.5)
    client = platform.client_of(customer.id, url)
    engine.say(chunk("a", 1), end="stall")
    refused = client.chat(model=SCRIPTED)
    assert refused.status_code == 502
    assert customer.usage() == []


def test_a_gateway_that_stops_settles_what_it_serves(
    platform: Any, customer: Any, engine: Any, eventually: Eventually
) -> None:
    from darktree_gateway.app import make_app

    engine.say(chunk("a", 1), end="stall")
    started = threading.Event()

    def read(url: str) -> bytes:
        client = platform.client_of(customer.id, url)
        client.client.timeout = httpx.Timeout(20.0)
        content = b""
        with contextlib.suppress(httpx.HTTPError), stream(client) as answer:
            for piece in answer.iter_raw():
                content += piece
                started.set()
        assert b"[DONE]" not in content
        return content

    with ThreadPoolExecutor(1) as pool:
        with platform.serving(make_app(platform.settings)) as url:
            running = pool.submit(read, url)
            assert started.wait(10)
        assert b'"a"' in running.result()
    (charge,) = customer.usage()
    assert (charge["outcome"], charge["total_tokens"]) == ("failed", 11)
    assert platform.open_holds(customer.id) == 0


def test_what_engines_count_is_shown_beside_what_was_metered(
    platform: Any, customer: Any, eventually: Eventually
) -> None:
    assert customer.chat(max_tokens=3).status_code == 200

    def exposition() -> str:
        return httpx.get(f"{platform.gateway_url}/metrics").text

    endpoint = platform.engine.url
    line = f'darktree_lane_engine_tokens{{endpoint="{endpoint}",kind="completion",lane="scripted"}} 5.0'
    eventually(lambda: line in exposition(), "the engine's own count")
    text = exposition()
    assert 'darktree_lane_metered_tokens_total{kind="completion",lane="standard"}' in text
    assert "darktree_gateway_overhead_seconds_bucket" in text
    assert customer.id not in text
    assert customer.key not in text
