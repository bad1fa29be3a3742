"""A customer's own part of the ledger: every entry, not charges alone, and what proves each of them."""

from datetime import date, datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import PlainTextResponse, Response
from fastapi.security import HTTPBearer
from pydantic import BaseModel, Field

from darktree_gateway.auth import Caller
from darktree_gateway.serving import Service
from darktree_gateway.usage import DEFAULT_PAGE, MAX_PAGE, caller_of, unless_known
from darktree_kit.errors import ApiError, NotFound
from darktree_kit.ids import request_id_of
from darktree_kit.money import format_dollars
from darktree_kit.openapi import refusals
from darktree_ledger.client import LedgerClient
from darktree_ledger.merkle import MAX_SIZE
from darktree_ledger.receipts import ConsistencyProof, LogKeyView, Receipt
from darktree_ledger.schemas import EntryFilter, EntryView, Kind, Name

MAX_SEQ = 10**17
_Caller = Annotated[Caller, Depends(caller_of)]
_Size = Annotated[int, Query(ge=1, le=MAX_SIZE)]
_BEARER = HTTPBearer(auto_error=False, description="An API key. It is checked by the gateway itself.")
router = APIRouter(
    prefix="/v1/ledger",
    responses=refusals(400, 401, 403, 404, 503),
    dependencies=[Depends(_BEARER)],
    tags=["ledger"],
)


class Entry(BaseModel):
    """One line of the ledger. Amounts are integers of nano-dollars, positive whichever way they moved."""

    seq: int = Field(description="Its number among your entries, from 1 on.")
    entry_id: UUID
    kind: Kind
    amount_nanos: int
    amount: str
    debit_account: str
    credit_account: str
    balance_after_nanos: int
    balance_after: str
    request_id: str | None = Field(description="Of the request that was charged.")
    model: str | None
    lane: str | None
    key_id: str | None
    prompt_tokens: int
    completion_tokens: int
    outcome: str | None
    usage_day: date | None
    reason: str | None
    reference: str | None
    recorded_at: datetime
    hash: str = Field(description="Of this entry and the one before it (docs/ledger-format.md).")
    proof: str = Field(description="Where what proves it is found.")


class ProvenEntry(Entry):
    """An entry, and what proves it once a signed checkpoint covers it: some seconds later."""

    receipt: Receipt | None


class Page(BaseModel):
    """Entries, newest first. `next` is the cursor of the following page, or null at the end."""

    object: Literal["list"] = "list"
    data: list[Entry]
    next: str | None


@router.get("", summary="List your ledger entries, newest first")
async def list_entries(
    request: Request,
    caller: _Caller,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = DEFAULT_PAGE,
    after: Annotated[str | None, Query(min_length=1, max_length=64)] = None,
    kind: Annotated[Kind | None, Query(description="Only entries of this kind.")] = None,
    model: Annotated[Name | None, Query(description="Only charges of this model.")] = None,
    key_id: Annotated[Name | None, Query(description="Only charges of this key.")] = None,
    day: Annotated[date | None, Query(description="Only charges of this UTC day.")] = None,
) -> Page:
    which = EntryFilter(kind=kind, model=model, key_id=key_id, day=day)
    try:
        page = await _ledger_of(request, caller).entries(
            caller.customer_id, limit=limit, after=after, which=which
        )
    except ApiError as error:
        raise unless_known(error) from error
    return Page(data=[Entry(**_shown(entry)) for entry in page.data], next=page.next)


@router.get("/entries/{seq}", summary="Show one of your ledger entries, and what proves it")
async def show_entry(
    request: Request, caller: _Caller, seq: Annotated[int, Path(ge=1, le=MAX_SEQ)]
) -> ProvenEntry:
    ledger = _ledger_of(request, caller)
    try:
        page = await ledger.entries(caller.customer_id, limit=1, after=str(seq + 1))
        if not page.data or page.data[0].seq != seq:
            raise NotFound("You have no entry of this number.", param="seq")
        receipt = await ledger.receipt(caller.customer_id, seq)
    except ApiError as error:
        raise unless_known(error) from error
    return ProvenEntry(**_shown(page.data[0]), receipt=receipt)


@router.get(
    "/checkpoint",
    summary="Show the ledger's newest checkpoint",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def show_checkpoint(
    request: Request,
    caller: _Caller,
    size: Annotated[int | None, Query(ge=1, le=MAX_SIZE, description="Of a log of so many entries.")] = None,
) -> PlainTextResponse:
    """Return a signed note: keep it, and later ask whether the ledger still begins with what it covers."""
    try:
        return PlainTextResponse(await _ledger_of(request, caller).checkpoint(size))
    except ApiError as error:
        raise unless_known(error) from error


@router.get("/consistency", summary="Prove that one checkpoint's log is the beginning of another's")
async def prove_consistency(
    request: Request, caller: _Caller, first: _Size, second: _Size
) -> ConsistencyProof:
    try:
        return await _ledger_of(request, caller).consistency(first, second)
    except ApiError as error:
        raise unless_known(error) from error


@router.get("/keys", summary="List the keys that sign the ledger's checkpoints, oldest first")
async def list_keys(request: Request, caller: _Caller) -> list[LogKeyView]:
    try:
        return await _ledger_of(request, caller).log_keys()
    except ApiError as error:
        raise unless_known(error) from error


def _ledger_of(request: Request, caller: Caller) -> LedgerClient:
    """Return the ledger whose log has the caller's entries."""
    service: Service = request.app.state.service
    return service.metering.ledger.of(caller.customer_id)


def _shown(entry: EntryView) -> dict[str, object]:
    said = entry.model_dump(
        include={
            "seq", "entry_id", "kind", "amount_nanos", "debit_account", "credit_account", "balance_after_nanos",
            "model", "lane", "key_id", "prompt_tokens", "completion_tokens", "outcome", "usage_day",
            "reason", "reference", "recorded_at", "hash",
        }
    )  # fmt: skip
    return said | {
        "amount": format_dollars(entry.amount_nanos),
        "balance_after": format_dollars(entry.balance_after_nanos),
        "request_id": request_id_of(entry.hold_id) if entry.hold_id else None,
        "proof": f"/v1/ledger/entries/{entry.seq}",
    }
