"""The chart on a cluster that somebody else made: known by a KUBECONFIG and by a command that gives it images."""

import json
import os
import re
import shlex
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "darktree"
TRIAL = ROOT / "examples" / "cluster" / "trial.yaml"
NAMESPACE = "darktree-e2e"
RELEASE = "darktree"
API_HOST, CONSOLE_HOST = "api.darktree.test", "darktree.test"
COMMAND_SECONDS = 900
FORWARD_SECONDS = 30

Object = dict[str, Any]


class CommandFailed(Exception):
    """A command ended with another code than 0; the message is what it said."""


def run(*words: str, stdin: str | None = None, seconds: float = COMMAND_SECONDS, **environment: str) -> str:
    """Return what a command printed. Raises CommandFailed."""
    done = subprocess.run(
        words,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=seconds,
        cwd=ROOT,
        env=os.environ | environment,
    )
    if done.returncode:
        raise CommandFailed(f"{shlex.join(words)}\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    return done.stdout


def kubectl(*words: str, stdin: str | None = None) -> str:
    return run("kubectl", "--namespace", NAMESPACE, *words, stdin=stdin)


def get(kind: str, *words: str) -> list[Object]:
    """Return the objects of a kind."""
    found: Object = json.loads(kubectl("get", kind, "--output", "json", *words))
    objects: list[Object] = found.get("items", [found])
    return objects


def helm(*words: str) -> str:
    return run("helm", "--namespace", NAMESPACE, *words)


def deploy(verb: str, image: str, entry: "Entry") -> str:
    """Install or upgrade with an image, as the example for trials says, reachable both ways."""
    repository, _, tag = image.rpartition(":")
    values = [*entry.values, f"image.repository={repository}", f"image.tag={tag}"]
    values += [f"hosts.api={API_HOST}", f"hosts.console={CONSOLE_HOST}"]
    options = [word for value in values for word in ("--set", value)]
    # The definition of lanes may be what another release has left.
    words = ["--values", str(TRIAL), *options, "--take-ownership", "--wait", "--timeout", "10m"]
    return helm(verb, RELEASE, str(CHART), *words)


def until(true: Callable[[], object], what: str, seconds: float = 120) -> Any:
    """Return what is true in the end; fails, saying what was waited for, when it never is."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if (found := true()) is not None and found is not False:
                return found
            last: object = found
        except (CommandFailed, httpx.HTTPError) as error:
            last = error
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s ({last})"
        time.sleep(0.5)


@contextmanager
def forwarded(target: str, port: int) -> Iterator[str]:
    """Yield a URL on this machine that leads to a Service's or pod's port."""
    words = ["kubectl", "--namespace", NAMESPACE, "port-forward", target, f":{port}"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        match = re.search(r"127\.0\.0\.1:(\d+)", process.stdout.readline())
        assert match, f"kubectl port-forward {target} said nothing"
        with socket.create_connection(("127.0.0.1", int(match[1])), FORWARD_SECONDS):
            pass
        yield f"http://127.0.0.1:{match[1]}"
    finally:
        process.terminate()
        process.wait(FORWARD_SECONDS)


@dataclass
class Entry:
    """How the cluster is reached from outside: a controller's address, which tells hosts apart by their names."""

    url: str
    gateway: str
    ingress_class: str

    @property
    def values(self) -> list[str]:
        namespace, _, name = self.gateway.partition("/")
        return [
            f"httpRoute.parentRefs[0].name={name}",
            f"httpRoute.parentRefs[0].namespace={namespace}",
            "ingress.enabled=true",
            f"ingress.className={self.ingress_class}",
        ]

    def client(self, host: str) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"Host": host}, timeout=60, trust_env=False)


@dataclass
class Timings:
    """What the story measured, printed at its end."""

    lines: list[str] = field(default_factory=list)

    @contextmanager
    def of(self, what: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.say(f"{what}: {time.monotonic() - started:.1f} s")

    def say(self, line: str) -> None:
        self.lines.append(line)
        print(f"\n  e2e  {line}", flush=True)


def metrics_of(pod: str, port: int) -> str:
    """Return what a pod tells Prometheus, through the API server."""
    return kubectl("get", "--raw", f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}:{port}/proxy/metrics")


def secret(key: str) -> str:
    import base64

    return base64.b64decode(get("secret", f"{RELEASE}-secrets")[0]["data"][key]).decode()


def pods(component: str) -> list[Object]:
    return [
        pod
        for pod in get("pods", "--selector", f"app.kubernetes.io/name=darktree-{component}")
        if "deletionTimestamp" not in pod["metadata"]
    ]
