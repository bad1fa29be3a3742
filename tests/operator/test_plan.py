"""The plan of a lane: exact manifests for each tier, and a table of what changes them and what must not."""

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from darktree_operator.children import DOWNLOAD_AGAIN_SECONDS, quantity
from darktree_operator.config import OperatorConfig, read_config
from darktree_operator.lane import Object
from darktree_operator.observed import Observed
from darktree_operator.plan import Plan, plan
from darktree_operator.reasons import Reason

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"
NOW = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)
CONFIG = read_config(ROOT / "examples" / "operator.yaml")
SHA = "0123456789abcdef0123456789abcdef01234567"

LANES: dict[str, Object] = {
    "standard": {
        "tier": "Standard",
        "model": {
            "source": "hf://Qwen/Qwen2.5-14B-Instruct-AWQ",
            "revision": SHA,
            "servedName": "qwen25-14b-awq",
            "quantization": "AwqMarlin",
        },
        "engine": {"contextLength": 32768},
        "accelerator": {"class": "nvidia-l4"},
        "replicas": 2,
    },
    "premium": {
        "tier": "Premium",
        "model": {
            "source": "hf://Qwen/Qwen2.5-32B-Instruct-AWQ",
            "revision": SHA,
            "servedName": "qwen25-32b-awq",
            "quantization": "AwqMarlin",
        },
        "engine": {"contextLength": 32768, "maxNumSeqs": 64},
        "accelerator": {"class": "nvidia-l40s", "count": 2},
        "cache": {"mode": "PerLane", "size": "60Gi", "storageClass": "local"},
        "availability": {"spread": "Require", "priorityClassName": "premium"},
    },
    "dedicated": {
        "tier": "Dedicated",
        "customerRef": "acme",
        "model": {"source": "pvc://models/qwen/14b", "servedName": "qwen25-14b-awq"},
        "engine": {"contextLength": 16384, "extraArgs": ["--dtype=half"]},
        "accelerator": {"class": "nvidia-a100-80gb"},
        "cache": {"mode": "Ephemeral", "size": "20Gi"},
        "secrets": {"engineKey": {"name": "acme", "key": "engine"}},
        "network": {"allowFrom": [{"podLabels": {"app": "probe"}}]},
        "drain": {"gracePeriodSeconds": 300},
    },
    "simulated": {
        "tier": "Standard",
        "model": {"source": "hf://Qwen/Qwen2.5-14B-Instruct-AWQ", "servedName": "oak"},
        "engine": {"kind": "Simulator", "contextLength": 4096},
    },
}


def lane(name: str = "standard", **changes: Any) -> Object:
    spec = deepcopy(LANES[name])
    for path, value in changes.items():
        *above, last = path.split("__")
        place = spec
        for part in above:
            place = place.setdefault(part, {})
        place[last] = value
    metadata = {"name": name, "namespace": "lanes", "uid": f"uid-of-{name}", "generation": 1}
    return {"metadata": metadata, "spec": spec}


def observed(of: Object, **more: Any) -> Observed:
    return Observed(
        lane=of, config=CONFIG, now=NOW, secret_hashes={"acme/engine": "e1", "hf/token": "t1"}, **more
    )


def completed(made: Plan) -> Object:
    job = of_kind(made, "Job")
    return job | {"status": {"conditions": [{"type": "Complete", "status": "True"}]}}


def of_kind(made: Plan, kind: str) -> Object:
    return next(child for child in made.objects if child["kind"] == kind)


def kinds(made: Plan) -> list[str]:
    return [child["kind"] for child in made.objects]


def after_download(of: Object, replicas: int = 1, config: OperatorConfig = CONFIG, **more: Any) -> Plan:
    """The plan once the model is there."""
    first = plan(replace(observed(of, **more), config=config), replicas)
    jobs = tuple(completed(first) for child in first.objects if child["kind"] == "Job")
    return plan(replace(observed(of, **more), config=config, jobs=jobs), replicas)


@pytest.mark.parametrize("name", LANES)
def test_the_manifests_are_exactly_these(name: str) -> None:
    made = plan(observed(lane(name)), 2)
    later = after_download(lane(name), 2)
    assert made.refusals == later.refusals == ()
    wanted = {(child["kind"], child["metadata"]["name"]): child for child in (*made.objects, *later.objects)}
    file = GOLDEN / f"{name}.yaml"
    manifests = [
        json.loads(json.dumps(manifest)) for manifest in wanted.values()
    ]  # so that YAML has no anchors
    if not file.exists():
        file.write_text(yaml.safe_dump_all(manifests, sort_keys=False, width=110))
        pytest.fail(f"{file.name} was missing and is written: read it, then commit it")
    assert list(yaml.safe_load_all(file.read_text())) == manifests


