"""What customers ask the platform team for, and what the team decides, as it goes over the wire."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool

from darktree_ledger.schemas import MAX_TOKENS, Text, Tokens

MAX_LANE_TOKENS_PER_DAY = 10**10
MIN_FIRST_TOKEN_MILLISECONDS = 10
MAX_FIRST_TOKEN_MILLISECONDS = 600_000
CAP_REQUEST_ID_PATTERN = r"^capreq_[0-9a-f]{32}$"
LANE_REQUEST_ID_PATTERN = r"^lanereq_[0-9a-f]{32}$"

CapRequestState = Literal["open", "approved", "declined"]
LaneRequestState = Literal["open", "accepted", "declined"]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AskCap(_Body):
    """A customer asks for another daily cap."""

    cap_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)]
    reason: Text


class DecideCap(_Body):
    """Approve, with the cap that was asked for or another one, or decline."""

    approve: StrictBool
    cap_tokens: Tokens | None = Field(None, description="Of an approval; as asked for when absent.")
    note: Text | None = Field(None, description="The customer reads it.")


class CapRequestView(BaseModel):
    id: str
    customer_id: str
    asked_cap_tokens: int
    reason: str
    asked_by: str
    asked_at: datetime
    state: CapRequestState
    decided_cap_tokens: int | None
    decided_by: str | None
    decided_at: datetime | None
    note: str | None


class CapRequestPage(BaseModel):
    """Requests, newest first. `next` is the cursor of the following page, or null at the end."""

    data: list[CapRequestView]
    next: str | None


class AskLane(_Body):
    """A customer asks for a lane that serves nobody else."""

    model: Annotated[str, Field(min_length=1, max_length=64)] = Field(
        description="Id of a model that is sold."
    )
    tokens_per_day: Annotated[int, Field(ge=1, le=MAX_LANE_TOKENS_PER_DAY)] = Field(
        description="Prompt and completion together."
    )
    first_token_milliseconds: (
        Annotated[int, Field(ge=MIN_FIRST_TOKEN_MILLISECONDS, le=MAX_FIRST_TOKEN_MILLISECONDS)] | None
    ) = Field(None, description="Within which 95 of 100 answers should begin.")
    reason: Text


class DecideLane(_Body):
    """Accept (the lane is, or is about to be, applied) or decline."""

    accept: StrictBool
    note: Text | None = Field(None, description="The customer reads it.")


class LaneRequestView(BaseModel):
    id: str
    customer_id: str
    model: str
    tokens_per_day: int
    first_token_milliseconds: int | None
    reason: str
    asked_by: str
    asked_at: datetime
    state: LaneRequestState
    decided_by: str | None
    decided_at: datetime | None
    note: str | None


class LaneRequestPage(BaseModel):
    """Requests, newest first. `next` is the cursor of the following page, or null at the end."""

    data: list[LaneRequestView]
    next: str | None
