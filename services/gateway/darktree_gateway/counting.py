"""How long a prompt is, told before it is paid for: an engine counts the same body that a completion would be sent.

Free, and only for customers; so it is bounded for each of them, as an engine's time is everybody's.
"""

from collections import Counter
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Request
from fastapi.security import HTTPBearer
from pydantic import BaseModel, Field

from darktree_gateway import fields, requests
from darktree_gateway.auth import Caller
from darktree_gateway.errors import LaneUnavailable, ModelNotFound, TooManyCounts
from darktree_gateway.serving import Service, read_body
from darktree_gateway.usage import caller_of
from darktree_gateway.watch import ClientLeft
from darktree_kit.errors import BadRequest
from darktree_kit.openapi import refusals

MAX_COUNTS_PER_CUSTOMER = 4  # at once, in one gateway

_counting: Counter[str] = Counter()
_Caller = Annotated[Caller, Depends(caller_of)]
_BEARER = HTTPBearer(auto_error=False, description="An API key. It is checked by the gateway itself.")
_BODY = {
    "type": "object",
    "required": ["model"],
    "properties": {name: {} for name in sorted({*fields.CHAT, *fields.COMPLETIONS})}
    | {"model": {"type": "string"}},
    "additionalProperties": False,
}
router = APIRouter(
    prefix="/v1",
    responses=refusals(400, 401, 403, 404, 413, 429, 503),
    dependencies=[Depends(_BEARER)],
    tags=["completions"],
)


class TokenCount(BaseModel):
    """What the prompt of a request is charged as, and what its answer could have beside it."""

    object: Literal["token_count"] = "token_count"
    model: str
    count: int = Field(description="The `prompt_tokens` of the request's usage: of all its prompts together.")
    counts: list[int] = Field(description="The tokens of each prompt.")
    max_model_len: int = Field(description="The context, which a prompt and its answer share.")


@router.post(
    "/tokenize",
    summary="Count the tokens of a prompt, for free",
    openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": _BODY}}}},
)
async def count_tokens(request: Request, caller: _Caller) -> TokenCount:
    """Take the body of a chat completion (with `messages`) or of a completion (with `prompt`); nothing is generated."""
    service: Service = request.app.state.service
    requests.check_headers(request.scope["headers"])
    try:
        content = await read_body(request.receive)
    except ClientLeft as error:
        raise BadRequest("The request ended before its body did.") from error
    ask = requests.read(content, requests.endpoint_of(content))
    lane = service.lanes.table.find(ask.model, caller.customer_id)
    if lane is None or service.prices.model(ask.model) is None:
        raise ModelNotFound(ask.model)
    if not lane.endpoints:
        raise LaneUnavailable
    counts, context_tokens = ask.prompt_tokens, lane.context_tokens
    if not ask.exact:
        with _Turn(caller):
            counts, served_tokens = await service.upstream.count(lane, ask)
        context_tokens = min(context_tokens, served_tokens)
    return TokenCount(model=ask.model, count=sum(counts), counts=counts, max_model_len=context_tokens)


class _Turn:
    """One of the counts that a customer may have running. Raises TooManyCounts when there is none left."""

    def __init__(self, caller: Caller) -> None:
        self._customer_id = caller.customer_id

    def __enter__(self) -> None:
        if _counting[self._customer_id] >= MAX_COUNTS_PER_CUSTOMER:
            raise TooManyCounts
        _counting[self._customer_id] += 1

    def __exit__(self, *_: object) -> None:
        _counting[self._customer_id] -= 1
        if not _counting[self._customer_id]:
            del _counting[self._customer_id]
