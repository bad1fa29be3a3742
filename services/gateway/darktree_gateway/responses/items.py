"""The items of a response's input as a chat's messages, as vLLM makes them (entrypoints/openai/responses/utils.py).

A chat's message may be several items here: what an assistant thought, said and called.
"""

from typing import Any

from darktree_gateway.fields import missing, unknown, unsupported, wrong_type, wrong_value
from darktree_kit.errors import BadRequest

MAX_ITEMS = 4_096
MAX_PARTS = 4_096

_ROLES = ("assistant", "developer", "system", "user")
_TEXTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
_FIELDS = {
    "message": {"type", "role", "content", "id", "status", "phase"},
    "function_call": {"type", "call_id", "name", "arguments", "id", "status"},
    "function_call_output": {"type", "call_id", "output", "id", "status"},
    "reasoning": {"type", "id", "summary", "content", "encrypted_content", "status"},
}
_UNFINISHED = {"in_progress", "incomplete"}

Message = dict[str, Any]


def messages_of(given: Any) -> tuple[list[Message], bool]:
    """Return the messages of an input, and whether the last of them is to be continued. Raises BadRequest."""
    if type(given) is str:
        if not given:
            raise wrong_value(
                "input", "empty string. Expected a string with minimum length 1.", "empty_string"
            )
        return [{"role": "user", "content": given}], False
    if type(given) is not list:
        raise wrong_type("input", "a string or an array of items", given)
    if not given:
        raise wrong_value("input", "empty array. Expected an array with minimum length 1.", "empty_array")
    if len(given) > MAX_ITEMS:
        raise wrong_value("input", f"more than {MAX_ITEMS} items.", "array_above_max_length")
    messages: list[Message] = []
    for index, item in enumerate(given):
        _add(messages, f"input[{index}]", item)
    last = given[-1]
    continues = messages[-1]["role"] == "assistant" and last.get("status") in _UNFINISHED
    return messages, continues and last.get("type", "message") == "message"


def _add(messages: list[Message], name: str, item: Any) -> None:
    if type(item) is not dict:
        raise wrong_type(name, "an object", item)
    kind = item.get("type") or "message"
    known = _FIELDS.get(kind) if type(kind) is str else None
    if known is None:
        raise _not_taken(name, kind)
    for field, value in item.items():
        if field not in known and value is not None:
            raise unknown(f"{name}.{field}")
    if kind == "message":
        _add_message(messages, name, item)
    elif kind == "function_call":
        _of_assistant(messages).setdefault("tool_calls", []).append(_call(name, item))
    elif kind == "function_call_output":
        content = _content(f"{name}.output", item.get("output"))
        messages.append(
            {"role": "tool", "tool_call_id": _text(name, item, "call_id"), "content": content or ""}
        )
    else:
        _add_reasoning(messages, name, item)


def _not_taken(name: str, kind: Any) -> BadRequest:
    if kind == "item_reference":
        return unsupported(f"{name}.type", "Nothing is stored here to be referred to: send the item itself.")
    return unsupported(f"{name}.type", f"Items may be {', '.join(sorted(_FIELDS))}.")


def _add_message(messages: list[Message], name: str, item: dict[str, Any]) -> None:
    role = item.get("role")
    if role is None:
        raise missing(f"{name}.role")
    if role not in _ROLES:
        raise wrong_value(f"{name}.role", f"supported values are: {', '.join(_ROLES)}.")
    content = _content(f"{name}.content", item.get("content"))
    if content is None:
        raise missing(f"{name}.content")
    before = messages[-1] if messages else {}
    if role == before.get("role") == "assistant" and before.get("content") is None:
        before["content"] = content
        return
    messages.append({"role": role, "content": content})


def _add_reasoning(messages: list[Message], name: str, item: dict[str, Any]) -> None:
    if item.get("encrypted_content") is not None:
        raise unsupported(f"{name}.encrypted_content", "Nothing is encrypted here: send 'content'.")
    said = item.get("content") or item.get("summary") or []
    if type(said) is not list or any(
        type(part) is not dict or type(part.get("text")) is not str for part in said
    ):
        raise wrong_type(f"{name}.content", "an array of texts", said)
    text = "".join(part["text"] for part in said)
    message = _of_assistant(messages)
    message["reasoning"] = message.get("reasoning", "") + text


def _of_assistant(messages: list[Message]) -> Message:
    """Return the assistant's message that is being put together, a new one if there is none."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant"})
    return messages[-1]


def _call(name: str, item: dict[str, Any]) -> dict[str, Any]:
    function = {field: _text(name, item, field) for field in ("name", "arguments")}
    return {"id": _text(name, item, "call_id"), "type": "function", "function": function}


def _text(name: str, item: dict[str, Any], field: str) -> str:
    value = item.get(field)
    if type(value) is not str:
        raise (
            missing(f"{name}.{field}") if value is None else wrong_type(f"{name}.{field}", "a string", value)
        )
    return value


def _content(name: str, content: Any) -> str | list[dict[str, Any]] | None:
    """Return content as a chat has it: one text as it is, several as parts."""
    if content is None or type(content) is str:
        return content
    if type(content) is not list:
        raise wrong_type(name, "a string or an array of parts", content)
    if len(content) > MAX_PARTS:
        raise wrong_value(name, f"more than {MAX_PARTS} parts.", "array_above_max_length")
    texts = [_part(f"{name}[{index}]", part) for index, part in enumerate(content)]
    if len(texts) == 1:
        return texts[0]
    return [{"type": "text", "text": text} for text in texts]


def _part(name: str, part: Any) -> str:
    if type(part) is not dict:
        raise wrong_type(name, "an object", part)
    kind = part.get("type")
    field = _TEXTS.get(kind) if type(kind) is str else None
    if field is None:
        raise unsupported(f"{name}.type", "Only text is served: no images, audio or files.")
    return _text(name, part, field)
