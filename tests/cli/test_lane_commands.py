"""`darktree lanes`: rendered objects, forecasts against a small API server, and the departure board."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from typer.testing import CliRunner

from darktree_cli.lane_board import remarks, rows
from darktree_cli.main import app
from darktree_operator.config import read_config
from darktree_operator.observed import Observed
from darktree_operator.plan import plan

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "examples" / "operator.yaml"
NOW = datetime(2026, 3, 4, 12, 0, tzinfo=UTC)
run = CliRunner()


def document(name: str = "oak", **engine: Any) -> dict[str, Any]:
    return {
        "apiVersion": "darktree.dev/v1alpha1",
        "kind": "InferenceLane",
        "metadata": {"name": name, "namespace": "lanes", "uid": f"uid-of-{name}"},
        "spec": {
            "tier": "Standard",
            "model": {
                "source": "hf://Qwen/Qwen2.5-14B-Instruct-AWQ",
                "revision": "a" * 40,
                "servedName": "oak",
            },
            "engine": {"contextLength": 32768, **engine},
            "accelerator": {"class": "nvidia-l4"},
        },
    }


def written(folder: Path, *documents: dict[str, Any]) -> str:
    file = folder / "lanes.yaml"
    file.write_text(yaml.safe_dump_all(documents))
    return str(file)


def invoke(*arguments: str) -> Any:
    return run.invoke(app, ["lanes", *arguments])


def living(lane: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    """What the operator would have made of a lane that serves."""
    seen = Observed(lane=lane, config=read_config(CONFIG), now=NOW)
    jobs = [each for each in plan(seen, 1).objects if each["kind"] == "Job"]
    done = {"status": {"conditions": [{"type": "Complete", "status": "True"}]}}
    complete = tuple(job | done for job in jobs)
    made = plan(Observed(lane=lane, config=read_config(CONFIG), now=NOW, jobs=complete), 1)
    objects = [*made.objects, *complete]
    for each in objects:
        if each["kind"] == "Deployment":
            counts = {"replicas": 1, "updatedReplicas": 1, "availableReplicas": 1, "observedGeneration": 1}
            each |= {"status": counts}
            each["metadata"]["generation"] = 1
    return [*objects, lane | more]


PLURALS = {
    "NetworkPolicy": "networkpolicies",
    "PersistentVolumeClaim": "persistentvolumeclaims",
    "PodDisruptionBudget": "poddisruptionbudgets",
    "InferenceLane": "inferencelanes",
    "ControllerRevision": "controllerrevisions",
}


@contextmanager
def served(objects: list[dict[str, Any]], folder: Path) -> Iterator[str]:
    """A server of these objects over real HTTP, and a kubeconfig that leads there."""

    async def answer(request: web.Request) -> web.Response:
        *_, plural, name = ["", *request.path.split("/")]
        kinds = {PLURALS.get(each["kind"], each["kind"].lower() + "s"): each["kind"] for each in objects}
        if plural in kinds:
            for each in objects:
                if each["kind"] == kinds[plural] and each["metadata"]["name"] == name:
                    return web.json_response(each)
        if name in {*kinds, "pods", "jobs", "deployments", *PLURALS.values()} or name == "services":
            items = [each for each in objects if each["kind"] == kinds.get(name)]
            return web.json_response({"metadata": {"resourceVersion": "1"}, "items": items})
        return web.json_response({"reason": "NotFound", "message": "not found", "code": 404}, status=404)

    started, loop = threading.Event(), asyncio.new_event_loop()
    ports: list[int] = []

    async def start() -> web.AppRunner:
        application = web.Application()
        application.router.add_get("/{path:.*}", answer)
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        ports.append(runner.addresses[0][1])
        return runner

    def serve() -> None:
        asyncio.set_event_loop(loop)
        runner = loop.run_until_complete(start())
        started.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    assert started.wait(10)
    cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{ports[0]}"}}
    context = {"name": "x", "context": {"cluster": "c", "user": "u"}}
    kubeconfig = folder / "kubeconfig"
    everything = {"clusters": [cluster], "contexts": [context], "users": [{"name": "u", "user": {}}]}
    kubeconfig.write_text(yaml.safe_dump({"current-context": "x", **everything}))
    try:
        yield str(kubeconfig)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


def test_render_prints_every_object_as_kubectl_takes_it(tmp_path: Path) -> None:
    answer = invoke("render", "-f", written(tmp_path, document()), "--config", str(CONFIG))
    assert answer.exit_code == 0
    kinds = [each["kind"] for each in yaml.safe_load_all(answer.stdout)]
    assert kinds == [
        "PersistentVolumeClaim",
        "Job",
        "NetworkPolicy",
        "Service",
        "ControllerRevision",
        "Deployment",
    ]
    assert "&id" not in answer.stdout
    assert "note: the cache holds" in answer.stderr


def test_render_refuses_what_cannot_be_served_and_names_the_field(tmp_path: Path) -> None:
    answer = invoke("render", "-f", written(tmp_path, document(contextLength=65536)), "--config", str(CONFIG))
    assert answer.exit_code == 1
    assert answer.stdout == ""
    assert "oak: spec.engine.contextLength: set it to 32768 or less" in answer.stderr


@pytest.mark.parametrize("text", ["a: [", "kind: Pod", ""])
def test_a_file_without_lanes_is_a_mistake_of_use(tmp_path: Path, text: str) -> None:
    file = tmp_path / "lanes.yaml"
    file.write_text(text)
    assert invoke("render", "-f", str(file), "--config", str(CONFIG)).exit_code == 2


def test_plan_of_a_new_lane_creates_it_and_takes_no_gpu_before_the_model_is_there(tmp_path: Path) -> None:
    with served([], tmp_path) as kubeconfig:
        lanes = written(tmp_path, document())
        answer = invoke("plan", "-f", lanes, "--config", str(CONFIG), "--kubeconfig", kubeconfig)
    assert answer.exit_code == 0, answer.stderr
    assert "create Service oak" in answer.stdout
    assert "create Job oak-download-" in answer.stdout
    assert "no GPU is taken before it is there" in answer.stdout
    assert "downtime: none" in answer.stdout
    assert "GPUs: 0 now, 1 then" in answer.stdout


def test_plan_of_an_unchanged_lane_changes_nothing(tmp_path: Path) -> None:
    with served(living(document()), tmp_path) as kubeconfig:
        lanes = written(tmp_path, document())
        answer = invoke("plan", "-f", lanes, "--config", str(CONFIG), "--kubeconfig", kubeconfig)
    assert answer.exit_code == 0, answer.stderr
    assert "pods: not replaced" in answer.stdout
    assert "GPUs: 1 now, 1 then" in answer.stdout
    changed = [line for line in answer.stdout.splitlines() if line.startswith(("  create", "  delete"))]
    assert changed == []
    assert "Deployment" not in answer.stdout


def test_plan_of_a_changed_lane_tells_its_fields_and_its_downtime(tmp_path: Path) -> None:
    status = {"status": {"coldStart": {"lastTotalSeconds": 140}}}
    with served(living(document(), **status), tmp_path) as kubeconfig:
        lanes = written(tmp_path, document(contextLength=8192))
        answer = invoke("plan", "-f", lanes, "--config", str(CONFIG), "--kubeconfig", kubeconfig)
    assert answer.exit_code == 0, answer.stderr
    assert "change Deployment oak: " in answer.stdout
    assert "pods: replaced" in answer.stdout
    assert "downtime: the drain of at most 60 s and the start of 140 s, as last measured" in answer.stdout


def test_plan_says_what_a_rollout_waits_for(tmp_path: Path) -> None:
    paused = document(contextLength=8192)
    paused["spec"]["rollout"] = {"paused": True}
    with served(living(document()), tmp_path) as kubeconfig:
        lanes = written(tmp_path, paused)
        answer = invoke("plan", "-f", lanes, "--config", str(CONFIG), "--kubeconfig", kubeconfig)
    assert "waits: RolloutPaused, spec.rollout.paused is set" in answer.stdout
    assert "pods: not replaced" in answer.stdout


def test_a_cluster_that_does_not_answer_is_said(tmp_path: Path) -> None:
    with served([], tmp_path) as kubeconfig:
        pass
    assert invoke("status", "--kubeconfig", kubeconfig).exit_code == 3


WAITING = {
    "phase": "WaitingForGPU",
    "readyReplicas": 1,
    "desiredReplicas": 2,
    "serving": {"revisionHash": "aaa"},
    "target": {"revisionHash": "bbb"},
    "rollout": {
        "state": "Deferred",
        "deferredReason": "OutsideWindow",
        "deferredUntil": "2026-03-05T02:00:00Z",
    },
    "gpu": {"allocated": 1},
    "lastFailure": {"hint": "set spec.engine.contextLength to 3584 or less"},
    "conditions": [
        {"type": "Ready", "status": "False", "reason": "InsufficientGPU", "message": "1 more GPU is needed"}
    ],
}
SERVING = {
    "phase": "Ready",
    "readyReplicas": 1,
    "serving": {"revisionHash": "aaa"},
    "target": {"revisionHash": "aaa"},
    "conditions": [{"type": "Ready", "status": "True", "reason": "AsExpected", "message": ""}],
}


def test_the_board_shows_what_serves_and_what_comes_next_worst_first() -> None:
    lanes = [document("ash") | {"status": SERVING}, document("oak") | {"status": WAITING}, document("elm")]
    board = rows(lanes)
    assert [row[0] for row in board] == ["elm", "oak", "ash"]
    assert board[1] == (
        "oak",
        "Standard",
        "oak",
        "WaitingForGPU",
        "aaa",
        "1/2",
        "bbb OutsideWindow until 2026-03-05T02:00:00Z",
        "1",
        "InsufficientGPU",
    )
    assert board[2][6] == ""
    assert "does the operator run?" in board[0][8]
    assert remarks(lanes) == ["oak: 1 more GPU is needed; set spec.engine.contextLength to 3584 or less"]


def test_status_prints_the_board_or_json(tmp_path: Path) -> None:
    with served([document("ash") | {"status": SERVING}], tmp_path) as kubeconfig:
        table = invoke("status", "--kubeconfig", kubeconfig)
        plain = invoke("status", "ash", "-o", "json", "--kubeconfig", kubeconfig)
        missing = invoke("status", "fir", "--kubeconfig", kubeconfig)
    assert "SERVING" in table.stdout
    assert "AsExpected" in table.stdout
    assert json.loads(plain.stdout)[0]["status"]["phase"] == "Ready"
    assert (missing.exit_code, missing.stderr) == (1, "darktree: there is no lane fir\n")
