"""Answers of `/v1/embeddings`, as a vLLM gives them that was started with `--runner pooling`."""

from __future__ import annotations

import base64
import random
import struct
import zlib
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel

from darktree_simulator import prompts
from darktree_simulator.errors import EngineError, bad_request


class EmbeddingRequest(BaseModel):
    model: str | None = None
    input: list[int] | list[list[int]] | str | list[str]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None


def inputs(request: EmbeddingRequest, context_length: int) -> list[list[int]]:
    """The ids of every input. Raises `EngineError`."""
    if request.dimensions is not None:
        raise bad_request(
            f"Model '{request.model}' does not support Matryoshka embeddings; dimensions must be unset "
            f"(received dimensions={request.dimensions})."
        )
    given = request.input
    if given == []:
        raise bad_request("You must pass at least one prompt")
    entries: list[Any] = [given] if isinstance(given, str) or isinstance(given[0], int) else list(given)
    for entry in entries:
        if len(entry) > context_length and not isinstance(entry, str):
            raise prompts.too_long(f"at least {context_length + 1}", context_length + 1, context_length)
    return [prompts.ids_of(entry, context_length) for entry in entries]


def answer(
    request: EmbeddingRequest,
    ids: Sequence[Sequence[int]],
    *,
    answer_id: str,
    created: int,
    model: str,
    size: int,
) -> dict[str, Any]:
    """The whole answer; the same vector for the same input, of length 1 as vLLM's are."""
    vectors = [_vector(entry, size) for entry in ids]
    if request.encoding_format == "base64":
        shown: list[Any] = [
            base64.b64encode(struct.pack(f"<{size}f", *vector)).decode() for vector in vectors
        ]
    else:
        shown = list(vectors)
    total = sum(map(len, ids))
    return {
        "id": answer_id,
        "object": "list",
        "created": created,
        "model": model,
        "data": [
            {"index": index, "object": "embedding", "embedding": vector} for index, vector in enumerate(shown)
        ],
        "usage": {
            "prompt_tokens": total,
            "total_tokens": total,
            "completion_tokens": 0,
            "prompt_tokens_details": None,
            "completion_tokens_details": None,
        },
    }


def not_found() -> EngineError:
    """The answer of an engine that has not this endpoint: one that generates does not embed, nor the other way."""
    refusal = EngineError(404, "", "")
    refusal.body = {"detail": "Not Found"}
    return refusal


def _vector(ids: Sequence[int], size: int) -> list[float]:
    rng = random.Random(zlib.crc32(bytes(token_id & 255 for token_id in ids)))  # noqa: S311 (numbers, not secrets)
    numbers = [rng.gauss(0, 1) for _ in range(size)]
    length = sum(number * number for number in numbers) ** 0.5
    return [number / length for number in numbers]
