"""An InferenceLane as typed, frozen values: what `crds/inferencelanes.yaml` lets through, with the names of Python.

Defaults are those of the schema, so that a document that no API server has seen reads the same. What the schema refuses
by CEL is refused here by the schema too; here only types and names are checked.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic.alias_generators import to_camel
from pydantic_core import ErrorDetails

GROUP = "darktree.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "InferenceLane"
PLURAL = "inferencelanes"

LANE_LABEL = f"{GROUP}/lane"
TIER_LABEL = f"{GROUP}/tier"
REVISION_LABEL = f"{GROUP}/revision"
SPEED_ANNOTATION = f"{GROUP}/simulated-tokens-per-second"

MAX_NAME_LENGTH = 40  # names and label values of children are made from it
MAX_REPLICAS = 256
LEAST_CONTEXT_LENGTH = 1024
MAX_EXTRA_ARGUMENTS = 32
MAX_ENVIRONMENT = 32
MAX_ALIASES = 8
MAX_SCHEDULES = 16
MAX_PEERS = 16

Object = dict[str, Any]  # an object as the API returns it
Tier = Literal["Standard", "Premium", "Dedicated"]
EngineKind = Literal["VLLM", "Simulator"]
Quantization = Literal["Auto", "AwqMarlin", "None", "Fp8"]
KvCacheDtype = Literal["Auto", "Fp8"]
CacheMode = Literal["Shared", "PerLane", "Ephemeral"]
Strategy = Literal["Auto", "Recreate", "Surge"]
SpillOver = Literal["Never", "WhenUnavailable", "WhenFull"]
Spread = Literal["Prefer", "Require", "None"]
Day = Literal["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
ModelName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9._-]*[a-z0-9])?$", max_length=63)]


class InvalidLane(ValueError):
    """A lane's document says something that no lane can be; `field` is where."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


class Part(BaseModel):
    """A part of a lane: frozen, written in camelCase, and without fields that nobody knows."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, frozen=True, extra="forbid", strict=True
    )


class SecretKey(Part):
    """A key of a Secret of the lane's namespace."""

    name: str
    key: str


class EnvironmentVariable(Part):
    """A variable of the engine's environment."""

    name: str
    value: str = ""


class Model(Part):
    """What is served, and by which names."""

    source: str
    revision: str | None = None
    served_name: ModelName
    aliases: tuple[ModelName, ...] = Field(default=(), max_length=MAX_ALIASES)
    quantization: Quantization = "Auto"


class Engine(Part):
    """How it is served. `context_length` is left to the engine when it is None."""

    kind: EngineKind = "VLLM"
    image: str | None = None
    version: str | None = None
    context_length: int | None = Field(default=None, ge=LEAST_CONTEXT_LENGTH)
    gpu_memory_percent: int = Field(default=90, ge=50, le=97)
    max_num_seqs: int | None = Field(default=None, ge=1, le=4096)
    prefix_caching: bool = True
    kv_cache_dtype: KvCacheDtype = "Auto"
    extra_args: tuple[str, ...] = Field(default=(), max_length=MAX_EXTRA_ARGUMENTS)
    env: tuple[EnvironmentVariable, ...] = Field(default=(), max_length=MAX_ENVIRONMENT)


class Accelerator(Part):
    """How many of which GPUs one replica takes; the class is the operator's configuration's."""

    class_name: str = Field(alias="class")
    count: int = Field(default=1, ge=1, le=16)
    min_memory_gib: int | None = Field(default=None, ge=1, alias="minMemoryGiB")


class Schedule(Part):
    """Other bounds of the replicas, at some hours of some days."""

    days_of_week: tuple[Day, ...] = ()
    start: str
    end: str
    time_zone: str = "UTC"
    min_replicas: int = Field(ge=0)
    max_replicas: int = Field(ge=0)


class Autoscaling(Part):
    """Replicas by what the gateways have in flight and queued."""

    min_replicas: int = Field(default=1, ge=0, le=MAX_REPLICAS)
    max_replicas: int = Field(ge=1, le=MAX_REPLICAS)
    target_inflight_per_replica: int = Field(default=32, ge=1)
    max_queue_seconds: int = Field(default=10, ge=0)
    scale_down_delay_seconds: int = Field(default=300, ge=0)
    idle_timeout_seconds: int = Field(default=1800, ge=0)
    schedules: tuple[Schedule, ...] = Field(default=(), max_length=MAX_SCHEDULES)


class ColdStart(Part):
    """What a start may take, and what the gateway may hold meanwhile."""

    startup_timeout_seconds: int = Field(default=1800, ge=30, le=21_600)
    max_held_requests: int = Field(default=32, ge=0)
    max_hold_seconds: int = Field(default=30, ge=0)


