"""What the ledger reports, as it goes over the wire: of itself, of what is held now, of what was used."""

from datetime import date, datetime
from uuid import UUID

from pydantic import BaseModel, Field

from darktree_ledger.schemas import AccountView, DayView, Problem


class Reconciliation(BaseModel):
    """The ledger held against itself: what rounds over the customers found, and what no log has yet."""

    rounds: int = Field(description="Whole rounds since the process started.")
    checked_at: datetime | None = Field(description="When the last slice was checked.")
    problems: list[Problem] = Field(description="Of the last whole round and the present one.")
    unsealed_entries: int
    unsealed_seconds: float = Field(description="The age of the oldest of them.")


class LaneTokens(BaseModel):
    """What a lane served: charged and absorbed tokens."""

    lane: str
    prompt_tokens: int
    completion_tokens: int


class HoldView(BaseModel):
    """What a running request has reserved; it is released at `expires_at` unless it is settled or renewed before."""

    hold_id: UUID
    customer_id: str
    key_id: str
    model: str
    lane: str
    prompt_tokens: int
    completion_tokens: int
    amount_nanos: int
    usage_day: date
    placed_at: datetime
    expires_at: datetime


class HoldPage(BaseModel):
    """Open holds, by customer and age. `next` is the cursor of the following page, or null at the end."""

    data: list[HoldView]
    next: str | None

    @classmethod
    def of(cls, holds: list[HoldView], limit: int) -> "HoldPage":
        """Return the page that the first `limit` of these holds make, and the cursor if there are more."""
        page = holds[:limit]
        following = f"{page[-1].customer_id}.{page[-1].hold_id}" if len(holds) > limit else None
        return cls(data=page, next=following)


class UsageRow(BaseModel):
    """What one key was charged for one model on one UTC day."""

    day: date
    model: str
    key_id: str
    requests: int
    prompt_tokens: int
    completion_tokens: int
    amount_nanos: int


class RecentDays(BaseModel):
    """How a customer stands now, and the latest days up to today that have anything to tell, oldest first."""

    account: AccountView
    days: list[DayView]
