"""What becomes of an engine's answer: one kind for each way in which a request may be answered.

All are used alike. Bytes of the engine go in by `feed`, which meters them and returns what may leave at once; what
`ending` returns leaves when the charge is durable.
"""

from typing import Protocol

from darktree_gateway.assembly import Assembly
from darktree_gateway.embeddings import Vectors
from darktree_gateway.metering import Meter
from darktree_gateway.requests import Ask
from darktree_gateway.responses.answer import ResponseAnswer
from darktree_gateway.streaming import Relay, error_event
from darktree_kit.errors import ApiError


class Answer(Protocol):
    """An engine's answer on its way to the client."""

    done: bool
    """Nothing that follows matters."""
    error: ApiError | None
    """The engine failed."""

    @property
    def complete(self) -> bool:
        """Whether the engine said everything, and what it used."""

    def feed(self, data: bytes) -> bytes:
        """Take bytes of the engine; return what may leave now."""

    def ending(self) -> bytes:
        """Return the last bytes of a complete answer."""


def answer_to(ask: Ask, meter: Meter) -> Answer:
    """Return what answers a request."""
    if ask.endpoint == "embeddings":
        return Vectors(ask, meter)
    if ask.said is not None:
        return ResponseAnswer(ask, meter)
    return (Relay if ask.stream else Assembly)(ask, meter)


def failing(answer: Answer, error: ApiError) -> bytes:
    """Return the last bytes of a stream that fails, as its clients understand it."""
    return answer.failing(error) if isinstance(answer, ResponseAnswer) else error_event(error)
