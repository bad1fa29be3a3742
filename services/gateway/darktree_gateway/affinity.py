"""Which conversation a request belongs to, told from its beginning: what all its turns share, and an engine caches.

The same in every gateway and after every restart. Only for speed: another engine answers just as well.
"""

from hashlib import blake2b
from typing import Any

from darktree_gateway.requests import Ask

MAX_CHARACTERS = 2_048  # of one text; what follows hardly tells conversations apart
MAX_IDS = 512
MAX_MESSAGES = 4


def conversation_of(ask: Ask) -> int:
    """Return a number for the beginning of a request, as it is sent to the engine: with the salt of its cache."""
    parts = [ask.model, str(ask.body.get("cache_salt", ""))]
    if ask.endpoint == "chat":
        parts += _opening(ask.prompt)
    else:
        parts.append(_beginning(ask.prompt))
    return number_of("\0".join(parts))


def number_of(text: str) -> int:
    """Return 64 bits of a text, the same everywhere."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _opening(messages: list[dict[str, Any]]) -> list[str]:
    """What comes before the first answer: instructions, and the first question."""
    parts: list[str] = []
    for message in messages[:MAX_MESSAGES]:
        parts += [message["role"], _beginning(message.get("content") or "")]
        if message["role"] == "user":
            break
    return parts


def _beginning(content: Any) -> str:
    if type(content) is str:
        return content[:MAX_CHARACTERS]
    first = content[0]
    if type(first) is int:
        return str(content[:MAX_IDS])
    if type(first) is dict:  # a part of a message
        return str(first.get("text") or first.get("refusal") or "")[:MAX_CHARACTERS]
    return _beginning(first) if first else ""
