"""The log with its entries, in order: what an export is made of, for verifiers that trust nobody.

Read from the log's side: an entry that was sealed and is gone is told as null, and not passed over.
"""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import StreamingResponse
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from darktree_kit.auth import require
from darktree_kit.db import Database
from darktree_kit.openapi import refusals
from darktree_ledger.books import json_lines
from darktree_ledger.merkle import MAX_SIZE
from darktree_ledger.schemas import AccountId

_JSON_LINES = "application/jsonl"
_LINE = """
    SELECT '{"position":' || s.position || ',"leaf":"' || encode(s.hash, 'hex') || '","customer_id":'
        || to_json(s.customer_id) || ',"seq":' || s.seq || ',"entry":'
        || CASE WHEN e.seq IS NULL THEN 'null' ELSE ledger.entry_document(ROW(e.*)::ledger.entry) END || '}'
    FROM ledger.sealed s LEFT JOIN ledger.every_entry e ON e.customer_id = s.customer_id AND e.seq = s.seq
"""
_ALL = text(f"{_LINE} WHERE s.position < :size ORDER BY s.position")
_OF_CUSTOMER = text(f"{_LINE} WHERE s.position < :size AND s.customer_id = :customer_id ORDER BY s.seq")

router = APIRouter(
    prefix="/v1/log",
    tags=["log"],
    dependencies=[Depends(require("billing"))],
    responses=refusals(400, 401, 403, 503),
)


def entries(engine: AsyncEngine, size: int, customer_id: str | None) -> AsyncIterator[bytes]:
    """Tell the first `size` entries of the log, in order, or one customer's of them, as JSON lines."""
    query = _ALL if customer_id is None else _OF_CUSTOMER
    return json_lines(engine, query, {"size": size} | ({"customer_id": customer_id} if customer_id else {}))


@router.get(
    "/entries",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "`{position, leaf, customer_id, seq, entry}`, one a line; `entry` is null when missing.",
            "content": {_JSON_LINES: {"itemSchema": {"type": "object"}}},
        }
    },
)
async def read_log_entries(
    request: Request,
    size: Annotated[int, Query(ge=1, le=MAX_SIZE, description="Those before this position.")],
    customer_id: Annotated[AccountId | None, Query(description="Only this customer's.")] = None,
) -> StreamingResponse:
    database: Database = request.app.state.database
    return StreamingResponse(entries(database.engine, size, customer_id), media_type=_JSON_LINES)
