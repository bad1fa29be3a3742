"""A byte is a token: the simplest tokenizer that counts exactly, shared with the tiny model of the real vLLM.

The 256 bytes are the ids 0 to 255 and three special tokens follow. `tiny_model` writes the same table and the same chat
template for `transformers`, so a prompt costs the same number of tokens in the simulator and in a real vLLM.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

END_OF_TEXT = "<|endoftext|>"
MESSAGE_START = "<|im_start|>"
MESSAGE_END = "<|im_end|>"

SPECIAL_IDS: dict[str, int] = {END_OF_TEXT: 256, MESSAGE_START: 257, MESSAGE_END: 258}
SPECIAL_TOKENS: dict[int, str] = {token_id: token for token, token_id in SPECIAL_IDS.items()}
VOCABULARY_SIZE = 259

_SPECIAL = re.compile("|".join(re.escape(token) for token in SPECIAL_IDS))
_TOOLS_INTRODUCTION = "# Tools\n\nYou may call one or more of these functions:\n<tools>"
_TOOLS_CLOSING = "\n</tools>"

# The same rendering as `render_chat`, as the Jinja template that a real vLLM reads. A test compares the two.
CHAT_TEMPLATE = (
    "{%- if tools %}"
    "{{- '<|im_start|>system\\n' }}"
    "{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}"
    "{{- '# Tools\\n\\nYou may call one or more of these functions:\\n<tools>' }}"
    "{%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}"
    "{{- '\\n</tools><|im_end|>\\n' }}"
    "{%- endif %}"
    "{%- for message in messages %}"
    "{%- if not (tools and loop.first and message.role == 'system') %}"
    "{{- '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.content %}{{- message.content }}{%- endif %}"
    "{%- for call in message.tool_calls or [] %}"
    "{{- '\\n<tool_call>\\n' }}"
    "{{- {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}"
    "{{- '\\n</tool_call>' }}"
    "{%- endfor %}"
    "{{- '<|im_end|>\\n' }}"
    "{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def encode(text: str) -> list[int]:
    """The ids of a text. A special token written in the text is that token, as in every Qwen tokenizer."""
    ids: list[int] = []
    position = 0
    for match in _SPECIAL.finditer(text):
        ids += text[position : match.start()].encode()
        ids.append(SPECIAL_IDS[match.group()])
        position = match.end()
    ids += text[position:].encode()
    return ids


def count(text: str) -> int:
    """`len(encode(text))` without making the list."""
    specials = 0
    special_bytes = 0
    for match in _SPECIAL.finditer(text):
        specials += 1
        special_bytes += match.end() - match.start()
    return len(text.encode()) - special_bytes + specials


def decode(ids: Iterable[int], skip_special_tokens: bool = False) -> str:
    """The text of some ids; bytes that are not UTF-8 become U+FFFD, as in vLLM's answers."""
    buffer = bytearray()
    for token_id in ids:
        if token_id < 256:
            buffer.append(token_id)
        elif not skip_special_tokens:
            buffer += SPECIAL_TOKENS[token_id].encode()
    return buffer.decode(errors="replace")


def token_text(token_id: int) -> str:
    """One token as the table of a byte-level BPE spells it: a printable character for every byte."""
    return SPECIAL_TOKENS.get(token_id) or BYTE_CHARACTERS[token_id]


def render_chat(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
) -> str:
    """The prompt of a conversation in ChatML, without a default system prompt.

    `messages` have a `role` and a `content` that is text (see `engine` for content in parts).
    """
    parts: list[str] = []
    rest = messages
    if tools:
        system = ""
        if messages and messages[0]["role"] == "system":
            system = f"{messages[0]['content']}\n\n"
            rest = messages[1:]
        listed = "".join(f"\n{_to_json(tool)}" for tool in tools)
        parts.append(
            f"{MESSAGE_START}system\n{system}{_TOOLS_INTRODUCTION}{listed}{_TOOLS_CLOSING}{MESSAGE_END}\n"
        )
    for message in rest:
        calls = "".join(_render_call(call) for call in message.get("tool_calls") or ())
        parts.append(
            f"{MESSAGE_START}{message['role']}\n{message.get('content') or ''}{calls}{MESSAGE_END}\n"
        )
    if add_generation_prompt:
        parts.append(f"{MESSAGE_START}assistant\n")
    return "".join(parts)


def byte_characters() -> list[str]:
    """The printable character that byte-level BPE gives each byte (the table of GPT-2, used by Qwen)."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    shifted = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(shifted)) for byte in range(256)]


def _render_call(call: Mapping[str, Any]) -> str:
    function = call["function"]
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    return f"\n<tool_call>\n{_to_json({'name': function['name'], 'arguments': arguments})}\n</tool_call>"


def _to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


BYTE_CHARACTERS = byte_characters()
