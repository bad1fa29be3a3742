"""What a lane's conditions say: the only place that writes them.

Ready means that the revision which the lane asks for has rolled out and serves; Available that something serves. Each
condition is one function of the same facts, and `lastTransitionTime` moves only when its status flips.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from darktree_operator import instants
from darktree_operator.autoscaling import Scaling
from darktree_operator.lane import Object
from darktree_operator.plan import Plan
from darktree_operator.progress import Problem, Progress
from darktree_operator.reasons import Reason, named

MAX_MESSAGE_CHARACTERS = 2048

Verdict = tuple[bool | None, Reason, str]
"""A condition's status (None is Unknown), its reason and its message."""


@dataclass(frozen=True, slots=True)
class Facts:
    """All that conditions are made from."""

    generation: int
    plan: Plan
    scaling: Scaling
    progress: Progress
    refused: Problem | None = None
    """What the API server said against one of the lane's objects, or whose an object is."""
    needs_gpu: bool = False
    caches_model: bool = False
    download: Problem | None = None
    """Why the model's files are not there yet."""

    @property
    def target(self) -> str:
        """The revision that the lane asks for; what a newer operator alone would change is not the lane's."""
        rollout = self.plan.rollout
        if rollout is None:
            return self.progress.applied
        return rollout.applied if rollout.template_outdated else rollout.target

    @property
    def rolled_out(self) -> bool:
        """Whether every replica is of the revision that the lane asks for, as the Deployment's controller says."""
        progress = self.progress
        return (
            progress.deployment is not None
            and progress.observed_newest
            and progress.applied == self.target
            and progress.updated == progress.replicas
            and progress.available >= self.scaling.required
        )

    @property
    def problem(self) -> Problem | None:
        """The most telling problem of the wanted revision's pods, else of any that should serve."""
        return (
            self.progress.refused
            or self.progress.problem(self.progress.applied)
            or next(
                (pod.problem for pod in self.progress.pods if pod.problem is not None and not pod.going), None
            )
        )


def conditions(facts: Facts, previous: Sequence[Object], now: datetime) -> list[Object]:
    """Return every condition, with those that others wrote kept as they are."""
    known = {each["type"]: each for each in previous}
    made = [
        _condition(name, judge(facts), known.get(name), facts.generation, now)
        for name, judge in JUDGES.items()
        if name != "ModelCached" or facts.caches_model
    ]
    return made + [each for name, each in known.items() if name not in JUDGES]


def verdict(facts: Facts, name: str) -> Verdict:
    """Return one condition's status, reason and message."""
    return JUDGES[name](facts)


def _condition(name: str, said: Verdict, before: Object | None, generation: int, now: datetime) -> Object:
    status = {True: "True", False: "False", None: "Unknown"}[said[0]]
    since = instants.text(now)
    if before is not None and before.get("status") == status:
        since = before.get("lastTransitionTime") or since
    return {
        "type": name,
        "status": status,
        "reason": said[1].value,
        "message": said[2][:MAX_MESSAGE_CHARACTERS],
        "observedGeneration": generation,
        "lastTransitionTime": since,
    }


def _ready(facts: Facts) -> Verdict:
    plan, scaling, progress = facts.plan, facts.scaling, facts.progress
    blocked = _blocked(facts)
    if blocked is not None:
        return False, blocked.reason, blocked.message
    if scaling.replicas == 0:
        return False, scaling.reason, scaling.message
    if (
        plan.rollout is not None
        and plan.rollout.state in {"RolledBack", "Deferred"}
        and not _asks_nothing(facts)
    ):
        return False, _reason(plan.rollout.reason, Reason.ROLLING_OUT), plan.rollout.message
    problem = facts.problem
    if not facts.rolled_out:
        if problem is not None and problem.reason not in {
            Reason.DRAINING,
            Reason.LOADING_MODEL,
            Reason.STARTING,
        }:
            return False, problem.reason, problem.message
        if progress.late:
            return False, Reason.PROGRESS_DEADLINE_EXCEEDED, "The new revision is not available in its time."
        if progress.available:
            return False, Reason.ROLLING_OUT, f"{progress.updated} of {scaling.replicas} replicas are new."
    if progress.available < scaling.required or not facts.rolled_out:
        if problem is not None and problem.reason is not Reason.DRAINING:
            return False, problem.reason, problem.message
        if scaling.reason in {Reason.WAKING, Reason.SCALING}:
            return False, scaling.reason, scaling.message
        return False, Reason.STARTING, f"{progress.available} of {scaling.required} replicas are available."
    return True, Reason.AS_EXPECTED, f"{progress.available} of {scaling.replicas} replicas serve."


