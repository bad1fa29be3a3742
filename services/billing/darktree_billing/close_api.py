"""The month's close over HTTP, for administrators."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.security import HTTPBearer

from darktree_billing import balance, close
from darktree_billing.balance_report import ReportError, parse_report
from darktree_billing.chart import Chart, ChartError, load_chart
from darktree_billing.close_schemas import CloseList, CloseResult, ImportBalance, ImportedBalance
from darktree_billing.errors import NotClosable, UnreadableReport
from darktree_billing.months import MONTH_PATTERN, Month
from darktree_billing.state import TheBooksKey, TheLedger
from darktree_kit.auth import require
from darktree_kit.db import Session
from darktree_kit.openapi import refusals

ZIP = "application/zip"

router = APIRouter(
    prefix="/admin",
    tags=["close"],
    dependencies=[
        Depends(require("admin")),
        Depends(HTTPBearer(scheme_name="admin", auto_error=False)),  # for the description only
    ],
    responses=refusals(401, 403, 503),
)


async def _month(month: Annotated[str, Path(pattern=MONTH_PATTERN, examples=["2026-11"])]) -> Month:
    return Month.parse(month)


async def _chart(request: Request) -> Chart:
    """Read the books file anew: what it says when a month is closed stays with that month."""
    try:
        return load_chart(request.app.state.books_file)
    except ChartError as error:
        raise NotClosable(f"The books file cannot be used: {error}.", code="books_file") from error


TheMonth = Annotated[Month, Depends(_month)]
TheChart = Annotated[Chart, Depends(_chart)]


def _zip(what: str) -> dict[int | str, dict[str, Any]]:
    schema = {"type": "string", "format": "binary"}
    return {200: {"description": what, "content": {ZIP: {"schema": schema}}}}


@router.post("/balance-transactions", responses=refusals(400, 409))
async def import_balance(body: ImportBalance, session: Session, ledger: TheLedger) -> ImportedBalance:
    """Take in Stripe's balance transactions, and post their fees and payouts. Repeating it changes nothing."""
    try:
        transactions = parse_report(body.file)
    except ReportError as error:
        raise UnreadableReport(f"{error}.", param="file") from error
    return await balance.import_transactions(session, ledger, transactions)


@router.get("/closes")
async def list_closes(session: Session, signer: TheBooksKey) -> CloseList:
    """List closed months, newest first."""
    return await close.closes(session, signer)


@router.post("/closes/{month}", responses=refusals(400, 409))
async def close_month(
    month: TheMonth, session: Session, ledger: TheLedger, signer: TheBooksKey, chart: TheChart
) -> CloseResult:
    """Close a month and make its pack. Closing it again says whether the same would come out, and changes nothing."""
    return await close.close_month(session, ledger, signer, chart, month)


@router.get(
    "/closes/{month}/pack.zip",
    response_class=Response,
    responses=refusals(400, 404) | _zip("The pack, signed; the same bytes every time."),
)
async def read_pack(month: TheMonth, session: Session) -> Response:
    return _attached(await close.pack(session, month), f"close-{month}.zip")


@router.get(
    "/closes/{month}/preview.zip",
    response_class=Response,
    responses=refusals(400, 409) | _zip("The pack of an open month as far as it has come, unsigned."),
)
async def read_preview(month: TheMonth, session: Session, ledger: TheLedger, chart: TheChart) -> Response:
    return _attached(await close.preview(session, ledger, chart, month), f"PREVIEW-close-{month}.zip")


def _attached(content: bytes, name: str) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(content, media_type=ZIP, headers=headers)
