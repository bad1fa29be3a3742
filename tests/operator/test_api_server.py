"""The operator on a real API server: what it makes and owns, two at once, restarts, bad days, many lanes, its role."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml
from api_server import ApiServer
from bad_network import BadNetwork, between
from fake_kubelet import FakeKubelet
from scenes import DEPLOYMENTS, LANES, PODS, MakeLane, Object, StartOperator, condition, until

from darktree_kit.cluster import Cluster, ClusterError, Missing, Resource

SERVICES = Resource("v1", "services", "Service")
POLICIES = Resource("networking.k8s.io/v1", "networkpolicies", "NetworkPolicy")
BUDGETS = Resource("policy/v1", "poddisruptionbudgets", "PodDisruptionBudget")
REVISIONS = Resource("apps/v1", "controllerrevisions", "ControllerRevision")
LEASES = Resource("coordination.k8s.io/v1", "leases", "Lease")
ROLES = Resource("rbac.authorization.k8s.io/v1", "clusterroles", "ClusterRole")
BINDINGS = Resource("rbac.authorization.k8s.io/v1", "clusterrolebindings", "ClusterRoleBinding")
ROLE = Path(__file__).parents[2] / "charts" / "darktree" / "files" / "operator-role.yaml"
MANY = 200


@pytest.fixture
async def network(api_server: ApiServer) -> AsyncIterator[BadNetwork]:
    async with between(api_server.url) as network:
        yield network


async def _deployment(admin: Cluster, namespace: str, name: str = "chat") -> Object:
    async def made() -> Object:
        return await admin.get(DEPLOYMENTS, namespace, name)

    found: Object = await until(f"Deployment {name}", made)
    return found


async def _ready(admin: Cluster, namespace: str, name: str = "chat") -> Object:
    async def served() -> Object | None:
        lane = await admin.get(LANES, namespace, name)
        ready = condition(lane, "Ready")
        current = ready.get("observedGeneration") == lane["metadata"]["generation"]
        return lane if ready.get("status") == "True" and current else None

    found: Object = await until(f"lane {name} to be Ready", served)
    return found


async def _image(admin: Cluster, namespace: str, name: str = "chat") -> str:
    found = await _deployment(admin, namespace, name)
    return str(found["spec"]["template"]["spec"]["containers"][0]["image"])


async def test_a_lane_becomes_objects_that_it_owns_and_the_operator_alone_manages(
    admin: Cluster, namespace: str, operators: StartOperator, make_lane: MakeLane
) -> None:
    await operators()
    lane = await admin.create(LANES, make_lane(replicas=2))
    deployment = await _deployment(admin, namespace)

    async def all_there() -> list[Object]:
        return [await admin.get(kind, namespace, "chat") for kind in (SERVICES, POLICIES, BUDGETS)]

    children = [deployment, *await until("the children", all_there)]
    for child in children:
        (owner,) = child["metadata"]["ownerReferences"]
        assert (owner["uid"], owner["controller"]) == (lane["metadata"]["uid"], True)
        applied = [
            each["manager"] for each in child["metadata"]["managedFields"] if each["operation"] == "Apply"
        ]
        assert applied == ["darktree-lane"]


async def test_a_model_in_an_image_is_mounted_as_a_volume(
    admin: Cluster, namespace: str, operators: StartOperator, make_lane: MakeLane
) -> None:
    await operators()
    reference = f"registry.example/models/tiny@sha256:{'0' * 64}"
    engine, accelerator = {"kind": "VLLM"}, {"class": "nvidia-l4"}
    model = {"source": f"oci://{reference}"}
    await admin.create(LANES, make_lane(model=model, engine=engine, accelerator=accelerator))
    spec = (await _deployment(admin, namespace))["spec"]["template"]["spec"]
    (volume,) = [each for each in spec["volumes"] if each["name"] == "model"]
    assert volume["image"]["reference"] == reference
    assert spec["containers"][0]["args"][0] == "/model"


async def test_what_others_add_to_the_objects_stays(
    admin: Cluster, namespace: str, operators: StartOperator, make_lane: MakeLane
) -> None:
    await operators()
    await admin.create(LANES, make_lane())
    await _deployment(admin, namespace)
    notes = {"metadata": {"annotations": {"example.org/team": "blue"}, "labels": {"example.org/x": "y"}}}
    await admin.merge(DEPLOYMENTS, namespace, "chat", notes)
    await admin.merge(LANES, namespace, "chat", {"spec": {"engine": {"contextLength": 8192}}})

    async def changed() -> Object | None:
        found = await admin.get(DEPLOYMENTS, namespace, "chat")
        return found if "8192" in found["spec"]["template"]["spec"]["containers"][0]["args"] else None

    found = await until("the change", changed)
    assert found["metadata"]["annotations"]["example.org/team"] == "blue"
    assert found["metadata"]["labels"]["example.org/x"] == "y"


async def test_a_field_that_another_manager_applied_is_taken_back_by_force(
    admin: Cluster, namespace: str, operators: StartOperator, make_lane: MakeLane
) -> None:
    await operators()
    await admin.create(LANES, make_lane())
    await _deployment(admin, namespace)
    theirs = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "chat", "namespace": namespace},
        "spec": {"replicas": 7},
    }
    await admin.apply(DEPLOYMENTS, theirs, "somebody")

    async def back() -> bool:
        return bool((await admin.get(DEPLOYMENTS, namespace, "chat"))["spec"]["replicas"] == 1)

    await until("the replicas to be put back", back)


async def test_a_deleted_child_is_made_again(
    admin: Cluster, namespace: str, operators: StartOperator, make_lane: MakeLane
) -> None:
    await operators()
    await admin.create(LANES, make_lane())
    first = await _deployment(admin, namespace)
    await admin.delete(DEPLOYMENTS, namespace, "chat")

    async def again() -> bool:
        return bool(
            (await admin.get(DEPLOYMENTS, namespace, "chat"))["metadata"]["uid"] != first["metadata"]["uid"]
        )

    await until("another Deployment", again)


async def test_a_deleted_lane_takes_its_engines_with_it_after_their_drain(
    admin: Cluster, kubelet: FakeKubelet, namespace: str, operators: StartOperator, make_lane: MakeLane
) -> None:
    await operators()
    await admin.create(LANES, make_lane())
    await _ready(admin, namespace)
    kubelet.stuck.add("chat")  # it finishes what it serves
    await admin.delete(LANES, namespace, "chat")

    async def draining() -> list[Object]:
        pods, _ = await admin.list(PODS, namespace)
        return [pod for pod in pods if pod["metadata"].get("deletionTimestamp")]

    (pod,) = await until("the pod to drain", draining)
    assert pod["metadata"]["deletionGracePeriodSeconds"] == 60
    kubelet.stuck.clear()

    async def gone() -> bool:
        return (
            not (await admin.list(PODS, namespace))[0] and not (await admin.list(DEPLOYMENTS, namespace))[0]
        )

    await until("everything to be gone", gone)


async def test_a_stopped_operator_leaves_lanes_serving_and_holds_nothing_back(
    admin: Cluster, kubelet: FakeKubelet, namespace: str, operators: StartOperator, make_lane: MakeLane
) -> None:
    async with operators.running():  # type: ignore[attr-defined]
        await admin.create(LANES, make_lane())
        before = await _ready(admin, namespace)
    assert not before["metadata"].get("finalizers")
    assert (await _deployment(admin, namespace))["status"]["availableReplicas"] == 1
    await admin.delete(LANES, namespace, "chat")
    with pytest.raises(Missing):
        await admin.get(LANES, namespace, "chat")


async def test_another_operator_rolls_nothing_that_is_as_it_should_be(
    admin: Cluster, kubelet: FakeKubelet, namespace: str, operators: StartOperator, make_lane: MakeLane
) -> None:
    async with operators.running():  # type: ignore[attr-defined]
        await admin.create(LANES, make_lane())
        lane = await _ready(admin, namespace)
    before = await _deployment(admin, namespace)
    operator = await operators()

    async def looked() -> bool:
        return bool(operator.workers.looks >= 1 and operator.leading)

    await until("a look", looked)
    assert (await _deployment(admin, namespace))["metadata"]["generation"] == before["metadata"]["generation"]
    again = await admin.get(LANES, namespace, "chat")
    assert again["status"]["serving"] == lane["status"]["serving"]


async def test_what_an_operator_left_in_the_middle_the_next_one_finishes(
    admin: Cluster, namespace: str, operators: StartOperator, make_lane: MakeLane
) -> None:
    for name in ("one", "two", "three"):
        await admin.create(LANES, make_lane(name))
    async with operators.running():  # type: ignore[attr-defined]

        async def some() -> list[Object]:
            return (await admin.list(DEPLOYMENTS, namespace))[0]

        await until("a first Deployment", some)
    await operators()
    for name in ("one", "two", "three"):
        await _deployment(admin, namespace, name)


async def test_of_two_operators_one_writes_and_the_other_goes_on_when_it_stops(
    admin: Cluster, namespace: str, operators: StartOperator, make_lane: MakeLane
) -> None:
    async with operators.running(lease_namespace=namespace, identity="first") as first:  # type: ignore[attr-defined]

        async def leads() -> bool:
            return bool(first.leading)

        await until("the first to lead", leads)
        second = await operators(lease_namespace=namespace, identity="second")
        await admin.create(LANES, make_lane("one"))
        await _deployment(admin, namespace, "one")
        assert (first.leading, second.leading, second.workers.looks) == (True, False, 0)
    await admin.create(LANES, make_lane("two"))
    await _deployment(admin, namespace, "two")
    assert second.leading
    lease = await admin.get(LEASES, namespace, "darktree-operator")
    assert lease["spec"]["holderIdentity"] == "second"
    assert lease["spec"]["leaseTransitions"] >= 1


async def test_two_operators_without_a_lease_still_agree(
    admin: Cluster, kubelet: FakeKubelet, namespace: str, operators: StartOperator, make_lane: MakeLane
) -> None:
    first, second = await operators(), await operators()
    await admin.create(LANES, make_lane())
    await _ready(admin, namespace)
    asked = -1

    async def quiet() -> bool:
        nonlocal asked
        before, asked = asked, first.cluster.requests + second.cluster.requests
        await asyncio.sleep(0.5)
        return bool(before == asked)

    await until("both to be quiet", quiet, 20)
    assert (await _deployment(admin, namespace))["metadata"]["generation"] <= 2


async def test_a_change_is_seen_although_every_watch_was_dropped(
    admin: Cluster, namespace: str, operators: StartOperator, make_lane: MakeLane, network: BadNetwork
) -> None:
    operator = await operators(url=network.url)
    await admin.create(LANES, make_lane())
    await _deployment(admin, namespace)
    for length in (8192, 16384):
        watches = network.asked["watch"]
        network.drop_watches()
        await admin.merge(LANES, namespace, "chat", {"spec": {"engine": {"contextLength": length}}})

        async def changed(length: int = length) -> bool:
            found = await admin.get(DEPLOYMENTS, namespace, "chat")
            return str(length) in found["spec"]["template"]["spec"]["containers"][0]["args"]

        await until("the change", changed)
        assert network.asked["watch"] > watches
    assert operator.check()["leading"]


async def test_a_change_is_seen_although_the_version_to_go_on_from_is_gone(
    admin: Cluster, namespace: str, operators: StartOperator, make_lane: MakeLane, network: BadNetwork
) -> None:
    await operators(url=network.url)
    await admin.create(LANES, make_lane("old"))
    await _deployment(admin, namespace, "old")
    network.expire_watches = True
    network.drop_watches()

    async def expired() -> bool:
        return network.expired > 3

    await until("watches to expire", expired)
    await admin.create(LANES, make_lane("new"))
    await admin.delete(DEPLOYMENTS, namespace, "old")
    network.expire_watches = False
    await _deployment(admin, namespace, "new")
    await _deployment(admin, namespace, "old")


async def test_a_lane_is_served_although_every_answer_is_slow(
    admin: Cluster, namespace: str, operators: StartOperator, make_lane: MakeLane, network: BadNetwork
) -> None:
    network.delay_seconds = 0.5
    operator = await operators(url=network.url)
    await admin.create(LANES, make_lane())
    await _deployment(admin, namespace)
    assert operator.check()["leading"]


async def test_what_happened_while_the_api_server_was_away_is_caught_up(
    admin: Cluster, namespace: str, operators: StartOperator, make_lane: MakeLane, network: BadNetwork
) -> None:
    await operators(url=network.url)
    await admin.create(LANES, make_lane())
    await _deployment(admin, namespace)
    network.away = True
    network.drop_watches()
    asked = sum(network.asked.values())
    await admin.merge(LANES, namespace, "chat", {"spec": {"replicas": 3}})

    async def tried() -> bool:
        return sum(network.asked.values()) > asked + 5

    await until("some tries", tried)
    network.away = False

    async def scaled() -> bool:
        return bool((await admin.get(DEPLOYMENTS, namespace, "chat"))["spec"]["replicas"] == 3)

    await until("the lane to be scaled", scaled)


async def test_two_hundred_lanes_are_applied_and_then_left_in_peace(
    admin: Cluster, namespace: str, operators: StartOperator, make_lane: MakeLane
) -> None:
    operator = await operators(resync_seconds=3600)
    began = time.monotonic()
    names = [f"lane-{number}" for number in range(MANY)]
    await asyncio.gather(*(admin.create(LANES, make_lane(name, replicas=0)) for name in names))

    async def applied() -> bool:
        found = (await admin.list(DEPLOYMENTS, namespace))[0]
        return len(found) == MANY

    await until(f"{MANY} Deployments", applied, 120)
    print(f"{MANY} lanes after {time.monotonic() - began:.1f} s, {operator.cluster.requests} requests")
    asked = -1

    async def quiet() -> bool:
        nonlocal asked
        before, asked = asked, operator.cluster.requests
        await asyncio.sleep(2)
        return bool(before == asked)

    await until("quiet", quiet, 60)
    assert operator.check()["lanes"] == MANY


async def test_the_operator_needs_exactly_the_rights_of_the_role_that_ships(
    api_server: ApiServer,
    admin: Cluster,
    kubelet: FakeKubelet,
    namespace: str,
    operators: StartOperator,
    make_lane: MakeLane,
) -> None:
    role = await _grant_role(admin, namespace, "operator")
    try:
        operator = await operators(user="operator", lease_namespace=namespace)
        await admin.create(LANES, make_lane(replicas=2))
        await _ready(admin, namespace)
        await admin.merge(LANES, namespace, "chat", {"spec": {"engine": {"contextLength": 8192}}})
        await _ready(admin, namespace)
        await admin.merge(LANES, namespace, "chat", {"spec": {"replicas": 1}})

        async def no_budget() -> bool:
            return not (await admin.list(BUDGETS, namespace))[0]

        await until("the budget to be deleted", no_budget)

        async def told() -> list[Object]:
            return (await admin.list(Resource("v1", "events", "Event"), namespace))[0]

        assert await until("events", told)
        assert operator.check()["leading"]
        await _cannot(api_server, namespace)
    finally:
        await admin.delete(BINDINGS, "", role)
        await admin.delete(ROLES, "", role)


async def _grant_role(admin: Cluster, namespace: str, user: str) -> str:
    """Apply the role that ships, for a user instead of a service account; return the name of what was made."""
    rules = yaml.safe_load(ROLE.read_text())["rules"]
    name = f"operator-{namespace}"
    await admin.create(ROLES, {"metadata": {"name": name}, "rules": rules})
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name}
    subject = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}
    await admin.create(BINDINGS, {"metadata": {"name": name}, "roleRef": reference, "subjects": [subject]})
    return name


async def _cannot(api_server: ApiServer, namespace: str) -> None:
    """What the role must not allow."""
    operator = Cluster(str(api_server.kubeconfig("operator")))
    try:
        for kind in (Resource("v1", "secrets", "Secret"), Resource("v1", "configmaps", "ConfigMap"), ROLES):
            with pytest.raises(ClusterError) as refusal:
                await operator.list(kind, None)
            assert refusal.value.status == 403
        with pytest.raises(ClusterError) as refusal:
            await operator.delete(LANES, namespace, "chat")
        assert refusal.value.status == 403
        with pytest.raises(ClusterError) as refusal:
            await operator.merge(LANES, namespace, "chat", {"spec": {"replicas": 9}})
        assert refusal.value.status == 403
    finally:
        await operator.close()
