"""What the status tells beside its conditions: the engine's own words, the phases of a start, an upgrade's progress."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from darktree_operator.autoscaling import Scaling
from darktree_operator.config import read_config
from darktree_operator.lane import REVISION_LABEL, Object, parse
from darktree_operator.observed import EngineFacts, Observed
from darktree_operator.plan import Plan, Rollout
from darktree_operator.reasons import Reason
from darktree_operator.signals import parse_engines
from darktree_operator.status import Outcome, status_of

CONFIG = read_config(Path(__file__).parents[2] / "examples" / "operator.yaml")
NOW = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)
ADDRESS = "http://10.244.0.7:8000"
FACTS = EngineFacts("0.32.0", 4096, 35840, "8.75")


def instant(seconds: float) -> str:
    return (NOW - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def pod(revision: str = "new", address: str = "10.244.0.7", **metadata: Any) -> Object:
    """A pod that was made 130 s ago, placed after 5, started after 30 more, and is ready since 10."""
    since = {"PodScheduled": instant(125), "Ready": instant(10)}
    conditions = [{"type": kind, "status": "True", "lastTransitionTime": at} for kind, at in since.items()]
    container = {"name": "engine", "ready": True, "state": {"running": {"startedAt": instant(95)}}}
    labels = {REVISION_LABEL: revision, "app.kubernetes.io/component": "engine"}
    return {
        "metadata": {"name": f"pod-{revision}", "labels": labels, "creationTimestamp": instant(130)}
        | metadata,
        "spec": {"nodeName": "n", "containers": [{"name": "engine"}]},
        "status": {"podIP": address, "conditions": conditions, "containerStatuses": [container]},
    }


def look(before: Object | None = None, rollout: Rollout | None = None, **seen: Any) -> Object:
    """The status of a lane whose Deployment serves revision `new`."""
    template = {"metadata": {"labels": {REVISION_LABEL: "new"}}, "spec": {"containers": []}}
    counts = {"replicas": 1, "updatedReplicas": 1, "readyReplicas": 1, "availableReplicas": 1}
    deployment = {
        "metadata": {"name": "oak", "generation": 1},
        "spec": {"template": template},
        "status": {"observedGeneration": 1, **counts},
    }
    model = {"source": "pvc://models/oak", "servedName": "oak"}
    lane = {
        "metadata": {"name": "oak", "namespace": "lanes", "uid": "u", "generation": 1},
        "spec": {"tier": "Standard", "model": model},
        "status": before or {},
    }
    observed = replace(Observed(lane, CONFIG, NOW, deployments=(deployment,), pods=(pod(),)), **seen)
    plan = Plan(rollout=rollout or Rollout("new", "new", "Complete"))
    return status_of(observed, parse(lane), plan, Scaling(1, 1, Reason.AS_EXPECTED, ""), Outcome())


def test_the_engine_of_the_serving_revision_says_what_it_is() -> None:
    others = {"http://10.244.0.9:8000": EngineFacts("0.31.0")}
    assert look(engines={**others, ADDRESS: FACTS})["engine"] == {
        "version": "0.32.0",
        "maxModelLen": 4096,
        "kvCacheTokens": 35840,
        "maxConcurrency": "8.75",
    }
    assert look(engines={ADDRESS: EngineFacts("0.32.0")})["engine"] == {"version": "0.32.0"}
    assert "engine" not in look(engines=others)


def test_what_an_engine_said_stays_while_gateways_are_silent_and_goes_with_its_revision() -> None:
    before = look(engines={ADDRESS: FACTS})
    assert look(before)["engine"] == before["engine"]
    assert "engine" not in look({**before, "serving": {"revisionHash": "old"}})


def test_a_gateways_metrics_name_engines_and_what_they_say() -> None:
    line = (
        'darktree_lane_engine_info{endpoint="http://10.244.0.7:8000",kv_cache_tokens="35840",lane="oak",'
        'max_concurrency="8.75",max_model_len="4096",version="0.32.0"} 1.0'
    )
    quiet = line.replace('"35840"', '""').replace('"4096"', '"many"').replace('"8.75"', '""')
    assert parse_engines(f"# HELP x\n{line}\n") == {"oak": {ADDRESS: FACTS}}
    assert parse_engines(f"{quiet}\n") == {"oak": {ADDRESS: EngineFacts("0.32.0")}}
    assert parse_engines('darktree_lane_in_flight{lane="oak"} 1.0\n') == {}


def test_a_start_is_told_by_its_phases_and_the_download_before_it_is_no_part_of_the_total() -> None:
    phases = {"scheduleSeconds": 5, "pullSeconds": 30, "loadSeconds": 85}
    assert look()["coldStart"] == {"lastTotalSeconds": 120, "phases": phases}
    job = {"metadata": {"name": "j"}, "status": {"startTime": instant(900), "completionTime": instant(200)}}
    fetched = look(jobs=(job,))["coldStart"]
    assert fetched == {"lastTotalSeconds": 120, "phases": phases | {"downloadSeconds": 700}}
    unfinished = {"metadata": {"name": "j"}, "status": {"startTime": instant(900)}}
    assert "downloadSeconds" not in look(jobs=(unfinished,))["coldStart"]["phases"]


def test_an_old_start_is_not_measured_anew() -> None:
    before = {"readyReplicas": 1, "coldStart": {"lastTotalSeconds": 77}}
    assert look(before)["coldStart"] == {"lastTotalSeconds": 77}


@pytest.mark.parametrize(
    ("before", "rollout", "upgrades", "outdated"),
    [
        ({}, Rollout("new", "new", "Complete"), None, 0),
        ({}, Rollout("newer", "new", "Deferred", template_outdated=True), None, 1),
        ({}, Rollout("newer", "newer", "Progressing", template_outdated=True), True, 1),
        ({"state": "Progressing", "upgrade": True}, Rollout("new", "new", "Progressing"), True, 0),
        ({"state": "Progressing"}, Rollout("new", "new", "Progressing"), None, 0),
        ({"state": "Deferred", "upgrade": True}, Rollout("new", "new", "Progressing"), None, 0),
    ],
)
def test_an_upgrade_is_marked_until_it_is_done_and_outdated_engines_are_counted(
    before: Object, rollout: Rollout, upgrades: bool | None, outdated: int
) -> None:
    annotated = pod(annotations={"darktree.dev/template-version": "1"})
    status = look({"rollout": before}, rollout, pods=(annotated,))
    assert status["rollout"].get("upgrade") == upgrades
    assert status["template"]["outdatedReplicas"] == outdated
