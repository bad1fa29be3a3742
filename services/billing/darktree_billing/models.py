"""Billing's tables, in the schema `billing`. Migrations make them; these classes only read and write them."""

from datetime import date, datetime
from typing import Any, ClassVar

from sqlalchemy import BigInteger, DateTime, LargeBinary, SmallInteger, Text, func
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlmodel import Field, SQLModel

SCHEMA = "billing"


class Customer(SQLModel, table=True):
    """Who buys. The balance and the cap are the ledger's and are nowhere here."""

    __tablename__: ClassVar[Any] = "customer"
    __table_args__: ClassVar[Any] = {"schema": SCHEMA}

    id: str = Field(primary_key=True, sa_type=Text)
    name: str = Field(sa_type=Text)
    email: str | None = Field(sa_type=Text)
    plan: str | None = Field(sa_type=Text)
    created_at: datetime = Field(
        default=None,
        sa_type=DateTime(timezone=True),
        sa_column_kwargs={"server_default": func.clock_timestamp()},
    )
    # A frozen customer's keys are refused; why, and by whom (freezes.py).
    frozen_at: datetime | None = Field(default=None, sa_type=DateTime(timezone=True))
    frozen_by: str | None = Field(default=None, sa_type=Text)
    frozen_reason: str | None = Field(default=None, sa_type=Text)
    # What each key may send, where it is not what the plan says (limits.py).
    requests_per_minute: int | None = None
    concurrent_requests: int | None = None


class ApiKey(SQLModel, table=True):
    """A key as billing knows it: an HMAC of its SHA-256 under a pepper, never the key."""

    __tablename__: ClassVar[Any] = "api_key"
    __table_args__: ClassVar[Any] = {"schema": SCHEMA}

    id: str = Field(primary_key=True, sa_type=Text)
    customer_id: str = Field(sa_type=Text)
    name: str = Field(sa_type=Text)
    last4: str = Field(sa_type=Text)
    digest: bytes = Field(sa_type=LargeBinary)
    pepper_version: int = Field(sa_type=SmallInteger)
    created_at: datetime = Field(
        default=None,
        sa_type=DateTime(timezone=True),
        sa_column_kwargs={"server_default": func.clock_timestamp()},
    )
    expires_at: datetime | None = Field(default=None, sa_type=DateTime(timezone=True))
    revoked_at: datetime | None = Field(default=None, sa_type=DateTime(timezone=True))
    last_used_day: date | None = None


class BalanceRow(SQLModel, table=True):
    """A balance transaction of Stripe's, and the months in whose books it, and its payout, are."""

    __tablename__: ClassVar[Any] = "balance_transaction"
    __table_args__: ClassVar[Any] = {"schema": SCHEMA}

    id: str = Field(primary_key=True, sa_type=Text)
    type: str = Field(sa_type=Text)
    category: str = Field(sa_type=Text)
    amount_cents: int = Field(sa_type=BigInteger)
    fee_cents: int = Field(sa_type=BigInteger)
    net_cents: int = Field(sa_type=BigInteger)
    currency: str = Field(sa_type=Text)
    created: datetime = Field(sa_type=DateTime(timezone=True))
    available_on: datetime | None = Field(default=None, sa_type=DateTime(timezone=True))
    payout: str | None = Field(default=None, sa_type=Text)
    source: str | None = Field(default=None, sa_type=Text)
    description: str | None = Field(default=None, sa_type=Text)
    known_as: list[str] = Field(sa_type=ARRAY(Text))
    book_month: str = Field(sa_type=Text)
    payout_month: str | None = Field(default=None, sa_type=Text)
    imported_at: datetime = Field(
        default=None,
        sa_type=DateTime(timezone=True),
        sa_column_kwargs={"server_default": func.clock_timestamp()},
    )


class BookedMonth(SQLModel, table=True):
    """A closed month: the pack as it was handed out, what it was configured with, what comes next begins with."""

    __tablename__: ClassVar[Any] = "closed_month"
    __table_args__: ClassVar[Any] = {"schema": SCHEMA}

    month: str = Field(primary_key=True, sa_type=Text)
    config: dict[str, Any] = Field(sa_type=JSONB)
    carried: dict[str, Any] = Field(sa_type=JSONB)
    manifest_sha256: str = Field(sa_type=Text)
    pack: bytes = Field(sa_type=LargeBinary)
    closed_at: datetime = Field(
        default=None,
        sa_type=DateTime(timezone=True),
        sa_column_kwargs={"server_default": func.clock_timestamp()},
    )
