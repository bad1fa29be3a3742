"""Reading: balances, days, caps and entries. Nothing here sums the ledger."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, time
from uuid import UUID

from sqlalchemy import func, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from darktree_kit.errors import BadRequest
from darktree_ledger.errors import UnknownCustomer
from darktree_ledger.models import Account, CapChange, DayUsage, Entry, Hold
from darktree_ledger.reports import HoldPage, HoldView
from darktree_ledger.schemas import AccountView, CapChangeView, DayView, EntryFilter, EntryPage, EntryView

MAX_DAYS = 366
MAX_CAP_CHANGES = 1_000


async def account(session: AsyncSession, customer_id: str) -> AccountView:
    """Return the customer's row as it stands, expired holds already left out. Raises UnknownCustomer."""
    row = await session.get(Account, customer_id)
    if row is None:
        raise UnknownCustomer(customer_id)
    now = (await session.execute(select(func.ledger.clock_now()))).scalar_one()
    today = max(row.today, now.date())
    used = await session.get(DayUsage, (customer_id, today))
    tokens = col(Hold.prompt_tokens) + col(Hold.completion_tokens)
    open_holds, held_nanos, held_tokens = (
        await session.execute(
            select(
                func.count(),
                func.coalesce(func.sum(col(Hold.amount_nanos)), 0),
                func.coalesce(func.sum(tokens).filter(col(Hold.usage_day) == today), 0),
            ).where(
                col(Hold.customer_id) == customer_id, col(Hold.state) == "open", col(Hold.expires_at) > now
            )
        )
    ).one()
    return AccountView(
        customer_id=customer_id,
        balance_nanos=row.balance_nanos,
        bonus_nanos=row.bonus_nanos,
        held_nanos=int(held_nanos),
        cap_tokens=row.cap_tokens,
        day=today,
        day_tokens=used.prompt_tokens + used.completion_tokens if used else 0,
        day_held_tokens=int(held_tokens),
        reset_seconds=86_400 - (now.hour * 3600 + now.minute * 60 + now.second),
        entry_count=row.seq,
        open_holds=open_holds,
        head=row.head.hex(),
    )


async def entries(
    session: AsyncSession, customer_id: str, *, limit: int, after: str | None, which: EntryFilter
) -> EntryPage:
    """Return a page of entries, newest first. The cursor is a sequence number, so new entries never move a page."""
    await must_exist(session, customer_id)
    query = select(Entry).where(col(Entry.customer_id) == customer_id)
    if after is not None:
        query = query.where(col(Entry.seq) < _cursor(after))
    for column, value in ((Entry.kind, which.kind), (Entry.model, which.model), (Entry.key_id, which.key_id)):
        if value is not None:
            query = query.where(col(column) == value)
    if which.day is not None:
        first, last = (datetime.combine(which.day, end, UTC) for end in (time.min, time.max))
        query = query.where(col(Entry.recorded_at).between(first, last))
    rows = (await session.scalars(query.order_by(col(Entry.seq).desc()).limit(limit + 1))).all()
    page = rows[:limit]
    return EntryPage(data=[view(row) for row in page], next=str(page[-1].seq) if len(rows) > limit else None)


async def entries_of_hold(session: AsyncSession, customer_id: str, hold_id: UUID) -> list[EntryView]:
    """Return what a hold was settled with: a usage entry, an absorbed one, or both; nothing while it is open."""
    hold = await session.get(Hold, hold_id)
    if hold is None or hold.customer_id != customer_id or hold.entry_seq is None:
        return []
    rows = await session.scalars(
        select(Entry)
        .where(
            col(Entry.customer_id) == customer_id,
            col(Entry.seq).between(hold.entry_seq, hold.entry_seq + 1),
            col(Entry.hold_id) == hold_id,
        )
        .order_by(col(Entry.seq))
    )
    return [view(row) for row in rows]


async def open_holds(
    session: AsyncSession, *, customer_id: str | None, limit: int, after: str | None
) -> HoldPage:
    """Return a page of what running requests hold, everybody's or one customer's, by customer and age."""
    place = tuple_(col(Hold.customer_id), col(Hold.hold_id))
    query = select(Hold).where(col(Hold.state) == "open", col(Hold.expires_at) > func.ledger.clock_now())
    if customer_id is not None:
        await must_exist(session, customer_id)
        query = query.where(col(Hold.customer_id) == customer_id)
    if after is not None:
        last_customer, last_hold = _hold_cursor(after)
        query = query.where(col(Hold.customer_id) >= last_customer, place > (last_customer, last_hold))
    rows = (await session.scalars(query.order_by(place).limit(limit + 1))).all()
    return HoldPage.of([HoldView.model_validate(row, from_attributes=True) for row in rows], limit)


async def days(session: AsyncSession, customer_id: str, first: date, last: date) -> list[DayView]:
    """Return the days that have anything to tell, oldest first; both ends are included."""
    await must_exist(session, customer_id)
    if not 0 <= (last - first).days < MAX_DAYS:
        raise BadRequest(f"first and last must be in order and at most {MAX_DAYS} days apart.", param="last")
    rows = await session.scalars(
        select(DayUsage)
        .where(col(DayUsage.customer_id) == customer_id, col(DayUsage.day).between(first, last))
        .order_by(col(DayUsage.day))
    )
    return [DayView.model_validate(row, from_attributes=True) for row in rows]


async def cap_changes(session: AsyncSession, customer_id: str) -> Sequence[CapChangeView]:
    """Return the newest changes of the daily cap, newest first."""
    await must_exist(session, customer_id)
    rows = await session.scalars(
        select(CapChange)
        .where(col(CapChange.customer_id) == customer_id)
        .order_by(col(CapChange.changed_at).desc(), col(CapChange.operation_id).desc())
        .limit(MAX_CAP_CHANGES)
    )
    return [CapChangeView.model_validate(row, from_attributes=True) for row in rows]


async def must_exist(session: AsyncSession, customer_id: str) -> None:
    """Raise UnknownCustomer unless the ledger has this customer's account."""
    if await session.get(Account, customer_id) is None:
        raise UnknownCustomer(customer_id)


def _cursor(after: str) -> int:
    if not (after.isascii() and after.isdigit() and len(after) <= 18):
        raise BadRequest("after must be the `next` of an earlier page.", param="after", code="invalid_value")
    return int(after)


def _hold_cursor(after: str) -> tuple[str, UUID]:
    customer_id, _, hold_id = after.rpartition(".")
    try:
        if not customer_id:
            raise ValueError(after)
        return customer_id, UUID(hold_id)
    except ValueError as error:
        message = "after must be the `next` of an earlier page."
        raise BadRequest(message, param="after", code="invalid_value") from error


def view(row: Entry) -> EntryView:
    """Return an entry as its document."""
    values = row.model_dump() | {"prev_hash": row.prev_hash.hex(), "hash": row.hash.hex()}
    return EntryView.model_validate(values)
