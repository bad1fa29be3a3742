"""Billing's tables, in the schema `billing`. Migrations make them; these classes only read and write them."""

from datetime import date, datetime
from typing import Any, ClassVar

from sqlalchemy import DateTime, LargeBinary, SmallInteger, Text, func
from sqlmodel import Field, SQLModel

SCHEMA = "billing"


class Customer(SQLModel, table=True):
    """Who buys. The balance and the cap are the ledger's and are nowhere here."""

    __tablename__: ClassVar[Any] = "customer"
    __table_args__: ClassVar[Any] = {"schema": SCHEMA}

    id: str = Field(primary_key=True, sa_type=Text)
    name: str = Field(sa_type=Text)
    email: str | None = Field(sa_type=Text)
    plan: str = Field(sa_type=Text)
    created_at: datetime = Field(
        default=None,
        sa_type=DateTime(timezone=True),
        sa_column_kwargs={"server_default": func.clock_timestamp()},
    )


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
