"""The InferenceLane that a request for a dedicated lane comes to, filled in and ready to be applied.

What a lane of a model is made of stands with the model in the plans file. From the request come the customer, the
model, and how many replicas its tokens need. What a customer wrote is only ever a value, never a comment: YAML ends a
comment at characters that no terminal shows.
"""

import hashlib
import re
from typing import Any

import yaml

from darktree_billing.errors import NoDedicatedLane
from darktree_billing.plans import DedicatedLane, Plans
from darktree_billing.request_schemas import LaneRequestView

MEDIA_TYPE = "application/yaml"
API_VERSION = "darktree.dev/v1alpha1"
KIND = "InferenceLane"
MAX_NAME_CHARACTERS = 40  # the lane's children have names and labels that begin with its own
MAX_REPLICAS = 256
BUSY_HOURS = 8  # a day's tokens come in so many hours: traffic is no straight line
HASH_CHARACTERS = 6


def lane_manifest(request: LaneRequestView, plans: Plans) -> str:
    """Return the manifest as YAML. Raises NoDedicatedLane when the plans file does not say what such a lane is."""
    model = next((model for model in plans.models if model.id == request.model), None)
    if model is None or model.dedicated_lane is None:
        raise NoDedicatedLane(request.model)
    replicas = replicas_for(request.tokens_per_day, model.dedicated_lane)
    document = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": lane_name(request), "annotations": _annotations(request)},
        "spec": _spec(request, model.dedicated_lane, replicas),
    }
    rate = -(-request.tokens_per_day // (BUSY_HOURS * 3600))
    told = [
        f"A dedicated lane for {request.customer_id}, asked for on {request.asked_at:%Y-%m-%d}.",
        f"{request.tokens_per_day:,} tokens a day, if they come in {BUSY_HOURS} hours, are {rate:,} a second;",
        f"one replica serves about {model.dedicated_lane.tokens_per_second:,}: {_count(replicas)}.",
    ]
    written = yaml.safe_dump(document, sort_keys=False, allow_unicode=False, width=1000)
    return "".join(f"# {line}\n" for line in told) + written


def replicas_for(tokens_per_day: int, lane: DedicatedLane) -> int:
    """Return how many replicas serve so many tokens in a day's busy hours; one lane has at most `MAX_REPLICAS`."""
    a_replica = lane.tokens_per_second * BUSY_HOURS * 3600
    return min(max(1, -(-tokens_per_day // a_replica)), MAX_REPLICAS)


def lane_name(request: LaneRequestView) -> str:
    """Return the lane's name: readable, and another one for another customer or model."""
    whole = f"dedicated-{request.customer_id}-{request.model}"
    name = re.sub(r"[^a-z0-9-]+", "-", whole.lower()).strip("-")
    if name == whole and len(name) <= MAX_NAME_CHARACTERS:
        return name
    distinct = hashlib.sha256(whole.encode()).hexdigest()[:HASH_CHARACTERS]
    return f"{name[: MAX_NAME_CHARACTERS - HASH_CHARACTERS - 1].rstrip('-')}-{distinct}"


def _spec(request: LaneRequestView, lane: DedicatedLane, replicas: int) -> dict[str, Any]:
    spec = {name: part for name, part in lane.spec.items() if name not in {"model", "autoscaling"}}
    return (
        {"tier": "Dedicated", "customerRef": request.customer_id}
        | {"model": {**lane.spec.get("model", {}), "servedName": request.model}}
        | spec
        | {"replicas": replicas}
    )


def _annotations(request: LaneRequestView) -> dict[str, str]:
    told = {
        "darktree.dev/lane-request": request.id,
        "darktree.dev/tokens-per-day": str(request.tokens_per_day),
    }
    if request.first_token_milliseconds is not None:
        told["darktree.dev/first-token-milliseconds"] = str(request.first_token_milliseconds)
    return told


def _count(replicas: int) -> str:
    if replicas == MAX_REPLICAS:
        return f"{replicas} replicas, the most that one lane has"
    return "1 replica" if replicas == 1 else f"{replicas} replicas"
