"""Lanes on a real cluster: engines that run, pretended GPUs that run out, real vLLM on a CPU, a gateway that serves.

It needs KUBECONFIG, kubectl and helm, E2E_IMAGE, an image of this project that the cluster's nodes have, and
E2E_LANES=1, because it installs a release of its own beside the story's. With E2E_VLLM_IMAGE, an image with vLLM 0.32
for CPUs, a real engine is tried too. Everything is in a namespace of its own.
"""

import json
import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from own_release import RELEASE, ROOT, Object, OwnRelease, image_named, run, until

GPU = "nvidia.com/gpu"
SIMULATED, REAL = "qwen25-14b-awq", "qwen25-32b-awq"  # models that the chart's plans have a price for
CONTEXT = 1024
NEEDED = ("KUBECONFIG", "E2E_IMAGE", "E2E_LANES")


@pytest.fixture(scope="module")
def release() -> Iterator[OwnRelease]:
    missing = [name for name in NEEDED if not os.environ.get(name)]
    missing += [program for program in ("kubectl", "helm") if shutil.which(program) is None]
    if missing:
        pytest.skip(f"no cluster to try lanes on, without {', '.join(missing)}")
    namespace = f"lanes-{uuid.uuid4().hex[:8]}"
    release = OwnRelease(namespace, image_named("E2E_IMAGE"), image_named("E2E_VLLM_IMAGE"))
    try:
        release.deploy()
        yield release
    finally:
        if "E2E_KEEP" not in os.environ:
            run("kubectl", "delete", "namespace", namespace, "--wait=false", "--ignore-not-found")


@pytest.fixture(scope="module")
def key(release: OwnRelease) -> str:
    """The key of a customer with credits."""
    with release.administering() as admin:
        customer = {"id": "acme", "name": "Acme", "plan": "scale"}
        admin.post("/admin/customers", json=customer).raise_for_status()
        grant = {"dollars": "100", "reason": "e2e"}
        admin.post("/admin/customers/acme/grants", json=grant).raise_for_status()
        made = admin.post("/admin/customers/acme/keys", json={"name": "e2e"}).raise_for_status()
        return str(made.json()["key"])


@pytest.fixture
def api(release: OwnRelease, key: str) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {key}"}
    with (
        release.forwarded(f"{RELEASE}-gateway", 80) as url,
        httpx.Client(base_url=url, headers=headers, timeout=120, trust_env=False) as client,
    ):
        yield client


def ask(api: httpx.Client, model: str, **fields: Any) -> httpx.Response:
    body = {"model": model, "max_tokens": 8, "messages": [{"role": "user", "content": "Hello!"}]}
    return api.post("/v1/chat/completions", json=body | fields)


def simulated(**more: Any) -> Object:
    """A lane of a simulated engine on a pretended GPU."""
    return {
        "tier": "Standard",
        "model": {"source": "hf://Qwen/Qwen2.5-14B-Instruct-AWQ", "servedName": SIMULATED},
        "engine": {"kind": "Simulator", "contextLength": 4096},
        "accelerator": {"class": "pretended"},
        "drain": {"gracePeriodSeconds": 30},
        **more,
    }


def free_gpus() -> int:
    """How many GPUs no pod of the cluster has; two are pretended where there are none."""

    def count(found: Object) -> int:
        return int(found.get(GPU, 0))

    nodes = json.loads(run("kubectl", "get", "nodes", "--output", "json"))["items"]
    if not sum(count(node["status"]["allocatable"]) for node in nodes):
        patch = json.dumps({"status": {"capacity": {GPU: "2"}, "allocatable": {GPU: "2"}}})
        name = nodes[0]["metadata"]["name"]
        run("kubectl", "patch", "node", name, "--subresource=status", "--type=merge", "--patch", patch)
        return free_gpus()
    pods = json.loads(run("kubectl", "get", "pods", "--all-namespaces", "--output", "json"))["items"]
    taken = sum(
        count(container.get("resources", {}).get("limits") or {})
        for pod in pods
        if pod["status"]["phase"] not in {"Succeeded", "Failed"} and pod["spec"].get("nodeName")
        for container in pod["spec"]["containers"]
    )
    return sum(count(node["status"]["allocatable"]) for node in nodes) - taken


