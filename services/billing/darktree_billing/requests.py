"""What customers ask the platform team for, another daily cap or a lane of their own, and what the team decides.

A request is decided once. An approved cap is set in the ledger by an operation whose id follows from the request's, so
that a decision whose commit was lost is repeated and not doubled.
"""

from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from darktree_billing import accounts
from darktree_billing.errors import (
    RequestDecided,
    TooManyOpen,
    UnknownCustomer,
    UnknownModel,
    UnknownRequest,
)
from darktree_billing.freezes import locked_customer
from darktree_billing.models import Customer
from darktree_billing.plans import Plans
from darktree_billing.request_models import CapRequestRow, LaneRequestRow
from darktree_billing.request_schemas import (
    AskCap,
    AskLane,
    CapRequestPage,
    CapRequestState,
    CapRequestView,
    DecideCap,
    DecideLane,
    LaneRequestPage,
    LaneRequestState,
    LaneRequestView,
)
from darktree_billing.schemas import SetCap
from darktree_kit import ids
from darktree_kit.errors import BadRequest
from darktree_ledger.client import LedgerClient

MAX_OPEN_CAP_REQUESTS = 1  # of a customer: who wants another number says so in a note, or waits
MAX_OPEN_LANE_REQUESTS = 3
MAX_REASON_CHARACTERS = 500  # what the ledger keeps of a reason

_OPERATIONS = uuid5(NAMESPACE_URL, "https://darktree.dev/cap-requests")


async def ask_cap(session: AsyncSession, customer_id: str, body: AskCap, by: str) -> CapRequestView:
    """Ask for another cap. Raises UnknownCustomer, and TooManyOpen while one is open."""
    await _room_for_one(session, CapRequestRow, customer_id, MAX_OPEN_CAP_REQUESTS)
    row = CapRequestRow(
        id=f"capreq_{ids.uuid7().hex}",
        customer_id=customer_id,
        asked_cap_tokens=body.cap_tokens,
        reason=body.reason,
        asked_by=by,
    )
    session.add(row)
    await session.flush()
    return _cap_view(row)


async def list_cap_requests(
    session: AsyncSession,
    customer_id: str | None = None,
    state: CapRequestState | None = None,
    limit: int = 100,
    after: str | None = None,
) -> CapRequestPage:
    """Return a page of requests, newest first: everybody's, or one customer's."""
    rows, following = await _page(session, CapRequestRow, customer_id, state, limit, after)
    return CapRequestPage(data=[_cap_view(row) for row in rows], next=following)


async def find_cap_request(session: AsyncSession, request_id: str) -> CapRequestView:
    """Return a request. Raises UnknownRequest."""
    return _cap_view(await _find(session, CapRequestRow, request_id))


async def decide_cap(
    session: AsyncSession, ledger: LedgerClient, request_id: str, body: DecideCap, by: str
) -> CapRequestView:
    """Approve or decline a request; the same decision again changes nothing.

    Raises UnknownRequest, RequestDecided when it was decided otherwise, OperationConflict when an approval with another
    cap reached the ledger before its own commit was lost.
    """
    row = await _find(session, CapRequestRow, request_id, lock=True)
    state = "approved" if body.approve else "declined"
    _say_why(state, body.note)
    cap_tokens = None
    if body.approve:
        cap_tokens = row.asked_cap_tokens if body.cap_tokens is None else body.cap_tokens
    if row.state != "open":
        if (row.state, row.decided_cap_tokens) != (state, cap_tokens):
            raise RequestDecided(request_id, row.state)
        return _cap_view(row)
    if cap_tokens is not None:
        change = SetCap(
            cap_tokens=cap_tokens,
            reason=f"asked for: {row.reason}"[:MAX_REASON_CHARACTERS],
            operation_id=cap_operation_id(request_id),
        )
        await locked_customer(session, row.customer_id)  # a purchase looks at the cap, and then sets it
        await accounts.change_cap(ledger, row.customer_id, change, actor=by)
    await _decide(session, row, state, body.note, by, decided_cap_tokens=cap_tokens)
    return _cap_view(row)


def cap_operation_id(request_id: str) -> UUID:
    """Return the id of the operation that sets the cap which this request asked for."""
    return uuid5(_OPERATIONS, request_id)


