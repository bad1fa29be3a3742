"""Lanes to try, how to wait for what becomes of them, and how to read it."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from darktree_kit.cluster import Missing, Resource

WAIT_SECONDS = 90.0
LANES = Resource("darktree.dev/v1alpha1", "inferencelanes", "InferenceLane")
DEPLOYMENTS = Resource("apps/v1", "deployments", "Deployment")
PODS = Resource("v1", "pods", "Pod")
EVENTS = Resource("v1", "events", "Event")

Object = dict[str, Any]
MakeLane = Callable[..., Object]
StartOperator = Callable[..., Any]


def lane(name: str = "chat", namespace: str = "default", **spec: Any) -> Object:
    """Return a lane of a simulated engine; `spec` adds to it, with members of members merged."""
    document: Object = {
        "apiVersion": "darktree.dev/v1alpha1",
        "kind": "InferenceLane",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "tier": "Standard",
            "model": {"source": "hf://example/tiny", "servedName": "tiny"},
            "engine": {"kind": "Simulator", "contextLength": 4096},
        },
    }
    merge(document["spec"], spec)
    return document


def merge(into: Object, more: Object) -> None:
    """Put members over members, as a merge patch does."""
    for key, value in more.items():
        if value is None:
            into.pop(key, None)
        elif isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value


async def until(what: str, found: Callable[[], Any], seconds: float = WAIT_SECONDS) -> Any:
    """Return what `found` (a coroutine function) returns once that is true; it may raise Missing meanwhile."""
    last: Any = None
    try:
        async with asyncio.timeout(seconds):
            while True:
                try:
                    last = await found()
                    if last:
                        return last
                except Missing:
                    pass
                await asyncio.sleep(0.05)
    except TimeoutError:
        pytest.fail(f"waited {seconds:.0f} s for {what}; last: {str(last)[:500]}")


def condition(lane: Object, kind: str) -> Object:
    """Return a lane's condition, empty if it has none of the kind."""
    conditions = (lane.get("status") or {}).get("conditions") or ()
    return next((each for each in conditions if each["type"] == kind), {})
