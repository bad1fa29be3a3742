"""Operators that run: who leads, what a restart finds, how gateways' load moves replicas, what the gateway follows."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from aiohttp import web
from fake_kubelet import FakeKubelet
from scenes import LANES, MakeLane, Object, StartOperator, condition, until

from darktree_gateway.cluster_lanes import ClusterLanes
from darktree_gateway.lanes import LaneTable
from darktree_kit.cluster import Cluster, Resource
from darktree_operator.process import NotAlive, Operator

DEPLOYMENTS = Resource("apps/v1", "deployments", "Deployment")


@dataclass
class Gateway:
    """A gateway's metrics."""

    url: str = ""
    in_flight: dict[str, int] = field(default_factory=dict)
    queued: dict[str, int] = field(default_factory=dict)

    async def answer(self, _: web.Request) -> web.Response:
        lines = [
            f'darktree_lane_in_flight{{lane="{name}"}} {count}.0' for name, count in self.in_flight.items()
        ]
        lines += [f'darktree_lane_queued{{lane="{name}"}} {count}.0' for name, count in self.queued.items()]
        return web.Response(text="\n".join(lines) + "\n")


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    found = Gateway()
    app = web.Application()
    app.router.add_get("/metrics", found.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    found.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield found
    await runner.cleanup()


@dataclass
class Stage:
    admin: Cluster
    namespace: str

    async def lane(self, name: str = "chat") -> Object:
        return await self.admin.get(LANES, self.namespace, name)

    async def ready(self, reason: str, name: str = "chat") -> Object:
        async def found() -> Object | None:
            lane = await self.lane(name)
            return lane if condition(lane, "Ready").get("reason") == reason else None

        lane: Object = await until(f"Ready to be {reason}", found, 30)
        return lane

    async def replicas(self, count: int, name: str = "chat") -> None:
        async def found() -> bool:
            deployment = await self.admin.get(DEPLOYMENTS, self.namespace, name)
            return bool(deployment["spec"]["replicas"] == count)

        await until(f"{count} replicas", found, 30)


@pytest.fixture
def stage(admin: Cluster, namespace: str) -> Stage:
    return Stage(admin, namespace)


SLEEPY = {
    "tier": "Dedicated",
    "customerRef": "acme",
    "autoscaling": {
        "minReplicas": 0,
        "maxReplicas": 3,
        "targetInflightPerReplica": 4,
        "scaleDownDelaySeconds": 0,
        "idleTimeoutSeconds": 60,
    },
}


async def test_replicas_follow_what_the_gateways_have_in_flight(
    stage: Stage, kubelet: FakeKubelet, operators: StartOperator, make_lane: MakeLane, gateway: Gateway
) -> None:
    await operators(gateway_urls=gateway.url, gateway_seconds=0.1)
    gateway.in_flight["chat"] = 1
    await stage.admin.create(LANES, make_lane(**SLEEPY))
    await stage.ready("AsExpected")
    await stage.replicas(1)
    gateway.in_flight["chat"] = 9
    await stage.replicas(3)
    gateway.in_flight["chat"] = 2
    await stage.replicas(1)
    lane = await stage.ready("AsExpected")
    history = [(row["from"], row["to"]) for row in lane["status"]["scaling"]["history"]]
    assert history[:2] == [(3, 1), (1, 3)]


async def test_a_dedicated_lane_sleeps_when_nothing_comes_and_wakes_for_a_request(
    stage: Stage, kubelet: FakeKubelet, operators: StartOperator, make_lane: MakeLane, gateway: Gateway
) -> None:
    gateway.queued["chat"] = gateway.in_flight["chat"] = 0
    document = make_lane(**SLEEPY)
    document["spec"]["autoscaling"]["idleTimeoutSeconds"] = 60
    first = await operators(gateway_urls=gateway.url, gateway_seconds=0.1)
    await stage.admin.create(LANES, document)
    await stage.ready("AsExpected")
    lane = await stage.lane()
    assert lane["status"]["coldStart"]["lastTotalSeconds"] >= 0
    long_ago = {"status": {"scaling": {"lastActiveAt": "2020-01-01T00:00:00Z"}}}
    await stage.admin.merge(LANES, stage.namespace, "chat", long_ago, "status")
    await asyncio.sleep(0)
    first.enqueue((stage.namespace, "chat"))
    lane = await stage.ready("Asleep")
    await stage.replicas(0)
    assert lane["status"]["phase"] == "Asleep"
    assert condition(lane, "Stalled")["status"] == "False"
    gateway.queued["chat"] = 1
    await stage.replicas(1)
    gateway.queued["chat"], gateway.in_flight["chat"] = 0, 1
    await stage.ready("AsExpected")


async def test_nothing_is_shrunk_while_no_gateway_answers(
    stage: Stage, kubelet: FakeKubelet, operators: StartOperator, make_lane: MakeLane
) -> None:
    await operators(gateway_urls="http://127.0.0.1:9", gateway_seconds=0.1)
    await stage.admin.create(LANES, make_lane(**SLEEPY))
    lane = await stage.ready("AsExpected")
    scaled = condition(lane, "Scaled")
    assert (scaled["status"], scaled["reason"]) == ("Unknown", "SignalMissing")


async def test_replicas_by_the_scale_subresource_are_followed_and_not_fought(
    stage: Stage, kubelet: FakeKubelet, operators: StartOperator, make_lane: MakeLane
) -> None:
    await operators()
    await stage.admin.create(LANES, make_lane(replicas=1))
    await stage.ready("AsExpected")
    await stage.admin.merge(LANES, stage.namespace, "chat", {"spec": {"replicas": 2}}, "scale")
    await stage.replicas(2)

    async def both() -> bool:
        return bool((await stage.lane())["status"].get("availableReplicas") == 2)

    await until("both to be available", both)
    scale = await stage.admin._call("GET", LANES.path(stage.namespace, "chat", "scale"))
    assert scale["status"]["replicas"] == 2
    assert scale["status"]["selector"] == "app.kubernetes.io/component=engine,darktree.dev/lane=chat"


async def test_the_probe_fails_when_a_lane_waits_too_long(operators: StartOperator, namespace: str) -> None:
    operator: Operator = await operators(stale_seconds=0.05)

    async def listed() -> bool:
        return operator._listed

    await until("the first list", listed)
    operator.workers.enqueue((namespace, "never"), -1.0)
    with pytest.raises(NotAlive):
        operator.check()


async def test_the_gateway_follows_lanes_and_their_engines_and_keeps_them_while_the_api_is_away(
    stage: Stage, kubelet: FakeKubelet, operators: StartOperator, make_lane: MakeLane, admin: Cluster
) -> None:
    await operators()
    await admin.create(LANES, make_lane(replicas=2))
    tables: list[LaneTable] = []
    lanes = ClusterLanes(admin, stage.namespace)
    task = asyncio.create_task(lanes.watch(1.0, tables.append))

    async def both() -> bool:
        found = lanes.table.find("tiny", "anybody")
        return found is not None and len(found.endpoints) == 2

    await until("both engines", both)
    found = lanes.table.find("tiny", "anybody")
    assert found is not None
    assert all(url.startswith("http://10.244.") and url.endswith(":8000") for url in found.endpoints)
    await admin.merge(LANES, stage.namespace, "chat", {"spec": {"replicas": 1}})

    async def one() -> bool:
        found = lanes.table.find("tiny", "anybody")
        return found is not None and len(found.endpoints) == 1

    await until("one engine", one)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert lanes.table.find("tiny", "anybody") is not None
