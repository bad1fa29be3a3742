"""What the gateway refuses, in OpenAI's words; and engines' errors, translated.

    ApiError
    ├── BadRequest
    │   └── ContextLengthExceeded   400 context_length_exceeded
    ├── NotFound
    │   ├── ModelNotFound           404 model_not_found
    │   └── NotServedHere           404 endpoint_not_supported
    ├── TooManyRequests
    │   ├── InFlightLimitExceeded   429 tokens / in_flight_limit_exceeded
    │   ├── RequestLimitReached     429 requests / rate_limit_exceeded
    │   ├── TooManyCounts           429 requests / rate_limit_exceeded
    │   ├── DailyCapReached         429 tokens / rate_limit_exceeded
    │   └── CreditExhausted         429 insufficient_quota / credit_balance_exhausted
    ├── Unavailable
    │   ├── LaneUnavailable         503 lane_unavailable
    │   └── MeteringUnavailable     503 metering_unavailable
    └── EngineError                 502 server_error / engine_error

What engines answer is vLLM's entrypoints/serve/exception_handling.
"""

from math import ceil
from typing import Any

import orjson

from darktree_kit.errors import ApiError, BadRequest, NotFound, TooManyRequests, Unavailable

MAX_ENGINE_MESSAGE_LENGTH = 1_000
LANE_RETRY_SECONDS = 5
METERING_RETRY_SECONDS = 1
IN_FLIGHT_RETRY_SECONDS = 1
WORTH_WAITING_SECONDS = 120  # OpenAI's clients never wait longer for a Retry-After


class ContextLengthExceeded(BadRequest):
    code = "context_length_exceeded"

    @classmethod
    def of(cls, context_tokens: int, prompt_tokens: int, param: str) -> "ContextLengthExceeded":
        """The prompt leaves no room for an answer in the model's context."""
        what = "messages" if param == "messages" else "prompt"
        return cls(
            f"This model's maximum context length is {context_tokens} tokens. However, your {what} resulted in "
            f"{prompt_tokens} tokens. Please reduce the length of the {what}.",
            param=param,
        )


class ModelNotFound(NotFound):
    code = "model_not_found"

    def __init__(self, model: str) -> None:
        super().__init__(
            f"The model `{model[:200]}` does not exist or you do not have access to it.", param="model"
        )


class NotServedHere(NotFound):
    """The engine has no such endpoint: one that embeds does not generate, and the other way round."""

    code = "endpoint_not_supported"

    def __init__(self, model: str) -> None:
        super().__init__(
            f"The model `{model[:200]}` does not serve this endpoint: a model either generates or embeds.",
            param="model",
        )


class InFlightLimitExceeded(TooManyRequests):
    type = "tokens"
    code = "in_flight_limit_exceeded"

    def __init__(self) -> None:
        super().__init__(
            "What is left of your daily cap or credits is held by your own running requests. It is released as "
            "they finish; please try again then.",
            headers={"Retry-After": str(IN_FLIGHT_RETRY_SECONDS)},
        )


class TooManyCounts(TooManyRequests):
    type = "requests"

    def __init__(self) -> None:
        super().__init__(
            "Too many of your prompts are being counted. Please try again in 1s.",
            headers={"Retry-After": str(IN_FLIGHT_RETRY_SECONDS)},
        )


class RequestLimitReached(TooManyRequests):
    """The key's own limit of requests, in a minute or at once."""

    type = "requests"

    @classmethod
    def in_a_minute(cls, limit: int, wait_seconds: float, headers: dict[str, str]) -> "RequestLimitReached":
        """The key's minute is used up until then."""
        wait = precise_duration(wait_seconds)
        after = {"Retry-After": str(ceil(wait_seconds)), "retry-after-ms": str(ceil(wait_seconds * 1000))}
        message = (
            f"Rate limit reached on requests per minute (RPM): Limit {limit}. Please try again in {wait}."
        )
        return cls(message, headers=headers | after)

    @classmethod
    def at_once(cls, limit: int, headers: dict[str, str]) -> "RequestLimitReached":
        """So many of the key's requests are running."""
        return cls(
            f"Rate limit reached on concurrent requests: Limit {limit}, Running {limit}. Please try again when one has "
            "finished.",
            headers=headers | {"Retry-After": str(IN_FLIGHT_RETRY_SECONDS)},
        )


