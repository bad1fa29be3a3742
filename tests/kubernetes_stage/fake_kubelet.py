"""A node that only pretends: places pods while GPUs last, starts them, has them crash with given words, drains them.

Deployments, ReplicaSets and EndpointSlices are the real controllers' work.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from darktree_kit.cluster import Cluster, ClusterError, Missing, Resource
from darktree_kit.mirror import Key, Mirror

PODS = Resource("v1", "pods", "Pod")
NODES = Resource("v1", "nodes", "Node")
PRODUCT = {"nvidia.com/gpu.product": "NVIDIA-L4"}
GPU = "nvidia.com/gpu"
LANE_LABEL = "darktree.dev/lane"
ROUND_SECONDS = 0.05

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Crash:
    """How an engine ends by itself, each time, and how long it had run."""

    message: str
    exit_code: int = 1
    times: int = 1
    reason: str = "Error"
    after_seconds: int = 0


@dataclass(slots=True)
class FakeKubelet:
    """Plays every pod of one namespace."""

    cluster: Cluster
    namespace: str
    gpus: int = 4
    crashes: dict[str, Crash] = field(default_factory=dict)
    """By what is in the pod's arguments or its lane's name."""
    loading: set[str] = field(default_factory=set)
    """Lanes whose engines start and do not become ready; what serves already goes on."""
    unpulled: set[str] = field(default_factory=set)
    """Lanes whose image cannot be pulled."""
    stuck: set[str] = field(default_factory=set)
    """Lanes whose pods do not end when they are told."""
    unplaced: dict[str, str] = field(default_factory=dict)
    """What the scheduler says against pods of these lanes."""
    lost: set[str] = field(default_factory=set)
    """Lanes whose node does not answer any more."""
    mute: set[str] = field(default_factory=set)
    """Lanes whose engines no longer answer their probe."""
    evicted: set[str] = field(default_factory=set)
    """Lanes whose pods are evicted once they have served."""
    node: str = field(init=False)
    _pods: Mirror = field(init=False)
    _address: int = 0

    def __post_init__(self) -> None:
        self.node = f"node-of-{self.namespace}"
        self._pods = Mirror(self.cluster, PODS, namespace=self.namespace)

    async def run(self) -> None:
        """Play for as long as the task lives."""
        try:  # without a node no EndpointSlice has its pods
            await self.cluster.create(NODES, {"metadata": {"name": self.node, "labels": PRODUCT}})
        except ClusterError as error:
            if error.status != 409:
                raise
        await self.has(self.gpus)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._pods.run())
            tasks.create_task(self._rounds())

    async def has(self, gpus: int) -> None:
        """Say how many GPUs the node has, as its device plugin would."""
        self.gpus = gpus
        ready = {"type": "Ready", "status": "True", "reason": "Pretended", **_now()}
        status = {"allocatable": {GPU: str(gpus)}, "capacity": {GPU: str(gpus)}, "conditions": [ready]}
        await self.cluster.merge(NODES, "", self.node, {"status": status}, "status")
        await self.cluster.merge(
            NODES, "", self.node, {"spec": {"taints": None}}
        )  # of a node that is not ready yet

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
        elif (pod.get("status") or {}).get("phase") == "Failed":
            return
        elif not pod["spec"].get("nodeName"):
            await self._place(key, pod)
        else:
            await self._tell(key, pod, self._status(pod, lane))

    async def _remove(self, key: Key) -> None:
        path = PODS.path(*key)
        await self.cluster._call("DELETE", path, body={"gracePeriodSeconds": 0})

    async def _place(self, key: Key, pod: Object) -> None:
        asked = gpus_of(pod)
        message = self.unplaced.get((pod["metadata"].get("labels") or {}).get(LANE_LABEL, ""), "")
        if asked > self.free():
            message = f"0/1 nodes are available: 1 Insufficient {GPU}. preemption: 0/1 nodes are available."
        if message:
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
        target = {"apiVersion": "v1", "kind": "Node", "name": self.node}
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
        served = (known.get("containerStatuses") or [{}])[0].get("ready")
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
                "startedAt": _earlier(since, crash.after_seconds),
                "finishedAt": since,
            }
            if pod["spec"].get("restartPolicy") == "Never":
                return {**_status(one | {"state": {"terminated": ended}}, since, "False"), "phase": "Failed"}
            one |= {
                "restartCount": crash.times,
                "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off restarting"}},
                "lastState": {"terminated": ended},
            }
        elif lane in self.evicted and served:
            gone = {
                "phase": "Failed",
                "reason": "Evicted",
                "message": "The node was low on resource: memory.",
            }
            return {**_status(one, since, "False"), **gone}
        elif lane in self.loading and not served:
            one |= {"state": {"running": {"startedAt": since}}}
        else:
            answers = lane not in self.mute
            one |= {"state": {"running": {"startedAt": since}}, "ready": answers, "started": True}
        ready = "True" if one["ready"] and lane not in self.lost else "False"
        if not known.get("podIP"):
            self._address += 1
        address = known.get("podIP") or f"10.244.{self._address // 250}.{self._address % 250 + 1}"
        return {**_status(one, since, ready), "podIP": address, "podIPs": [{"ip": address}]}

    async def _tell(self, key: Key, pod: Object, status: Object) -> None:
        known = pod.get("status") or {}
        same = all(_has(pod, condition) for condition in status["conditions"])
        old = (known.get("containerStatuses") or [{}])[0]
        new = status["containerStatuses"][0]
        facts = ("state", "restartCount", "ready")
        if (
            same
            and all(old.get(name) == new.get(name) for name in facts)
            and status["phase"] == known.get("phase")
        ):
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


def _status(container: Object, since: str, ready: str) -> Object:
    kinds = {
        "PodScheduled": "True",
        "Initialized": "True",
        "ContainersReady": "True" if container["ready"] else "False",
        "Ready": ready,
    }
    return {
        "phase": "Running" if "running" in (container.get("state") or {}) else "Pending",
        "startTime": since,
        "conditions": [{"type": kind, "status": said} for kind, said in kinds.items()],
        "containerStatuses": [container],
    }


def _earlier(instant: str, seconds: int) -> str:
    return (datetime.fromisoformat(instant) - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


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
