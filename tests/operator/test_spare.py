"""Which GPUs count as free, on nodes and pods written down here."""

from typing import Any

import pytest

from darktree_kit.cluster import Cluster, ClusterError, Object, Resource
from darktree_operator.config import AcceleratorClass
from darktree_operator.spare import asked_of, free_gpus, usable

GPU = "nvidia.com/gpu"
TAINT = {"key": GPU, "value": "present", "effect": "NoSchedule"}
L4 = AcceleratorClass(
    memory_gib=22,
    node_selector={"gpu": "l4"},
    tolerations=({"key": GPU, "operator": "Exists", "effect": "NoSchedule"},),
)


class Written(Cluster):
    """A cluster of nodes and pods that are written down; it selects as the API server does."""

    def __init__(self, nodes: list[Object], pods: list[Object], refuses: bool = False) -> None:
        super().__init__()
        self.nodes, self.pods, self.refuses = nodes, pods, refuses

    async def list(
        self, resource: Resource, namespace: str | None, selector: str = "", *, fields: str = ""
    ) -> tuple[list[Object], str]:
        if self.refuses:
            raise ClusterError(403, "Forbidden", "no")
        if resource.kind == "Node":
            assert selector == "gpu=l4"
            return self.nodes, "1"
        name = fields.split(",")[0].removeprefix("spec.nodeName=")
        return [pod for pod in self.pods if pod["spec"].get("nodeName", "") == name], "1"


def node(name: str, gpus: int, **spec: Any) -> Object:
    ready = [{"type": "Ready", "status": "True"}]
    return {
        "metadata": {"name": name},
        "spec": spec,
        "status": {"allocatable": {GPU: str(gpus)}, "conditions": ready},
    }


def pod(gpus: int, on: str = "", phase: str = "Running", kind: str = "containers") -> Object:
    spec: Object = {"containers": [{}], kind: [{"resources": {"limits": {GPU: str(gpus)}}}]}
    return {"spec": spec | ({"nodeName": on} if on else {}), "status": {"phase": phase}}


@pytest.mark.parametrize(
    ("nodes", "pods", "free"),
    [
        ([], [], 0),
        ([node("a", 2)], [], 2),
        ([node("a", 2)], [pod(1, "a"), pod(1, "a", "Succeeded")], 1),
        ([node("a", 2)], [pod(1, "a"), pod(1, phase="Pending")], 0),
        ([node("a", 1), node("b", 1)], [], 1),  # two GPUs, but no node with both
        ([node("a", 4, unschedulable=True)], [], 0),
        ([node("a", 4, taints=[TAINT])], [], 4),
        ([node("a", 4, taints=[{"key": "spot", "effect": "NoExecute"}])], [], 0),
        ([node("a", 4, taints=[{"key": "spot", "effect": "PreferNoSchedule"}])], [], 4),
        ([node("a", 4)], [pod(3, "a", kind="initContainers")], 1),
    ],
)
async def test_a_gpu_is_free_if_one_usable_node_has_it_and_nobody_waits_for_it(
    nodes: list[Object], pods: list[Object], free: int
) -> None:
    assert await free_gpus(Written(nodes, pods), L4, 99) == free


async def test_who_may_not_look_knows_of_none() -> None:
    assert await free_gpus(Written([], [], refuses=True), L4, 1) is None


def test_a_node_that_is_not_ready_is_of_no_use() -> None:
    gone = node("a", 1)
    gone["status"]["conditions"][0]["status"] = "Unknown"
    assert not usable(gone, L4)
    same = AcceleratorClass(memory_gib=1, tolerations=({"key": GPU, "value": "present"},))
    assert usable(node("a", 1, taints=[TAINT]), same)
    other = AcceleratorClass(memory_gib=1, tolerations=({"key": GPU, "value": "other"},))
    assert not usable(node("a", 1, taints=[TAINT]), other)


def test_an_ended_pod_holds_nothing() -> None:
    assert asked_of(pod(2, "a", "Failed"), GPU) == 0
    assert asked_of(pod(2, "a"), GPU) == 2
