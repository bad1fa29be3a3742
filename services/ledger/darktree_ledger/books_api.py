"""The books over HTTP: exports as JSON lines, instants, and months."""

from collections.abc import AsyncIterator
from datetime import date
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import AwareDatetime

from darktree_kit.auth import require
from darktree_kit.db import Database, Session
from darktree_kit.errors import BadRequest
from darktree_kit.openapi import refusals
from darktree_ledger import books
from darktree_ledger.accounts import must_exist
from darktree_ledger.books_schemas import AsOf, ClosedMonth, MonthBalance, MonthTotals, TrialBalanceRow
from darktree_ledger.schemas import AccountId, EntryView

_JSON_LINES = "application/jsonl"


def _month(
    month: Annotated[str, Path(pattern=r"^[0-9]{4}-[0-9]{2}$", examples=["2026-11"], description="UTC.")],
) -> date:
    return books.month_of(month)


_Month = Annotated[date, Depends(_month)]
_Instant = Annotated[AwareDatetime, Query(description="RFC 3339, with its offset.")]
_CustomerId = Annotated[AccountId, Path()]
router = APIRouter(
    prefix="/v1",
    tags=["books"],
    dependencies=[Depends(require("billing"))],
    responses=refusals(400, 401, 403, 404, 409, 503),
)


def _json_lines(lines: AsyncIterator[bytes]) -> StreamingResponse:
    return StreamingResponse(lines, media_type=_JSON_LINES)


def _answers(what: str) -> dict[int | str, dict[str, object]]:
    schema = {"$ref": f"#/components/schemas/{EntryView.__name__}"}
    return {200: {"description": what, "content": {_JSON_LINES: {"itemSchema": schema}}}}


@router.get(
    "/accounts/{customer_id}/export",
    response_class=StreamingResponse,
    responses=_answers("The entries recorded from `start` until before `end`, oldest first, one a line."),
)
async def export_entries(
    customer_id: _CustomerId, start: _Instant, end: _Instant, session: Session, request: Request
) -> StreamingResponse:
    await must_exist(session, customer_id)
    if end < start:
        raise BadRequest("end must not be before start.", param="end", code="invalid_value")
    return _json_lines(books.of_customer(_database(request).engine, customer_id, start, end))


@router.get("/accounts/{customer_id}/as-of")
async def read_as_of(customer_id: _CustomerId, at: _Instant, session: Session) -> AsOf:
    """Tell where a customer stood after the newest entry recorded before an instant."""
    return await books.as_of(session, customer_id, at)


@router.get("/trial-balance")
async def read_trial_balance(at: _Instant, session: Session) -> list[TrialBalanceRow]:
    """Tell debits and credits of every account as of an instant."""
    return await books.trial_balance(session, at)


@router.get("/months")
async def list_closed_months(session: Session) -> list[ClosedMonth]:
    """Tell which months are closed, oldest first."""
    return await books.closed_months(session)


@router.post("/months/{month}/close")
async def close_month(month: _Month, session: Session) -> ClosedMonth:
    """Close a month; what it holds never changes again. Closing twice changes nothing."""
    return await books.close(session, month)


@router.get("/months/{month}/totals")
async def read_month_totals(month: _Month, session: Session) -> MonthTotals:
    """Tell what moved in a month."""
    return await books.month_totals(session, month)


@router.get("/months/{month}/balances")
async def read_month_balances(month: _Month, session: Session) -> list[MonthBalance]:
    """Tell where every customer stood at a month's beginning and end."""
    return await books.month_balances(session, month)


@router.get(
    "/months/{month}/lines",
    response_class=StreamingResponse,
    responses=_answers("The month's entries that are no usage, oldest first, one a line."),
)
async def export_month_lines(month: _Month, request: Request) -> StreamingResponse:
    return _json_lines(books.of_month(_database(request).engine, month))


def _database(request: Request) -> Database:
    database: Database = request.app.state.database
    return database
