"""One request is one transaction, committed before the answer leaves.

FastAPI ends a `yield` dependency after the response is sent unless its scope is "function": a failed commit would
still have answered 200. `Session` below is therefore the only way that endpoints get a session.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, LiteralString

import psycopg
from fastapi import Depends, Request
from psycopg import AsyncConnection, generators
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGresult
from psycopg.rows import TupleRow
from sqlalchemy import text
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from darktree_kit.errors import Unavailable

CONNECT_TIMEOUT_SECONDS = 5
POOL_TIMEOUT_SECONDS = 10
STATEMENT_TIMEOUT_MILLISECONDS = 30_000

_log = logging.getLogger("darktree.db")
DRIVER_URL = "postgresql+psycopg://"  # where the database is goes by `connect_arguments`
# A primary that vanishes without a word is given up after some seconds; without these, TCP waits for minutes.
_SILENCE: dict[str, str | int] = {
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
_CONNECT_OPTIONS: dict[str, Any] = {
    "connect_timeout": CONNECT_TIMEOUT_SECONDS,
    "options": f"-c statement_timeout={STATEMENT_TIMEOUT_MILLISECONDS} -c timezone=UTC",
}


def connect_arguments(url: str) -> dict[str, Any]:
    """Return what the driver is told of a URL, which may name several hosts: only libpq reads it, never SQLAlchemy.

    Whichever host takes writes is used, unless the URL says otherwise. Raises ValueError.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.partition("+")[0] not in {"postgres", "postgresql"}:
        raise ValueError("the database's URL must begin with postgresql://")
    try:
        told = conninfo_to_dict("postgresql://" + rest)
    except psycopg.ProgrammingError as error:
        raise ValueError("the database's URL cannot be read") from error  # its own message repeats the URL
    return {"target_session_attrs": "read-write"} | _SILENCE | told


class Database:
    """A pool of connections to one schema's owner-less runtime role."""

    def __init__(self, url: str, *, pool_size: int = 8) -> None:
        self.engine = create_async_engine(
            DRIVER_URL,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=POOL_TIMEOUT_SECONDS,
            pool_pre_ping=True,  # a restart of the database costs nobody a failed request
            hide_parameters=True,  # an error's text goes to the log; the values of its statement must not
            connect_args=connect_arguments(url) | _CONNECT_OPTIONS,
        )
        self.sessions = async_sessionmaker(self.engine, expire_on_commit=False)

    async def ping(self) -> None:
        """Raise whatever keeps this process from its database."""
        async with self.engine.connect() as connection:
            await connection.execute(text("SELECT 1"))

    async def close(self) -> None:
        await self.engine.dispose()


async def connect(url: str) -> AsyncConnection[TupleRow]:
    """Return a connection outside any pool, on which each statement outside `transaction()` commits by itself.

    It is for whoever holds a session's lock: the lock, and what is done under it, end together.
    """
    return await AsyncConnection.connect(autocommit=True, **connect_arguments(url) | _CONNECT_OPTIONS)


class Calls:
    """Single statements, each its own transaction: one round trip and one flush, without what an ORM adds.

    On this path SQLAlchemy cost four times what the driver does (820 against 200 microseconds a call), and the
    driver's cursor as much as the rest of it. A pool of the driver's would wait and back off while the database is
    away; here a caller is told at once.
    """

    def __init__(self, url: str, *, pool_size: int = 8) -> None:
        self._arguments = connect_arguments(url) | _CONNECT_OPTIONS
        self._places = asyncio.Semaphore(pool_size)
        self._idle: list[_Prepared] = []

    async def close(self) -> None:
        while self._idle:
            await self._idle.pop().close()

    async def value(self, statement: LiteralString, *parameters: bytes) -> bytes | None:
        """Run a statement and return the first column of its first row. Raises psycopg's errors.

        Parameters ($1 and so on) and the answer are as text, in UTF-8.
        """
        async with self._places:
            connection = self._idle.pop() if self._idle else await self._connect()
            try:
                value = await connection.value(statement, parameters)
            except BaseException as error:
                await connection.close()  # cancelled or broken, its state is unknown
                if isinstance(error, psycopg.OperationalError):
                    await self.close()  # what broke one has probably broken the others
                raise
            self._idle.append(connection)
        return value

    async def _connect(self) -> "_Prepared":
        connection = await AsyncConnection.connect(autocommit=True, client_encoding="UTF8", **self._arguments)
        return _Prepared(connection)


class _Prepared:
    """A connection, and the statements that are prepared on it: what a cursor does, in the driver's own words."""

    def __init__(self, connection: AsyncConnection[TupleRow]) -> None:
        self.close = connection.close
        self._connection = connection
        self._pgconn = connection.pgconn
        self._names: dict[str, bytes] = {}

    async def value(self, statement: str, parameters: Sequence[bytes]) -> bytes | None:
        assert not any(b"\0" in parameter for parameter in parameters)  # libpq would read no further
        name = self._names.get(statement)
        if name is None:
            name = b"statement_%d" % len(self._names)
            self._pgconn.send_prepare(name, statement.encode())
            await self._result()
            self._names[statement] = name
        self._pgconn.send_query_prepared(name, parameters)
        return (await self._result()).get_value(0, 0)

    async def _result(self) -> PGresult:
        results: list[PGresult] = await self._connection.wait(generators.execute(self._pgconn))
        for result in results:
            if result.status not in {ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK}:
                raise psycopg.errors.error_from_result(result)
        return results[-1]


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
