"""The edges of a bill that docs/billing-rules.md promises, through the whole platform.

The table there names only tests that exist.
"""

import ast
import re
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "docs" / "billing-rules.md"
SCRIPTED = "qwen25-32b-awq"  # what the scripted engine serves
PAUSE = "the engine waits for the test to say `go`"
PROMPT_TOKENS = 10
ENDINGS: dict[str, tuple[list[Any], str]] = {
    "the engine breaks the connection": ([], "break"),
    "the engine says an error": ([{"error": {"message": "x", "type": "y", "code": 500}}], "end"),
    "the engine ends without usage": (["[DONE]"], "end"),
}
Eventually = Callable[..., Any]


def said(tokens: int, *, finish: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": "a"}, "logprobs": None, "finish_reason": finish}
    return {"id": "c", "created": 1, "model": SCRIPTED, "choices": [choice], "usage": used(tokens)}


def used(tokens: int) -> dict[str, int]:
    total = PROMPT_TOKENS + tokens
    return {"prompt_tokens": PROMPT_TOKENS, "total_tokens": total, "completion_tokens": tokens}


def end(tokens: int) -> list[Any]:
    whole = {"id": "c", "created": 1, "model": SCRIPTED, "choices": [], "usage": used(tokens)}
    return [said(tokens, finish="stop"), whole, "[DONE]"]


def streamed(customer: Any, **options: Any) -> Any:
    body = {"model": SCRIPTED, "messages": [{"role": "user", "content": "x"}], "stream": True} | options
    return customer.client.stream("POST", "/v1/chat/completions", json=body)


def read_events(pieces: Iterator[bytes], count: int) -> bytes:
    content = b""
    while content.count(b"\n\n") < count:
        content += next(pieces)
    return content


def test_the_table_names_only_tests_that_exist_and_every_row_names_one() -> None:
    rows = [line for line in RULES.read_text().splitlines() if line.startswith("| ") and "---" not in line]
    rows = [row for row in rows if not row.startswith("| case ")]
    assert len(rows) > 25
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)
        assert named, row
        for file, test in named:
            tree = ast.parse((ROOT / file).read_text())
            functions = {
                node.name
                for node in ast.walk(tree)
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            }
            assert test in functions, f"{file} has no {test}"


@pytest.mark.parametrize("events", range(1, 6))
@pytest.mark.parametrize("how", ENDINGS)
def test_a_stream_that_its_engine_cuts_after_any_event_is_charged_up_to_that_event(
    platform: Any, customer: Any, engine: Any, how: str, events: int
) -> None:
    last, ending = ENDINGS[how]
    engine.say(*map(said, range(1, events + 1)), PAUSE, *last, end=ending)
    with streamed(customer) as answer:
        pieces = answer.iter_raw()
        read_events(pieces, events)
        engine.go.set()
        rest = b"".join(pieces)
    assert b"engine_error" in rest
    (charge,) = customer.usage()
    assert (charge["outcome"], charge["total_tokens"]) == ("failed", PROMPT_TOKENS + events)
    assert platform.open_holds(customer.id) == 0


@pytest.mark.parametrize("how", ENDINGS)
def test_a_stream_that_its_engine_cuts_before_any_event_is_refused_and_costs_nothing(
    platform: Any, customer: Any, engine: Any, how: str
) -> None:
    last, ending = ENDINGS[how]
    engine.say(*last, end=ending)
    with streamed(customer) as answer:
        assert (answer.status_code, b"engine_error" in answer.read()) == (502, True)
    assert customer.usage() == []
    assert platform.open_holds(customer.id) == 0


@pytest.mark.parametrize("events", range(1, 6))
def test_a_stream_that_its_client_leaves_after_any_event_is_charged_what_the_engine_had_told(
    platform: Any, customer: Any, engine: Any, eventually: Eventually, events: int
) -> None:
    engine.say(*map(said, range(1, events + 1)), end="stall")
    with streamed(customer) as answer:
        read_events(answer.iter_raw(), events)
    (charge,) = eventually(customer.usage, "the charge")
    assert (charge["outcome"], charge["total_tokens"]) == ("abandoned", PROMPT_TOKENS + events)
    assert platform.open_holds(customer.id) == 0


