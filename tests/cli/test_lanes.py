"""InferenceLane documents as one machine reads and writes them."""

from pathlib import Path

import pytest

from darktree_cli.lanes import MAX_LANES, LaneError, read_lanes, served_lanes
from darktree_gateway.lanes import parse_lanes

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "lanes"
LANE = """
kind: InferenceLane
metadata: {{name: {name}, annotations: {{darktree.dev/simulated-tokens-per-second: "{speed}"}}}}
spec:
  tier: Standard
  model: {{servedName: a-model}}
  engine: {{kind: VLLM, contextLength: {context}}}
"""


def lane(name: str = "a", speed: str = "45", context: str = "1024") -> str:
    return LANE.format(name=name, speed=speed, context=context)


def test_the_examples_are_one_lane_of_each_tier_at_the_speeds_that_their_models_have() -> None:
    lanes = {found.tier: found for found in read_lanes(EXAMPLES)}
    assert set(lanes) == {"Standard", "Premium", "Dedicated"}
    assert (lanes["Standard"].served_name, lanes["Standard"].tokens_per_second) == ("qwen25-14b-awq", 100)
    assert (lanes["Premium"].served_name, lanes["Premium"].tokens_per_second) == ("qwen25-32b-awq", 45)
    assert lanes["Dedicated"].document["spec"]["customerRef"] == "acme"


def test_the_lanes_file_says_what_really_serves_and_the_gateway_understands_it() -> None:
    lanes = read_lanes(EXAMPLES)
    urls = {found.name: f"http://127.0.0.1:{9000 + number}" for number, found in enumerate(lanes)}
    understood = {found.name: found for found in parse_lanes(served_lanes(lanes, urls, "Simulator"))}
    assert {name: found.endpoints for name, found in understood.items()} == {
        name: (url,) for name, url in urls.items()
    }
    assert {found.engine for found in understood.values()} == {"Simulator"}
    assert understood["dedicated-acme"].customer_id == "acme"


def test_a_lane_whose_engine_pools_embeds(tmp_path: Path) -> None:
    pooling = lane("b").replace("kind: VLLM", 'kind: VLLM, extraArgs: ["--runner=pooling"]')
    (tmp_path / "lanes.yaml").write_text(lane("a") + "---" + pooling)
    assert [found.embeds for found in read_lanes(tmp_path)] == [False, True]


def test_a_file_may_hold_several_lanes(tmp_path: Path) -> None:
    (tmp_path / "lanes.yaml").write_text(lane("b") + "---" + lane("a"))
    assert [found.name for found in read_lanes(tmp_path)] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("kind: Deployment", "not a document of kind InferenceLane"),
        ("just words", "not a document of kind InferenceLane"),
        ("a: [", "is not YAML"),
        (lane(speed="fast"), "whole number above 0"),
        (lane(speed="0"), "whole number above 0"),
        (lane(context="long"), "spec.engine.contextLength"),
        (lane().replace("servedName: a-model", "source: hf://a/b"), "spec.model.servedName"),
        (lane().replace("Standard", "Golden"), "spec.tier"),
        (lane() + "---" + lane(), "two lanes are named a"),
        ("---".join(lane(f"lane-{number}") for number in range(MAX_LANES + 1)), "at most 32"),
        ("", "holds no InferenceLane"),
    ],
)
def test_a_lane_that_cannot_be_served_is_refused_with_its_place(tmp_path: Path, text: str, what: str) -> None:
    (tmp_path / "lane.yaml").write_text(text)
    with pytest.raises(LaneError, match=what) as refused:
        read_lanes(tmp_path)
    assert str(tmp_path) in str(refused.value)
