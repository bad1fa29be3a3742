"""The process that users start: `kopf run` against a kubeconfig, its probe, its lease, and how it stops."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
from api_server import ApiServer
from held_ports import free_port
from scenes import DEPLOYMENTS, LANES, MakeLane, until

from darktree_kit.cluster import Cluster, Resource
from darktree_kit.errors import ApiError
from darktree_kit.http import InternalClient

ROOT = Path(__file__).parents[2]
LEASES = Resource("coordination.k8s.io/v1", "leases", "Lease")
COMMANDS = {
    "kopf run": ["-m", "kopf", "run", "-A", "-m", "darktree_operator.main", "--liveness"],
    "python -m darktree_operator": ["-m", "darktree_operator"],
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
async def test_the_process_applies_a_lane_answers_its_probe_and_gives_the_lease_back_when_stopped(
    command: list[str], api_server: ApiServer, admin: Cluster, namespace: str, make_lane: MakeLane
) -> None:
    url = f"http://127.0.0.1:{free_port()}/healthz"
    kubeconfig = str(api_server.kubeconfig())
    said = {
        "KUBECONFIG": kubeconfig,
        "DARKTREE_OPERATOR_KUBECONFIG": kubeconfig,
        "DARKTREE_OPERATOR_CONFIG_FILE": str(ROOT / "examples" / "operator.yaml"),
        "DARKTREE_OPERATOR_NAMESPACE": namespace,
        "DARKTREE_OPERATOR_LEASE_NAMESPACE": namespace,
        "DARKTREE_OPERATOR_LIVENESS_URL": url,
    }
    arguments = [*command, url] if command[-1] == "--liveness" else command
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, env={**os.environ, **said})
    try:
        await admin.create(LANES, make_lane())

        async def applied() -> object:
            return await admin.get(DEPLOYMENTS, namespace, "chat")

        await until("the Deployment", applied)
        async with InternalClient(url.removesuffix("/healthz"), "", service="operator") as probe:

            async def alive() -> bool:
                try:
                    answer = await probe.call_json("GET", "/healthz")
                except ApiError:
                    return False
                return bool(answer["reconciling"]["lanes"] == 1 and answer["reconciling"]["leading"])

            await until("the probe", alive)
        found = await admin.get(LANES, namespace, "chat")
        assert "finalizers" not in found["metadata"]
        assert not found["metadata"].get("annotations")
    finally:
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            code = await process.wait()
    assert code == 0
    lease = await admin.get(LEASES, namespace, "darktree-operator")
    assert not lease["spec"]["holderIdentity"]
