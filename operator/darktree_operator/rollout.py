"""Which revision a lane's pods are to be of: the one it asks for, the one that serves, or the last that served.

What was rolled out is remembered in ControllerRevisions, as a DaemonSet does: the template, whether it ever served, and
whether it failed. So a decision follows from what is seen, survives a restart, and never renders an old template anew.

- A change of the lane is rolled out at once, unless it is paused, waits for idle or for its window; a lane that serves
  nothing waits for nothing.
- A change that comes from the operator or its configuration alone replaces no pod, but in the lane's maintenance
  window, one lane at a time; without a window it comes with the lane's next change.
- A revision that ended `crashLimit` times without ever having served is given up for the last one that did.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from darktree_operator.children import metadata
from darktree_operator.lane import GROUP, REVISION_LABEL, Lane, Object
from darktree_operator.observed import Observed
from darktree_operator.pod import TEMPLATE_VERSION_ANNOTATION, Revision
from darktree_operator.reasons import Reason
from darktree_operator.windows import is_open, next_opening, parse_window

ASKED_ANNOTATION = f"{GROUP}/asked"
SERVED_ANNOTATION = f"{GROUP}/served"
FAILED_ANNOTATION = f"{GROUP}/failed"
REVISION_COMPONENT = "revision"
MAX_REVISIONS = 5
STUCK_PULL = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "CreateContainerConfigError"}

State = Literal["Complete", "Progressing", "Deferred", "RolledBack"]


@dataclass(frozen=True, slots=True)
class Stored:
    """A revision as it was kept."""

    name: str
    asked: str
    template: Object
    number: int
    served: datetime | None
    """When it last began to serve."""
    failed: str | None
    """Why it was given up."""
    created: datetime | None


@dataclass(frozen=True, slots=True)
class Rollout:
    """Which revision is to run, and why it is not the one that the lane asks for."""

    target: str
    """The hash of the template that the lane asks for."""
    applied: str
    """The hash of the template that the Deployment is given now."""
    state: State
    reason: Reason = Reason.AS_EXPECTED
    message: str = ""
    until: datetime | None = None
    template_outdated: bool = False
    """Whether a newer operator or configuration alone would make another template."""
    began: datetime | None = None
    """When the target was first seen."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The rollout, the template that follows from it, and what is to be remembered."""

    rollout: Rollout
    template: Object
    records: tuple[Object, ...]
    """ControllerRevisions to apply: new ones, and those whose marks changed."""
    obsolete: tuple[str, ...]
    """Names of ControllerRevisions that nobody needs any more."""


def decide(observed: Observed, lane: Lane, target: Revision, *, ready: bool) -> Decision:
    """Return which revision is to run now. `ready` says whether the target could start: its model is there."""
    stored = {kept.name: kept for kept in map(read, observed.revisions)}
    current = applied_revision(observed)
    serving = rolled_out(observed)
    known = stored.get(target.name)
    failed = _known_failure(stored, target, current)
    if failed is None and known is not None and known.served is None and current == target.name:
        failed = _failure(observed, lane, target.name)
    good = _last_served(stored, target.name)
    roll_back = failed is not None and lane.spec.rollout.auto_rollback and good is not None
    if roll_back and good is not None:
        rollout = Rollout(
            target.name, good.name, "RolledBack", Reason.ROLLED_BACK, f"revision {target.name}: {failed}"
        )
        template = good.template
    else:
        rollout = _forward(observed, lane, target, stored, current, ready=ready)
        template = target.template if rollout.applied == target.name else _kept(observed, stored, current)
    marks = {target.name: failed} if roll_back and current == target.name else {}
    records = _records(observed, lane, target, stored, serving, marks)
    needed = {target.name, rollout.applied, current, good.name if good else None}
    needed |= {
        kept.name for kept in stored.values() if kept.failed is not None and kept.asked == target.asked
    }
    return Decision(rollout, template, records, _obsolete(lane, stored, needed))


def read(revision: Object) -> Stored:
    """Return what a ControllerRevision keeps."""
    about = revision["metadata"]
    notes = about.get("annotations") or {}
    served, created = notes.get(SERVED_ANNOTATION), about.get("creationTimestamp")
    return Stored(
        name=about["labels"][REVISION_LABEL],
        asked=notes.get(ASKED_ANNOTATION, ""),
        template=revision["data"]["template"],
        number=revision.get("revision", 0),
        served=datetime.fromisoformat(served) if served else None,
        failed=notes.get(FAILED_ANNOTATION),
        created=datetime.fromisoformat(created) if created else None,
    )