def test_lanes_run_until_the_gpus_are_gone_and_who_waits_is_told_and_comes_next(release: OwnRelease) -> None:
    free = free_gpus()
    assert free >= 1, "every GPU of the cluster is taken by others"
    release.apply("first", simulated(replicas=free))
    lane = release.says("first", "Ready", "AsExpected")
    assert lane["status"]["gpu"] == {"perReplica": 1, "requested": free, "allocated": free}
    assert all(pod["spec"]["nodeName"] for pod in release.pods("first"))
    release.apply("late", simulated())
    lane = release.says("late", "GPUAvailable", "InsufficientGPU")
    gpu = lane["status"]["gpu"]
    assert (gpu["waitingFor"], gpu["allocated"]) == (f"1 {GPU} for each of 1 replicas", 0)
    assert gpu["queuePosition"] == 1
    assert f"Insufficient {GPU}" in gpu["schedulerMessage"]  # the real scheduler's words
    assert lane["status"]["phase"] == "WaitingForGPU"
    release.change("first", {"suspend": True})
    release.says("first", "Suspended", "Suspended")
    release.says("late", "Ready", "AsExpected")
    release.kubectl("delete", "lane", "late", "--wait=true")
    release.change("first", {"suspend": False, "replicas": 1})
    release.says("first", "Ready", "AsExpected")


def test_the_gateway_finds_a_lane_serves_it_and_tells_what_its_engine_is(
    release: OwnRelease, api: httpx.Client
) -> None:
    until(lambda: ask(api, SIMULATED).status_code == 200, "a completion")
    answer = ask(api, SIMULATED).json()
    assert answer["usage"]["completion_tokens"] == 8
    found = until(lambda: release.get("lane", "first")["status"].get("engine"), "the engine's own words")
    assert found["version"]
    assert found["maxModelLen"] == 4096
    with release.administering() as admin:
        (entry, *_) = admin.get("/admin/customers/acme/entries?limit=1").raise_for_status().json()["data"]
    assert entry["lane"] == "first"
    assert entry["prompt_tokens"] + entry["completion_tokens"] == answer["usage"]["total_tokens"]


def test_a_deleted_lane_finishes_what_it_serves(release: OwnRelease, api: httpx.Client) -> None:
    lines: list[str] = []
    begun = threading.Event()

    def read() -> None:
        # 1,000 tokens at 100 a second: longer than the deletion needs, shorter than the drain.
        body = {
            "model": SIMULATED,
            "max_tokens": 1000,
            "stream": True,
            "ignore_eos": True,
            "messages": [{"role": "user", "content": "Hello!"}],
        }
        with api.stream("POST", "/v1/chat/completions", json=body) as stream:
            for line in stream.iter_lines():
                lines.append(line)
                begun.set()

    reading = threading.Thread(target=read)
    reading.start()
    assert begun.wait(60)
    release.kubectl("delete", "lane", "first", "--wait=true")
    reading.join(60)
    assert [line for line in lines if line][-1] == "data: [DONE]"
    assert '"completion_tokens":1000' in "".join(lines).replace(" ", "")
    until(lambda: not release.get("pods", "--selector", "darktree.dev/lane=first")["items"], "no engine", 90)


def test_without_the_operator_lanes_serve_on_and_an_upgrade_of_it_replaces_no_pod(
    release: OwnRelease, api: httpx.Client
) -> None:
    release.apply("stays", simulated(accelerator=None))
    release.says("stays", "Ready", "AsExpected")
    until(lambda: ask(api, SIMULATED).status_code == 200, "a completion")
    before = [pod["metadata"]["uid"] for pod in release.pods("stays")]
    release.deploy(operator={"enabled": False})
    operators = ("pods", "--selector", "app.kubernetes.io/name=darktree-operator")
    until(lambda: not release.get(*operators)["items"], "no operator")
    assert ask(api, SIMULATED).status_code == 200
    values = release._values()["operator"]
    values["config"]["images"] = {"Simulator": {"byVersion": {"0.1.0": f"{release.image}-newer"}}}
    release.deploy(operator=values)
    lane = release.says("stays", "UpToDate", "TemplateOutdated")
    assert lane["status"]["template"]["outdatedReplicas"] == 1
    assert [pod["metadata"]["uid"] for pod in release.pods("stays")] == before
    assert ask(api, SIMULATED).status_code == 200
    release.kubectl("delete", "lane", "stays", "--wait=true")
    release.deploy()


