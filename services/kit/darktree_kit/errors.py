"""Errors that know how they are answered.

Every refusal of a Darktree service is one of these, and leaves it in OpenAI's shape
`{"error": {"message", "type", "param", "code"}}`, so that one client library understands them all.

    ApiError
    ├── BadRequest      400   the request itself is wrong
    ├── Unauthorized    401   no credentials, or wrong ones
    ├── Forbidden       403   known, but not allowed
    ├── NotFound        404
    ├── Conflict        409   the same id came with another body; `param` names the field
    ├── TooLarge        413
    ├── TooManyRequests 429
    └── Unavailable     503   try again later
        └── Unreachable 503   a service that this one needs did not answer
"""

from collections.abc import Mapping
from typing import Any, ClassVar


class ApiError(Exception):
    """A refusal with the status, type, code and headers it is answered with."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = None

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        type: str | None = None,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.answer_status = status or self.status
        self.answer_type = type or self.type
        self.answer_code = code or self.code
        self.param = param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """Return the answer's body, in OpenAI's shape."""
        return {
            "error": {
                "message": self.message,
                "type": self.answer_type,
                "param": self.param,
                "code": self.answer_code,
            }
        }


class BadRequest(ApiError):
    status = 400
    type = "invalid_request_error"


class Unauthorized(ApiError):
    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message, **details)
        self.headers.setdefault("WWW-Authenticate", 'Bearer realm="darktree"')


class Forbidden(ApiError):
    status = 403
    type = "invalid_request_error"
    code = "forbidden"


class NotFound(ApiError):
    status = 404
    type = "invalid_request_error"
    code = "not_found"


class Conflict(ApiError):
    status = 409
    type = "invalid_request_error"
    code = "conflict"

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message, **details)
        # OpenAI's clients retry a 409; repeating a conflict cannot mend it.
        self.headers.setdefault("x-should-retry", "false")


class TooLarge(ApiError):
    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


class TooManyRequests(ApiError):
    status = 429
    type = "requests"
    code = "rate_limit_exceeded"


class Unavailable(ApiError):
    status = 503
    type = "service_unavailable_error"
    code = "unavailable"


class Unreachable(Unavailable):
    code = "service_unreachable"
