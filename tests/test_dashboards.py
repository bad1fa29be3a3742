"""The dashboards: current, and each query about metrics and labels that the services and engines really have."""

import json
import re
from pathlib import Path
from typing import Any

import exposed
import pytest
import yaml
from darktree_dashboards.boards import documents

from darktree_simulator.metrics import EngineMetrics

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "charts" / "darktree"
SCRAPED = {
    "instance",
    "job",
    "le",
    "darktree_dev_lane",
}  # what Prometheus, and the operator's PodMonitor, add
PARTS = ("_bucket", "_sum", "_count")


def boards() -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in sorted((CHART / "dashboards").glob("*.json"))}


def panels() -> list[tuple[str, dict[str, Any]]]:
    """Return every panel that asks something, with its dashboard's name."""
    found = [(name, panel) for name, board in boards().items() for panel in board["panels"]]
    return [(name, panel) for name, panel in found if panel["type"] != "row"]


def known_labels() -> dict[str, set[str]]:
    """Return the labels of every metric that can be asked for, by its name without a histogram's ending."""
    found = exposed.ours() | exposed.of(EngineMetrics("a-model")._registry)
    for file in (CHART / "rules").glob("*.yaml"):
        for group in yaml.safe_load(file.read_text())["groups"]:
            found |= {rule["record"]: {"lane"} for rule in group["rules"] if "record" in rule}
    return found


def test_the_dashboards_are_what_their_source_says() -> None:
    written = {path.stem: path.read_text() for path in (CHART / "dashboards").glob("*.json")}
    assert written == documents(), "run `make dashboards`"


@pytest.mark.parametrize(
    ("name", "panel"), panels(), ids=lambda value: value if isinstance(value, str) else value["title"]
)
def test_a_panel_asks_for_metrics_and_labels_that_exist_and_says_what_it_shows(
    name: str, panel: dict[str, Any]
) -> None:
    assert panel["title"]
    assert panel["description"], f"{name}: {panel['title']}"
    known = known_labels()
    for target in panel["targets"]:
        query = target["expr"]
        asked = set(re.findall(r"\b(?:darktree_\w+|darktree:[\w:]+|vllm:\w+)", query)) - SCRAPED
        assert asked
        bare = {name if name in known else re.sub(f"({'|'.join(PARTS)})$", "", name) for name in asked}
        assert bare <= set(known), bare - set(known)
        labels = SCRAPED.union(*(known[name] for name in bare))
        grouped = {
            label.strip() for group in re.findall(r"by \(([^)]*)\)", query) for label in group.split(",")
        }
        filtered = set(re.findall(r"[{,] *(\w+) *(?:=|!)", query))
        shown = set(re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", "")))
        assert grouped | filtered | shown <= labels, (query, (grouped | filtered | shown) - labels)
        assert shown <= grouped or not grouped, f"{query} has no {shown - grouped}"


def test_no_dashboard_names_a_customer() -> None:
    for name, panel in panels():
        assert not re.search(r"customer_id|customer=", json.dumps(panel["targets"])), name


def test_every_dashboard_can_be_imported_beside_the_others() -> None:
    found = boards()
    assert len({board["uid"] for board in found.values()}) == len(found) == 6
    for board in found.values():
        assert board["templating"]["list"][0]["name"] == "datasource"
        ids = [panel["id"] for panel in board["panels"]]
        assert len(set(ids)) == len(ids)
        for panel in board["panels"]:
            assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24, panel["title"]
