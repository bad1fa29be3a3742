"""One request is one transaction, committed before the answer leaves.

FastAPI ends a `yield` dependency after the response is sent unless its scope is "function": a failed commit would
still have answered 200. `Session` below is therefore the only way that endpoints get a session.
"""

import logging
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy import text
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_sessionmaker, create_async_engine

from darktree_kit.errors import Unavailable

CONNECT_TIMEOUT_SECONDS = 5
POOL_TIMEOUT_SECONDS = 10
STATEMENT_TIMEOUT_MILLISECONDS = 30_000

_log = logging.getLogger("darktree.db")


def driver_url(url: str) -> str:
    """Return a Postgres URL with the driver that SQLAlchemy shall use (psycopg 3)."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.partition("+")[0] not in {"postgres", "postgresql"}:
        raise ValueError("the database's URL must begin with postgresql://")
    return "postgresql+psycopg://" + rest


class Database:
    """A pool of connections to one schema's owner-less runtime role."""

    def __init__(self, url: str, *, pool_size: int = 8) -> None:
        self.engine = create_async_engine(
            driver_url(url),
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=POOL_TIMEOUT_SECONDS,
            pool_pre_ping=False,
            hide_parameters=True,  # an error's text goes to the log; the values of its statement must not
            connect_args={
                "connect_timeout": CONNECT_TIMEOUT_SECONDS,
                "options": f"-c statement_timeout={STATEMENT_TIMEOUT_MILLISECONDS} -c timezone=UTC",
            },
        )
        self._autocommit = self.engine.execution_options(isolation_level="AUTOCOMMIT")
        self.sessions = async_sessionmaker(self.engine, expire_on_commit=False)

    def autocommit(self) -> AsyncConnection:
        """Return a connection on which every statement is its own transaction: one round trip, one flush."""
        return self._autocommit.connect()

    async def ping(self) -> None:
        """Raise whatever keeps this process from its database."""
        async with self.autocommit() as connection:
            await connection.execute(text("SELECT 1"))

    async def close(self) -> None:
        await self.engine.dispose()


async def _transaction(request: Request) -> AsyncIterator[AsyncSession]:
    database: Database = request.app.state.database
    try:
        async with database.sessions.begin() as session:
            yield session
    except (OperationalError, InterfaceError, PoolTimeoutError) as error:
        # Lost in the middle of a commit, it may or may not have taken effect: hence the ids that callers make.
        _log.warning("the database did not answer", extra={"error": str(error)[:500]})
        raise Unavailable("The database did not answer.", headers={"Retry-After": "1"}) from error


Session = Annotated[AsyncSession, Depends(_transaction, scope="function")]