@pytest.fixture(scope="module")
def model(release: OwnRelease) -> str:
    """A claim with the files of a tiny model, made in the cluster by vLLM's own libraries."""
    if not release.vllm_image:
        pytest.skip("E2E_VLLM_IMAGE names no image with vLLM for CPUs: no real engine is tried")
    scripts = ROOT / "services" / "simulator" / "darktree_simulator"
    files = {name: Path(scripts / name).read_text() for name in ("tiny_model.py", "tokenizer.py")}
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "models"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    script = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "tiny-model"}, "data": files}
    container = {
        "name": "make",
        "image": release.vllm_image,
        "command": ["python3", "/scripts/tiny_model.py", "/models/tiny"],
        "env": [{"name": "HOME", "value": "/tmp"}, {"name": "USER", "value": "engine"}],
        "volumeMounts": [
            {"name": "models", "mountPath": "/models"},
            {"name": "scripts", "mountPath": "/scripts"},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }
    pod = {
        "restartPolicy": "Never",
        "securityContext": {"runAsUser": 1000, "runAsNonRoot": True, "fsGroup": 1000},
        "containers": [container],
        "volumes": [
            {"name": "models", "persistentVolumeClaim": {"claimName": "models"}},
            {"name": "scripts", "configMap": {"name": "tiny-model"}},
            {"name": "tmp", "emptyDir": {}},
        ],
    }
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "tiny-model"},
        "spec": {"backoffLimit": 0, "template": {"spec": pod}},
    }
    for thing in (claim, script, job):
        release.kubectl("apply", "--filename", "-", stdin=json.dumps(thing))
    release.kubectl("wait", "--for=condition=Complete", "job/tiny-model", "--timeout=300s")
    return "pvc://models/tiny"


def test_a_lane_of_real_vllm_serves_and_a_wrong_change_is_diagnosed_and_rolled_back(
    release: OwnRelease, api: httpx.Client, model: str
) -> None:
    engine = {
        "kind": "VLLM",
        "contextLength": CONTEXT,
        "extraArgs": ["--enforce-eager", "--dtype=float32"],
        "env": [{"name": "VLLM_CPU_KVCACHE_SPACE", "value": "1"}],
    }
    lane = {
        "tier": "Standard",
        "model": {"source": model, "servedName": REAL},
        "engine": engine,
        "accelerator": {"class": "cpu"},
        "cache": {"mode": "Ephemeral", "size": "1Gi"},
        "rollout": {"strategy": "Recreate", "crashLimit": 1},
        "drain": {"gracePeriodSeconds": 30},
    }
    release.apply("real", lane)
    release.says("real", "Ready", "AsExpected", 600)
    until(lambda: ask(api, REAL).status_code == 200, "a completion")
    answer = ask(api, REAL).json()
    assert answer["usage"]["completion_tokens"] == 8
    found = until(lambda: release.get("lane", "real")["status"].get("engine"), "the engine's own words")
    assert (found["version"], found["maxModelLen"]) == ("0.32.0", CONTEXT)
    assert found["kvCacheTokens"] > CONTEXT
    assert float(found["maxConcurrency"]) > 1
    release.change("real", {"engine": {"contextLength": 65536}})
    wrong = release.says("real", "Stalled", "RolledBack", 600)
    failure = wrong["status"]["lastFailure"]
    assert failure["reason"] == "InvalidSpec"
    assert failure["hint"] == "set spec.engine.contextLength to 32768 or less: the model was made for no more"
    until(lambda: ask(api, REAL).status_code == 200, "a completion of the last revision that served", 300)
