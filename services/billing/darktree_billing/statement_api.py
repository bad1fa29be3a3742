"""Statements and the ledger's export over HTTP, for administrators."""

import asyncio
import tempfile
from collections.abc import Iterator
from enum import StrEnum
from typing import IO, Annotated

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import StreamingResponse
from fastapi.security import HTTPBearer

from darktree_billing import books_key, ledger_export
from darktree_billing.state import TheBooksKey, TheLedger
from darktree_billing.statement_csv import csv_text
from darktree_billing.statement_json import Statement, json_lines, sha256_of
from darktree_billing.statement_pdf import pdf_bytes
from darktree_billing.statement_period import PERIOD_PATTERN, Period
from darktree_billing.statements import ENTRIES_IN_MEMORY_BYTES, statement
from darktree_kit.auth import require
from darktree_kit.db import Session
from darktree_kit.errors import BadRequest
from darktree_kit.notes import Signer
from darktree_kit.openapi import refusals
from darktree_ledger.schemas import CUSTOMER_ID_PATTERN

PIECE_BYTES = 64_000
MAX_NOTE_CHARACTERS = 4_000


class Format(StrEnum):
    """How a statement is told. The JSON has every entry and can be verified; all three have the same numbers."""

    JSON = "json"
    CSV = "csv"
    PDF = "pdf"


MEDIA_TYPES = {
    Format.JSON: "application/json",
    Format.CSV: "text/csv; charset=utf-8",
    Format.PDF: "application/pdf",
}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_CustomerId = Annotated[str, Path(pattern=CUSTOMER_ID_PATTERN)]

router = APIRouter(
    prefix="/admin",
    tags=["statements"],
    dependencies=[
        Depends(require("admin")),
        Depends(HTTPBearer(scheme_name="admin", auto_error=False)),  # for the description only
    ],
    responses=refusals(401, 403, 503),
)


@router.get(
    "/customers/{customer_id}/statements/{period}.{format}",
    response_class=StreamingResponse,
    responses=refusals(400, 404)
    | {
        200: {
            "description": "The statement, as a file.",
            "content": {media.partition(";")[0]: _BINARY for media in MEDIA_TYPES.values()},
        }
    },
)
async def read_statement(
    customer_id: _CustomerId,
    period: Annotated[
        str, Path(pattern=PERIOD_PATTERN, description="`2026-11`, or `2026-11-01_2026-11-15`: UTC days.")
    ],
    format: Format,
    session: Session,
    ledger: TheLedger,
    signer: TheBooksKey,
    request: Request,
) -> StreamingResponse:
    """Make a customer's statement of a month, or of any days. Of closed months, the bytes are always the same."""
    key = books_key.required(signer)
    async with statement(
        session, ledger, customer_id, _period(period), request.app.state.seller_name
    ) as made:
        file = await asyncio.to_thread(written, made, format, key)
        name = f"{made.number}.{format}"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return StreamingResponse(pieces(file), media_type=MEDIA_TYPES[format], headers=headers)


@router.get(
    "/ledger/export",
    response_class=StreamingResponse,
    responses=refusals(400, 404)
    | {200: {"description": "The export, as JSON lines.", "content": {"application/jsonl": _BINARY}}},
)
async def export_ledger(
    ledger: TheLedger,
    customer_id: Annotated[str | None, Query(pattern=CUSTOMER_ID_PATTERN, description="Only theirs.")] = None,
    earlier: Annotated[
        str | None,
        Query(
            max_length=MAX_NOTE_CHARACTERS, description="A checkpoint that was kept: what to prove it with."
        ),
    ] = None,
) -> StreamingResponse:
    """Export what the newest checkpoint covers, with everything that an offline verifier needs."""
    pieces = await ledger_export.export(ledger, customer_id, earlier)
    return StreamingResponse(pieces, media_type="application/jsonl")


def _period(text: str) -> Period:
    try:
        return Period.parse(text)
    except ValueError as error:
        raise BadRequest(f"period: {error}.", param="period", code="invalid_value") from error


def written(made: Statement, format: Format, signer: Signer) -> IO[bytes]:
    file = tempfile.SpooledTemporaryFile(ENTRIES_IN_MEMORY_BYTES, prefix="dt-statement-")  # noqa: SIM115 - sent later
    match format:
        case Format.JSON:
            file.writelines(json_lines(made, signer))
        case Format.CSV:
            file.write(csv_text(made, sha256_of(made, signer)).encode())
        case Format.PDF:
            file.write(pdf_bytes(made, sha256_of(made, signer)))
    file.seek(0)
    return file


def pieces(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while piece := file.read(PIECE_BYTES):
            yield piece
