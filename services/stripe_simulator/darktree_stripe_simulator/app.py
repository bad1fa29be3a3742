"""The stand-in as one application: the API under `/v1`, the payer's pages, `/_control`, and time going by."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from darktree_stripe_simulator import due, files, state
from darktree_stripe_simulator.account import Account, Clock
from darktree_stripe_simulator.api import TRANSPORT, Api
from darktree_stripe_simulator.control import Control
from darktree_stripe_simulator.errors import Refusal
from darktree_stripe_simulator.faults import FaultBox
from darktree_stripe_simulator.page import Pages
from darktree_stripe_simulator.settings import Settings
from darktree_stripe_simulator.webhooks import Courier

MAX_PAUSE_SECONDS = 3_600.0
_METHODS = ["GET", "POST", "DELETE", "PUT", "PATCH"]


def make_app(settings: Settings, clock: Clock = time.time) -> ASGIApp:
    """Return the stand-in. Raises StateError when its state cannot be read."""
    settings = settings.model_copy(deep=True)  # a test changes the webhook
    account = Account(settings, clock)
    if settings.state is not None:
        state.load(account, settings.state)
    courier = Courier(account)
    faults = FaultBox()
    api, pages, control = Api(account, faults), Pages(account), Control(account, courier, faults)

    def kept(handle: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """Let time go by before a request, and keep what it changed."""

        async def handle_and_keep(request: Request) -> Response:
            due.run_due(account)
            response = await handle(request)
            if settings.state is not None and request.method != "GET":
                state.save(account, settings.state)
            courier.wake.set()
            return response

        return handle_and_keep

    async def contents(request: Request) -> Response:
        return Response(
            files.contents(account, request.path_params["id"]), media_type="application/octet-stream"
        )

    async def healthz(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    routes = [
        Route("/healthz", healthz),
        Route("/readyz", healthz),
        Route("/v1/files/{id}/contents", contents),
        Route("/v1/{path:path}", kept(api.handle), methods=_METHODS),
        Route("/pay/{id}", kept(pages.pay), methods=["GET", "POST"]),
        Route("/receipts/{id}", pages.receipt),
        *(
            Route(route.path, kept(route.endpoint), methods=sorted(route.methods or ()))
            for route in control.routes()
        ),
    ]
    handlers: dict[Any, Any] = {
        Refusal: _refusal,
        ValidationError: _invalid,
        HTTPException: _http_error,
    }

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        passing = asyncio.create_task(_time_goes_by(account, courier), name="time")
        yield
        passing.cancel()
        with suppress(asyncio.CancelledError):
            await passing
        await courier.close()
        if settings.state is not None:
            state.save(account, settings.state)

    return Breakable(Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan))


class Breakable:
    """Tells the application the connection of a request, which ASGI does not know, so that a fault can break it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            cycle: Any = getattr(send, "__self__", None)  # uvicorn's
            scope[TRANSPORT] = cycle.transport
        await self._app(scope, receive, send)


async def _time_goes_by(account: Account, courier: Courier) -> None:
    """Do what is due, and deliver, whenever there is something."""
    while True:
        happened = due.run_due(account)
        delivered = await courier.send_due()
        if (happened or delivered) and account.settings.state is not None:
            state.save(account, account.settings.state)
        instants = [float(item["at"]) for item in (*account.due, *account.deliveries)]
        upcoming = min(instants, default=None)
        pause = MAX_PAUSE_SECONDS if upcoming is None else max(upcoming - account.instant(), 0)
        with suppress(TimeoutError):
            await asyncio.wait_for(courier.wake.wait(), min(pause, MAX_PAUSE_SECONDS))
        courier.wake.clear()


async def _refusal(_: Request, refusal: Refusal) -> Response:
    return JSONResponse({"error": refusal.error}, refusal.status)


async def _invalid(_: Request, error: ValidationError) -> Response:
    return JSONResponse({"error": {"type": "invalid_request_error", "message": str(error)}}, 400)


async def _http_error(_: Request, error: HTTPException) -> Response:
    return JSONResponse(
        {"error": {"type": "invalid_request_error", "message": error.detail}},
        error.status_code,
        error.headers,
    )