def test_no_gpu_is_taken_before_the_model_is_there() -> None:
    made = plan(observed(lane()), 2)
    assert kinds(made) == [
        "PersistentVolumeClaim",
        "Job",
        "NetworkPolicy",
        "Service",
        "ControllerRevision",
        "PodDisruptionBudget",
    ]
    assert made.waiting_for_model
    assert "nvidia.com/gpu" not in json.dumps(of_kind(made, "Job")["spec"]["template"]["spec"]["containers"])
    later = after_download(lane(), 2)
    assert "Deployment" in kinds(later)
    assert "Job" not in kinds(later)
    assert not later.waiting_for_model


def test_nothing_in_the_pod_depends_on_how_many_there_are_or_on_the_time() -> None:
    templates = [
        of_kind(after_download(lane(), count), "Deployment")["spec"]["template"] for count in (0, 1, 2, 9)
    ]
    assert all(template == templates[0] for template in templates)
    late = replace(
        observed(lane(), jobs=(completed(plan(observed(lane()), 1)),)), now=NOW + timedelta(days=900)
    )
    assert of_kind(plan(late, 1), "Deployment")["spec"]["template"] == templates[0]


UNMOVED: dict[str, dict[str, Any]] = {
    "replicas": {"replicas": 5},
    "autoscaling": {"replicas": 1, "autoscaling": {"maxReplicas": 4}},
    "suspension": {"suspend": True},
    "rollout policy": {"rollout__waitForIdle": True},
    "network": {"network": {"allowFrom": [{"podLabels": {"a": "b"}}]}},
    "size of the claim": {"cache__size": "500Gi"},
    "what the gateway holds": {"coldStart__maxHeldRequests": 4},
    "where requests spill over to": {"spillOver": "WhenFull"},
    "least available": {"availability__minAvailable": 1},
    "the download's token": {"secrets__huggingFace": {"name": "hf", "key": "token"}},
}


@pytest.mark.parametrize("changes", UNMOVED.values(), ids=UNMOVED)
def test_what_is_not_about_pods_replaces_none(changes: dict[str, Any]) -> None:
    before, after = (after_download(lane(**change)).rollout for change in ({}, changes))
    assert before is not None
    assert after is not None
    assert before.target == after.target


MOVED: dict[str, dict[str, Any]] = {
    "context": {"engine__contextLength": 8192},
    "model": {"model__revision": "f" * 40},
    "drain": {"drain__gracePeriodSeconds": 90},
    "start": {"coldStart__startupTimeoutSeconds": 600},
    "accelerator": {"accelerator__class": "nvidia-l40s"},
    "restart": {"restart": {"id": "2"}},
    "priority": {"availability__priorityClassName": "high"},
    "environment": {"engine__env": [{"name": "VLLM_LOGGING_LEVEL", "value": "DEBUG"}]},
}


@pytest.mark.parametrize("changes", MOVED.values(), ids=MOVED)
def test_what_is_about_pods_is_another_revision(changes: dict[str, Any]) -> None:
    before, after = (after_download(lane(**change)).rollout for change in ({}, changes))
    assert before is not None
    assert after is not None
    assert before.target != after.target


def test_a_changed_secret_is_another_revision() -> None:
    first = plan(observed(lane("dedicated")), 1)
    turned = replace(observed(lane("dedicated")), secret_hashes={"acme/engine": "e2"})
    assert first.rollout is not None
    second = plan(turned, 1).rollout
    assert second is not None
    assert first.rollout.target != second.target


def test_one_number_of_draining_makes_all_others() -> None:
    pod = of_kind(plan(observed(lane("dedicated")), 1), "Deployment")["spec"]["template"]["spec"]
    arguments = pod["containers"][0]["args"]
    assert pod["terminationGracePeriodSeconds"] == 300
    assert pod["containers"][0]["lifecycle"] == {"preStop": {"sleep": {"seconds": 15}}}
    assert arguments[arguments.index("--shutdown-timeout") + 1] == "280"


