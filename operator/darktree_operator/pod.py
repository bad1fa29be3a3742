"""The pod of one engine, whole: everything whose change replaces pods, and nothing else.

Nothing here may depend on how many replicas there are, on the time, or on what is observed: each would take GPUs down.
`TEMPLATE_VERSION` grows with any change of this module that changes what it makes; lanes take the newer template when
their rollout policy says, not when the operator is upgraded.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from darktree_operator.arguments import PORT, simulator_arguments, vllm_arguments
from darktree_operator.lane import GROUP, LANE_LABEL, REVISION_LABEL, TIER_LABEL, Lane, Object
from darktree_operator.lastwords import LOGGING_ANNOTATION, LOGGING_PATH, LOGGING_VOLUME, logging_config
from darktree_operator.resolution import MAX_KEY_LENGTH, PRE_STOP_SECONDS, Resolved

TEMPLATE_VERSION = 1
TEMPLATE_VERSION_ANNOTATION = f"{GROUP}/template-version"
SECRETS_ANNOTATION = f"{GROUP}/secrets"
RESTART_ANNOTATION = f"{GROUP}/restart"

CONTAINER = "engine"
PORT_NAME = "http"
COMPONENT_LABEL = "app.kubernetes.io/component"
ENGINE_COMPONENT = "engine"
DOWNLOAD_COMPONENT = "download"

CACHE_PATH = "/cache"
HUGGING_FACE_PATH = f"{CACHE_PATH}/huggingface"
MODEL_PATH = "/model"
HOME_PATH = "/engine-home"
USER_ID = 1000

STARTUP_PERIOD_SECONDS = 10
READINESS_PERIOD_SECONDS = 5
READINESS_FAILURES = 2
LIVENESS_PERIOD_SECONDS = 15
LIVENESS_FAILURES = 4
PROBE_TIMEOUT_SECONDS = 5

SHARED_MEMORY_GIB_PER_GPU = 2  # NCCL and the workers' queues, when there is more than one GPU
TEMPORARY_GIB = 10
SIMULATOR_CPU, SIMULATOR_MEMORY = "100m", "256Mi"

_ASKED: dict[str, Any] = {
    "tier": True,
    "customer_ref": True,
    "model": True,
    "engine": True,
    "accelerator": True,
    "cold_start": {"startup_timeout_seconds"},
    "drain": True,
    "secrets": True,
    "availability": {"priority_class_name", "spread"},
    "restart": True,
}


@dataclass(frozen=True, slots=True)
class Revision:
    """One pod template: `name` is its hash, `asked` the hash of what the lane itself contributed to it."""

    name: str
    asked: str
    template: Object


def revision(resolved: Resolved, secret_hashes: Mapping[str, str]) -> Revision:
    """Return the template that a lane asks for, by this version of the operator and its configuration.

    Two revisions with the same `asked` differ only by the operator or its configuration.
    """
    secrets = _secrets(resolved.lane, secret_hashes)
    template = _template(resolved, secrets)
    name = digest(template)
    template["metadata"]["labels"][REVISION_LABEL] = name
    spec = resolved.lane.spec
    cache = {"mode", "size"} if spec.cache.mode == "Ephemeral" else {"mode"}  # a claim grows without the pod
    asked = spec.model_dump(include=_ASKED | {"cache": cache}, exclude_defaults=True, mode="json")
    speed = resolved.lane.annotations if spec.engine.kind == "Simulator" else {}
    return Revision(name, digest([asked, secrets, sorted(speed.items())]), template)


def labels(lane: Lane, component: str) -> dict[str, str]:
    """Return the labels of everything that belongs to a lane."""
    return {
        "app.kubernetes.io/name": "darktree-lane",
        "app.kubernetes.io/instance": lane.name,
        COMPONENT_LABEL: component,
        "app.kubernetes.io/managed-by": "darktree",
        LANE_LABEL: lane.name,
        TIER_LABEL: lane.spec.tier,
    }


def selector(lane_name: str) -> dict[str, str]:
    """Return what a lane's engines are found by; a Deployment can never change it."""
    return {LANE_LABEL: lane_name, COMPONENT_LABEL: ENGINE_COMPONENT}


def digest(value: Any) -> str:
    """Return a short hash that is the same for equal values, whatever the order of their keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:MAX_KEY_LENGTH]


def security_context(*, write_root: bool) -> Object:
    """Return what a container may do: nothing that needs a privilege."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": not write_root,
        "runAsNonRoot": True,
    }


