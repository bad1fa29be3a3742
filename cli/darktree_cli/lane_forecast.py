"""What a lane's document would do to a cluster: its objects, what changes, and what that costs in GPUs and downtime.

It plans with the operator's own pure function, on what is observed; it decides nothing itself.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from darktree_operator.config import OperatorConfig
from darktree_operator.drift import differences, projection
from darktree_operator.lane import KIND, InvalidLane, LaneSpec, Object, parse
from darktree_operator.observed import Observed
from darktree_operator.plan import Plan, plan
from darktree_operator.rollout import serves

MAX_DOCUMENTS = 256


class LaneFileError(ValueError):
    """A file holds no lane that can be read; the message says where."""


@dataclass(frozen=True)
class Change:
    """What would happen to one object; `paths` are the fields that would become others."""

    verb: str
    kind: str
    name: str
    paths: tuple[str, ...] = ()


@dataclass(frozen=True)
class Forecast:
    """What applying a lane would do."""

    lane: str
    plan: Plan
    changes: tuple[Change, ...]
    gpus_now: int
    gpus_then: int
    replaces_pods: bool
    downtime: str


def read_documents(path: Path, namespace: str | None) -> list[Object]:
    """Return the lanes in a file, in the namespace that is asked for unless they name one. Raises LaneFileError."""
    try:
        documents = [document for document in yaml.safe_load_all(path.read_text()) if document is not None]
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise LaneFileError(f"{path} cannot be read: {error}") from error
    lanes = [each for each in documents if isinstance(each, dict) and each.get("kind") == KIND]
    if not lanes or len(lanes) > MAX_DOCUMENTS:
        raise LaneFileError(
            f"{path} must hold 1 to {MAX_DOCUMENTS} documents of kind {KIND}, not {len(lanes)}"
        )
    for lane in lanes:
        metadata = lane.setdefault("metadata", {})
        metadata.setdefault("namespace", namespace or "default")
    return lanes


def wanted_replicas(spec: LaneSpec) -> int:
    """Return how many replicas a lane begins with."""
    if spec.suspend:
        return 0
    return spec.autoscaling.min_replicas if spec.autoscaling else spec.replicas


def every_object(lane: Object, config: OperatorConfig, now: datetime) -> Plan:
    """Return the plan of a new lane with every object that it ever gets, as if its model were already there."""
    seen = Observed(lane=lane, config=config, now=now, secret_hashes=_any_secret(lane))
    first = plan(seen, _replicas(lane))
    jobs = [each for each in first.objects if each["kind"] == "Job"]
    if first.refusals or not jobs:
        return first
    complete = {"status": {"conditions": [{"type": "Complete", "status": "True"}]}}
    later = plan(replace(seen, jobs=tuple(job | complete for job in jobs)), _replicas(lane))
    claims = [each for each in later.objects if each["kind"] == "PersistentVolumeClaim"]
    others = [each for each in later.objects if each["kind"] != "PersistentVolumeClaim"]
    return replace(later, objects=(*claims, *jobs, *others))


def forecast(observed: Observed) -> Forecast:
    """Return what would happen if the lane that is observed were applied as it is now."""
    live = _by_place(observed)
    deployment = next(iter(observed.deployments), None)
    replicas = _replicas(observed.lane)
    made = plan(observed, replicas)
    changes = [_change(wanted, live) for wanted in made.objects]
    changes += [Change("delete", gone.kind, gone.name) for gone in made.deletions]
    wanted = next((each for each in made.objects if each["kind"] == "Deployment"), None)
    after = wanted or deployment or _later(made, replicas)
    replaces = bool(
        deployment and wanted and _revision(deployment) != _revision(wanted) and _count(deployment) > 0
    )
    return Forecast(
        lane=str(observed.lane["metadata"]["name"]),
        plan=made,
        changes=tuple(change for change in changes if change is not None),
        gpus_now=_gpus(deployment),
        gpus_then=_gpus(after),
        replaces_pods=replaces,
        downtime=_downtime(observed, after, replaces=replaces),
    )


def _later(made: Plan, replicas: int) -> Object | None:
    """The Deployment that comes once the model is there, as far as it can be counted."""
    kept = next((each for each in made.objects if each["kind"] == "ControllerRevision"), None)
    if kept is None or not made.waiting_for_model:
        return None
    return {"spec": {"replicas": replicas, "template": kept["data"]["template"]}}


def manifests(objects: Iterable[Object]) -> str:
    """Return objects as YAML without anchors, as kubectl takes them."""
    plain = [json.loads(json.dumps(each)) for each in objects]
    return yaml.safe_dump_all(plain, sort_keys=False, width=110)


def _change(wanted: Object, live: Mapping[tuple[str, str], Object]) -> Change | None:
    kind, name = wanted["kind"], wanted["metadata"]["name"]
    found = live.get((kind, name))
    if found is None:
        return Change("create", kind, name)
    paths = differences(projection(wanted, found), projection(wanted, wanted))
    return Change("change", kind, name, tuple(paths)) if paths else None


def _by_place(observed: Observed) -> dict[tuple[str, str], Object]:
    kinds = (observed.deployments, observed.jobs, observed.volume_claims, observed.revisions, observed.others)
    return {(each["kind"], each["metadata"]["name"]): each for group in kinds for each in group}


def _downtime(observed: Observed, after: Object | None, *, replaces: bool) -> str:
    spec = parse(observed.lane).spec if not _invalid(observed.lane) else None
    if not replaces or after is None or spec is None:
        return "none"
    if not serves(observed):
        return "none: nothing serves now"
    strategy = after["spec"]["strategy"]
    measured = ((observed.lane.get("status") or {}).get("coldStart") or {}).get("lastTotalSeconds")
    start = (
        f"{measured} s, as last measured"
        if measured
        else f"up to {spec.cold_start.startup_timeout_seconds} s"
    )
    drain = spec.drain.grace_period_seconds
    if strategy["type"] == "Recreate":
        return f"the drain of at most {drain} s and the start of {start}"
    if strategy["rollingUpdate"]["maxUnavailable"]:
        return f"none, but one replica fewer while each drains (at most {drain} s) and starts ({start})"
    return "none"


def _replicas(lane: Object) -> int:
    return 0 if _invalid(lane) else wanted_replicas(parse(lane).spec)


def _invalid(lane: Object) -> bool:
    try:
        parse(lane)
    except InvalidLane:
        return True
    return False


def _any_secret(lane: Object) -> dict[str, str]:
    """Whatever secrets a lane names, as if they existed: nothing is asked of a cluster."""
    named = ((lane.get("spec") or {}).get("secrets") or {}).values()
    keys = [key for key in named if isinstance(key, dict)]
    return {f"{key.get('name')}/{key.get('key')}": "" for key in keys}


def _revision(deployment: Object) -> Any:
    return deployment["spec"]["template"]["metadata"].get("labels", {}).get("darktree.dev/revision")


def _count(deployment: Object) -> int:
    return int(deployment["spec"].get("replicas", 1))


def _gpus(deployment: Object | None) -> int:
    if deployment is None:
        return 0
    limits = deployment["spec"]["template"]["spec"]["containers"][0].get("resources", {}).get("limits", {})
    each = sum(int(value) for name, value in limits.items() if "/" in name)
    return each * _count(deployment)