def test_a_rollout_has_longer_than_a_start() -> None:
    made = of_kind(after_download(lane(coldStart__startupTimeoutSeconds=605)), "Deployment")["spec"]
    probe = made["template"]["spec"]["containers"][0]["startupProbe"]
    assert (probe["periodSeconds"], probe["failureThreshold"]) == (10, 61)
    assert made["progressDeadlineSeconds"] == 605 + 900


STRATEGIES: list[tuple[str, int, str, int | None, Object]] = [
    ("one GPU is handed over", 1, "Auto", None, {"type": "Recreate"}),
    ("several go one by one", 3, "Auto", None, {"maxSurge": 0, "maxUnavailable": 1}),
    ("a surge needs a GPU that is proved free", 3, "Surge", 1, {"maxSurge": 1, "maxUnavailable": 0}),
    ("a surge without one is none", 3, "Surge", 0, {"maxSurge": 0, "maxUnavailable": 1}),
    ("a surge of which nobody knows is none", 1, "Surge", None, {"type": "Recreate"}),
    ("recreate is recreate", 3, "Recreate", 5, {"type": "Recreate"}),
]


@pytest.mark.parametrize(
    ("name", "replicas", "wanted", "free", "strategy"), STRATEGIES, ids=[row[0] for row in STRATEGIES]
)
def test_no_pod_waits_for_a_gpu_that_its_predecessor_holds(
    name: str, replicas: int, wanted: str, free: int | None, strategy: Object
) -> None:
    before = of_kind(after_download(lane(), replicas), "Deployment")
    changed = lane(rollout__strategy=wanted, engine__contextLength=8192)
    made = after_download(changed, replicas, deployments=(before,), free_gpus=free)
    found = of_kind(made, "Deployment")["spec"]["strategy"]
    assert (found if found["type"] == "Recreate" else found["rollingUpdate"]) == strategy
    assert any("Surge needs 1 spare" in note for note in made.notes) == (wanted == "Surge" and not free)
    assert (made.spare is not None) == (wanted == "Surge" and free is None)


def test_a_rollout_that_began_with_a_surge_ends_with_it_and_rests_without() -> None:
    surge = lane(rollout__strategy="Surge", engine__contextLength=8192)
    first = of_kind(after_download(lane()), "Deployment")
    began = of_kind(after_download(surge, deployments=(first,), free_gpus=1), "Deployment")
    assert began["spec"]["strategy"]["type"] == "RollingUpdate"
    # Now the new engine has the GPU, and none is free any more.
    going = after_download(surge, deployments=(began,), free_gpus=0)
    assert of_kind(going, "Deployment")["spec"]["strategy"] == began["spec"]["strategy"]
    counts = {"replicas": 1, "updatedReplicas": 1, "availableReplicas": 1, "observedGeneration": 1}
    done = began | {"metadata": began["metadata"] | {"generation": 1}, "status": counts}
    rests = after_download(surge, deployments=(done,))
    assert of_kind(rests, "Deployment")["spec"]["strategy"] == {"type": "Recreate"}
    assert rests.spare is None
    assert rests.notes == ()


