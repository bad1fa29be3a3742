"""What the operator costs, in a process of its own on a real API server: prints figures as JSON.

Pods are pretended (`tests/kubernetes_stage`), the API server, its etcd and the controllers are real. Requests go
through a proxy that counts them. Looks are brought forward, so that a minute has those of an hour.
"""

import asyncio
import json
import os
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "kubernetes_stage"))

from api_server import ApiServer, binaries, serving  # noqa: E402
from bad_network import BadNetwork, between  # noqa: E402
from fake_kubelet import FakeKubelet  # noqa: E402
from scenes import DEPLOYMENTS, LANES, condition, lane  # noqa: E402

from darktree_kit.cluster import Cluster, Resource  # noqa: E402
from darktree_operator.settings import Settings  # noqa: E402

SINGLE_LANES = 50
MANY_LANES = 200
WAIT_SECONDS = 300
LOOKS_OF_AN_HOUR = 3600 / Settings(_env_file=None).resync_seconds
QUIET_SECONDS = 60.0
NAMESPACE = "bench"
NAMESPACES = Resource("v1", "namespaces", "Namespace")


async def applied_seconds(admin: Cluster, names: list[str]) -> list[float]:
    """Create lanes at once; return how long after each one's creation its Deployment was there."""
    _, since = await admin.list(DEPLOYMENTS, NAMESPACE)
    began: dict[str, float] = {}
    took: dict[str, float] = {}

    async def follow() -> None:
        async for kind, found in admin.watch(DEPLOYMENTS, NAMESPACE, since):
            name = found["metadata"]["name"]
            if kind == "ADDED" and name in began and name not in took:
                took[name] = time.perf_counter() - began[name]
                if len(took) == len(names):
                    return

    async def create(name: str) -> None:
        began[name] = time.perf_counter()
        await admin.create(LANES, lane(name, NAMESPACE))

    async with asyncio.timeout(WAIT_SECONDS), asyncio.TaskGroup() as tasks:
        tasks.create_task(follow())
        for name in names:
            tasks.create_task(create(name))
    return list(took.values())


async def all_ready(admin: Cluster, count: int) -> float:
    """Return how long it took until so many lanes say Ready."""
    began = time.perf_counter()
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            lanes, _ = await admin.list(LANES, NAMESPACE)
            if sum(condition(each, "Ready").get("status") == "True" for each in lanes) >= count:
                return time.perf_counter() - began
            await asyncio.sleep(0.25)


async def quiet(network: BadNetwork) -> None:
    """Wait until nothing but the lease is written."""
    before: Counter[str] = Counter()
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            await asyncio.sleep(3)
            now = Counter(network.asked)
            if now["PATCH"] == before["PATCH"] and now["POST"] == before["POST"]:
                return
            before = now


async def measure(server: ApiServer) -> dict[str, Any]:
    admin = Cluster(str(server.kubeconfig()))
    await admin.create(NAMESPACES, {"metadata": {"name": NAMESPACE}})
    kubelet = FakeKubelet(admin, NAMESPACE)
    playing = asyncio.create_task(kubelet.run())
    async with between(server.url) as network:
        environment = {
            **os.environ,
            "KUBECONFIG": str(server.kubeconfig("admin", network.url)),
            "DARKTREE_OPERATOR_CONFIG_FILE": str(ROOT / "examples" / "operator.yaml"),
            "DARKTREE_OPERATOR_LEASE_NAMESPACE": NAMESPACE,
            "DARKTREE_OPERATOR_RESYNC_SECONDS": str(QUIET_SECONDS / LOOKS_OF_AN_HOUR),
            "DARKTREE_OPERATOR_LOG_LEVEL": "ERROR",
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "darktree_operator", env=environment, stdout=sys.stderr
        )
        try:
            found = await _measure(admin, network, psutil.Process(process.pid))
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()
            playing.cancel()
            await asyncio.gather(playing, return_exceptions=True)
            await admin.close()
    return {"version": server.version, **found}


async def _measure(admin: Cluster, network: BadNetwork, operator: psutil.Process) -> dict[str, Any]:
    await applied_seconds(admin, ["first"])  # it starts, lists and takes its lease
    alone = []
    for number in range(SINGLE_LANES):
        alone += await applied_seconds(admin, [f"single-{number}"])
        await admin.delete(LANES, NAMESPACE, f"single-{number}")
    await admin.delete(LANES, NAMESPACE, "first")
    await quiet(network)
    asked = sum(network.asked.values())
    together = await applied_seconds(admin, [f"lane-{number}" for number in range(MANY_LANES)])
    ready = await all_ready(admin, MANY_LANES)
    await quiet(network)
    until_quiet = sum(network.asked.values()) - asked
    before, cpu = Counter(network.asked), sum(operator.cpu_times()[:2])
    await asyncio.sleep(QUIET_SECONDS)
    idle = {kind: count - before[kind] for kind, count in network.asked.items() if count > before[kind]}
    lease_an_hour = idle.pop("PUT", 0) * 2 * 3600 / QUIET_SECONDS  # each renewal reads and writes
    looks = sum(idle.values()) - lease_an_hour * QUIET_SECONDS / 3600 / 2
    return {
        "single_ms": _percentiles(alone),
        "many_ms": _percentiles(together),
        "lanes": MANY_LANES,
        "ready_seconds_after_applied": round(ready, 1),
        "requests_a_lane_until_quiet": round(until_quiet / MANY_LANES, 1),
        "idle_requests": idle,
        "requests_a_lane_hour": round((max(0.0, looks) + lease_an_hour) / MANY_LANES, 2),
        "idle_cpu_percent": round((sum(operator.cpu_times()[:2]) - cpu) / QUIET_SECONDS * 100, 2),
        "megabytes": round(operator.memory_info().rss / 2**20, 1),
    }


def _percentiles(seconds: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {"p50": round(cuts[49] * 1000, 1), "p99": round(cuts[98] * 1000, 1)}


if __name__ == "__main__":
    folder = binaries()
    if folder is None:
        print(json.dumps(None))
    else:
        with serving(folder) as running:
            print(json.dumps(asyncio.run(measure(running))))
