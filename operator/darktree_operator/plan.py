"""What a lane's objects should be, from what was observed: pure, so that a test, a command and the operator agree."""

from dataclasses import dataclass
from datetime import timedelta

from darktree_operator.children import (
    DOWNLOAD_AGAIN_SECONDS,
    disruption_budget,
    download_job,
    failed_since,
    job_state,
    metadata,
    network_policy,
    owned,
    pod_monitor,
    service,
    volume_claim,
)
from darktree_operator.config import AcceleratorClass
from darktree_operator.lane import GROUP, InvalidLane, Lane, Object, SecretKey, parse
from darktree_operator.observed import Observed
from darktree_operator.pod import ENGINE_COMPONENT, revision, selector
from darktree_operator.preflight import check
from darktree_operator.reasons import Reason
from darktree_operator.resolution import Refusal, Resolved, resolve
from darktree_operator.rollout import Decision, Rollout, applied_revision, decide, deployment, rolled_out

__all__ = ["Plan", "Reference", "Refusal", "Rollout", "Spare", "plan"]

REVISION_ANNOTATION = f"{GROUP}/revision"
REVISION_HISTORY = 2  # old ReplicaSets are of no use: what served is kept in ControllerRevisions


@dataclass(frozen=True, slots=True)
class Reference:
    """An object by its names, within the lane's namespace."""

    api_version: str
    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class Spare:
    """So many free GPUs on one node would let a new engine start before the old one stops."""

    accelerator: AcceleratorClass
    gpus: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Objects to apply, in order. A refused lane gets no new ones: what serves goes on serving."""

    objects: tuple[Object, ...] = ()
    deletions: tuple[Reference, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    notes: tuple[str, ...] = ()
    rollout: Rollout | None = None
    waiting_for_model: bool = False
    spare: Spare | None = None
    """What to look for before this is applied, because the rollout would be another one: nobody has looked yet."""


def plan(observed: Observed, replicas: int) -> Plan:
    """Return what the lane's objects should be, with so many replicas (0 while it is suspended or asleep)."""
    try:
        lane = parse(observed.lane)
    except InvalidLane as error:
        return Plan(refusals=(Refusal(Reason.INVALID_SPEC, error.field, error.message),))
    resolved = resolve(lane, observed.config)
    if isinstance(resolved, list):
        return _refused(observed, replicas, resolved, [])
    target = revision(resolved, observed.secret_hashes)
    too_much, notes = check(resolved)
    notes += [
        f"{field} is of a newer version than this operator, which leaves it aside" for field in lane.unknown
    ]
    if applied_revision(observed) == target.name and too_much:
        # It was let in before: what the engine itself finds is worth more than an estimate.
        notes, too_much = [*notes, *(refusal.message for refusal in too_much)], []
    refusals = [*too_much, *_missing_secrets(resolved, observed), *_foreign(lane, observed)]
    if refusals:
        return _refused(observed, replicas, refusals, notes)

    cached, download, old_jobs = _download(resolved, observed)
    decision = decide(observed, lane, target, ready=cached)
    waiting = not cached and decision.rollout.applied == target.name and deployment(observed) is None
    strategy, more_notes, spare = _strategy(resolved, observed, decision.rollout, replicas)
    budget, monitor = disruption_budget(lane, replicas), pod_monitor(resolved)
    runs = None
    if not waiting:
        runs = _deployment(lane, decision, replicas, strategy, _deadline_seconds(resolved))
    objects = [
        volume_claim(resolved, observed.volume_claims),
        download,
        network_policy(resolved),
        service(lane),
        *decision.records,
        runs,
        budget,
        monitor,
    ]
    return Plan(
        objects=tuple(thing for thing in objects if thing is not None),
        deletions=(*_unwanted(lane, observed, budget, monitor), *old_jobs, *_old_revisions(decision)),
        notes=(*notes, *more_notes),
        rollout=decision.rollout,
        waiting_for_model=not cached,
        spare=spare,
    )


