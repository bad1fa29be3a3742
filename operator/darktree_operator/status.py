"""A lane's whole status, from what was observed and planned: pure.

What is absent was not reported; it is never zero.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from darktree_operator import instants
from darktree_operator.arguments import PORT
from darktree_operator.autoscaling import Scaling
from darktree_operator.conditions import Facts, conditions
from darktree_operator.diagnosis import diagnose
from darktree_operator.lane import LANE_LABEL, Lane, Object
from darktree_operator.observed import Observed
from darktree_operator.plan import Plan
from darktree_operator.pod import (
    COMPONENT_LABEL,
    CONTAINER,
    DOWNLOAD_COMPONENT,
    TEMPLATE_VERSION,
    TEMPLATE_VERSION_ANNOTATION,
    selector,
)
from darktree_operator.progress import Pod, Problem, Progress, progress
from darktree_operator.reasons import Reason
from darktree_operator.starts import cold_start, container_status, engine

MAX_HISTORY = 5
MAX_WORDS_BYTES = 1024
MAX_TEXT_CHARACTERS = 256

_EMPTY: Object = {}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of applying a plan."""

    refused: Problem | None = None
    queue_position: int | None = None
    """This lane's place among those that wait for the same class of GPUs, from 1."""


def status_of(
    observed: Observed, lane: Lane | None, plan: Plan, scaling: Scaling, outcome: Outcome
) -> Object:
    """Return the status to write. `lane` is None when the document cannot be read, which the plan then refuses."""
    before: Object = observed.lane.get("status") or {}
    seen = progress(observed)
    gpus = _gpus_per_replica(seen.deployment)
    facts = Facts(
        generation=int(observed.lane["metadata"].get("generation") or 0),
        plan=plan,
        scaling=scaling,
        progress=seen,
        refused=outcome.refused,
        needs_gpu=bool(gpus)
        or (seen.deployment is None and lane is not None and lane.spec.accelerator is not None),
        caches_model=bool(observed.jobs) or plan.waiting_for_model,
        download=_download(observed) if plan.waiting_for_model else None,
    )
    made = conditions(facts, before.get("conditions") or (), observed.now)
    said = {each["type"]: each for each in made}
    serving = _serving(before, seen, lane, observed.now)
    status: Object = {
        "observedGeneration": facts.generation,
        "phase": _phase(said),
        "desiredReplicas": scaling.replicas,
        "replicas": seen.replicas,
        "updatedReplicas": seen.updated if facts.progress.applied == facts.target else 0,
        "readyReplicas": seen.ready,
        "availableReplicas": seen.available,
        "selector": ",".join(
            f"{name}={value}" for name, value in sorted(selector(observed.lane["metadata"]["name"]).items())
        ),
        "serving": serving,
        "target": _target(before, facts, lane, observed.now),
        "rollout": _rollout(before, facts, observed.now),
        "template": _template(seen, plan),
        "gpu": _gpu(gpus, facts, outcome),
        "engine": engine(before, serving, observed, seen),
        "coldStart": cold_start(before, observed, seen),
        "lastFailure": _last_failure(before, seen),
        "secretHashes": dict(observed.secret_hashes) or None,
        "endpoint": _endpoint(observed),
        "history": _history(before, facts, serving, observed.now),
        "scaling": _scaling(scaling),
        "conditions": made,
    }
    if "endpoints" in before:
        status["endpoints"] = before["endpoints"]  # written by whoever runs engines outside the cluster
    return {name: value for name, value in status.items() if value is not None}


def changes(before: Object, after: Object) -> Object:
    """Return the merge patch that makes one status the other, empty when nothing changed."""
    changed = {name: value for name, value in after.items() if before.get(name) != value}
    changed = {name: _merged(before.get(name), value) for name, value in changed.items()}
    return changed | {name: None for name in before if name not in after}


