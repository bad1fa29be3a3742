"""What is held and what was used: counting while the engine speaks, settling before the last bytes leave.

A settlement is never lost: the ledger takes it, or else the journal on disk does, and only then does its answer go.
While settlements wait in the journal, nothing new is admitted. Where there are several ledgers, each has a journal of
its own: one that is away stops its own customers, and nobody else.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

from darktree_gateway import metrics
from darktree_gateway.errors import MeteringUnavailable
from darktree_gateway.journal import Journal
from darktree_kit.clock import Monotonic, monotonic
from darktree_kit.errors import ApiError
from darktree_ledger.client import LedgerClient
from darktree_ledger.schemas import Hold, Renew, Result, Settle, Void

SHUTDOWN_SECONDS = 15.0
Outcome = Literal["completed", "abandoned", "failed"]
_log = logging.getLogger(__name__)


class Meter:
    """What an engine says was used so far.

    vLLM counts each answer by itself until the final usage, which is of the whole request: so a request for several
    answers adds them up by their index. Answers of one prompt share its prompt tokens.
    """

    __slots__ = ("_answers", "_answers_per_prompt", "completion_tokens", "prompt_tokens", "seen")

    def __init__(self, answers_per_prompt: int) -> None:
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.seen = False
        self._answers_per_prompt = answers_per_prompt
        self._answers: dict[int, tuple[int, int]] = {}

    def see_only(self, prompt_tokens: int, completion_tokens: int) -> None:
        """The usage so far of the only answer, or the final usage of all."""
        self.seen = True
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = completion_tokens

    def see(self, index: int, prompt_tokens: int, completion_tokens: int) -> None:
        """The usage so far of one of several answers."""
        self._answers[index] = (prompt_tokens, completion_tokens)
        prompts = {place // self._answers_per_prompt: used for place, (used, _) in self._answers.items()}
        self.see_only(sum(prompts.values()), sum(used for _, used in self._answers.values()))


@dataclass(slots=True, eq=False)
class Held:
    """A hold of a request that is being served."""

    hold_id: UUID
    entry_id: UUID
    customer_id: str
    lane: str
    since: float
    renewed_at: float
    stop: Callable[[], None] | None = None  # ends the request, once it is being served
    tokens: tuple[int, int] = field(default=(0, 0))


class Metering:
    """Every hold of this process, from grant to settlement."""

    def __init__(
        self,
        ledger: LedgerClient,
        journal_dir: Path,
        *,
        ttl_seconds: int,
        request_seconds: float,
        now: Monotonic = monotonic,
    ) -> None:
        self.ledger = ledger
        self._journals = {
            shard: Journal(journal_dir / f"ledger-{number}" if number else journal_dir)
            for number, shard in enumerate(ledger.shards)
        }
        self.running: set[Held] = set()
        self._ttl_seconds = ttl_seconds
        self._request_seconds = request_seconds
        self._now = now
        self._tasks: set[asyncio.Task[Any]] = set()
        self._homeless: dict[
            UUID, Settle
        ] = {}  # neither ledger nor disk took them: kept here, and tried again

    def check_open(self, customer_id: str) -> None:
        """Raise MeteringUnavailable while settlements of the customer's ledger wait: nothing new is admitted then."""
        if not self._journal(customer_id).empty or self._homeless:
            raise MeteringUnavailable

    def _journal(self, customer_id: str) -> Journal:
        return self._journals[self.ledger.of(customer_id)]

    async def hold(self, operation: Hold) -> Result:
        """Ask for a hold. Raises MeteringUnavailable when the ledger does not answer: then it may expire by itself."""
        try:
            return await self.ledger.apply(operation)
        except ApiError as error:
            _log.warning("the ledger did not take a hold", extra={"error": str(error)[:200]})
            raise MeteringUnavailable from error

    async def settle(
        self, held: Held, prompt_tokens: int, completion_tokens: int, outcome: Outcome
    ) -> Result | None:
        """Charge what was used; durable when this returns. The result is None when the journal has it.

        Survives being cancelled. Raises MeteringUnavailable when neither the ledger nor the disk takes it now.
        """
        operation = Settle.model_construct(
            op="settle",
            hold_id=held.hold_id,
            customer_id=held.customer_id,
            entry_id=held.entry_id,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            outcome=outcome,
        )
        held.tokens = (prompt_tokens, completion_tokens)
        try:
            result = await self._settle(operation)
        except asyncio.CancelledError:
            self.spawn(self._settle(operation))  # the same id and body: the same settlement
            raise
        finally:
            self.running.discard(held)
        metrics.SETTLED.labels(outcome).inc()
        metered = metrics.of_lane(held.lane)
        metered.prompt_tokens.inc(prompt_tokens)
        metered.completion_tokens.inc(completion_tokens)
        return result

    async def _settle(self, operation: Settle) -> Result | None:
        try:
            result = await self.ledger.apply(operation)
        except ApiError as error:
            _log.warning("the ledger did not take a settlement", extra={"error": str(error)[:200]})
            await self._write_down(operation)
            return None
        if result.outcome == "done":
            return result
        if result.reason == "failed":
            await self._write_down(operation)  # perhaps it was only its turn: once more, from the journal
        else:
            await self._journal(operation.customer_id).bury(
                operation, result.reason or f"conflict in {result.field}"
            )
        return None

    async def _write_down(self, operation: Settle) -> None:
        try:
            await self._journal(operation.customer_id).append(operation)
        except OSError as error:
            self._homeless[operation.hold_id] = operation
            _log.critical("the journal cannot be written", extra={"error": str(error)[:200]})
            raise MeteringUnavailable from error

    async def void(self, held: Held) -> Result | None:
        """Release a hold whole, and return the account after it.

        Survives being cancelled. The result is None when the ledger is away: then the hold expires by itself.
        """
        self.running.discard(held)
        operation = Void.model_construct(op="void", hold_id=held.hold_id, customer_id=held.customer_id)
        try:
            return await self._void(operation)
        except asyncio.CancelledError:
            self.spawn(self._void(operation))
            raise

    async def _void(self, operation: Void) -> Result | None:
        try:
            result = await self.ledger.apply(operation)
        except ApiError as error:
            _log.warning("a hold was left to expire", extra={"error": str(error)[:200]})
            return None
        if result.outcome != "done":
            _log.error("a hold could not be released", extra={"reason": result.reason, "field": result.field})
        return result

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run what must end whatever becomes of its request."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def keep_holds(self) -> None:
        """Renew what is held and end what runs too long, for as long as the task lives."""
        while True:
            await asyncio.sleep(self._ttl_seconds / 6)
            await self.renew_due()

    async def renew_due(self) -> None:
        """Renew, in one go, every hold that a third of its life has passed."""
        now = self._now()
        due = [held for held in self.running if now - held.renewed_at >= self._ttl_seconds / 3]
        for held in due:
            if now - held.since > self._request_seconds and held.stop is not None:
                held.stop()
        operations = [
            Renew.model_construct(
                op="renew", hold_id=held.hold_id, customer_id=held.customer_id, ttl_seconds=self._ttl_seconds
            )
            for held in due
        ]
        results = await asyncio.gather(*map(self.ledger.apply, operations), return_exceptions=True)
        for held, result in zip(due, results, strict=True):
            if isinstance(result, Result) and result.outcome == "done":
                held.renewed_at = now
            elif isinstance(result, Result) and held in self.running:
                metrics.RENEWALS_REFUSED.inc()
                _log.error("a hold expired while it was served", extra={"hold_id": str(held.hold_id)})

    async def keep_replaying(self, every_seconds: float) -> None:
        """Replay the journal, and those of processes that died, for as long as the task lives."""
        while True:
            await self.replay()
            await asyncio.sleep(every_seconds)

    async def replay(self) -> None:
        """Try once to give the ledgers everything that waits."""
        try:
            for operation in list(self._homeless.values()):
                await self._journal(operation.customer_id).append(operation)
                self._homeless.pop(operation.hold_id, None)
        except OSError as error:
            _log.warning("settlements still wait in memory", extra={"error": str(error)[:200]})
        await asyncio.gather(*map(self._replay, self._journals.values()))

    async def _replay(self, journal: Journal) -> None:
        try:
            # To whichever ledger keeps the customer, also when another kept them as this was written.
            replayed = await journal.replay(self.ledger.apply_batch)
        except (ApiError, OSError, ValueError) as error:
            waiting = {"error": str(error)[:200], "bytes": journal.size_bytes}
            _log.warning("settlements still wait", extra=waiting)
            return
        if replayed:
            _log.info("replayed settlements", extra={"count": replayed})

    async def close(self) -> None:
        """Finish what was spawned, and try the journal once more. What remains in it is the next process' work."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=SHUTDOWN_SECONDS)
        await self.replay()
        for journal in self._journals.values():
            await journal.close()
