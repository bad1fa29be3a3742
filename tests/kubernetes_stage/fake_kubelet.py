"""A node that only pretends: places pods while GPUs last, starts them, has them crash with given words, drains them.

Deployments, ReplicaSets and EndpointSlices are the real controllers' work.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from darktree_kit.cluster import Cluster, ClusterError, Missing, Resource
from darktree_kit.mirror import Key, Mirror

PODS = Resource("v1", "pods", "Pod")
NODES = Resource("v1", "nodes", "Node")
NODE = "node-1"
GPU = "nvidia.com/gpu"
LANE_LABEL = "darktree.dev/lane"
ROUND_SECONDS = 0.05

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Crash:
    """How an engine ends by itself, each time."""

    message: str
    exit_code: int = 1
    times: int = 1
    reason: str = "Error"


@dataclass(slots=True)
class FakeKubelet:
    """Plays every pod of one namespace."""

    cluster: Cluster
    namespace: str
    gpus: int = 4
    crashes: dict[str, Crash] = field(default_factory=dict)
    """By what is in the pod's arguments or its lane's name."""
    loading: set[str] = field(default_factory=set)
    """Lanes whose engines start and do not become ready."""
    unpulled: set[str] = field(default_factory=set)
    """Lanes whose image cannot be pulled."""
    stuck: set[str] = field(default_factory=set)
    """Lanes whose pods do not end when they are told."""
    _pods: Mirror = field(init=False)
    _address: int = 0

    def __post_init__(self) -> None:
        self._pods = Mirror(self.cluster, PODS, namespace=self.namespace)

    async def run(self) -> None:
        """Play for as long as the task lives."""
        try:  # without a node no EndpointSlice has its pods
            await self.cluster.create(NODES, {"metadata": {"name": NODE}})
        except ClusterError as error:
            if error.status != 409:
                raise
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._pods.run())
            tasks.create_task(self._rounds())

    async def _rounds(self) -> None:
        while True:
            for key in sorted(self._pods.objects):
                pod = self._pods.objects.get(key)
                if pod is not None:
                    try:
                        await self._play(key, pod)
                    except Missing:
                        continue
                    except ClusterError as error:
                        if error.status not in {0, 409, 429}:
                            raise
            await asyncio.sleep(ROUND_SECONDS)

    async def _play(self, key: Key, pod: Object) -> None:
        lane = (pod["metadata"].get("labels") or {}).get(LANE_LABEL, "")
        if pod["metadata"].get("deletionTimestamp"):
            if lane not in self.stuck:
                await self._remove(key)
        elif not pod["spec"].get("nodeName"):
            await self._place(key, pod)
        else:
            await self._tell(key, pod, self._status(pod, lane))

    async def _remove(self, key: Key) -> None:
        path = PODS.path(*key)
        await self.cluster._call("DELETE", path, body={"gracePeriodSeconds": 0})

    async def _place(self, key: Key, pod: Object) -> None:
        asked = gpus_of(pod)
        if asked > self.free():
            message = f"0/1 nodes are available: 1 Insufficient {GPU}. preemption: 0/1 nodes are available."
            condition = {
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": message,
            }
            if not _has(pod, condition):
                await self._patch(key, {"phase": "Pending", "conditions": [{**condition, **_now()}]})
            return
        binding = Resource("v1", f"pods/{key[1]}/binding", "Binding")
        target = {"apiVersion": "v1", "kind": "Node", "name": NODE}
        metadata = {"name": key[1], "namespace": key[0]}
        body = {"apiVersion": "v1", "kind": "Binding", "metadata": metadata, "target": target}
        await self.cluster.create(binding, body)
        self._pods.put(await self.cluster.get(PODS, *key))

    def free(self) -> int:
        """Return how many GPUs no pod has."""
        return self.gpus - sum(
            gpus_of(pod) for pod in self._pods.objects.values() if pod["spec"].get("nodeName")
        )

    def _status(self, pod: Object, lane: str) -> Object:
        container = pod["spec"]["containers"][0]
        words = " ".join([lane, *(container.get("args") or ()), *(container.get("command") or ())])
        crash = next((crash for mark, crash in self.crashes.items() if mark in words), None)
        known = pod.get("status") or {}
        since = known.get("startTime") or _now()["lastTransitionTime"]
        one: Object = {
            "name": container["name"],
            "image": container["image"],
            "imageID": f"{container['image']}@sha256:{'0' * 64}",
            "restartCount": 0,
            "ready": False,
            "started": False,
        }
        if lane in self.unpulled:
            one["state"] = {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}}
        elif crash is not None:
            ended = {
                "exitCode": crash.exit_code,
                "reason": crash.reason,
                "message": crash.message,
                "startedAt": since,
                "finishedAt": since,
            }
            one |= {
                "restartCount": crash.times,
                "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off restarting"}},
                "lastState": {"terminated": ended},
            }
        elif lane in self.loading:
            one |= {"state": {"running": {"startedAt": since}}}
        else:
            one |= {"state": {"running": {"startedAt": since}}, "ready": True, "started": True}
        ready = "True" if one["ready"] else "False"
        if not known.get("podIP"):
            self._address += 1
        address = known.get("podIP") or f"10.244.{self._address // 250}.{self._address % 250 + 1}"
        kinds = {
            "PodScheduled": "True",
            "Initialized": "True",
            "ContainersReady": ready,
            "Ready": ready,
        }
        return {
            "phase": "Running" if "running" in one["state"] else "Pending",
            "startTime": since,
            "podIP": address,
            "podIPs": [{"ip": address}],
            "conditions": [{"type": kind, "status": said} for kind, said in kinds.items()],
            "containerStatuses": [one],
        }

    async def _tell(self, key: Key, pod: Object, status: Object) -> None:
        known = pod.get("status") or {}
        same = all(_has(pod, condition) for condition in status["conditions"])
        old = (known.get("containerStatuses") or [{}])[0]
        new = status["containerStatuses"][0]
        facts = ("state", "restartCount", "ready")
        if same and all(old.get(name) == new.get(name) for name in facts):
            return
        before = {each["type"]: each for each in known.get("conditions") or ()}
        conditions = [
            {**before.get(each["type"], {}), **each}
            if before.get(each["type"], {}).get("status") == each["status"]
            else {**each, **_now()}
            for each in status["conditions"]
        ]
        await self._patch(key, {**status, "conditions": conditions})

    async def _patch(self, key: Key, status: Object) -> None:
        self._pods.put(await self.cluster.merge(PODS, *key, {"status": status}, "status"))


def gpus_of(pod: Object) -> int:
    """Return how many GPUs a pod asks for."""
    limits: Iterable[Object] = (
        each.get("resources", {}).get("limits", {}) for each in pod["spec"]["containers"]
    )
    return sum(int(each.get(GPU, 0)) for each in limits)


def _has(pod: Object, condition: Object) -> bool:
    found = (pod.get("status") or {}).get("conditions") or ()
    return any(
        each["type"] == condition["type"]
        and each["status"] == condition["status"]
        and each.get("message", "") == condition.get("message", "")
        for each in found
    )


def _now() -> Object:
    return {"lastTransitionTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}