def pod_security_context() -> Object:
    """Return whom the containers run as; the group owns the volumes."""
    return {
        "runAsNonRoot": True,
        "runAsUser": USER_ID,
        "runAsGroup": USER_ID,
        "fsGroup": USER_ID,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def placement(resolved: Resolved) -> Object:
    """Return where pods of this lane may run."""
    accelerator = resolved.accelerator
    if accelerator is None:
        return {}
    placed: Object = {}
    if accelerator.node_selector:
        placed["nodeSelector"] = dict(accelerator.node_selector)
    if accelerator.tolerations:
        placed["tolerations"] = [dict(toleration) for toleration in accelerator.tolerations]
    if accelerator.runtime_class_name:
        placed["runtimeClassName"] = accelerator.runtime_class_name
    return placed


def hugging_face_token(resolved: Resolved) -> list[Object]:
    """Return the variable with the token for the model's files, if the lane names one."""
    secret = resolved.lane.spec.secrets.hugging_face
    if secret is None:
        return []
    return [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": secret.name, "key": secret.key}}}]


def _template(resolved: Resolved, secrets: Mapping[str, str]) -> Object:
    lane = resolved.lane
    vllm = lane.spec.engine.kind == "VLLM"
    annotations = {TEMPLATE_VERSION_ANNOTATION: str(TEMPLATE_VERSION)}
    if secrets:
        annotations[SECRETS_ANNOTATION] = digest(secrets)
    if lane.spec.restart is not None:
        annotations[RESTART_ANNOTATION] = lane.spec.restart.id
    if vllm:
        annotations[LOGGING_ANNOTATION] = logging_config()
    pod: Object = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,  # a Service called vllm would set VLLM_PORT and the like
        "terminationGracePeriodSeconds": lane.spec.drain.grace_period_seconds,
        "securityContext": pod_security_context(),
        "containers": [_container(resolved)],
        "volumes": _volumes(resolved),
        **placement(resolved),
    }
    if resolved.priority_class:
        pod["priorityClassName"] = resolved.priority_class
    if resolved.config.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in resolved.config.image_pull_secrets]
    if lane.spec.availability.spread != "None":
        pod["topologySpreadConstraints"] = [_spread(lane)]
    return {
        "metadata": {"labels": labels(lane, ENGINE_COMPONENT), "annotations": annotations},
        "spec": pod,
    }


