"""The words of the simulator: readable, ASCII, and the same every time for the same prompt, seed and choice."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterable

from darktree_simulator.sampling import Sampling
from darktree_simulator.sequences import Sequence

SHORTEST_ANSWER_TOKENS = 20
LONGEST_ANSWER_TOKENS = 60
SENTENCE_WORDS = 9

_WORDS = (  # noqa: SIM905
    "a an and are as at be but by can day each few first for found from good had has he her his home how if in into is "
    "it its know last leaf light like line long made many may more most moss new night no not now of oak old on one or "
    "other out over own path rain river root say see seed she shade so some soon still stone tall than that the then "
    "there they this time to tree two under up use very was water way we well when which will wind with wood year you"
).split()


def sequence(index: int, prompt: list[int], sampling: Sampling) -> Sequence:
    """Everything that choice `index` will say, and why it ends."""
    rng = random.Random(_fingerprint(prompt, sampling.seed, index))  # noqa: S311 (text, not secrets)
    natural = max(rng.randint(SHORTEST_ANSWER_TOKENS, LONGEST_ANSWER_TOKENS), sampling.min_tokens)
    ends_itself = not sampling.ignore_eos and natural < sampling.max_tokens
    raw = _prose(rng, natural if ends_itself else sampling.max_tokens, ends_itself)
    stopped = _first_stop(raw, sampling)
    if stopped is not None:
        length, kept, reason = stopped
        return Sequence(
            index, len(prompt), raw[:length], raw[:kept], length, "stop", reason, _held_back(sampling)
        )
    if ends_itself:
        # The token that ends the answer is generated and counted, but it is no text.
        return Sequence(index, len(prompt), raw, raw, natural + 1, "stop", None, _held_back(sampling))
    return Sequence(index, len(prompt), raw, raw, sampling.max_tokens, "length", None, _held_back(sampling))


def _first_stop(raw: str, sampling: Sampling) -> tuple[int, int, str | int] | None:
    # (tokens generated, characters kept, reason) of the stop that is complete first, after min_tokens.
    found: list[tuple[int, int, str | int]] = []
    for stop in sampling.stop:
        start = raw.find(stop, max(0, sampling.min_tokens + 1 - len(stop)))
        if start >= 0:
            end = start + len(stop)
            found.append((end, end if sampling.include_stop else start, stop))
    for token_id in sampling.stop_token_ids & set(range(128)):
        start = raw.find(chr(token_id), sampling.min_tokens)
        if start >= 0:
            found.append((start + 1, start + 1 if sampling.include_stop else start, token_id))
    return min(found, key=lambda stop: stop[0], default=None)


def _held_back(sampling: Sampling) -> int:
    # vLLM streams no character that may still turn out to be the beginning of a stop string.
    if sampling.include_stop or not sampling.stop:
        return 0
    return max(len(stop) for stop in sampling.stop) - 1


def _prose(rng: random.Random, characters: int, ends: bool) -> str:
    words: list[str] = []
    size = 0
    while size <= characters:
        sentence = rng.choices(_WORDS, k=SENTENCE_WORDS)
        sentence[0] = sentence[0].capitalize()
        words.append(" ".join(sentence) + ".")
        size += len(words[-1]) + 1
    text = " ".join(words)[:characters]
    return f"{text[:-1]}." if ends and text else text


def _fingerprint(prompt: Iterable[int], seed: int | None, index: int) -> str:
    # Special tokens do not fit in a byte; they are told apart well enough by their last eight bits.
    return f"{zlib.crc32(bytes(token_id & 255 for token_id in prompt))}:{seed}:{index}"
