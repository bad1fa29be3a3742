"""Stripe's errors, with its types, codes, statuses and words (docs.stripe.com/api/errors).

Refusal
├── invalid_request_error   400 a parameter, 401 the key, 404 no such object or URL
├── idempotency_error       400 the same key with other parameters
├── card_error              402 the card said no
├── rate_limit              429
└── api_error               500 something went wrong on Stripe's end
"""

from collections.abc import Sequence
from typing import Any

INVALID_REQUEST = "invalid_request_error"


class Refusal(Exception):
    """An answer that is an error. `executed`: it is the result of the request, which its idempotency key keeps."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        type: str = INVALID_REQUEST,
        code: str | None = None,
        param: str | None = None,
        executed: bool = True,
        **more: Any,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.executed = executed
        self.error: dict[str, Any] = {"message": message, "type": type}
        if code is not None:
            self.error |= {"code": code, "doc_url": doc_url(code)}
        if param is not None:
            self.error["param"] = param
        self.error |= more


def doc_url(code: str) -> str:
    return f"https://docs.stripe.com/error-codes#{code.replace('_', '-')}"


def unknown_parameters(names: Sequence[str]) -> Refusal:
    noun = "parameter" if len(names) == 1 else "parameters"
    return _refused(f"Received unknown {noun}: {', '.join(names)}", "parameter_unknown", names[0])


def missing_parameter(name: str) -> Refusal:
    return _refused(f"Missing required param: {name}.", "parameter_missing", name)


def empty_parameter(name: str) -> Refusal:
    return _refused(
        f"You passed an empty string for '{name}'. We assume empty values are an attempt to unset a parameter; "
        f"however '{name}' cannot be unset. You should remove '{name}' from your request or supply a non-empty "
        "value.",
        "parameter_invalid_empty",
        name,
    )


def invalid_parameter(message: str, name: str, code: str | None = None) -> Refusal:
    return _refused(message, code, name)


def not_found(kind: str, id: str, param: str = "id") -> Refusal:
    """No such object. Stripe names a session by its object's whole name, `checkout.session`."""
    return _refused(f"No such {kind}: '{id}'", "resource_missing", param, status=404)


def unknown_url(method: str, path: str) -> Refusal:
    return _refused(
        f"Unrecognized request URL ({method}: {path}). The stand-in has the parts of Stripe's API that its README "
        "names; see https://docs.stripe.com/api for all of it.",
        None,
        None,
        status=404,
    )


def no_key() -> Refusal:
    return _refused(
        "You did not provide an API key. You need to provide your API key in the Authorization header, using Bearer "
        "auth (e.g. 'Authorization: Bearer YOUR_SECRET_KEY').",
        None,
        None,
        status=401,
    )


def wrong_key(key: str) -> Refusal:
    shown = f"{key[:8]}{'*' * max(len(key) - 12, 0)}{key[-4:]}" if len(key) > 12 else "*" * len(key)
    return _refused(f"Invalid API Key provided: {shown}", None, None, status=401)


def wrong_version(version: str, known: str) -> Refusal:
    return _refused(
        f"Invalid Stripe API version: {version}. The stand-in speaks {known} and no other.", None, None
    )


def other_parameters(key: str) -> Refusal:
    return Refusal(
        "Keys for idempotent requests can only be used with the same parameters they were first used with. Try "
        f"using a key other than '{key}' if you meant to execute a different request.",
        type="idempotency_error",
        executed=False,
    )


def injected(status: int) -> Refusal:
    """The error that a fault asked for."""
    if status == 429:
        return Refusal(
            "Too many requests. A fault of the stand-in asked for it.",
            status=429,
            code="rate_limit",
            executed=False,
        )
    return Refusal(
        "An error occurred. A fault of the stand-in asked for it.",
        status=status,
        type="api_error",
        executed=False,
    )


def _refused(message: str, code: str | None, param: str | None, status: int = 400) -> Refusal:
    return Refusal(message, status=status, code=code, param=param, executed=False)
