"""How kopf's handlers and the operator are wired: `kopf.operator` in the test's own loop, against kmock."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import kopf
import pytest
import yaml
from asked import of_what_happened, questions
from kmock import ResourceInfo, Server, resource
from mock_api import APPLY, MockApi
from prometheus_server import ABSENT, BINARY, Prometheus, scraping
from scenes import lane, until

from darktree_cli.ports import Ports
from darktree_kit import logs
from darktree_kit.cluster import Cluster
from darktree_operator import main as main  # its import registers the handlers
from darktree_operator.process import NotAlive, Operator

ROOT = Path(__file__).parents[2]
LANES = resource("darktree.dev", "v1alpha1", "inferencelanes")
DEPLOYMENTS = resource("apps", "v1", "deployments")
PODS = resource("", "v1", "pods")
KINDS = (
    LANES, DEPLOYMENTS, resource("apps", "v1", "controllerrevisions"), resource("batch", "v1", "jobs"),
    PODS, resource("", "v1", "services"), resource("", "v1", "events"),
    resource("", "v1", "persistentvolumeclaims"), resource("policy", "v1", "poddisruptionbudgets"),
    resource("networking.k8s.io", "v1", "networkpolicies"),
)  # fmt: skip
VERBS = {"get", "list", "watch", "create", "patch", "delete"}
LANES_PATH = "/apis/darktree.dev/v1alpha1/namespaces/default/inferencelanes"


@dataclass
class Wired:
    """The running operator, what it asked the API server, and where it answers its probe."""

    api: MockApi
    memo: kopf.Memo
    probe: str

    @property
    def operator(self) -> Operator:
        operator: Operator = self.memo.operator
        return operator

    async def create(self, document: dict[str, Any]) -> None:
        (await self.api.post(LANES_PATH, json=document)).raise_for_status()

    def applied(self) -> list[str]:
        """The names of the Deployments that were applied, in order."""
        return [
            str(asked.name)
            for asked in self.api.asked
            if asked.resource == DEPLOYMENTS and asked.headers.get("Content-Type") == APPLY
        ]

    async def play(self, name: str, *, placed: bool) -> None:
        """Be the controller and the kubelet of a Deployment: its one pod has found a GPU and serves, or waits."""
        path = f"/apis/apps/v1/namespaces/default/deployments/{name}"
        deployment = await (await self.api.get(path)).json()
        template = deployment["spec"]["template"]
        metadata = {"name": f"{name}-pod", "labels": dict(template["metadata"]["labels"])}
        began = datetime.now(UTC) - timedelta(seconds=20)
        times = {
            "created": began,
            "placed": began + timedelta(seconds=2),
            "started": began + timedelta(seconds=8),
            "ready": began + timedelta(seconds=19),
        }
        at = {what: f"{time:%Y-%m-%dT%H:%M:%SZ}" for what, time in times.items()}
        if placed:
            conditions = [
                {"type": "PodScheduled", "status": "True", "lastTransitionTime": at["placed"]},
                {"type": "Ready", "status": "True", "lastTransitionTime": at["ready"]},
            ]
            engine = {"name": "engine", "ready": True, "state": {"running": {"startedAt": at["started"]}}}
            status = {"phase": "Running", "podIP": "10.244.0.7", "containerStatuses": [engine]}
        else:
            says = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
            conditions = [
                {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": says}
                | {"lastTransitionTime": at["placed"]}
            ]
            status = {"phase": "Pending"}
        pod = {
            "metadata": metadata | {"creationTimestamp": at["created"]},
            "spec": dict(template["spec"]) | ({"nodeName": "node"} if placed else {}),
            "status": status | {"conditions": conditions},
        }
        (await self.api.post("/api/v1/namespaces/default/pods", json=pod)).raise_for_status()
        ready = int(placed)
        counts = {"replicas": 1, "updatedReplicas": 1, "readyReplicas": ready, "availableReplicas": ready}
        said = {"status": {"observedGeneration": deployment["metadata"].get("generation", 1), **counts}}
        merge = {"Content-Type": "application/merge-patch+json"}
        (await self.api.patch(f"{path}/status", json=said, headers=merge)).raise_for_status()


Start = Callable[..., Any]


@pytest.fixture
def ports() -> Iterator[Ports]:
    with Ports() as kept:
        yield kept


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ports: Ports) -> Start:
    """Makes running operators; each is an async context manager that takes the operator's settings."""
    # It is for a process: the logs of this one's later tests would be the operator's, too.
    monkeypatch.setattr(logs, "configure", lambda *_: None)

    @asynccontextmanager
    async def starting(refused: resource | None = None, **said: str) -> AsyncIterator[Wired]:
        async with MockApi() as api, Server(api) as server:
            for kind in KINDS:
                name = "InferenceLane" if kind == LANES else str(kind.plural).title()
                api.resources[kind] = ResourceInfo(kind=name, namespaced=True, verbs=VERBS)
            if refused is not None:
                api["list", refused] << 503
            kubeconfig = tmp_path / "kubeconfig"
            kubeconfig.write_text(yaml.safe_dump(_kubeconfig(str(server.url))))
            monkeypatch.setenv("DARKTREE_OPERATOR_CONFIG_FILE", str(ROOT / "examples" / "operator.yaml"))
            for name, value in said.items():
                monkeypatch.setenv(f"DARKTREE_OPERATOR_{name.upper()}", value)
            credentials = kopf.ConnectionInfo(server=str(server.url))
            memo = kopf.Memo(credentials=credentials, cluster=Cluster(str(kubeconfig)))
            wired = Wired(api, memo, f"http://127.0.0.1:{ports.free()}/healthz")
            ready, stop = asyncio.Event(), asyncio.Event()
            running = asyncio.create_task(
                kopf.operator(
                    clusterwide=True,
                    memo=wired.memo,
                    liveness_endpoint=wired.probe,
                    ready_flag=ready,
                    stop_flag=stop,
                )
            )
            try:
                async with asyncio.timeout(20):
                    await ready.wait()
                yield wired
            finally:
                stop.set()
                async with asyncio.timeout(20):
                    await running

    return starting


