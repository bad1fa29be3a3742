"""What a request may generate: vLLM's checks on the sampling parameters, and the limit set by the context."""

from __future__ import annotations

import math
from dataclasses import dataclass

from darktree_simulator import tokenizer
from darktree_simulator.bodies import ChatRequest, CompletionRequest
from darktree_simulator.errors import EngineError, bad_request

MAXIMUM_N = 16384
MAXIMUM_LOGPROBS = 20
GREEDY_BELOW_TEMPERATURE = 1e-5


@dataclass(frozen=True)
class Sampling:
    """The checked parameters of one prompt."""

    n: int
    max_tokens: int
    min_tokens: int = 0
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    include_stop: bool = False
    seed: int | None = None
    logprobs: int | None = None
    """How many alternatives per token; None for no log probabilities at all."""


def check_request(request: ChatRequest | CompletionRequest) -> None:
    """What vLLM refuses before it looks at the model and the prompt. Raises `EngineError`."""
    if request.stream_options is not None and not request.stream:
        raise bad_request("Stream options can only be defined when `stream=True`.", "stream_options")
    if isinstance(request, CompletionRequest):
        if request.suffix:
            raise EngineError(
                400,
                "suffix is only supported for models with FIM completion rendering",
                "BadRequestError",
                "suffix",
            )
        return
    if request.top_logprobs and not request.logprobs:
        raise bad_request("when using `top_logprobs`, `logprobs` must be set to true.", "top_logprobs")
    if request.tools == []:
        raise bad_request(
            "`tools` must not be an empty array. Either provide at least one tool or omit the field entirely.",
            "tools",
        )
    if request.tools and request.tool_choice in {None, "auto"}:
        raise bad_request(
            '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
        )
    if request.tools and request.tool_choice == "required":
        raise bad_request('tool_choice="required" requires --tool-call-parser to be set')


def sampling(request: ChatRequest | CompletionRequest, prompt_tokens: int, context_length: int) -> Sampling:
    """The parameters for a prompt of `prompt_tokens`. Raises `EngineError`.

    A `max_tokens` that does not fit beside the prompt is cut down; only one beyond the whole context is refused.
    """
    max_tokens = _max_tokens(request, prompt_tokens, context_length)
    n = 1 if request.n is None else request.n
    _check_numbers(request, n)
    stop = _stop(request)
    if request.min_tokens < 0:
        raise bad_request(f"min_tokens must be greater than or equal to 0, got {request.min_tokens}.")
    if request.min_tokens > max_tokens:
        raise bad_request(
            f"min_tokens must be less than or equal to max_tokens={max_tokens}, got {request.min_tokens}."
        )
    return Sampling(
        n=n,
        max_tokens=max_tokens,
        min_tokens=request.min_tokens,
        ignore_eos=request.ignore_eos,
        stop=stop,
        stop_token_ids=frozenset(request.stop_token_ids or ()),
        include_stop=request.include_stop_str_in_output,
        seed=request.seed,
        logprobs=_logprobs(request),
    )


def _max_tokens(request: ChatRequest | CompletionRequest, prompt_tokens: int, context_length: int) -> int:
    name, asked = "max_tokens", request.max_tokens
    if isinstance(request, ChatRequest):
        if request.max_completion_tokens is not None:
            name, asked = "max_completion_tokens", request.max_completion_tokens
    elif asked is None:
        asked = 16
    if isinstance(request, CompletionRequest) and request.echo and asked == 0:
        # vLLM generates one token all the same, and counts it.
        asked = 1
    if asked is not None and asked > context_length:
        raise bad_request(
            f"{name}={asked} cannot be greater than max_model_len={context_length}. "
            "Please request fewer output tokens.",
            name,
            asked,
        )
    room = context_length - prompt_tokens
    limit = room if asked is None else min(asked, room)
    if limit < 1:
        raise bad_request(f"max_tokens must be at least 1, got {limit}.", "max_tokens", limit)
    return limit


def _check_numbers(request: ChatRequest | CompletionRequest, n: int) -> None:
    if n < 1:
        raise bad_request(f"n must be at least 1, got {n}.")
    if n > MAXIMUM_N:
        raise bad_request(
            f"n must be at most {MAXIMUM_N}, got {n}. To increase this limit, set the VLLM_MAX_N_SEQUENCES "
            "environment variable."
        )
    for name in ("presence_penalty", "frequency_penalty"):
        penalty = getattr(request, name)
        if penalty is not None and not -2.0 <= penalty <= 2.0:
            raise bad_request(f"{name} must be in [-2, 2], got {penalty}.")
    temperature = request.temperature
    if temperature is not None:
        _check_temperature(temperature)
        if n > 1 and temperature < GREEDY_BELOW_TEMPERATURE:
            raise bad_request(f"n must be 1 when using greedy sampling, got {n}.")
    if request.top_p is not None and not 0.0 < request.top_p <= 1.0:
        raise bad_request(f"top_p must be in (0, 1], got {request.top_p}.", "top_p", request.top_p)


def _check_temperature(temperature: float) -> None:
    if not math.isfinite(temperature):
        problem = f"must be a finite number, got {temperature}."
    elif temperature < 0.0:
        problem = f"must be non-negative, got {temperature}."
    elif temperature > 2.0:
        problem = f"must be in [0, 2], got {temperature}."
    else:
        return
    raise bad_request(f"temperature {problem}", "temperature", temperature)


def _stop(request: ChatRequest | CompletionRequest) -> tuple[str, ...]:
    stop = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    if "" in stop:
        raise bad_request("stop cannot contain an empty string.")
    return stop


def _logprobs(request: ChatRequest | CompletionRequest) -> int | None:
    if isinstance(request, ChatRequest):
        asked = (request.top_logprobs or 0) if request.logprobs else None
    else:
        asked = request.logprobs
    if asked is None:
        return None
    if asked == -1:
        asked = tokenizer.VOCABULARY_SIZE
    if asked > MAXIMUM_LOGPROBS:
        raise bad_request(
            f"Requested sample logprobs of {asked}, which is greater than max allowed: {MAXIMUM_LOGPROBS}",
            "logprobs",
            asked,
        )
    return max(asked, 0)
