"""How long a prompt is at most, without asking anybody.

A byte-level tokenizer never makes more tokens than UTF-8 bytes; it may normalise the text first (Qwen's: NFC), which
can lengthen it, so the longest of the forms counts. A chat template adds a few tokens a message and a constant. What
a template could render in ways that are not known here is not bounded but counted, by the engine.
"""

import unicodedata
from typing import Any

from darktree_gateway.fields import missing, unknown, unsupported, wrong_type, wrong_value

BASE_TOKENS = 64  # a template's own system prompt, and the opening of the answer
PER_MESSAGE_TOKENS = 16
MAX_MESSAGES = 4_096
MAX_PARTS = 4_096
MAX_PROMPTS = 128

_ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
_MESSAGE_FIELDS = frozenset(
    {"role", "content", "name", "tool_calls", "tool_call_id", "refusal", "reasoning", "reasoning_content",
     "annotations", "audio", "function_call", "parsed"}
)  # fmt: skip


def bound_of_text(text: str) -> int:
    """Return the most tokens that a text can become."""
    if text.isascii():
        return len(text)
    size = len(text.encode())
    if unicodedata.is_normalized("NFKC", text):
        return size
    return max(size, *(len(unicodedata.normalize(form, text).encode()) for form in ("NFC", "NFKC")))


def bound_of_messages(messages: Any) -> tuple[int, bool]:
    """Check a chat's messages; return the most tokens they can become, and whether that has to be counted instead.

    Raises BadRequest, naming the message.
    """
    if type(messages) is not list:
        raise wrong_type("messages", "an array of objects", messages)
    if not messages:
        raise wrong_value("messages", "empty array. Expected an array with minimum length 1.", "empty_array")
    if len(messages) > MAX_MESSAGES:
        raise wrong_value("messages", f"more than {MAX_MESSAGES} messages.", "array_above_max_length")
    bound, uncertain = BASE_TOKENS, False
    for index, message in enumerate(messages):
        if type(message) is not dict:
            raise wrong_type(f"messages[{index}]", "an object", message)
        role, content = message.get("role"), message.get("content")
        if role == "user" and type(content) is str and len(message) == 2:  # as nearly all are
            bound += PER_MESSAGE_TOKENS + bound_of_text(content)
            continue
        tokens, rendered_otherwise = _bound_of_message(f"messages[{index}]", message)
        bound += tokens
        uncertain = uncertain or rendered_otherwise
    return bound, uncertain


def _bound_of_message(name: str, message: dict[str, Any]) -> tuple[int, bool]:
    _check_members(name, message)
    role = message.get("role")
    if type(role) is not str:
        raise missing(f"{name}.role") if role is None else wrong_type(f"{name}.role", "a string", role)
    if role not in _ROLES:
        choices = ", ".join(sorted(_ROLES))
        raise wrong_value(f"{name}.role", f"supported values are: {choices}.")
    if message.get("content") is None and role != "assistant":
        raise missing(f"{name}.content")
    bound = PER_MESSAGE_TOKENS + _bound_of_content(f"{name}.content", message.get("content"))
    for field in ("name", "tool_call_id", "refusal", "reasoning", "reasoning_content"):
        value = message.get(field)
        if value is not None:
            if type(value) is not str:
                raise wrong_type(f"{name}.{field}", "a string", value)
            bound += bound_of_text(value)
    calls = message.get("tool_calls")
    if calls is not None and type(calls) is not list:
        raise wrong_type(f"{name}.tool_calls", "an array", calls)
    return bound, bool(calls) or role == "tool"


def _check_members(name: str, message: dict[str, Any]) -> None:
    for field in message:
        if field not in _MESSAGE_FIELDS:
            raise unknown(f"{name}.{field}")
    for field in ("audio", "function_call"):
        if message.pop(field, None) is not None:
            raise unsupported(f"{name}.{field}", "No model here takes it.")
    for field in ("annotations", "parsed"):  # an answer's, which clients send back as they had it
        message.pop(field, None)


def _bound_of_content(name: str, content: Any) -> int:
    if content is None:
        return 0
    if type(content) is str:
        return bound_of_text(content)
    if type(content) is not list:
        raise wrong_type(name, "a string or an array of parts", content)
    if len(content) > MAX_PARTS:
        raise wrong_value(name, f"more than {MAX_PARTS} parts.", "array_above_max_length")
    bound = 0
    for index, part in enumerate(content):
        where = f"{name}[{index}]"
        if type(part) is not dict:
            raise wrong_type(where, "an object", part)
        kind = part.get("type")
        if kind not in {"text", "refusal"}:
            raise unsupported(f"{where}.type", "Only text is served: no images, audio or files.")
        if extra := set(part) - {"type", kind}:
            raise unknown(f"{where}.{sorted(extra)[0]}")
        text = part.get(kind)
        if type(text) is not str:
            raise (
                missing(f"{where}.{kind}")
                if text is None
                else wrong_type(f"{where}.{kind}", "a string", text)
            )
        bound += PER_MESSAGE_TOKENS + bound_of_text(text)
    return bound


def bounds_of_prompt(prompt: Any, name: str = "prompt", limit: int = MAX_PROMPTS) -> tuple[list[int], bool]:
    """Check a prompt that no template renders; return the most tokens of each in it, and whether they are exact counts.

    A prompt is a string, an array of strings, an array of token ids, or an array of such arrays.
    """
    if type(prompt) is str:
        return [_bound_of_prompt(name, prompt)], False
    if type(prompt) is not list:
        raise wrong_type(name, "a string or an array", prompt)
    if not prompt:
        raise wrong_value(name, "empty array. Expected an array with minimum length 1.", "empty_array")
    if type(prompt[0]) is int:
        return [_count_of_ids(name, prompt)], True
    if len(prompt) > limit:
        raise wrong_value(name, f"more than {limit} of them.", "array_above_max_length")
    if type(prompt[0]) is list:
        return [_count_of_ids(f"{name}[{index}]", ids) for index, ids in enumerate(prompt)], True
    for index, text in enumerate(prompt):
        if type(text) is not str:
            raise wrong_type(f"{name}[{index}]", "a string", text)
    return [_bound_of_prompt(name, text) for text in prompt], False


def _bound_of_prompt(name: str, text: str) -> int:
    if not text:
        raise wrong_value(name, "empty string. Expected a string with minimum length 1.", "empty_string")
    return BASE_TOKENS + bound_of_text(text)


def _count_of_ids(name: str, ids: Any) -> int:
    if type(ids) is not list:
        raise wrong_type(name, "an array of token ids", ids)
    if not ids:
        raise wrong_value(name, "empty array. Expected an array with minimum length 1.", "empty_array")
    for index, token in enumerate(ids):
        if type(token) is not int or token < 0:
            raise wrong_type(f"{name}[{index}]", "a token id", token)
    return len(ids)
