"""The books: documents of entries, balances as of an instant, months that are open or closed.

What an accountant or a verifier asks for. Money moves elsewhere; here it is only told.
"""

from collections.abc import AsyncIterator
from datetime import UTC, date, datetime
from typing import Any

from sqlalchemy import RowMapping, TextClause, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from darktree_kit.errors import BadRequest, Conflict
from darktree_ledger import chain
from darktree_ledger.accounts import must_exist
from darktree_ledger.books_schemas import (
    AsOf,
    ClosedMonth,
    MonthBalance,
    MonthTotal,
    MonthTotals,
    TrialBalanceRow,
)
from darktree_ledger.models import Entry

ROWS_PER_READ = 2_000
_REFUSED = "DT001"  # what ledger.close_month raises, with a message for people

_OF_CUSTOMER = text(
    """SELECT ledger.entry_document(ROW(e.*)::ledger.entry) FROM ledger.every_entry e
       WHERE e.customer_id = :customer_id AND e.recorded_at >= :start AND e.recorded_at < :end ORDER BY e.seq"""
)
_NEWEST = text(
    """SELECT * FROM ledger.every_entry WHERE customer_id = :customer_id AND recorded_at < :at
       ORDER BY seq DESC LIMIT 1"""
)
_OF_MONTH = text(
    """SELECT ledger.entry_document(e) FROM ledger.month_entries(:month) e
       WHERE e.kind NOT IN ('usage', 'absorbed') ORDER BY e.recorded_at, e.customer_id, e.seq"""
)


def of_customer(
    engine: AsyncEngine, customer_id: str, start: datetime, end: datetime
) -> AsyncIterator[bytes]:
    """Tell a customer's entries recorded in [start, end), oldest first, as JSON lines."""
    return json_lines(engine, _OF_CUSTOMER, {"customer_id": customer_id, "start": start, "end": end})


def of_month(engine: AsyncEngine, month: date) -> AsyncIterator[bytes]:
    """Tell a month's entries that are no usage, oldest first, as JSON lines."""
    return json_lines(engine, _OF_MONTH, {"month": month})


async def as_of(session: AsyncSession, customer_id: str, at: datetime) -> AsOf:
    """Return where a customer stood after the newest entry recorded before `at`. Raises UnknownCustomer."""
    await must_exist(session, customer_id)
    query = select(Entry).from_statement(_NEWEST)
    newest = await session.scalar(query, {"customer_id": customer_id, "at": at})
    if newest is None:
        head = chain.genesis(customer_id).hex()
        return AsOf(customer_id=customer_id, at=at, balance_nanos=0, bonus_nanos=0, seq=0, head=head)
    bonus = await session.scalar(
        text(
            """SELECT coalesce(sum(CASE WHEN credit_account = 'customer_credits' THEN bonus_nanos
                                        ELSE -bonus_nanos END), 0)
               FROM ledger.every_entry WHERE customer_id = :customer_id AND seq <= :seq AND bonus_nanos > 0"""
        ),
        {"customer_id": customer_id, "seq": newest.seq},
    )
    return AsOf(
        customer_id=customer_id,
        at=at,
        balance_nanos=newest.balance_after_nanos,
        bonus_nanos=int(bonus or 0),
        seq=newest.seq,
        head=newest.hash.hex(),
    )


async def trial_balance(session: AsyncSession, at: datetime) -> list[TrialBalanceRow]:
    """Return debits and credits of every account as of an instant; their sums are equal."""
    rows = (await session.execute(text("SELECT * FROM ledger.trial_balance(:at)"), {"at": at})).mappings()
    return [TrialBalanceRow.model_validate(dict(row)) for row in rows]


async def close(session: AsyncSession, month: date) -> ClosedMonth:
    """Close a month, or return it when it is closed already. Raises Conflict saying why it cannot be closed yet."""
    try:
        await session.execute(text("SELECT ledger.close_month(:month)"), {"month": month})
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) == _REFUSED:
            said = str(error.orig).splitlines()[0]
            raise Conflict(f"{month:%Y-%m} cannot be closed: {said}.", code="month_not_closable") from error
        raise
    closed = await closed_month(session, month)
    assert closed is not None
    return closed


async def closed_month(session: AsyncSession, month: date) -> ClosedMonth | None:
    return next(iter(await _closed_months(session, "WHERE m.month = :month", {"month": month})), None)


async def closed_months(session: AsyncSession) -> list[ClosedMonth]:
    """Return the closed months, oldest first."""
    return await _closed_months(session, "", {})


async def month_totals(session: AsyncSession, month: date) -> MonthTotals:
    """Return what moved in a month: for ever the same once it is closed."""
    query = text("SELECT * FROM ledger.month_totals(:month)")
    rows = (await session.execute(query, {"month": month})).mappings()
    totals = [MonthTotal.model_validate(dict(row)) for row in rows]
    return MonthTotals(month=month, closed=await closed_month(session, month), rows=totals)


async def month_balances(session: AsyncSession, month: date) -> list[MonthBalance]:
    """Return where every customer with anything to tell stood at the month's beginning and end."""
    query = text("SELECT * FROM ledger.month_balances(:month)")
    rows = (await session.execute(query, {"month": month})).mappings()
    return [MonthBalance.model_validate(dict(row)) for row in rows]


def month_of(name: str) -> date:
    """Return the first day of a month written as 2026-11. Raises BadRequest."""
    try:
        return datetime.strptime(name, "%Y-%m").replace(tzinfo=UTC).date()
    except ValueError as error:
        raise BadRequest("A month is written as 2026-11.", param="month", code="invalid_value") from error


async def _closed_months(session: AsyncSession, which: str, parameters: dict[str, Any]) -> list[ClosedMonth]:
    query = f"""SELECT m.month, m.tree_size, encode(c.root, 'hex') AS root, c.note AS checkpoint, m.closed_at
                FROM ledger.closed_month m JOIN ledger.checkpoint c ON c.size = m.tree_size {which} ORDER BY m.month"""  # noqa: S608
    rows = (await session.execute(text(query), parameters)).mappings()
    return [_closed(row) for row in rows]


def _closed(row: RowMapping) -> ClosedMonth:
    return ClosedMonth.model_validate(dict(row))


async def json_lines(
    engine: AsyncEngine, query: TextClause, parameters: dict[str, Any]
) -> AsyncIterator[bytes]:
    """Tell the one column of a query's rows as lines, as of one instant, however many there are."""
    async with engine.connect() as connection:
        await connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
        await connection.execute(text("SET LOCAL statement_timeout = 0"))
        result = await connection.stream(query.execution_options(yield_per=ROWS_PER_READ), parameters)
        async for rows in result.scalars().partitions():
            yield ("\n".join(rows) + "\n").encode()
