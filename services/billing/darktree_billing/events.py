"""Stripe's events as they came: written down once, listed, and tried again by hand. Handling them is the inbox's."""

import logging
from datetime import timedelta
from typing import Literal

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from darktree_billing.errors import UnknownEvent
from darktree_billing.payment_facts import EventFacts
from darktree_billing.payment_models import EventRow
from darktree_billing.payments import EVENT_TYPES
from darktree_billing.payments_schemas import EventPage, EventState, EventView
from darktree_kit.errors import BadRequest, Conflict

MAX_FORGOTTEN = 1_000  # at once

_log = logging.getLogger(__name__)


async def receive(session: AsyncSession, event: EventFacts, source: Literal["webhook", "poll"]) -> bool:
    """Write an event down; tell whether it is new."""
    values = {
        "id": event.id,
        "type": event.type,
        "object_id": event.object_id,
        "api_version": event.api_version,
        "created_at": event.created_at,
        "source": source,
        "payload": event.payload,
    }
    if event.type not in EVENT_TYPES:
        values |= {"state": "ignored", "next_attempt_at": None}
    statement = insert(EventRow).values(values).on_conflict_do_nothing().returning(col(EventRow.id))
    return await session.scalar(statement) is not None


async def list_events(
    session: AsyncSession, state: EventState | None = None, limit: int = 100, after: str | None = None
) -> EventPage:
    """Return a page of events, newest first. Raises BadRequest when `after` is none of them."""
    received_at, event_id = col(EventRow.received_at), col(EventRow.id)
    query = select(EventRow).order_by(received_at.desc(), event_id.desc()).limit(limit + 1)
    if state is not None:
        query = query.where(col(EventRow.state) == state)
    if after is not None:
        last = await session.get(EventRow, after)
        if last is None:
            raise BadRequest("after: not a cursor of this list.", param="after", code="invalid_value")
        query = query.where(
            (received_at < last.received_at) | ((received_at == last.received_at) & (event_id < last.id))
        )
    rows = (await session.scalars(query)).all()
    views = [_view(row) for row in rows[:limit]]
    return EventPage(data=views, next=views[-1].id if len(rows) > limit else None)


async def find_event(session: AsyncSession, event_id: str) -> EventView:
    """Return an event. Raises UnknownEvent."""
    row = await session.get(EventRow, event_id)
    if row is None:
        raise UnknownEvent(event_id)
    return _view(row)


async def retry_event(session: AsyncSession, event_id: str, by: str) -> EventView:
    """Let an event be handled again, at once. Raises UnknownEvent, and Conflict for one that is never handled."""
    row = await session.get(EventRow, event_id, with_for_update=True)
    if row is None:
        raise UnknownEvent(event_id)
    if row.state == "ignored" and row.type not in EVENT_TYPES:
        raise Conflict(f"Events of type {row.type} lead to nothing here.", code="event_ignored")
    now = await session.scalar(select(func.clock_timestamp()))
    row.state, row.attempts, row.next_attempt_at, row.handled_at = "waiting", 0, now, None
    await session.flush()
    _log.info("an event is tried again", extra={"event": event_id, "by": by})
    return _view(row)


async def forget(session: AsyncSession, days: int) -> int:
    """Delete events that were handled and came longer ago, and return how many; what waits or was given up stays."""
    old = (
        select(col(EventRow.id))
        .where(
            col(EventRow.received_at) < func.clock_timestamp() - timedelta(days=days),
            col(EventRow.state).in_(("done", "ignored")),
        )
        .order_by(col(EventRow.received_at))
        .limit(MAX_FORGOTTEN)
    )
    deleted = delete(EventRow).where(col(EventRow.id).in_(old)).returning(col(EventRow.id))
    return len((await session.scalars(deleted)).all())


def _view(row: EventRow) -> EventView:
    return EventView.model_validate(row, from_attributes=True)
