"""One look at a lane and all that belongs to it: the only input of planning, deciding and telling."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from darktree_operator.config import OperatorConfig
from darktree_operator.lane import Object


@dataclass(frozen=True, slots=True)
class LaneLoad:
    """What the gateways say of a lane, summed; it exists at zero replicas too."""

    in_flight: int
    queued: int
    oldest_queued_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What a running engine says of itself; None where it says nothing."""

    version: str | None = None
    max_model_len: int | None = None
    kv_cache_tokens: int | None = None
    max_concurrency: str | None = None
    """How many of the longest contexts its cache holds at once, as it writes it."""


@dataclass(frozen=True, slots=True)
class Observed:
    """Plain objects as the API returned them; nothing in here is looked up later."""

    lane: Object
    config: OperatorConfig
    now: datetime
    deployments: tuple[Object, ...] = ()
    replica_sets: tuple[Object, ...] = ()
    pods: tuple[Object, ...] = ()
    jobs: tuple[Object, ...] = ()
    volume_claims: tuple[Object, ...] = ()
    """Claims that the lane names or would make, also those that other lanes share."""
    revisions: tuple[Object, ...] = ()
    """The lane's ControllerRevisions: each pod template that was ever rolled out, newest few."""
    others: tuple[Object, ...] = ()
    """Every other object with the lane's label: Service, PodDisruptionBudget, NetworkPolicy, PodMonitor."""
    secret_hashes: Mapping[str, str] = field(default_factory=dict)
    """Salted, shortened hashes of the secrets' values by `name/key`; what is absent does not exist."""
    load: LaneLoad | None = None
    """None while no gateway tells."""
    engines: Mapping[str, EngineFacts] = field(default_factory=dict)
    """What the gateways learnt of the lane's engines, by their pods' addresses."""
    free_gpus: int | None = None
    """GPUs of the lane's class that are proved free on one node; None when nobody looked, or may look."""
    may_upgrade: bool = False
    """Whether it is this lane's turn to take a newer template: one lane at a time."""