async def _says(wired: Wired, wanted: Callable[[int, dict[str, Any]], bool]) -> None:
    async def so() -> bool:
        try:
            async with aiohttp.ClientSession() as session, session.get(wired.probe) as answer:
                return wanted(answer.status, await answer.json() if answer.status == 200 else {})
        except aiohttp.ClientConnectionError:
            return False  # not yet

    await until("the probe to say so", so, 20)


async def _applies(wired: Wired, *names: str) -> None:
    async def found() -> bool:
        return set(names) <= set(wired.applied())

    await until(f"Deployments of {names}", found, 20)


async def test_a_lane_that_is_there_and_one_that_comes_are_looked_at(start: Start) -> None:
    async with start() as wired:
        await wired.create(lane("one"))
        await _applies(wired, "one")
        await wired.create(lane("two"))
        await _applies(wired, "one", "two")
        await _says(wired, lambda status, said: status == 200 and said["reconciling"]["lanes"] == 2)


async def test_handlers_write_nothing_to_the_lane_but_its_status(start: Start) -> None:
    async with start() as wired:
        await wired.create(lane("one"))

        async def told() -> bool:
            return any(asked.subresource == "status" for asked in wired.api.asked)

        await until("a status", told, 20)
        await wired.api.patch(f"{LANES_PATH}/one", json={"spec": {"replicas": 2}})

        async def scaled() -> bool:
            return bool(wired.api.objects[DEPLOYMENTS, "default", "one"]["spec"]["replicas"] == 2)

        await until("two replicas", scaled, 20)
    ours = [
        asked
        for asked in wired.api.asked
        if asked.resource == LANES and asked.method.value == "PATCH" and "kmock" not in str(asked.headers)
    ]
    assert {asked.subresource for asked in ours} == {"status"}
    assert "finalizers" not in wired.api.objects[LANES, "default", "one"]["metadata"]
    assert "annotations" not in wired.api.objects[LANES, "default", "one"]["metadata"]


