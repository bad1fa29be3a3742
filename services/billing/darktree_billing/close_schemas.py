"""What goes over the wire about the month's close."""

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MAX_IMPORT_CHARACTERS = 20_000_000


class ImportBalance(BaseModel):
    """A file of Stripe's balance transactions: the Dashboard's CSV, an itemized report's CSV, or the API's JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: Annotated[str, Field(max_length=MAX_IMPORT_CHARACTERS)]


class ImportedBalance(BaseModel):
    imported: int = Field(description="How many were new.")
    known_before: int
    learned: int = Field(
        description="Of those known before, how many Stripe now says more about (their payout)."
    )
    posted: int = Field(description="Entries made in the ledger for fees and payouts.")
    months: list[str] = Field(description="The months in whose books the new ones are.")


class CloseView(BaseModel):
    """A closed month."""

    month: str
    manifest_sha256: str = Field(description="Of `manifest.json`, which has the SHA-256 of every other file.")
    pack_bytes: int
    exceptions: int
    closed_at: datetime


class CloseResult(CloseView):
    """What closing gave: `is_new` the first time; afterwards whether the ledger still gives the same, byte for byte."""

    is_new: bool
    differs: list[str] = Field(
        description="Files that would be different now: after a new release of Darktree, or a rewritten history."
    )


class CloseList(BaseModel):
    """Closed months, newest first."""

    data: list[CloseView]
    books_key: str | None = Field(
        description="The verifier key of packs and statements; keep it elsewhere too."
    )
