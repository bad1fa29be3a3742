"""Where requests are served, over HTTP: a lane's places shared by customers, and dedicated lanes that spill over."""

import math
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Any

import httpx
import pytest
import yaml

MODEL = "qwen25-14b-awq"
SCRIPTED = "qwen25-32b-awq"
PAUSE = "the engine waits for the test to say `go`"
FINISHED = {
    "id": "c",
    "created": 1,
    "model": SCRIPTED,
    "choices": [{"index": 0, "text": "a", "logprobs": None, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "total_tokens": 2, "completion_tokens": 1},
}
FINAL = FINISHED | {"choices": []}


@pytest.fixture
def narrow_name() -> str:
    """Gateways of one process share its gauges, so each test's lanes have names of their own."""
    return f"narrow-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def own_name() -> str:
    return f"own-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def gateway(platform: Any, tmp_path: Any) -> Callable[..., str]:
    """Serves a gateway with these lanes."""

    def make(*lanes: dict[str, Any], **changes: Any) -> str:
        file = tmp_path / "lanes.yaml"
        file.write_text(yaml.safe_dump_all(lanes))
        url: str = platform.another_gateway(lanes_file=file, **changes)
        return url

    return make


def gauge(url: str, name: str) -> float:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)), 0.0)


def narrow(lane: dict[str, Any], sequences: int) -> dict[str, Any]:
    lane["spec"]["engine"]["maxNumSeqs"] = sequences
    return lane


def test_a_heavy_customer_does_not_starve_a_light_one(
    platform: Any,
    narrow_name: str,
    gateway: Callable[..., str],
    engine: Any,
    make_lane: Callable[..., Any],
    eventually: Callable[..., Any],
) -> None:
    engine.say(PAUSE, FINISHED, FINAL, "[DONE]")
    url = gateway(narrow(make_lane(narrow_name, SCRIPTED, engine.url), 1))
    heavy = platform.client_of(platform.customer().id, url)
    light = platform.client_of(platform.customer().id, url)
    heavy.client.timeout = light.client.timeout = httpx.Timeout(60)

    def ask(client: Any) -> int:
        return int(client.complete(model=SCRIPTED, max_tokens=1).status_code)

    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(ask, heavy)]
        eventually(lambda: len(engine.bodies) == 1, "the only place is taken")
        running += [pool.submit(ask, heavy) for _ in range(6)]
        eventually(lambda: gauge(url, f'darktree_lane_queued{{lane="{narrow_name}"}}') == 6, "six wait")
        running.append(pool.submit(ask, light))
        eventually(lambda: gauge(url, f'darktree_lane_queued{{lane="{narrow_name}"}}') == 7, "and one more")
        assert gauge(url, f'darktree_lane_places{{lane="{narrow_name}"}}') == 1
        assert len(engine.bodies) == 1
        engine.go.set()
        assert [each.result(60) for each in running] == [200] * 8
    salts = [body["cache_salt"] for body in engine.bodies]
    # The light one waits for one that was sent before, not for six.
    assert [salts.count(salt) for salt in salts] == [7, 7, 1, 7, 7, 7, 7, 7]
    assert gauge(url, f'darktree_lane_queue_seconds_count{{lane="{narrow_name}"}}') == 7


@pytest.mark.parametrize(
    ("reason", "waiting", "bounds"),
    [("full", 1, {"queue_length": 1, "queue_seconds": 60.0}), ("long", 0, {"queue_seconds": 0.3})],
)
def test_a_full_queue_and_a_long_wait_are_503_with_the_time_to_come_back(
    platform: Any,
    narrow_name: str,
    gateway: Callable[..., str],
    engine: Any,
    make_lane: Callable[..., Any],
    eventually: Callable[..., Any],
    reason: str,
    waiting: int,
    bounds: dict[str, Any],
) -> None:
    engine.say(PAUSE, FINISHED, FINAL, "[DONE]")
    url = gateway(narrow(make_lane(narrow_name, SCRIPTED, engine.url), 1), **bounds)
    customer = platform.customer()
    client = platform.client_of(customer.id, url)
    with ThreadPoolExecutor(2) as pool:
        served = [pool.submit(client.complete, model=SCRIPTED, max_tokens=1)]
        eventually(lambda: len(engine.bodies) == 1, "the only place is taken")
        began = monotonic()
        served += [pool.submit(client.complete, model=SCRIPTED, max_tokens=1) for _ in range(waiting)]
        queued = f'darktree_lane_queued{{lane="{narrow_name}"}}'
        eventually(lambda: gauge(url, queued) == waiting, "as many wait as may")
        refused = client.complete(model=SCRIPTED, max_tokens=1)
        error = refused.json()["error"]
        assert (refused.status_code, error["code"]) == (503, "lane_unavailable")
        assert error["type"] == "service_unavailable_error"
        assert 1 <= int(refused.headers["retry-after"]) <= math.ceil(monotonic() - began)
        assert refused.headers["x-ratelimit-limit-tokens"] == "1000000"
        assert platform.open_holds(customer.id) == 1, "who waits holds nothing"
        engine.go.set()
        assert [each.result(30).status_code for each in served] == [200] * (1 + waiting)
    assert len(customer.usage()) == 1 + waiting
    refusals = f'darktree_lane_queue_refused_total{{lane="{narrow_name}",reason="{reason}"}}'
    assert gauge(url, refusals) == 1


