"""Whatever the values, what helm renders is what every supported Kubernetes accepts."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from rendered import pod_templates
from schemas import problem_of

Object = dict[str, Any]
Render = Callable[..., list[Object]]

VERSIONS = ("1.30", "1.31", "1.32", "1.33", "1.34", "1.35", "1.36", "1.37")
# Kinds that Kubernetes itself does not have: a real API server with their definitions judges them (tests/e2e).
OF_OTHERS = {"HTTPRoute", "PodMonitor", "PrometheusRule"}
ROUTE: Object = {
    "hosts": {"api": "api.example.com", "console": "console.example.com"},
    "httpRoute": {"parentRefs": [{"name": "public", "namespace": "gateways"}]},
}
# How an object names another: what a volume is, and fields that are names.
VOLUMES = {
    "configMap": ("ConfigMap", "name"),
    "persistentVolumeClaim": ("PersistentVolumeClaim", "claimName"),
}
NAMES = {"serviceAccountName": "ServiceAccount", "serviceName": "Service"}
EXTERNAL: Object = {
    "database": {
        "url": "postgresql://db.example:5432/darktree?sslmode=verify-full",
        "owner": {"existingSecret": "owner"},
        "rootCertificate": {"existingSecret": "authority", "key": "root.pem"},
    }
}
MATRIX: dict[str, Object] = {
    "nothing": {},
    "an external database": EXTERNAL,
    "a route": ROUTE,
    "an ingress": {
        "hosts": ROUTE["hosts"],
        "ingress": {
            "enabled": True,
            "className": "nginx",
            "controller": "nginx",
            "tls": [{"secretName": "tls", "hosts": ["api.example.com"]}],
        },
    },
    "one host for both, with the team's pages": {
        "hosts": {"api": "a.example", "console": "a.example"},
        "ingress": {"enabled": True},
        "exposeTeam": True,
    },
    "monitoring": {
        "monitoring": {
            "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
            "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
            "dashboards": {"enabled": True, "annotations": {"folder": "Darktree"}},
            "scrapeAnnotations": True,
        }
    },
    "backups": {"backup": {"existingClaim": "ours"}},
    "backups of an external database": EXTERNAL
    | {"backup": {"existingClaim": "ours", "schedule": "@hourly"}},
    "traces": {
        "tracing": {
            "endpoint": "https://collector.example",
            "share": 0.05,
            "header": {"existingSecret": "collector"},
        }
    },
    "autoscaling": {"gateway": {"autoscaling": {"enabled": True}}},
    "lanes everywhere": {"lanes": {"namespace": "*"}},
    "lanes elsewhere": {"lanes": {"namespace": "lanes"}},
    "no operator, no definition, no policies": {
        "operator": {"enabled": False},
        "crds": {"install": False},
        "networkPolicy": {"enabled": False},
        "podDisruptionBudget": {"enabled": False},
    },
    "the stand-in for Stripe, and no worker": {"stripe": {"standIn": True}, "worker": {"replicas": 0}},
    "secrets by reference": {
        "secrets": {"existing": "ours"},
        "stripe": {"existingSecret": "stripe"},
        "mail": {"existingSecret": "mail"},
        "sealer": {"anchors": ["https://objects.example/a"], "anchorSecret": "anchors"},
        "imagePullSecrets": [{"name": "pull"}],
    },
    "labels, places and priorities": {
        "commonLabels": {"team": "inference"},
        "commonAnnotations": {"owner": "inference@example.com"},
        "fullnameOverride": "inference",
        "gateway": {
            "nodeSelector": {"kubernetes.io/arch": "amd64"},
            "tolerations": [{"key": "dedicated", "operator": "Exists"}],
            "affinity": {"nodeAffinity": {}},
            "priorityClassName": "high",
            "podAnnotations": {"note": "gateway"},
            "settings": {"HOLD_TTL_SECONDS": 90},
        },
        "ledger": {"replicas": 3},
        "sealer": {"replicas": 2},
        "image": {"digest": "sha256:" + "0" * 64},
    },
}


@pytest.fixture(scope="module")
def everything(render: Render, production: Object, trial: Object) -> dict[str, list[Object]]:
    matrix = MATRIX | {"the example for production": production, "the example for trials": trial}
    first = {name: render(values) for name, values in matrix.items()}
    return first | {f"{name}, upgraded": render(values, "--is-upgrade") for name, values in matrix.items()}


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_of_every_choice_is_valid(version: str, everything: dict[str, list[Object]]) -> None:
    judged: set[str] = set()
    for name, objects in everything.items():
        for document in objects:
            text = json.dumps(document, sort_keys=True)
            if document["kind"] in OF_OTHERS or text in judged:
                continue
            judged.add(text)
            problem = problem_of(document, version)
            assert problem is None, f"{name}: {_named(document)}: {problem}"
    assert len(judged) > 100


def test_an_object_that_is_wrong_is_found_out(render: Render) -> None:
    wrong = json.loads(json.dumps(next(each for each in render() if each["kind"] == "StatefulSet")))
    wrong["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    assert "readinesProbe" in (problem_of(wrong, VERSIONS[0]) or "")


def test_no_two_objects_have_one_name_and_all_but_the_shared_stand_in_the_release(
    everything: dict[str, list[Object]],
) -> None:
    for name, objects in everything.items():
        named = [
            (each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"]) for each in objects
        ]
        assert len(set(named)) == len(named), name
        unplaced = {kind for kind, namespace, _ in named if namespace is None}
        assert unplaced <= {"CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding"}, name


def test_every_reference_leads_to_an_object_or_to_a_secret_that_the_values_name(
    everything: dict[str, list[Object]],
) -> None:
    given = {"ours", "collector", "stripe", "mail", "anchors", "owner", "authority", "pull"}
    given |= {
        f"darktree-{name}"
        for name in ("database-owner", "database-ca", "stripe", "mail", "anchors", "backups")
    }
    for name, objects in everything.items():
        made = {(each["kind"], each["metadata"]["name"]) for each in objects}
        for document in objects:
            for kind, wanted in _references(document):
                assert (kind, wanted) in made or wanted in given, f"{name}: {_named(document)} names {wanted}"


def test_every_selector_finds_the_pods_that_it_means(everything: dict[str, list[Object]]) -> None:
    for name, objects in everything.items():
        pods = [template["metadata"]["labels"] for template in pod_templates(objects)]
        for document in objects:
            for selector in _selectors(document):
                assert any(selector.items() <= labels.items() for labels in pods), (
                    f"{name}: {_named(document)}"
                )


def test_the_definition_of_lanes_is_the_one_that_the_project_has(render: Render) -> None:
    definition = next(each for each in render() if each["kind"] == "CustomResourceDefinition")
    assert definition["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert definition["spec"]["group"] == "darktree.dev"
    kept = render({"crds": {"keep": False}})
    assert not next(each for each in kept if each["kind"] == "CustomResourceDefinition")["metadata"][
        "annotations"
    ]


def _references(document: Any) -> Iterator[tuple[str, str]]:
    """Every ConfigMap, Secret, ServiceAccount, Service and claim that an object names."""
    if isinstance(document, dict):
        for key, value in document.items():
            if key in {"secretKeyRef", "configMapKeyRef"}:
                yield ("Secret" if key.startswith("secret") else "ConfigMap"), value["name"]
            elif key == "secret" and isinstance(value, dict) and "secretName" in value:
                yield "Secret", value["secretName"]
            elif key in VOLUMES and isinstance(value, dict):
                kind, name = VOLUMES[key]
                yield kind, value[name]
            elif key in NAMES:
                yield NAMES[key], value
            elif key == "backendRefs":
                yield from (("Service", each["name"]) for each in value)
            elif key == "service" and isinstance(value, dict) and "port" in value and "name" in value:
                yield "Service", value["name"]
            else:
                yield from _references(value)
    elif isinstance(document, list):
        for each in document:
            yield from _references(each)


def _selectors(document: Object) -> Iterator[dict[str, str]]:
    spec = document.get("spec") or {}
    if document["kind"] == "Service":
        yield spec["selector"]
    elif document["kind"] in {"Deployment", "StatefulSet", "PodDisruptionBudget"}:
        yield spec["selector"]["matchLabels"]
    elif document["kind"] == "NetworkPolicy":
        yield spec["podSelector"]["matchLabels"]


def _named(document: Object) -> str:
    return f"{document['kind']} {document['metadata']['name']}"