def deployment(observed: Observed) -> Object | None:
    """Return the lane's Deployment."""
    return next(iter(observed.deployments), None)


def applied_revision(observed: Observed) -> str | None:
    """Return the revision that the Deployment was last given."""
    found = deployment(observed)
    if found is None:
        return None
    name = found["spec"]["template"]["metadata"].get("labels", {}).get(REVISION_LABEL)
    return str(name) if name else None


def rolled_out(observed: Observed) -> str | None:
    """Return the revision that serves alone: every pod is of it, and available, and the controller has seen it."""
    found = deployment(observed)
    if found is None:
        return None
    status, wanted = found.get("status") or {}, found["spec"].get("replicas", 1)
    seen = status.get("observedGeneration", 0) >= found["metadata"].get("generation", 0)
    counts = {status.get(name, 0) for name in ("replicas", "updatedReplicas", "availableReplicas")}
    return applied_revision(observed) if seen and wanted > 0 and counts == {wanted} else None


def serves(observed: Observed) -> bool:
    """Return whether any pod of the lane answers."""
    found = deployment(observed)
    return found is not None and (found.get("status") or {}).get("availableReplicas", 0) > 0


def crashes(observed: Observed, revision: str) -> int:
    """Return how often the pods of a revision ended by themselves."""
    return sum(
        status.get("restartCount", 0)
        for pod in observed.pods
        if pod["metadata"].get("labels", {}).get(REVISION_LABEL) == revision
        for status in (pod.get("status") or {}).get("containerStatuses") or []
    )


def is_busy(observed: Observed) -> bool:
    """Return whether the lane may be serving a request; nobody telling is not a reason to think it idle."""
    load = observed.load
    return serves(observed) and (load is None or load.in_flight + load.queued > 0)


def _forward(
    observed: Observed,
    lane: Lane,
    target: Revision,
    stored: dict[str, Stored],
    current: str | None,
    *,
    ready: bool,
) -> Rollout:
    began = stored[target.name].created if target.name in stored else observed.now
    if current is None or current == target.name:
        done = rolled_out(observed) == target.name
        return Rollout(target.name, target.name, "Complete" if done else "Progressing", began=began)
    now_asked = stored[current].asked if current in stored else ""
    outdated = now_asked == target.asked
    hold = _hold(observed, lane, target, began or observed.now, outdated=outdated, ready=ready)
    if hold is None:
        return Rollout(
            target.name,
            target.name,
            "Progressing",
            Reason.ROLLING_OUT,
            template_outdated=outdated,
            began=began,
        )
    reason, message, until = hold
    return Rollout(target.name, current, "Deferred", reason, message, until, outdated, began)


def _hold(
    observed: Observed, lane: Lane, target: Revision, began: datetime, *, outdated: bool, ready: bool
) -> tuple[Reason, str, datetime | None] | None:
    policy = lane.spec.rollout
    window = parse_window(policy.maintenance_window) if policy.maintenance_window else None
    if not ready:
        return Reason.DOWNLOADING_MODEL, "the new revision's model is still being fetched", None
    if policy.paused:
        return Reason.ROLLOUT_PAUSED, "spec.rollout.paused is set", None
    if not _running(observed):
        return None
    if outdated and window is None:
        what = f"revision {target.name} would come from the operator or its configuration, not from the lane"
        return Reason.TEMPLATE_OUTDATED, f"{what}; it comes with the lane's next change or spec.restart", None
    if not outdated and not serves(observed):
        return None  # what serves nothing cannot be disturbed, and may just be what is being mended
    if window is not None and not is_open(window, observed.now):
        return Reason.OUTSIDE_WINDOW, "the maintenance window is closed", next_opening(window, observed.now)
    if outdated and not observed.may_upgrade:
        return Reason.WAITING_FOR_TURN, "another lane is taking a newer template", None
    idle_until = began + timedelta(seconds=policy.idle_timeout_seconds)
    if policy.wait_for_idle and is_busy(observed) and observed.now < idle_until:
        return Reason.WAITING_FOR_IDLE, "requests are in flight", idle_until
    return None


def _running(observed: Observed) -> bool:
    found = deployment(observed)
    return bool(observed.pods) or (found is not None and found["spec"].get("replicas", 1) > 0)


