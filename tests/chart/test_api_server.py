"""A real API server takes every object as it stands, in a namespace that admits restricted pods only."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml
from api_server import ABSENT, ApiServer, binaries, serving

Object = dict[str, Any]
Render = Callable[..., list[Object]]
OF_OTHERS = {"HTTPRoute", "PodMonitor", "PrometheusRule"}
RESTRICTED = {f"pod-security.kubernetes.io/{what}": "restricted" for what in ("enforce", "warn")}


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    found = binaries()
    if found is None:
        pytest.skip(ABSENT)
    with serving(found) as running:
        for name in ("shop", "lanes"):
            namespace = {"metadata": {"name": name, "labels": RESTRICTED}}
            with running.client() as client:
                client.post("/api/v1/namespaces", json=namespace).raise_for_status()
        yield running


@pytest.fixture(scope="module")
def kubectl() -> str:
    found = os.environ.get("KUBECTL") or shutil.which("kubectl")
    if found is None:
        pytest.skip("no kubectl: run `make kube` and put build/bin on PATH")
    return found


@pytest.mark.parametrize("upgrade", [False, True])
@pytest.mark.parametrize("choice", ["nothing", "production", "trial", "everywhere", "more"])
def test_it_takes_everything_and_warns_of_nothing(
    choice: str,
    upgrade: bool,
    server: ApiServer,
    kubectl: str,
    render: Render,
    production: Object,
    trial: Object,
) -> None:
    values = {
        "nothing": {},
        "production": production,
        "trial": trial,
        "everywhere": {"lanes": {"namespace": "*"}, "gateway": {"autoscaling": {"enabled": True}}},
        "more": {"backup": {"existingClaim": "backups"}, "tracing": {"endpoint": "http://collector:4318"}},
    }
    objects = [
        each
        for each in render(values[choice], *(["--is-upgrade"] if upgrade else []))
        if each["kind"] not in OF_OTHERS
    ]
    options = [
        "--kubeconfig",
        str(server.kubeconfig()),
        "--server-side",
        "--dry-run=server",
        "--validate=strict",
    ]
    done = subprocess.run(
        [kubectl, "apply", *options, "--output", "json", "--filename", "-"],
        input=yaml.safe_dump_all(objects),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, "the server warns of what pods want, or of fields that it does not know"
    assert len(json.loads(done.stdout)["items"]) == len(objects)