def _container(resolved: Resolved) -> Object:
    lane = resolved.lane
    vllm = lane.spec.engine.kind == "VLLM"
    health = {"httpGet": {"path": "/health", "port": PORT_NAME}, "timeoutSeconds": PROBE_TIMEOUT_SECONDS}
    startup = lane.spec.cold_start.startup_timeout_seconds
    return {
        "name": CONTAINER,
        "image": resolved.image,
        "imagePullPolicy": "IfNotPresent",
        "command": list(resolved.command),
        "args": _arguments(resolved),
        "env": _environment(resolved),
        "ports": [{"name": PORT_NAME, "containerPort": PORT, "protocol": "TCP"}],
        "resources": _resources(resolved),
        "startupProbe": {
            **health,
            "periodSeconds": STARTUP_PERIOD_SECONDS,
            "failureThreshold": math.ceil(startup / STARTUP_PERIOD_SECONDS),
        },
        "readinessProbe": {
            **health,
            "periodSeconds": READINESS_PERIOD_SECONDS,
            "failureThreshold": READINESS_FAILURES,
        },
        "livenessProbe": {
            **health,
            "periodSeconds": LIVENESS_PERIOD_SECONDS,
            "failureThreshold": LIVENESS_FAILURES,
        },
        "lifecycle": {"preStop": {"sleep": {"seconds": PRE_STOP_SECONDS}}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        # The container runtime's hook for GPUs writes into the root file system.
        "securityContext": security_context(write_root=vllm),
        "volumeMounts": _mounts(resolved),
    }


def _arguments(resolved: Resolved) -> list[str]:
    lane = resolved.lane
    if lane.spec.engine.kind == "Simulator":
        return simulator_arguments(lane)
    return vllm_arguments(lane, resolved.version, _model(resolved), resolved.gpus, resolved.shutdown_seconds)


def _model(resolved: Resolved) -> str:
    source = resolved.lane.spec.model.source
    kind, _, rest = source.partition("://")
    if kind == "hf":
        return rest
    folder = rest.partition("/")[2] if kind == "pvc" else ""
    return f"{MODEL_PATH}/{folder}".rstrip("/")


def _environment(resolved: Resolved) -> list[Object]:
    spec = resolved.lane.spec
    own = [{"name": variable.name, "value": variable.value} for variable in spec.engine.env]
    if spec.engine.kind == "Simulator":
        return own
    fixed = {
        "HOME": HOME_PATH,
        "USER": "engine",  # torch asks for the name of a user that the image does not know
        "HF_HOME": HUGGING_FACE_PATH,
        "VLLM_CACHE_ROOT": f"{CACHE_PATH}/vllm",  # compiled kernels: a second start skips minutes of warm-up
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_CONFIG_PATH": LOGGING_PATH,
    }
    if resolved.downloads or not spec.model.source.startswith("hf://"):
        fixed["HF_HUB_OFFLINE"] = "1"
    variables: list[Object] = [{"name": name, "value": value} for name, value in fixed.items()]
    if not resolved.downloads:
        variables += hugging_face_token(resolved)
    key = spec.secrets.engine_key
    if key is not None:
        reference = {"secretKeyRef": {"name": key.name, "key": key.key}}
        variables.append({"name": "VLLM_API_KEY", "valueFrom": reference})
    return variables + own


def _resources(resolved: Resolved) -> Object:
    lane, accelerator = resolved.lane, resolved.accelerator
    gpus: dict[str, str] = {}
    if accelerator is not None and accelerator.resource is not None:
        gpus = {accelerator.resource: str(resolved.gpus)}
    if lane.spec.engine.kind == "Simulator":
        requests = {"cpu": SIMULATOR_CPU, "memory": SIMULATOR_MEMORY}
        return {"requests": {**requests, **gpus}, "limits": {"memory": SIMULATOR_MEMORY, **gpus}}
    count = max(1, resolved.gpus)
    cpus = accelerator.cpus_per_gpu if accelerator else 1
    memory = f"{(accelerator.host_memory_per_gpu_gib if accelerator else 1) * count}Gi"
    requests = {"cpu": str(cpus * count), "memory": memory, "ephemeral-storage": f"{TEMPORARY_GIB}Gi"}
    return {"requests": {**requests, **gpus}, "limits": {"memory": memory, **gpus}}


def _volumes(resolved: Resolved) -> list[Object]:
    lane = resolved.lane
    temporary: list[Object] = [{"name": "tmp", "emptyDir": {"sizeLimit": f"{TEMPORARY_GIB}Gi"}}]
    if lane.spec.engine.kind == "Simulator":
        return temporary
    shared_gib = 1 if resolved.gpus <= 1 else SHARED_MEMORY_GIB_PER_GPU * resolved.gpus
    claim = resolved.claim
    cache: Object = (
        {"emptyDir": {"sizeLimit": lane.spec.cache.size}}
        if claim is None
        else {"persistentVolumeClaim": {"claimName": claim}}
    )
    annotation = {"fieldPath": f"metadata.annotations['{LOGGING_ANNOTATION}']"}
    volumes: list[Object] = [
        *temporary,
        {"name": "home", "emptyDir": {"sizeLimit": f"{TEMPORARY_GIB}Gi"}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{shared_gib}Gi"}},
        {"name": "cache", **cache},
        {
            "name": LOGGING_VOLUME,
            "downwardAPI": {"items": [{"path": LOGGING_PATH.rpartition("/")[2], "fieldRef": annotation}]},
        },
    ]
    kind, _, rest = lane.spec.model.source.partition("://")
    if kind == "pvc":
        name = rest.partition("/")[0]
        volumes.append({"name": "model", "persistentVolumeClaim": {"claimName": name, "readOnly": True}})
    elif kind == "oci":
        volumes.append({"name": "model", "image": {"reference": rest, "pullPolicy": "IfNotPresent"}})
    return volumes


def _mounts(resolved: Resolved) -> list[Object]:
    paths = {"tmp": "/tmp", "home": HOME_PATH, "shm": "/dev/shm", "cache": CACHE_PATH}  # noqa: S108
    mounts: list[Object] = []
    for volume in _volumes(resolved):
        name = volume["name"]
        if name in paths:
            mounts.append({"name": name, "mountPath": paths[name]})
        elif name == LOGGING_VOLUME:
            mounts.append({"name": name, "mountPath": LOGGING_PATH.rpartition("/")[0], "readOnly": True})
        else:
            mounts.append({"name": name, "mountPath": MODEL_PATH, "readOnly": True})
    return mounts


def _spread(lane: Lane) -> Object:
    required = lane.spec.availability.spread == "Require"
    return {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        # Preferred, because on a small cluster a rule would leave GPUs idle.
        "whenUnsatisfiable": "DoNotSchedule" if required else "ScheduleAnyway",
        "labelSelector": {"matchLabels": selector(lane.name)},
    }


def _secrets(lane: Lane, hashes: Mapping[str, str]) -> dict[str, str]:
    """The hashes of the secrets that the engine itself gets; the download's token replaces no pod."""
    return {
        f"{secret.name}/{secret.key}": hashes.get(f"{secret.name}/{secret.key}", "")
        for secret in secret_keys(lane)
    }


def secret_keys(lane: Lane) -> list[Any]:
    """Return the keys of secrets whose values are in the engine's environment."""
    secrets = lane.spec.secrets
    wanted = [secrets.engine_key]
    if lane.spec.cache.mode == "Ephemeral":
        wanted.append(secrets.hugging_face)
    return [secret for secret in wanted if secret is not None]
