"""The tables of payments. Migrations make them, and say which columns may change; these classes read and write them."""

from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import BigInteger, Boolean, DateTime, Integer, Text, Uuid, func
from sqlmodel import Field, SQLModel

from darktree_billing.models import SCHEMA


def _now() -> Any:
    return Field(
        default=None,
        sa_type=DateTime(timezone=True),
        sa_column_kwargs={"server_default": func.clock_timestamp()},
    )


def _instant() -> Any:
    return Field(default=None, sa_type=DateTime(timezone=True))


class FreezeRow(SQLModel, table=True):
    """A customer's keys were frozen, or let go."""

    __tablename__: ClassVar[Any] = "freeze_change"
    __table_args__: ClassVar[Any] = {"schema": SCHEMA}

    id: int = Field(default=None, primary_key=True, sa_type=BigInteger)
    customer_id: str = Field(sa_type=Text)
    frozen: bool = Field(sa_type=Boolean)
    reason: str = Field(sa_type=Text)
    actor: str = Field(sa_type=Text)
    changed_at: datetime = _now()


class OrderRow(SQLModel, table=True):
    """What a customer wants to buy, at the price of that moment, and how far it has come."""

    __tablename__: ClassVar[Any] = "payment_order"
    __table_args__: ClassVar[Any] = {"schema": SCHEMA}

    id: str = Field(primary_key=True, sa_type=Text)
    customer_id: str = Field(sa_type=Text)
    plan: str = Field(sa_type=Text)
    plan_name: str = Field(sa_type=Text)
    price_cents: int = Field(sa_type=BigInteger)
    credit_nanos: int = Field(sa_type=BigInteger)
    cap_tokens: int = Field(sa_type=BigInteger)
    created_by: str = Field(sa_type=Text)
    created_at: datetime = _now()
    state: str = Field(default="open", sa_type=Text)
    problem: str | None = Field(default=None, sa_type=Text)
    session_id: str | None = Field(default=None, sa_type=Text)
    payment_intent_id: str | None = Field(default=None, sa_type=Text)
    charge_id: str | None = Field(default=None, sa_type=Text)
    receipt_url: str | None = Field(default=None, sa_type=Text)
    tax_cents: int = Field(default=0, sa_type=BigInteger)
    grant_id: UUID | None = Field(default=None, sa_type=Uuid)
    granted_at: datetime | None = _instant()
    checked_at: datetime | None = _instant()

    @property
    def total_cents(self) -> int:
        return self.price_cents + self.tax_cents


class ReversalRow(SQLModel, table=True):
    """A refund or a dispute. Of what it took, the parts: from credits, from tax, and what is beyond the order."""

    __tablename__: ClassVar[Any] = "payment_reversal"
    __table_args__: ClassVar[Any] = {"schema": SCHEMA}

    id: str = Field(primary_key=True, sa_type=Text)
    kind: str = Field(sa_type=Text)
    order_id: str = Field(sa_type=Text)
    customer_id: str = Field(sa_type=Text)
    amount_cents: int = Field(sa_type=BigInteger)
    status: str = Field(sa_type=Text)
    reason: str | None = Field(default=None, sa_type=Text)
    created_at: datetime = Field(sa_type=DateTime(timezone=True))
    evidence_due_at: datetime | None = _instant()
    credit_cents: int | None = Field(default=None, sa_type=BigInteger)
    tax_cents: int | None = Field(default=None, sa_type=BigInteger)
    lost_cents: int | None = Field(default=None, sa_type=BigInteger)
    taken_at: datetime | None = _instant()
    returned_at: datetime | None = _instant()
    froze_at: datetime | None = _instant()

    @property
    def is_held(self) -> bool:
        """Whether it has taken something that was not given back."""
        return self.taken_at is not None and self.returned_at is None

    @property
    def held_cents(self) -> int:
        parts = (self.credit_cents, self.tax_cents, self.lost_cents)
        return sum(part or 0 for part in parts) if self.is_held else 0

    @property
    def is_inquiry(self) -> bool:
        return self.kind == "dispute" and self.status.startswith("warning_")


class EventRow(SQLModel, table=True):
    """An event of Stripe's as it was received. What it says is only a hint to look; the payload is kept as evidence."""

    __tablename__: ClassVar[Any] = "stripe_event"
    __table_args__: ClassVar[Any] = {"schema": SCHEMA}

    id: str = Field(primary_key=True, sa_type=Text)
    type: str = Field(sa_type=Text)
    object_id: str | None = Field(default=None, sa_type=Text)
    api_version: str | None = Field(default=None, sa_type=Text)
    created_at: datetime = Field(sa_type=DateTime(timezone=True))
    received_at: datetime = _now()
    source: str = Field(sa_type=Text)
    payload: str = Field(sa_type=Text)
    state: str = Field(default="waiting", sa_type=Text)
    attempts: int = Field(default=0, sa_type=Integer)
    next_attempt_at: datetime | None = Field(
        default=None,
        sa_type=DateTime(timezone=True),
        sa_column_kwargs={"server_default": func.clock_timestamp()},
    )
    error: str | None = Field(default=None, sa_type=Text)
    order_id: str | None = Field(default=None, sa_type=Text)
    handled_at: datetime | None = _instant()


class CursorRow(SQLModel, table=True):
    """Up to where Stripe was asked for one kind of thing."""

    __tablename__: ClassVar[Any] = "stripe_cursor"
    __table_args__: ClassVar[Any] = {"schema": SCHEMA}

    name: str = Field(primary_key=True, sa_type=Text)
    polled_to: datetime = Field(sa_type=DateTime(timezone=True))
