"""What goes over the wire to the ledger: operations in, one result for each out, and the views it answers.

Every operation carries an id that its caller made. The same id with the same body is the same operation and gets the
same answer; with another body it is a conflict that names the field. Tokens are counts, money is nano-dollars, prices
are nano-dollars a token.
"""

from datetime import date, datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationInfo, field_validator

from darktree_kit.money import MAX_AMOUNT_NANOS

MAX_OPERATIONS_PER_BATCH = 1_000
MAX_TOKENS = 100_000_000  # a request, and a day: times the highest price it stays inside BIGINT
MAX_PRICE_NANOS = 10_000_000_000  # $10 a token
MAX_HOLD_SECONDS = 3_600
MAX_PAGE = 1_000
CUSTOMER_ID_PATTERN = r"^[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?$"

HOUSE = "_house"  # the account of what concerns no customer; no customer can have this id

CustomerId = Annotated[str, Field(pattern=CUSTOMER_ID_PATTERN, description="1 to 64 of a-z, 0-9, - and _.")]
AccountId = Annotated[
    str, Field(pattern=rf"^{HOUSE}$|{CUSTOMER_ID_PATTERN}", description=f"A customer's id, or {HOUSE}.")
]
Name = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]
Text = Annotated[str, Field(min_length=1, max_length=500, pattern=r"^[^\x00-\x1f\x7f]+$")]
Tokens = Annotated[int, Field(strict=True, ge=0, le=MAX_TOKENS)]
Price = Annotated[int, Field(ge=0, le=MAX_PRICE_NANOS)]
Seconds = Annotated[int, Field(ge=1, le=MAX_HOLD_SECONDS)]
Kind = Literal["grant", "usage", "absorbed", "adjustment", "refund", "dispute", "reinstatement", "posting"]
PostedAccount = Literal[
    "stripe_clearing", "bank", "stripe_fees", "dispute_fees", "refunds", "disputes", "sales_tax_payable"
]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class OpenAccount(_Body):
    """Make a customer's account, with a balance of nothing and a daily cap. Opening twice changes nothing."""

    op: Literal["open"] = "open"
    operation_id: UUID
    customer_id: CustomerId
    cap_tokens: Tokens
    actor: Name


class Grant(_Body):
    """Add credits. `source` says which account they come from."""

    op: Literal["grant"] = "grant"
    operation_id: UUID
    customer_id: CustomerId
    amount_nanos: Annotated[int, Field(gt=0, le=MAX_AMOUNT_NANOS)]
    source: Literal["bonus", "purchase"]
    reason: Text
    actor: Name
    reference: Name | None = None


class Adjust(_Body):
    """Correct a balance, up or down, with a reason and an author. What is held by running requests stays untouched."""

    op: Literal["adjust"] = "adjust"
    operation_id: UUID
    customer_id: CustomerId
    amount_nanos: Annotated[int, Field(ge=-MAX_AMOUNT_NANOS, le=MAX_AMOUNT_NANOS)]
    reason: Text
    actor: Name
    reference: Name | None = None

    @field_validator("amount_nanos")
    @classmethod
    def _not_nothing(cls, amount: int) -> int:
        if amount == 0:
            raise ValueError("must not be 0")
        return amount


class ClawBack(_Body):
    """Take a purchase back, refunded or disputed: what is unused of it from the balance, the rest as the house's loss.

    `purchase_id` is the operation that granted it. What is unused follows from first in, first out.
    """

    op: Literal["claw_back"] = "claw_back"
    operation_id: UUID
    customer_id: CustomerId
    purchase_id: UUID
    amount_nanos: Annotated[int, Field(gt=0, le=MAX_AMOUNT_NANOS)]
    cause: Literal["refund", "dispute"]
    reason: Text
    actor: Name
    reference: Name | None = None


