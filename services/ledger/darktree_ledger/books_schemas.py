"""What the ledger tells of its books: instants, trial balances and months."""

from datetime import date, datetime

from pydantic import BaseModel, Field

from darktree_ledger.schemas import Kind


class AsOf(BaseModel):
    """Where a customer stood at an instant: after the newest entry that was recorded before it."""

    customer_id: str
    at: datetime
    balance_nanos: int
    bonus_nanos: int
    seq: int = Field(description="Of that entry; 0 when there is none.")
    head: str = Field(description="Its hash, hexadecimal; before the first entry what stands there instead.")


class TrialBalanceRow(BaseModel):
    account: str
    model: str | None = Field(description="Of revenue, the model that earned it.")
    debit_nanos: int
    credit_nanos: int


class ClosedMonth(BaseModel):
    """A month that is closed: what it holds never changes again."""

    month: date = Field(description="Its first day.")
    tree_size: int = Field(description="How many entries of the log it is proven by.")
    root: str
    checkpoint: str = Field(description="The signed note of that tree.")
    closed_at: datetime


class MonthTotal(BaseModel):
    """What moved in a month: entries of one customer, day and kind from one account to another, summed."""

    month: date
    customer_id: str
    day: date
    kind: Kind
    debit_account: str
    credit_account: str
    model: str | None
    entries: int
    amount_nanos: int
    bonus_nanos: int
    prompt_tokens: int
    completion_tokens: int


class MonthTotals(BaseModel):
    month: date
    closed: ClosedMonth | None = Field(description="Null while the month is open.")
    rows: list[MonthTotal]


class MonthBalance(BaseModel):
    """Where a customer stood at a month's beginning and end."""

    customer_id: str
    opening_nanos: int
    opening_bonus_nanos: int
    closing_nanos: int
    closing_bonus_nanos: int