def test_prices_that_change_inside_a_request_do_not_change_its_charge(
    platform: Any, customer: Any, engine: Any, eventually: Eventually
) -> None:
    plans = yaml.safe_load(platform.plans_file.read_text())
    engine.say(said(1), PAUSE, *end(2))
    with streamed(customer) as answer:
        pieces = answer.iter_raw()
        next(pieces)
        for model in plans["models"]:
            model["prompt_price_per_thousand"] = model["completion_price_per_thousand"] = "1.50"
        platform.plans_file.write_text(yaml.safe_dump(plans))

        def charged_anew() -> bool:
            assert customer.complete("x", max_tokens=1).status_code == 200
            newest = customer.usage()[0]
            return bool(newest["amount_nanos"] == newest["total_tokens"] * 1_500_000)

        eventually(charged_anew, "the new price for new requests")
        engine.go.set()
        b"".join(pieces)
    charge = next(charge for charge in customer.usage() if charge["model"] == SCRIPTED)
    assert charge["amount_nanos"] == (PROMPT_TOKENS + 2) * 750_000


def test_a_lane_drained_inside_a_stream_finishes_it_and_then_refuses_without_a_charge(
    platform: Any, customer: Any, engine: Any, eventually: Eventually
) -> None:
    before = platform.lanes_file.read_text()
    lanes = list(yaml.safe_load_all(before))
    engine.say(said(1), PAUSE, *end(2))
    with streamed(customer) as answer:
        pieces = answer.iter_raw()
        next(pieces)
        lanes[1]["status"]["endpoints"] = []
        platform.lanes_file.write_text(yaml.safe_dump_all(lanes))
        engine.say(
            *end(1)
        )  # to whoever asks before the file is read; the first stream goes on with its own events
        eventually(lambda: customer.chat(model=SCRIPTED).status_code == 503, "the drained lane")
        charged = len(customer.usage())
        engine.go.set()
        assert b"[DONE]" in b"".join(pieces)
    charge, *earlier = customer.usage()
    assert len(earlier) == charged  # those that met the drained lane paid nothing
    assert (charge["outcome"], charge["total_tokens"]) == ("completed", PROMPT_TOKENS + 2)
    refused = customer.chat(model=SCRIPTED)
    assert refused.json()["error"]["code"] == "lane_unavailable"
    assert int(refused.headers["retry-after"]) > 0
    assert platform.open_holds(customer.id) == 0
    platform.lanes_file.write_text(before)
    engine.say(*end(1))
    eventually(lambda: customer.chat(model=SCRIPTED).status_code == 200, "the lane")


def test_what_is_read_costs_nothing(platform: Any, customer: Any) -> None:
    before = customer.credits()
    for path in ("/v1/models", f"/v1/models/{SCRIPTED}", "/v1/usage", "/v1/credits"):
        assert customer.client.get(path).status_code == 200
    assert customer.credits()["balance_nanos"] == before["balance_nanos"]
    assert customer.credits()["day"]["used_tokens"] == 0
    assert customer.usage() == []


def test_a_stream_that_crosses_midnight_is_charged_to_the_day_it_was_admitted(
    platform: Any, customer: Any, engine: Any
) -> None:
    today = customer.credits()["day"]["date"]
    midnight = datetime.fromisoformat(f"{today}T00:00Z") + timedelta(days=1)
    platform.set_clock(midnight - timedelta(seconds=30))
    assert customer.credits()["day"]["date"] == today
    engine.say(said(1), PAUSE, *end(2))
    with streamed(customer) as answer:
        pieces = answer.iter_raw()
        next(pieces)
        platform.set_clock(midnight + timedelta(seconds=5))
        assert customer.credits()["day"]["date"] == str(midnight.date())
        engine.go.set()
        b"".join(pieces)
    (charge,) = customer.usage()
    assert (charge["usage_day"], charge["total_tokens"]) == (today, PROMPT_TOKENS + 2)
    assert customer.credits()["day"]["used_tokens"] == 0
