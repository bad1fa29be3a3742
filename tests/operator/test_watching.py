"""A real Prometheus watches a running operator: what befalls lanes fires its alert and clears, each panel has data."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from api_server import ApiServer
from asked import questions
from fake_kubelet import Crash, FakeKubelet
from prometheus_server import ABSENT, BINARY, Prometheus, scraping
from scenes import DEPLOYMENTS, LANES, MakeLane, until

from darktree_kit.cluster import Cluster

pytestmark = [pytest.mark.skipif(BINARY is None, reason=ABSENT), pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
FIRES_SECONDS = 120
GPU_LANE: dict[str, Any] = {
    "engine": {"kind": "VLLM", "contextLength": 4096},
    "model": {"source": "pvc://models/tiny"},
    "accelerator": {"class": "nvidia-l4"},
}


@pytest.fixture
def port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
async def operator(
    api_server: ApiServer, namespace: str, kubelet: FakeKubelet, port: int
) -> AsyncIterator[asyncio.subprocess.Process]:
    """The operator's own process, with its metrics on a port."""
    said = {
        "DARKTREE_OPERATOR_KUBECONFIG": str(api_server.kubeconfig()),
        "KUBECONFIG": str(api_server.kubeconfig()),
        "DARKTREE_OPERATOR_CONFIG_FILE": str(ROOT / "examples" / "operator.yaml"),
        "DARKTREE_OPERATOR_NAMESPACE": namespace,
        "DARKTREE_OPERATOR_METRICS_PORT": str(port),
        "DARKTREE_OPERATOR_RESYNC_SECONDS": "2",
    }
    command = (sys.executable, "-m", "darktree_operator")
    process = await asyncio.create_subprocess_exec(*command, env={**os.environ, **said})
    yield process
    process.kill()  # how it stops in order is tried in test_process.py
    await process.wait()


@pytest.fixture
def prometheus(operator: asyncio.subprocess.Process, port: int, tmp_path: Path) -> Iterator[Prometheus]:
    targets = tmp_path / "targets.json"
    targets.write_text(json.dumps([{"targets": [f"127.0.0.1:{port}"], "labels": {"part": "operator"}}]))
    with scraping(targets) as running:
        yield running


async def fires(prometheus: Prometheus, name: str, is_so: bool = True, **labels: str) -> None:
    async def found() -> bool:
        return await asyncio.to_thread(prometheus.fires, name, **labels) is is_so

    await until(f"{name} to {'fire' if is_so else 'clear'}", found, FIRES_SECONDS)


async def test_what_befalls_lanes_fires_and_clears_and_every_panel_has_data(
    admin: Cluster,
    namespace: str,
    kubelet: FakeKubelet,
    make_lane: MakeLane,
    operator: asyncio.subprocess.Process,
    prometheus: Prometheus,
) -> None:
    kubelet.gpus = 1
    kubelet.crashes["broken"] = Crash(
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
    )
    simulated = {"engine": {"kind": "Simulator", "contextLength": 4096}}
    await admin.create(LANES, make_lane("fits", **GPU_LANE))

    async def serves() -> bool:
        return bool((await admin.get(LANES, namespace, "fits")).get("status", {}).get("availableReplicas"))

    await until("the first lane to serve", serves)
    await admin.create(LANES, make_lane("waits", **GPU_LANE))
    await admin.create(LANES, make_lane("broken", **simulated))
    await fires(prometheus, "DarktreeLaneStalled", lane="broken", reason="GPUOutOfMemory")
    await fires(prometheus, "DarktreeLaneWaitingForGPU", lane="waits")
    await fires(prometheus, "DarktreeLaneNotReady", lane="waits", reason="InsufficientGPU")

    async def meddled() -> bool:
        change = {"spec": {"progressDeadlineSeconds": 77}}
        await admin.merge(DEPLOYMENTS, namespace, "fits", change)
        return await asyncio.to_thread(prometheus.fires, "DarktreeLaneDrift", kind="Deployment")

    await until("drift to be told", meddled, FIRES_SECONDS)
    kubelet.gpus = 2
    await admin.delete(LANES, namespace, "broken")
    for name in ("DarktreeLaneStalled", "DarktreeLaneWaitingForGPU", "DarktreeLaneNotReady"):
        await fires(prometheus, name, False)
    operator.send_signal(signal.SIGSTOP)
    await fires(prometheus, "DarktreeOperatorStale")
    operator.send_signal(signal.SIGCONT)
    await fires(prometheus, "DarktreeOperatorStale", False)
    empty = [
        (panel, query)
        for board in ("operator", "lanes")
        for panel, query in questions(board, of_the_operator=True)
        if not await asyncio.to_thread(prometheus.ever, query)
    ]
    assert empty == []
