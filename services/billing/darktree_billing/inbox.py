"""The inbox: Stripe's events as they came, each handled once, in whatever order, until it succeeds or is dead.

An event only says where to look. So one that comes late, twice, or before the one that should precede it leads to what
the right one would have led to. Before an event is handled, the attempt is counted and the next one is set: a process
that dies on an event cannot die on it for ever, and no event waits for a process that is gone.
"""

import asyncio
import json
import logging
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import func, select, text, update
from sqlmodel import col

from darktree_billing import payouts
from darktree_billing.errors import UnknownOrder
from darktree_billing.fulfilment import Shop, fulfil
from darktree_billing.metrics import EVENTS_HANDLED
from darktree_billing.payment_models import EventRow, OrderRow
from darktree_kit.errors import ApiError

MAX_ATTEMPTS = 20  # about half a day, with the pauses below
FIRST_PAUSE_SECONDS = 5.0
MAX_PAUSE_SECONDS = 3_600.0
HANDLE_SECONDS = 60.0  # after which an attempt is given up
LOOK_SECONDS = 5.0  # how often is looked for events whose time has come
MAX_ERROR_CHARACTERS = 1_000

_log = logging.getLogger(__name__)

_CLAIM = text(
    """UPDATE billing.stripe_event SET attempts = attempts + 1,
              next_attempt_at = clock_timestamp() + make_interval(secs => :lease)
       WHERE id = (SELECT id FROM billing.stripe_event
                   WHERE state = 'waiting' AND next_attempt_at <= clock_timestamp()
                   ORDER BY next_attempt_at LIMIT 1 FOR UPDATE SKIP LOCKED)
       RETURNING id, type, object_id, payload, attempts"""
)


@dataclass(frozen=True)
class Retries:
    """How often an event is tried, and how long is waited in between: doubling, from the first pause to the longest."""

    max_attempts: int = MAX_ATTEMPTS
    first_pause_seconds: float = FIRST_PAUSE_SECONDS
    max_pause_seconds: float = MAX_PAUSE_SECONDS

    def pause_seconds(self, attempts: int) -> float:
        """Return the pause after so many attempts."""
        return min(self.first_pause_seconds * float(1 << min(attempts - 1, 30)), self.max_pause_seconds)


class Inbox:
    """Handles events whose time has come. Any number of them, in any processes, share the work."""

    def __init__(self, shop: Shop, retries: Retries | None = None) -> None:
        self._shop = shop
        self._retries = retries or Retries()
        self._new = asyncio.Event()

    def wake(self) -> None:
        """Look at once: something came."""
        self._new.set()

    async def work(self) -> None:
        """Handle events for as long as the task lives."""
        while True:
            self._new.clear()
            try:
                is_empty = not await self.handle_one()
            except Exception as error:
                _log.warning("the inbox could not be read", extra={"error": str(error)[:500]})
                is_empty = True
            if is_empty:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._new.wait(), LOOK_SECONDS)

    async def handle_all(self) -> int:
        """Handle what is due, and return how many that were."""
        count = 0
        while await self.handle_one():
            count += 1
        return count

    async def handle_one(self) -> bool:
        """Handle the event that has waited longest; False when none is due."""
        async with self._shop.database.sessions.begin() as session:
            claimed = (await session.execute(_CLAIM, {"lease": HANDLE_SECONDS * 2})).one_or_none()
        if claimed is None:
            return False
        try:
            async with asyncio.timeout(HANDLE_SECONDS):
                order_id = await self._handle(claimed.type, json.loads(claimed.payload))
        except Exception as error:
            await self._failed(claimed, error)
        else:
            state = "done" if order_id is not None else "ignored"
            await self._note(
                claimed, state=state, next_attempt_at=None, error=None, order_id=order_id or None,
                handled_at=func.clock_timestamp(),
            )  # fmt: skip
            EVENTS_HANDLED.labels(state).inc()
        return True

    async def _handle(self, type: str, payload: dict[str, Any]) -> str | None:
        """Bring what an event is about up to date. Return the order, or "" for what has none, or None if not ours."""
        about = payload["data"]["object"]
        if type.startswith("payout."):
            await payouts.import_payout(self._shop, about["id"])
            return ""
        if about["object"] == "checkout.session":
            return await self._fulfil(about.get("client_reference_id"), about["id"])
        payment = await self._payment_of(about)
        if payment is None:
            return None
        async with self._shop.database.sessions.begin() as session:
            order_id = await session.scalar(
                select(col(OrderRow.id)).where(col(OrderRow.payment_intent_id) == payment)
            )
        if order_id is not None:
            return await self._fulfil(order_id, None)
        # It came before the event that would have told of the payment.
        found = await self._shop.payments.session_of_payment(payment)
        return await self._fulfil(found.order_id, found.id) if found is not None else None

    async def _payment_of(self, about: dict[str, Any]) -> str | None:
        payment = about.get("payment_intent")
        if isinstance(payment, dict):
            payment = payment["id"]
        return payment or await self._shop.payments.payment_of(about["object"], about["id"])

    async def _fulfil(self, order_id: str | None, session_id: str | None) -> str | None:
        if order_id is None:
            return None
        try:
            return (await fulfil(self._shop, order_id, session_id)).id
        except UnknownOrder:
            return None  # somebody else sells through the same account

    async def _failed(self, claimed: Any, error: Exception) -> None:
        told = error.message if isinstance(error, ApiError) else f"{type(error).__name__}: {error}"
        is_dead = claimed.attempts >= self._retries.max_attempts
        pause = timedelta(seconds=self._retries.pause_seconds(claimed.attempts))
        await self._note(
            claimed,
            state="dead" if is_dead else "waiting",
            next_attempt_at=None if is_dead else func.clock_timestamp() + pause,
            error=told[:MAX_ERROR_CHARACTERS],
        )
        EVENTS_HANDLED.labels("dead" if is_dead else "failed").inc()
        _log.warning(
            "an event could not be handled",
            extra={
                "event": claimed.id,
                "type": claimed.type,
                "attempts": claimed.attempts,
                "error": told[:500],
            },
        )

    async def _note(self, claimed: Any, **values: Any) -> None:
        """Write down what an attempt came to, unless the event is to be tried again: then that one's end counts."""
        this_attempt = (col(EventRow.id) == claimed.id, col(EventRow.attempts) == claimed.attempts)
        async with self._shop.database.sessions.begin() as session:
            await session.execute(update(EventRow).where(*this_attempt).values(values))
