"""The operator's only way to Kubernetes: copies of what belongs to lanes, and how it is written.

Everything that is read comes from mirrors, so that a look at a lane costs no request; what is written is applied by the
server under one field manager, and only when it is not so already.
"""

import asyncio
import hashlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from darktree_kit import mirror
from darktree_kit.cluster import Cluster, ClusterError, Missing, Object, Resource
from darktree_kit.mirror import Key, Mirror
from darktree_operator.drift import differences, projection, writers
from darktree_operator.lane import API_VERSION, GROUP, KIND, LANE_LABEL, PLURAL
from darktree_operator.plan import Reference
from darktree_operator.pod import digest
from darktree_operator.progress import Problem
from darktree_operator.reasons import Reason

FIELD_MANAGER = "darktree-lane"
MANAGED_SELECTOR = "app.kubernetes.io/managed-by=darktree"
APPLIED_ANNOTATION = f"{GROUP}/applied"
SECRET_SECONDS = 290.0  # how old a secret's hash may be
HASH_CHARACTERS = 12
MAX_SECRETS = 2_000

LANES = Resource(API_VERSION, PLURAL, KIND)
DEPLOYMENTS = Resource("apps/v1", "deployments", "Deployment")
PODS = Resource("v1", "pods", "Pod")
JOBS = Resource("batch/v1", "jobs", "Job")
CLAIMS = Resource("v1", "persistentvolumeclaims", "PersistentVolumeClaim")
REVISIONS = Resource("apps/v1", "controllerrevisions", "ControllerRevision")
SERVICES = Resource("v1", "services", "Service")
BUDGETS = Resource("policy/v1", "poddisruptionbudgets", "PodDisruptionBudget")
POLICIES = Resource("networking.k8s.io/v1", "networkpolicies", "NetworkPolicy")
POD_MONITORS = Resource("monitoring.coreos.com/v1", "podmonitors", "PodMonitor")
SECRETS = Resource("v1", "secrets", "Secret")
CHILDREN = (DEPLOYMENTS, PODS, JOBS, CLAIMS, REVISIONS, SERVICES, BUDGETS, POLICIES)

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Applied:
    """What came of applying one object."""

    problem: Problem | None = None
    drift: tuple[str, ...] = ()
    """Paths that somebody else had changed, and that were put back."""
    by: tuple[str, ...] = ()
    found: Object | None = None