def _known_failure(stored: dict[str, Stored], target: Revision, current: str | None) -> str | None:
    """Why this revision was given up before, or one that asked for the same: a newer operator alone is no new try."""
    asked_now = stored[current].asked if current in stored else None
    for kept in stored.values():
        same = kept.asked == target.asked and kept.asked != asked_now
        if kept.failed is not None and (kept.name == target.name or same):
            return kept.failed
    return None


def _failure(observed: Observed, lane: Lane, revision: str) -> str | None:
    limit = lane.spec.rollout.crash_limit
    count = crashes(observed, revision)
    if count >= limit:
        return f"its engine ended {count} times before it ever served"
    found = deployment(observed)
    conditions = ((found or {}).get("status") or {}).get("conditions") or []
    overdue = any(
        condition["type"] == "Progressing" and condition.get("reason") == "ProgressDeadlineExceeded"
        for condition in conditions
    )
    if not overdue:
        return None
    for pod in observed.pods:
        if pod["metadata"].get("labels", {}).get(REVISION_LABEL) != revision:
            continue
        for status in (pod.get("status") or {}).get("containerStatuses") or []:
            waiting = (status.get("state") or {}).get("waiting") or {}
            if waiting.get("reason") in STUCK_PULL:
                return f"its container never started: {waiting['reason']}"
    return None


def _last_served(stored: dict[str, Stored], target: str) -> Stored | None:
    served = [kept for kept in stored.values() if kept.served is not None and kept.name != target]
    return max(served, key=lambda kept: str(kept.served), default=None)


def _kept(observed: Observed, stored: dict[str, Stored], current: str | None) -> Object:
    """The template that runs, as it was given; if its record is lost, as the API server has it."""
    if current in stored:
        return stored[current].template
    found = deployment(observed)
    assert found is not None, "only a Deployment has a current revision"
    template: Object = found["spec"]["template"]
    about = {name: template["metadata"].get(name) or {} for name in ("labels", "annotations")}
    return {"metadata": about, "spec": template["spec"]}


def _records(
    observed: Observed,
    lane: Lane,
    target: Revision,
    stored: dict[str, Stored],
    serving: str | None,
    failed: dict[str, str | None],
) -> tuple[Object, ...]:
    latest = max((kept.served for kept in stored.values() if kept.served), default=None)
    records = []
    if target.name not in stored:
        number = 1 + max((kept.number for kept in stored.values()), default=0)
        kept = Stored(target.name, target.asked, target.template, number, None, None, None)
        records.append(_record(lane, kept, None, None))
    for kept in stored.values():
        begins = kept.name == serving and (kept.served is None or kept.served != latest)
        served = observed.now if begins else kept.served
        why = failed.get(kept.name) or kept.failed
        if (served, why) != (kept.served, kept.failed):
            records.append(_record(lane, kept, served, why))
    return tuple(records)


def _record(lane: Lane, kept: Stored, served: datetime | None, failed: str | None) -> Object:
    notes = {ASKED_ANNOTATION: kept.asked}
    notes[TEMPLATE_VERSION_ANNOTATION] = kept.template["metadata"]["annotations"][TEMPLATE_VERSION_ANNOTATION]
    if served is not None:
        notes[SERVED_ANNOTATION] = served.isoformat()
    if failed is not None:
        notes[FAILED_ANNOTATION] = failed
    about = metadata(
        lane,
        record_name(lane, kept.name),
        REVISION_COMPONENT,
        labels={REVISION_LABEL: kept.name},
        annotations=notes,
    )
    return {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": about,
        "data": {"template": kept.template},
        "revision": kept.number,
    }


def record_name(lane: Lane, revision: str) -> str:
    return f"{lane.name}-{revision}"


def _obsolete(lane: Lane, stored: dict[str, Stored], needed: set[str | None]) -> tuple[str, ...]:
    """Revisions that never served and are asked for no more, and the oldest of the others."""
    spare = sorted(
        (kept for kept in stored.values() if kept.name not in needed), key=lambda kept: -kept.number
    )
    room = max(0, MAX_REVISIONS - len(needed - {None}))
    served = [kept for kept in spare if kept.served is not None]
    gone = [kept for kept in spare if kept.served is None] + served[room:]
    return tuple(record_name(lane, kept.name) for kept in gone)
