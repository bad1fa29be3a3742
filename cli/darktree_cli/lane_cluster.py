"""What a cluster has of lanes, read once: for a forecast, and for the board."""

from datetime import datetime

from darktree_kit.cluster import Cluster, ClusterError, Missing, Object, Resource
from darktree_operator.config import OperatorConfig
from darktree_operator.lane import API_VERSION, KIND, LANE_LABEL, PLURAL, SecretKey, parse
from darktree_operator.observed import Observed

LANES = Resource(API_VERSION, PLURAL, KIND)
DEPLOYMENTS = Resource("apps/v1", "deployments", "Deployment")
PODS = Resource("v1", "pods", "Pod")
JOBS = Resource("batch/v1", "jobs", "Job")
CLAIMS = Resource("v1", "persistentvolumeclaims", "PersistentVolumeClaim")
REVISIONS = Resource("apps/v1", "controllerrevisions", "ControllerRevision")
OTHERS = (
    Resource("v1", "services", "Service"),
    Resource("policy/v1", "poddisruptionbudgets", "PodDisruptionBudget"),
    Resource("networking.k8s.io/v1", "networkpolicies", "NetworkPolicy"),
)
MANAGED = "app.kubernetes.io/managed-by=darktree"


async def read_lanes(cluster: Cluster, namespace: str | None) -> list[Object]:
    """Return the lanes of a namespace, or of all."""
    lanes, _ = await cluster.list(LANES, namespace)
    return lanes


async def observe(cluster: Cluster, document: Object, config: OperatorConfig, now: datetime) -> Observed:
    """Return what there is of a lane, with the document in the place of the lane that the cluster has."""
    metadata = document["metadata"]
    namespace, name = metadata["namespace"], metadata["name"]
    try:
        live = await cluster.get(LANES, namespace, name)
    except Missing:
        live = {"metadata": {}}
    lane = {
        **live,
        **document,
        "metadata": {**live["metadata"], **metadata},
        "status": live.get("status") or {},
    }
    selector = f"{LANE_LABEL}={name}"

    async def read(kind: Resource, of: str = selector) -> tuple[Object, ...]:
        found, _ = await cluster.list(kind, namespace, of)
        return tuple(found)

    others = [each for kind in OTHERS for each in await read(kind)]
    return Observed(
        lane=lane,
        config=config,
        now=now,
        deployments=await read(DEPLOYMENTS),
        pods=await read(PODS),
        jobs=await read(JOBS),
        volume_claims=await read(CLAIMS, MANAGED),
        revisions=await read(REVISIONS),
        others=tuple(others),
        secret_hashes=await _secrets(cluster, lane),
    )


async def _secrets(cluster: Cluster, lane: Object) -> dict[str, str]:
    """The hashes that the operator told in the lane's status; for other secrets only whether they are there.

    Their values are read by nobody but the operator.
    """
    spec = parse(lane).spec
    known: dict[str, str] = dict((lane.get("status") or {}).get("secretHashes") or {})
    for key in (spec.secrets.hugging_face, spec.secrets.engine_key):
        if key is not None and f"{key.name}/{key.key}" not in known and await _exists(cluster, lane, key):
            known[f"{key.name}/{key.key}"] = ""
    return known


async def _exists(cluster: Cluster, lane: Object, key: SecretKey) -> bool:
    secrets = Resource("v1", "secrets", "Secret")
    try:
        found = await cluster.get(secrets, lane["metadata"]["namespace"], key.name)
    except Missing:
        return False
    except ClusterError as error:
        if error.status == 403:
            return True  # it may not be looked at, which says nothing against it
        raise
    return key.key in (found.get("data") or {})