def _blocked(facts: Facts) -> Problem | None:
    """Why the lane cannot be what it asks for, whatever its pods do."""
    if facts.plan.refusals:
        refusal = facts.plan.refusals[0]
        return Problem(named(refusal.reason), f"{refusal.field}: {refusal.message}")
    if facts.refused is not None:
        return facts.refused
    if facts.plan.waiting_for_model and facts.scaling.replicas:
        return facts.download or Problem(Reason.DOWNLOADING_MODEL, "The model's files are being fetched.")
    return None


def _asks_nothing(facts: Facts) -> bool:
    """Whether what is held back is only what a newer operator would change."""
    return facts.plan.rollout is not None and facts.plan.rollout.template_outdated


def _available(facts: Facts) -> Verdict:
    progress = facts.progress
    if progress.available:
        return True, Reason.AS_EXPECTED, f"{progress.available} replicas answer requests."
    said = _ready(facts)
    return False, said[1], said[2]


def _accepted(facts: Facts) -> Verdict:
    if facts.plan.refusals:
        refusal = facts.plan.refusals[0]
        more = f" (and {len(facts.plan.refusals) - 1} more)" if len(facts.plan.refusals) > 1 else ""
        return False, named(refusal.reason), f"{refusal.field}: {refusal.message}{more}"
    if facts.refused is not None:
        return False, facts.refused.reason, facts.refused.message
    return True, Reason.AS_EXPECTED, "; ".join(facts.plan.notes) or "The lane can be served as it is written."


def _gpu_available(facts: Facts) -> Verdict:
    if not facts.needs_gpu:
        return True, Reason.AS_EXPECTED, "The lane needs no GPU."
    if facts.scaling.replicas == 0:
        return None, facts.scaling.reason, "The lane asks for no GPU now."
    for pod in facts.progress.pods:
        if pod.problem is not None and pod.problem.reason is Reason.INSUFFICIENT_GPU:
            return False, pod.problem.reason, pod.problem.message
    placed = sum(bool(pod.node) and not pod.going for pod in facts.progress.pods)
    if placed < facts.scaling.replicas:
        return None, Reason.STARTING, f"{placed} of {facts.scaling.replicas} replicas have their GPUs."
    return True, Reason.AS_EXPECTED, "Every replica has its GPUs."


def _model_cached(facts: Facts) -> Verdict:
    if facts.download is not None:
        return False, facts.download.reason, facts.download.message
    if facts.plan.waiting_for_model:
        return False, Reason.DOWNLOADING_MODEL, "The model's files are being fetched."
    if facts.plan.rollout is None:
        return None, Reason.UNKNOWN, "Nothing was planned."
    return True, Reason.AS_EXPECTED, "The model's files are on the volume."


def _up_to_date(facts: Facts) -> Verdict:
    rollout = facts.plan.rollout
    if rollout is None:
        blocked = _blocked(facts)
        return None, blocked.reason if blocked else Reason.UNKNOWN, blocked.message if blocked else ""
    if rollout.template_outdated and rollout.applied != rollout.target:
        return False, _reason(rollout.reason, Reason.TEMPLATE_OUTDATED), rollout.message
    if rollout.state in {"Deferred", "RolledBack"}:
        return False, _reason(rollout.reason, Reason.ROLLING_OUT), rollout.message
    if not facts.rolled_out:
        return False, Reason.ROLLING_OUT, rollout.message or "The revision is being rolled out."
    return True, Reason.AS_EXPECTED, f"Every replica is of revision {rollout.target}."


