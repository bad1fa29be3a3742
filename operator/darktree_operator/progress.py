"""How a lane's pods are doing: counts by revision, what each pod waits for, and how the last engine ended. Pure."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from darktree_operator import instants
from darktree_operator.diagnosis import diagnose
from darktree_operator.lane import REVISION_LABEL, Object
from darktree_operator.observed import Observed
from darktree_operator.pod import COMPONENT_LABEL, CONTAINER, ENGINE_COMPONENT
from darktree_operator.reasons import Reason

MAX_MESSAGE_CHARACTERS = 1024
LOST_AFTER_SECONDS = 60  # past its grace a pod that is still there has a node that does not answer

_PULL = frozenset(
    {"ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"}
)
_ENDED = frozenset({"Failed", "Succeeded"})
_EXTENDED = re.compile(r"(\d+) Insufficient ([a-z0-9.-]+/[\w.-]+)")
_VOLUME = re.compile(
    r"unbound immediate PersistentVolumeClaims|persistentvolumeclaim .*(not found|being deleted)"
    r"|volume node affinity conflict|didn't find available persistent volumes|node\(s\) unavailable due to .*volume",
    re.IGNORECASE,
)
# The first of these that some pod has is what the lane tells.
_ORDER = (
    Reason.KV_CACHE_TOO_SMALL,
    Reason.GPU_OUT_OF_MEMORY,
    Reason.HOST_OUT_OF_MEMORY,
    Reason.UNSUPPORTED_FLAG,
    Reason.UNSUPPORTED_MODEL,
    Reason.MODEL_NOT_FOUND,
    Reason.INVALID_SPEC,
    Reason.GPU_UNAVAILABLE,
    Reason.DISK_FULL,
    Reason.DOWNLOAD_FAILED,
    Reason.STARTUP_TIMEOUT,
    Reason.CRASH_LOOP,
    Reason.SECRET_MISSING,
    Reason.IMAGE_PULL_FAILED,
    Reason.NODE_LOST,
    Reason.EVICTED,
    Reason.VOLUME_UNBINDABLE,
    Reason.INSUFFICIENT_GPU,
    Reason.UNSCHEDULABLE,
    Reason.UNHEALTHY,
    Reason.LOADING_MODEL,
    Reason.STARTING,
    Reason.DRAINING,
)


@dataclass(frozen=True, slots=True)
class Problem:
    """Why something is not as it should be."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Failure:
    """How an engine ended by itself."""

    reason: Reason
    pod: str
    exit_code: int
    message: str
    hint: str
    count: int
    at: datetime | None


@dataclass(frozen=True, slots=True)
class Pod:
    """One engine's pod. `problem` is None once it is ready."""

    name: str
    revision: str
    node: str
    ready: bool
    going: bool
    problem: Problem | None
    failure: Failure | None
    found: Object


@dataclass(frozen=True, slots=True)
class Progress:
    """A lane's Deployment and pods in numbers."""

    deployment: Object | None
    pods: tuple[Pod, ...]
    observed_newest: bool
    """Whether the Deployment's controller has seen its newest template."""
    replicas: int
    updated: int
    ready: int
    available: int
    late: bool
    """Whether the Deployment's progress deadline has passed."""
    refused: Problem | None
    """Why the Deployment may not make pods: a quota, or an admission rule."""
    applied: str
    """The revision in the Deployment's template."""

    def problem(self, revision: str | None = None) -> Problem | None:
        """Return the most telling problem of the pods, of one revision if it is named."""
        found = [
            pod.problem
            for pod in self.pods
            if pod.problem is not None and (revision is None or pod.revision == revision)
        ]
        return min(found, key=lambda problem: _ORDER.index(problem.reason), default=None)

    def failure(self) -> Failure | None:
        """Return how the last engine ended by itself."""
        ended = [pod.failure for pod in self.pods if pod.failure is not None]
        return max(ended, key=lambda failure: instants.text(failure.at) if failure.at else "", default=None)