def test_an_engine_without_a_gpu_is_replaced_without_a_gap() -> None:
    strategy = of_kind(plan(observed(lane("simulated")), 1), "Deployment")["spec"]["strategy"]
    assert strategy["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


@pytest.mark.parametrize(
    ("replicas", "least", "found"), [(0, None, None), (1, None, None), (2, None, 1), (2, 2, None), (3, 2, 2)]
)
def test_a_budget_never_forbids_draining_a_node(replicas: int, least: int | None, found: int | None) -> None:
    changes: dict[str, Any] = {"availability__minAvailable": least} if least else {}
    made = after_download(lane(**changes), replicas)
    budgets = [child for child in made.objects if child["kind"] == "PodDisruptionBudget"]
    assert [budget["spec"]["minAvailable"] for budget in budgets] == ([] if found is None else [found])


def test_a_budget_that_is_not_wanted_any_more_is_removed() -> None:
    budget = of_kind(after_download(lane(), 2), "PodDisruptionBudget")
    made = after_download(lane(), 1, others=(budget,))
    assert [gone.kind for gone in made.deletions] == ["PodDisruptionBudget"]


REFUSED: dict[str, tuple[dict[str, Any], Reason, str]] = {
    "class": ({"accelerator": {"class": "tpu"}}, Reason.INVALID_REFERENCE, "spec.accelerator.class"),
    "none": ({"accelerator": None}, Reason.INVALID_SPEC, "spec.accelerator.class"),
    "memory": (
        {"accelerator__minMemoryGiB": 40},
        Reason.INSUFFICIENT_MEMORY,
        "spec.accelerator.minMemoryGiB",
    ),
    "version": ({"engine__version": "0.31.0"}, Reason.INVALID_REFERENCE, "spec.engine.version"),
    "old": ({"engine__version": "0.9.0"}, Reason.INVALID_SPEC, "spec.engine.version"),
    "flag": ({"engine__extraArgs": ["--port=1"]}, Reason.INVALID_SPEC, "spec.engine.extraArgs[0]"),
    "environment": (
        {"engine__env": [{"name": "VLLM_SERVER_DEV_MODE", "value": "1"}]},
        Reason.INVALID_SPEC,
        "spec.engine.env[0]",
    ),
    "customer": ({"customerRef": "acme"}, Reason.INVALID_SPEC, "spec.customerRef"),
    "commit": ({"model__revision": None}, Reason.INVALID_SPEC, "spec.model.revision"),
    "both": ({"autoscaling": {"maxReplicas": 3}}, Reason.INVALID_SPEC, "spec.replicas"),
    "window": (
        {"rollout__maintenanceWindow": {"cron": "0 25 * * *"}},
        Reason.INVALID_SPEC,
        "spec.rollout.maintenanceWindow",
    ),
    "secret": (
        {"secrets__engineKey": {"name": "no", "key": "such"}},
        Reason.SECRET_MISSING,
        "spec.secrets.engineKey",
    ),
    "type": ({"engine__contextLength": "4096"}, Reason.INVALID_SPEC, "spec.engine.contextLength"),
    "context": ({"engine__contextLength": 65536}, Reason.INVALID_SPEC, "spec.engine.contextLength"),
}


@pytest.mark.parametrize(("changes", "reason", "field"), REFUSED.values(), ids=REFUSED)
def test_a_lane_that_cannot_be_served_is_refused_with_its_field(
    changes: dict[str, Any], reason: Reason, field: str
) -> None:
    made = plan(observed(lane(**changes)), 1)
    assert [(refusal.reason, refusal.field) for refusal in made.refusals] == [(reason, field)]
    assert made.objects == ()


def running(of: Object, replicas: int = 2) -> Object:
    return of_kind(after_download(of, replicas), "Deployment") | {"status": {}}


def test_a_field_of_a_newer_schema_changes_nothing_but_is_a_typing_error_in_a_file() -> None:
    of = lane()
    newer = lane(engine__speculation={"kind": "Ngram"}, priority=7)
    first, made = plan(observed(of), 2), plan(observed(newer), 2)
    assert made.objects == first.objects
    assert set(made.notes) - set(first.notes) == {
        f"{field} is of a newer version than this operator, which leaves it aside"
        for field in ("spec.engine.speculation", "spec.priority")
    }
    del newer["metadata"]["uid"]  # nothing has dropped what is unknown
    (refusal,) = plan(observed(newer), 2).refusals
    assert (refusal.reason, refusal.field) == (Reason.INVALID_SPEC, "spec.engine.speculation")


def test_a_refused_lane_goes_on_serving_and_can_still_be_stopped() -> None:
    wrong = lane(accelerator={"class": "gone"})
    serving = observed(wrong, deployments=(running(lane()),))
    assert plan(serving, 2).objects == ()
    stopped = plan(serving, 0)
    assert kinds(stopped) == ["Deployment"]
    assert stopped.objects[0]["spec"]["replicas"] == 0
    assert stopped.objects[0]["spec"]["template"] == running(lane())["spec"]["template"]
    assert stopped.refusals


def test_what_belongs_to_somebody_else_is_left_alone() -> None:
    stranger = running(lane())
    stranger["metadata"]["ownerReferences"][0]["uid"] = "another"
    made = plan(observed(lane(), deployments=(stranger,)), 1)
    assert [refusal.reason for refusal in made.refusals] == [Reason.CHILD_NOT_OWNED]
    assert made.objects == ()


CLAIMS: list[tuple[str, str, str | None, str | None]] = [
    ("a new one", "100Gi", None, "100Gi"),
    ("as it should be", "100Gi", "100Gi", None),
    ("larger by another lane", "100Gi", "1Ti", None),
    ("to grow", "200Gi", "100Gi", "200Gi"),
]


@pytest.mark.parametrize(("name", "asked", "has", "applied"), CLAIMS, ids=[row[0] for row in CLAIMS])
def test_a_claim_only_grows(name: str, asked: str, has: str | None, applied: str | None) -> None:
    made = plan(observed(lane(cache__size=asked)), 1)
    claim = of_kind(made, "PersistentVolumeClaim")
    existing = deepcopy(claim)
    existing["spec"] |= {"storageClassName": "fast", "accessModes": ["ReadWriteOnce"]}
    existing["spec"]["resources"]["requests"]["storage"] = has
    claims = (existing,) if has else ()
    again = plan(observed(lane(cache__size=asked), volume_claims=claims), 1)
    found = [child for child in again.objects if child["kind"] == "PersistentVolumeClaim"]
    assert [child["spec"]["resources"]["requests"]["storage"] for child in found] == (
        [applied] if applied else []
    )
    if has and applied:
        assert found[0]["spec"]["storageClassName"] == "fast"
        assert found[0]["spec"]["accessModes"] == ["ReadWriteOnce"]


def test_lanes_of_one_model_share_a_claim_that_none_of_them_owns() -> None:
    other = lane(tier="Premium") | {"metadata": {"name": "other", "namespace": "lanes", "uid": "o"}}
    claims = [of_kind(plan(observed(of), 1), "PersistentVolumeClaim") for of in (lane(), other)]
    assert claims[0] == claims[1]
    assert "ownerReferences" not in claims[0]["metadata"]


def test_a_failed_download_is_tried_again_later() -> None:
    job = of_kind(plan(observed(lane()), 1), "Job")
    failed = {"type": "Failed", "status": "True", "lastTransitionTime": NOW.isoformat()}
    job |= {"status": {"conditions": [failed]}}
    looks: list[tuple[int, list[str]]] = [(60, []), (DOWNLOAD_AGAIN_SECONDS, ["Job"])]
    for seconds, gone in looks:
        made = plan(replace(observed(lane(), jobs=(job,)), now=NOW + timedelta(seconds=seconds)), 1)
        assert made.waiting_for_model
        assert [thing.kind for thing in made.deletions] == gone


@pytest.mark.parametrize(
    "change",
    [
        lambda spec: spec["model"].update(revision="f" * 40),
        lambda spec: spec.update(restart={"id": "again"}),
        lambda spec: spec.update(secrets={"huggingFace": {"name": "hf", "key": "token"}}),
    ],
    ids=["another model", "a restart", "another token"],
)
def test_another_download_is_another_job_and_the_old_one_goes(change: Callable[[Object], None]) -> None:
    first = completed(plan(observed(lane()), 1))
    changed = lane()
    change(changed["spec"])
    made = plan(observed(changed, jobs=(first,)), 1)
    assert [gone.name for gone in made.deletions] == [first["metadata"]["name"]]
    assert of_kind(made, "Job")["metadata"]["name"] != first["metadata"]["name"]


def test_engines_reach_nothing_unless_they_fetch_their_model() -> None:
    alone = of_kind(plan(observed(lane()), 1), "NetworkPolicy")["spec"]
    assert "Egress" in alone["policyTypes"]
    assert "egress" not in alone
    fetching = of_kind(plan(observed(lane(cache={"mode": "Ephemeral"})), 1), "NetworkPolicy")
    assert [rule["port"] for rule in fetching["spec"]["egress"][0]["ports"]] == [53, 53, 443]


def test_no_secret_is_in_any_manifest() -> None:
    made = plan(observed(lane("dedicated", secrets__huggingFace={"name": "hf", "key": "token"})), 1)
    container = of_kind(made, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    values = {variable["name"]: variable for variable in container["env"]}
    assert values["VLLM_API_KEY"]["valueFrom"] == {"secretKeyRef": {"name": "acme", "key": "engine"}}
    assert "value" not in values["VLLM_API_KEY"]


@pytest.mark.parametrize(("text", "size"), [("1Ki", 1024), ("2Gi", 2**31), ("5", 5), ("3G", 3_000_000_000)])
def test_a_size_is_read(text: str, size: int) -> None:
    assert quantity(text) == size


@pytest.mark.parametrize(
    "file", sorted((ROOT / "examples" / "lanes").glob("*.yaml")), ids=lambda file: file.stem
)
def test_every_example_can_be_served_with_the_example_of_a_configuration(file: Path) -> None:
    example = yaml.safe_load(file.read_text())
    assert plan(observed(example), 1).refusals == ()
