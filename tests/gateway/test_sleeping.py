"""A lane that sleeps, over HTTP: its requests are held, shown to who scales it, and served once it has an engine."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import yaml

MODEL = "qwen25-14b-awq"


def test_a_request_for_a_sleeping_lane_is_held_until_it_wakes_and_one_too_many_is_sent_away(
    platform: Any,
    customer: Any,
    make_lane: Callable[..., Any],
    tmp_path: Path,
    eventually: Callable[..., Any],
) -> None:
    def lane(*urls: str) -> str:
        document = make_lane("sleepy", MODEL, *urls)
        document["spec"]["autoscaling"] = {"minReplicas": 0, "maxReplicas": 1}
        document["spec"]["coldStart"] = {"maxHeldRequests": 1, "maxHoldSeconds": 60}
        document.setdefault("status", {})["coldStart"] = {"lastTotalSeconds": 73}
        return yaml.safe_dump(document)

    lanes_file = tmp_path / "lanes.yaml"
    lanes_file.write_text(lane())
    url = platform.another_gateway(lanes_file=lanes_file)
    client = platform.client_of(customer.id, url)

    def queued() -> str:
        lines = httpx.get(f"{url}/metrics").text.splitlines()
        return next(
            (line.split()[-1] for line in lines if line.startswith('darktree_lane_queued{lane="sleepy"}')), ""
        )

    assert eventually(lambda: queued() == "0.0", "the gauge of a lane that nobody asks for")
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(client.chat, max_tokens=1)
        assert eventually(lambda: queued() == "1.0", "the held request")
        refused = client.chat(max_tokens=1)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "73")
        assert refused.json()["error"]["code"] == "lane_unavailable"
        lanes_file.write_text(lane(platform.simulator_url))
        assert held.result(30).status_code == 200
    assert eventually(lambda: queued() == "0.0", "nobody waits")