class DailyCapReached(TooManyRequests):
    type = "tokens"

    def __init__(
        self, model: str, *, cap: int, used: int, requested: int, never_fits: bool, reset_seconds: int
    ) -> None:
        facts = f"Limit {cap}, Used {used}, Requested {requested}"
        message = f"Rate limit reached for {model} on tokens per day (TPD): {facts}. "
        if never_fits:
            message += "The prompt and the shortest answer are more than a whole day's limit."
            super().__init__(message, headers={"x-should-retry": "false"})
            return
        message += f"Please try again in {go_duration(reset_seconds)}, at 00:00 UTC."
        headers = {"Retry-After": str(reset_seconds)}
        if reset_seconds > WORTH_WAITING_SECONDS:
            headers["x-should-retry"] = "false"
        super().__init__(message, headers=headers)


class CreditExhausted(TooManyRequests):
    type = "insufficient_quota"
    code = "credit_balance_exhausted"

    def __init__(self) -> None:
        super().__init__(
            "Your credit balance does not cover this request. Please add credits; retrying will not restore access.",
            headers={"x-should-retry": "false"},
        )


class LaneUnavailable(Unavailable):
    code = "lane_unavailable"

    def __init__(
        self,
        message: str = "The model is starting or at capacity. Please try again shortly.",
        *,
        retry_seconds: int | None = None,
    ) -> None:
        super().__init__(message, headers={"Retry-After": str(retry_seconds or LANE_RETRY_SECONDS)})


class MeteringUnavailable(Unavailable):
    code = "metering_unavailable"

    def __init__(self) -> None:
        super().__init__(
            "Usage cannot be metered at the moment, so nothing is served. Please try again shortly.",
            headers={"Retry-After": str(METERING_RETRY_SECONDS)},
        )


class EngineError(ApiError):
    """The engine failed, or answered what cannot be understood or metered."""

    status = 502
    code = "engine_error"

    def __init__(self, message: str = "The model failed while it processed your request.") -> None:
        super().__init__(message)


def of_engine(status: int, error: Any, *, model: str, prompt_param: str) -> ApiError:
    """Return an engine's refusal as OpenAI would put it. `error` is the decoded body, or what is under `error`.

    vLLM's own have an integer `code` and the name of a Python class as `type`; clients know neither.
    """
    detail = error.get("error", error) if isinstance(error, dict) else error
    message, param = "", None
    if isinstance(detail, dict):
        message, param = str(detail.get("message") or ""), detail.get("param")
        if status == 200:  # an event in the middle of a stream: the status is inside
            status = detail["code"] if isinstance(detail.get("code"), int) else 500
    elif isinstance(detail, str):
        message = detail
    message = message[:MAX_ENGINE_MESSAGE_LENGTH] or "The model refused this request."
    if status == 404:
        return (
            ModelNotFound(model) if isinstance(detail, dict) and "message" in detail else NotServedHere(model)
        )
    if status in {429, 503}:
        return LaneUnavailable()
    if status in {400, 413, 422, 501}:
        if "context length" in message:
            return ContextLengthExceeded(message, param=prompt_param)
        place = param.removeprefix("body.") if isinstance(param, str) else None
        return BadRequest(message, param=place, code="invalid_value")
    return EngineError()


def decoded(content: bytes) -> Any:
    """Return a JSON body, or its text when it is none."""
    try:
        return orjson.loads(content)
    except ValueError:
        return content.decode("utf-8", "replace")


def go_duration(seconds: int) -> str:
    """Return seconds as OpenAI's rate-limit headers write them: `8h12m3s`."""
    minutes, rest = divmod(max(0, seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def precise_duration(seconds: float) -> str:
    """Return seconds as Go writes them, to the millisecond: `1m2.5s`, `120ms`, `0s`."""
    milliseconds = ceil(seconds * 1000)
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    text = f"{rest / 1000:g}s"
    return f"{minutes}m{text}" if minutes else text
