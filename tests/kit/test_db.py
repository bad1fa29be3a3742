"""Single statements on kept connections: prepared once, each its own transaction, and none left in an unknown state."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import psycopg
import pytest

from darktree_kit.db import Calls, Database, connect_arguments


@pytest.fixture(scope="module")
def url(empty_database: Callable[[], Any]) -> str:
    admin_url: str = empty_database().admin_url
    return admin_url


@pytest.fixture
async def calls(url: str) -> AsyncIterator[Calls]:
    calls = Calls(url, pool_size=2)
    yield calls
    await calls.close()


async def test_a_value_comes_as_the_text_that_postgres_writes(calls: Calls) -> None:
    assert await calls.value("SELECT $1::jsonb", '{"a":"ü"}'.encode()) == '{"a": "ü"}'.encode()
    assert await calls.value("SELECT $1::int + $2::int", b"1", b"2") == b"3"
    assert await calls.value("SELECT NULL") is None


async def test_a_statement_is_prepared_once_a_connection(calls: Calls) -> None:
    for number in range(3):
        assert await calls.value("SELECT $1::text", b"%d" % number) == b"%d" % number
    assert (
        await calls.value("SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '%::text'")
        == b"1"
    )


async def test_a_value_larger_than_any_buffer_arrives_whole(calls: Calls) -> None:
    text = b"x" * 8_000_000
    assert await calls.value("SELECT $1::text", text) == text


async def test_more_callers_than_connections_all_get_their_own_answers(calls: Calls) -> None:
    numbers = [b"%d" % number for number in range(50)]
    query = "SELECT $1::text || ' from ' || pg_backend_pid()"
    answers = await asyncio.gather(*(calls.value(query, number) for number in numbers))
    said = [(answer or b"").partition(b" from ") for answer in answers]
    assert [number for number, _, _ in said] == numbers
    assert len({backend for _, _, backend in said}) == 2


async def test_an_error_has_the_drivers_type_and_state_and_the_next_call_works(calls: Calls) -> None:
    for _ in range(2):
        with pytest.raises(psycopg.errors.DivisionByZero) as failed:
            await calls.value("SELECT 1 / $1::int", b"0")
        assert failed.value.sqlstate == "22012"
        with pytest.raises(psycopg.errors.UndefinedTable):
            await calls.value("SELECT * FROM nowhere")
        assert await calls.value("SELECT 1") == b"1"


async def test_a_connection_that_the_server_ended_is_an_operational_error_once(
    calls: Calls, url: str
) -> None:
    backend = await calls.value("SELECT pg_backend_pid()")
    assert backend is not None
    with psycopg.connect(url, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s, 5000)", [int(backend)])
    with pytest.raises(psycopg.OperationalError):
        await calls.value("SELECT 1")
    assert await calls.value("SELECT 1") == b"1"


async def test_what_is_cancelled_is_ended_in_the_database_too(calls: Calls, url: str) -> None:
    running = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)' AND state = 'active'"
    call = asyncio.create_task(calls.value("SELECT pg_sleep(60)"))
    while await calls.value(running) != b"1":
        assert not call.done()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    while await calls.value(running) != b"0":
        pass


async def test_a_parameter_that_libpq_would_cut_off_is_never_sent(calls: Calls) -> None:
    with pytest.raises(AssertionError):
        await calls.value("SELECT $1::text", b"a\0b")


def test_a_url_may_name_several_hosts_and_the_one_that_takes_writes_is_looked_for() -> None:
    told = connect_arguments("postgresql://me:p%40ss@db-0:5432,db-1:5433/books?sslmode=verify-full")
    assert (told["host"], told["port"], told["password"]) == ("db-0,db-1", "5432,5433", "p@ss")
    assert (told["target_session_attrs"], told["sslmode"]) == ("read-write", "verify-full")
    assert connect_arguments("postgres://db/books?target_session_attrs=any")["target_session_attrs"] == "any"


@pytest.mark.parametrize(
    "url", ["mysql://me:secret@db/x", "db:5432", "postgresql://me:secret@db/x?nonsense=1"]
)
def test_a_url_that_cannot_be_used_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ValueError, match="the database's URL") as refused:
        connect_arguments(url)
    assert "secret" not in str(refused.value)


async def test_a_server_that_takes_no_writes_is_not_used(empty_database: Callable[[], Any]) -> None:
    """As a standby that somebody named by mistake."""
    made = empty_database()
    with psycopg.connect(made.admin_url, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {made.name} SET default_transaction_read_only = on".encode())
    calls, database = Calls(made.admin_url), Database(made.admin_url)
    with pytest.raises(psycopg.OperationalError, match="read-only"):
        await calls.value("SELECT 1")
    with pytest.raises(Exception, match="read-only"):
        await database.ping()
    await database.close()
