"""The operator's process: copies that follow the API server, workers that write while it leads, and a proof of life."""

import asyncio
import secrets
import socket
from collections.abc import Coroutine, Iterable
from typing import Any

from prometheus_client import start_http_server

from darktree_kit.clock import monotonic
from darktree_kit.cluster import Cluster, Object, Resource
from darktree_kit.http import InternalClient
from darktree_kit.mirror import Key, Mirror
from darktree_operator import metrics
from darktree_operator.cluster import Fleet
from darktree_operator.config import OperatorConfig, read_config
from darktree_operator.events import Announcer
from darktree_operator.leases import Lease
from darktree_operator.reconciling import Reconciler
from darktree_operator.settings import Settings
from darktree_operator.signals import News, Signals
from darktree_operator.worker import Workers

SLICES = Resource("discovery.k8s.io/v1", "endpointslices", "EndpointSlice")
SERVICE_LABEL = "kubernetes.io/service-name"
FETCH_SECONDS = 2.0
STOP_SECONDS = 10.0


class NotAlive(Exception):
    """Reconciling has stopped; the message says since when."""


class Operator:
    """Everything that runs while the operator does."""

    def __init__(
        self, settings: Settings, config: OperatorConfig | None = None, cluster: Cluster | None = None
    ) -> None:
        self.settings = settings
        self.config = config or _config(settings)
        self.identity = settings.identity or f"{socket.gethostname()}_{secrets.token_hex(4)}"
        self.cluster = cluster or Cluster()  # as kopf: what KUBECONFIG names, or the pod's account
        self.workers = Workers(self._look)
        self.fleet = Fleet(
            self.cluster,
            self.workers.enqueue,
            namespace=settings.namespace or None,
            pod_monitors=self.config.pod_monitors,
        )
        self.gateways = Gateways(self.cluster, settings)
        self.signals = Signals(self.gateways.fetch, self.gateways.urls)
        self.reconciler = Reconciler(
            fleet=self.fleet,
            config=self.config,
            announcer=Announcer(self.cluster, self.identity),
            load=self.signals.of_lane,
            engines=self.signals.engines,
            wake=self.workers.enqueue,
            resync_seconds=settings.resync_seconds,
        )
        self.leading = False
        self._listed = False
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping: set[asyncio.Task[None]] = set()
        self._began = monotonic()

    async def start(self) -> None:
        """Begin to follow and, once leading and once everything was read, to write."""
        metrics.OVERDUE_SECONDS.set_function(self.workers.overdue_seconds)
        if self.settings.metrics_port:
            start_http_server(self.settings.metrics_port)
        work: list[Coroutine[Any, Any, None]] = [self.fleet.run(), self._begin_when_listed()]
        work += self.gateways.work()
        if self.gateways.known:
            work.append(self.signals.watch(self.settings.gateway_seconds, self._heard))
        if self.settings.lease_namespace:
            lease = Lease(
                self.cluster, self.settings.lease_namespace, self.settings.lease_name, self.identity
            )
            work.append(lease.run(self._lead))
        else:
            self._lead(True)
        self._tasks = [asyncio.create_task(coroutine) for coroutine in work]

    async def stop(self) -> None:
        """End in order: no more writes, then the lease is given back, then the connections."""
        await self.workers.stop()
        for task in self._tasks:
            task.cancel()
        async with asyncio.timeout(STOP_SECONDS):
            await asyncio.gather(*self._tasks, *self._stopping, return_exceptions=True)
        await self.gateways.close()
        await self.cluster.close()

    def check(self) -> dict[str, object]:
        """Return how the operator is. Raises NotAlive when reconciling has stopped."""
        for task in self._tasks:
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                raise NotAlive(f"a task has ended: {error!r}"[:300])
        overdue = self.workers.overdue_seconds()
        if overdue > self.settings.stale_seconds:
            raise NotAlive(f"a lane waits since {overdue:.0f} s")
        unread = [each.resource.plural for each in self.fleet.mirrors() if not each.listed.is_set()]
        if unread and monotonic() - self._began > self.settings.stale_seconds:
            raise NotAlive(f"never read: {', '.join(unread)}")
        return {"leading": self.leading, "lanes": len(self.fleet.lanes.objects), "overdue": overdue}

    def enqueue(self, key: Key) -> None:
        """Have a lane looked at."""
        self.workers.enqueue(key)

    async def _look(self, key: Key) -> float | None:
        return await self.reconciler.look(key)

    async def _begin_when_listed(self) -> None:
        await self.fleet.listed()
        self._listed = True
        self._begin()

    def _begin(self) -> None:
        if self._listed and self.leading:
            for key in self.fleet.lanes.objects:
                self.workers.enqueue(key)
            self.workers.start()

    def _lead(self, leading: bool) -> None:
        self.leading = leading
        metrics.LEADING.set(leading)
        if leading:
            self._begin()
            return
        stopping = asyncio.get_running_loop().create_task(self.workers.stop())
        self._stopping.add(stopping)
        stopping.add_done_callback(self._stopping.discard)

    def _heard(self, news: News) -> None:
        for key, lane in self.fleet.lanes.objects.items():
            spec, status = lane.get("spec") or {}, lane.get("status") or {}
            waits = (status.get("rollout") or {}).get("deferredReason") == "WaitingForIdle"
            follows = key[1] in news.loads and (spec.get("autoscaling") or waits)
            if follows or key[1] in news.engines:
                self.workers.enqueue(key)


class Gateways:
    """Where the gateways' metrics are: said in settings, or the addresses of their Service."""

    def __init__(self, cluster: Cluster, settings: Settings) -> None:
        self._urls = [url.strip().rstrip("/") for url in settings.gateway_urls.split(",") if url.strip()]
        self._clients: dict[str, InternalClient] = {}
        self._slices: Mirror | None = None
        self._port = ""
        if settings.gateway_service:
            place, _, self._port = settings.gateway_service.partition(":")
            namespace, _, name = place.rpartition("/")
            selector = f"{SERVICE_LABEL}={name}"
            self._slices = Mirror(cluster, SLICES, namespace=namespace or None, selector=selector)

    @property
    def known(self) -> bool:
        return bool(self._urls) or self._slices is not None

    def work(self) -> list[Coroutine[Any, Any, None]]:
        return [] if self._slices is None else [self._slices.run()]

    def urls(self) -> Iterable[str]:
        yield from self._urls
        if self._slices is not None:
            for found in self._slices.objects.values():
                yield from self._addresses(found)

    async def fetch(self, url: str) -> bytes:
        client = self._clients.get(url)
        if client is None:
            client = self._clients[url] = InternalClient(url, "", service="gateway", timeout=FETCH_SECONDS)
            for gone in set(self._clients) - {*self.urls(), url}:
                await self._clients.pop(gone).close()
        return await client.call("GET", "/metrics")

    async def close(self) -> None:
        for client in self._clients.values():
            await client.close()

    def _addresses(self, found: Object) -> Iterable[str]:
        for endpoint in found.get("endpoints") or ():
            if (endpoint.get("conditions") or {}).get("ready") is False:
                continue
            for address in endpoint.get("addresses") or ():
                host = f"[{address}]" if ":" in address else address
                yield f"http://{host}:{self._port}"


def _config(settings: Settings) -> OperatorConfig:
    if settings.config_file is None:
        return OperatorConfig(images={})
    return read_config(settings.config_file)