class Reinstate(_Body):
    """Undo a claw-back: the dispute was won, or the refund failed."""

    op: Literal["reinstate"] = "reinstate"
    operation_id: UUID
    customer_id: CustomerId
    claw_back_id: UUID
    reason: Text
    actor: Name
    reference: Name | None = None


class Post(_Body):
    """Book what changes no balance: fees, payouts, tax. In the house's own chain unless it concerns a customer."""

    op: Literal["post"] = "post"
    operation_id: UUID
    customer_id: CustomerId | Literal["_house"] = HOUSE
    debit_account: PostedAccount
    credit_account: PostedAccount
    amount_nanos: Annotated[int, Field(gt=0, le=MAX_AMOUNT_NANOS)]
    occurred_on: date | None = None
    reason: Text
    actor: Name
    reference: Name | None = None

    @field_validator("credit_account")
    @classmethod
    def _from_one_to_another(cls, credit: str, info: ValidationInfo) -> str:
        if credit == info.data.get("debit_account"):
            raise ValueError("must differ from debit_account")
        return credit


class ChangeCap(_Body):
    """Set the daily cap, in tokens a UTC day. What is used or held already stays so; zero stops everything."""

    op: Literal["cap"] = "cap"
    operation_id: UUID
    customer_id: CustomerId
    cap_tokens: Tokens
    reason: Text
    actor: Name


class Hold(_Body):
    """Reserve what a request may cost before it is served.

    `prompt_tokens` is a count, or an upper bound when `exact` is false. At most `completion_tokens` are granted and at
    least `step_tokens`, in multiples of it (`n` answers share what is granted). An exact hold is clamped to what is
    left of the cap and the balance; an inexact one is granted whole or refused with reason `inexact`.
    """

    op: Literal["hold"] = "hold"
    hold_id: UUID
    customer_id: CustomerId
    key_id: Name
    model: Name
    lane: Name
    prompt_tokens: Tokens
    completion_tokens: Tokens
    step_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] = 1
    exact: bool
    prompt_price_nanos: Price
    completion_price_nanos: Price
    ttl_seconds: Seconds


class Renew(_Body):
    """Move an open hold's expiry to `ttl_seconds` from now. Repeating it is harmless."""

    op: Literal["renew"] = "renew"
    hold_id: UUID
    customer_id: CustomerId
    ttl_seconds: Seconds


class Settle(_Body):
    """Charge the usage of a hold and release the rest.

    What exceeds the hold, or what no longer fits after the hold expired, is absorbed by the house, never charged.
    """

    op: Literal["settle"] = "settle"
    hold_id: UUID
    customer_id: CustomerId
    entry_id: UUID
    prompt_tokens: Tokens
    completion_tokens: Tokens
    outcome: Literal["completed", "abandoned", "failed"] = "completed"


class Void(_Body):
    """Release a hold whole: nothing was used."""

    op: Literal["void"] = "void"
    hold_id: UUID
    customer_id: CustomerId


class Show(_Body):
    """Read an account, in order with the operations around it."""

    op: Literal["show"] = "show"
    customer_id: CustomerId


Operation = Annotated[
    OpenAccount
    | Grant
    | Adjust
    | ClawBack
    | Reinstate
    | Post
    | ChangeCap
    | Hold
    | Renew
    | Settle
    | Void
    | Show,
    Field(discriminator="op"),
]
OPERATIONS: TypeAdapter[list[Operation]] = TypeAdapter(
    Annotated[list[Operation], Field(min_length=1, max_length=MAX_OPERATIONS_PER_BATCH)]
)


