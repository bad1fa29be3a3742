"""A newer operator, or another configuration, on a real API server; and rollouts that need a spare GPU."""

from typing import Any

import pytest
from fake_kubelet import FakeKubelet
from scenes import DEPLOYMENTS, LANES, PODS, MakeLane, Object, StartOperator, condition, until

from darktree_kit.cluster import Cluster
from darktree_operator.config import OperatorConfig

ALWAYS_OPEN = {"cron": "0 0 * * *", "durationMinutes": 1440}
GPU_LANE: Object = {
    "engine": {"kind": "VLLM", "contextLength": 4096},
    "model": {"source": "pvc://models/tiny"},
    "accelerator": {"class": "nvidia-l4"},
}


class Stage:
    """What the tests ask of the lanes of one namespace."""

    def __init__(self, admin: Cluster, namespace: str) -> None:
        self.admin, self.namespace = admin, namespace

    async def lane(self, name: str) -> Object:
        return await self.admin.get(LANES, self.namespace, name)

    async def says(self, name: str, kind: str, reason: str) -> Object:
        async def found() -> Object | None:
            lane = await self.lane(name)
            said = condition(lane, kind)
            current = said.get("observedGeneration") == lane["metadata"]["generation"]
            return lane if said.get("reason") == reason and current else None

        lane: Object = await until(f"{name}: {kind} {reason}", found)
        return lane

    async def image(self, name: str) -> str:
        found = await self.admin.get(DEPLOYMENTS, self.namespace, name)
        return str(found["spec"]["template"]["spec"]["containers"][0]["image"])

    async def pods(self, name: str) -> list[Object]:
        pods, _ = await self.admin.list(PODS, self.namespace, f"darktree.dev/lane={name}")
        return [pod for pod in pods if not pod["metadata"].get("deletionTimestamp")]


@pytest.fixture
def stage(admin: Cluster, namespace: str) -> Stage:
    return Stage(admin, namespace)


@pytest.fixture
def newer(config: OperatorConfig) -> OperatorConfig:
    """What the next version of the chart would configure: another image of the engine."""
    images = config.images["Simulator"].model_copy(update={"by_version": {"0.1.0": "darktree:newer"}})
    return config.model_copy(update={"images": {**config.images, "Simulator": images}})


async def test_an_upgrade_rolls_lanes_in_their_window_one_at_a_time_even_past_a_restart(
    stage: Stage,
    kubelet: FakeKubelet,
    operators: StartOperator,
    make_lane: MakeLane,
    newer: OperatorConfig,
) -> None:
    windows: dict[str, Any] = {"one": ALWAYS_OPEN, "two": ALWAYS_OPEN, "never": None}
    async with operators.running():  # type: ignore[attr-defined]
        for name, window in windows.items():
            await stage.admin.create(LANES, make_lane(name, rollout={"maintenanceWindow": window}))
        for name in windows:
            await stage.says(name, "Ready", "AsExpected")
    kubelet.loading |= {"one", "two"}  # whichever comes first stays in the middle

    async def waiting() -> str | None:
        told = {name: condition(await stage.lane(name), "UpToDate").get("reason") for name in ("one", "two")}
        waits = [name for name, reason in told.items() if reason == "WaitingForTurn"]
        return waits[0] if len(waits) == 1 and "RollingOut" in told.values() else None

    async with operators.running(config=newer):  # type: ignore[attr-defined]
        second = await until("one lane to roll and the other to wait", waiting)
        first = ({"one", "two"} - {second}).pop()
        lane = await stage.lane(first)
        assert lane["status"]["rollout"]["upgrade"] is True
        assert await stage.image(first) == "darktree:newer"
    async with operators.running(config=newer) as operator:  # type: ignore[attr-defined]

        async def looked() -> bool:
            return bool(operator.workers.looks >= len(windows))

        await until("every lane to be looked at", looked)
        lane = await stage.says(second, "UpToDate", "WaitingForTurn")
        assert await stage.image(second) == "darktree:0.1.0"
        assert lane["status"]["template"]["outdatedReplicas"] == 1
        assert condition(lane, "Ready")["status"] == "True"
        kubelet.loading.clear()
        for name in (first, second):
            lane = await stage.says(name, "UpToDate", "AsExpected")
            assert await stage.image(name) == "darktree:newer"
            assert "upgrade" not in lane["status"]["rollout"]
        lane = await stage.says("never", "UpToDate", "TemplateOutdated")
        assert await stage.image("never") == "darktree:0.1.0"
        assert condition(lane, "Ready")["status"] == "True"
        await stage.admin.merge(LANES, stage.namespace, "never", {"spec": {"restart": {"id": "now"}}})
        await stage.says("never", "UpToDate", "AsExpected")
        assert await stage.image("never") == "darktree:newer"


@pytest.mark.parametrize(("gpus", "together"), [(2, True), (1, False)])
async def test_a_surge_starts_the_successor_first_only_with_a_free_gpu(
    gpus: int,
    together: bool,
    stage: Stage,
    kubelet: FakeKubelet,
    operators: StartOperator,
    make_lane: MakeLane,
) -> None:
    await kubelet.has(gpus)
    await operators()
    await stage.admin.create(LANES, make_lane(**GPU_LANE, rollout={"strategy": "Surge"}))
    await stage.says("chat", "Ready", "AsExpected")
    (before,) = await stage.pods("chat")
    kubelet.loading.add("chat")  # what serves already goes on serving
    await stage.admin.merge(LANES, stage.namespace, "chat", {"spec": {"engine": {"contextLength": 8192}}})

    async def replaced() -> list[Object]:
        pods = await stage.pods("chat")
        names = {pod["metadata"]["name"] for pod in pods}
        new = [pod for pod in pods if pod["metadata"]["name"] != before["metadata"]["name"]]
        placed = all(pod["spec"].get("nodeName") for pod in new)
        return pods if new and placed and (before["metadata"]["name"] in names) == together else []

    await until("the successor to have its GPU", replaced)
    lane = await stage.lane("chat")
    noted = "Surge needs 1 spare GPUs, 0 are free" in condition(lane, "Accepted")["message"]
    assert noted is False or not together
    kubelet.loading.clear()
    await stage.says("chat", "Ready", "AsExpected")

    async def rests() -> bool:
        found = await stage.admin.get(DEPLOYMENTS, stage.namespace, "chat")
        return bool(found["spec"]["strategy"]["type"] == "Recreate")

    await until("the strategy at rest", rests)
