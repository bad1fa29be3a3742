"""The lanes of a cluster: InferenceLanes and the EndpointSlices of their Services, followed with read-only rights.

While the API server is away the last known table serves on. A lane that cannot be read is left out and logged; the
others are not disturbed.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable

from darktree_gateway.lanes import MAX_ENDPOINTS, MAX_LANES, Lane, LaneTable, lane_of
from darktree_kit.cluster import Cluster, Object, Resource
from darktree_kit.mirror import Mirror

LANES = Resource("darktree.dev/v1alpha1", "inferencelanes", "InferenceLane")
SLICES = Resource("discovery.k8s.io/v1", "endpointslices", "EndpointSlice")
LANE_LABEL = "darktree.dev/lane"
PORT_NAME = "http"
SETTLE_SECONDS = 0.05  # changes come in bursts

_log = logging.getLogger(__name__)


class ClusterLanes:
    """Keeps `table` as the cluster says, for one namespace; lanes' names are only unique within it."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.table = LaneTable()
        self.loaded = False
        self._cluster = cluster
        self._changed = asyncio.Event()
        self._lanes = self._mirror(LANES, namespace, "")
        self._slices = self._mirror(SLICES, namespace, LANE_LABEL)
        self._complained: dict[str, str] = {}

    async def watch(self, _: float, changed: Callable[[LaneTable], None]) -> None:
        """Follow for as long as the task lives, telling of each new table."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._lanes.run())
            tasks.create_task(self._slices.run())
            await asyncio.gather(self._lanes.listed.wait(), self._slices.listed.wait())
            while True:
                self._changed.clear()
                table = LaneTable(self._read())
                if not self.loaded or table.lanes != self.table.lanes:
                    self.table, self.loaded = table, True
                    changed(table)
                await self._changed.wait()
                await asyncio.sleep(SETTLE_SECONDS)

    async def close(self) -> None:
        await self._cluster.close()

    def _mirror(self, kind: Resource, namespace: str, selector: str) -> Mirror:
        def changed(_: Object | None, __: Object | None) -> None:
            self._changed.set()

        return Mirror(
            self._cluster, kind, namespace=namespace or None, selector=selector, keep=_keep, changed=changed
        )

    def _read(self) -> Iterable[Lane]:
        endpoints: dict[tuple[str, str], set[str]] = {}
        for found in self._slices.objects.values():
            metadata = found["metadata"]
            place = (metadata["namespace"], metadata["labels"][LANE_LABEL])
            endpoints.setdefault(place, set()).update(addresses(found))
        seen: set[str] = set()
        for key, document in sorted(self._lanes.objects.items(), key=lambda each: each[0][::-1])[:MAX_LANES]:
            if document["metadata"].get("deletionTimestamp") or key[1] in seen:
                continue
            urls = tuple(sorted(endpoints.get(key, ())))[:MAX_ENDPOINTS]
            try:
                yield lane_of(document, urls)
            except ValueError as error:
                self._complain(key[1], str(error))
                continue
            seen.add(key[1])

    def _complain(self, name: str, error: str) -> None:
        if self._complained.get(name) != error:
            self._complained[name] = error
            _log.error("a lane cannot be used", extra={"lane": name, "error": error[:500]})


def addresses(found: Object) -> Iterable[str]:
    """Yield the addresses of a slice's engines that are ready and stay."""
    port = next((each["port"] for each in found.get("ports") or () if each.get("name") == PORT_NAME), None)
    if port is None:
        return
    for endpoint in found.get("endpoints") or ():
        conditions = endpoint.get("conditions") or {}
        if conditions.get("ready") is False or conditions.get("terminating"):
            continue
        for address in endpoint.get("addresses") or ():
            yield f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


def _keep(found: Object) -> Object:
    metadata = {name: value for name, value in found["metadata"].items() if name != "managedFields"}
    return {**found, "metadata": metadata}
