"""Statements: a month or any days, as a page to read and as files to keep."""

import asyncio
from datetime import date
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from sqlalchemy import select
from sqlmodel import col
from starlette.responses import RedirectResponse, Response, StreamingResponse

from darktree_billing import accounts, books_key
from darktree_billing.console.sessions import SignedIn
from darktree_billing.console.shell import TheMember, render
from darktree_billing.models import Customer
from darktree_billing.months import Month
from darktree_billing.state import TheBooksKey, TheLedger
from darktree_billing.statement_api import MEDIA_TYPES, Format, pieces, written
from darktree_billing.statement_period import PERIOD_PATTERN, Period
from darktree_billing.statements import statement
from darktree_kit.db import Session
from darktree_kit.errors import BadRequest

MAX_MONTHS = 36

PeriodInPath = Annotated[str, Path(pattern=PERIOD_PATTERN)]
Day = Annotated[str, Query(max_length=10)]
router = APIRouter(include_in_schema=False)


@router.get("/console/statements")
async def list_statements(
    request: Request,
    me: TheMember,
    session: Session,
    ledger: TheLedger,
    first: Day = "",
    last: Day = "",
) -> Response:
    problem = None
    if first or last:
        try:
            period = Period.parse(f"{date.fromisoformat(first)}_{date.fromisoformat(last)}")
            return RedirectResponse(f"/console/statements/{period}", 303)
        except ValueError:
            problem = "Choose a first and a last day, in order and at most a year apart."
    with accounts.ledger_refusals():
        account, closed = await asyncio.gather(ledger.account(me.customer_id), ledger.closed_months())
    values = {
        "months": await _months(session, me, account.day),
        "closed": {str(month.month)[:7] for month in closed},
        "problem": problem,
        "first": first,
        "last": last,
        "today": account.day,
    }
    return render(request, "statements.html", values, status=200 if problem is None else 400)


@router.get("/console/statements/{period}.{format}")  # before the next: its path would match too
async def download_statement(
    period: PeriodInPath,
    format: Format,
    request: Request,
    me: TheMember,
    session: Session,
    ledger: TheLedger,
    signer: TheBooksKey,
) -> StreamingResponse:
    key = books_key.required(signer)
    async with statement(
        session, ledger, me.customer_id, _period(period), request.app.state.seller_name
    ) as made:
        file = await asyncio.to_thread(written, made, format, key)
        name = f"{made.number}.{format}"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return StreamingResponse(pieces(file), media_type=MEDIA_TYPES[format], headers=headers)


@router.get("/console/statements/{period}")
async def read_statement(
    period: PeriodInPath, request: Request, me: TheMember, session: Session, ledger: TheLedger
) -> Response:
    chosen, seller = _period(period), request.app.state.seller_name
    async with statement(session, ledger, me.customer_id, chosen, seller, proven=False) as made:
        return render(request, "statement.html", {"period": chosen, "s": made.sections})


async def _months(session: Session, me: SignedIn, today: date) -> list[Month]:
    """Return the months since the account was opened, newest first."""
    opened = await session.scalar(select(col(Customer.created_at)).where(col(Customer.id) == me.customer_id))
    assert opened is not None
    month = Month(today.year, today.month)
    months: list[Month] = []
    while len(months) < MAX_MONTHS:
        months.append(month)
        if month.first_day <= opened.date():
            break
        month = month.previous
    return months


def _period(text: str) -> Period:
    try:
        return Period.parse(text)
    except ValueError as error:
        raise BadRequest(f"period: {error}.", param="period", code="invalid_value") from error