async def ask_lane(
    session: AsyncSession, plans: Plans, customer_id: str, body: AskLane, by: str
) -> LaneRequestView:
    """Ask for a dedicated lane. Raises UnknownCustomer, UnknownModel, and TooManyOpen while enough are open."""
    offered = [model.id for model in plans.dedicated_models()]
    if body.model not in offered:
        raise UnknownModel(body.model, offered)
    await _room_for_one(session, LaneRequestRow, customer_id, MAX_OPEN_LANE_REQUESTS)
    row = LaneRequestRow(
        id=f"lanereq_{ids.uuid7().hex}",
        customer_id=customer_id,
        model=body.model,
        tokens_per_day=body.tokens_per_day,
        first_token_milliseconds=body.first_token_milliseconds,
        reason=body.reason,
        asked_by=by,
    )
    session.add(row)
    await session.flush()
    return _lane_view(row)


async def list_lane_requests(
    session: AsyncSession,
    customer_id: str | None = None,
    state: LaneRequestState | None = None,
    limit: int = 100,
    after: str | None = None,
) -> LaneRequestPage:
    """Return a page of requests, newest first: everybody's, or one customer's."""
    rows, following = await _page(session, LaneRequestRow, customer_id, state, limit, after)
    return LaneRequestPage(data=[_lane_view(row) for row in rows], next=following)


async def find_lane_request(session: AsyncSession, request_id: str) -> LaneRequestView:
    """Return a request. Raises UnknownRequest."""
    return _lane_view(await _find(session, LaneRequestRow, request_id))


async def decide_lane(session: AsyncSession, request_id: str, body: DecideLane, by: str) -> LaneRequestView:
    """Accept or decline a request; the same decision again changes nothing. Raises UnknownRequest, RequestDecided."""
    row = await _find(session, LaneRequestRow, request_id, lock=True)
    state = "accepted" if body.accept else "declined"
    _say_why(state, body.note)
    if row.state != "open":
        if row.state != state:
            raise RequestDecided(request_id, row.state)
        return _lane_view(row)
    await _decide(session, row, state, body.note, by)
    return _lane_view(row)


async def count_open(session: AsyncSession) -> tuple[int, int]:
    """Return how many requests wait for the team: for caps, and for lanes."""
    caps, lanes = [
        await session.scalar(select(func.count()).select_from(table).where(col(table.state) == "open")) or 0
        for table in (CapRequestRow, LaneRequestRow)
    ]
    return caps, lanes


async def _room_for_one(session: AsyncSession, table: Any, customer_id: str, most: int) -> None:
    """Raise TooManyOpen when a customer has enough open ones. The customer's lock makes the count exact."""
    if await session.get(Customer, customer_id, with_for_update=True) is None:
        raise UnknownCustomer(customer_id)
    waiting = select(func.count()).where(table.customer_id == customer_id, table.state == "open")
    if (await session.scalar(waiting) or 0) >= most:
        raise TooManyOpen(customer_id, most)


async def _page(
    session: AsyncSession,
    table: Any,
    customer_id: str | None,
    state: str | None,
    limit: int,
    after: str | None,
) -> tuple[list[Any], str | None]:
    query = select(table).order_by(table.id.desc()).limit(limit + 1)  # ids sort by time
    if customer_id is not None:
        query = query.where(table.customer_id == customer_id)
    if state is not None:
        query = query.where(table.state == state)
    if after is not None:
        query = query.where(table.id < after)
    rows = list((await session.scalars(query)).all())
    return rows[:limit], rows[limit - 1].id if len(rows) > limit else None


async def _find(session: AsyncSession, table: Any, request_id: str, *, lock: bool = False) -> Any:
    row = await session.get(table, request_id, with_for_update=lock or None)
    if row is None:
        raise UnknownRequest(request_id)
    return row


async def _decide(
    session: AsyncSession, row: Any, state: str, note: str | None, by: str, **more: int | None
) -> None:
    decided_at = await session.scalar(select(func.clock_timestamp()))
    for name, value in (
        more | {"state": state, "note": note, "decided_by": by, "decided_at": decided_at}
    ).items():
        setattr(row, name, value)
    await session.flush()


def _say_why(state: str, note: str | None) -> None:
    if state == "declined" and not note:
        raise BadRequest("note: say why, the customer reads it.", param="note", code="invalid_value")


def _cap_view(row: CapRequestRow) -> CapRequestView:
    return CapRequestView.model_validate(row, from_attributes=True)


def _lane_view(row: LaneRequestRow) -> LaneRequestView:
    return LaneRequestView.model_validate(row, from_attributes=True)
