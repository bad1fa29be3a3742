"""What a customer asks for, checked and understood before anything is reserved or sent.

The decoded body becomes the engine's: fields that only the gateway understands are taken out, and the engine is
always told to stream with usage on every event, because then it is known at any moment what was generated.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson

from darktree_gateway import constraints, fields, prompts
from darktree_gateway.responses import request as responses
from darktree_kit.errors import ApiError, BadRequest, TooLarge

MAX_BODY_BYTES = 4 * 1024 * 1024
MAX_COMPLETIONS = 1_024  # n times prompts
MAX_INPUTS = 2_048  # of one request for embeddings, as OpenAI bounds it
MAX_DEPTH = 254  # what orjson writes
MAX_MODEL_LENGTH = 256
OPENAI_COMPLETION_TOKENS = 16  # what /v1/completions generates when nothing is said

Endpoint = Literal["chat", "completions", "embeddings", "responses"]
CHECKS: dict[Endpoint, Mapping[str, fields.Check]] = {
    "chat": fields.CHAT,
    "completions": fields.COMPLETIONS,
    "embeddings": fields.EMBEDDINGS,
    "responses": responses.CHECKS,
}
_PROMPTS = {"chat": "messages", "completions": "prompt", "embeddings": "input"}


@dataclass(slots=True)
class Ask:
    """One request. `body` is what the engine is sent, but for `max_tokens`, which admission decides.

    Where nothing is generated, `max_tokens` is 0.
    """

    endpoint: Endpoint  # of the engine: a response is asked of it as a chat
    body: dict[str, Any]
    model: str
    stream: bool
    include_usage: bool
    continuous_usage: bool
    answers_per_prompt: int
    max_tokens: int | None
    prompt_tokens: list[int] = field(default_factory=list)  # of each prompt: a bound, or a count if `exact`
    exact: bool = False
    must_count: bool = False  # nothing is known of how it renders: the bound means nothing
    said: dict[str, Any] | None = None  # of a response: what it says again of its request

    @property
    def answers(self) -> int:
        return self.answers_per_prompt * len(self.prompt_tokens)

    @property
    def prompt_param(self) -> str:
        """The field that has the prompt, as the customer calls it."""
        return "input" if self.said is not None else _PROMPTS[self.endpoint]

    @property
    def prompt(self) -> Any:
        return self.body[_PROMPTS[self.endpoint]]


def read(content: bytes, endpoint: Endpoint) -> Ask:
    """Return what a body asks for. Raises BadRequest naming the field that is wrong."""
    body = _decode(content)
    checks = CHECKS[endpoint]
    for name in [name for name, value in body.items() if value is None]:
        if name not in checks:
            raise fields.unknown(name)
        del body[name]  # null means: as if it were not there
    for name, value in body.items():
        check = checks.get(name)
        if check is None:
            raise fields.unknown(name)
        check(name, value)
    said = None
    if endpoint == "responses":
        body, said = responses.as_chat(body)
        endpoint = "chat"
    ask = _understand(body, endpoint)
    ask.said = said
    for name in fields.NOT_FORWARDED & body.keys():
        del body[name]
    if endpoint == "embeddings":
        return ask
    body["stream"] = True
    body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    return ask


def endpoint_of(content: bytes) -> Endpoint:
    """Return for which endpoint a body was made: only a chat has messages."""
    return "chat" if "messages" in _decode(content) else "completions"


def encode(ask: Ask, max_tokens: int, cache_salt: str | None) -> bytes:
    """Return the body for the engine, which may generate `max_tokens` for each answer."""
    body = ask.body
    if ask.endpoint != "embeddings":
        body["max_tokens"] = max_tokens
    if body.get("min_tokens", 0) > max_tokens:
        body["min_tokens"] = max_tokens
    if cache_salt is not None:
        body["cache_salt"] = cache_salt
    return orjson.dumps(body)


def check_headers(headers: list[tuple[bytes, bytes]]) -> None:
    """Raise what refuses a body that is not plain JSON, or too large by its own word."""
    content_type = b""
    for name, value in headers:
        if name == b"content-type":
            content_type = value
        elif name == b"content-encoding" and value.strip().lower() not in {b"", b"identity"}:
            raise _unsupported_media("Send the body without a Content-Encoding.")
        elif name == b"content-length" and (not value.isdigit() or int(value[:20]) > MAX_BODY_BYTES):
            raise too_large()
    if content_type.partition(b";")[0].strip().lower() != b"application/json":
        raise _unsupported_media("Unsupported Content-Type: send application/json.")


def too_large() -> TooLarge:
    return TooLarge(f"The request's body is larger than {MAX_BODY_BYTES} bytes.")


def _unsupported_media(message: str) -> ApiError:
    return ApiError(message, status=415, type="invalid_request_error", code="unsupported_media_type")


def _decode(content: bytes) -> dict[str, Any]:
    try:
        body = orjson.loads(content)
        if content.count(b"[") + content.count(b"{") > MAX_DEPTH:
            orjson.dumps(body)  # perhaps nested deeper than can be written again
    except orjson.JSONDecodeError as error:
        raise BadRequest(
            "We could not parse the JSON body of your request. (HINT: This likely means you aren't using your HTTP "
            f"library correctly. The API expects a JSON payload, and what was sent is not valid JSON: {error.msg}.)",
            code="invalid_json",
        ) from error
    except orjson.JSONEncodeError as error:
        raise BadRequest(
            f"The request's body is nested deeper than {MAX_DEPTH} levels.", code="invalid_json"
        ) from error
    if type(body) is not dict:
        raise BadRequest("The JSON body of your request has to be an object.", code="invalid_json")
    return body


def _understand(body: dict[str, Any], endpoint: Endpoint) -> Ask:
    model = body.get("model")
    if model is None:
        raise fields.missing("model")
    if type(model) is not str or not 0 < len(model) <= MAX_MODEL_LENGTH:
        raise fields.wrong_type("model", f"a string of at most {MAX_MODEL_LENGTH} characters", model)
    stream = body.get("stream", False)
    include_usage, continuous_usage = _stream_options(body.get("stream_options"), stream)
    answers = body.get("n", 1)
    if body.get("best_of", answers) != answers:
        raise fields.unsupported("best_of", "It must be equal to 'n' when it is sent.")
    ask = Ask(
        endpoint=endpoint,
        body=body,
        model=model,
        stream=stream,
        include_usage=include_usage,
        continuous_usage=continuous_usage,
        answers_per_prompt=answers,
        max_tokens=_max_tokens(body, endpoint),
    )
    if ask.max_tokens is not None and body.get("min_tokens", 0) > ask.max_tokens:
        raise fields.wrong_value("min_tokens", "it is more than the tokens that may be generated.")
    if endpoint == "embeddings":
        _read_embedding(ask)
        return ask
    constraints.check(body)
    if endpoint == "chat":
        _read_chat(ask)
    else:
        _read_completion(ask)
    if ask.answers > MAX_COMPLETIONS:
        raise fields.wrong_value("n", f"more than {MAX_COMPLETIONS} answers to one request.")
    return ask


def _read_chat(ask: Ask) -> None:
    body = ask.body
    if "messages" not in body:
        raise fields.missing("messages")
    bound, uncertain = prompts.bound_of_messages(body["messages"])
    ask.prompt_tokens = [bound]
    ask.must_count = uncertain or any(
        body.get(name) for name in ("tools", "chat_template_kwargs", "reasoning_effort")
    )
    if "tool_choice" in body and type(body["tool_choice"]) not in {str, dict}:
        raise fields.wrong_type("tool_choice", "a string or an object", body["tool_choice"])
    if body.get("top_logprobs") and not body.get("logprobs"):
        raise fields.wrong_value("top_logprobs", "it needs 'logprobs' to be true.")


def _read_completion(ask: Ask) -> None:
    if "prompt" not in ask.body:
        raise fields.missing("prompt")
    ask.prompt_tokens, ask.exact = prompts.bounds_of_prompt(ask.prompt)


def _read_embedding(ask: Ask) -> None:
    if "input" not in ask.body:
        raise fields.missing("input")
    ask.prompt_tokens, ask.exact = prompts.bounds_of_prompt(ask.prompt, "input", MAX_INPUTS)


def _max_tokens(body: dict[str, Any], endpoint: Endpoint) -> int | None:
    if endpoint == "embeddings":
        return 0
    if endpoint == "completions":
        given: int = body.get("max_tokens", OPENAI_COMPLETION_TOKENS)
        return given
    old, new = body.get("max_tokens"), body.get("max_completion_tokens")
    if old is not None and new is not None and old != new:
        raise fields.wrong_value(
            "max_tokens", "it and 'max_completion_tokens' are both set, and differ. Set only one of them."
        )
    limit: int | None = old if new is None else new
    return limit


def _stream_options(options: Any, stream: bool) -> tuple[bool, bool]:
    if options is None:
        return False, False
    fields.mapping("stream_options", options)
    if not stream:
        raise fields.wrong_value("stream_options", "it is only allowed when 'stream' is true.")
    chosen = {}
    for name, value in options.items():
        if name not in {"include_usage", "continuous_usage_stats", "include_obfuscation"}:
            raise fields.unknown(f"stream_options.{name}")
        if value is not None:
            fields.boolean(f"stream_options.{name}", value)
        chosen[name] = bool(value)
    include_usage = chosen.get("include_usage", False)
    return include_usage, include_usage and chosen.get("continuous_usage_stats", False)