def _merged(before: object, after: object) -> object:
    """A merge patch keeps members that it does not name: name those that went."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        gone = {name: None for name in before if name not in after}
        return {name: _merged(before.get(name), value) for name, value in after.items()} | gone
    return after


def _phase(said: Mapping[str, Object]) -> str:
    def holds(name: str) -> bool:
        return bool(said[name]["status"] == "True")

    ready = said["Ready"]["reason"]
    if holds("Suspended"):
        return "Suspended"
    if ready == Reason.ASLEEP:
        return "Asleep"
    if holds("Stalled") and not holds("Available"):
        return "Failed"
    if holds("Ready"):
        return "Degraded" if holds("Degraded") else "Ready"
    if ready == Reason.INSUFFICIENT_GPU:
        return "WaitingForGPU"
    if holds("Degraded"):
        return "Degraded"
    if holds("Available"):
        return "RollingOut"
    return (
        "Loading" if ready in {Reason.LOADING_MODEL, Reason.DOWNLOADING_MODEL, Reason.WAKING} else "Pending"
    )


def _serving(before: Object, seen: Progress, lane: Lane | None, now: datetime) -> Object | None:
    """The newest revision that has a ready pod."""
    known: Object | None = before.get("serving")
    ready = [pod for pod in seen.pods if pod.ready]
    if not ready:
        return None
    applied = [pod for pod in ready if pod.revision == seen.applied]
    pod = (applied or sorted(ready, key=lambda pod: str(pod.found["metadata"].get("creationTimestamp"))))[-1]
    if known is not None and known.get("revisionHash") == pod.revision and known.get("imageDigest"):
        return known
    since = (known or _EMPTY).get("since") if (known or _EMPTY).get("revisionHash") == pod.revision else None
    made: Object = {"revisionHash": pod.revision, "since": since or instants.text(now)}
    image = container_status(pod).get("imageID")
    if image:
        made["imageDigest"] = str(image)[:512]
    target: Object = before.get("target") or {}
    if target.get("revisionHash") == pod.revision:
        made |= {name: target[name] for name in ("modelRevision", "contextLength") if name in target}
    elif lane is not None and pod.revision == seen.applied:
        made |= _of_lane(lane)
    return made


def _target(before: Object, facts: Facts, lane: Lane | None, now: datetime) -> Object | None:
    known: Object | None = before.get("target")
    rollout = facts.plan.rollout
    if rollout is None or lane is None:
        return known
    if known is not None and known.get("revisionHash") == rollout.target:
        return known
    return {"revisionHash": rollout.target, "since": instants.text(now), **_of_lane(lane)}


def _of_lane(lane: Lane) -> Object:
    made: Object = {}
    if lane.spec.model.revision is not None:
        made["modelRevision"] = lane.spec.model.revision
    if lane.spec.engine.context_length is not None:
        made["contextLength"] = lane.spec.engine.context_length
    return made


def _rollout(before: Object, facts: Facts, now: datetime) -> Object | None:
    known: Object = before.get("rollout") or {}
    rollout = facts.plan.rollout
    if rollout is None:
        return known or None
    state = rollout.state
    if state == "Complete" and not facts.rolled_out and facts.scaling.replicas:
        state = "Progressing"
    made: Object = {"state": state}
    if state == "Progressing":
        if rollout.template_outdated or (known.get("state") == state and known.get("upgrade")):
            made["upgrade"] = True
        started = known.get("startedAt") if known.get("state") == "Progressing" else None
        made["startedAt"] = started or instants.text(now)
        allowed = ((facts.progress.deployment or {}).get("spec") or {}).get("progressDeadlineSeconds")
        began = instants.parse(made["startedAt"])
        if allowed and began:
            made["deadline"] = instants.text(began + timedelta(seconds=int(allowed)))
    if state == "Deferred":
        made["deferredReason"] = rollout.reason
        if rollout.until is not None:
            made["deferredUntil"] = instants.text(rollout.until)
    return made


def _template(seen: Progress, plan: Plan) -> Object | None:
    if seen.deployment is None:
        return None
    template = seen.deployment["spec"].get("template") or {}
    target = plan.rollout.target if plan.rollout is not None and plan.rollout.template_outdated else None

    def version(metadata: Object) -> int:
        return int((metadata.get("annotations") or {}).get(TEMPLATE_VERSION_ANNOTATION) or 0)

    outdated = sum(
        version(pod.found["metadata"]) < TEMPLATE_VERSION or (target is not None and pod.revision != target)
        for pod in seen.pods
        if not pod.going
    )
    return {
        "version": version(template.get("metadata") or {}),
        "latestVersion": TEMPLATE_VERSION,
        "outdatedReplicas": outdated,
    }


def _gpus_per_replica(deployment: Object | None) -> dict[str, int]:
    """Return what a replica takes of each extended resource."""
    template = ((deployment or {}).get("spec") or {}).get("template") or {}
    for container in (template.get("spec") or {}).get("containers") or ():
        if container["name"] == CONTAINER:
            limits: Object = (container.get("resources") or {}).get("limits") or {}
            return {
                name: int(count) for name, count in limits.items() if "/" in name and str(count).isdigit()
            }
    return {}


def _gpu(gpus: Mapping[str, int], facts: Facts, outcome: Outcome) -> Object | None:
    each = sum(gpus.values())
    if not each:
        return None
    placed = sum(bool(pod.node) for pod in facts.progress.pods if _holds(pod))
    made: Object = {
        "perReplica": each,
        "requested": each * facts.scaling.replicas,
        "allocated": each * placed,
    }
    lacking = [
        pod.problem
        for pod in facts.progress.pods
        if pod.problem is not None and pod.problem.reason is Reason.INSUFFICIENT_GPU
    ]
    if lacking:
        what = ", ".join(f"{count} {name}" for name, count in sorted(gpus.items()))
        made["waitingFor"] = f"{what} for each of {len(lacking)} replicas"[:MAX_TEXT_CHARACTERS]
        made["schedulerMessage"] = lacking[0].message
        if outcome.queue_position is not None:
            made["queuePosition"] = outcome.queue_position
    return made


def _holds(pod: Pod) -> bool:
    return (pod.found.get("status") or {}).get("phase") not in {"Succeeded", "Failed"}


def _last_failure(before: Object, seen: Progress) -> Object | None:
    known: Object | None = before.get("lastFailure")
    failure = seen.failure()
    if failure is None:
        return known
    at = instants.text(failure.at) if failure.at else None
    if known is not None and at is not None and str(known.get("at") or "") > at:
        return known
    words = failure.message.encode()[-MAX_WORDS_BYTES:].decode("utf-8", "ignore")
    made: Object = {
        "reason": failure.reason.value,
        "pod": failure.pod,
        "exitCode": failure.exit_code,
        "message": words,
        "count": failure.count,
    }
    return made | ({"hint": failure.hint[:512]} if failure.hint else {}) | ({"at": at} if at else {})


def _download(observed: Observed) -> Problem | None:
    """Why the model's files are not there yet, from the job that fetches them and its pods' last words."""
    for pod in observed.pods:
        if (pod["metadata"].get("labels") or {}).get(COMPONENT_LABEL) != DOWNLOAD_COMPONENT:
            continue
        for container in (pod.get("status") or {}).get("containerStatuses") or ():
            ended = (container.get("state") or {}).get("terminated") or (
                container.get("lastState") or {}
            ).get("terminated")
            if ended and ended.get("exitCode"):
                found = diagnose(
                    str(ended.get("message") or ""), ended["exitCode"], str(ended.get("reason") or "")
                )
                words = str(ended.get("message") or "")[-MAX_TEXT_CHARACTERS:]
                if found is not None:
                    return Problem(found.reason, found.hint)
                return Problem(Reason.DOWNLOAD_FAILED, words or f"ended with exit code {ended['exitCode']}")
    for job in observed.jobs:
        for condition in (job.get("status") or {}).get("conditions") or ():
            if condition["type"] == "Failed" and condition["status"] == "True":
                message = str(condition.get("message") or condition.get("reason") or "")
                return Problem(Reason.DOWNLOAD_FAILED, message[:MAX_TEXT_CHARACTERS])
    return None


def _endpoint(observed: Observed) -> Object | None:
    metadata = observed.lane["metadata"]
    for each in observed.others:
        if each.get("kind") == "Service" and (each["metadata"].get("labels") or {}).get(LANE_LABEL):
            return {"url": f"http://{each['metadata']['name']}.{metadata['namespace']}.svc:{PORT}"}
    return None


def _history(before: Object, facts: Facts, serving: Object | None, now: datetime) -> list[Object] | None:
    """What became of the newest revisions: it serves, it was rolled back, or another took its place."""
    known: list[Object] = list(before.get("history") or ())
    rollout = facts.plan.rollout
    rows: list[tuple[str, str]] = []
    if rollout is not None and rollout.state == "RolledBack":
        rows.append((rollout.target, "RolledBack"))
    if serving is not None and facts.rolled_out:
        rows.append((serving["revisionHash"], "Served"))
    for revision, outcome in rows:
        newest = next((row for row in known if row["revisionHash"] == revision), None)
        if newest is None or newest["outcome"] != outcome:
            known = [row for row in known if row is not newest]
            known.insert(0, {"revisionHash": revision, "at": instants.text(now), "outcome": outcome})
    return known[:MAX_HISTORY] or None


def _scaling(scaling: Scaling) -> Object | None:
    made: Object = {}
    if scaling.last_active_at is not None:
        made["lastActiveAt"] = instants.text(scaling.last_active_at)
    if scaling.low_since is not None:
        made["lowSince"] = instants.text(scaling.low_since)
    if scaling.history:
        made["history"] = list(scaling.history)
    return made or None
