"""The bodies that vLLM accepts, read as leniently and refused as strictly as vLLM does it.

A field that is not named here is ignored, as vLLM ignores what it does not know.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, ValidationError

from darktree_simulator.errors import EngineError, invalid_body, unsupported_media_type

INT64 = Field(ge=-(2**63), le=2**63 - 1)

Body = TypeVar("Body", bound=BaseModel)


class StreamOptions(BaseModel):
    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class FunctionCall(BaseModel):
    name: str
    arguments: str | dict[str, Any] | None = None


class ToolCall(BaseModel):
    function: FunctionCall


class Message(BaseModel):
    role: str
    content: str | list[dict[str, Any]] | None = None
    tool_calls: list[ToolCall] | None = None


class SamplingFields(BaseModel):
    """What chat and plain completions share."""

    model: str | None = None
    max_tokens: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: Annotated[int, INT64] | None = None
    stop: str | list[str] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: int = 0
    request_id: str | None = None


class ChatRequest(SamplingFields):
    messages: list[Message]
    max_completion_tokens: int | None = None
    n: int | None = 1
    logprobs: bool | None = False
    top_logprobs: int | None = 0
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False


class CompletionRequest(SamplingFields):
    prompt: list[int] | list[list[int]] | str | list[str] | None = None
    max_tokens: int | None = 16
    n: int = 1
    logprobs: int | None = None
    echo: bool | None = False
    suffix: str | None = None


class TokenizeRequest(BaseModel):
    """A prompt or a conversation; which one is decided by the key that is there."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    tools: list[dict[str, Any]] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    return_token_strs: bool | None = False


class DetokenizeRequest(BaseModel):
    model: str | None = None
    tokens: list[Annotated[int, Field(ge=0)]]


def parse(body_type: type[Body], content_type: str, body: bytes) -> Body:
    """Read a body. Raises `EngineError` in vLLM's words."""
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise unsupported_media_type()
    content = _json(body)
    if not isinstance(content, dict):
        raise _not_an_object(content)
    try:
        # FastAPI validates from attributes, which words the errors about nested objects.
        return body_type.model_validate(content, from_attributes=True)
    except ValidationError as error:
        found = error.errors(include_url=False)
        raise invalid_body([{**item, "loc": ("body", *item["loc"])} for item in found]) from None


def missing(*names: str) -> EngineError:
    """The answer to a body that has none of the fields of which it needs one."""
    fields = [
        {"type": "missing", "loc": ("body", name), "msg": "Field required", "input": {}} for name in names
    ]
    return invalid_body(fields)


def _json(body: bytes) -> object:
    if not body:
        return None
    try:
        return json.loads(body)
    except json.JSONDecodeError as error:
        found = {
            "type": "json_invalid",
            "loc": ("body", error.pos),
            "msg": "JSON decode error",
            "input": {},
            "ctx": {"error": error.msg},
        }
        raise invalid_body([found]) from None
    except (UnicodeDecodeError, RecursionError):
        refusal = EngineError(400, "", "")
        refusal.body = {"detail": "There was an error parsing the body"}
        raise refusal from None


def _not_an_object(content: object) -> EngineError:
    if content is None:
        return invalid_body([{"type": "missing", "loc": ("body",), "msg": "Field required", "input": None}])
    message = "Input should be a valid dictionary or object to extract fields from"
    return invalid_body(
        [{"type": "model_attributes_type", "loc": ("body",), "msg": message, "input": content}]
    )
