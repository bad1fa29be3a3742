"""Lanes from a file, and which engine of a lane serves next."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from darktree_gateway.balancing import Balancer
from darktree_gateway.lanes import Lane, LaneFile, LaneTable, parse_lanes

MakeLane = Callable[..., dict[str, Any]]


def table_of(*documents: dict[str, Any]) -> LaneTable:
    return LaneTable(parse_lanes(yaml.safe_dump_all(documents)))


def test_a_dedicated_lane_wins_over_the_shared_one_and_serves_nobody_else(make_lane: MakeLane) -> None:
    shared = make_lane("shared", "m", "http://a:1")
    table = table_of(make_lane("own", "m", "http://b:1", customer="ann"), shared)
    mine, others = table.find("m", "ann"), table.find("m", "bob")
    assert mine is not None
    assert others is not None
    assert (mine.name, others.name) == ("own", "shared")
    assert table.find("other", "ann") is None


def test_a_model_is_visible_only_to_whom_some_lane_serves_it(make_lane: MakeLane) -> None:
    table = table_of(
        make_lane("own", "secret", "http://b:1", customer="ann"), make_lane("shared", "m", "http://a:1")
    )
    assert table.models("ann") == ["m", "secret"]
    assert table.models("bob") == ["m"]
    assert table.find("secret", "bob") is None


def test_of_two_lanes_alike_the_one_with_an_engine_serves(make_lane: MakeLane) -> None:
    table = table_of(
        make_lane("a", "m"), make_lane("b", "m", "http://b:1"), make_lane("c", "m", "http://c:1")
    )
    found = table.find("m", "ann")
    assert found is not None
    assert found.name == "b"


def test_other_kinds_and_empty_documents_are_passed_over(make_lane: MakeLane) -> None:
    text = "---\n---\nkind: ConfigMap\n---\n" + yaml.safe_dump(make_lane("a", "m", "http://a:1/"))
    (lane,) = parse_lanes(text)
    assert lane == Lane("a", "Standard", None, "m", "Simulator", 4096, ("http://a:1",))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metadata": {}}, "metadata.name is missing"),
        ({"spec": {"tier": "Gold"}}, "spec.tier"),
        ({"spec": {"customerRef": "ann"}}, "customerRef"),
        ({"spec": {"tier": "Dedicated"}}, "customerRef"),
        ({"spec": {"model": None}}, "spec.model.servedName is missing"),
        ({"spec": {"engine": {"kind": "VLLM", "contextLength": "big"}}}, "contextLength"),
        ({"spec": {"engine": {"contextLength": 4096, "kind": "VLLM", "maxNumSeqs": "8"}}}, "maxNumSeqs"),
        ({"spec": {"spillOver": "Sometimes"}}, "spillOver"),
        ({"spec": {"spillOver": "WhenFull"}}, "only for the tier Dedicated"),
        ({"status": {"endpoints": [{"url": "ftp://x"}]}}, "not the address"),
        ({"status": {"endpoints": [{}]}}, "url"),
        ({"status": {"endpoints": [{"url": "http://a"}] * 257}}, "endpoints"),
    ],
)
def test_a_lane_that_is_wrong_is_refused_saying_what(
    make_lane: MakeLane, change: dict[str, Any], message: str
) -> None:
    document = make_lane("a", "m", "http://a:1")
    for name, value in change.items():
        document[name] = value if name != "spec" else document["spec"] | value
    with pytest.raises(ValueError, match=message):
        parse_lanes(yaml.safe_dump(document))


def test_two_lanes_of_one_name_are_refused(make_lane: MakeLane) -> None:
    with pytest.raises(ValueError, match="two lanes are named a"):
        table_of(make_lane("a", "m"), make_lane("a", "n"))


def test_a_changed_file_is_read_again_and_a_broken_one_keeps_the_last_good_table(
    tmp_path: Path, make_lane: MakeLane
) -> None:
    path = tmp_path / "lanes.yaml"
    lanes = LaneFile(path)
    assert not lanes.poll()
    assert not lanes.loaded
    path.write_text(yaml.safe_dump(make_lane("a", "m", "http://a:1")))
    assert lanes.poll()
    assert not lanes.poll()
    for broken in ("", "{", "kind: InferenceLane", "[1, 2", "a: \x00"):
        path.write_text(broken)
        os.utime(path, ns=(0, hash(broken) % 10**9))
        assert not lanes.poll()
        assert [lane.name for lane in lanes.table.lanes] == ["a"]
    path.unlink()
    assert not lanes.poll()
    path.write_text(yaml.safe_dump(make_lane("b", "m", "http://a:1")))
    assert lanes.poll()
    assert [lane.name for lane in lanes.table.lanes] == ["b"]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6))
def test_the_engine_with_the_fewest_requests_serves_next(outstanding: list[int]) -> None:
    balancer = Balancer()
    urls = [f"http://{place}" for place in range(len(outstanding))]
    for url, count in zip(urls, outstanding, strict=True):
        balancer.engine(url).outstanding = count
    chosen = balancer.choose(urls)
    assert chosen is not None
    assert chosen.outstanding == min(outstanding)


def test_equals_take_turns() -> None:
    balancer = Balancer()
    urls = ["http://a", "http://b", "http://c"]
    chosen = [balancer.choose(urls) for _ in range(6)]
    assert sorted(engine.url for engine in chosen[:3] if engine) == urls
    assert chosen[:3] == chosen[3:]
