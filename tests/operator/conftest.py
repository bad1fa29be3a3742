"""What the operator's tests stand on: a real API server, a namespace for each test, a node that pretends."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from api_server import ABSENT, ApiServer, binaries, serving
from fake_kubelet import NODES, FakeKubelet
from scenes import MakeLane, Object, StartOperator, lane

from darktree_kit.cluster import Cluster, Resource
from darktree_operator.config import OperatorConfig, read_config
from darktree_operator.process import Operator
from darktree_operator.settings import Settings

NAMESPACES = Resource("v1", "namespaces", "Namespace")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def api_server() -> Iterator[ApiServer]:
    """A real API server; tests that need one are skipped where there is none."""
    found = binaries()
    if found is None:
        pytest.skip(ABSENT)
    with serving(found) as server:
        print(f"real kube-apiserver {server.version}")
        yield server


@pytest.fixture
async def admin(api_server: ApiServer) -> AsyncIterator[Cluster]:
    cluster = Cluster(str(api_server.kubeconfig()))
    yield cluster
    await cluster.close()


@pytest.fixture
async def namespace(admin: Cluster) -> AsyncIterator[str]:
    """A namespace for one test; its lanes end with it, as their owner references say."""
    name = f"t-{uuid.uuid4().hex[:12]}"
    await admin.create(NAMESPACES, {"metadata": {"name": name}})
    yield name
    await admin.delete(NAMESPACES, "", name)


@pytest.fixture
def config() -> OperatorConfig:
    return read_config(ROOT / "examples" / "operator.yaml")


@pytest.fixture
async def kubelet(api_server: ApiServer, admin: Cluster, namespace: str) -> AsyncIterator[FakeKubelet]:
    """A node with four GPUs that pretends to run what the real controllers make."""
    if not api_server.controllers:
        pytest.skip("kube-controller-manager is not beside kube-apiserver: nobody makes pods of Deployments")
    kubelet = FakeKubelet(admin, namespace)
    playing = asyncio.create_task(kubelet.run())
    yield kubelet
    assert not playing.done(), playing.exception()
    playing.cancel()
    await asyncio.gather(playing, return_exceptions=True)
    await admin.delete(NODES, "", kubelet.node)


@pytest.fixture
def make_lane(namespace: str) -> MakeLane:
    """Makes documents of lanes in the test's namespace."""

    def make(name: str = "chat", **spec: Any) -> Object:
        return lane(name, namespace, **spec)

    return make


@pytest.fixture
async def operators(
    api_server: ApiServer, namespace: str, config: OperatorConfig
) -> AsyncIterator[StartOperator]:
    """Makes running operators of the test's namespace, in this process; each is an async context manager."""
    async with AsyncExitStack() as stack:

        @asynccontextmanager
        async def running(
            user: str = "admin",
            url: str | None = None,
            config: OperatorConfig = config,
            **said: Any,
        ) -> AsyncIterator[Operator]:
            cluster = Cluster(str(api_server.kubeconfig(user, url)))
            operator = Operator(Settings(**{"namespace": namespace, **said}), config, cluster)
            await operator.start()
            try:
                yield operator
            finally:
                await operator.stop()

        async def start(**said: Any) -> Operator:
            operator: Operator = await stack.enter_async_context(running(**said))
            return operator

        start.running = running  # type: ignore[attr-defined]
        yield start