@dataclass(slots=True)
class Fleet:
    """All lanes and all that belongs to them. `wake` is called with a lane's key when something about it changed."""

    cluster: Cluster
    wake: Callable[[Key], None]
    namespace: str | None = None
    pod_monitors: bool = False
    lanes: Mirror = field(init=False)
    children: dict[str, Mirror] = field(init=False)
    _by_lane: dict[str, dict[Key, dict[str, Object]]] = field(default_factory=dict)
    _applied: dict[tuple[str, Key], tuple[str, object]] = field(default_factory=dict)
    _secrets: dict[Key, tuple[float, dict[str, str]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.lanes = Mirror(
            self.cluster, LANES, namespace=self.namespace, keep=_keep, changed=self._lane_changed
        )
        kinds = (*CHILDREN, POD_MONITORS) if self.pod_monitors else CHILDREN
        self.children = {kind.kind: self._mirror(kind) for kind in kinds}

    def mirrors(self) -> list[Mirror]:
        return [self.lanes, *self.children.values()]

    async def run(self) -> None:
        """Follow the API server for as long as the task lives."""
        async with asyncio.TaskGroup() as tasks:
            for each in self.mirrors():
                tasks.create_task(each.run())

    async def listed(self) -> None:
        """Return once everything was read once: before, a lane's children only seem to be missing."""
        for each in self.mirrors():
            await each.listed.wait()

    def of_lane(self, kind: Resource, key: Key) -> tuple[Object, ...]:
        """Return a lane's objects of a kind, by name."""
        found = self._by_lane.get(kind.kind, {}).get(key, {})
        return tuple(found[name] for name in sorted(found))

    def claims(self, key: Key) -> tuple[Object, ...]:
        """Return the claims that a lane may use: its own, and those that lanes of one model share."""
        everything = self.children[CLAIMS.kind].objects
        return tuple(
            claim
            for (namespace, _), claim in sorted(everything.items())
            if namespace == key[0] and _lane_of(claim) in {None, key[1]}
        )

    async def apply(self, wanted: Object, owner_uid: str) -> Applied:
        """Have one object as it is wanted. Raises ClusterError when the API server should be asked again later."""
        mirrored = self.children[wanted["kind"]]
        key = mirror.key_of(wanted)
        place, mark = (wanted["kind"], key), digest(wanted)
        before = mirrored.objects.get(key)
        known = self._applied.get(place)
        if before is not None and known is not None and known[0] == mark:
            if projection(wanted, before) == known[1]:
                return Applied(found=before)
        elif before is None and (problem := await self._stranger(mirrored.resource, wanted, owner_uid)):
            return Applied(problem=problem)
        if before is not None and not _belongs(before, wanted, owner_uid):
            return Applied(problem=_not_owned(wanted))
        noted = {**wanted, "metadata": _noted(wanted["metadata"], mark)}
        try:
            after = await self.cluster.apply(mirrored.resource, noted, FIELD_MANAGER)
        except ClusterError as error:
            return Applied(problem=_refused(wanted, error))
        mirrored.put(after)
        self._applied[place] = (mark, projection(wanted, after))
        drift: list[str] = []
        if before is not None and _mark_of(before) == mark:
            drift = differences(projection(wanted, before), projection(wanted, after))
        return Applied(
            drift=tuple(drift), by=tuple(writers(before or {"metadata": {}}, FIELD_MANAGER)), found=after
        )

    async def delete(self, gone: Reference, namespace: str, owner_uid: str) -> None:
        """Delete an object that belongs to the lane and is no longer wanted."""
        mirrored = self.children[gone.kind]
        found = mirrored.objects.get((namespace, gone.name))
        if found is not None and not found["metadata"].get("deletionTimestamp") and _owned(found, owner_uid):
            await self.cluster.delete(
                mirrored.resource, namespace, gone.name, uid=found["metadata"].get("uid")
            )

    async def write_status(self, lane: Object, change: Object) -> None:
        """Change a lane's status, unless the lane has changed since it was read (ClusterError 409)."""
        metadata = lane["metadata"]
        version = {"metadata": {"resourceVersion": metadata["resourceVersion"]}}
        after = await self.cluster.merge(
            LANES, metadata["namespace"], metadata["name"], {**version, "status": change}, "status"
        )
        self.lanes.put(after)

    async def secret_hashes(self, namespace: str, names: set[tuple[str, str]], now: float) -> dict[str, str]:
        """Return `name/key` and a shortened hash of each of these values that exists."""
        hashes: dict[str, str] = {}
        for name in sorted({name for name, _ in names}):
            known = self._secrets.get((namespace, name))
            if known is None or now - known[0] > SECRET_SECONDS:
                known = (now, await self._read_secret(namespace, name))
                if len(self._secrets) >= MAX_SECRETS:
                    self._secrets.clear()
                self._secrets[namespace, name] = known
            hashes |= {
                f"{name}/{key}": known[1][key] for each, key in names if each == name and key in known[1]
            }
        return hashes

    def forget(self, key: Key) -> None:
        """Drop what is remembered of a lane that is gone."""
        for place in [
            place for place in self._applied if place[1][0] == key[0] and place[1][1].startswith(key[1])
        ]:
            del self._applied[place]

    async def _read_secret(self, namespace: str, name: str) -> dict[str, str]:
        try:
            secret = await self.cluster.get(SECRETS, namespace, name)
        except Missing:
            return {}
        except ClusterError as error:
            if error.status != 403:
                raise
            _log.warning("a secret may not be read", extra={"namespace": namespace, "secret": name})
            return {}
        salt = f"{namespace}/{name}/"
        return {
            key: hashlib.sha256(f"{salt}{key}/{value}".encode()).hexdigest()[:HASH_CHARACTERS]
            for key, value in (secret.get("data") or {}).items()
        }

    async def _stranger(self, kind: Resource, wanted: Object, owner_uid: str) -> Problem | None:
        """Say whether an object of this name, that no mirror shows, is somebody else's."""
        metadata = wanted["metadata"]
        try:
            found = await self.cluster.get(kind, metadata["namespace"], metadata["name"])
        except Missing:
            return None
        return None if _belongs(found, wanted, owner_uid) else _not_owned(wanted)

    def _mirror(self, kind: Resource) -> Mirror:
        def changed(before: Object | None, after: Object | None) -> None:
            found = after or before
            assert found is not None
            namespace, name = mirror.key_of(found)
            lane = _lane_of(found)
            if lane is None:  # shared by lanes of one model
                for key in list(self.lanes.objects):
                    if key[0] == namespace:
                        self.wake(key)
                return
            of_kind = self._by_lane.setdefault(kind.kind, {})
            children = of_kind.setdefault((namespace, lane), {})
            if after is None:
                children.pop(name, None)
                if not children:
                    del of_kind[namespace, lane]
            else:
                children[name] = after
            self.wake((namespace, lane))

        return Mirror(
            self.cluster,
            kind,
            namespace=self.namespace,
            selector=MANAGED_SELECTOR,
            keep=_keep_pod if kind is PODS else _keep,
            changed=changed,
        )

    def _lane_changed(self, before: Object | None, after: Object | None) -> None:
        found = after or before
        assert found is not None
        if before is None or after is None or list(_asked(before)) != list(_asked(after)):
            self.wake(mirror.key_of(found))


def _asked(lane: Object) -> Iterator[object]:
    """What of a lane others say: its status is the operator's own."""
    metadata = lane["metadata"]
    for name in ("uid", "generation", "annotations", "labels", "deletionTimestamp"):
        yield metadata.get(name)
    yield lane.get("spec")


def _keep(found: Object) -> Object:
    metadata = found["metadata"]
    fields = [
        {name: each[name] for name in ("manager", "time", "subresource") if name in each}
        for each in metadata.get("managedFields") or ()
    ]
    return {**found, "metadata": {**metadata, "managedFields": fields}}


_POD_METADATA = (
    "name", "namespace", "uid", "resourceVersion", "labels", "creationTimestamp", "deletionTimestamp",
    "ownerReferences",
)  # fmt: skip
_POD_STATUS = ("phase", "reason", "message", "conditions", "startTime", "podIP")
_CONTAINER = ("name", "ready", "started", "restartCount", "imageID", "state", "lastState")


def _keep_pod(found: Object) -> Object:
    """Pods are the most and the largest: of each only what is looked at is kept."""
    metadata, spec, status = found["metadata"], found.get("spec") or {}, found.get("status") or {}
    notes = {
        name: text
        for name, text in (metadata.get("annotations") or {}).items()
        if name.endswith("template-version")
    }
    return {
        "metadata": {name: metadata[name] for name in _POD_METADATA if name in metadata}
        | {"annotations": notes},
        "spec": {
            "nodeName": spec.get("nodeName"),
            "containers": [
                {name: each[name] for name in ("name", "startupProbe") if name in each}
                for each in spec.get("containers") or ()
            ],
        },
        "status": {name: status[name] for name in _POD_STATUS if name in status}
        | {
            "containerStatuses": [
                {name: each[name] for name in _CONTAINER if name in each}
                for each in status.get("containerStatuses") or ()
            ]
        },
    }


def _lane_of(found: Object) -> str | None:
    return (found["metadata"].get("labels") or {}).get(LANE_LABEL)


def _mark_of(found: Object) -> str | None:
    return (found["metadata"].get("annotations") or {}).get(APPLIED_ANNOTATION)


def _noted(metadata: Object, mark: str) -> Object:
    return {**metadata, "annotations": {**(metadata.get("annotations") or {}), APPLIED_ANNOTATION: mark}}


def _owned(found: Object, owner_uid: str) -> bool:
    references = found["metadata"].get("ownerReferences") or ()
    return any(each.get("uid") == owner_uid and each.get("controller") for each in references)


def _belongs(found: Object, wanted: Object, owner_uid: str) -> bool:
    if wanted["metadata"].get("ownerReferences"):
        return _owned(found, owner_uid)
    labels = found["metadata"].get("labels") or {}
    return bool(labels.get("app.kubernetes.io/managed-by") == "darktree")


def _not_owned(wanted: Object) -> Problem:
    what = f"{wanted['kind']} {wanted['metadata']['name']}"
    return Problem(Reason.CHILD_NOT_OWNED, f"{what} belongs to somebody else: rename it, or the lane.")


def _refused(wanted: Object, error: ClusterError) -> Problem:
    """Say what the API server holds against an object. Raises the error when asking again may help."""
    if error.status in {0, 401, 408, 409, 429} or error.status >= 500:
        raise error
    what = f"{wanted['kind']} {wanted['metadata']['name']}"
    quota = "quota" in error.message.lower() or "admission webhook" in error.message.lower()
    reason = Reason.QUOTA_EXCEEDED if error.status == 403 and quota else Reason.APPLY_FAILED
    return Problem(reason, f"{what}: {error.message}"[:1024])
