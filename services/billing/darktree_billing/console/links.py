"""Sign-in links: who holds one that was mailed to an address is that address, once and for a quarter of an hour.

How many may be asked for is bounded, for each address of a mailbox and for each address in the network, so that nobody
can be flooded with mails. The answer is the same for every address: it tells nobody who is known here.
"""

from collections import OrderedDict, deque
from datetime import timedelta

from sqlalchemy import ColumnElement, and_, delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlmodel import col

from darktree_billing.console.models import SignInLink
from darktree_billing.console.sessions import TOKEN_CHARACTERS, digest_of, new_token
from darktree_kit.clock import Monotonic
from darktree_kit.errors import TooManyRequests

LIFETIME = timedelta(minutes=15)
MAX_LINKS_PER_EMAIL = 5  # within a lifetime
KEPT = timedelta(days=7)
MAX_FORGOTTEN_AT_ONCE = 100
MAX_ADDRESSES_WATCHED = 10_000


class AddressLimit:
    """How often each network address asked lately. In memory: what it protects is only mailboxes from a flood."""

    def __init__(self, most: int, monotonic: Monotonic) -> None:
        self.most = most
        self._monotonic = monotonic
        self._asked: OrderedDict[str, deque[float]] = OrderedDict()

    def note(self, address: str) -> None:
        """Count one. Raises TooManyRequests when there were too many."""
        now, span = self._monotonic(), LIFETIME.total_seconds()
        times = self._asked.setdefault(address, deque())
        self._asked.move_to_end(address)
        while times and times[0] <= now - span:
            times.popleft()
        if len(times) >= self.most:
            raise _too_many(int(times[0] + span - now) + 1)
        times.append(now)
        while len(self._asked) > MAX_ADDRESSES_WATCHED:
            self._asked.popitem(last=False)


async def make_link(session: AsyncSession, email: str, landing: str) -> str:
    """Return the token of a new link. Raises TooManyRequests for an address with too many already."""
    await session.execute(select(func.pg_advisory_xact_lock(func.hashtext(f"sign-in {email}"))))
    now = await session.scalar(select(func.clock_timestamp()))
    assert now is not None
    recent = (await session.scalars(
        select(col(SignInLink.created_at))
        .where(col(SignInLink.email) == email, col(SignInLink.created_at) > now - LIFETIME)
        .order_by(col(SignInLink.created_at))
    )).all()  # fmt: skip
    if len(recent) >= MAX_LINKS_PER_EMAIL:
        raise _too_many(int((recent[0] + LIFETIME - now).total_seconds()) + 1)
    old = (
        select(col(SignInLink.digest))
        .where(col(SignInLink.created_at) < now - KEPT)
        .limit(MAX_FORGOTTEN_AT_ONCE)
    )
    await session.execute(delete(SignInLink).where(col(SignInLink.digest).in_(old)))
    token = new_token()
    session.add(SignInLink(digest=digest_of(token), email=email, landing=landing, expires_at=now + LIFETIME))
    await session.flush()
    return token


async def look_at_link(session: AsyncSession, token: str) -> SignInLink | None:
    """Return a link that may be used, without using it: scanners of mail open every link."""
    if len(token) != TOKEN_CHARACTERS:
        return None
    return await session.scalar(select(SignInLink).where(_usable(token)))


async def use_link(session: AsyncSession, token: str) -> SignInLink | None:
    """Use a link up, and with it every other of the same address; None when it may not be used."""
    if len(token) != TOKEN_CHARACTERS:
        return None
    query = update(SignInLink).where(_usable(token)).values(used_at=func.now()).returning(SignInLink)
    link = await session.scalar(query)
    if link is not None:
        others = update(SignInLink).where(
            col(SignInLink.email) == link.email, col(SignInLink.used_at).is_(None)
        )
        await session.execute(others.values(used_at=func.now()))
    return link


def _usable(token: str) -> ColumnElement[bool]:
    return and_(
        col(SignInLink.digest) == digest_of(token),
        col(SignInLink.used_at).is_(None),
        col(SignInLink.expires_at) > func.now(),
    )


def _too_many(seconds: int) -> TooManyRequests:
    return TooManyRequests(
        f"Too many sign-in links were asked for. Try again in {-(-seconds // 60)} minutes.",
        code="too_many_links",
        headers={"Retry-After": str(seconds)},
    )
