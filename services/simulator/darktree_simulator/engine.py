"""The engine: generates every choice of a request side by side at the set speed, and counts each token once.

All requests run at once, like a batch in vLLM; one that is late makes several tokens at its next turn. Turns are on a
common grid, so that hundreds of streams wake together instead of one by one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic

from darktree_simulator.metrics import EngineMetrics
from darktree_simulator.sequences import Sequence

GRID_SECONDS = 0.02
# As fast as possible still means turns: a client that goes away is noticed between two of them.
FREE_RUNNING_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Step:
    """What one choice generated in one turn: the tokens from `start` to `end`."""

    sequence: Sequence
    start: int
    end: int


class Engine:
    """The lane's generation and its counters."""

    def __init__(self, model: str, tokens_per_second: float, maximum_concurrent_sequences: int) -> None:
        self.metrics = EngineMetrics(model)
        self._tokens_per_second = tokens_per_second
        self._capacity = self._free = maximum_concurrent_sequences
        self._freed = asyncio.Event()

    async def generate(
        self, sequences: list[Sequence], break_at_tokens: int | None = None
    ) -> AsyncGenerator[list[Step], None]:
        """Turns of a request until every choice has ended. Closing the iterator ends the generation at once.

        No turn goes past `break_at_tokens` without ending there first.
        """
        arrived = monotonic()
        async with self._admitted(len(sequences)):
            started = monotonic()
            self.metrics.queue_seconds.observe(started - arrived)
            done, longest = 0, max(sequence.length for sequence in sequences)
            turned = arrived
            while done < longest:
                due = min(longest, await self._next_turn(started, done))
                if break_at_tokens is not None and done < break_at_tokens:
                    due = min(due, break_at_tokens)
                steps = [_advance(sequence, due) for sequence in sequences if not sequence.finished]
                self._count(steps, arrived if done == 0 else turned, first=done == 0)
                done, turned = due, monotonic()
                yield steps
        self._count_finished(sequences, monotonic() - arrived)

    async def embed(self, prompts: list[list[int]]) -> None:
        """Read prompts without generating anything: one turn, which counts them."""
        async with self._admitted(len(prompts)):
            await asyncio.sleep(0)
            self.metrics.prompt_tokens.inc(sum(map(len, prompts)))
            self.metrics.finished["stop"].inc(len(prompts))

    async def _next_turn(self, started: float, done: int) -> int:
        """Wait until a token is due and return how many are."""
        if not self._tokens_per_second:
            await asyncio.sleep(0)
            return done + FREE_RUNNING_TOKENS
        due_at = started + (done + 1) / self._tokens_per_second
        wait_seconds = due_at - monotonic()
        if wait_seconds > 0:
            # The first token comes when it is due, so that its time means something; the others join the grid.
            await asyncio.sleep(wait_seconds + (-due_at % GRID_SECONDS if done else 0.0))
        else:
            await asyncio.sleep(0)
        return max(done + 1, int((monotonic() - started) * self._tokens_per_second))

    @asynccontextmanager
    async def _admitted(self, sequences: int) -> AsyncIterator[None]:
        # A request wider than the whole lane runs alone.
        wanted = min(sequences, self._capacity)
        self.metrics.waiting.inc(sequences)
        try:
            while self._free < wanted:
                self._freed.clear()
                await self._freed.wait()
        finally:
            self.metrics.waiting.dec(sequences)
        self._free -= wanted
        self.metrics.running.inc(sequences)
        try:
            yield
        finally:
            self.metrics.running.dec(sequences)
            self._free += wanted
            self._freed.set()

    def _count(self, steps: list[Step], since: float, first: bool) -> None:
        tokens = sum(step.end - step.start for step in steps)
        self.metrics.generation_tokens.inc(tokens)
        seconds = monotonic() - since
        if first:
            # vLLM counts the prompt once for every choice, since each is a request of its own to the engine.
            self.metrics.prompt_tokens.inc(sum(step.sequence.prompt_tokens for step in steps))
            for _ in steps:
                self.metrics.first_token_seconds.observe(seconds)
        else:
            self.metrics.token_seconds.observe(seconds * len(steps) / tokens)

    def _count_finished(self, sequences: list[Sequence], seconds: float) -> None:
        for sequence in sequences:
            self.metrics.finished[sequence.finish_reason].inc()
            self.metrics.request_seconds.observe(seconds)
            self.metrics.request_prompt_tokens.observe(sequence.prompt_tokens)
            self.metrics.request_generation_tokens.observe(sequence.generated)


def _advance(sequence: Sequence, due: int) -> Step:
    start = sequence.generated
    sequence.generated = min(due, sequence.length)
    return Step(sequence, start, sequence.generated)
