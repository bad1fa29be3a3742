"""What the operator is told about the cluster it works in: images, accelerators, peers, priorities and known models.

One YAML file, written in camelCase as everything around it. A lane names a class of accelerator and a version of its
engine; what these are here is only said in this file, so that no lane names a node's label or an image's tag.
"""

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from darktree_operator.lane import EngineKind, Tier

MAX_FILE_BYTES = 1024 * 1024


class InvalidConfig(ValueError):
    """The file cannot be used; the message names the field."""


class Section(BaseModel):
    """A part of the file: frozen, in camelCase, without unknown fields."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="forbid")


class EngineImages(Section):
    """The images of one kind of engine by the version that is in them."""

    default_version: str
    by_version: dict[str, str]
    command: tuple[str, ...] = ()
    """What starts the engine, where it is not what the upstream image has."""


class AcceleratorClass(Section):
    """What a class of accelerators is in this cluster."""

    memory_gib: int = Field(ge=1, alias="memoryGiB")
    resource: str | None = "nvidia.com/gpu"
    """The extended resource that a pod asks for; none for engines on the node's own processor."""
    node_selector: dict[str, str] = {}
    tolerations: tuple[dict[str, Any], ...] = ()
    runtime_class_name: str | None = None
    cpus_per_gpu: int = Field(default=4, ge=1)
    host_memory_per_gpu_gib: int = Field(default=32, ge=1, alias="hostMemoryPerGpuGiB")


class ModelFacts(Section):
    """What the memory of a model follows from; weights are the sum of its files."""

    weights_gib: float = Field(gt=0, alias="weightsGiB")
    layers: int = Field(ge=1)
    kv_heads: int = Field(ge=1)
    head_size: int = Field(ge=1)
    max_context_length: int = Field(ge=1)


class Peers(Section):
    """Pods, by the labels of their namespace and their own."""

    namespace_labels: dict[str, str] = {}
    pod_labels: dict[str, str] = {}


class OperatorConfig(Section):
    """The whole file."""

    images: dict[EngineKind, EngineImages]
    accelerators: dict[str, AcceleratorClass] = {}
    default_accelerator: str | None = None
    priority_classes: dict[Tier, str] = {}
    gateways: tuple[Peers, ...] = (Peers(pod_labels={"app.kubernetes.io/name": "darktree-gateway"}),)
    monitoring: tuple[Peers, ...] = (Peers(pod_labels={"app.kubernetes.io/name": "prometheus"}),)
    image_pull_secrets: tuple[str, ...] = ()
    image_pull_allowance_seconds: int = Field(default=900, ge=0)
    pod_monitors: bool = False
    pod_monitor_labels: dict[str, str] = {}
    models: dict[str, ModelFacts] = {}


def read_config(path: Path) -> OperatorConfig:
    """Return the configuration in a file. Raises InvalidConfig."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InvalidConfig(f"{path} has more than {MAX_FILE_BYTES} bytes")
        return parse_config(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidConfig(f"{path} cannot be read: {error}") from error


def parse_config(text: str) -> OperatorConfig:
    """Return the configuration in a text. Raises InvalidConfig naming the field."""
    try:
        return OperatorConfig.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise InvalidConfig(f"not YAML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidConfig(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from error
