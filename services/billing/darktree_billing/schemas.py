"""What goes over the wire to billing: the gateway's look-ups, and the administration of customers."""

from datetime import date, datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from darktree_ledger.schemas import CustomerId, Name, Text, Tokens

MAX_KEYS_PER_CUSTOMER = 100  # that can be used; revoked and expired ones do not count
MAX_KEY_LIFETIME_DAYS = 3_660
MAX_REQUESTS_PER_MINUTE = 1_000_000
MAX_CONCURRENT_REQUESTS = 100_000
MAX_CAP_CHANGES_SHOWN = 100
DEFAULT_PAGE = 100
MAX_PAGE = 1_000
EMAIL_PATTERN = r"^[^@\s\x00-\x1f\x7f]+@[^@\s\x00-\x1f\x7f]+$"


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


# What the gateway asks.


class VerifyKey(_Body):
    """Ask whose key this is. Only the SHA-256 of the key travels; billing holds an HMAC of that."""

    key_id: str = Field(pattern=r"^[0-9A-Za-z]{1,32}$")
    key_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class VerifiedKey(BaseModel):
    """A key that may be used now. `expires_at` bounds how long a cache may say so."""

    key_id: str
    customer_id: str
    expires_at: datetime | None
    requests_per_minute: int | None = Field(None, description="What the key may send; null without a limit.")
    concurrent_requests: int | None = None


class ModelView(BaseModel):
    """A model that is sold: its prices in nano-dollars a token, and what a request without a limit gets."""

    id: str
    display_name: str
    prompt_price_nanos: int
    completion_price_nanos: int
    default_completion_tokens: int
    created: int = Field(description="Unix seconds; shown by /v1/models.")


class BundleView(BaseModel):
    """What a plan's credits buy of one model. Tokens are rounded down; the dearer kind of token counts."""

    model: str
    tokens: int | None = Field(description="Null when the model is free.")
    max_spend_per_day_nanos: int = Field(description="What a day at the plan's default cap costs at most.")


class PlanView(BaseModel):
    """A bundle of credits and the daily cap that comes with it."""

    id: str
    display_name: str
    price_nanos: int
    default_cap_tokens: int
    requests_per_minute: int | None = Field(None, description="Of each key; null without a limit.")
    concurrent_requests: int | None = Field(None, description="Of each key; null without a limit.")
    buys: list[BundleView] = []


class Catalog(BaseModel):
    """Everything that plans and prices say. The gateway keeps it for a few seconds."""

    plans: list[PlanView]
    models: list[ModelView]


# What administrators ask.


class CreateCustomer(_Body):
    id: CustomerId | None = Field(None, description="Chosen here when absent.")
    name: Name
    email: Annotated[str, Field(max_length=254, pattern=EMAIL_PATTERN)] | None = None
    plan: Annotated[str, Field(min_length=1, max_length=64)] = Field(
        description="Id of a plan; its default cap becomes the customer's."
    )


class CustomerView(BaseModel):
    id: str
    name: str
    email: str | None
    plan: str | None = Field(
        description="Null until the first purchase of someone who signed up in the console."
    )
    created_at: datetime


class CustomerPage(BaseModel):
    """Customers, by id. `next` is the cursor of the following page, or null at the end."""

    data: list[CustomerView]
    next: str | None


class InviteMember(_Body):
    email: Annotated[str, Field(max_length=254, pattern=EMAIL_PATTERN)]


class MemberView(BaseModel):
    """A person who may sign in to a customer's console."""

    id: str
    email: str
    invited_by: str | None = Field(description="Null for who signed the customer up.")
    created_at: datetime
    last_sign_in_at: datetime | None


class MemberList(BaseModel):
    data: list[MemberView]


class CreateKey(_Body):
    name: Name = "default"
    expires_at: AwareDatetime | None = Field(
        None, description="With a time zone, in the future, at most ten years ahead; never when absent."
    )


class KeyView(BaseModel):
    """A key as it can still be shown: never the secret, only its last four characters."""

    id: str
    customer_id: str
    name: str
    prefix: str
    last4: str
    status: Literal["active", "revoked", "expired"]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_day: date | None = Field(description="UTC day on which a gateway last looked the key up.")


class KeyPage(BaseModel):
    """Keys, oldest first. `next` is the cursor of the following page, or null at the end."""

    data: list[KeyView]
    next: str | None


class CreatedKey(KeyView):
    """The only answer that ever holds the key itself."""

    key: str


class RequestLimits(_Body):
    """What each key of a customer may send through one gateway."""

    requests_per_minute: int | None = Field(None, strict=True, ge=0, le=MAX_REQUESTS_PER_MINUTE)
    concurrent_requests: int | None = Field(None, strict=True, ge=0, le=MAX_CONCURRENT_REQUESTS)


class LimitsView(BaseModel):
    """A customer's limits of requests."""

    customer_id: str
    in_force: RequestLimits = Field(description="What gateways enforce; null without a limit.")
    own: RequestLimits = Field(description="The customer's own; null is the plan's, 0 no limit.")
    plan: RequestLimits


class SetCap(_Body):
    """Set the daily cap. `operation_id` makes a repetition harmless, even after a later change."""

    cap_tokens: Tokens
    reason: Text = "set by an administrator"
    operation_id: UUID | None = Field(None, description="A UUID made by the caller.")


class GrantCredits(_Body):
    """Give credits. `grant_id` makes a repetition harmless; without one each call is a new grant."""

    dollars: str = Field(max_length=32, description="A decimal number of dollars, such as 50 or 12.50.")
    reason: Text
    grant_id: UUID | None = Field(None, description="A UUID made by the caller.")


class GrantView(BaseModel):
    grant_id: UUID
    customer_id: str
    entry_id: UUID
    amount_nanos: int
    balance_nanos: int
    replayed: bool


class AdjustCredits(_Body):
    """Correct a balance, up or down. `adjustment_id` makes a repetition harmless; without one each call is new."""

    dollars: str = Field(
        max_length=32, description="A decimal number of dollars, such as 12.50, or -12.50 to take."
    )
    reason: Text
    adjustment_id: UUID | None = Field(None, description="A UUID made by the caller.")


class AdjustmentView(BaseModel):
    adjustment_id: UUID
    customer_id: str
    entry_id: UUID
    amount_nanos: int
    balance_nanos: int
    replayed: bool


class CapChange(BaseModel):
    cap_tokens: int
    previous_cap_tokens: int | None
    reason: str
    actor: str
    changed_at: datetime


class CapView(BaseModel):
    """The daily cap, how much of today's is used, and its latest changes, newest first."""

    customer_id: str
    cap_tokens: int
    day_tokens: int
    day_held_tokens: int
    reset_seconds: int
    changes: list[CapChange]


class StatusView(BaseModel):
    """What billing sees. A problem is null when there is none."""

    version: str = Field(description="Darktree's, as billing runs it.")
    ledger_problem: str | None = Field(description="Why the ledger is not ready.")
    plans_problem: str | None = Field(
        description="Why the newest plans file is not in use; the last good one is."
    )
    plans: int
    models: int
    customers: int
    active_keys: int
    revoked_keys: int
    expired_keys: int
    keys_with_old_pepper: int = Field(description="Active keys that still need the previous pepper.")
