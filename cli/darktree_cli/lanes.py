"""Lanes of one machine: InferenceLane documents read from a folder, and written with where their engines answer."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

KIND = "InferenceLane"
SPEED_ANNOTATION = "darktree.dev/simulated-tokens-per-second"
DEFAULT_TOKENS_PER_SECOND = 100
DEFAULT_CONTEXT_LENGTH = 32_768
MAX_LANES = 32
POOLING = "--runner=pooling"  # among a lane's engine.extraArgs: its model embeds
EMBEDDING_DIMENSIONS = 64  # of a simulated one
TIERS = ("Standard", "Premium", "Dedicated")


class LaneError(ValueError):
    """A lane's document cannot be served; the message names the file and the field."""


@dataclass(frozen=True)
class Lane:
    """What it takes to serve one InferenceLane here."""

    name: str
    served_name: str
    context_length: int
    tokens_per_second: int
    tier: str
    embeds: bool
    document: Mapping[str, Any]


def read_lanes(folder: Path) -> list[Lane]:
    """Return the lanes of every YAML file in a folder, by name. Raises LaneError."""
    files = sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])
    lanes = [_lane(document, file) for file in files for document in _documents(file)]
    if not lanes:
        raise LaneError(f"{folder} holds no {KIND} (*.yaml): choose another folder with --lanes")
    if len(lanes) > MAX_LANES:
        raise LaneError(f"{folder} holds {len(lanes)} lanes; one machine serves at most {MAX_LANES}")
    names = [lane.name for lane in lanes]
    if twice := {name for name in names if names.count(name) > 1}:
        raise LaneError(f"{folder}: two lanes are named {min(twice)}")
    return sorted(lanes, key=lambda lane: lane.name)


def served_lanes(lanes: list[Lane], urls: Mapping[str, str], engine_kind: str) -> str:
    """Return the lanes file: each document, with the engine that really serves it and where that answers."""
    documents = []
    for lane in lanes:
        spec = dict(lane.document["spec"])
        spec["engine"] = {**spec.get("engine", {}), "kind": engine_kind, "contextLength": lane.context_length}
        documents.append({**lane.document, "spec": spec, "status": {"endpoints": [{"url": urls[lane.name]}]}})
    return yaml.safe_dump_all(documents, sort_keys=False)


def _documents(file: Path) -> list[Any]:
    try:
        return [document for document in yaml.safe_load_all(file.read_text()) if document is not None]
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise LaneError(f"{file} is not YAML: {error}") from error


def _lane(document: Any, file: Path) -> Lane:
    if not isinstance(document, dict) or document.get("kind") != KIND:
        raise LaneError(f"{file}: not a document of kind {KIND}")
    annotations = _field(document, file, "metadata.annotations", dict, default={})
    speed = str(annotations.get(SPEED_ANNOTATION, DEFAULT_TOKENS_PER_SECOND))
    if not speed.isdecimal() or not int(speed):
        raise LaneError(
            f"{file}: the annotation {SPEED_ANNOTATION} must be a whole number above 0, in quotes"
        )
    tier = _field(document, file, "spec.tier", str)
    if tier not in TIERS:
        raise LaneError(f"{file}: spec.tier must be one of {', '.join(TIERS)}")
    return Lane(
        name=_field(document, file, "metadata.name", str),
        served_name=_field(document, file, "spec.model.servedName", str),
        context_length=_field(
            document, file, "spec.engine.contextLength", int, default=DEFAULT_CONTEXT_LENGTH
        ),
        tokens_per_second=int(speed),
        tier=tier,
        embeds=POOLING in _field(document, file, "spec.engine.extraArgs", list, default=[]),
        document=document,
    )


def _field(document: Any, file: Path, path: str, kind: type, default: Any = None) -> Any:
    value = document
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    value = default if value is None else value
    if not isinstance(value, kind) or isinstance(value, bool) or value == "":
        raise LaneError(f"{file}: {path} must be given, as {kind.__name__}")
    return value
