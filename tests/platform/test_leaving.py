"""A gateway that is told to stop leaves under load, and not one request fails."""

import asyncio
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
from held_ports import free_port

HOST = "127.0.0.1"
LEAVING_SECONDS = 4
FAST, SLOW = "qwen25-14b-awq", "qwen25-32b-awq"


@pytest.fixture(scope="module")
def platform(started: Callable[..., Any]) -> Iterator[Any]:
    with started({"fast": 5000, "slow": 40}, gateways=1) as running:
        yield running


@contextmanager
def shared_port() -> Iterator[int]:
    """A port that several processes can listen on, and that nobody else is given."""
    with socket.socket() as kept:
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        kept.bind((HOST, 0))
        yield int(kept.getsockname()[1])


class Process:
    """A gateway in a process of its own, on a port that it shares."""

    def __init__(self, platform: Any, port: int, private_port: int, journal: Path) -> None:
        self.private_url = f"http://{HOST}:{private_port}"
        environment = platform.process("gateway-1").environ() | {
            "DARKTREE_GATEWAY_PORT": str(port),
            "DARKTREE_GATEWAY_PRIVATE_PORT": str(private_port),
            "DARKTREE_GATEWAY_SHARED_PORT": "true",
            "DARKTREE_GATEWAY_JOURNAL_DIR": str(journal),
            "DARKTREE_GATEWAY_LEAVING_SECONDS": str(LEAVING_SECONDS),
        }
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "darktree_gateway"], env=environment, stderr=subprocess.DEVNULL
        )

    def readiness(self) -> int:
        try:
            return httpx.get(f"{self.private_url}/readyz").status_code
        except httpx.HTTPError:
            return 0

    def terminate(self) -> None:
        self._popen.send_signal(signal.SIGTERM)

    def has_ended(self) -> bool:
        return self._popen.poll() is not None

    def close(self) -> None:
        self._popen.kill()
        self._popen.wait()


class Load:
    """Clients that send one request after the other, and never repeat one that fails."""

    def __init__(self, url: str, key: str) -> None:
        self.url = f"{url}/v1/completions"
        self.headers = {"Authorization": f"Bearer {key}"}
        self.outcomes: Counter[str] = Counter()
        self.going_on = True

    async def run(self, clients: int) -> None:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, headers=self.headers) as session:
            work = [self._client(session, number) for number in range(clients)]
            await asyncio.gather(*work)

    async def _client(self, session: aiohttp.ClientSession, number: int) -> None:
        model, tokens = (SLOW, 40) if number % 4 == 0 else (FAST, 4)
        while self.going_on:
            body = {"model": model, "prompt": "x", "max_tokens": tokens, "stream": number % 2 == 0}
            headers = {"Connection": "close"} if number % 5 == 0 else {}
            try:
                async with session.post(self.url, json=body, headers=headers) as answer:
                    content = await answer.read()
                whole = not body["stream"] or content.endswith(b"data: [DONE]\n\n")
                self.outcomes["ok" if answer.status == 200 and whole else str(answer.status)] += 1
            except (aiohttp.ClientError, OSError) as error:
                self.outcomes[f"{type(error).__name__}: {error}"] += 1


def test_not_one_request_fails_when_a_gateway_leaves_under_load(
    platform: Any, eventually: Callable[..., Any], background: Any, tmp_path: Path
) -> None:
    customer = platform.customer(cap_tokens=100_000_000, dollars="1000000")
    with ExitStack() as stack:
        port = stack.enter_context(shared_port())
        gateways = [Process(platform, port, free_port(), tmp_path / "journal") for _ in range(2)]
        for gateway in gateways:
            stack.callback(gateway.close)
        eventually(lambda: all(gateway.readiness() == 200 for gateway in gateways), "both are ready")
        load = Load(f"http://{HOST}:{port}", customer.key)
        running = background.start(load.run(24))
        eventually(lambda: load.outcomes["ok"] > 50, "the load runs")
        leaving = gateways[0]
        began = time.monotonic()
        leaving.terminate()
        eventually(lambda: leaving.readiness() == 503, "first it is not ready")
        eventually(leaving.has_ended, "then it has ended")
        assert time.monotonic() - began > LEAVING_SECONDS
        served = load.outcomes["ok"]
        eventually(lambda: load.outcomes["ok"] > served + 50, "the other serves on")
        load.going_on = False
        running.result(60)
    assert set(load.outcomes) == {"ok"}
    assert platform.open_holds([customer]) == 0
