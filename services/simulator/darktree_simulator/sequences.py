"""One choice of an answer: what it will say is known from the start, what it has said grows token by token."""

from __future__ import annotations

from dataclasses import dataclass

from darktree_simulator import tokenizer


@dataclass(slots=True)
class Sequence:
    """A choice. Every token before the end is one character of `raw`; a token that only ends the answer has none."""

    index: int
    prompt_tokens: int
    raw: str
    """The characters generated, a stop string included."""
    text: str
    """The characters that the caller gets to see."""
    length: int
    """Tokens until it ends."""
    finish_reason: str
    stop_reason: str | int | None
    held_back: int
    """Characters that a stream keeps back until the end is known."""
    generated: int = 0
    """Tokens so far."""

    @property
    def finished(self) -> bool:
        return self.generated >= self.length

    def visible(self, tokens: int) -> int:
        """How many characters of `text` a stream has shown after so many tokens."""
        if tokens >= self.length:
            return len(self.text)
        return max(0, min(tokens, len(self.text)) - self.held_back)

    def token_ids(self, start: int, end: int) -> list[int]:
        """The ids of the tokens from `start` to `end`."""
        ids = list(self.raw[start:end].encode())
        if end > len(self.raw):
            ids.append(tokenizer.SPECIAL_IDS[tokenizer.MESSAGE_END])
        return ids
