"""A copy of one kind's objects that follows the API server: listed once, then kept by a watch.

What disappeared while no watch ran is found when the list is read again, because a list replaces the copy. While the
API server is away the copy stays what it was.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Iterable

from darktree_kit.clock import Monotonic, monotonic
from darktree_kit.cluster import Cluster, ClusterError, Gone, Missing, Object, Resource

FIRST_PAUSE_SECONDS = 0.5
MAX_PAUSE_SECONDS = 30.0
ABSENT_PAUSE_SECONDS = 60.0  # the kind itself is not there: its definition may come

Key = tuple[str, str]
"""An object's namespace and name."""
Changed = Callable[[Object | None, Object | None], None]
_log = logging.getLogger(__name__)


def key_of(found: Object) -> Key:
    """Return an object's namespace and name."""
    metadata = found["metadata"]
    return metadata.get("namespace") or "", metadata["name"]


class Mirror:
    """Keeps `objects`. `changed(before, after)` is told of each object that became another; it must not wait."""

    def __init__(
        self,
        cluster: Cluster,
        resource: Resource,
        *,
        namespace: str | None = None,
        selector: str = "",
        keep: Callable[[Object], Object] = lambda found: found,
        changed: Changed | None = None,
        now: Monotonic = monotonic,
    ) -> None:
        self.resource = resource
        self.objects: dict[Key, Object] = {}
        self.listed = asyncio.Event()
        self.heard_at = float("-inf")
        self._cluster = cluster
        self._namespace = namespace
        self._selector = selector
        self._keep = keep
        self._changed = changed
        self._now = now

    async def run(self) -> None:
        """Follow for as long as the task lives."""
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                since = await self._list()
                pause = FIRST_PAUSE_SECONDS
                while True:
                    since = await self._follow(since)
            except Gone:
                _log.info("listing again", extra={"resource": self.resource.plural})
                continue
            except Missing:
                self._replace(())
                self.listed.set()
                await asyncio.sleep(ABSENT_PAUSE_SECONDS)
                continue
            except ClusterError as error:
                _log.warning(
                    "cannot list", extra={"resource": self.resource.plural, "error": str(error)[:300]}
                )
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311
            pause = min(MAX_PAUSE_SECONDS, pause * 2)

    async def _list(self) -> str:
        found, since = await self._cluster.list(self.resource, self._namespace, self._selector)
        self._replace(found)
        self.listed.set()
        self.heard_at = self._now()
        return since

    async def _follow(self, since: str) -> str:
        """Watch from a version on; return the version to go on from once the server ends it. Raises Gone."""
        pause = FIRST_PAUSE_SECONDS
        try:
            async for kind, found in self._cluster.watch(
                self.resource, self._namespace, since, self._selector
            ):
                since = found["metadata"].get("resourceVersion") or since
                self.heard_at = self._now()
                pause = 0.0
                if kind == "DELETED":
                    self._put(key_of(found), None)
                elif kind in {"ADDED", "MODIFIED"}:
                    self._put(key_of(found), found)
        except Gone:
            raise
        except ClusterError as error:
            if error.status not in {0, 429} and error.status < 500:
                raise
            _log.debug("watching again", extra={"resource": self.resource.plural, "error": str(error)[:300]})
        await asyncio.sleep(max(pause, FIRST_PAUSE_SECONDS * random.uniform(0.2, 1.0)))  # noqa: S311
        return since

    def put(self, found: Object) -> None:
        """Take an answer of the API server that is newer than what was heard; the watch says it again."""
        known = self.objects.get(key_of(found))
        if known is not None and _version(found) >= _version(known):
            self._put(key_of(found), found)

    def _replace(self, found: Iterable[Object]) -> None:
        by_key = {key_of(each): each for each in found}
        for key in [key for key in self.objects if key not in by_key]:
            self._put(key, None)
        for key, each in by_key.items():
            self._put(key, each)

    def _put(self, key: Key, found: Object | None) -> None:
        before = self.objects.get(key)
        after = None if found is None else self._keep(found)
        if after is None:
            self.objects.pop(key, None)
        elif before is not None and _version(before) == _version(after) != 0:
            return
        else:
            self.objects[key] = after
        if self._changed is not None and (before is not None or after is not None):
            self._changed(before, after)


def _version(found: Object) -> int:
    """Return an object's version as a number, for equality and because Kubernetes (1.35) lets them be compared."""
    version = found["metadata"].get("resourceVersion") or "0"
    return int(version) if version.isdigit() else 0
