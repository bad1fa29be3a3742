"""Migrations: from nothing and from each earlier revision on a filled database, by anyone who may, and by many."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import psycopg
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import MetaData
from sqlmodel import SQLModel

import darktree_billing
from darktree_billing.models import ApiKey, BalanceRow, BookedMonth, Customer
from darktree_billing.payment_models import CursorRow, EventRow, FreezeRow, OrderRow, ReversalRow
from darktree_billing.request_models import CapRequestRow, LaneRequestRow
from darktree_kit import migrate


class Database(Protocol):
    """What these tests use of a database."""

    name: str
    admin_url: str

    def url_as(self, role: str) -> str: ...


def _revisions() -> list[str]:
    config = Config()
    config.set_main_option("script_location", str(Path(darktree_billing.__file__).parent / "migrations"))
    return [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()][::-1]


REVISIONS = _revisions()
FILL = {
    "0001": """
        INSERT INTO billing.customer (id, name, email, plan) VALUES ('old', 'Old', NULL, 'solo');
        INSERT INTO billing.api_key (id, customer_id, name, last4, digest, revoked_at)
        VALUES ('aaaaaaaaaaaa', 'old', 'first', 'abcd', sha256('a'), NULL),
               ('bbbbbbbbbbbb', 'old', 'second', 'efgh', sha256('b'), now());
    """,
}
FILL["0002"] = FILL["0001"]
FILL["0003"] = FILL["0002"]
FILL["0004"] = FILL["0003"]
FILL["0005"] = (
    FILL["0004"]
    + """
    INSERT INTO billing.payment_order
        (id, customer_id, plan, plan_name, price_cents, credit_nanos, cap_tokens, created_by)
    VALUES ('ord_1', 'old', 'solo', 'Solo', 5000, 50000000000, 2000, 'test');
    INSERT INTO billing.payment_reversal (id, kind, order_id, customer_id, amount_cents, status, created_at)
    VALUES ('re_1', 'refund', 'ord_1', 'old', 5000, 'pending', now());
    INSERT INTO billing.stripe_event (id, type, created_at, source, payload) VALUES ('evt_1', 'x', now(), 'poll', '{}');
