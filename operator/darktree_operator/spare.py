"""GPUs that are proved free: looked for when a rollout would start an engine beside the one that serves, never else."""

from collections.abc import Iterable

from darktree_kit.cluster import Cluster, ClusterError, Object, Resource
from darktree_operator.config import AcceleratorClass

NODES = Resource("v1", "nodes", "Node")
PODS = Resource("v1", "pods", "Pod")
MAX_NODES = 64  # of one class; one list of pods is asked for each
_ENDED = ("Succeeded", "Failed")


async def free_gpus(cluster: Cluster, accelerator: AcceleratorClass, needed: int) -> int | None:
    """Return how many GPUs of a class one node has free, looking until some node has as many as are needed.

    What pods that have no node yet ask for is counted as taken. None when nobody may look. Raises ClusterError.
    """
    resource = accelerator.resource
    if resource is None:
        return None
    labels = ",".join(f"{name}={value}" for name, value in sorted(accelerator.node_selector.items()))
    try:
        nodes, _ = await cluster.list(NODES, None, labels)
        waiting, _ = await cluster.list(PODS, None, fields="spec.nodeName=,status.phase=Pending")
        promised = sum(asked_of(pod, resource) for pod in waiting)
        most = 0
        for node in [each for each in nodes if usable(each, accelerator)][:MAX_NODES]:
            pods, _ = await cluster.list(PODS, None, fields=f"spec.nodeName={node['metadata']['name']}")
            most = max(most, _free(node, pods, resource) - promised)
            if most >= needed:
                break
    except ClusterError as error:
        if error.status == 403:
            return None
        raise
    return most


def usable(node: Object, accelerator: AcceleratorClass) -> bool:
    """Return whether pods of the class may be placed on a node: it is ready, and its taints are tolerated."""
    spec, status = node.get("spec") or {}, node.get("status") or {}
    ready = any(
        each["type"] == "Ready" and each["status"] == "True" for each in status.get("conditions") or ()
    )
    hard = [each for each in spec.get("taints") or () if each.get("effect") in {"NoSchedule", "NoExecute"}]
    return (
        ready
        and not spec.get("unschedulable")
        and all(any(_tolerates(each, taint) for each in accelerator.tolerations) for taint in hard)
    )


def asked_of(pod: Object, resource: str) -> int:
    """Return how much of an extended resource a pod holds or waits for."""
    if (pod.get("status") or {}).get("phase") in _ENDED:
        return 0
    spec = pod.get("spec") or {}
    running = sum(_limit(each, resource) for each in spec.get("containers") or ())
    return max([running, *(_limit(each, resource) for each in spec.get("initContainers") or ())])


def _free(node: Object, pods: Iterable[Object], resource: str) -> int:
    has = int(((node.get("status") or {}).get("allocatable") or {}).get(resource) or 0)
    return has - sum(asked_of(pod, resource) for pod in pods)


def _limit(container: Object, resource: str) -> int:
    return int(((container.get("resources") or {}).get("limits") or {}).get(resource) or 0)


def _tolerates(toleration: Object, taint: Object) -> bool:
    if toleration.get("effect") not in {None, "", taint.get("effect")}:
        return False
    if toleration.get("operator") == "Exists":
        return toleration.get("key") in {None, "", taint.get("key")}
    same = (taint.get("key"), taint.get("value") or "")
    return (toleration.get("key"), toleration.get("value") or "") == same
