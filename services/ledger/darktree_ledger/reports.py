"""What the ledger reports of itself, as it goes over the wire."""

from datetime import datetime

from pydantic import BaseModel, Field

from darktree_ledger.schemas import Problem


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
