"""The gateway's application: completions on plain ASGI, everything else on FastAPI, and nothing around the meter."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from darktree_billing.client import BillingClient
from darktree_gateway import counting, description, ledger_api, metrics, usage
from darktree_gateway.admission import Admission
from darktree_gateway.auth import Authenticator
from darktree_gateway.balancing import Patience
from darktree_gateway.catalog import Prices
from darktree_gateway.cluster_lanes import ClusterLanes
from darktree_gateway.gauges import Gauges
from darktree_gateway.lanes import LaneFile, Lanes, LaneTable
from darktree_gateway.limits import KeyLimits
from darktree_gateway.metering import Metering
from darktree_gateway.placing import Placing
from darktree_gateway.probing import Prober
from darktree_gateway.queueing import Bounds, Queues
from darktree_gateway.reconciliation import EngineCounters
from darktree_gateway.requests import Endpoint
from darktree_gateway.serving import Service
from darktree_gateway.settings import Settings
from darktree_gateway.upstream import Upstream
from darktree_gateway.waking import Waking
from darktree_kit.app import Readiness, add_routes, create_app
from darktree_kit.cluster import Cluster
from darktree_kit.errors import ApiError, NotFound, Unavailable
from darktree_ledger.client import LedgerClient
from darktree_ledger.sharding import connect

HOT_PATHS: dict[str, Endpoint] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
    "/v1/responses": "responses",
}
_PRIVATE_PATHS = frozenset({"/healthz", "/readyz", "/metrics"})
_READ_PATHS = ("/v1/models", "/v1/usage", "/v1/credits", "/v1/ledger", "/v1/tokenize")


def make_app(settings: Settings) -> FastAPI:
    """Return the gateway's application."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with _running(settings, app):
            yield

    app = create_app(
        "gateway",
        lifespan=lifespan,
        title="Darktree",
        description="OpenAI-compatible completions on prepaid credits, with a daily token cap that is a hard stop.",
        before=[partial(HotPath, private_port=settings.private_port)],
        trust_request_id=False,
    )
    add_routes(app, usage.router, ledger_api.router, counting.router)
    description.describe_completions(app)
    return app


class HotPath:
    """Serves completions itself, and lets the rest through to FastAPI with the customer's limits on every answer."""

    def __init__(self, app: ASGIApp, private_port: int) -> None:
        self.app = app
        self.private_port = private_port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        endpoint = HOT_PATHS.get(path)
        if endpoint is not None:
            scope["state"]["route"] = path
            if scope["method"] != "POST":
                raise ApiError(
                    f"Method Not Allowed: {path} only answers POST.",
                    status=405,
                    type="invalid_request_error",
                    code="method_not_allowed",
                    headers={"Allow": "POST"},
                )
            service: Service = scope["app"].state.service
            await service.serve(endpoint, scope, receive, send)
            return
        if path in _PRIVATE_PATHS and self.private_port and scope["server"][1] != self.private_port:
            raise NotFound(f"Not Found: {path}", code="unknown_url")
        if path.startswith(_READ_PATHS):
            send = _with_limits(scope, send)
        await self.app(scope, receive, send)


def _with_limits(scope: Scope, send: Send) -> Send:
    async def send_with_limits(message: Message) -> None:
        if message["type"] == "http.response.start":
            limits: dict[str, str] = scope["state"].get("limits", {})
            headers = [(name.encode(), value.encode()) for name, value in limits.items()]
            message["headers"] = [*message.get("headers", []), *headers]
        await send(message)

    return send_with_limits


