"""What a request's fields may hold: one check for each field that is understood, and nothing else passes.

A field that is not listed here is refused, so that no parameter of an engine can change the bill unseen. Messages and
codes are OpenAI's.
"""

from collections.abc import Callable, Mapping
from typing import Any

from darktree_kit.errors import BadRequest

MAX_ANSWERS = 128  # n, as OpenAI bounds it
MAX_STOPS = 16
MAX_LIST_LENGTH = 4_096
MAX_TEXT_LENGTH = 65_536
MAX_INTEGER = 2**63 - 1

Check = Callable[[str, Any], None]

_JSON_TYPES = {
    dict: "an object", list: "an array", str: "a string", bool: "a boolean", int: "an integer", float: "a decimal",
    type(None): "null",
}  # fmt: skip


def wrong_type(name: str, expected: str, value: Any) -> BadRequest:
    got = _JSON_TYPES.get(type(value), "something else")
    return BadRequest(
        f"Invalid type for '{name}': expected {expected}, but got {got} instead.",
        param=name,
        code="invalid_type",
    )


def wrong_value(name: str, message: str, code: str = "invalid_value") -> BadRequest:
    return BadRequest(f"Invalid '{name}': {message}", param=name, code=code)


def unknown(name: str) -> BadRequest:
    shown = name if len(name) <= 64 and name.isprintable() else name[:64].encode("unicode_escape").decode()
    return BadRequest(f"Unknown parameter: '{shown}'.", param=shown, code="unknown_parameter")