class Result(BaseModel):
    """What became of one operation, and the customer's row after it.

    `outcome`: `done`; `refused` with a reason; `conflict` with the field that differs from the first time, or with
    reason `resolved` when the hold was already settled or voided. `failed` means that this operation could not be
    applied at all, while others of its batch were.
    """

    outcome: Literal["done", "refused", "conflict"]
    reason: (
        Literal[
            "cap",
            "balance",
            "in_flight",
            "inexact",
            "expired",
            "resolved",
            "unknown_customer",
            "unknown_hold",
            "unknown_purchase",
            "unknown_claw_back",
            "exceeds_purchase",
            "failed",
        ]
        | None
    ) = None
    field: str | None = None
    replayed: bool = False
    # The account after the operation; null only when there is none.
    balance_nanos: int | None = None
    held_nanos: int | None = None
    cap_tokens: int | None = None
    day: date | None = None
    day_tokens: int | None = None
    day_held_tokens: int | None = None
    reset_seconds: int | None = None
    # A hold: how much was granted, of which day, and until when.
    completion_tokens: int | None = None
    usage_day: date | None = None
    expires_in_seconds: float | None = None
    # An entry: what was charged, and what was absorbed.
    entry_id: UUID | None = None
    seq: int | None = None
    charged_tokens: int | None = None
    absorbed_tokens: int | None = None
    amount_nanos: int | None = None
    rest_nanos: int | None = Field(default=None, description="Of a claw-back: what the house lost.")


RESULTS: TypeAdapter[list[Result]] = TypeAdapter(list[Result])


class AccountView(BaseModel):
    """A customer's row: what enforces the cap and the balance, and what every display shows."""

    customer_id: str
    balance_nanos: int
    bonus_nanos: int = Field(description="Of the balance, what was given and not bought; it is used first.")
    held_nanos: int
    cap_tokens: int
    day: date
    day_tokens: int
    day_held_tokens: int
    reset_seconds: int = Field(description="Seconds until the day ends, 00:00 UTC, by the database's clock.")
    entry_count: int
    open_holds: int
    head: str = Field(description="Hash of the newest entry, hexadecimal: the head of the customer's chain.")


class EntryView(BaseModel):
    """One line of the ledger. `amount_nanos` moved from `debit_account` to `credit_account`.

    Of it, `bonus_nanos` were bonus credits: when they leave the customer's credits, they go to `bonus_credits` instead.
    """

    version: int = Field(description="Of the bytes that are hashed.")
    entry_id: UUID
    customer_id: str
    seq: int
    kind: Kind
    debit_account: str
    credit_account: str
    amount_nanos: int
    bonus_nanos: int
    balance_after_nanos: int
    usage_day: date | None = Field(
        description="The day of a usage; of a posting, the day on which it happened."
    )
    hold_id: UUID | None
    key_id: str | None
    model: str | None
    lane: str | None
    prompt_tokens: int
    completion_tokens: int
    prompt_price_nanos: int
    completion_price_nanos: int
    outcome: str | None
    reason: str | None
    actor: str | None
    reference: str | None
    recorded_at: datetime
    prev_hash: str
    hash: str


class EntryFilter(BaseModel):
    """Which entries are wanted: those with what a field says, and any where it says nothing."""

    kind: Kind | None = None
    model: Name | None = None
    key_id: Name | None = None
    day: date | None = None


class EntryPage(BaseModel):
    """Entries, newest first. `next` is the cursor of the following page, or null at the end."""

    data: list[EntryView]
    next: str | None


class CapChangeView(BaseModel):
    operation_id: UUID
    cap_tokens: int
    previous_cap_tokens: int | None
    reason: str
    actor: str
    changed_at: datetime


class DayView(BaseModel):
    """One UTC day of one customer."""

    day: date
    requests: int
    prompt_tokens: int
    completion_tokens: int
    amount_nanos: int
    held_tokens: int
    absorbed_tokens: int
    refused_requests: int


class Problem(BaseModel):
    """One thing that the checker found to be wrong."""

    customer_id: str
    what: str
    expected: str
    found: str


class CheckReport(BaseModel):
    """The projection compared with the fold of the entries, and every chain recomputed."""

    customers: int
    entries: int
    open_holds: int
    problems: list[Problem]
