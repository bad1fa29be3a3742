"""The bytes of an answer, key for key as vLLM 0.32 writes them; `chat` and `completions` fill in what differs.

A stream's chunk is glued together from bytes: at hundreds of streams this is what the processor's time goes into.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import orjson

from darktree_simulator.engine import Step
from darktree_simulator.sequences import Sequence

VERSION = "0.32.0"
"""The vLLM that is simulated."""
FINGERPRINT = f"vllm-{VERSION}-simulated"
DONE = b"data: [DONE]\n\n"
# A turn of many tokens still becomes chunks of few, as from an engine that makes one token at a time.
MAXIMUM_CHUNKS_PER_TURN = 16


@dataclass(frozen=True)
class Envelope:
    """What all parts of one answer have in common."""

    answer_id: str
    created: int
    model: str
    prompts: list[list[int]]
    sequences: list[Sequence]
    logprobs: int | None = None
    include_usage: bool = False
    continuous_usage: bool = False
    usage_missing: bool = False


class Answer(ABC):
    """One answer, whole or in chunks."""

    kind: str
    details: bytes
    """What a chunk's continuous usage ends with."""

    def __init__(self, envelope: Envelope) -> None:
        self.envelope = envelope
        self._head = b'data: {"id":%s,"object":%s,"created":%d,"model":%s,"choices":[' % (
            orjson.dumps(envelope.answer_id),
            orjson.dumps(self.kind),
            envelope.created,
            orjson.dumps(envelope.model),
        )
        self._fingerprint = b',"system_fingerprint":%s' % orjson.dumps(FINGERPRINT)

    def opening(self) -> bytes:
        """What precedes the first token of a stream."""
        return b""

    def chunks(self, step: Step) -> bytes:
        """The events for the tokens of a turn, each with what is used up to it."""
        size = -(-(step.end - step.start) // MAXIMUM_CHUNKS_PER_TURN)
        positions = range(step.start, step.end, size)
        return b"".join(self._chunk(step.sequence, start, min(start + size, step.end)) for start in positions)

    def closing(self) -> bytes:
        """What follows the last token of a stream."""
        if not self.envelope.include_usage or self.envelope.usage_missing:
            return DONE
        used = orjson.dumps(self._total_usage())
        return b'%s],"usage":%s%s}\n\n%s' % (self._head, used, self._fingerprint, DONE)

    @abstractmethod
    def whole(self) -> bytes:
        """The answer that is not streamed."""

    @abstractmethod
    def _choice(self, sequence: Sequence, start: int, end: int, ending: bytes) -> bytes:
        """The choice of a chunk; `ending` is its finish reason as JSON."""

    def usage(self) -> dict[str, Any] | None:
        """The usage of the answer that is not streamed."""
        if self.envelope.usage_missing:
            return None
        return self._total_usage() | {"prompt_tokens_details": None, "completion_tokens_details": None}

    def _chunk(self, sequence: Sequence, start: int, end: int) -> bytes:
        ends = end >= sequence.length
        finish_reason = orjson.dumps(sequence.finish_reason) if ends else b"null"
        parts = [self._head, self._choice(sequence, start, end, finish_reason), b"]"]
        if self.envelope.continuous_usage and not self.envelope.usage_missing:
            prompt = sequence.prompt_tokens
            parts.append(
                b',"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d%s}'
                % (prompt, prompt + end, end, self.details)
            )
        if ends and not self.envelope.include_usage:
            parts.append(self._fingerprint)
        parts.append(b"}\n\n")
        return b"".join(parts)

    def _total_usage(self) -> dict[str, int]:
        prompt = sum(len(ids) for ids in self.envelope.prompts)
        completion = sum(sequence.generated for sequence in self.envelope.sequences)
        return {
            "prompt_tokens": prompt,
            "total_tokens": prompt + completion,
            "completion_tokens": completion,
        }


def shown(sequence: Sequence, start: int, end: int) -> str:
    """The text that a stream adds for the tokens from `start` to `end`."""
    return sequence.text[sequence.visible(start) : sequence.visible(end)]