def _refused(observed: Observed, replicas: int, refusals: list[Refusal], notes: list[str]) -> Plan:
    """A lane that cannot be served as it is written may still be stopped: only that reaches its Deployment."""
    found = deployment(observed)
    lane = parse(observed.lane)
    objects: tuple[Object, ...] = ()
    if found is not None and owned(lane, found) and replicas < found["spec"].get("replicas", 1):
        spec = {name: found["spec"][name] for name in _KEPT if name in found["spec"]}
        template = found["spec"]["template"]
        about = {name: template["metadata"].get(name) or {} for name in ("labels", "annotations")}
        spec |= {"replicas": replicas, "template": {"metadata": about, "spec": template["spec"]}}
        annotations = {REVISION_ANNOTATION: applied_revision(observed) or ""}
        kept = metadata(lane, lane.name, ENGINE_COMPONENT, annotations=annotations)
        objects = ({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": kept, "spec": spec},)
    return Plan(objects=objects, refusals=tuple(refusals), notes=tuple(notes))


_KEPT = ("selector", "strategy", "progressDeadlineSeconds", "revisionHistoryLimit")


def _deployment(
    lane: Lane, decision: Decision, replicas: int, strategy: Object, deadline_seconds: int
) -> Object:
    annotations = {REVISION_ANNOTATION: decision.rollout.applied}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(lane, lane.name, ENGINE_COMPONENT, annotations=annotations),
        "spec": {
            "replicas": replicas,
            "revisionHistoryLimit": REVISION_HISTORY,
            "progressDeadlineSeconds": deadline_seconds,
            "selector": {"matchLabels": selector(lane.name)},
            "strategy": strategy,
            "template": decision.template,
        },
    }


def _deadline_seconds(resolved: Resolved) -> int:
    """Longer than a start may take, or a good rollout would be called stuck."""
    startup = resolved.lane.spec.cold_start.startup_timeout_seconds
    return startup + resolved.config.image_pull_allowance_seconds


def _strategy(
    resolved: Resolved, observed: Observed, rollout: Rollout, replicas: int
) -> tuple[Object, list[str], Spare | None]:
    """Return how pods are replaced: never with a GPU that is not proved to be free when the rollout begins."""
    wanted = resolved.lane.spec.rollout.strategy
    if wanted == "Recreate":
        return _RECREATE, [], None
    if resolved.gpus == 0:
        return _SURGE, [], None
    careful = _RECREATE if replicas <= 1 else _ONE_BY_ONE
    found = deployment(observed)
    if wanted == "Auto" or found is None or rolled_out(observed) == rollout.applied:
        return careful, [], None
    if applied_revision(observed) == rollout.applied:  # under way: what began with a surge ends with it
        return _SURGE if found["spec"].get("strategy") == _SURGE else careful, [], None
    free = observed.free_gpus
    if free is not None and free >= resolved.gpus:
        return _SURGE, [], None
    known = "nobody knows of a free one" if free is None else f"{free} are free"
    note = f"spec.rollout.strategy Surge needs {resolved.gpus} spare GPUs, {known}: a pod goes first"
    if free is not None or resolved.accelerator is None:
        return careful, [note], None
    return careful, [note], Spare(resolved.accelerator, resolved.gpus)


_RECREATE: Object = {"type": "Recreate"}
_SURGE: Object = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
_ONE_BY_ONE: Object = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}


def _download(resolved: Resolved, observed: Observed) -> tuple[bool, Object | None, list[Reference]]:
    """Return whether the model is there, the Job to apply, and the Jobs that are of no use any more."""
    token = resolved.lane.spec.secrets.hugging_face
    token_hash = observed.secret_hashes.get(f"{token.name}/{token.key}", "") if token else ""
    wanted = download_job(resolved, token_hash)
    name = wanted["metadata"]["name"] if wanted else None
    found = next((job for job in observed.jobs if job["metadata"]["name"] == name), None)
    gone = [_job(job) for job in observed.jobs if job["metadata"]["name"] != name]
    if wanted is None or found is None:
        return wanted is None, wanted, gone
    state = job_state(found)
    since = failed_since(found)
    if since is not None and observed.now - since >= timedelta(seconds=DOWNLOAD_AGAIN_SECONDS):
        gone.append(_job(found))  # the next look makes it anew
    return state == "Complete", None, gone


def _job(job: Object) -> Reference:
    return Reference("batch/v1", "Job", job["metadata"]["name"])


def _missing_secrets(resolved: Resolved, observed: Observed) -> list[Refusal]:
    secrets = resolved.lane.spec.secrets
    named: list[tuple[str, SecretKey | None]] = [
        ("huggingFace", secrets.hugging_face),
        ("engineKey", secrets.engine_key),
    ]
    return [
        Refusal(
            Reason.SECRET_MISSING,
            f"spec.secrets.{field}",
            f"there is no key {key.key} in a Secret {key.name} of namespace {resolved.lane.namespace}",
        )
        for field, key in named
        if key is not None and f"{key.name}/{key.key}" not in observed.secret_hashes
    ]


def _foreign(lane: Lane, observed: Observed) -> list[Refusal]:
    """Objects of our names that belong to somebody else are left alone."""
    found = [
        *(("Deployment", child) for child in observed.deployments),
        *((str(child.get("kind", "object")), child) for child in observed.others),
    ]
    return [
        Refusal(
            Reason.CHILD_NOT_OWNED,
            "metadata.name",
            f"{kind} {child['metadata']['name']} belongs to somebody else: remove it, or name the lane otherwise",
        )
        for kind, child in found
        if lane.uid and child["metadata"]["name"] == lane.name and not owned(lane, child)
    ]


def _unwanted(
    lane: Lane, observed: Observed, budget: Object | None, monitor: Object | None
) -> list[Reference]:
    absent = {
        "PodDisruptionBudget": ("policy/v1", budget),
        "PodMonitor": ("monitoring.coreos.com/v1", monitor),
    }
    return [
        Reference(absent[child["kind"]][0], child["kind"], child["metadata"]["name"])
        for child in observed.others
        if child.get("kind") in absent and absent[child["kind"]][1] is None and owned(lane, child)
    ]


def _old_revisions(decision: Decision) -> list[Reference]:
    return [Reference("apps/v1", "ControllerRevision", name) for name in decision.obsolete]
