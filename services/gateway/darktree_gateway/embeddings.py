"""An engine's embeddings: whole or not at all, passed on as they are once their tokens are charged.

There is nothing to generate: a prompt is all that is held, and all that is charged.
"""

import orjson

from darktree_gateway.errors import EngineError
from darktree_gateway.metering import Meter
from darktree_gateway.requests import Ask
from darktree_gateway.streaming import tokens_of
from darktree_kit.errors import ApiError

MAX_ANSWER_BYTES = 256 * 1024 * 1024  # 2,048 inputs of 8,192 dimensions in decimals are 200 MB


class Vectors:
    """Collects one answer, and meters it at its end."""

    def __init__(self, ask: Ask, meter: Meter) -> None:
        self._inputs = len(ask.prompt_tokens)
        self._meter = meter
        self._parts: list[bytes] = []
        self._size = 0
        self.done = False
        self.error: ApiError | None = None

    @property
    def complete(self) -> bool:
        """Whether there is a vector for each input, and what they used. The answer is only read when it has ended."""
        try:
            answer = orjson.loads(self.ending())
            used = tokens_of(answer["usage"])
            whole = len(answer["data"]) == self._inputs
        except (ValueError, TypeError, KeyError):
            return False
        if used is None or not whole:
            return False
        self._meter.see_only(used[0], 0)
        return True

    def feed(self, data: bytes) -> bytes:
        """Take bytes of the answer; nothing of them may be sent yet."""
        self._parts.append(data)
        self._size += len(data)
        if self._size > MAX_ANSWER_BYTES:
            self.error = EngineError()
        return b""

    def ending(self) -> bytes:
        """Return the answer as the engine wrote it."""
        if len(self._parts) > 1:
            self._parts = [b"".join(self._parts)]
        return self._parts[0] if self._parts else b""
