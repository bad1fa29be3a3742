"""Lanes to test: the real application on a real socket, and a client for it."""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp

from darktree_simulator.app import make_app
from darktree_simulator.settings import Settings

TIMEOUT_SECONDS = 20

Lane = httpx.Client
MakeLane = Callable[..., httpx.Client]


@pytest.fixture
def make_lane(serve: Callable[[ASGIApp], str]) -> Iterator[MakeLane]:
    """Serves a lane with these settings, as fast as possible unless they say otherwise."""
    with ExitStack() as clients:

        def make(**settings: Any) -> httpx.Client:
            url = serve(make_app(Settings(**({"models": ["tree"]} | settings))))
            return clients.enter_context(httpx.Client(base_url=url, timeout=TIMEOUT_SECONDS))

        yield make


@pytest.fixture
def lane(make_lane: MakeLane) -> httpx.Client:
    return make_lane()


@pytest.fixture
def metric() -> Callable[[httpx.Client, str], float]:
    """Reads one metric of a lane, the sum over its labels."""

    def read(lane: httpx.Client, name: str) -> float:
        text = lane.get("/metrics").text
        found = re.findall(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)
        assert found, f"no metric {name}"
        return sum(float(value) for value in found)

    return read
