"""Kubernetes' own schemas, as kubernetes-validate keeps them, each read once: its own function reads all each time."""

import json
import re
from functools import cache
from importlib.resources import files
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

Object = dict[str, Any]


def problem_of(document: Object, version: str) -> str | None:
    """Say what is wrong with an object for a version of Kubernetes such as 1.30; unknown fields are wrong too."""
    error = next(_validator(document["kind"], document["apiVersion"], version).iter_errors(document), None)
    return error and f"{error.json_path}: {error.message[:500]}"


@cache
def _validator(kind: str, api_version: str, version: str) -> Draft202012Validator:
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api_version)  # rbac.authorization.k8s.io/v1: rbac-v1
    schema = _read(version, f"{kind.lower()}-{group}.json")
    return Draft202012Validator(schema, registry=_definitions(version))


@cache
def _definitions(version: str) -> Registry[Any]:
    return Resource.from_contents(_read(version, "_definitions.json")) @ Registry()


def _read(version: str, name: str) -> Any:
    folder = files("kubernetes_validate") / "kubernetes-json-schema" / f"v{version}.0-local-strict"
    return json.loads((folder / name).read_text())
