"""The objects around a lane's pods: Service, NetworkPolicy, PodDisruptionBudget, PodMonitor, volume claim, download.

Each has a fixed name and the lane as its owner, except the claim that lanes of one model share: it outlives them.
"""

import re
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from darktree_operator.arguments import PORT
from darktree_operator.lane import API_VERSION, GROUP, KIND, LANE_LABEL, Lane, Object
from darktree_operator.pod import (
    CACHE_PATH,
    DOWNLOAD_COMPONENT,
    ENGINE_COMPONENT,
    HOME_PATH,
    HUGGING_FACE_PATH,
    PORT_NAME,
    digest,
    hugging_face_token,
    labels,
    placement,
    pod_security_context,
    security_context,
    selector,
)
from darktree_operator.resolution import Resolved

MODEL_LABEL = f"{GROUP}/model"
SHARED_LABEL = f"{GROUP}/shared"
METRICS_PATH = "/metrics"
SCRAPE_INTERVAL = "15s"

DOWNLOAD_TIMEOUT_SECONDS = 6 * 3600
DOWNLOAD_RETRIES = 4
DOWNLOAD_AGAIN_SECONDS = 1800  # a failed download is tried anew after so long
DOWNLOAD = """
import sys
from huggingface_hub import snapshot_download
print(snapshot_download(sys.argv[1], revision=sys.argv[2]))
""".strip()

_DNS = [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
_UNITS |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50}


def metadata(lane: Lane, name: str, component: str, **more: dict[str, str]) -> Object:
    """Return the metadata of an object that goes when its lane goes."""
    found: Object = {
        "name": name,
        "namespace": lane.namespace,
        "labels": {**labels(lane, component), **more.get("labels", {})},
    }
    if more.get("annotations"):
        found["annotations"] = more["annotations"]
    if lane.uid:
        found["ownerReferences"] = [owner(lane)]
    return found


def owner(lane: Lane) -> Object:
    """Return the reference by which Kubernetes removes a lane's objects with it."""
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": lane.name,
        "uid": lane.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def owned(lane: Lane, child: Object) -> bool:
    """Return whether an object belongs to this very lane, not to a namesake that is gone or to somebody else."""
    references = (child.get("metadata") or {}).get("ownerReferences") or []
    return any(reference.get("uid") == lane.uid and reference.get("controller") for reference in references)


