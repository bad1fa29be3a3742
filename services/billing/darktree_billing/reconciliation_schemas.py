"""What goes over the wire about reconciliation: engines' counters in, a report of four comparisons out."""

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from darktree_ledger.reports import Reconciliation

MAX_READINGS = 4_096
MAX_TOKENS = 10**15
MAX_UNIX_MILLISECONDS = 10**14

_Name = Annotated[str, Field(max_length=512, pattern=r"^[!-~]+$")]
_Tokens = Annotated[int, Field(ge=0, le=MAX_TOKENS)]


class EngineReading(BaseModel):
    """An engine's own counters since it started, and when that was: so a restart is a new run, and nothing is lost."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    lane: _Name
    endpoint: _Name
    started_unix_milliseconds: Annotated[int, Field(ge=0, le=MAX_UNIX_MILLISECONDS)]
    prompt_tokens: _Tokens
    completion_tokens: _Tokens


class EngineReadings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    readings: Annotated[list[EngineReading], Field(max_length=MAX_READINGS)]


class EngineSeen(BaseModel):
    """An engine that a gateway has read: its counters since its newest start, and when they were last read."""

    lane: str
    endpoint: str
    started_at: datetime
    read_at: datetime
    prompt_tokens: int
    completion_tokens: int


class LaneComparison(BaseModel):
    """What a lane's engines processed and what the ledger charged or absorbed, in the same time."""

    lane: str
    since: datetime
    engine_prompt_tokens: int
    engine_completion_tokens: int
    ledger_prompt_tokens: int
    ledger_completion_tokens: int
    agrees: bool = Field(description="Within what may be on its way: the settings' share and slack.")


class StripeExceptions(BaseModel):
    """Open exceptions of one kind between the ledger and Stripe's balance."""

    bucket: str
    count: int
    difference_nanos: int = Field(description="What the ledger has more than Stripe.")


class StripeComparison(BaseModel):
    month: str | None = Field(description="The open month that was looked at.")
    problem: str | None = Field(description="Why it cannot be told now.")
    exceptions: list[StripeExceptions]


class ReconciliationReport(BaseModel):
    """The ledger beside the engines, beside Stripe, beside itself, and beside its log."""

    at: datetime
    agrees: bool
    lanes: list[LaneComparison]
    stripe: StripeComparison
    ledger: Reconciliation
    seal_agrees: bool = Field(description="The oldest entry that no log has yet is young.")
