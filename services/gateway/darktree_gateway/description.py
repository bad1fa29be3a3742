"""What the gateway's OpenAPI description says of the completions, which FastAPI does not route."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI

from darktree_gateway import fields, requests
from darktree_kit.openapi import refusals

_REFUSALS = (400, 401, 403, 404, 413, 429, 503)
_HEADERS = {
    "x-request-id": "The request's id; its charge is found by it under /v1/usage/{request_id}.",
    "x-darktree-entry-id": "The id of the ledger entry that charges this answer.",
    "x-darktree-lane": "The lane that served.",
    "x-darktree-max-tokens": "What an answer could have at most, when that is not what the request asked for.",
    "x-darktree-clamped-max-tokens": "What an answer could have at most, when that was less than was asked for.",
    "x-ratelimit-limit-tokens": "The daily cap.",
    "x-ratelimit-remaining-tokens": "What is left of the cap, less what running requests hold.",
    "x-ratelimit-reset-tokens": "Until 00:00 UTC, such as 8h12m3s.",
}
_DESCRIBED: tuple[tuple[str, requests.Endpoint, str, str], ...] = (
    ("/v1/chat/completions", "chat", "Answer a chat", "messages"),
    ("/v1/completions", "completions", "Complete a prompt", "prompt"),
    ("/v1/responses", "responses", "Make a response", "input"),
    ("/v1/embeddings", "embeddings", "Embed texts", "input"),
)
_ASKED = "Why do trees lose their leaves?"
EXAMPLES: Mapping[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "model": "qwen25-14b-awq",
        "messages": [{"role": "user", "content": _ASKED}],
        "max_completion_tokens": 60,
    },
    "/v1/completions": {
        "model": "qwen25-14b-awq",
        "prompt": "Trees lose their leaves because",
        "max_tokens": 60,
    },
    "/v1/responses": {"model": "qwen25-14b-awq", "input": _ASKED, "max_output_tokens": 60},
    "/v1/embeddings": {"model": "qwen3-embedding", "input": [_ASKED, "Evergreens keep theirs."]},
}


def describe_completions(app: FastAPI) -> None:
    """Add the completions to the application's own description."""
    describe_rest = app.openapi

    def describe() -> dict[str, Any]:
        schema = describe_rest()
        schema["paths"] |= {
            path: {"post": _operation(summary, prompt, requests.CHECKS[endpoint], EXAMPLES[path])}
            for path, endpoint, summary, prompt in _DESCRIBED
        }
        return schema

    app.openapi = describe  # type: ignore[method-assign]


def _operation(
    summary: str, prompt: str, checks: Mapping[str, fields.Check], example: dict[str, Any]
) -> dict[str, Any]:
    properties: dict[str, Any] = {name: {} for name in checks}
    properties["model"] = {"type": "string"}
    content: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
    if "stream" in checks:
        properties["stream"] = {"type": "boolean", "default": False}
        content["text/event-stream"] = {"schema": {"type": "string"}}
    body = {
        "type": "object",
        "required": ["model", prompt],
        "properties": properties,
        "additionalProperties": False,
    }
    answers: dict[str, Any] = {
        "200": {
            "description": "The answer with its usage, as OpenAI gives it; server-sent events when `stream` is true.",
            "headers": {
                name: {"description": text, "schema": {"type": "string"}} for name, text in _HEADERS.items()
            },
            "content": content,
        }
    }
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}
    for status, described in refusals(*_REFUSALS).items():
        answers[str(status)] = {"description": described["description"], "content": error}
    answers["415"] = {"description": "Only plain JSON is read.", "content": error}
    answers["502"] = {"description": "The engine failed; nothing was charged.", "content": error}
    return {
        "summary": summary,
        "tags": ["completions"],
        "security": [{"HTTPBearer": []}],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": body, "example": example}},
        },
        "responses": answers,
    }