def test_a_client_that_leaves_the_line_gives_its_place_up(
    platform: Any,
    narrow_name: str,
    gateway: Callable[..., str],
    engine: Any,
    make_lane: Callable[..., Any],
    eventually: Callable[..., Any],
) -> None:
    engine.say(PAUSE, FINISHED, FINAL, "[DONE]")
    url = gateway(narrow(make_lane(narrow_name, SCRIPTED, engine.url), 1))
    client = platform.client_of(platform.customer().id, url)
    impatient = platform.client_of(platform.customer().id, url)
    impatient.client.timeout = httpx.Timeout(0.5)
    with ThreadPoolExecutor(1) as pool:
        served = pool.submit(client.complete, model=SCRIPTED, max_tokens=1)
        eventually(lambda: len(engine.bodies) == 1, "the only place is taken")
        with pytest.raises(httpx.ReadTimeout):
            impatient.complete(model=SCRIPTED, max_tokens=1)
        eventually(lambda: gauge(url, f'darktree_lane_queued{{lane="{narrow_name}"}}') == 0, "nobody waits")
        engine.go.set()
        assert served.result(30).status_code == 200
    assert len(engine.bodies) == 1
    assert client.complete(model=SCRIPTED, max_tokens=1).status_code == 200


def spilling(lane: dict[str, Any], policy: str) -> dict[str, Any]:
    lane["spec"]["spillOver"] = policy
    return lane


@pytest.mark.parametrize(
    ("policy", "served_by"), [("Never", None), ("WhenUnavailable", "shared"), ("WhenFull", "shared")]
)
def test_a_dedicated_lane_without_an_engine_spills_over_as_it_says_at_the_models_price(
    platform: Any,
    own_name: str,
    gateway: Callable[..., str],
    customer: Any,
    make_lane: Callable[..., Any],
    eventually: Callable[..., Any],
    policy: str,
    served_by: str | None,
) -> None:
    own = spilling(make_lane(own_name, MODEL, customer=customer.id), policy)
    url = gateway(own, make_lane("shared", MODEL, platform.simulator_url))
    client = platform.client_of(customer.id, url)
    spilled = f'darktree_lane_spilled_total{{lane="{own_name}",reason="unavailable"}}'
    answer = client.chat(max_tokens=3)
    if served_by is None:
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "lane_unavailable")
        assert customer.usage() == []
        return
    assert (answer.status_code, answer.headers["x-darktree-lane"]) == (200, served_by)
    (charge,) = customer.usage()
    assert charge["lane"] == "shared"
    assert charge["amount_nanos"] == answer.json()["usage"]["total_tokens"] * 750_000
    assert gauge(url, spilled) == 1
    eventually(
        lambda: gauge(url, f'darktree_lane_queued{{lane="{own_name}"}}') == 1,
        "who scales it sees that it was wanted",
    )


@pytest.mark.parametrize(
    ("policy", "lanes"), [("WhenUnavailable", ["own", "own"]), ("WhenFull", ["own", "shared"])]
)
def test_a_dedicated_lane_that_is_full_spills_over_only_if_it_says_so(
    platform: Any,
    own_name: str,
    gateway: Callable[..., str],
    customer: Any,
    engine: Any,
    make_lane: Callable[..., Any],
    eventually: Callable[..., Any],
    policy: str,
    lanes: list[str],
) -> None:
    engine.say(PAUSE, FINISHED, FINAL, "[DONE]")
    own = spilling(narrow(make_lane(own_name, MODEL, engine.url, customer=customer.id), 1), policy)
    url = gateway(own, make_lane("shared", MODEL, platform.simulator_url))
    client = platform.client_of(customer.id, url)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(client.complete, max_tokens=1)
        eventually(lambda: len(engine.bodies) == 1, "its only place is taken")
        second = pool.submit(client.complete, max_tokens=1)
        if policy == "WhenFull":
            assert second.result(30).headers["x-darktree-lane"] == "shared"
        else:
            eventually(lambda: gauge(url, f'darktree_lane_queued{{lane="{own_name}"}}') == 1, "it waits")
        engine.go.set()
        served = [each.result(30).headers["x-darktree-lane"] for each in (first, second)]
    named = [own_name if lane == "own" else lane for lane in lanes]
    assert served == named
    assert sorted(charge["lane"] for charge in customer.usage()) == sorted(named)


def test_a_dedicated_lane_whose_engines_all_fail_spills_over(
    platform: Any,
    own_name: str,
    gateway: Callable[..., str],
    customer: Any,
    make_lane: Callable[..., Any],
) -> None:
    nobody = "http://127.0.0.1:1"
    own = spilling(make_lane(own_name, MODEL, nobody, customer=customer.id), "WhenUnavailable")
    url = gateway(own, make_lane("shared", MODEL, platform.simulator_url), ejection_seconds=30.0)
    client = platform.client_of(customer.id, url)
    assert client.chat(max_tokens=1).status_code == 503, "what finds it out"
    assert [client.chat(max_tokens=1).headers["x-darktree-lane"] for _ in range(3)] == ["shared"] * 3
