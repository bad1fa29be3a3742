"""Usage told by day, model and key: for people who look at it, never on a request's path, for it sums entries."""

from datetime import UTC, date, datetime, time
from typing import Annotated

from fastapi import APIRouter, Depends, Path
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from darktree_kit.auth import require
from darktree_kit.db import Session
from darktree_kit.errors import BadRequest
from darktree_kit.openapi import refusals
from darktree_ledger.accounts import MAX_DAYS, must_exist
from darktree_ledger.reports import UsageRow
from darktree_ledger.schemas import AccountId

# A usage is recorded on its day or later: what was recorded before the first day is no part of it.
_USAGE = text(
    """SELECT usage_day AS day, model, key_id, count(*) AS requests, sum(prompt_tokens)::bigint AS prompt_tokens,
              sum(completion_tokens)::bigint AS completion_tokens, sum(amount_nanos)::bigint AS amount_nanos
       FROM ledger.every_entry
       WHERE customer_id = :customer_id AND kind = 'usage' AND recorded_at >= :start
         AND usage_day BETWEEN :first AND :last
       GROUP BY usage_day, model, key_id ORDER BY usage_day, model, key_id"""
)

router = APIRouter(
    prefix="/v1",
    dependencies=[Depends(require("billing"))],
    responses=refusals(400, 401, 403, 404, 503),
)


@router.get("/accounts/{customer_id}/usage")
async def read_usage(
    customer_id: Annotated[AccountId, Path()], session: Session, first: date, last: date
) -> list[UsageRow]:
    """Tell what was charged on each UTC day of a range, by model and key; both ends are included."""
    return await usage(session, customer_id, first, last)


async def usage(session: AsyncSession, customer_id: str, first: date, last: date) -> list[UsageRow]:
    """Return what was charged, oldest day first. Raises UnknownCustomer, and BadRequest for too many days."""
    if not 0 <= (last - first).days < MAX_DAYS:
        raise BadRequest(f"first and last must be in order and at most {MAX_DAYS} days apart.", param="last")
    start = datetime.combine(first, time(), UTC)
    parameters = {"customer_id": customer_id, "start": start, "first": first, "last": last}
    rows = (await session.execute(_USAGE, parameters)).mappings().all()
    if not rows:
        await must_exist(session, customer_id)
    return [UsageRow.model_validate(dict(row)) for row in rows]