@asynccontextmanager
async def _running(settings: Settings, app: FastAPI) -> AsyncIterator[None]:
    """Everything that lives as long as the process; on the way out, what runs is finished and nothing is lost."""
    billing = BillingClient(settings.billing_url, settings.billing_token.get_secret_value())
    ledger = connect(settings.ledger_url, settings.ledger_token.get_secret_value())
    upstream = _upstream(settings)
    lanes = _lanes(settings)
    waking = Waking(lambda model, customer_id: lanes.table.find(model, customer_id))
    queues = _queues(settings)
    gauges = Gauges(waking, queues, upstream.balancer)
    prices = Prices(billing.catalog)
    counters = EngineCounters(lanes, upstream, billing.keep_engine_readings)
    metering = Metering(
        ledger,
        settings.journal_dir,
        ttl_seconds=settings.hold_ttl_seconds,
        request_seconds=settings.request_seconds,
    )
    app.state.service = Service(
        authenticator=_authenticator(settings, billing),
        prices=prices,
        lanes=lanes,
        placing=Placing(lambda: lanes.table, waking, queues, upstream.balancer),
        key_limits=KeyLimits(),
        admission=Admission(
            metering,
            upstream,
            wait_seconds=settings.in_flight_wait_seconds,
            ttl_seconds=settings.hold_ttl_seconds,
        ),
        metering=metering,
        upstream=upstream,
        separate_prefix_caches=settings.separate_prefix_caches,
        access_log=settings.access_log,
        keep_alive_seconds=settings.keep_alive_seconds,
    )
    metrics.HOLDS.set_function(lambda: len(metering.running))

    def take(table: LaneTable) -> None:
        waking.told(table)
        queues.told(table)
        gauges.show(table)
        upstream.balancer.forget_all_but([endpoint for _, endpoint in table.endpoints()])

    app.state.ready = _readiness(lanes, prices, ledger)
    if isinstance(lanes, LaneFile) and lanes.poll():
        take(lanes.table)
    work: list[Coroutine[Any, Any, None]] = [
        lanes.watch(settings.lanes_seconds, take),
        prices.watch(settings.catalog_seconds),
        gauges.watch(lambda: lanes.table),
        Prober(lanes, upstream).watch(),
        metering.keep_holds(),
        metering.keep_replaying(settings.journal_replay_seconds),
    ]
    if settings.engine_metrics_interval_seconds:
        work.append(counters.watch(settings.engine_metrics_interval_seconds))
    tasks = [asyncio.create_task(coroutine) for coroutine in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await metering.close()
        await ledger.close()
        await billing.close()
        await upstream.close()
        if isinstance(lanes, ClusterLanes):
            await lanes.close()


def _authenticator(settings: Settings, billing: BillingClient) -> Authenticator:
    return Authenticator(
        billing.verify_key,
        key_seconds=settings.key_seconds,
        unknown_key_seconds=settings.unknown_key_seconds,
    )


def _upstream(settings: Settings) -> Upstream:
    patience = Patience(
        failures=settings.ejection_failures,
        seconds=settings.ejection_seconds,
        max_seconds=settings.max_ejection_seconds,
        max_ejected_percent=settings.max_ejected_percent,
    )
    token = settings.engine_token.get_secret_value()
    return Upstream(idle_seconds=settings.engine_idle_seconds, token=token, patience=patience)


def _queues(settings: Settings) -> Queues:
    return Queues(
        Bounds(
            requests_per_engine=settings.requests_per_engine,
            gateways=settings.gateways,
            length=settings.queue_length,
            wait_seconds=settings.queue_seconds,
        )
    )


def _lanes(settings: Settings) -> LaneFile | ClusterLanes:
    if settings.lanes_file is not None:
        return LaneFile(settings.lanes_file)
    return ClusterLanes(Cluster(settings.kubeconfig), settings.lanes_namespace)


def _readiness(lanes: Lanes, prices: Prices, ledger: LedgerClient) -> Readiness:
    """Ready once everything has answered; from then on it is better to say what is missing than not to answer."""
    started = False

    async def ready() -> None:
        nonlocal started
        if started:
            return
        if not lanes.loaded:
            raise Unavailable("no lanes could be read yet")
        prices.model("")
        answers = await asyncio.gather(*(shard.ready() for shard in ledger.shards), return_exceptions=True)
        problems = [answer for answer in answers if answer is not None]
        if len(problems) == len(answers):
            raise problems[0]
        started = True

    return ready
