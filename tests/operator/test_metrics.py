"""What the operator tells of a lane: all that its status says, and nothing of a lane that is gone."""

from prometheus_client import REGISTRY

from darktree_operator import metrics

STATUS = {
    "desiredReplicas": 2,
    "availableReplicas": 1,
    "conditions": [{"type": "GPUAvailable", "status": "False", "reason": "InsufficientGPU"}],
    "gpu": {"perReplica": 2, "requested": 4, "allocated": 2},
    "coldStart": {
        "lastTotalSeconds": 140,
        "phases": {"scheduleSeconds": 2, "pullSeconds": 30, "loadSeconds": 108},
    },
}


def sample(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(f"darktree_lane_{name}", {"namespace": "told", "lane": "oak", **labels})


def test_a_lanes_gpus_and_its_cold_start_are_told_and_forgotten() -> None:
    metrics.tell("told", "oak", STATUS)
    assert sample("condition", type="GPUAvailable", reason="InsufficientGPU") == 0
    assert [sample("gpus", state=state) for state in ("requested", "allocated")] == [4, 2]
    assert [sample("replicas", state=state) for state in ("desired", "available")] == [2, 1]
    phases = ("total", "schedule", "pull", "load")
    assert [sample("cold_start_seconds", phase=phase) for phase in phases] == [140, 2, 30, 108]
    metrics.forget("told", "oak")
    names = {
        metric.name
        for metric in REGISTRY.collect()
        for each in metric.samples
        if each.labels.get("namespace") == "told"
    }
    assert not {name for name in names if name.startswith("darktree_lane_")}


def test_a_lane_without_gpus_or_a_start_has_none() -> None:
    metrics.tell("told", "oak", {})
    assert sample("gpus", state="requested") == 0
    assert sample("cold_start_seconds", phase="total") is None
    metrics.forget("told", "oak")
