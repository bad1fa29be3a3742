"""The errors of vLLM 0.32: `code` is the status as a number, `type` a class name or the phrase of the status.

EngineError
├── bad_request      400 BadRequestError, `param` names the parameter where vLLM does
├── invalid_body     400 Bad Request, what pydantic found in the body
├── model_not_found  404 NotFoundError
├── starting         503 Service Unavailable (the simulator's own: a vLLM that starts does not listen yet)
└── engine_failed    500 InternalServerError
"""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

MAXIMUM_REPORTED_ERRORS = 10
MAXIMUM_INPUT_CHARACTERS = 200


class EngineError(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, kind: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body: dict[str, Any] = {
            "error": {"message": message, "type": kind, "param": param, "code": status}
        }


def bad_request(message: str, param: str | None = None, value: object = None) -> EngineError:
    """A request that the engine refuses. vLLM appends the parameter, and its value when there is one."""
    if param is not None:
        shown = "" if value is None else f", value={value}"
        message = f"{message} (parameter={param}{shown})"
    return EngineError(400, message, "BadRequestError", param)


def invalid_body(errors: Sequence[dict[str, Any]]) -> EngineError:
    """What pydantic found wrong with the body; `loc` starts with "body"."""
    label = "error" if len(errors) == 1 else "errors"
    lines = [f"{len(errors)} validation {label}:"]
    lines += [f"  {_described(error)}" for error in errors[:MAXIMUM_REPORTED_ERRORS]]
    if len(errors) > MAXIMUM_REPORTED_ERRORS:
        lines.append(f"  ...and {len(errors) - MAXIMUM_REPORTED_ERRORS} more {label}")
    return EngineError(400, "\n".join(lines), HTTPStatus.BAD_REQUEST.phrase, _path(errors[0]["loc"]))


def unsupported_media_type() -> EngineError:
    message = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed"
    return EngineError(400, message, HTTPStatus.BAD_REQUEST.phrase)


def model_not_found(model: str, models: Sequence[str]) -> EngineError:
    message = f"The model `{model}` does not exist. Valid aliases: {', '.join(models)}."
    return EngineError(404, message, "NotFoundError", "model")


def starting() -> EngineError:
    return EngineError(503, "The engine is starting.", HTTPStatus.SERVICE_UNAVAILABLE.phrase)


def engine_failed() -> EngineError:
    return EngineError(500, "Internal server error", "InternalServerError")


def injected(status: int) -> EngineError:
    """The error that a fault asked for."""
    kind = "InternalServerError" if status >= 500 else HTTPStatus(status).phrase
    return EngineError(status, "Injected by a fault of the simulator", kind)


def _described(error: dict[str, Any]) -> str:
    shown = {name: error[name] for name in ("type", "loc", "msg", "input", "ctx") if name in error}
    shown["loc"] = _path(error["loc"])
    shown["input"] = _summarised(error.get("input"))
    return str(shown)


def _summarised(value: object) -> str:
    if isinstance(value, dict | list):
        return f"<{type(value).__name__} of {len(value)} items>"
    text = str(value)
    return (
        text if len(text) <= MAXIMUM_INPUT_CHARACTERS else f"{text[:MAXIMUM_INPUT_CHARACTERS]}...[truncated]"
    )


def _path(location: Sequence[str | int]) -> str:
    # The branches of a union ("list[str]", "str") are pydantic's, not the caller's.
    parts = [str(part) for part in location]
    return ".".join(part for part in parts if not _is_internal(part))


def _is_internal(part: str) -> bool:
    return any(bracket in part for bracket in "[]{}()") or part in {"str", "int", "list", "dict"}
