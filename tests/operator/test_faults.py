"""The table of faults in docs/lanes.md: each row is produced here, on a real API server, and ends in what it says."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from alerting import PROMTOOL, check_alert
from fake_kubelet import Crash, FakeKubelet
from scenes import LANES, PODS, MakeLane, StartOperator, condition, until

from darktree_kit.cluster import Cluster, Resource
from darktree_operator import metrics
from darktree_operator.reasons import Reason

Object = dict[str, Any]
EVENTS = Resource("v1", "events", "Event")
SERVICES = Resource("v1", "services", "Service")
QUOTAS = Resource("v1", "resourcequotas", "ResourceQuota")
DEPLOYMENTS = Resource("apps/v1", "deployments", "Deployment")
GPU_LANE = {
    "engine": {"kind": "VLLM", "contextLength": 4096},
    "model": {"source": "pvc://models/tiny"},
    "accelerator": {"class": "nvidia-l4"},
}
PAGE = Path(__file__).parents[2] / "docs" / "lanes.md"


@dataclass(frozen=True, slots=True)
class Scene:
    """One lane in one fault."""

    admin: Cluster
    kubelet: FakeKubelet
    namespace: str

    async def create(self, document: Object) -> None:
        await self.admin.create(LANES, document)

    async def change(self, spec: Object, name: str = "chat") -> None:
        await self.admin.merge(LANES, self.namespace, name, {"spec": spec})

    async def lane(self, name: str = "chat") -> Object:
        return await self.admin.get(LANES, self.namespace, name)

    async def older_than(self, seconds: float) -> None:
        """Wait until the lane's engines have run for so long."""

        async def ran() -> bool:
            pods, _ = await self.admin.list(PODS, self.namespace)
            began = [datetime.fromisoformat(pod["status"]["startTime"]) for pod in pods]
            return bool(began) and datetime.now(UTC) - max(began) > timedelta(seconds=seconds)

        await until("the engines to have run", ran, 30)

    async def says(self, kind: str, status: str, reason: str, name: str = "chat") -> Object:
        """Wait until a condition is so; return the lane."""

        async def found() -> Object | None:
            lane = await self.lane(name)
            has = condition(lane, kind)
            return lane if (has.get("status"), has.get("reason")) == (status, reason) else None

        try:
            lane: Object = await until(f"{kind} {status} {reason}", found, 30)
        except BaseException:
            print((await self.lane(name)).get("status"))
            raise
        return lane