def _scaled(facts: Facts) -> Verdict:
    scaling, available = facts.scaling, facts.progress.available
    if scaling.reason is Reason.SIGNAL_MISSING:
        return None, scaling.reason, scaling.message
    if available == scaling.replicas and facts.progress.replicas == scaling.replicas:
        return True, scaling.reason if scaling.replicas == 0 else Reason.AS_EXPECTED, scaling.message
    problem = facts.problem
    if problem is not None and available < scaling.replicas:
        return False, problem.reason, problem.message
    return False, Reason.SCALING, f"{available} of {scaling.replicas} replicas are available."


def _suspended(facts: Facts) -> Verdict:
    if facts.scaling.reason is Reason.SUSPENDED:
        return True, Reason.SUSPENDED, facts.scaling.message
    return False, Reason.AS_EXPECTED, "The lane is not suspended."


def _degraded(facts: Facts) -> Verdict:
    problem = facts.problem
    if facts.progress.available and problem is not None:
        harmless = {Reason.DRAINING, Reason.STARTING, Reason.LOADING_MODEL}
        if problem.reason not in harmless:
            return True, problem.reason, problem.message
    if (
        facts.progress.available
        and facts.plan.rollout is not None
        and facts.plan.rollout.state == "RolledBack"
    ):
        return True, Reason.ROLLED_BACK, facts.plan.rollout.message
    return False, Reason.AS_EXPECTED, "Nothing that serves is in trouble."


_HOPELESS = frozenset(
    {
        Reason.KV_CACHE_TOO_SMALL, Reason.GPU_OUT_OF_MEMORY, Reason.HOST_OUT_OF_MEMORY, Reason.UNSUPPORTED_FLAG,
        Reason.UNSUPPORTED_MODEL, Reason.MODEL_NOT_FOUND, Reason.INVALID_SPEC, Reason.CRASH_LOOP,
        Reason.STARTUP_TIMEOUT, Reason.SECRET_MISSING, Reason.IMAGE_PULL_FAILED, Reason.QUOTA_EXCEEDED,
        Reason.DOWNLOAD_FAILED, Reason.DISK_FULL, Reason.GPU_UNAVAILABLE,
    }
)  # fmt: skip


def _stalled(facts: Facts) -> Verdict:
    ready, reason, message = _ready(facts)
    rollout = facts.plan.rollout
    if facts.plan.refusals or facts.refused is not None:
        return True, reason, message
    if rollout is not None and rollout.state == "RolledBack":
        return True, Reason.ROLLED_BACK, rollout.message
    if not ready and (reason in _HOPELESS or facts.progress.late):
        return True, reason, message
    return False, Reason.AS_EXPECTED, "Nothing has to be changed for the lane to go on."


def _reconciling(facts: Facts) -> Verdict:
    ready, reason, message = _ready(facts)
    if ready or _stalled(facts)[0] or (facts.scaling.replicas == 0 and facts.progress.replicas == 0):
        return False, Reason.AS_EXPECTED, "Nothing is under way."
    return True, reason, message


def _reason(text: str, otherwise: Reason) -> Reason:
    return named(text) if text else otherwise


JUDGES: dict[str, Callable[[Facts], Verdict]] = {
    "Ready": _ready,
    "Available": _available,
    "Accepted": _accepted,
    "GPUAvailable": _gpu_available,
    "ModelCached": _model_cached,
    "UpToDate": _up_to_date,
    "Scaled": _scaled,
    "Suspended": _suspended,
    "Degraded": _degraded,
    "Reconciling": _reconciling,
    "Stalled": _stalled,
}
"""Every condition's type, in the order in which they are written."""
