"""The manifests of the golden files, given to a real API server as the operator gives them."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from darktree_kit.cluster import Cluster, ClusterError, Resource
from darktree_operator.cluster import (
    BUDGETS,
    CLAIMS,
    DEPLOYMENTS,
    FIELD_MANAGER,
    JOBS,
    POLICIES,
    REVISIONS,
    SERVICES,
)

GOLDEN = Path(__file__).parent / "golden"
KINDS: dict[str, Resource] = {
    each.kind: each for each in (BUDGETS, CLAIMS, DEPLOYMENTS, JOBS, POLICIES, REVISIONS, SERVICES)
}


def manifests(name: str, namespace: str) -> list[dict[str, Any]]:
    found = list(yaml.safe_load_all((GOLDEN / f"{name}.yaml").read_text()))
    for manifest in found:
        manifest["metadata"]["namespace"] = namespace
        manifest["metadata"].pop("ownerReferences", None)  # of a lane that is not there
    return found


@pytest.mark.parametrize("name", [file.stem for file in sorted(GOLDEN.glob("*.yaml"))])
async def test_every_manifest_is_accepted_and_the_same_twice(
    name: str, admin: Cluster, namespace: str
) -> None:
    for manifest in manifests(name, namespace):
        kind = KINDS[manifest["kind"]]
        once = await admin.apply(kind, manifest, FIELD_MANAGER)
        part = "spec" if "spec" in manifest else "data"
        assert _at_the_places_of(manifest[part], once[part]) == manifest[part]
        twice = await admin.apply(kind, manifest, FIELD_MANAGER)
        # Controllers write statuses meanwhile; a generation counts only what was applied.
        assert twice["metadata"].get("generation") == once["metadata"].get("generation"), kind.kind
        assert twice[part] == once[part]


async def test_how_pods_are_replaced_may_change_there_and_back(admin: Cluster, namespace: str) -> None:
    deployment = next(each for each in manifests("standard", namespace) if each["kind"] == "Deployment")
    one_by_one = deployment["spec"]["strategy"]
    assert one_by_one["type"] == "RollingUpdate"
    for strategy in (one_by_one, {"type": "Recreate"}, one_by_one):
        deployment["spec"]["strategy"] = strategy
        after = await admin.apply(DEPLOYMENTS, deployment, FIELD_MANAGER)
        assert after["spec"]["strategy"] == strategy


async def test_a_revision_takes_marks_and_never_another_template(admin: Cluster, namespace: str) -> None:
    record = next(each for each in manifests("standard", namespace) if each["kind"] == "ControllerRevision")
    await admin.apply(REVISIONS, record, FIELD_MANAGER)
    record["metadata"]["annotations"]["darktree.dev/served"] = "2026-03-04T12:00:00+00:00"
    marked = await admin.apply(REVISIONS, record, FIELD_MANAGER)
    assert marked["metadata"]["annotations"] == record["metadata"]["annotations"]
    forged = deepcopy(record)
    forged["data"]["template"]["spec"]["terminationGracePeriodSeconds"] = 1
    with pytest.raises(ClusterError, match="immutable"):
        await admin.apply(REVISIONS, forged, FIELD_MANAGER)


async def test_a_job_cannot_be_changed_which_is_why_another_download_has_another_name(
    admin: Cluster, namespace: str
) -> None:
    job = next(each for each in manifests("standard", namespace) if each["kind"] == "Job")
    await admin.apply(JOBS, job, FIELD_MANAGER)
    job["spec"]["template"]["spec"]["containers"][0]["args"] = ["another/model", "main"]
    with pytest.raises(ClusterError, match="immutable"):
        await admin.apply(JOBS, job, FIELD_MANAGER)


def _at_the_places_of(said: Any, kept: Any) -> Any:
    """What is kept, without the defaults that were not said."""
    if isinstance(said, dict) and isinstance(kept, dict):
        absent = {name: type(value)() for name, value in said.items() if value in ({}, [])}
        return {
            name: _at_the_places_of(value, kept.get(name, absent.get(name))) for name, value in said.items()
        }
    if isinstance(said, list) and isinstance(kept, list) and len(said) == len(kept):
        return [_at_the_places_of(*pair) for pair in zip(said, kept, strict=True)]
    return kept
