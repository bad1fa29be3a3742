"""Who signs in: members, the links that were mailed to them, and their sessions.

Of a link and of a session's cookie only the SHA-256 is stored, so that a copy of the table opens nothing.
"""

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import DateTime, LargeBinary, Text, func
from sqlmodel import Field, SQLModel

from darktree_billing.models import SCHEMA


def _created_at() -> Any:
    return Field(
        default=None,
        sa_type=DateTime(timezone=True),
        sa_column_kwargs={"server_default": func.clock_timestamp()},
    )


class Member(SQLModel, table=True):
    """A person, by e-mail address. Without a customer: signed in, but not signed up yet, or of the platform team."""

    __tablename__: ClassVar[Any] = "member"
    __table_args__: ClassVar[Any] = {"schema": SCHEMA}

    id: str = Field(primary_key=True, sa_type=Text)
    email: str = Field(sa_type=Text)
    customer_id: str | None = Field(default=None, sa_type=Text)
    invited_by: str | None = Field(default=None, sa_type=Text)
    created_at: datetime = _created_at()
    last_sign_in_at: datetime | None = Field(default=None, sa_type=DateTime(timezone=True))


class SignInLink(SQLModel, table=True):
    """A link that was mailed; it opens a session once, and not for long."""

    __tablename__: ClassVar[Any] = "sign_in_link"
    __table_args__: ClassVar[Any] = {"schema": SCHEMA}

    digest: bytes = Field(primary_key=True, sa_type=LargeBinary)
    email: str = Field(sa_type=Text)
    landing: str = Field(sa_type=Text)
    created_at: datetime = _created_at()
    expires_at: datetime = Field(sa_type=DateTime(timezone=True))
    used_at: datetime | None = Field(default=None, sa_type=DateTime(timezone=True))


class ConsoleSession(SQLModel, table=True):
    """A browser that is signed in. `flash` is what its next page shall say once."""

    __tablename__: ClassVar[Any] = "console_session"
    __table_args__: ClassVar[Any] = {"schema": SCHEMA}

    digest: bytes = Field(primary_key=True, sa_type=LargeBinary)
    member_id: str = Field(sa_type=Text)
    created_at: datetime = _created_at()
    last_seen_at: datetime = _created_at()
    expires_at: datetime = Field(sa_type=DateTime(timezone=True))
    flash: str | None = Field(default=None, sa_type=Text)
