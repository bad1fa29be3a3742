"""What an OpenAPI description says about refusals: all of them, in the one shape they have.

FastAPI describes a 422 that no Darktree service ever answers; `create_app` removes it.
"""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

_MEANING = {
    400: "The request itself is wrong; `param` names the field.",
    401: "No credentials, or wrong ones.",
    403: "Known, but not allowed.",
    404: "There is no such thing.",
    409: "It exists already, or the same id came with another body; `param` names the field.",
    413: "The request is too large.",
    429: "Too much for now.",
    503: "Try again later: something this service needs did not answer.",
}


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Every refusal's body, in OpenAI's shape."""

    error: ErrorDetail


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the `responses=` of an endpoint or router that may refuse with these statuses."""
    return {status: {"model": ErrorBody, "description": _MEANING[status]} for status in statuses}


def describe_refusals(app: FastAPI) -> None:
    """Let the application's own description leave out the 422 that it never answers."""

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title, version=app.version, description=app.description, routes=app.routes
            )
            for path in schema.get("paths", {}).values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
            for name in ("HTTPValidationError", "ValidationError"):
                schema.get("components", {}).get("schemas", {}).pop(name, None)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = describe  # type: ignore[method-assign]
