"""What goes over the wire about payments: orders, what was taken back of them, Stripe's events, and freezes.

Amounts at Stripe are whole cents; credits are nano-dollars, as everywhere.
"""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StrictBool

from darktree_kit.money import MAX_AMOUNT_NANOS, NANOS_PER_CENT
from darktree_ledger.schemas import Text

ORDER_ID_PATTERN = r"^ord_[0-9a-f]{32}$"
STRIPE_ID_PATTERN = r"^[A-Za-z0-9_]{1,255}$"
MAX_OPEN_ORDERS = 20  # of a customer in a day: unpaid ones; each is a page at Stripe

# open: not paid yet; processing: paid by a method that takes days; paid: the credits are granted; failed and expired:
# nothing was paid; review: Stripe's payment is not what was ordered, and a person must look.
OrderState = Literal["open", "processing", "paid", "failed", "expired", "review"]
EventState = Literal["waiting", "done", "ignored", "dead"]
ReversalKind = Literal["refund", "dispute"]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BeginCheckout(_Body):
    """Begin to buy a plan's bundle."""

    plan: Annotated[str, Field(min_length=1, max_length=64)] = Field(description="Id of a plan.")


class Checkout(BaseModel):
    """Where to pay an order."""

    order_id: str
    url: str = Field(description="Stripe's page, for a day.")


class ReversalView(BaseModel):
    """A refund, or a dispute: what Stripe took back of an order, and what that did to the credits."""

    id: str = Field(description="Stripe's.")
    kind: ReversalKind
    order_id: str
    customer_id: str
    amount_cents: int = Field(description="What Stripe takes back, tax included.")
    status: str = Field(description="Stripe's word.")
    reason: str | None
    created_at: datetime = Field(description="At Stripe.")
    evidence_due_at: datetime | None = Field(description="Of a dispute: until when Stripe takes evidence.")
    is_inquiry: bool = Field(description="Of a dispute: only a question as yet; no money moves.")
    taken_cents: int = Field(
        description="What has left our balance at Stripe for it, and was not given back."
    )
    returned: bool = Field(description="It failed, or was won: everything was given back.")


class OrderView(BaseModel):
    """An order, with the price as it was when it was made."""

    id: str
    customer_id: str
    plan: str
    plan_name: str
    price_cents: int
    credit_nanos: int
    cap_tokens: int = Field(description="The plan's default cap at that time.")
    state: OrderState
    problem: str | None = Field(description="Why the state is failed or review.")
    tax_cents: int
    total_cents: int | None = Field(description="Price and tax, once paid.")
    refunded_cents: int
    disputed_cents: int = Field(description="What disputes hold, or have taken for good.")
    session_id: str | None
    payment_intent_id: str | None
    charge_id: str | None
    receipt_url: str | None = Field(description="Stripe's receipt.")
    grant_id: UUID | None = Field(description="The ledger's operation, and entry, that gave the credits.")
    created_by: str
    created_at: datetime
    granted_at: datetime | None
    reversals: list[ReversalView]


class OrderPage(BaseModel):
    """Orders, newest first. `next` is the cursor of the following page, or null at the end."""

    data: list[OrderView]
    next: str | None


class RefundOrder(_Body):
    """Have Stripe pay an order back, whole or in part. The customer keeps what they used; the house bears it."""

    amount_cents: Annotated[int, Field(strict=True, gt=0, le=MAX_AMOUNT_NANOS // NANOS_PER_CENT)] | None = (
        Field(None, description="Tax included; everything that was not refunded yet when absent.")
    )
    reason: Text
    refund_id: UUID = Field(description="A UUID made by the caller: repeating it refunds nothing more.")


class EventView(BaseModel):
    """A webhook event as it was received, and what became of it."""

    id: str
    type: str
    object_id: str | None
    api_version: str | None
    created_at: datetime = Field(description="At Stripe.")
    received_at: datetime
    source: Literal["webhook", "poll"]
    state: EventState
    attempts: int
    next_attempt_at: datetime | None
    error: str | None = Field(description="Why the latest attempt failed.")
    order_id: str | None
    handled_at: datetime | None


class EventPage(BaseModel):
    """Events, newest first. `next` is the cursor of the following page, or null at the end."""

    data: list[EventView]
    next: str | None


class ReversalPage(BaseModel):
    """Refunds or disputes, newest first. `next` is the cursor of the following page, or null at the end."""

    data: list[ReversalView]
    next: str | None


class SetFrozen(_Body):
    """Freeze a customer's keys, or let them be used again."""

    frozen: StrictBool
    reason: Text


class FreezeChange(BaseModel):
    frozen: bool
    reason: str
    by: str
    at: datetime


class FreezeView(BaseModel):
    """Whether a customer's keys are refused, and the latest changes of that, newest first."""

    customer_id: str
    frozen: bool
    changes: list[FreezeChange]


class SweepReport(BaseModel):
    """What asking Stripe for everything that may have been missed found."""

    events_found: int = Field(description="Events that no webhook had brought.")
    orders_checked: int
    orders_granted: int = Field(description="Orders that turned out to be paid.")
    balance_transactions: int = Field(description="New ones.")
    problems: list[str]


class PaymentsStatus(BaseModel):
    """How buying stands."""

    buying: bool = Field(description="Whether a key for Stripe is set.")
    api_version: str
    events_waiting: int
    oldest_waiting_seconds: int | None
    events_dead: int
    orders: dict[OrderState, int] = Field(description="How many are open, processing, and in review.")
    swept_at: datetime | None
