"""The tables of what customers ask the platform team for: another daily cap, a lane of their own."""

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import BigInteger, DateTime, Integer, Text, func
from sqlmodel import Field, SQLModel

from darktree_billing.models import SCHEMA


def _asked_at() -> Any:
    return Field(
        default=None,
        sa_type=DateTime(timezone=True),
        sa_column_kwargs={"server_default": func.clock_timestamp()},
    )


class CapRequestRow(SQLModel, table=True):
    """A customer's wish for another cap, and what became of it."""

    __tablename__: ClassVar[Any] = "cap_request"
    __table_args__: ClassVar[Any] = {"schema": SCHEMA}

    id: str = Field(primary_key=True, sa_type=Text)
    customer_id: str = Field(sa_type=Text)
    asked_cap_tokens: int = Field(sa_type=BigInteger)
    reason: str = Field(sa_type=Text)
    asked_by: str = Field(sa_type=Text)
    asked_at: datetime = _asked_at()
    state: str = Field(default="open", sa_type=Text)
    decided_cap_tokens: int | None = Field(default=None, sa_type=BigInteger)
    decided_by: str | None = Field(default=None, sa_type=Text)
    decided_at: datetime | None = Field(default=None, sa_type=DateTime(timezone=True))
    note: str | None = Field(default=None, sa_type=Text)


class LaneRequestRow(SQLModel, table=True):
    """A customer's wish for a dedicated lane, and what became of it."""

    __tablename__: ClassVar[Any] = "lane_request"
    __table_args__: ClassVar[Any] = {"schema": SCHEMA}

    id: str = Field(primary_key=True, sa_type=Text)
    customer_id: str = Field(sa_type=Text)
    model: str = Field(sa_type=Text)
    tokens_per_day: int = Field(sa_type=BigInteger)
    first_token_milliseconds: int | None = Field(default=None, sa_type=Integer)
    reason: str = Field(sa_type=Text)
    asked_by: str = Field(sa_type=Text)
    asked_at: datetime = _asked_at()
    state: str = Field(default="open", sa_type=Text)
    decided_by: str | None = Field(default=None, sa_type=Text)
    decided_at: datetime | None = Field(default=None, sa_type=DateTime(timezone=True))
    note: str | None = Field(default=None, sa_type=Text)
