"""Sessions: which browser is whose. A cookie holds a random token; the table holds its SHA-256.

A session ends when it was not used for a week, or a month after its sign-in. Every sign-in begins a new one, so that
a token that somebody planted in a browser is never anybody's session.
"""

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from sqlalchemy import delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col
from starlette.responses import Response

from darktree_billing.console.models import ConsoleSession, Member
from darktree_billing.models import Customer

LIFETIME = timedelta(days=30)
IDLE_LIFETIME = timedelta(days=7)
SEEN_EVERY = timedelta(minutes=5)  # a page is no reason to write to the database
TOKEN_BYTES = 32
TOKEN_CHARACTERS = 43
MAX_FLASH_CHARACTERS = 500
MAX_ENDED_AT_ONCE = 100


@dataclass(frozen=True)
class SignedIn:
    """Who is looking at a page. `csrf` is the token that every form of this session carries."""

    member_id: str
    email: str
    customer_id_or_none: str | None
    customer_name: str | None
    is_team: bool
    csrf: str = field(repr=False)
    session: ConsoleSession = field(repr=False)

    @property
    def customer_id(self) -> str:
        """Return whose member this is. Only for pages that `TheMember` admits."""
        assert self.customer_id_or_none is not None
        return self.customer_id_or_none


@dataclass(frozen=True)
class Cookie:
    """The session's cookie: bound to this very host where pages come over https, and unreadable for scripts."""

    https: bool

    @property
    def name(self) -> str:
        return "__Host-darktree" if self.https else "darktree"

    def token(self, cookies: Mapping[str, str]) -> str | None:
        token = cookies.get(self.name)
        return token if token and len(token) == TOKEN_CHARACTERS and token.isascii() else None

    def set(self, response: Response, token: str) -> None:
        response.set_cookie(
            self.name,
            token,
            max_age=int(LIFETIME.total_seconds()),
            path="/",
            secure=self.https,
            httponly=True,
            samesite="lax",
        )

    def clear(self, response: Response) -> None:
        response.delete_cookie(self.name, path="/", secure=self.https, httponly=True, samesite="lax")


def new_token() -> str:
    return secrets.token_urlsafe(TOKEN_BYTES)


def digest_of(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def csrf_token(token: str) -> str:
    """Return what this session's forms carry: it follows from the cookie, which no other site can read."""
    return hmac.digest(token.encode(), b"darktree console form", hashlib.sha256).hex()


async def begin(session: AsyncSession, member: Member) -> str:
    """Begin a session, and return the token for its cookie."""
    token = new_token()
    now = await session.scalar(select(func.now()))
    assert now is not None
    session.add(ConsoleSession(digest=digest_of(token), member_id=member.id, expires_at=now + LIFETIME))
    ended = (
        select(col(ConsoleSession.digest))
        .where(col(ConsoleSession.expires_at) < now)
        .limit(MAX_ENDED_AT_ONCE)
    )
    await session.execute(delete(ConsoleSession).where(col(ConsoleSession.digest).in_(ended)))
    await session.flush()
    return token


async def find(session: AsyncSession, token: str, team: frozenset[str]) -> SignedIn | None:
    """Return whose session this token is, while it lasts."""
    digest = digest_of(token)
    now = func.now()
    query = (
        select(
            ConsoleSession, Member, col(Customer.name), col(ConsoleSession.last_seen_at) < now - SEEN_EVERY
        )
        .join(Member, col(Member.id) == col(ConsoleSession.member_id))
        .outerjoin(Customer, col(Customer.id) == col(Member.customer_id))
        .where(
            col(ConsoleSession.digest) == digest,
            col(ConsoleSession.expires_at) > now,
            col(ConsoleSession.last_seen_at) > now - IDLE_LIFETIME,
        )
    )
    row = (await session.execute(query)).one_or_none()
    if row is None:
        return None
    found, member, customer_name, is_stale = row
    if is_stale:
        seen = update(ConsoleSession).where(col(ConsoleSession.digest) == digest).values(last_seen_at=now)
        await session.execute(seen)
    return SignedIn(  # plain values: rows cannot be read any more once an error has undone the request
        member_id=member.id,
        email=member.email,
        customer_id_or_none=member.customer_id,
        customer_name=customer_name,
        is_team=member.email in team,
        csrf=csrf_token(token),
        session=found,
    )


async def end(session: AsyncSession, token: str) -> None:
    await session.execute(delete(ConsoleSession).where(col(ConsoleSession.digest) == digest_of(token)))


async def end_all(session: AsyncSession, member_id: str) -> None:
    """End every session of a member, on every device."""
    await session.execute(delete(ConsoleSession).where(col(ConsoleSession.member_id) == member_id))