class MaintenanceWindow(Part):
    """When a rollout may begin: from each time that `cron` names, for `duration_minutes`."""

    cron: str
    time_zone: str = "UTC"
    duration_minutes: int = Field(default=240, ge=1, le=10_080)


class RolloutPolicy(Part):
    """How one revision follows another."""

    strategy: Strategy = "Auto"
    wait_for_idle: bool = False
    idle_timeout_seconds: int = Field(default=300, ge=0)
    maintenance_window: MaintenanceWindow | None = None
    paused: bool = False
    auto_rollback: bool = True
    crash_limit: int = Field(default=3, ge=1, le=20)


class Drain(Part):
    """How long a pod may go on serving what it serves; everything else about stopping follows from it."""

    grace_period_seconds: int = Field(default=60, ge=30, le=3600)


class Cache(Part):
    """Where the model's files and the compiled kernels are kept."""

    mode: CacheMode = "Shared"
    size: str = "100Gi"
    storage_class: str | None = None


class Secrets(Part):
    """Secrets that the engine needs, by reference."""

    hugging_face: SecretKey | None = None
    engine_key: SecretKey | None = None


class Peer(Part):
    """Pods that may reach the engine besides the gateway and Prometheus."""

    namespace_labels: dict[str, str] = {}
    pod_labels: dict[str, str] = {}


class Network(Part):
    """Who may reach the engine."""

    allow_from: tuple[Peer, ...] = Field(default=(), max_length=MAX_PEERS)


class Availability(Part):
    """How a lane holds out when nodes go away."""

    min_available: int | None = Field(default=None, ge=1)
    priority_class_name: str | None = None
    spread: Spread = "Prefer"


class Restart(Part):
    """Another id is another revision: the pods are replaced by the lane's rollout policy."""

    id: str


class LaneSpec(Part):
    """Everything that a lane asks for."""

    tier: Tier
    customer_ref: str | None = None
    model: Model
    engine: Engine = Engine()
    accelerator: Accelerator | None = None
    replicas: int = Field(default=1, ge=0, le=MAX_REPLICAS)
    """How many run; with `autoscaling` it stays 1 and decides nothing."""
    autoscaling: Autoscaling | None = None
    cold_start: ColdStart = ColdStart()
    rollout: RolloutPolicy = RolloutPolicy()
    drain: Drain = Drain()
    cache: Cache = Cache()
    secrets: Secrets = Secrets()
    network: Network = Network()
    availability: Availability = Availability()
    spill_over: SpillOver = "Never"
    suspend: bool = False
    restart: Restart | None = None

    @property
    def most_replicas(self) -> int:
        """The most replicas that may ever run at once, apart from a rollout's surge."""
        if self.autoscaling is not None:
            scheduled = [schedule.max_replicas for schedule in self.autoscaling.schedules]
            return max(self.autoscaling.max_replicas, *scheduled, 0)
        return self.replicas


class Lane(BaseModel):
    """One InferenceLane."""

    model_config = ConfigDict(frozen=True)

    name: str
    namespace: str
    uid: str
    generation: int
    annotations: Mapping[str, str]
    spec: LaneSpec
    unknown: tuple[str, ...] = ()
    """Fields of a newer schema, which this operator leaves aside."""


def parse(lane: Object) -> Lane:
    """Return a lane's object as typed values. Raises InvalidLane naming the field.

    A field that nobody knows is refused in a file. A cluster's API server has dropped it already, unless its schema is
    newer than this operator, as in the middle of an upgrade: then it is only named, and the lane goes on as it was.
    """
    metadata = lane.get("metadata") or {}
    name = metadata.get("name")
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_LENGTH:
        raise InvalidLane("metadata.name", f"must be given, with at most {MAX_NAME_LENGTH} characters")
    # As JSON, because only there a list may become a tuple while a text may not become a number.
    document, unknown = json.dumps(lane.get("spec") or {}), []
    try:
        spec = LaneSpec.model_validate_json(document)
    except ValidationError as error:
        found = error.errors()
        unknown = [_place(each) for each in found if each["type"] == "extra_forbidden"]
        if len(unknown) < len(found) or not metadata.get("uid"):
            raise InvalidLane(_place(found[0]), found[0]["msg"]) from error
        spec = LaneSpec.model_validate_json(document, extra="ignore")
    return Lane(
        name=name,
        namespace=metadata.get("namespace") or "default",
        uid=metadata.get("uid") or "",
        generation=metadata.get("generation") or 0,
        annotations=metadata.get("annotations") or {},
        spec=spec,
        unknown=tuple(unknown),
    )


def _place(error: ErrorDetails) -> str:
    return ".".join(["spec", *(str(part) for part in error["loc"])])
