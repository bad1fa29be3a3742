"""The application that every service is: health, readiness, metrics, and a front that names, logs and times requests.

The front, and the paths that a service answers by plain ASGI, stand before the framework: a hot path pays for them
and for nothing else.
"""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from darktree_kit import clock, ids, logs, metrics, tracing
from darktree_kit.errors import ApiError, BadRequest, Unavailable
from darktree_kit.openapi import describe_refusals
from darktree_kit.version import VERSION

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]
Readiness = Callable[[], Awaitable[None]]

_REQUEST_ID = re.compile(rb"[A-Za-z0-9_-]{1,64}")
_QUIET_PATHS = frozenset({"/healthz", "/readyz", "/metrics"})
_log = logging.getLogger("darktree.http")


def create_app(
    service: str,
    *,
    lifespan: Callable[[FastAPI], AsyncIterator[None]] | Lifespan,
    title: str,
    description: str,
    before: Sequence[Callable[[ASGIApp], ASGIApp]] = (),
    trust_request_id: bool = True,
) -> FastAPI:
    """Return a FastAPI application with everything that Darktree's services have in common.

    `app.state.ready`, when the lifespan sets it, is awaited by `/readyz`; what it raises is the reason for a 503.
    `before` wraps the framework, outermost first: plain ASGI that answers some paths itself.
    `trust_request_id` takes the caller's `X-Request-Id`: right inside the platform, wrong at its edge.
    """
    app = ServiceApp(
        title=title,
        description=description,
        version=VERSION,
        lifespan=_telling_all(lifespan),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # a path with a slash too many is another path, and not known
    )
    app.stand_before(service, before, trust_request_id)
    describe_refusals(app)
    app.add_exception_handler(ApiError, _answer_api_error)
    app.add_exception_handler(RequestValidationError, _answer_validation_error)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(Exception, _answer_unhandled_error)

    @app.get("/healthz", include_in_schema=False)
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", include_in_schema=False)
    async def readyz(request: Request) -> dict[str, str]:
        if getattr(request.app.state, "leaving", False):
            raise Unavailable(f"{service} is going away.")
        ready: Readiness | None = getattr(request.app.state, "ready", None)
        if ready is None:
            raise Unavailable(f"{service} has not started.")
        try:
            await ready()
        except Exception as error:
            raise Unavailable(f"{service} is not ready: {type(error).__name__}: {error}") from error
        return {"status": "ready"}

    @app.get("/metrics", include_in_schema=False)
    def exposition() -> Response:
        content, media_type = metrics.exposition()
        return Response(content, media_type=media_type)

    return app


def add_routes(app: FastAPI, *routers: APIRouter) -> None:
    """Serve routers' routes as they are: they need nothing of the application's.

    FastAPI's own `include_router` makes each of them a second time, at the application's first request: 125 ms of
    billing's.
    """
    for router in routers:
        app.router.routes.extend(router.routes)


def _telling_all(lifespan: Any) -> Lifespan:
    """Return a lifespan after which no span waits any more."""

    @asynccontextmanager
    async def with_flush(app: FastAPI) -> AsyncIterator[None]:
        async with lifespan(app):
            yield
        await asyncio.to_thread(tracing.flush)

    return with_flush


class ServiceApp(FastAPI):
    """FastAPI behind the front. As a middleware the front would stand inside four of the framework's own."""

    def stand_before(
        self, service: str, before: Sequence[Callable[[ASGIApp], ASGIApp]], trust_request_id: bool
    ) -> None:
        """Put the front, and what answers by plain ASGI, before the framework."""
        app: ASGIApp = super().__call__
        for wrap in reversed(before):
            app = wrap(app)
        self._front = Front(app, service, trust_request_id)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["app"] = self
            await self._front(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


class Front:
    """Gives each request an id, answers what escapes, and writes one log line and two metrics."""

    def __init__(self, app: ASGIApp, service: str, trust_request_id: bool) -> None:
        self.app = app
        self.service = service
        self.trust_request_id = trust_request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = clock.monotonic()
        request_id = self._request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        token = logs.request_id.set(request_id)
        serving = None if tracing.tracer is None else tracing.begin(scope, request_id)
        status = 0
        answered = False

        async def send_with_id(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                status = message["status"]
                message.setdefault("headers", [])
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            else:
                answered = not message.get("more_body", False)
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except Exception as error:
            if answered:
                _log.exception("unhandled error")  # the framework has answered it already
                return
            if status:
                _log.exception("failed after the answer had begun")
                raise
            if not isinstance(error, ApiError):
                _log.exception("unhandled error")
                error = _unhandled()
            await answer(error, send_with_id)
        finally:
            self._account(scope, status, clock.monotonic() - started)
            if serving is not None:
                serving.end(_method(scope), _route(scope), status)
            logs.request_id.reset(token)

    def _request_id(self, scope: Scope) -> str:
        if self.trust_request_id:
            for name, value in scope["headers"]:
                if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
                    return str(value.decode("ascii"))
        return ids.request_id_of(ids.uuid7())

    def _account(self, scope: Scope, status: int, seconds: float) -> None:
        route, method = _route(scope), _method(scope)
        metrics.count_request(self.service, route, method, status, seconds)
        if scope["path"] not in _QUIET_PATHS and not (scope["state"].get("quiet") and status < 400):
            fields = {
                "method": method,
                "route": route,
                "status": status,
                "duration_ms": round(seconds * 1000, 3),
            }
            logs.event(_log, "request", fields | scope["state"].get("log_fields", {}))


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def _method(scope: Scope) -> str:
    return scope["method"] if scope["method"] in _METHODS else "OTHER"


def _route(scope: Scope) -> str:
    """Return the template of a request's path, never the path."""
    route: str = scope["state"].get("route") or getattr(scope.get("route"), "path", "other")
    return route


async def answer(error: ApiError, send: Send) -> None:
    """Send an error as the whole answer, without a framework."""
    content = orjson.dumps(error.body())
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    headers += [(name.lower().encode(), value.encode("latin-1")) for name, value in error.headers.items()]
    await send({"type": "http.response.start", "status": error.answer_status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


async def _answer_api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return Response(
        orjson.dumps(error.body()), error.answer_status, headers=error.headers, media_type="application/json"
    )


def _unhandled() -> ApiError:
    return ApiError("The server had an error while processing your request.")


async def _answer_unhandled_error(request: Request, _: Exception) -> Response:
    return await _answer_api_error(request, _unhandled())  # it is raised again, and the front logs it


async def _answer_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first: dict[str, Any] = error.errors()[0]
    place = [str(part) for part in first["loc"] if part not in {"body", "query", "path", "header"}]
    param = ".".join(place) or None
    message = f"{param}: {first['msg']}" if param else str(first["msg"])
    return await _answer_api_error(request, BadRequest(message, param=param, code="invalid_value"))


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = (
        error.detail
        if error.detail != HTTPStatus(error.status_code).phrase
        else (f"{error.detail}: {request.method} {request.url.path}")
    )
    refusal = ApiError(
        message,
        status=error.status_code,
        type="invalid_request_error" if error.status_code < 500 else "server_error",
        code={404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code),
        headers=dict(error.headers or {}),
    )
    return await _answer_api_error(request, refusal)
