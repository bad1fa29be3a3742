"""Events that differ from the one before in nothing but a piece of text and the usage: nearly all of an answer's.

Such an event is not decoded. What one of them has before and after its text is learnt from the first that was decoded,
and proven by decoding it once more with another text. An event with the same bytes there, and with a text in which no
quote and no backslash is, can only be the same object with that text: nothing inside a JSON string ends it but a quote.
"""

from collections.abc import Callable
from typing import Any

import orjson

from darktree_gateway.streaming import USAGE, tokens_at_the_end

_PREFIX = b"data: "
_PROBE = "a text that no engine says"


class Texts:
    """The pieces of one answer's text, taken from events like one that was decoded."""

    __slots__ = ("_after", "_before", "_parts")

    def __init__(self, before: bytes, after: bytes, parts: list[str]) -> None:
        self._before = before
        self._after = after
        self._parts = parts

    def take(self, event: bytes) -> tuple[int, int] | None:
        """Keep the event's text and return the tokens used so far; or None, and then the event is to be decoded."""
        if not event.startswith(self._before):
            return None
        head, _, tail = event.rpartition(USAGE)
        if not head.endswith(self._after):
            return None
        text = head[len(self._before) : -len(self._after)]
        if not text or b'"' in text or b"\\" in text or len(head) < len(self._before) + len(self._after):
            return None
        used = tokens_at_the_end(tail)
        if used is not None:
            self._parts.append(text.decode())
        return used


def texts_like(event: bytes, chunk: dict[str, Any], parts_of: Callable[[str], list[str]]) -> Texts | None:
    """Return what takes the events that are like this one, or None when it has more than a text."""
    where = _text_of(chunk)
    if where is None:
        return None
    holder, name = where
    head, _, tail = event.rpartition(USAGE)
    said = b'"%b":%b' % (name.encode(), orjson.dumps(holder[name]))
    if head.count(said) != 1 or tokens_at_the_end(tail) is None:
        return None
    before, after = head.split(said)
    before, after = before + b'"%b":"' % name.encode(), b'"' + after
    holder[name] = _PROBE
    probe = {member: value for member, value in chunk.items() if member != "usage"}
    if orjson.loads(before[len(_PREFIX) :] + _PROBE.encode() + after + b"}") != probe:
        return None
    return Texts(before, after, parts_of(name))


def _text_of(chunk: dict[str, Any]) -> tuple[dict[str, Any], str] | None:
    """Return the object and the member in it that is all that a chunk says, or None when it says anything else."""
    if len(chunk["choices"]) != 1 or any(chunk.get(name) for name in ("prompt_token_ids", "error")):
        return None
    piece = chunk["choices"][0]
    holder, name = (piece["delta"], "content") if piece.get("delta") else (piece, "text")
    said = {member for member, value in piece.items() if value is not None}
    if said - {"index", "delta", "text"} or (holder is not piece and set(holder) != {"content"}):
        return None
    return (holder, name) if holder.get(name) else None