"""
)
FILL |= dict.fromkeys(("0006", "0007", "0008", "0009"), FILL["0005"])


def test_every_earlier_revision_has_a_filling_here() -> None:
    assert list(FILL) == REVISIONS[:-1]


def test_from_nothing_and_again_changes_nothing(empty_database: Callable[[], Database]) -> None:
    database = empty_database()
    migrate.upgrade(database.admin_url, "darktree_billing", schema="billing")
    shape = _shape(database)
    migrate.upgrade(database.admin_url, "darktree_billing", schema="billing")
    assert _shape(database) == shape
    assert _query(database, "SELECT version_num FROM billing.alembic_version") == [(REVISIONS[-1],)]


@pytest.mark.parametrize("revision", REVISIONS[:-1])
def test_from_an_earlier_revision_a_filled_database_keeps_what_it_has(
    empty_database: Callable[[], Database], revision: str
) -> None:
    fresh, database = empty_database(), empty_database()
    migrate.upgrade(fresh.admin_url, "darktree_billing", schema="billing")
    migrate.upgrade(database.admin_url, "darktree_billing", schema="billing", revision=revision)
    _query(database, FILL[revision])
    before = _query(
        database, "SELECT id, customer_id, name, last4, digest, revoked_at FROM billing.api_key ORDER BY id"
    )
    migrate.upgrade(database.admin_url, "darktree_billing", schema="billing")
    assert _shape(database) == _shape(fresh)
    after = _query(
        database, "SELECT id, customer_id, name, last4, digest, revoked_at FROM billing.api_key ORDER BY id"
    )
    assert after == before
    assert _query(database, "SELECT DISTINCT pepper_version, last_used_day FROM billing.api_key") == [
        (1, None)
    ]


def test_a_process_of_the_release_before_still_works_during_an_upgrade(
    make_database: Callable[[], Database],
) -> None:
    database = make_database()
    with psycopg.connect(database.url_as("darktree_billing"), autocommit=True) as connection:
        connection.execute(FILL["0001"].encode())
    assert _query(database, "SELECT DISTINCT pepper_version FROM billing.api_key") == [(1,)]


def test_a_schema_that_a_newer_release_brought_further_is_left_as_it_is(
    make_database: Callable[[], Database],
) -> None:
    database = make_database()
    with psycopg.connect(database.admin_url, autocommit=True) as connection:
        connection.execute("UPDATE billing.alembic_version SET version_num = '9999'")
        assert migrate.upgrade(database.admin_url, "darktree_billing", schema="billing") is False
        reached = connection.execute("SELECT version_num FROM billing.alembic_version").fetchone()
    assert reached == ("9999",)
    assert migrate.upgrade(database.admin_url, "darktree_ledger", schema="ledger") is True


def test_many_migrations_at_once_on_one_and_on_several_databases(
    empty_database: Callable[[], Database],
) -> None:
    one, other = empty_database(), empty_database()
    databases = [one, one, other]
    program = (
        "import sys; from darktree_kit import migrate;"
        " migrate.upgrade(sys.argv[1], 'darktree_billing', schema='billing')"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", program, database.admin_url], stderr=subprocess.PIPE)
        for database in databases
    ]
    errors = [process.communicate(timeout=180)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0] * 3, errors
    for database in databases:
        assert _query(database, "SELECT version_num FROM billing.alembic_version") == [(REVISIONS[-1],)]


def test_an_administrator_who_is_no_superuser_can_migrate(empty_database: Callable[[], Database]) -> None:
    database = empty_database()
    _query(database, "DROP ROLE IF EXISTS plain_admin; CREATE ROLE plain_admin LOGIN CREATEROLE")
    # Roles belong to the cluster, where other tests' superuser may have made them already.
    roles = _query(database, "SELECT rolname FROM pg_roles WHERE rolname = 'darktree_owner'")
    if roles:
        _query(database, "GRANT darktree_owner TO plain_admin WITH ADMIN OPTION")
    _query(database, f'ALTER DATABASE "{database.name}" OWNER TO plain_admin')
    migrate.upgrade(database.url_as("plain_admin"), "darktree_billing", schema="billing")
    owners = _query(database, "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'billing'")
    assert owners == [("darktree_owner",)]


def test_the_models_say_what_the_migrations_made(make_database: Callable[[], Database]) -> None:
    database = make_database()
    metadata: MetaData = SQLModel.metadata
    payments = (FreezeRow, OrderRow, ReversalRow, EventRow, CursorRow)
    for model in (Customer, ApiKey, BalanceRow, BookedMonth, CapRequestRow, LaneRequestRow, *payments):
        table = metadata.tables[f"billing.{model.__tablename__}"]
        made = _query(
            database,
            "SELECT column_name, is_nullable = 'YES' FROM information_schema.columns"
            f" WHERE table_schema = 'billing' AND table_name = '{model.__tablename__}'",
        )
        assert sorted(made) == sorted((column.name, bool(column.nullable)) for column in table.columns)


def _query(database: Database, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(database.admin_url, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def _shape(database: Database) -> list[tuple[Any, ...]]:
    """Return every column, constraint, index and grant of the schema."""
    return [
        *_query(
            database,
            "SELECT table_name, column_name, data_type, is_nullable, column_default, collation_name"
            " FROM information_schema.columns WHERE table_schema = 'billing' ORDER BY 1, 2",
        ),
        *_query(
            database,
            "SELECT conrelid::regclass::text, pg_get_constraintdef(oid) FROM pg_constraint"
            " WHERE connamespace = 'billing'::regnamespace ORDER BY 1, 2",
        ),
        *_query(database, "SELECT indexdef FROM pg_indexes WHERE schemaname = 'billing' ORDER BY 1"),
        *_query(
            database,
            "SELECT relname, relacl::text, relowner::regrole::text FROM pg_class"
            " WHERE relnamespace = 'billing'::regnamespace ORDER BY 1",
        ),
    ]
