"""The alerts: valid for Prometheus, about metrics that the code has, each with a page of what to do."""

import importlib
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY

ROOT = Path(__file__).resolve().parent.parent
RULES = ROOT / "examples" / "prometheus" / "rules.yaml"
METRICS = (
    "darktree_kit.metrics",
    "darktree_ledger.metrics",
    "darktree_ledger.sealer_metrics",
    "darktree_billing.metrics",
    "darktree_gateway.metrics",
    "darktree_operator.metrics",
)
PROMTOOL = shutil.which("promtool")


def rules() -> list[dict[str, Any]]:
    document = yaml.safe_load(RULES.read_text())
    return [rule for group in document["groups"] for rule in group["rules"]]


def labels_of_metrics() -> dict[str, set[str]]:
    """Return every sample name of our metrics with its labels."""
    for module in METRICS:
        importlib.import_module(module)
    collectors = {
        name: collector for collector, names in REGISTRY._collector_to_names.items() for name in names
    }
    return {
        name: set(getattr(collector, "_labelnames", ()))
        for name, collector in collectors.items()
        if name.startswith("darktree_")
    }


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))
def test_an_alert_is_about_metrics_and_labels_that_exist(rule: dict[str, Any]) -> None:
    known = labels_of_metrics()
    named = set(re.findall(r"\bdarktree_\w+", rule["expr"]))
    assert named, "an alert without a metric of ours"
    assert named <= set(known)
    labels = set.union(*(known[name] for name in named)) | {"instance"}
    used = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
    grouped = re.findall(r"by \(([^)]*)\)", rule["expr"])
    assert used | {label.strip() for group in grouped for label in group.split(",")} <= labels


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))
def test_an_alert_has_a_severity_and_a_runbook(rule: dict[str, Any]) -> None:
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert re.fullmatch(r"[0-9]+[mh]", rule.get("for", "1m"))
    path, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert anchor == rule["alert"].lower()
    assert f"\n## {rule['alert']}\n\n" in (ROOT / path).read_text()


def test_no_runbook_is_for_an_alert_that_is_gone() -> None:
    titles = set(re.findall(r"^## (Darktree\w+)$", (ROOT / "docs" / "runbooks.md").read_text(), re.MULTILINE))
    assert titles == {rule["alert"] for rule in rules()}


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not on PATH")
def test_prometheus_takes_the_rules() -> None:
    assert PROMTOOL is not None
    subprocess.run([PROMTOOL, "check", "rules", str(RULES)], check=True, capture_output=True)
