"""The ledger's tables as the service reads them. It only ever reads: the SQL functions write.

`migrations/` make the tables; a test compares the two.
"""

from datetime import date, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Field, MetaData, SQLModel

SCHEMA = "ledger"


class Table(SQLModel):
    """What the ledger's tables share: their schema, and a catalogue of their own."""

    metadata = MetaData(schema=SCHEMA)


def _big(**options: Any) -> Any:
    return Field(sa_type=BigInteger, **options)


def _text(*, nullable: bool = False, primary_key: bool = False) -> Any:
    return Field(sa_column=Column(Text(collation="C"), nullable=nullable, primary_key=primary_key))


def _time(*, nullable: bool = False, primary_key: bool = False) -> Any:
    return Field(sa_column=Column(DateTime(timezone=True), nullable=nullable, primary_key=primary_key))


class Account(Table, table=True):
    """One row a customer: what enforces, and the head of the customer's chain."""

    customer_id: str = _text(primary_key=True)
    balance_nanos: int = _big()
    held_nanos: int = _big()
    cap_tokens: int = _big()
    today: date
    seq: int = _big()
    head: bytes = Field(sa_type=LargeBinary)
    opened_by: UUID
    opened_at: datetime = _time()
    bonus_nanos: int = _big()
    next_expiry: datetime | None = _time(nullable=True)
    recorded_at: datetime = _time()


class DayUsage(Table, table=True):
    """One row a customer and UTC day."""

    __tablename__ = "day_usage"

    customer_id: str = _text(primary_key=True)
    day: date = Field(primary_key=True)
    cap_tokens: int = _big()
    requests: int = _big()
    prompt_tokens: int = _big()
    completion_tokens: int = _big()
    amount_nanos: int = _big()
    held_tokens: int = _big()
    absorbed_tokens: int = _big()
    refused_requests: int = _big()


class Hold(Table, table=True):
    """A reservation, and how it was resolved."""

    __table_args__ = (
        Index("hold_open", "customer_id", "expires_at", postgresql_where=text("state = 'open'")),
        Index("hold_expired", "resolved_at", postgresql_where=text("state = 'expired'")),
    )

    hold_id: UUID = Field(primary_key=True)
    customer_id: str = _text()
    key_id: str = Field(sa_type=Text)
    model: str = Field(sa_type=Text)
    lane: str = Field(sa_type=Text)
    prompt_tokens: int = _big()
    asked_tokens: int = _big()
    step_tokens: int = _big()
    exact: bool
    prompt_price_nanos: int = _big()
    completion_price_nanos: int = _big()
    ttl_seconds: int = Field(sa_type=Integer)
    completion_tokens: int = _big()
    amount_nanos: int = _big()
    usage_day: date
    placed_at: datetime = _time()
    expires_at: datetime = _time()
    state: str = Field(sa_type=Text)
    resolved_at: datetime | None = _time(nullable=True)
    entry_id: UUID | None
    entry_seq: int | None = _big()
    used_prompt_tokens: int | None = _big()
    used_completion_tokens: int | None = _big()
    outcome: str | None = Field(sa_type=Text)
    charged_tokens: int | None = _big()
    absorbed_tokens: int | None = _big()
    charged_nanos: int | None = _big()


class Operation(Table, table=True):
    """An operation that was applied once and must not be again: its id and its body."""

    __table_args__ = (Index("operation_of_customer", "customer_id", "applied_at"),)

    operation_id: UUID = Field(primary_key=True)
    customer_id: str = _text()
    body: dict[str, Any] = Field(sa_column=Column(JSONB, nullable=False))
    entry_id: UUID | None
    entry_seq: int | None = _big()
    applied_at: datetime = _time()


class CapChange(Table, table=True):
    """One change of a daily cap."""

    __tablename__ = "cap_change"
    __table_args__ = (Index("cap_change_of_customer", "customer_id", "changed_at"),)

    operation_id: UUID = Field(primary_key=True)
    customer_id: str = _text()
    cap_tokens: int = _big()
    previous_cap_tokens: int | None = _big()
    reason: str = Field(sa_type=Text)
    actor: str = Field(sa_type=Text)
    changed_at: datetime = _time()


class Entry(Table, table=True):
    """One line of the ledger: one amount from one account to another, chained to the customer's line before."""

    __table_args__ = (
        UniqueConstraint("customer_id", "seq", "recorded_at"),
        Index("entry_not_usage", "customer_id", "seq", postgresql_where=text("kind <> 'usage'")),
        Index("entry_bonus", "customer_id", "seq", postgresql_where=text("bonus_nanos > 0")),
        Index("entry_recorded", "recorded_at", postgresql_using="brin"),
        {"postgresql_partition_by": "RANGE (recorded_at)"},
    )

    entry_id: UUID = Field(primary_key=True)
    customer_id: str = _text()
    seq: int = _big()
    kind: str = Field(sa_type=Text)
    debit_account: str = Field(sa_type=Text)
    credit_account: str = Field(sa_type=Text)
    amount_nanos: int = _big()
    balance_after_nanos: int = _big()
    usage_day: date | None
    hold_id: UUID | None
    key_id: str | None = Field(sa_type=Text)
    model: str | None = Field(sa_type=Text)
    lane: str | None = Field(sa_type=Text)
    prompt_tokens: int = _big()
    completion_tokens: int = _big()
    prompt_price_nanos: int = _big()
    completion_price_nanos: int = _big()
    outcome: str | None = Field(sa_type=Text)
    reason: str | None = Field(sa_type=Text)
    actor: str | None = Field(sa_type=Text)
    reference: str | None = Field(sa_type=Text)
    recorded_at: datetime = _time(primary_key=True)
    prev_hash: bytes = Field(sa_type=LargeBinary)
    hash: bytes = Field(sa_type=LargeBinary)
    version: int = Field(sa_type=SmallInteger)
    bonus_nanos: int = _big()
