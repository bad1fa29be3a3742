"""The batch endpoint, `POST /v1/operations`, as plain ASGI: every request of every gateway waits for it twice.

A framework's routing, dependencies and body cost three times what the batch itself does. The body is read by pydantic's
own JSON parser, which is strict about types; the database's answer goes out as it came.
"""

import logging
from typing import Any

import psycopg
from fastapi import FastAPI
from pydantic import ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

from darktree_kit.auth import Callers
from darktree_kit.errors import BadRequest, Forbidden, TooLarge, Unavailable
from darktree_kit.openapi import refusals
from darktree_ledger import metrics, operations
from darktree_ledger.schemas import OPERATIONS, RESULTS, Operation

PATH = "/v1/operations"
MAX_BODY_BYTES = 2 * 1024 * 1024

# Which operations each caller may send: the gateway meters, billing administers.
_VERBS = {
    "gateway": frozenset({"hold", "renew", "settle", "void", "show"}),
    "billing": frozenset({"open", "grant", "adjust", "claw_back", "reinstate", "post", "cap", "show"}),
}
_log = logging.getLogger(__name__)


class Batches:
    """Answers the batch endpoint and lets everything else through. Refusals are answered by the kit's front."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != PATH or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        scope["state"] |= {"route": PATH, "quiet": True}  # each request has its line in the gateway's log
        state = scope["app"].state
        callers: Callers = state.callers
        caller = callers.name_of(_authorization(scope))
        batch = _parse(await _body(receive))
        for operation in batch:
            if operation.op not in _VERBS[caller]:
                raise Forbidden(f"{caller} may not {operation.op}.", param="op")
        try:
            results = await operations.apply(state.calls, batch)
        except psycopg.Error as error:
            _log.warning("the database did not answer", extra={"error": str(error)[:500]})
            raise Unavailable("The ledger's database is away.", headers={"Retry-After": "1"}) from error
        metrics.BATCH_OPERATIONS.observe(len(batch))
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(results)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": results})


def describe(app: FastAPI) -> None:
    """Put the endpoint, which FastAPI never sees, into the OpenAPI description."""
    describe_rest = app.openapi

    def with_operations() -> dict[str, Any]:
        schema = describe_rest()
        schemas = schema.setdefault("components", {}).setdefault("schemas", {})
        for name, adapter in (("Operations", OPERATIONS), ("Results", RESULTS)):
            described = adapter.json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(described.pop("$defs", {}))
            schemas[name] = described
        refused = {
            str(status): {"description": about["description"], "content": _content("ErrorBody")}
            for status, about in refusals(400, 401, 403, 413, 503).items()
        }
        schema["paths"][PATH] = {
            "post": {
                "summary": "Apply operations, in order and in one transaction, with one result for each",
                "operationId": "apply_operations",
                "requestBody": {"required": True, "content": _content("Operations")},
                "responses": {
                    "200": {"description": "One result for each.", "content": _content("Results")},
                    **refused,
                },
            }
        }
        return schema

    app.openapi = with_operations  # type: ignore[method-assign]


def _authorization(scope: Scope) -> str | None:
    return next(
        (value.decode("latin-1") for name, value in scope["headers"] if name == b"authorization"), None
    )


async def _body(receive: Receive) -> bytes:
    content = bytearray()
    while True:
        message = await receive()
        content += message.get("body", b"")
        if len(content) > MAX_BODY_BYTES:
            raise TooLarge(f"A batch may have at most {MAX_BODY_BYTES} bytes.")
        if not message.get("more_body"):
            return bytes(content)


def _parse(content: bytes) -> list[Operation]:
    try:
        return OPERATIONS.validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or None
        message = f"{place or 'body'}: {first['msg']}"
        raise BadRequest(message, param=place, code="invalid_value") from error


def _content(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