def missing(name: str) -> BadRequest:
    return BadRequest(f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")


def unsupported(name: str, why: str) -> BadRequest:
    return BadRequest(f"Unsupported parameter: '{name}'. {why}", param=name, code="unsupported_parameter")


def integer(low: int, high: int = MAX_INTEGER) -> Check:
    def check(name: str, value: Any) -> None:
        if type(value) is not int:
            raise wrong_type(name, "an integer", value)
        _within(name, value, low, high, "integer")

    return check


def number(low: float, high: float) -> Check:
    def check(name: str, value: Any) -> None:
        if type(value) is not int and type(value) is not float:
            raise wrong_type(name, "a decimal", value)
        _within(name, value, low, high, "decimal")

    return check


def _within(name: str, value: float, low: float, high: float, kind: str) -> None:
    if value < low:
        message = f"{kind} below minimum value. Expected a value >= {low}, but got {value} instead."
        raise wrong_value(name, message, f"{kind}_below_min_value")
    if value > high:
        message = f"{kind} above maximum value. Expected a value <= {high}, but got {value} instead."
        raise wrong_value(name, message, f"{kind}_above_max_value")


def boolean(name: str, value: Any) -> None:
    if type(value) is not bool:
        raise wrong_type(name, "a boolean", value)


def string(name: str, value: Any) -> None:
    if type(value) is not str:
        raise wrong_type(name, "a string", value)
    if len(value) > MAX_TEXT_LENGTH:
        raise wrong_value(name, f"longer than {MAX_TEXT_LENGTH} characters.", "string_above_max_length")


def mapping(name: str, value: Any) -> None:
    if type(value) is not dict:
        raise wrong_type(name, "an object", value)


def one_of(*allowed: Any) -> Check:
    def check(name: str, value: Any) -> None:
        if value not in allowed or type(value) not in {type(choice) for choice in allowed}:
            choices = ", ".join(repr(choice) for choice in allowed)
            raise wrong_value(name, f"supported values are: {choices}.")

    return check


def items(check_item: Check, limit: int = MAX_LIST_LENGTH) -> Check:
    def check(name: str, value: Any) -> None:
        if type(value) is not list:
            raise wrong_type(name, "an array", value)
        if len(value) > limit:
            raise wrong_value(name, f"more than {limit} elements.", "array_above_max_length")
        for index, item in enumerate(value):
            check_item(f"{name}[{index}]", item)

    return check


def refuse(why: str) -> Check:
    def check(name: str, _: Any) -> None:
        raise unsupported(name, why)

    return check


def _replaced(member: str) -> Check:
    """Refuse a field that engines ignore by now: an answer without its constraint must not be charged."""
    return refuse(f"Engines take it no more. Use 'structured_outputs' instead: {member}.")


def stops(name: str, value: Any) -> None:
    if type(value) is not str:
        items(string, MAX_STOPS)(name, value)


def biases(name: str, value: Any) -> None:
    mapping(name, value)
    if len(value) > MAX_LIST_LENGTH:
        raise wrong_value(name, f"more than {MAX_LIST_LENGTH} members.")
    for token, bias in value.items():
        number(-100, 100)(f"{name}.{token[:32]}", bias)


def elsewhere(name: str, value: Any) -> None:
    """Checked where it is understood."""


_token = integer(0)

_BOTH: dict[str, Check] = {
    "model": elsewhere,
    "stream": boolean,
    "stream_options": elsewhere,
    "n": integer(1, MAX_ANSWERS),
    "max_tokens": integer(1),
    "temperature": number(0, 2),
    "top_p": number(0, 1),
    "presence_penalty": number(-2, 2),
    "frequency_penalty": number(-2, 2),
    "logit_bias": biases,
    "seed": integer(-MAX_INTEGER - 1),
    "stop": stops,
    "user": string,
    "response_format": mapping,
    # vLLM's own, as far as they do not change what is charged
    "top_k": integer(-1),
    "min_p": number(0, 1),
    "repetition_penalty": number(0, 100),
    "length_penalty": number(-100, 100),
    "stop_token_ids": items(_token),
    "include_stop_str_in_output": boolean,
    "ignore_eos": boolean,
    "min_tokens": integer(0),
    "skip_special_tokens": boolean,
    "spaces_between_special_tokens": boolean,
    "allowed_token_ids": items(_token, 1_000_000),
    "bad_words": items(string),
    "structured_outputs": mapping,
    "add_special_tokens": boolean,
    "return_token_ids": boolean,
    "return_tokens_as_token_ids": boolean,
    # understood, and refused
    "guided_json": _replaced("{'json': ...}"),
    "guided_regex": _replaced("{'regex': ...}"),
    "guided_choice": _replaced("{'choice': [...]}"),
    "guided_grammar": _replaced("{'grammar': ...}"),
    "guided_decoding_backend": refuse("Engines choose it by themselves."),
    "guided_whitespace_pattern": _replaced("{'whitespace_pattern': ...}"),
    "best_of": elsewhere,
    "use_beam_search": one_of(False),
    "prompt_logprobs": refuse("Log probabilities of the prompt are not served."),
    "truncate_prompt_tokens": refuse("Prompts are never cut; shorten the prompt instead."),
    "priority": refuse("Every request has the same priority."),
    "cache_salt": refuse("Customers' caches are separate already."),
}

CHAT: Mapping[str, Check] = _BOTH | {
    "messages": elsewhere,
    "max_completion_tokens": integer(1),
    "logprobs": boolean,
    "top_logprobs": integer(0, 20),
    "tools": items(mapping, MAX_ANSWERS),
    "tool_choice": elsewhere,
    "parallel_tool_calls": boolean,
    "reasoning_effort": one_of("none", "minimal", "low", "medium", "high", "xhigh", "max"),
    "include_reasoning": boolean,
    "chat_template_kwargs": mapping,
    "add_generation_prompt": boolean,
    "continue_final_message": boolean,
    # OpenAI's, without a meaning here that would change the answer
    "metadata": mapping,
    "store": one_of(False),
    "service_tier": one_of("auto", "default"),
    "safety_identifier": string,
    "prompt_cache_key": string,
    "prompt_cache_retention": string,
    "verbosity": one_of("low", "medium", "high"),
    "modalities": items(one_of("text")),
    # understood, and refused
    "functions": refuse("Use 'tools' instead."),
    "function_call": refuse("Use 'tool_choice' instead."),
    "audio": refuse("No model here speaks."),
    "prediction": refuse("Predicted outputs are not served."),
    "web_search_options": refuse("No model here searches the web."),
    "chat_template": refuse("The model's own template is used."),
    "documents": refuse("Put documents into the messages."),
}

COMPLETIONS: Mapping[str, Check] = _BOTH | {
    "prompt": elsewhere,
    "echo": boolean,
    "logprobs": integer(0, 20),
    "suffix": refuse("No model here fills in the middle."),
    "prompt_embeds": refuse("Prompts are text or token ids."),
}

EMBEDDINGS: Mapping[str, Check] = {
    "model": elsewhere,
    "input": elsewhere,
    "encoding_format": one_of("float", "base64"),
    "dimensions": integer(1, 65_536),
    "user": string,
    # vLLM's own
    "add_special_tokens": boolean,
    "use_activation": boolean,
    # understood, and refused
    "messages": refuse("Put the texts into 'input'."),
    "truncate_prompt_tokens": refuse("Inputs are never cut; shorten them instead."),
    "priority": refuse("Every request has the same priority."),
    "cache_salt": refuse("Customers' caches are separate already."),
}

# Not for the engine: accepted because clients send them, and without an effect.
NOT_FORWARDED = frozenset(
    {
        "best_of", "use_beam_search", "user", "metadata", "store", "service_tier", "safety_identifier",
        "prompt_cache_key", "prompt_cache_retention", "verbosity", "modalities", "max_completion_tokens",
        "stream_options",
    }
)  # fmt: skip
