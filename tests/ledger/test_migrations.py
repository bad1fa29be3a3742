"""The schema goes up from nothing and from every earlier revision, with what was in it."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine

import darktree_ledger.migrations
from darktree_kit import migrate
from darktree_kit.db import DRIVER_URL, connect_arguments
from darktree_ledger import models

REVISIONS = sorted(
    path.name[:4]
    for path in (Path(darktree_ledger.migrations.__file__).parent / "versions").glob("[0-9]*.py")
)


@pytest.mark.parametrize("revision", REVISIONS)
def test_a_filled_database_goes_up_from_every_revision(
    empty_database: Callable[..., Any], revision: str
) -> None:
    url = empty_database().admin_url
    migrate.upgrade(url, "darktree_ledger", schema="ledger", revision=revision)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            """INSERT INTO ledger.account (customer_id, balance_nanos, cap_tokens, today, head, opened_by, opened_at)
               VALUES ('acme', 7, 100, current_date, sha256('x'), gen_random_uuid(), now())"""
        )
        connection.execute("SELECT ledger.prepare_months()")
        connection.execute(
            """INSERT INTO ledger.entry VALUES (gen_random_uuid(), 'acme', 1, 'grant', 'bonus_credits',
               'customer_credits', 7, 7, NULL, NULL, NULL, NULL, NULL, 0, 0, 0, 0, NULL, 'r', 'a', NULL, now(),
               pg_current_xact_id(), sha256('x'), sha256('y'))"""
        )
    migrate.upgrade(url, "darktree_ledger", schema="ledger")
    with psycopg.connect(url) as connection:
        assert connection.execute(
            "SELECT balance_nanos FROM ledger.account WHERE seq = 0 AND balance_nanos > 0"
        ).fetchall() == [(7,)]
        assert connection.execute("SELECT amount_nanos, seq FROM ledger.entry").fetchall() == [(7, 1)]
        assert connection.execute("SELECT version_num FROM ledger.alembic_version").fetchall() == [
            (REVISIONS[-1],)
        ]


def test_migrating_twice_changes_nothing(database: Any) -> None:
    migrate.upgrade(database.admin_url, "darktree_ledger", schema="ledger")


def test_somebody_who_is_no_superuser_can_migrate(
    postgres_url: str, empty_database: Callable[..., Any]
) -> None:
    made = empty_database()
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS somebody")
        connection.execute("CREATE ROLE somebody LOGIN CREATEROLE PASSWORD 'x'")
        connection.execute(f"GRANT CREATE ON DATABASE {made.name} TO somebody")
        connection.execute(
            "DO $$ BEGIN CREATE ROLE darktree_owner; EXCEPTION WHEN duplicate_object THEN END $$"
        )
        connection.execute("GRANT darktree_owner TO somebody WITH ADMIN OPTION")
    migrate.upgrade(made.url_as("somebody"), "darktree_ledger", schema="ledger")


@pytest.mark.parametrize("revision", REVISIONS)
def test_whoever_made_the_roles_is_needed_only_for_the_first_step(
    empty_database: Callable[..., Any], revision: str
) -> None:
    made = empty_database()
    migrate.upgrade(made.admin_url, "darktree_ledger", schema="ledger", revision=revision)
    migrate.allow_login(made.admin_url, migrate.MIGRATOR_ROLE, "unused: the socket is trusted")
    for _ in range(2):
        migrate.upgrade(made.url_as(migrate.MIGRATOR_ROLE), "darktree_ledger", schema="ledger")
    migrate.upgrade(made.url_as(migrate.MIGRATOR_ROLE), "darktree_billing", schema="billing")


def test_everybody_else_has_no_place_in_a_migrated_database(empty_database: Callable[..., Any]) -> None:
    made = empty_database()
    migrate.upgrade(made.admin_url, "darktree_ledger", schema="ledger")
    with psycopg.connect(made.admin_url) as connection:
        connection.execute("CREATE ROLE anybody")
        may = "has_database_privilege('anybody', current_database(), {}), has_schema_privilege('anybody', {}, {})"
        query = f"SELECT {may}, {may}".format(
            "'TEMP'", "'public'", "'CREATE'", "'CREATE'", "'ledger'", "'USAGE'"
        )
        assert connection.execute(query).fetchone() == (False, False, False, False)
        connection.rollback()


def test_the_models_are_what_the_migrations_make(database: Any) -> None:
    engine = create_engine(DRIVER_URL, connect_args=connect_arguments(database.admin_url))
    with engine.connect() as connection:

        def ours(thing: Any, name: str | None, kind: str, reflected: bool, other: Any) -> bool:
            return kind != "table" or name in {table.name for table in models.Table.metadata.tables.values()}

        context = MigrationContext.configure(
            connection,
            opts={
                "include_schemas": True,
                "include_name": lambda name, kind, parents: kind != "schema" or name == "ledger",
                "include_object": ours,
                "compare_type": True,
            },
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SQLAlchemy does not know xid8, which no model has
            differences = compare_metadata(context, models.Table.metadata)
    engine.dispose()
    assert [difference for difference in differences if "xid" not in str(difference)] == []
