"""Plausible log probabilities in vLLM's two shapes: made up, but negative, ordered, and the same every time."""

from __future__ import annotations

from typing import Any

from darktree_simulator import tokenizer

LIKELY = -0.25
_ALTERNATIVES = b" etaoinshrdlucmfwygpbvk"


def chat_logprobs(ids: list[int], alternatives: int) -> dict[str, Any]:
    """`choices[].logprobs` of a chat answer."""
    content = []
    for token_id in ids:
        ranked = _ranked(token_id, max(alternatives, 1))
        top = [_entry(other, logprob) for other, logprob in ranked] if alternatives else []
        content.append(_entry(token_id, ranked[0][1]) | {"top_logprobs": top})
    return {"content": content}


def completion_logprobs(ids: list[int], alternatives: int, offset: int, prompt: list[int]) -> dict[str, Any]:
    """`choices[].logprobs` of a plain completion; an echoed prompt comes first and its first token has none.

    `offset` is the position in the text of the first of these tokens.
    """
    tokens, logprobs, tops, offsets = [], [], [], []
    for position, token_id in enumerate([*prompt, *ids]):
        ranked = _ranked(token_id, max(alternatives, 1))
        known = position > 0 or not prompt
        tokens.append(_text(token_id))
        logprobs.append(ranked[0][1] if known else None)
        tops.append({_text(other): logprob for other, logprob in ranked} if known else None)
        offsets.append(offset)
        offset += len(tokens[-1])
    return {"text_offset": offsets, "token_logprobs": logprobs, "tokens": tokens, "top_logprobs": tops}


def _ranked(token_id: int, count: int) -> list[tuple[int, float]]:
    others = [other for other in _ALTERNATIVES if other != token_id][: count - 1]
    likely = LIKELY - (token_id % 7) / 10
    return [(other, likely - rank * 0.5) for rank, other in enumerate([token_id, *others])]


def _entry(token_id: int, logprob: float) -> dict[str, Any]:
    text = _text(token_id)
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def _text(token_id: int) -> str:
    return tokenizer.decode([token_id])