def progress(observed: Observed) -> Progress:
    """Return how a lane is doing."""
    deployment = observed.deployments[0] if observed.deployments else None
    status = (deployment or {}).get("status") or {}
    metadata = (deployment or {}).get("metadata") or {}
    template = (((deployment or {}).get("spec") or {}).get("template") or {}).get("metadata") or {}
    conditions = {each["type"]: each for each in status.get("conditions") or ()}
    late = conditions.get("Progressing", {}).get("reason") == "ProgressDeadlineExceeded"
    # An ended pod stays to be read; once another took its place it tells nothing any more.
    wanted = ((deployment or {}).get("spec") or {}).get("replicas", 1)
    replaced = _ENDED if int(status.get("availableReplicas") or 0) >= wanted else ()
    replica_failure = conditions.get("ReplicaFailure", {})
    refused = None
    if replica_failure.get("status") == "True":
        refused = Problem(Reason.QUOTA_EXCEEDED, _short(replica_failure.get("message")))
    return Progress(
        deployment=deployment,
        pods=tuple(
            look_at(pod, observed.now)
            for pod in sorted(observed.pods, key=lambda pod: str(pod["metadata"]["name"]))
            if _label(pod, COMPONENT_LABEL) in {"", ENGINE_COMPONENT}
            and (pod.get("status") or {}).get("phase") not in replaced
        ),
        observed_newest=int(status.get("observedGeneration") or 0) >= int(metadata.get("generation") or 1),
        replicas=int(status.get("replicas") or 0),
        updated=int(status.get("updatedReplicas") or 0),
        ready=int(status.get("readyReplicas") or 0),
        available=int(status.get("availableReplicas") or 0),
        late=late,
        refused=refused,
        applied=str((template.get("labels") or {}).get(REVISION_LABEL) or ""),
    )


