"""What a lane's objects should be, from what was observed: pure, so that a test, a command and the operator agree."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from darktree_operator.lane import Object
from darktree_operator.observed import Observed

RolloutState = Literal["Complete", "Progressing", "Deferred", "RolledBack"]


@dataclass(frozen=True, slots=True)
class Reference:
    """An object by its names, within the lane's namespace."""

    api_version: str
    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a lane cannot be served as it stands: a reason of the closed list, and the field to change."""

    reason: str
    field: str
    message: str


@dataclass(frozen=True, slots=True)
class Rollout:
    """Which revision is to run, and why it is not the one that the lane asks for."""

    target: str
    """The hash of the template that the lane asks for."""
    applied: str
    """The hash of the template that the Deployment is given now."""
    state: RolloutState
    reason: str = ""
    message: str = ""
    until: datetime | None = None
    template_outdated: bool = False
    """Whether the lane would get another template by a newer operator or configuration alone."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Objects to apply, in order; a refused lane has none, and what serves goes on serving."""

    objects: tuple[Object, ...] = ()
    deletions: tuple[Reference, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    notes: tuple[str, ...] = ()
    rollout: Rollout | None = None
    waiting_for_model: bool = False


def plan(observed: Observed, replicas: int) -> Plan:
    """Return what the lane's objects should be, with so many replicas (0 while it is suspended or asleep)."""
    raise NotImplementedError