def service(lane: Lane) -> Object:
    """Return the lane's address; the gateway itself goes to the pods by its EndpointSlices."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(lane, lane.name, ENGINE_COMPONENT),
        "spec": {
            "type": "ClusterIP",
            "selector": selector(lane.name),
            "ports": [{"name": PORT_NAME, "port": PORT, "targetPort": PORT_NAME, "protocol": "TCP"}],
        },
    }


def service_url(lane: Lane) -> str:
    return f"http://{lane.name}.{lane.namespace}.svc:{PORT}"


def network_policy(resolved: Resolved) -> Object:
    """Return who may reach the engine, whose key guards only some of its paths, and what it may reach.

    An engine whose files are there before it starts reaches nothing at all.
    """
    lane, config = resolved.lane, resolved.config
    peers = [(peer.namespace_labels, peer.pod_labels) for peer in (*config.gateways, *config.monitoring)]
    peers += [(peer.namespace_labels, peer.pod_labels) for peer in lane.spec.network.allow_from]
    fetches = lane.spec.engine.kind == "VLLM" and lane.spec.cache.mode == "Ephemeral"
    spec: Object = {
        "podSelector": {"matchLabels": selector(lane.name)},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [
            {
                "from": [_peer(*peer) for peer in peers],
                "ports": [{"protocol": "TCP", "port": PORT_NAME}],
            }
        ],
    }
    if fetches and lane.spec.model.source.startswith("hf://"):
        # Without it nothing may be reached; an empty list says so too, but makes each apply a change.
        spec["egress"] = [{"ports": [*_DNS, {"protocol": "TCP", "port": 443}]}]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(lane, lane.name, ENGINE_COMPONENT),
        "spec": spec,
    }


def disruption_budget(lane: Lane, replicas: int) -> Object | None:
    """Return how many pods a drained node must leave; None for one replica, whose node could never be drained."""
    least = lane.spec.availability.min_available or 1
    if replicas <= least:
        return None
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(lane, lane.name, ENGINE_COMPONENT),
        "spec": {
            "minAvailable": least,
            "selector": {"matchLabels": selector(lane.name)},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }


def pod_monitor(resolved: Resolved) -> Object | None:
    """Return how Prometheus finds each pod, where its operator is installed."""
    lane = resolved.lane
    if not resolved.config.pod_monitors:
        return None
    more = {"labels": dict(resolved.config.pod_monitor_labels)}
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": metadata(lane, lane.name, ENGINE_COMPONENT, **more),
        "spec": {
            "selector": {"matchLabels": selector(lane.name)},
            "podTargetLabels": [LANE_LABEL, f"{GROUP}/tier"],
            "podMetricsEndpoints": [{"port": PORT_NAME, "path": METRICS_PATH, "interval": SCRAPE_INTERVAL}],
        },
    }


def volume_claim(resolved: Resolved, existing: Iterable[Object]) -> Object | None:
    """Return the claim of the cache if it has to be made or to grow; None if there is none or it is as it should be.

    What a claim cannot change, its class and how it is mounted, stays as it was made; no claim ever shrinks, so lanes
    that share one and differ in size agree on the largest.
    """
    lane, name = resolved.lane, resolved.claim
    if name is None:
        return None
    size = lane.spec.cache.size
    found = next((claim for claim in existing if claim["metadata"]["name"] == name), None)
    if found is not None:
        has = found["spec"]["resources"]["requests"]["storage"]
        if quantity(has) >= quantity(size):
            return None
    shared = lane.spec.cache.mode == "Shared"
    many = shared or lane.spec.most_replicas > 1
    spec: Object = {
        "accessModes": found["spec"]["accessModes"]
        if found
        else ["ReadWriteMany" if many else "ReadWriteOnce"],
        "resources": {"requests": {"storage": size}},
    }
    storage_class = found["spec"].get("storageClassName") if found else lane.spec.cache.storage_class
    if storage_class is not None:
        spec["storageClassName"] = storage_class
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": _shared_metadata(resolved, name) if shared else metadata(lane, name, "cache"),
        "spec": spec,
    }


def download_job(resolved: Resolved, token_hash: str) -> Object | None:
    """Return what fetches the model before a GPU is taken; None where nothing is fetched.

    Its name holds what it depends on, so that another model, token or restart is another Job: none can be changed.
    """
    lane, claim = resolved.lane, resolved.claim
    if not resolved.downloads or claim is None:
        return None
    restart = lane.spec.restart.id if lane.spec.restart else ""
    name = f"{lane.name}-download-{digest([resolved.model_key, claim, restart, token_hash])}"
    more = {"labels": {MODEL_LABEL: resolved.model_key}}
    source = lane.spec.model.source.removeprefix("hf://")
    container = {
        "name": "download",
        "image": resolved.image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-c", DOWNLOAD],
        "args": [source, lane.spec.model.revision or "main"],
        "env": [
            {"name": "HOME", "value": HOME_PATH},
            {"name": "HF_HOME", "value": HUGGING_FACE_PATH},
            *hugging_face_token(resolved),
        ],
        "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": "4Gi"}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": security_context(write_root=False),
        "volumeMounts": [
            {"name": "cache", "mountPath": CACHE_PATH},
            {"name": "home", "mountPath": HOME_PATH},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
        ],
    }
    pod: Object = {
        "restartPolicy": "Never",  # each failed pod stays to be read
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": pod_security_context(),
        "containers": [container],
        "volumes": [
            {"name": "cache", "persistentVolumeClaim": {"claimName": claim}},
            {"name": "home", "emptyDir": {}},
            {"name": "tmp", "emptyDir": {}},
        ],
        **placement(resolved),  # on the engines' nodes: a volume of one node is bound where it is first used
    }
    if resolved.config.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in resolved.config.image_pull_secrets]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata(lane, name, DOWNLOAD_COMPONENT, **more),
        "spec": {
            "backoffLimit": DOWNLOAD_RETRIES,
            "activeDeadlineSeconds": DOWNLOAD_TIMEOUT_SECONDS,
            "template": {
                "metadata": {"labels": {**labels(lane, DOWNLOAD_COMPONENT), **more["labels"]}},
                "spec": pod,
            },
        },
    }


def job_state(job: Object) -> str:
    """Return `Complete`, `Failed` or `Running`."""
    conditions = (job.get("status") or {}).get("conditions") or []
    true = {condition["type"] for condition in conditions if condition.get("status") == "True"}
    return "Complete" if "Complete" in true else "Failed" if "Failed" in true else "Running"


def failed_since(job: Object) -> datetime | None:
    """Return when a Job failed for good."""
    for condition in (job.get("status") or {}).get("conditions") or []:
        if condition["type"] == "Failed" and condition.get("status") == "True":
            return datetime.fromisoformat(condition["lastTransitionTime"])
    return None


def quantity(text: Any) -> int:
    """Return the bytes of a quantity such as `100Gi`. Raises ValueError."""
    found = re.fullmatch(r"(\d+)([KMGTP]i|[kMGTP])?", str(text))
    if found is None:
        raise ValueError(f"{text!r} is not a size such as 100Gi")
    return int(found[1]) * _UNITS[found[2] or ""]


def _peer(namespace_labels: dict[str, str], pod_labels: dict[str, str]) -> Object:
    return {
        "namespaceSelector": {"matchLabels": namespace_labels} if namespace_labels else {},
        "podSelector": {"matchLabels": pod_labels} if pod_labels else {},
    }


def _shared_metadata(resolved: Resolved, name: str) -> Object:
    """The same from whichever lane: no owner, no lane's label."""
    return {
        "name": name,
        "namespace": resolved.lane.namespace,
        "labels": {
            "app.kubernetes.io/name": "darktree-lane",
            "app.kubernetes.io/component": "cache",
            "app.kubernetes.io/managed-by": "darktree",
            SHARED_LABEL: "true",
            MODEL_LABEL: resolved.model_key,
        },
    }