async def test_a_deleted_lane_is_forgotten(start: Start) -> None:
    async with start() as wired:
        await wired.create(lane("one"))
        await _applies(wired, "one")
        await wired.api.delete(f"{LANES_PATH}/one")
        await _says(wired, lambda status, said: status == 200 and said["reconciling"]["lanes"] == 0)


@pytest.mark.skipif(BINARY is None, reason=ABSENT)
async def test_every_panel_about_the_operator_and_its_lanes_has_data(
    start: Start, tmp_path: Path, ports: Ports
) -> None:
    port = ports.free()
    targets = tmp_path / "targets.json"
    targets.write_text(json.dumps([{"targets": [f"127.0.0.1:{port}"], "labels": {"part": "operator"}}]))
    gpu: dict[str, Any] = {
        "engine": {"kind": "VLLM", "contextLength": 4096},
        "model": {"source": "pvc://models/tiny"},
        "accelerator": {"class": "nvidia-l4"},
    }
    async with start(metrics_port=str(port), resync_seconds="1") as wired:
        for name in ("fits", "waits"):
            await wired.create(lane(name, **gpu))
        await _applies(wired, "fits", "waits")
        await wired.play("fits", placed=True)
        await wired.play("waits", placed=False)
        with scraping(targets) as prometheus:
            await until("something to be put back", lambda: _meddled(wired, prometheus), 30)
            wired.api["patch", DEPLOYMENTS] << 503  # looks at a lane that comes now fail
            await wired.create(lane("fails"))
            boards = ("operator", "lanes")
            queries = [query for board in boards for _, query in questions(board, of_the_operator=True)]
            for query in queries:

                async def told(query: str = of_what_happened(query)) -> bool:
                    return await asyncio.to_thread(prometheus.told, query)

                await until(f"data of {query}", told, 30)


async def _meddled(wired: Wired, prometheus: Prometheus) -> bool:
    """Change what the operator says, as somebody else would; return whether it was told of that."""
    path = "/apis/apps/v1/namespaces/default/deployments/fits"
    headers = {"Content-Type": "application/merge-patch+json"}
    await wired.api.patch(path, json={"spec": {"progressDeadlineSeconds": 77}}, headers=headers)
    return await asyncio.to_thread(prometheus.told, "darktree_operator_drift_corrected_total")


async def test_the_probe_over_http_fails_when_what_must_be_read_cannot_be(start: Start) -> None:
    async with start(refused=PODS, stale_seconds="0.5") as wired:

        async def only_pods_are_unread() -> bool:
            unread = [mirror for mirror in wired.operator.fleet.mirrors() if not mirror.listed.is_set()]
            return [mirror.resource.plural for mirror in unread] == ["pods"]

        await until("everything else to be read", only_pods_are_unread, 20)
        await _says(wired, lambda status, _: status == 500)
        with pytest.raises(NotAlive, match="never read: pods"):
            wired.operator.check()


async def test_a_stopped_operator_asks_nothing_more(start: Start) -> None:
    async with start() as wired:
        await wired.create(lane("one"))
        await _applies(wired, "one")
    asked = len(wired.api.asked)
    assert all(task.done() for task in wired.operator._tasks)
    wired.operator.enqueue(("default", "one"))
    await asyncio.sleep(0)
    assert len(wired.api.asked) == asked


def _kubeconfig(url: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "mock", "cluster": {"server": url}}],
        "users": [{"name": "mock", "user": {}}],
        "contexts": [{"name": "mock", "context": {"cluster": "mock", "user": "mock"}}],
        "current-context": "mock",
    }