def look_at(pod: Object, now: datetime) -> Pod:
    """Return what one pod does."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    conditions = {each["type"]: each for each in status.get("conditions") or ()}
    ready = conditions.get("Ready", {}).get("status") == "True"
    going = bool(metadata.get("deletionTimestamp"))
    container = _container(status)
    failure = None if going else _failure(pod, container)
    return Pod(
        name=metadata["name"],
        revision=_label(pod, REVISION_LABEL),
        node=str((pod.get("spec") or {}).get("nodeName") or ""),
        ready=ready and not going,
        going=going,
        problem=_going(pod, now)
        if going
        else None
        if ready
        else _problem(pod, conditions, container, failure),
        failure=failure,
        found=pod,
    )


def _going(pod: Object, now: datetime) -> Problem:
    until = instants.parse(pod["metadata"].get("deletionTimestamp"))
    if until is not None and now - until > timedelta(seconds=LOST_AFTER_SECONDS):
        node = (pod.get("spec") or {}).get("nodeName") or "its node"
        return Problem(
            Reason.NODE_LOST, f"{pod['metadata']['name']} should have ended; {node} does not say so."
        )
    return Problem(Reason.DRAINING, f"{pod['metadata']['name']} finishes what it serves.")


def _problem(
    pod: Object, conditions: dict[str, Object], container: Object, failure: Failure | None
) -> Problem:
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    reason = str(status.get("reason") or "")
    if reason == "Evicted":
        return Problem(Reason.EVICTED, _short(f"{name}: {status.get('message') or 'evicted'}"))
    if reason in {"NodeLost", "NodeAffinity", "NodeShutdown"}:
        return Problem(Reason.NODE_LOST, _short(f"{name}: {status.get('message') or reason}"))
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        return _unscheduled(str(scheduled.get("message") or scheduled.get("reason") or ""))
    state = container.get("state") or {}
    waiting = state.get("waiting") or {}
    if waiting.get("reason") in _PULL:
        return Problem(
            Reason.IMAGE_PULL_FAILED, _short(f"{name}: {waiting.get('message') or waiting['reason']}")
        )
    if waiting.get("reason") == "CreateContainerConfigError":
        return Problem(Reason.SECRET_MISSING, _short(f"{name}: {waiting.get('message')}"))
    if failure is not None:
        hint = f" {failure.hint}" if failure.hint else ""
        return Problem(
            failure.reason, _short(f"{name} ended {failure.count} times:{hint or ' ' + failure.message}")
        )
    if waiting.get("reason") in {"CreateContainerError", "RunContainerError"}:
        return Problem(Reason.CRASH_LOOP, _short(f"{name}: {waiting.get('message')}"))
    running = state.get("running")
    if running is None:
        return Problem(Reason.STARTING, _short(f"{name}: {waiting.get('reason') or 'waiting for its node'}"))
    if container.get("ready"):
        # Only a node's own controller says that a pod with a ready container is not ready.
        return Problem(
            Reason.NODE_LOST, f"{name}: {(pod.get('spec') or {}).get('nodeName')} does not answer."
        )
    began = instants.parse(running.get("startedAt"))
    flipped = instants.parse(conditions.get("Ready", {}).get("lastTransitionTime"))
    if container.get("started") and began and flipped and flipped > began + timedelta(seconds=1):
        return Problem(Reason.UNHEALTHY, f"{name} no longer answers its probe.")
    return Problem(Reason.LOADING_MODEL, f"{name} is loading its model.")


def _unscheduled(message: str) -> Problem:
    if _EXTENDED.search(message):
        return Problem(Reason.INSUFFICIENT_GPU, _short(message))
    if _VOLUME.search(message):
        return Problem(Reason.VOLUME_UNBINDABLE, _short(message))
    return Problem(Reason.UNSCHEDULABLE, _short(message))


def _failure(pod: Object, container: Object) -> Failure | None:
    ended = (container.get("state") or {}).get("terminated") or (container.get("lastState") or {}).get(
        "terminated"
    )
    if not ended:
        return None
    words = str(ended.get("message") or "")
    exit_code = int(ended.get("exitCode") or 0)
    found = diagnose(words, exit_code, str(ended.get("reason") or ""))
    reason, hint = (found.reason, found.hint) if found else (Reason.CRASH_LOOP, "")
    if found is None and _took_too_long(pod, ended):
        reason = Reason.STARTUP_TIMEOUT
        hint = "raise spec.coldStart.startupTimeoutSeconds, or see what the engine waits for"
    return Failure(
        reason=reason,
        pod=pod["metadata"]["name"],
        exit_code=exit_code,
        message=words[-MAX_MESSAGE_CHARACTERS:] or f"ended with exit code {exit_code} and no words",
        hint=hint,
        count=max(1, int(container.get("restartCount") or 0)),
        at=instants.parse(ended.get("finishedAt")),
    )


def _took_too_long(pod: Object, ended: Object) -> bool:
    """Whether it was stopped because it did not answer its startup probe in time."""
    began, finished = instants.parse(ended.get("startedAt")), instants.parse(ended.get("finishedAt"))
    containers = (pod.get("spec") or {}).get("containers") or ()
    probe = next((each.get("startupProbe") for each in containers if each["name"] == CONTAINER), None)
    if began is None or finished is None or not probe or ended.get("exitCode") not in {0, 137, 143}:
        return False
    allowed = int(probe.get("periodSeconds") or 10) * (int(probe.get("failureThreshold") or 3) - 1)
    return finished - began >= timedelta(seconds=allowed)


def _container(status: Object) -> Object:
    found: Iterable[Object] = status.get("containerStatuses") or ()
    return next((each for each in found if each.get("name") == CONTAINER), {})


def _label(found: Object, name: str) -> str:
    return str((found["metadata"].get("labels") or {}).get(name) or "")


def _short(message: object) -> str:
    return str(message or "")[:MAX_MESSAGE_CHARACTERS]