Produce = Callable[[Scene, MakeLane], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    fault: str
    condition: str
    status: str
    reason: Reason
    phase: str
    produce: Produce
    alert: str = "Stalled"
    """The alert that fires while it lasts, DarktreeLane and this; none where nobody has to be called."""


async def _crash(scene: Scene, lane: MakeLane, words: str, **crash: Any) -> None:
    scene.kubelet.crashes["chat"] = Crash(words, **crash)
    await scene.create(lane(**GPU_LANE))


async def small_cache(scene: Scene, lane: MakeLane) -> None:
    words = (
        "ValueError: The model's max seq len (4096) is larger than the maximum number of tokens that can be stored"
        " in KV cache (3584). Try increasing `gpu_memory_utilization` or decreasing `max_model_len`"
    )
    await _crash(scene, lane, words)


async def gpu_memory(scene: Scene, lane: MakeLane) -> None:
    await _crash(scene, lane, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.")


async def host_memory(scene: Scene, lane: MakeLane) -> None:
    await _crash(scene, lane, "", exit_code=137, reason="OOMKilled")


async def bad_flag(scene: Scene, lane: MakeLane) -> None:
    await _crash(scene, lane, "api_server.py: error: unrecognized arguments: --warp-speed", exit_code=2)


async def unknown_crash(scene: Scene, lane: MakeLane) -> None:
    await _crash(scene, lane, "Segmentation fault (core dumped)", exit_code=139)


async def no_gpu(scene: Scene, lane: MakeLane) -> None:
    await scene.kubelet.has(0)
    await scene.create(lane(**GPU_LANE))


async def no_image(scene: Scene, lane: MakeLane) -> None:
    scene.kubelet.unpulled.add("chat")
    await scene.create(lane())


async def no_secret(scene: Scene, lane: MakeLane) -> None:
    await scene.create(lane(**GPU_LANE, secrets={"engineKey": {"name": "nowhere", "key": "key"}}))


async def no_class(scene: Scene, lane: MakeLane) -> None:
    await scene.create(lane(**{**GPU_LANE, "accelerator": {"class": "abacus"}}))


async def no_memory(scene: Scene, lane: MakeLane) -> None:
    model = {"source": "hf://Qwen/Qwen2.5-32B-Instruct-AWQ", "revision": "0" * 40}
    await scene.create(
        lane(
            **{
                **GPU_LANE,
                "model": model,
                "engine": {"kind": "VLLM", "contextLength": 1024, "gpuMemoryPercent": 60},
            }
        )
    )


async def foreign_service(scene: Scene, lane: MakeLane) -> None:
    spec = {"ports": [{"port": 80}], "selector": {"app": "other"}}
    metadata = {"name": "chat", "namespace": scene.namespace}
    await scene.admin.create(SERVICES, {"metadata": metadata, "spec": spec})
    await scene.create(lane())


async def quota(scene: Scene, lane: MakeLane) -> None:
    metadata = {"name": "none", "namespace": scene.namespace}
    await scene.admin.create(QUOTAS, {"metadata": metadata, "spec": {"hard": {"pods": "0"}}})

    counted = {"status": {"hard": {"pods": "0"}, "used": {"pods": "0"}}}  # what its controller would say
    await scene.admin.merge(QUOTAS, scene.namespace, "none", counted, "status")
    await scene.create(lane())


async def loading(scene: Scene, lane: MakeLane) -> None:
    scene.kubelet.loading.add("chat")
    await scene.create(lane())


async def broken_gpu(scene: Scene, lane: MakeLane) -> None:
    await _crash(scene, lane, "RuntimeError: CUDA error: uncorrectable ECC error encountered")


async def unknown_model(scene: Scene, lane: MakeLane) -> None:
    await _crash(scene, lane, "ValueError: Model architectures ['OakForCausalLM'] are not supported for now.")


async def no_model(scene: Scene, lane: MakeLane) -> None:
    await _crash(scene, lane, "OSError: Repository Not Found for url: https://hub/api/models/oak.")


async def full_disk(scene: Scene, lane: MakeLane) -> None:
    await _crash(scene, lane, "OSError: [Errno 28] No space left on device")


async def slow_start(scene: Scene, lane: MakeLane) -> None:
    scene.kubelet.crashes["chat"] = Crash("", exit_code=137, after_seconds=40)
    await scene.create(lane(coldStart={"startupTimeoutSeconds": 30}))


async def download_fails(scene: Scene, lane: MakeLane) -> None:
    words = "huggingface_hub.errors.HfHubHTTPError: 503 Server Error: Service Unavailable"
    scene.kubelet.crashes["snapshot_download"] = Crash(words)
    model = {"source": "hf://Qwen/Qwen2.5-14B-Instruct-AWQ", "revision": "0" * 40}
    await scene.create(lane(**{**GPU_LANE, "model": model}))


async def no_volume(scene: Scene, lane: MakeLane) -> None:
    scene.kubelet.unplaced["chat"] = (
        "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims. not found"
    )
    await scene.create(lane())


async def no_node(scene: Scene, lane: MakeLane) -> None:
    scene.kubelet.unplaced["chat"] = "0/1 nodes are available: 1 Insufficient cpu. preemption: not helpful."
    await scene.create(lane())


async def lost_node(scene: Scene, lane: MakeLane) -> None:
    await scene.create(lane())
    await scene.says("Ready", "True", "AsExpected")
    scene.kubelet.lost.add("chat")


async def evicted(scene: Scene, lane: MakeLane) -> None:
    await scene.create(lane())
    await scene.says("Ready", "True", "AsExpected")
    scene.kubelet.loading.add("chat")
    scene.kubelet.evicted.add("chat")


async def mute(scene: Scene, lane: MakeLane) -> None:
    await scene.create(lane())
    await scene.says("Ready", "True", "AsExpected")
    await scene.older_than(2)  # its start and its failure must not fall into one second
    scene.kubelet.mute.add("chat")


async def outside_window(scene: Scene, lane: MakeLane) -> None:
    hour = (datetime.now(UTC) + timedelta(hours=12)).hour
    await scene.create(lane())
    await scene.says("Ready", "True", "AsExpected")
    window = {"cron": f"0 {hour} * * *", "durationMinutes": 60}
    await scene.change({"rollout": {"maintenanceWindow": window}, "engine": {"contextLength": 8192}})


async def busy(scene: Scene, lane: MakeLane) -> None:
    await scene.create(lane())
    await scene.says("Ready", "True", "AsExpected")
    # No gateway says that nothing is in flight, so something may be.
    await scene.change({"rollout": {"waitForIdle": True}, "engine": {"contextLength": 8192}})


async def suspended(scene: Scene, lane: MakeLane) -> None:
    await scene.create(lane(suspend=True))


async def no_replicas(scene: Scene, lane: MakeLane) -> None:
    await scene.create(lane(replicas=0))


async def downloading(scene: Scene, lane: MakeLane) -> None:
    scene.kubelet.loading.add("chat")
    model = {"source": "hf://Qwen/Qwen2.5-14B-Instruct-AWQ", "revision": "0" * 40}
    await scene.create(lane(**{**GPU_LANE, "model": model}))


async def rolled_back(scene: Scene, lane: MakeLane) -> None:
    await scene.create(lane())
    await scene.says("Ready", "True", "AsExpected")
    scene.kubelet.crashes["8192"] = Crash("Segmentation fault", times=3)
    await scene.change({"engine": {"contextLength": 8192}})


async def degraded(scene: Scene, lane: MakeLane) -> None:
    await scene.kubelet.has(1)
    await scene.create(lane(**GPU_LANE, replicas=2))
    await scene.says("Available", "True", "AsExpected")


async def paused(scene: Scene, lane: MakeLane) -> None:
    await scene.create(lane())
    await scene.says("Ready", "True", "AsExpected")
    await scene.change({"rollout": {"paused": True}, "engine": {"contextLength": 8192}})


ROWS = [
    Row("The context does not fit the cache", "Ready", "False", Reason.KV_CACHE_TOO_SMALL, "Failed", small_cache),
    Row("The GPU's memory is full", "Ready", "False", Reason.GPU_OUT_OF_MEMORY, "Failed", gpu_memory),
    Row("The node's memory is full", "Ready", "False", Reason.HOST_OUT_OF_MEMORY, "Failed", host_memory),
    Row("A flag that the engine does not know", "Ready", "False", Reason.UNSUPPORTED_FLAG, "Failed", bad_flag),
    Row("A model that the engine does not know", "Ready", "False", Reason.UNSUPPORTED_MODEL, "Failed", unknown_model),
    Row("A model that is not there", "Ready", "False", Reason.MODEL_NOT_FOUND, "Failed", no_model),
    Row("The engine finds its GPU broken", "Ready", "False", Reason.GPU_UNAVAILABLE, "Failed", broken_gpu),
    Row("A disk is full", "Ready", "False", Reason.DISK_FULL, "Failed", full_disk),
    Row("The engine crashes, nobody knows why", "Ready", "False", Reason.CRASH_LOOP, "Failed", unknown_crash),
    Row("The engine does not answer in its time", "Ready", "False", Reason.STARTUP_TIMEOUT, "Failed", slow_start),
    Row("No GPU is free", "GPUAvailable", "False", Reason.INSUFFICIENT_GPU, "WaitingForGPU", no_gpu, "WaitingForGPU"),
    Row("The volume cannot be bound", "Ready", "False", Reason.VOLUME_UNBINDABLE, "Pending", no_volume, "NotReady"),
    Row("No node takes the pod", "Ready", "False", Reason.UNSCHEDULABLE, "Pending", no_node, "NotReady"),
    Row("The image cannot be pulled", "Ready", "False", Reason.IMAGE_PULL_FAILED, "Failed", no_image),
    Row("The model cannot be fetched", "ModelCached", "False", Reason.DOWNLOAD_FAILED, "Failed", download_fails),
    Row("A secret does not exist", "Accepted", "False", Reason.SECRET_MISSING, "Failed", no_secret),
    Row("An accelerator that nobody configured", "Accepted", "False", Reason.INVALID_REFERENCE, "Failed", no_class),
    Row("The model is too large by estimate", "Accepted", "False", Reason.INSUFFICIENT_MEMORY, "Failed", no_memory),
    Row("A name is taken by another object", "Accepted", "False", Reason.CHILD_NOT_OWNED, "Failed", foreign_service),
    Row("A quota allows no pod", "Ready", "False", Reason.QUOTA_EXCEEDED, "Failed", quota),
    Row("A node does not answer", "Ready", "False", Reason.NODE_LOST, "Pending", lost_node, "NotReady"),
    Row("A pod was evicted", "Ready", "False", Reason.EVICTED, "Pending", evicted, "NotReady"),
    Row("An engine no longer answers its probe", "Ready", "False", Reason.UNHEALTHY, "Pending", mute, "NotReady"),
    Row("The engine is loading", "Ready", "False", Reason.LOADING_MODEL, "Loading", loading, "NotReady"),
    Row(
        "The model is being fetched", "ModelCached", "False", Reason.DOWNLOADING_MODEL, "Loading", downloading,
        "NotReady",
    ),
    Row("The lane is suspended", "Suspended", "True", Reason.SUSPENDED, "Suspended", suspended, ""),
    Row("No replica is asked for", "Ready", "False", Reason.NO_REPLICAS, "Pending", no_replicas, ""),
    Row("A new revision crashes", "Stalled", "True", Reason.ROLLED_BACK, "Degraded", rolled_back),
    Row("Some replicas cannot run", "Degraded", "True", Reason.INSUFFICIENT_GPU, "WaitingForGPU", degraded, "Degraded"),
    Row("A rollout is held back", "UpToDate", "False", Reason.ROLLOUT_PAUSED, "RollingOut", paused, ""),
    Row("A rollout waits for its window", "UpToDate", "False", Reason.OUTSIDE_WINDOW, "RollingOut", outside_window, ""),
    Row("A rollout waits for idleness", "UpToDate", "False", Reason.WAITING_FOR_IDLE, "RollingOut", busy, "NotReady"),
]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.produce.__name__)
async def test_a_fault_ends_in_the_condition_reason_phase_and_event_of_its_row(
    row: Row,
    admin: Cluster,
    kubelet: FakeKubelet,
    namespace: str,
    operators: StartOperator,
    make_lane: MakeLane,
) -> None:
    await operators()
    scene = Scene(admin, kubelet, namespace)
    await row.produce(scene, make_lane)
    lane = await scene.says(row.condition, row.status, row.reason)

    async def settled() -> bool:
        return bool((await scene.lane())["status"]["phase"] == row.phase)

    await until(f"phase {row.phase}", settled, 10)
    ready = condition(lane, "Ready")
    if row.reason not in {Reason.SUSPENDED, Reason.ROLLOUT_PAUSED}:
        assert (ready["status"], ready["reason"]) == ("False", row.reason)
    assert (
        ready["observedGeneration"] == lane["metadata"]["generation"] == lane["status"]["observedGeneration"]
    )

    async def told() -> bool:
        events, _ = await admin.list(EVENTS, namespace)
        return any(each["reason"] == row.reason for each in events)

    await until("an event with the reason", told, 10)
    said = {"namespace": namespace, "type": row.condition, "reason": row.reason}

    async def measured() -> bool:
        return any(
            said.items() <= sample.labels.items()
            for metric in metrics.CONDITION.collect()
            for sample in metric.samples
        )

    await until("the metric", measured, 10)
    if PROMTOOL is not None:
        name = f"DarktreeLane{row.alert}" if row.alert else "DarktreeLane.*"
        check_alert(name, bool(row.alert), metrics.CONDITION.collect(), namespace=namespace)


def test_the_page_has_every_row_of_the_table_and_every_reason() -> None:
    lines = PAGE.read_text().splitlines()
    for row in ROWS:
        alert = f"DarktreeLane{row.alert}"
        last = f"[{alert}](runbooks.md#{alert.lower()})" if row.alert else "none"
        wanted = f"| {row.fault} | {row.condition}={row.status} | `{row.reason}` | {row.phase} |"
        assert any(line.startswith(wanted) and line.endswith(f"| {last} |") for line in lines), wanted
    for reason in Reason:
        assert f"| `{reason}` | {reason.meaning} |" in lines, reason


async def test_an_evicted_pod_tells_nothing_any_more_once_another_serves(
    admin: Cluster, kubelet: FakeKubelet, namespace: str, operators: StartOperator, make_lane: MakeLane
) -> None:
    await operators()
    scene = Scene(admin, kubelet, namespace)
    await evicted(scene, make_lane)
    await scene.says("Ready", "False", "Evicted")
    kubelet.evicted.clear()
    kubelet.loading.clear()
    lane = await scene.says("Ready", "True", "AsExpected")
    assert (condition(lane, "Degraded")["status"], lane["status"]["phase"]) == ("False", "Ready")


async def test_a_diagnosis_names_the_field_to_change(
    admin: Cluster, kubelet: FakeKubelet, namespace: str, operators: StartOperator, make_lane: MakeLane
) -> None:
    await operators()
    scene = Scene(admin, kubelet, namespace)
    await small_cache(scene, make_lane)
    lane = await scene.says("Ready", "False", "KVCacheTooSmall")
    failure = lane["status"]["lastFailure"]
    assert failure["reason"] == "KVCacheTooSmall"
    assert failure["hint"].startswith("set spec.engine.contextLength to 3584 or less")
    assert "KV cache (3584)" in failure["message"]
    assert failure["exitCode"] == 1


async def test_what_waits_for_a_gpu_is_said_and_serves_once_one_is_free(
    admin: Cluster, kubelet: FakeKubelet, namespace: str, operators: StartOperator, make_lane: MakeLane
) -> None:
    await operators()
    scene = Scene(admin, kubelet, namespace)
    await no_gpu(scene, make_lane)
    lane = await scene.says("GPUAvailable", "False", "InsufficientGPU")
    gpu = lane["status"]["gpu"]
    assert gpu["waitingFor"] == "1 nvidia.com/gpu for each of 1 replicas"
    assert (gpu["perReplica"], gpu["requested"], gpu["allocated"], gpu["queuePosition"]) == (1, 1, 0, 1)
    assert "Insufficient nvidia.com/gpu" in gpu["schedulerMessage"]
    await kubelet.has(1)
    lane = await scene.says("Ready", "True", "AsExpected")
    assert lane["status"]["gpu"] == {"perReplica": 1, "requested": 1, "allocated": 1}
    assert lane["status"]["coldStart"]["lastTotalSeconds"] >= 0
    assert lane["status"]["phase"] == "Ready"


async def test_a_stuck_revision_is_not_ready_while_the_old_one_still_serves(
    admin: Cluster, kubelet: FakeKubelet, namespace: str, operators: StartOperator, make_lane: MakeLane
) -> None:
    await operators()
    scene = Scene(admin, kubelet, namespace)
    await scene.create(make_lane(replicas=2))
    lane = await scene.says("Ready", "True", "AsExpected")
    first = lane["status"]["serving"]["revisionHash"]
    kubelet.crashes["8192"] = Crash("Segmentation fault", times=1)
    await scene.change({"engine": {"contextLength": 8192}})
    lane = await scene.says("Ready", "False", "CrashLoop")
    assert condition(lane, "Available")["status"] == "True"
    assert lane["status"]["serving"]["revisionHash"] == first
    assert lane["status"]["target"]["revisionHash"] != first
    assert lane["status"]["rollout"]["state"] == "Progressing"


async def test_a_revision_that_crashes_too_often_is_rolled_back_and_the_mended_one_rolls_out(
    admin: Cluster, kubelet: FakeKubelet, namespace: str, operators: StartOperator, make_lane: MakeLane
) -> None:
    await operators()
    scene = Scene(admin, kubelet, namespace)
    await rolled_back(scene, make_lane)
    lane = await scene.says("Stalled", "True", "RolledBack")
    assert condition(lane, "Available")["status"] == "True"
    assert lane["status"]["rollout"]["state"] == "RolledBack"
    assert lane["status"]["history"][0]["outcome"] == "RolledBack"
    await scene.change({"engine": {"contextLength": 2048}})
    lane = await scene.says("Ready", "True", "AsExpected")
    assert lane["status"]["serving"] | {"since": ""} == lane["status"]["serving"] | {"since": ""}
    assert lane["status"]["serving"]["revisionHash"] == lane["status"]["target"]["revisionHash"]


async def test_drift_is_put_back_and_told_with_the_path_and_the_writer(
    admin: Cluster, kubelet: FakeKubelet, namespace: str, operators: StartOperator, make_lane: MakeLane
) -> None:
    await operators()
    scene = Scene(admin, kubelet, namespace)
    await scene.create(make_lane())
    await scene.says("Ready", "True", "AsExpected")
    image = {"spec": {"template": {"spec": {"containers": [{"name": "engine", "image": "evil:1"}]}}}}
    await admin._call(
        "PATCH",
        DEPLOYMENTS.path(namespace, "chat"),
        body=image,
        params={"fieldManager": "somebody"},
        content_type="application/strategic-merge-patch+json",
    )

    async def back() -> bool:
        found = await admin.get(DEPLOYMENTS, namespace, "chat")
        return bool(found["spec"]["template"]["spec"]["containers"][0]["image"] != "evil:1")

    await until("the image to be put back", back, 20)

    async def told() -> list[str]:
        events, _ = await admin.list(EVENTS, namespace)
        return [each["message"] for each in events if each["reason"] == "DriftCorrected"]

    (message,) = await until("an event", told, 10)
    assert "Deployment chat" in message
    assert "spec.template.spec.containers.engine.image" in message
    assert "somebody" in message


async def test_nothing_is_written_while_nothing_changes(
    admin: Cluster, kubelet: FakeKubelet, namespace: str, operators: StartOperator, make_lane: MakeLane
) -> None:
    operator = await operators()
    scene = Scene(admin, kubelet, namespace)
    await scene.create(make_lane())
    before = await scene.says("Ready", "True", "AsExpected")
    requests, looks = -1, 0

    async def quiet() -> bool:
        nonlocal requests
        same, requests = requests == operator.cluster.requests, operator.cluster.requests
        await asyncio.sleep(0.5)
        return bool(same)

    await until("it to be quiet", quiet, 20)
    looks, requests = operator.workers.looks, operator.cluster.requests
    for _ in range(20):  # twenty looks, as after hours
        operator.enqueue((namespace, "chat"))
        count = operator.workers.looks

        async def looked(count: int = count) -> bool:
            return bool(operator.workers.looks > count)

        await until("a look", looked, 10)
    assert operator.workers.looks >= looks + 20
    assert operator.cluster.requests == requests
    assert (await scene.lane())["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
