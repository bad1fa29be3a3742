"""How buying stands: what waits, what was given up, what needs a person. For administrators, and for alerts."""

import asyncio
import logging
from typing import get_args

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from darktree_billing import metrics, sweep
from darktree_billing.payment_models import EventRow, OrderRow
from darktree_billing.payments import API_VERSION
from darktree_billing.payments_schemas import OrderState, PaymentsStatus
from darktree_kit.db import Database

EVERY_SECONDS = 15.0
UNFINISHED = ("open", "processing", "review")

_log = logging.getLogger(__name__)


async def status(session: AsyncSession, *, buying: bool) -> PaymentsStatus:
    """Return how buying stands."""
    waiting, oldest, dead = (
        await session.execute(
            select(
                func.count().filter(col(EventRow.state) == "waiting"),
                func.extract(
                    "epoch",
                    func.clock_timestamp()
                    - func.min(col(EventRow.received_at)).filter(col(EventRow.state) == "waiting"),
                ),
                func.count().filter(col(EventRow.state) == "dead"),
            ).where(col(EventRow.state).in_(("waiting", "dead")))
        )
    ).one()
    found = await session.execute(
        select(col(OrderRow.state), func.count().label("orders"))
        .where(col(OrderRow.state).in_(UNFINISHED))
        .group_by(col(OrderRow.state))
    )
    orders = {row.state: row.orders for row in found}
    return PaymentsStatus(
        buying=buying,
        api_version=API_VERSION,
        events_waiting=waiting,
        oldest_waiting_seconds=None if oldest is None else int(oldest),
        events_dead=dead,
        orders={state: orders.get(state, 0) for state in get_args(OrderState) if state in UNFINISHED},
        swept_at=await sweep.swept_to(session),
    )


async def watch(database: Database) -> None:
    """Set the gauges for as long as the task lives."""
    while True:
        try:
            async with database.sessions.begin() as session:
                told = await status(session, buying=True)
            metrics.EVENTS_WAITING.set(told.events_waiting)
            metrics.EVENTS_OLDEST.set(told.oldest_waiting_seconds or 0)
            metrics.EVENTS_DEAD.set(told.events_dead)
            for state, count in told.orders.items():
                metrics.ORDERS.labels(state).set(count)
        except Exception as error:
            _log.warning("how buying stands could not be told", extra={"error": str(error)[:500]})
        await asyncio.sleep(EVERY_SECONDS)
