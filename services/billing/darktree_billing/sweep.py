"""The sweep: Stripe asked, every few minutes, for whatever no webhook brought.

Events since the last sweep go into the inbox; orders that are not finished are looked at; balance transactions are
taken into the books. A cursor moves only when everything before it was seen, and each question reaches back a little
before it, for what Stripe lists late.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from darktree_billing import events, metrics, payouts
from darktree_billing.fulfilment import Shop, fulfil
from darktree_billing.orders import OPEN_FOR
from darktree_billing.payment_models import CursorRow, OrderRow
from darktree_billing.payments_schemas import SweepReport
from darktree_billing.settings import Settings
from darktree_kit import clock
from darktree_kit.errors import ApiError

EVENTS, BALANCE = "events", "balance transactions"
OVERLAP = timedelta(hours=1)
LOOK_BACK = timedelta(days=30)  # as long as Stripe keeps events
MAX_ORDERS = 1_000  # looked at in one sweep, those looked at longest ago first
GRACE = timedelta(minutes=2)  # an order this young is left to its webhook
MAX_PROBLEMS = 20

_log = logging.getLogger(__name__)


@dataclass
class _Found:
    events: int = 0
    checked: int = 0
    granted: int = 0
    transactions: int = 0
    problems: list[str] = field(default_factory=list)


async def sweep(shop: Shop, grace: timedelta = GRACE) -> SweepReport:
    """Ask Stripe for everything that may have been missed. What fails is told, and does not keep the rest from it."""
    found = _Found()
    for part in (_events, partial(_orders, grace=grace), _balance):
        try:
            await part(shop, found)
        except ApiError as error:
            found.problems.append(error.message)
    if not found.problems:
        metrics.SWEPT.set(clock.utc_now().timestamp())
    return SweepReport(
        events_found=found.events,
        orders_checked=found.checked,
        orders_granted=found.granted,
        balance_transactions=found.transactions,
        problems=found.problems[:MAX_PROBLEMS],
    )


async def watch(shop: Shop, wake: Callable[[], None], settings: Settings) -> None:
    """Sweep, and forget old events, for as long as the task lives; `wake` is called when something is in the inbox."""
    while True:
        try:
            report = await sweep(shop)
            if report.events_found:
                wake()
            if report.problems:
                _log.warning("a sweep met problems", extra={"problems": report.problems})
            async with shop.database.sessions.begin() as session:
                await events.forget(session, settings.stripe_event_days)
        except Exception as error:
            _log.warning("a sweep was not finished", extra={"error": str(error)[:500]})
        await asyncio.sleep(settings.stripe_poll_seconds)


async def swept_to(session: AsyncSession) -> datetime | None:
    """Return the instant before which everything was asked for; None before the first whole sweep."""
    rows = await session.scalars(select(col(CursorRow.polled_to)))
    found = list(rows)
    return min(found) if len(found) == len((EVENTS, BALANCE)) else None


async def _events(shop: Shop, found: _Found) -> None:
    began, since = await _since(shop, EVENTS)
    async for page in shop.payments.events(since):
        async with shop.database.sessions.begin() as session:
            for event in page:
                found.events += await events.receive(session, event, "poll")
    await _move(shop, EVENTS, began)


async def _balance(shop: Shop, found: _Found) -> None:
    began, since = await _since(shop, BALANCE)
    found.transactions = await payouts.import_since(shop, since)
    await _move(shop, BALANCE, began)


async def _orders(shop: Shop, found: _Found, *, grace: timedelta) -> None:
    async with shop.database.sessions.begin() as session:
        await _give_up(session)
        unfinished = await session.scalars(
            select(col(OrderRow.id))
            .where(
                col(OrderRow.state).in_(("open", "processing", "review")),
                col(OrderRow.session_id).is_not(None),
                col(OrderRow.created_at) < func.now() - grace,
            )
            .order_by(col(OrderRow.checked_at).nulls_first(), col(OrderRow.id))
            .limit(MAX_ORDERS)
        )
        order_ids = list(unfinished)
    for order_id in order_ids:
        try:
            order = await fulfil(shop, order_id)
        except ApiError as error:
            found.problems.append(f"{order_id}: {error.message}")
            continue
        found.checked += 1
        found.granted += order.state == "paid"


async def _give_up(session: AsyncSession) -> None:
    """Let orders expire of which Stripe was never heard: nobody was given an address to pay at."""
    await session.execute(
        update(OrderRow)
        .where(
            col(OrderRow.state) == "open",
            col(OrderRow.session_id).is_(None),
            col(OrderRow.created_at) < func.now() - OPEN_FOR - OVERLAP,
        )
        .values(state="expired")
    )


async def _since(shop: Shop, name: str) -> tuple[datetime, datetime]:
    """Return the present instant, and the one since which is to be asked."""
    async with shop.database.sessions.begin() as session:
        now = (await session.execute(select(func.clock_timestamp()))).scalar_one()
        row = await session.get(CursorRow, name)
        return now, (row.polled_to - OVERLAP) if row else now - LOOK_BACK


async def _move(shop: Shop, name: str, to: datetime) -> None:
    statement = insert(CursorRow).values(name=name, polled_to=to)
    newest = func.greatest(col(CursorRow.polled_to), statement.excluded.polled_to)
    async with shop.database.sessions.begin() as session:
        await session.execute(
            statement.on_conflict_do_update(index_elements=["name"], set_={"polled_to": newest})
        )
