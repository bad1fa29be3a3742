"""Renders the chart with the real helm, as many times as there are values to try."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "darktree"
EXAMPLES = ROOT / "examples" / "cluster"
ABSENT = "no helm: run `make kube`, or set HELM, or have it on PATH"

Object = dict[str, Any]
Values = dict[str, Any]
Render = Callable[..., list[Object]]


class Refused(Exception):
    """helm did not render; the message is its own."""


@pytest.fixture(scope="session")
def helm() -> str:
    """The path of helm; tests of the chart are skipped where there is none."""
    beside = ROOT / "build" / "bin" / "helm"
    found = os.environ.get("HELM") or shutil.which("helm") or (str(beside) if beside.exists() else None)
    if found is None:
        pytest.skip(ABSENT)
    return found


@pytest.fixture(scope="session")
def render(helm: str) -> Render:
    """Renders the chart with these values, and with these options of `helm template`; raises Refused."""
    known: dict[str, list[Object]] = {}

    def rendered(values: Values | None = None, *options: str) -> list[Object]:
        key = json.dumps([values, options], sort_keys=True)
        if key not in known:
            known[key] = _template(helm, values or {}, options)
        return known[key]

    return rendered


@pytest.fixture(scope="session")
def production() -> Values:
    """The values of the example for production."""
    return _values("production")


@pytest.fixture(scope="session")
def trial() -> Values:
    return _values("trial")


def _values(name: str) -> Values:
    found: Values = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())
    return found


def _template(helm: str, values: Values, options: tuple[str, ...]) -> list[Object]:
    command = [helm, "template", "darktree", str(CHART), "--namespace", "shop", "--values", "-", *options]
    done = subprocess.run(command, input=yaml.safe_dump(values), capture_output=True, text=True)
    if done.returncode:
        raise Refused(done.stderr)
    documents = yaml.load_all(done.stdout, Loader=yaml.CSafeLoader)
    return [document for document in documents if document]
