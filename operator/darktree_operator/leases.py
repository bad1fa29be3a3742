"""One operator writes at a time: whoever holds a Lease and renews it. The others watch, ready to go on.

Whether a holder is gone is judged by this process' own monotonic clock (the Lease has not changed for its duration), so
clocks that differ between nodes elect nobody. Who cannot renew stops writing before another may begin.
"""

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime

from darktree_kit.clock import Clock, Monotonic, monotonic, utc_now
from darktree_kit.cluster import Cluster, ClusterError, Missing, Object, Resource

LEASES = Resource("coordination.k8s.io/v1", "leases", "Lease")
DURATION_SECONDS = 15
RENEW_SECONDS = 5.0
GIVE_UP_SECONDS = 10.0  # less than the duration: who cannot renew for so long stops

_log = logging.getLogger(__name__)


class Lease:
    """A Lease that this process tries to hold; `leading` says whether it does."""

    def __init__(
        self,
        cluster: Cluster,
        namespace: str,
        name: str,
        identity: str,
        *,
        now: Clock = utc_now,
        elapsed: Monotonic = monotonic,
    ) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._now = now
        self._elapsed = elapsed
        self._seen: tuple[str, float] = ("", 0.0)
        self._renewed_at = float("-inf")
        self.leading = False

    async def run(self, changed: Callable[[bool], None]) -> None:
        """Try, hold and renew for as long as the task lives; give it back at the end."""
        try:
            while True:
                held = await self._bounded_try()
                if held != self.leading:
                    self.leading = held
                    _log.info("leading" if held else "not leading", extra={"identity": self._identity})
                    changed(held)
                await asyncio.sleep(RENEW_SECONDS)
        finally:
            if self.leading:
                self.leading = False
                changed(False)
                await asyncio.shield(self._give_back())

    async def _bounded_try(self) -> bool:
        began = self._elapsed()
        try:
            left = GIVE_UP_SECONDS - (began - self._renewed_at) if self.leading else GIVE_UP_SECONDS
            async with asyncio.timeout(max(0.1, min(RENEW_SECONDS, left))):
                held = await self.attempt()
        except (ClusterError, TimeoutError) as error:
            _log.warning("the lease could not be read or renewed", extra={"error": str(error)[:300]})
            return self.leading and self._elapsed() - self._renewed_at < GIVE_UP_SECONDS
        if held:
            self._renewed_at = began  # the server took it at the earliest when it was asked
        return held

    async def attempt(self) -> bool:
        """Take or renew the Lease if that is possible now; return whether it is held. Raises ClusterError."""
        try:
            found = await self._cluster.get(LEASES, self._namespace, self._name)
        except Missing:
            try:
                await self._cluster.create(LEASES, self._wanted(None))
            except ClusterError as error:
                if error.status == 409:
                    return False
                raise
            return True
        if not self._may_take(found):
            return False
        try:
            await self._cluster.replace(LEASES, self._wanted(found))
        except ClusterError as error:
            if error.status == 409:
                return False
            raise
        return True

    def _may_take(self, found: Object) -> bool:
        spec = found.get("spec") or {}
        holder = spec.get("holderIdentity")
        if not holder or holder == self._identity:
            return True
        version = found["metadata"].get("resourceVersion") or ""
        if version != self._seen[0]:
            self._seen = (version, self._elapsed())
            return False
        return self._elapsed() - self._seen[1] > float(spec.get("leaseDurationSeconds") or DURATION_SECONDS)

    def _wanted(self, found: Object | None) -> Object:
        now = _micro(self._now())
        spec = dict((found or {}).get("spec") or {})
        if spec.get("holderIdentity") != self._identity:
            spec["acquireTime"] = now
            spec["leaseTransitions"] = int(spec.get("leaseTransitions") or 0) + (found is not None)
        spec |= {"holderIdentity": self._identity, "leaseDurationSeconds": DURATION_SECONDS, "renewTime": now}
        metadata: Object = {"namespace": self._namespace, "name": self._name}
        if found is not None:
            metadata["resourceVersion"] = found["metadata"]["resourceVersion"]
        return {"apiVersion": LEASES.api_version, "kind": LEASES.kind, "metadata": metadata, "spec": spec}

    async def _give_back(self) -> None:
        try:
            found = await self._cluster.get(LEASES, self._namespace, self._name)
            if (found.get("spec") or {}).get("holderIdentity") == self._identity:
                wanted = self._wanted(found)
                wanted["spec"]["holderIdentity"] = ""
                await self._cluster.replace(LEASES, wanted)
        except ClusterError as error:
            _log.info("the lease was not given back", extra={"error": str(error)[:300]})


def _micro(instant: datetime) -> str:
    return instant.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
