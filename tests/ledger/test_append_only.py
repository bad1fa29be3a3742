"""Nobody who runs Darktree can change what was recorded."""

from typing import Any

import psycopg
import pytest

TABLES = ("account", "day_usage", "hold", "operation", "cap_change", "entry")
INSERT_ONLY = ("operation", "cap_change", "entry")


@pytest.fixture(scope="module")
def used_ledger(shared_ledger: Any, build: Any) -> Any:
    shared_ledger.customer("acme")
    placed = build.hold("acme", 10, 20)
    shared_ledger.one(placed)
    shared_ledger.one(build.settle(placed, 10, 20))
    return shared_ledger


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO ledger.{0} SELECT * FROM ledger.{0}",
        "UPDATE ledger.{0} SET customer_id = customer_id",
        "DELETE FROM ledger.{0}",
        "TRUNCATE ledger.{0}",
        "ALTER TABLE ledger.{0} DISABLE TRIGGER ALL",
        "DROP TABLE ledger.{0}",
    ],
)
def test_the_services_role_cannot_write_a_table(used_ledger: Any, table: str, statement: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        used_ledger.runtime.execute(statement.format(table))


@pytest.mark.parametrize(
    "statement",
    [
        "SET session_replication_role = replica",
        "SET ROLE darktree_owner",
        "SET ROLE postgres",
        "CREATE TABLE ledger.mine ()",
        "CREATE OR REPLACE FUNCTION ledger.clock_now() RETURNS timestamptz LANGUAGE sql AS 'SELECT now()'",
        "SELECT ledger.reap('{acme}', now())",
    ],
)
def test_the_services_role_cannot_become_more_than_it_is(used_ledger: Any, statement: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        used_ledger.runtime.execute(statement)


@pytest.mark.parametrize("table", INSERT_ONLY)
@pytest.mark.parametrize("replica", [False, True])
@pytest.mark.parametrize(
    "statement", ["UPDATE ledger.{} SET customer_id = 'x'", "DELETE FROM ledger.{}", "TRUNCATE ledger.{}"]
)
def test_even_the_superuser_meets_the_triggers(
    used_ledger: Any, table: str, replica: bool, statement: str
) -> None:
    used_ledger.admin.execute(f"SET session_replication_role = {'replica' if replica else 'origin'}")
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
        used_ledger.admin.execute(statement.format(table))


def test_each_partition_refuses_changes_of_its_own(used_ledger: Any) -> None:
    partition = used_ledger.value(
        "SELECT tableoid::regclass::text FROM ledger.entry ORDER BY recorded_at LIMIT 1"
    )
    used_ledger.admin.execute("SET session_replication_role = replica")
    for statement in (f"TRUNCATE {partition}", f"DELETE FROM {partition}", f"UPDATE {partition} SET seq = 9"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
            used_ledger.admin.execute(statement)


def test_everything_belongs_to_an_owner_who_cannot_log_in(used_ledger: Any) -> None:
    owners = used_ledger.admin.execute(
        """SELECT DISTINCT rolname, rolcanlogin FROM pg_roles WHERE oid IN (
               SELECT relowner FROM pg_class WHERE relnamespace = 'ledger'::regnamespace
               UNION SELECT proowner FROM pg_proc WHERE pronamespace = 'ledger'::regnamespace)"""
    ).fetchall()
    assert owners == [("darktree_owner", False)]


def test_every_function_that_acts_for_its_owner_fixes_its_search_path(used_ledger: Any) -> None:
    rows = used_ledger.admin.execute(
        "SELECT proname, proconfig FROM pg_proc WHERE pronamespace = 'ledger'::regnamespace AND prosecdef"
    ).fetchall()
    assert {name for name, _ in rows} == {"apply", "prepare_months"}
    assert all(any(setting.startswith("search_path=") for setting in config) for _, config in rows)
