"""A lane with everything that the operator's configuration says of it: its image, its accelerator, its numbers.

What cannot be resolved refuses the lane with the field to change, before anything is applied.
"""

from dataclasses import dataclass
from hashlib import sha256

from darktree_operator.arguments import (
    OLDEST_VERSION,
    Version,
    parse_version,
    refused_argument,
    refused_variable,
)
from darktree_operator.config import AcceleratorClass, OperatorConfig
from darktree_operator.lane import Lane
from darktree_operator.reasons import Reason
from darktree_operator.windows import InvalidWindow, parse_window

PRE_STOP_SECONDS = 15  # until every gateway has seen that the pod is going
EXIT_MARGIN_SECONDS = 5
MAX_KEY_LENGTH = 10  # hexadecimal digits of a hash in a name

UPSTREAM_COMMAND = {"VLLM": ("vllm", "serve"), "Simulator": ("python", "-m", "darktree_simulator")}


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a lane cannot be served as it stands: a reason of the closed list, and the field to change."""

    reason: Reason
    field: str
    message: str


@dataclass(frozen=True, slots=True)
class Resolved:
    """A lane and what its names mean in this cluster."""

    lane: Lane
    config: OperatorConfig
    image: str
    command: tuple[str, ...]
    version: Version
    accelerator: AcceleratorClass | None
    gpus: int
    """GPUs that one pod takes; 0 where the engine runs on the node's processor."""
    priority_class: str | None

    @property
    def shutdown_seconds(self) -> int:
        """How long the engine may finish what it serves: the one number of the lane, less what surrounds it."""
        return self.lane.spec.drain.grace_period_seconds - PRE_STOP_SECONDS - EXIT_MARGIN_SECONDS

    @property
    def downloads(self) -> bool:
        """Whether the model's files are fetched into a volume before an engine starts."""
        spec = self.lane.spec
        return (
            spec.engine.kind == "VLLM"
            and spec.cache.mode != "Ephemeral"
            and spec.model.source.startswith("hf://")
        )

    @property
    def claim(self) -> str | None:
        """The volume claim of the cache: one for each model and revision, or one for this lane."""
        spec = self.lane.spec
        if spec.engine.kind != "VLLM" or spec.cache.mode == "Ephemeral":
            return None
        return f"model-{self.model_key}" if spec.cache.mode == "Shared" else f"{self.lane.name}-cache"

    @property
    def model_key(self) -> str:
        """A short name for exactly these files."""
        model = self.lane.spec.model
        return sha256(f"{model.source}@{model.revision or ''}".encode()).hexdigest()[:MAX_KEY_LENGTH]


def resolve(lane: Lane, config: OperatorConfig) -> Resolved | list[Refusal]:
    """Return the lane with what its names mean, or every reason why they mean nothing."""
    spec = lane.spec
    refusals = _refused_words(lane)
    images = config.images.get(spec.engine.kind)
    name = spec.engine.version or (images.default_version if images else "")
    version = parse_version(name)
    image = spec.engine.image or (images.by_version.get(name) if images else None)
    if version is None or (spec.engine.kind == "VLLM" and version < OLDEST_VERSION):
        oldest = ".".join(str(part) for part in OLDEST_VERSION)
        refusals.append(_invalid("spec.engine.version", f"{name!r} is no version from {oldest} on"))
    elif image is None:
        known = ", ".join(sorted(images.by_version)) if images else "none"
        message = (
            f"no image is configured for {spec.engine.kind} {name}: set spec.engine.image, or one of {known}"
        )
        refusals.append(_invalid("spec.engine.version", message, Reason.INVALID_REFERENCE))
    accelerator, missing = _accelerator(lane, config)
    refusals += missing
    if refusals or version is None or image is None:
        return refusals
    takes = accelerator is not None and accelerator.resource is not None
    configured = images.command if images else ()
    return Resolved(
        lane=lane,
        config=config,
        image=image,
        command=configured or UPSTREAM_COMMAND[spec.engine.kind],
        version=version,
        accelerator=accelerator,
        gpus=spec.accelerator.count if takes and spec.accelerator else int(takes),
        priority_class=spec.availability.priority_class_name or config.priority_classes.get(spec.tier),
    )


def _accelerator(lane: Lane, config: OperatorConfig) -> tuple[AcceleratorClass | None, list[Refusal]]:
    asked = lane.spec.accelerator
    name = asked.class_name if asked else config.default_accelerator
    if name is None or (asked is None and lane.spec.engine.kind == "Simulator"):
        if lane.spec.engine.kind == "Simulator":
            return None, []
        return None, [_invalid("spec.accelerator.class", f"must be given: one of {_known(config)}")]
    found = config.accelerators.get(name)
    if found is None:
        message = f"there is no accelerator class {name!r} in this cluster: use one of {_known(config)}"
        return None, [_invalid("spec.accelerator.class", message, Reason.INVALID_REFERENCE)]
    least = asked.min_memory_gib if asked else None
    if least is not None and found.memory_gib < least:
        message = f"{name} has {found.memory_gib} GiB, the lane asks for {least}: name a larger class"
        return None, [_invalid("spec.accelerator.minMemoryGiB", message, Reason.INSUFFICIENT_MEMORY)]
    return found, []


def _refused_words(lane: Lane) -> list[Refusal]:
    """What the API server's CEL refuses too; `render` and a file have no API server in front."""
    spec = lane.spec
    refusals = []
    if (spec.tier == "Dedicated") != (spec.customer_ref is not None):
        refusals.append(_invalid("spec.customerRef", "must be set if, and only if, the tier is Dedicated"))
    if spec.autoscaling is not None and spec.replicas != 1:
        refusals.append(_invalid("spec.replicas", "remove it, or spec.autoscaling: only one decides"))
    if spec.engine.kind == "VLLM" and spec.model.source.startswith("hf://") and spec.model.revision is None:
        refusals.append(_invalid("spec.model.revision", "must name the commit of a model from hf://"))
    for place, argument in enumerate(spec.engine.extra_args):
        if why := refused_argument(argument):
            refusals.append(_invalid(f"spec.engine.extraArgs[{place}]", why))
    for place, variable in enumerate(spec.engine.env):
        if why := refused_variable(variable.name):
            refusals.append(_invalid(f"spec.engine.env[{place}]", why))
    window = spec.rollout.maintenance_window
    if window is not None:
        try:
            parse_window(window)
        except InvalidWindow as error:
            refusals.append(_invalid("spec.rollout.maintenanceWindow", str(error)))
    return refusals


def _known(config: OperatorConfig) -> str:
    return ", ".join(sorted(config.accelerators)) or "none is configured"


def _invalid(field: str, message: str, reason: Reason = Reason.INVALID_SPEC) -> Refusal:
    return Refusal(reason, field, message)
