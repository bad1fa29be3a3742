"""The lanes' definition on a real API server: what it refuses and how, what it fills in, what kubectl shows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import httpx
import pytest
import yaml
from api_server import CRD, ApiServer
from pydantic import BaseModel
from scenes import Object, lane, merge

from darktree_operator.arguments import OWNED_FLAGS, REFUSED_ENVIRONMENT, REFUSED_FLAGS, refused_argument
from darktree_operator.lane import LaneSpec, parse

ROOT = Path(__file__).parents[2]
PATH = "/apis/darktree.dev/v1alpha1/namespaces/default/inferencelanes"
SHA = "0123456789abcdef0123456789abcdef01234567"
VLLM = {
    "engine": {"kind": "VLLM"},
    "model": {"source": "hf://example/tiny", "revision": SHA},
    "accelerator": {"class": "nvidia-l4"},
}
DEDICATED = {"tier": "Dedicated", "customerRef": "acme"}
WINDOW = {"start": "08:00", "end": "20:00", "minReplicas": 1, "maxReplicas": 2}

REFUSED: list[tuple[Object, str]] = [
    ({"customerRef": "acme"}, "set spec.customerRef if spec.tier is Dedicated, and only then"),
    ({"tier": "Dedicated"}, "set spec.customerRef if spec.tier is Dedicated, and only then"),
    ({"tier": "Gold"}, "spec.tier: Unsupported value"),
    ({"tier": None}, "spec.tier: Required value"),
    ({"spillOver": "WhenFull"}, "spec.spillOver is only for tier Dedicated"),
    ({"customerRef": "Acme!", "tier": "Dedicated"}, "spec.customerRef in body should match"),
    ({"model": {"servedName": None}}, "spec.model.servedName: Required value"),
    ({"model": {"servedName": "x" * 64}}, "spec.model.servedName: Too long"),
    ({"model": {"source": "https://example.org/model"}}, "spec.model.source in body should match"),
    ({"model": {"source": "pvc://models/../other"}}, "without . and .."),
    ({"model": {"aliases": ["tiny"]}}, "spec.model.aliases repeats spec.model.servedName"),
    ({"model": {"aliases": [f"a{n}" for n in range(9)]}}, "must have at most 8 items"),
    ({"model": {"quantization": "Awq"}}, "spec.model.quantization: Unsupported value"),
    ({**VLLM, "model": {"source": "hf://example/tiny"}}, "spec.model.revision must name the commit"),
    ({**VLLM, "model": {"revision": "main"}}, "spec.model.revision"),
    ({"tier": "Premium", "engine": {"image": "vllm:1"}}, "spec.engine.image must end in a digest"),
    ({**DEDICATED, "engine": {"image": "vllm:1"}}, "spec.engine.image must end in a digest"),
    ({"engine": {"contextLength": 1023}}, "greater than or equal to 1024"),
    ({"engine": {"gpuMemoryPercent": 98}}, "less than or equal to 97"),
    ({"engine": {"extraArgs": ["--seed=1"] * 33}}, "must have at most 32 items"),
    ({"engine": {"extraArgs": ["--seed", "1"]}}, "write --flag=value"),
    ({"engine": {"extraArgs": ["-tp=2"]}}, "write --flag=value"),
    ({"engine": {"extraArgs": ["--max_model_len=1"]}}, "--max_model_len is the operator's: remove it"),
    ({"engine": {"extraArgs": ["--gpu-mem=1"]}}, "--gpu-mem is the operator's: remove it"),
    ({"engine": {"extraArgs": ["--ssl_keyfile=/x"]}}, "--ssl_keyfile would pass by the meter"),
    ({"engine": {"env": [{"name": "VLLM_API_KEY", "value": "x"}]}}, "name a Secret in spec.secrets"),
    ({"engine": {"env": [{"name": "a b"}]}}, "should match"),
    ({"accelerator": {"count": 1}}, "spec.accelerator.class: Required value"),
    ({"accelerator": {"class": "nvidia-l4", "count": 17}}, "less than or equal to 16"),
    ({"replicas": -1}, "greater than or equal to 0"),
    ({"replicas": 257}, "less than or equal to 256"),
    (
        {"replicas": 2, "autoscaling": {"maxReplicas": 3}},
        "spec.replicas and spec.autoscaling cannot both decide",
    ),
    ({"autoscaling": {}}, "spec.autoscaling.maxReplicas: Required value"),
    ({"autoscaling": {"minReplicas": 3, "maxReplicas": 2}}, "raise maxReplicas or lower minReplicas"),
    ({"autoscaling": {"minReplicas": 0, "maxReplicas": 2}}, "0 only for tier Dedicated"),
    (
        {"autoscaling": {"maxReplicas": 2, "schedules": [{**WINDOW, "minReplicas": 0}]}},
        "may say minReplicas: 0 only for tier Dedicated",
    ),
    (
        {"autoscaling": {"maxReplicas": 2, "schedules": [{**WINDOW, "end": "08:00"}]}},
        "write 00:00 and 24:00 for a whole day",
    ),
    ({"autoscaling": {"maxReplicas": 2, "schedules": [{**WINDOW, "end": "24:01"}]}}, "should match"),
    ({"autoscaling": {"maxReplicas": 2, "schedules": [WINDOW] * 17}}, "must have at most 16 items"),
    ({"rollout": {"maintenanceWindow": {"cron": "tomorrow"}}}, "spec.rollout.maintenanceWindow.cron"),
    ({"drain": {"gracePeriodSeconds": 29}}, "greater than or equal to 30"),
    ({"cache": {"size": "100"}}, "spec.cache.size in body should match"),
    ({"network": {"allowFrom": [{}]}}, "should have at least 1 properties"),
    ({"availability": {"minAvailable": 1}}, "spec.availability.minAvailable must be below spec.replicas"),
]

UNCHANGEABLE: list[tuple[Object, Object, str]] = [
    ({}, {"tier": "Premium"}, "spec.tier cannot change: make another lane"),
    (DEDICATED, {"customerRef": "other"}, "spec.customerRef cannot change: make another lane"),
    ({}, {"model": {"servedName": "other"}}, "spec.model.servedName cannot change: make another lane"),
    ({}, {"engine": {"kind": "VLLM"}, "model": {"revision": SHA}}, "spec.engine.kind cannot change"),
    ({}, {"cache": {"mode": "PerLane"}}, "spec.cache.mode cannot change once there is a volume"),
    ({}, {"cache": {"storageClass": "fast"}}, "spec.cache.storageClass cannot change"),
    ({}, {"cache": {"size": "99Gi"}}, "spec.cache.size can only grow"),
]


@pytest.fixture(scope="module")
def api(api_server: ApiServer) -> Iterator[httpx.Client]:
    with api_server.client() as client:
        yield client


@pytest.fixture
def made(api: httpx.Client) -> Iterator[httpx.Client]:
    """The API server; every lane that a test makes is deleted after it."""
    yield api
    api.delete(PATH)


def _create(api: httpx.Client, document: Object, dry_run: bool = False) -> httpx.Response:
    return api.post(PATH, json=document, params={"dryRun": "All"} if dry_run else {})


def _patch(api: httpx.Client, change: Object, below: str = "") -> httpx.Response:
    headers = {"Content-Type": "application/merge-patch+json"}
    return api.patch(f"{PATH}/chat{below}", json=change, headers=headers)


@pytest.mark.parametrize(("spec", "words"), REFUSED, ids=lambda value: str(value)[:60])
def test_the_api_server_refuses_nonsense_and_names_the_mend(
    api: httpx.Client, spec: Object, words: str
) -> None:
    refusal = _create(api, lane(**spec), dry_run=True)
    assert refusal.status_code == 422, refusal.text
    assert words in refusal.json()["message"]


@pytest.mark.parametrize(("spec", "change", "words"), UNCHANGEABLE, ids=lambda value: str(value)[:60])
def test_what_a_lane_is_cannot_change(made: httpx.Client, spec: Object, change: Object, words: str) -> None:
    assert _create(made, lane(**spec)).status_code == 201
    refusal = _patch(made, {"spec": change})
    assert refusal.status_code == 422, refusal.text
    assert words in refusal.json()["message"]


def test_a_cache_may_grow_and_an_ephemeral_one_may_become_a_volume(made: httpx.Client) -> None:
    assert _create(made, lane(cache={"mode": "Ephemeral"})).status_code == 201
    change = {"spec": {"cache": {"mode": "PerLane", "size": "90Gi", "storageClass": "fast"}}}
    assert _patch(made, change).status_code == 200
    assert _patch(made, {"spec": {"cache": {"size": "1Ti"}}}).status_code == 200


@pytest.mark.parametrize("name", ["a" * 41, "1lane", "with.dot"])
def test_a_name_that_children_cannot_take_is_refused(api: httpx.Client, name: str) -> None:
    refusal = _create(api, lane(name), dry_run=True)
    assert refusal.status_code == 422
    assert "metadata.name" in refusal.json()["message"]


def test_every_flag_and_variable_that_the_operator_refuses_is_refused_before(api: httpx.Client) -> None:
    flags = [f"--{name}x" if name.endswith("-") else f"--{name}=x" for name in [*OWNED_FLAGS, *REFUSED_FLAGS]]
    assert all(refused_argument(flag) for flag in flags)
    answer = _create(api, lane(engine={"extraArgs": flags[:32]}), dry_run=True)
    rest = _create(api, lane(engine={"extraArgs": flags[32:]}), dry_run=True)
    causes = answer.json()["details"]["causes"] + rest.json()["details"]["causes"]
    assert {cause["field"] for cause in causes} >= {
        f"spec.engine.extraArgs[{place}]" for place in range(min(len(flags), 32))
    }
    assert len(causes) >= len(flags)
    variables = [{"name": name, "value": "x"} for name in REFUSED_ENVIRONMENT]
    refusal = _create(api, lane(engine={"env": variables}), dry_run=True)
    assert len(refusal.json()["details"]["causes"]) == len(variables)


@pytest.mark.parametrize(
    "flag", ["--seed=1", "--dtype=half", "--enforce-eager", "--max-num-batched-tokens=9"]
)
def test_the_engines_other_flags_pass(api: httpx.Client, flag: str) -> None:
    assert refused_argument(flag) is None
    assert _create(api, lane(engine={"extraArgs": [flag]}), dry_run=True).status_code == 201


def test_defaults_are_filled_in_and_are_those_that_the_operator_would_take(api: httpx.Client) -> None:
    document = lane(
        tier="Dedicated", customerRef="acme", autoscaling={"maxReplicas": 2, "schedules": [WINDOW]}
    )
    merge(document["spec"], {"rollout": {"maintenanceWindow": {"cron": "0 3 * * *"}}})
    merge(
        document["spec"],
        {"accelerator": {"class": "nvidia-l4"}, "network": {"allowFrom": [{"podLabels": {"a": "b"}}]}},
    )
    answered = _create(api, document, dry_run=True)
    assert answered.status_code == 201, answered.text
    spec = answered.json()["spec"]
    assert spec["replicas"] == 1
    assert spec["engine"]["gpuMemoryPercent"] == 90
    assert spec["drain"] == {"gracePeriodSeconds": 60}
    assert parse(answered.json()).spec == parse(document).spec


def test_a_field_that_nobody_knows_is_refused_when_asked_strictly(api: httpx.Client) -> None:
    strict = api.post(PATH, json=lane(gpus=4), params={"fieldValidation": "Strict", "dryRun": "All"})
    assert strict.status_code == 400
    assert 'unknown field "spec.gpus"' in strict.json()["message"]


def test_status_is_written_apart_from_the_spec(made: httpx.Client) -> None:
    document = lane(status={})
    document["status"] = {"phase": "Ready"}
    created = _create(made, document).json()
    assert "status" not in created
    ready = {
        "type": "Ready",
        "status": "True",
        "reason": "AsExpected",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    change = {"status": {"phase": "Ready", "conditions": [ready]}, "spec": {"replicas": 5}}
    after = _patch(made, change, "/status").json()
    assert after["status"]["phase"] == "Ready"
    assert after["spec"]["replicas"] == 1
    assert after["metadata"]["generation"] == created["metadata"]["generation"]
    assert _patch(made, {"status": {"phase": "Splendid"}}, "/status").status_code == 422


def test_a_lane_is_scaled_by_its_scale_subresource(made: httpx.Client) -> None:
    _create(made, lane())
    _patch(made, {"status": {"replicas": 1, "selector": "darktree.dev/lane=chat"}}, "/status")
    scale = made.get(f"{PATH}/chat/scale").json()
    assert (scale["spec"], scale["status"]) == (
        {"replicas": 1},
        {"replicas": 1, "selector": "darktree.dev/lane=chat"},
    )
    assert _patch(made, {"spec": {"replicas": 3}}, "/scale").json()["spec"]["replicas"] == 3
    assert made.get(f"{PATH}/chat").json()["spec"]["replicas"] == 3


def test_what_another_autoscaler_set_stays_when_the_lane_is_applied_again(made: httpx.Client) -> None:
    headers = {"Content-Type": "application/apply-patch+yaml"}
    params = {"fieldManager": "kubectl"}
    text = yaml.safe_dump(lane())
    assert made.patch(f"{PATH}/chat", content=text, headers=headers, params=params).status_code == 201
    _patch(made, {"spec": {"replicas": 3}}, "/scale")
    applied = made.patch(f"{PATH}/chat", content=text, headers=headers, params=params)
    assert applied.json()["spec"]["replicas"] == 3


def test_scaling_by_hand_is_refused_while_the_lane_scales_itself(made: httpx.Client) -> None:
    _create(made, lane(autoscaling={"maxReplicas": 3}))
    refusal = _patch(made, {"spec": {"replicas": 3}}, "/scale")
    assert refusal.status_code == 422
    assert "remove spec.autoscaling before scaling by hand" in refusal.json()["message"].replace("\n", " ")


def test_lanes_are_found_by_tier_customer_and_phase(made: httpx.Client) -> None:
    _create(made, lane("one"))
    _create(made, lane("two", **DEDICATED))
    for selector, names in {
        "spec.tier=Standard": ["one"],
        "spec.customerRef=acme": ["two"],
        "status.phase=Ready": [],
    }.items():
        found = made.get(PATH, params={"fieldSelector": selector}).json()["items"]
        assert [each["metadata"]["name"] for each in found] == names


def test_kubectl_shows_what_serves_and_why_not(made: httpx.Client) -> None:
    _create(made, lane())
    conditions = [
        {
            "type": "Available",
            "status": "True",
            "reason": "AsExpected",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        },
        {
            "type": "Ready",
            "status": "False",
            "reason": "RollingOut",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        },
    ]
    status = {"conditions": conditions, "updatedReplicas": 1, "availableReplicas": 2, "gpu": {"allocated": 3}}
    assert _patch(made, {"status": status}, "/status").status_code == 200
    headers = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}
    table = made.get(PATH, headers=headers).json()
    shown = {
        column["name"]: cell
        for column, cell in zip(table["columnDefinitions"], table["rows"][0]["cells"], strict=True)
    }
    assert [shown[name] for name in ("Tier", "Model", "Ready", "Reason", "Up-To-Date", "Available", "GPU")] == [
        "Standard", "tiny", "False", "RollingOut", 1, 2, 3,
    ]  # fmt: skip
    assert {"Customer", "Revision", "Endpoint", "Queue", "Age"} <= shown.keys()


EXAMPLES = sorted([*ROOT.glob("examples/lanes/*.yaml"), *ROOT.glob("examples/simulated/*.yaml")])


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: str(file.name))
def test_every_example_is_accepted(api: httpx.Client, file: Path) -> None:
    document = yaml.safe_load(file.read_text())
    params = {"fieldValidation": "Strict", "dryRun": "All"}
    answered = api.post(PATH, json=document, params=params)
    assert answered.status_code == 201, answered.text
    assert parse(answered.json()).name == document["metadata"]["name"]


def test_there_is_an_example_of_each_tier_and_of_a_simulated_lane() -> None:
    specs = [yaml.safe_load(file.read_text())["spec"] for file in EXAMPLES]
    assert {spec["tier"] for spec in specs} == {"Standard", "Premium", "Dedicated"}
    assert "Simulator" in {spec["engine"]["kind"] for spec in specs}


def test_the_schema_and_the_typed_lane_have_the_same_fields_and_defaults() -> None:
    version = yaml.safe_load(CRD.read_text())["spec"]["versions"][0]
    schema = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    assert _of_schema(schema) == _of_model(LaneSpec)


def test_everything_in_the_schema_has_a_limit() -> None:
    version = yaml.safe_load(CRD.read_text())["spec"]["versions"][0]
    for path, part in _parts(version["schema"]["openAPIV3Schema"]["properties"]["spec"], "spec"):
        match part["type"]:
            case "string":
                assert part.keys() & {"enum", "maxLength"}, path
            case "array":
                assert "maxItems" in part, path
            case "integer":
                assert {"minimum", "maximum"} <= part.keys(), path
            case "object":
                assert "properties" in part or "maxProperties" in part, path


def _parts(part: Object, path: str) -> Iterator[tuple[str, Object]]:
    yield path, part
    for name, child in (part.get("properties") or {}).items():
        yield from _parts(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in part:
            yield from _parts(part[key], f"{path}[]")


def _of_schema(part: Object, path: str = "spec") -> dict[str, Any]:
    """Return each field's path with its allowed words, bounds and default."""
    found: dict[str, Any] = {}
    for name, child in (part.get("properties") or {}).items():
        place = f"{path}.{name}"
        inner = child["items"] if child["type"] == "array" else child
        if inner["type"] == "object" and "properties" in inner:
            found |= _of_schema(inner, place)
        else:
            words = tuple(sorted(inner.get("enum") or ()))
            found[place] = (words, child.get("default"))
    return found


def _of_model(model: type[BaseModel], path: str = "spec") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        place = f"{path}.{field.alias or name}"
        inner = _inner(field.annotation)
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found |= _of_model(inner, place)
        else:
            words = tuple(sorted(get_args(inner))) if get_origin(inner) is not None else ()
            default = None if field.is_required() or field.default in ((), {}) else field.default
            found[place] = (words if all(isinstance(word, str) for word in words) else (), default)
    return found


def _inner(annotation: Any) -> Any:
    """Return what is in an optional, a tuple or an annotated type."""
    arguments = [each for each in get_args(annotation) if each not in {type(None), Ellipsis}]
    kind = get_origin(annotation)
    if kind is None or kind is dict or all(isinstance(each, str) for each in arguments):
        return str if kind is dict else annotation
    return _inner(arguments[0])
