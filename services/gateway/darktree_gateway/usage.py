"""What customers may read: the models they are served, what they have left, and every charge."""

from datetime import date, datetime
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request
from fastapi.security import HTTPBearer
from pydantic import BaseModel, Field

from darktree_gateway.auth import Caller
from darktree_gateway.errors import MeteringUnavailable, ModelNotFound
from darktree_gateway.serving import Service
from darktree_kit.errors import ApiError, BadRequest, NotFound
from darktree_kit.ids import parse_request_id, request_id_of
from darktree_kit.money import format_dollars
from darktree_kit.openapi import refusals
from darktree_ledger.errors import UnknownCustomer
from darktree_ledger.receipts import Receipt
from darktree_ledger.schemas import EntryView

MAX_PAGE = 1_000
DEFAULT_PAGE = 100
OWNER = "darktree"


async def caller_of(request: Request) -> Caller:
    """Return who calls, and let the answer carry the limits of their cap."""
    service: Service = request.app.state.service
    caller = await service.authenticator.identify(request.scope["headers"])
    request.state.log_fields = {"customer_id": caller.customer_id}
    request.state.limits = await service.admission.limits(caller)
    return caller


_Caller = Annotated[Caller, Depends(caller_of)]
_BEARER = HTTPBearer(auto_error=False, description="An API key. It is checked by the gateway itself.")
router = APIRouter(
    prefix="/v1",
    responses=refusals(400, 401, 403, 404, 503),
    dependencies=[Depends(_BEARER)],
    tags=["account"],
)


class ModelCard(BaseModel):
    """A model, as OpenAI lists it."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = OWNER
    context_length: int


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class Day(BaseModel):
    """The present UTC day, by the ledger's clock."""

    date: date
    cap_tokens: int
    used_tokens: int
    held_tokens: int = Field(description="Reserved for requests that are running.")
    remaining_tokens: int
    resets_in_seconds: int


class Credits(BaseModel):
    """What is left. Amounts are integers of nano-dollars; `balance` is the same in dollars, exactly."""

    object: Literal["credits"] = "credits"
    customer_id: str
    balance_nanos: int
    held_nanos: int
    available_nanos: int
    balance: str
    day: Day


class Charge(BaseModel):
    """One charge: a line of the ledger."""

    request_id: str
    entry_id: UUID
    model: str
    lane: str
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    amount_nanos: int
    amount: str
    key_id: str
    outcome: str
    balance_after_nanos: int
    usage_day: date
    charged_at: datetime


class ProvenCharge(Charge):
    """A charge, and what proves it once a signed checkpoint covers it: some seconds later."""

    receipt: Receipt | None


class ChargePage(BaseModel):
    """Charges, newest first. `next` is the cursor of the following page, or null at the end."""

    object: Literal["list"] = "list"
    data: list[Charge]
    next: str | None


@router.get("/models", summary="List the models that you are served")
async def list_models(request: Request, caller: _Caller) -> ModelList:
    models = request.app.state.service.lanes.table.models(caller.customer_id)
    cards = [_card(request.app.state.service, caller, model) for model in models]
    return ModelList(data=[card for card in cards if card is not None])


@router.get("/models/{model:path}", summary="Show one model")
async def show_model(request: Request, caller: _Caller, model: str) -> ModelCard:
    card = _card(request.app.state.service, caller, model)
    if card is None:
        raise ModelNotFound(model)
    return card


@router.get("/credits", summary="Show your balance and what is left of the day")
async def show_credits(request: Request, caller: _Caller) -> Credits:
    try:
        account = await request.app.state.service.metering.ledger.account(caller.customer_id)
    except ApiError as error:
        raise unless_known(error) from error
    left = account.cap_tokens - account.day_tokens - account.day_held_tokens
    return Credits(
        customer_id=account.customer_id,
        balance_nanos=account.balance_nanos,
        held_nanos=account.held_nanos,
        available_nanos=account.balance_nanos - account.held_nanos,
        balance=format_dollars(account.balance_nanos),
        day=Day(
            date=account.day,
            cap_tokens=account.cap_tokens,
            used_tokens=account.day_tokens,
            held_tokens=account.day_held_tokens,
            remaining_tokens=max(0, left),
            resets_in_seconds=account.reset_seconds,
        ),
    )


@router.get("/usage", summary="List your charges, newest first")
async def list_usage(
    request: Request,
    caller: _Caller,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = DEFAULT_PAGE,
    after: Annotated[str | None, Query(min_length=1, max_length=64)] = None,
) -> ChargePage:
    ledger = request.app.state.service.metering.ledger
    try:
        page = await ledger.entries(caller.customer_id, limit=limit, after=after, kind="usage")
    except ApiError as error:
        raise unless_known(error) from error
    return ChargePage(data=[_charge(entry) for entry in page.data], next=page.next)


@router.get("/usage/{request_id}", summary="Show what one request was charged")
async def show_usage(request: Request, caller: _Caller, request_id: str) -> ProvenCharge:
    try:
        hold_id = parse_request_id(request_id)
    except ValueError as error:
        raise BadRequest("This is not a request id: it begins with req_.", param="request_id") from error
    ledger = request.app.state.service.metering.ledger
    try:
        entries = await ledger.entry_of_hold(caller.customer_id, hold_id)
        entry = next((entry for entry in entries if entry.kind == "usage"), None)
        if entry is None:
            raise NotFound("No charge has this request id.", param="request_id")
        receipt = await ledger.receipt(caller.customer_id, entry.seq)
    except ApiError as error:
        raise unless_known(error) from error
    return ProvenCharge(**dict(_charge(entry)), receipt=receipt)


def _card(service: Service, caller: Caller, model_id: str) -> ModelCard | None:
    """Return a model that some lane serves the caller and the catalog prices."""
    lane = service.lanes.table.find(model_id, caller.customer_id)
    model = service.prices.model(model_id)
    if lane is None or model is None:
        return None
    return ModelCard(id=model_id, created=model.created, context_length=lane.context_tokens)


def _charge(entry: EntryView) -> Charge:
    assert entry.hold_id is not None
    assert entry.usage_day is not None
    return Charge(
        request_id=request_id_of(entry.hold_id),
        entry_id=entry.entry_id,
        model=entry.model or "",
        lane=entry.lane or "",
        prompt_tokens=entry.prompt_tokens,
        completion_tokens=entry.completion_tokens,
        total_tokens=entry.prompt_tokens + entry.completion_tokens,
        amount_nanos=entry.amount_nanos,
        amount=format_dollars(entry.amount_nanos),
        key_id=entry.key_id or "",
        outcome=entry.outcome or "completed",
        balance_after_nanos=entry.balance_after_nanos,
        usage_day=entry.usage_day,
        charged_at=entry.recorded_at,
    )


def unless_known(error: ApiError) -> ApiError:
    """Return the ledger's refusal where it is the customer's to mend, else that metering is away."""
    if error.answer_status == 400:
        return BadRequest(error.message, param=error.param, code=error.answer_code or "invalid_value")
    if error.answer_status == 404 and error.answer_code != UnknownCustomer.code:
        return NotFound(error.message, param=error.param)
    return MeteringUnavailable()
