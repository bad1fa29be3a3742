"""The chart, installed small in a namespace of its own: what tests of lanes on a real cluster stand on."""

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

ROOT = Path(__file__).parents[2]
RELEASE = "darktree"
WAIT_SECONDS = 240.0
LITTLE = {"requests": {"cpu": "60m", "memory": "96Mi"}}

Object = dict[str, Any]


@dataclass(frozen=True)
class OwnRelease:
    """One release in one namespace, by kubectl and helm."""

    namespace: str
    image: str
    vllm_image: str = ""

    def kubectl(self, *words: str, stdin: str | None = None) -> str:
        return run("kubectl", "--namespace", self.namespace, *words, stdin=stdin)

    def deploy(self, **more: Any) -> None:
        """Install or upgrade; `more` is beside the values below."""
        values = {**self._values(), **more}
        run(
            "helm", "upgrade", "--install", RELEASE, str(ROOT / "charts" / "darktree"), "--wait", "--timeout", "15m",
            "--namespace", self.namespace, "--create-namespace", "--values", "-", stdin=yaml.safe_dump(values),
        )  # fmt: skip

    def apply(self, name: str, spec: Object) -> None:
        document = {
            "apiVersion": "darktree.dev/v1alpha1",
            "kind": "InferenceLane",
            "metadata": {"name": name},
            "spec": spec,
        }
        self.kubectl("apply", "--filename", "-", stdin=json.dumps(document))

    def change(self, name: str, spec: Object) -> None:
        self.kubectl("patch", "lane", name, "--type=merge", "--patch", json.dumps({"spec": spec}))

    def get(self, *words: str) -> Any:
        return json.loads(self.kubectl("get", *words, "--output", "json"))

    def pods(self, lane: str) -> list[Object]:
        """The lane's engines that are not going."""
        selector = f"darktree.dev/lane={lane},app.kubernetes.io/component=engine"
        found = self.get("pods", "--selector", selector)["items"]
        return [pod for pod in found if not pod["metadata"].get("deletionTimestamp")]

    def says(self, lane: str, kind: str, reason: str, seconds: float = WAIT_SECONDS) -> Object:
        """Wait until the lane's condition has this reason for what the lane asks now; return the lane."""

        def found() -> Object | None:
            document = self.get("lane", lane)
            conditions = (document.get("status") or {}).get("conditions") or ()
            said: Object = next((each for each in conditions if each["type"] == kind), {})
            current = said.get("observedGeneration") == document["metadata"]["generation"]
            return document if said.get("reason") == reason and current else None

        lane_: Object = until(
            found, f"{lane}: {kind} {reason}", seconds, lambda: self.kubectl("get", "lane,pods")
        )
        return lane_

    @contextmanager
    def forwarded(self, service: str, port: int) -> Iterator[str]:
        """A port of this machine that leads to a Service."""
        command = ["kubectl", "--namespace", self.namespace, "port-forward", f"service/{service}", f":{port}"]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            assert process.stdout is not None
            try:
                line = process.stdout.readline()
                found = re.search(r"127\.0\.0\.1:(\d+)", line)
                assert found, line
                yield f"http://127.0.0.1:{found[1]}"
            finally:
                process.kill()

    @contextmanager
    def administering(self) -> Iterator[httpx.Client]:
        """Billing's administration, which is not reachable from outside."""
        secret = self.get("secret", f"{RELEASE}-secrets")["data"]["admin-token"]
        token = run("base64", "--decode", stdin=secret)
        headers = {"Authorization": f"Bearer {token}"}
        with (
            self.forwarded(f"{RELEASE}-billing", 8080) as url,
            httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False) as client,
        ):
            yield client

    def _values(self) -> Object:
        repository, _, tag = self.image.rpartition(":")
        few = {"replicas": 1, "resources": LITTLE}
        defined = "inferencelanes.darktree.dev" in run("kubectl", "get", "crd", "--output", "name")
        accelerators: Object = {
            "pretended": {"memoryGiB": 24},
            "cpu": {"memoryGiB": 4, "resource": None, "cpusPerGpu": 1, "hostMemoryPerGpuGiB": 4},
        }
        config: Object = {"accelerators": accelerators}
        if self.vllm_image:
            config["images"] = {
                "VLLM": {"defaultVersion": "0.32.0", "byVersion": {"0.32.0": self.vllm_image}}
            }
        return {
            "image": {"repository": repository, "tag": tag},
            "crds": {"install": not defined},
            "gateway": {**few, "drainSeconds": 60},
            "ledger": few,
            "billing": few,
            "sealer": few,
            "worker": {**few, "replicas": 0},
            "operator": {**few, "config": config},
            "database": {"bundled": {"resources": LITTLE}},
        }


def image_named(variable: str) -> str:
    return os.environ.get(variable, "")


def run(*command: str, stdin: str | None = None) -> str:
    """Run a command and return what it said. Raises AssertionError with all of it."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=1000)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def until(
    found: Callable[[], Any], what: str, seconds: float = WAIT_SECONDS, state: Callable[[], str] = str
) -> Any:
    """Return what `found` returns once that is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := found():
            return result
        time.sleep(0.5)
    raise AssertionError(f"waited {seconds:.0f} s for {what}\n{state()}")
