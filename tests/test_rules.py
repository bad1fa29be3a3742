"""The alerts: about metrics that the code has, each with a page of what to do, and seen to fire and not to."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import exposed
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
RULES = ROOT / "charts" / "darktree" / "rules"
CASES = ROOT / "tests" / "rules"
RUNBOOKS = "docs/runbooks.md"
OTHERS = {"kubelet_volume_stats_available_bytes", "kubelet_volume_stats_capacity_bytes"}
OTHERS_LABELS = {"instance", "namespace", "persistentvolumeclaim"}
PROMTOOL = shutil.which("promtool")
FILES = sorted(path.name for path in RULES.glob("*.yaml"))


def rules(kind: str = "alert") -> list[dict[str, Any]]:
    """Return every rule of all files that is an alert, or a record."""
    documents = [yaml.safe_load((RULES / name).read_text()) for name in FILES]
    found = [rule for document in documents for group in document["groups"] for rule in group["rules"]]
    return [rule for rule in found if kind in rule]


def cases(name: str) -> dict[str, dict[str, Any]]:
    """Return what is tried of a file's alerts: `alert: {fires...: case, quiet...: case}`."""
    found: dict[str, dict[str, Any]] = yaml.load(
        (CASES / name).read_text(), yaml.BaseLoader
    )  # 0x60 is no number here
    return found


def named(expression: str) -> tuple[set[str], set[str]]:
    """Return the metrics of ours, and of others, that an expression is about, those behind recorded ones included."""
    recorded = {rule["record"]: rule["expr"] for rule in rules("record")}
    for name in re.findall(r"darktree:[\w:]+", expression):
        expression += recorded[name]
    return set(re.findall(r"\bdarktree_\w+", expression)), set(re.findall(r"\bkubelet_\w+", expression))


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))
def test_an_alert_is_about_metrics_and_labels_that_exist(rule: dict[str, Any]) -> None:
    known = exposed.ours()
    ours, others = named(rule["expr"])
    assert ours | others, "an alert without a metric"
    assert ours <= set(known)
    assert others <= OTHERS
    labels = set.union(set(OTHERS_LABELS), *(known[name] for name in ours))
    used = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
    grouped = re.findall(r"(?:by|on) \(([^)]*)\)", rule["expr"])
    assert used | {label.strip() for group in grouped for label in group.split(",")} <= labels


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))
def test_an_alert_has_a_severity_and_a_runbook(rule: dict[str, Any]) -> None:
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert re.fullmatch(r"[0-9]+[mh]", rule.get("for", "1m"))
    assert rule["annotations"]["runbook"] == f"{RUNBOOKS}#{rule['alert'].lower()}"
    assert f"\n## {rule['alert']}\n\n" in (ROOT / RUNBOOKS).read_text()


def test_no_runbook_is_for_an_alert_that_is_gone() -> None:
    titles = set(re.findall(r"^## (Darktree\w+)$", (ROOT / RUNBOOKS).read_text(), re.MULTILINE))
    assert titles == {rule["alert"] for rule in rules()}


def test_no_alert_speaks_of_a_customer() -> None:
    assert not [
        rule for rule in rules() if "customer" in named(rule["expr"])[0] or "customer_id" in str(rule)
    ]


@pytest.mark.parametrize("name", FILES)
def test_every_alert_is_tried_when_it_must_fire_and_when_it_must_not(name: str) -> None:
    document = yaml.safe_load((RULES / name).read_text())
    alerts = {rule["alert"] for group in document["groups"] for rule in group["rules"] if "alert" in rule}
    tried = cases(name)
    assert set(tried) == alerts
    for found in tried.values():
        assert {"fires", "quiet"} <= set(found)
        assert all(bool(case.get("alerts")) == kind.startswith("fires") for kind, case in found.items())


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not on PATH")
@pytest.mark.parametrize("name", FILES)
def test_prometheus_takes_the_rules(name: str) -> None:
    assert PROMTOOL is not None
    subprocess.run([PROMTOOL, "check", "rules", str(RULES / name)], check=True, capture_output=True)


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not on PATH")
@pytest.mark.parametrize("name", FILES)
def test_alerts_fire_and_stay_quiet_as_they_should(name: str, tmp_path: Path) -> None:
    assert PROMTOOL is not None
    severities = {rule["alert"]: rule["labels"]["severity"] for rule in rules()}
    document = {
        "rule_files": [str(RULES / name)],
        "evaluation_interval": "1m",
        "tests": [
            _promtools_test(alert, severities[alert], case)
            for alert, found in cases(name).items()
            for case in found.values()
        ],
    }
    file = tmp_path / "tests.yaml"
    file.write_text(json.dumps(document))
    ran = subprocess.run([PROMTOOL, "test", "rules", str(file)], check=False, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def _promtools_test(alert: str, severity: str, case: dict[str, Any]) -> dict[str, Any]:
    expected = [
        {
            "exp_labels": {"severity": severity, **one["labels"]},
            "exp_annotations": {"summary": one["says"], "runbook": f"{RUNBOOKS}#{alert.lower()}"},
        }
        for one in case.get("alerts", ())
    ]
    series = [{"series": name, "values": str(values)} for name, values in case["series"].items()]
    return {
        "interval": case.get("interval", "1m"),
        "input_series": series,
        "alert_rule_test": [{"eval_time": case["after"], "alertname": alert, "exp_alerts": expected}],
    }
